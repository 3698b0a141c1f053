//! The direct search, without a shortlist: sums of squared differences of some rows to all points, and the k least of
//! every row.

use cubecl::prelude::*;

use super::{EMPTY, FAR, SETTINGS, insert};
use crate::gpu::mask::no_mask;
use crate::gpu::tile::{Lines, Sum, accumulate, staging, unit_origin, zeros};
use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, elementwise};
use crate::{Result, Tensor};

/// Number of cubes that keeps a large GPU busy.
const CUBES: usize = 256;

/// Rows of one launch. They bound the memory of results and of the copies of rows.
const ROWS: usize = 1 << 12;

/// Copies the given rows, one unit for each value.
#[cube(launch)]
fn gather_kernel(points: &Array<f32>, rows: &Array<u32>, copies: &mut Array<f32>, dim: usize) {
    if ABSOLUTE_POS < copies.len() {
        copies[ABSOLUTE_POS] = points[rows[ABSOLUTE_POS / dim] as usize * dim + ABSOLUTE_POS % dim];
    }
}

/// Each cube owns a block of rows and goes over the column blocks of its part, `blocks` of them. When a block of
/// squared distances is complete, one unit for each row merges it into the row's k least.
///
/// rows (count): the points in `copies` (count, D). distances, indices (parts, count, k): entries without a column are
/// `unfilled` and `EMPTY`.
#[cube(launch_unchecked)]
fn nearest_kernel(
    copies: &Array<f32>,
    rows: &Array<u32>,
    points: &Array<f32>,
    distances: &mut Array<f32>,
    indices: &mut Array<u32>,
    count: usize,
    n: usize,
    dim: usize,
    blocks: usize,
    unfilled: f32,
    #[comptime] k: usize,
    #[comptime] sum: Sum,
) {
    let tile = comptime!(sum.tile);
    let pitch = comptime!(tile.cols + 1);
    let mut row_staged = staging(tile.rows, tile);
    let mut col_staged = staging(tile.cols, tile);
    let mut block = SharedMemory::<f32>::new(comptime!(tile.rows * pitch));
    let (unit_row, unit_col) = unit_origin(tile);
    let mask = no_mask();
    let row = CUBE_POS_X as usize * comptime!(tile.rows);
    let part = CUBE_POS_Y as usize;
    let unit_row_index = row + UNIT_POS as usize;
    let merges = UNIT_POS < comptime!(tile.rows as u32) && unit_row_index < count;
    let own = rows[unit_row_index.min(count - 1)];

    let mut nearest = Array::<f32>::new(k);
    let mut columns = Array::<u32>::new(k);
    #[unroll]
    for slot in 0..k {
        nearest[slot] = unfilled;
        columns[slot] = EMPTY;
    }

    let last = (part * blocks + blocks).min(n.div_ceil(tile.cols));
    for col_block in part * blocks..last {
        let col = col_block * comptime!(tile.cols);
        let left_lines = Lines { first: row, end: count, pitch: dim };
        let right_lines = Lines { first: col, end: n, pitch: dim };
        let mut sums = zeros(tile);
        accumulate::<f32, f32>(
            &mut sums,
            copies,
            points,
            &mut row_staged,
            &mut col_staged,
            &mask,
            &left_lines,
            &right_lines,
            0,
            dim,
            sum,
        );
        #[unroll]
        for i in 0..comptime!(tile.unit_rows) {
            #[unroll]
            for j in 0..comptime!(tile.unit_cols) {
                let place = (unit_row + i) * pitch + unit_col + comptime!(j * tile.units_x());
                block[place] = sums[comptime!(i * tile.unit_cols + j)];
            }
        }
        sync_cube();
        if merges {
            for j in 0..comptime!(tile.cols) {
                let column = col + j;
                let d = block[UNIT_POS as usize * pitch + j];
                if column < n && column as u32 != own && d < nearest[comptime!(k - 1)] {
                    insert(&mut nearest, &mut columns, d, column as u32, k);
                }
            }
        }
        // `accumulate` synchronizes before any unit writes the block again.
    }
    if merges {
        #[unroll]
        for slot in 0..k {
            let place = (part * count + unit_row_index) * k + slot;
            distances[place] = nearest[slot];
            indices[place] = columns[slot];
        }
    }
}

/// (squared distances, columns) of the k nearest points of each of these rows, (rows, k). A row with fewer than k
/// points at a finite distance has `EMPTY` in the remaining places.
pub(crate) fn nearest<R: Backend>(
    gpu: &Gpu<R>,
    points: &Tensor,
    rows: &[u32],
    k: usize,
) -> Result<(Vec<f32>, Vec<u32>)> {
    let mut found = (Vec::with_capacity(rows.len() * k), Vec::with_capacity(rows.len() * k));
    for rows in rows.chunks(ROWS) {
        let (distances, indices) = batch(gpu, points, rows, k)?;
        found.0.extend(distances);
        found.1.extend(indices);
    }
    Ok(found)
}

/// [`nearest`] for the rows of one launch.
fn batch<R: Backend>(gpu: &Gpu<R>, points: &Tensor, rows: &[u32], k: usize) -> Result<(Vec<f32>, Vec<u32>)> {
    let (n, dim, tile, count) = (points.rows(), points.cols(), SETTINGS.tile, rows.len());
    let points = points.gpu("pairwise.nearest")?;
    let (row_blocks, col_blocks) = (count.div_ceil(tile.rows), n.div_ceil(tile.cols));
    // Few rows would leave cubes idle, so the columns are split into parts, which the host merges in order.
    let blocks = col_blocks.div_ceil((CUBES / row_blocks).clamp(1, col_blocks));
    let parts = col_blocks.div_ceil(blocks);
    let (rows, copies) = (gpu.upload_u32(rows), gpu.scratch(count * dim)?);
    let (distances, indices) = (gpu.scratch(parts * count * k)?, gpu.scratch(parts * count * k)?);
    gather_kernel::launch::<R>(
        gpu.client(),
        elementwise(count * dim),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        points.arg(),
        rows.arg(),
        copies.arg(),
        dim,
    );
    // SAFETY: the kernel compares points, columns and entries with their numbers before it reads or writes. The buffers
    // have the sizes in its documentation.
    unsafe {
        nearest_kernel::launch_unchecked::<R>(
            gpu.client(),
            CubeCount::Static(row_blocks as u32, parts as u32, 1),
            tile.cube_dim(),
            copies.arg(),
            rows.arg(),
            points.arg(),
            distances.arg(),
            indices.arg(),
            count,
            n,
            dim,
            blocks,
            FAR,
            k,
            SETTINGS,
        )
    };
    let distances: Vec<f32> = bytemuck::pod_collect_to_vec(&gpu.read_bytes(&distances)?);
    let indices: Vec<u32> = bytemuck::pod_collect_to_vec(&gpu.read_bytes(&indices)?);
    if parts == 1 {
        return Ok((distances, indices));
    }
    Ok(merge(&distances, &indices, count, k, parts))
}

/// The k least of all parts, for every row.
fn merge(distances: &[f32], indices: &[u32], n: usize, k: usize, parts: usize) -> (Vec<f32>, Vec<u32>) {
    let mut merged = (Vec::with_capacity(n * k), Vec::with_capacity(n * k));
    let mut row: Vec<(f32, u32)> = Vec::with_capacity(parts * k);
    for i in 0..n {
        row.clear();
        for part in 0..parts {
            let first = (part * n + i) * k;
            row.extend(distances[first..first + k].iter().copied().zip(indices[first..first + k].iter().copied()));
        }
        row.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for &(d, j) in &row[..k] {
            merged.0.push(d);
            merged.1.push(j);
        }
    }
    merged
}
