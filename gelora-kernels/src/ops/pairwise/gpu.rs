//! Tiles of (x - y)^2 sums in f32, with no norms and no matrix product: nothing cancels.

use cubecl::prelude::*;

use crate::gpu::tile::{Lines, Sum, Tile, accumulate, staging, unit_origin, zeros};
use crate::gpu::{Backend, Gpu, MAX_CUBES};
use crate::ops::dropout::gpu::no_mask;
use crate::{Error, Result, Tensor};

/// The longest list of neighbours that stays in registers.
const MAX_K: usize = 16;

/// Cubes that keep a large GPU busy.
const CUBES: usize = 256;

const SETTINGS: Sum = Sum { squared_difference: true, ..Sum::products(Tile::SQUARE, Lines::AreRows, Lines::AreRows) };

#[cube(launch)]
fn distances_kernel(
    x: &Array<f32>,
    y: &Array<f32>,
    d: &mut Array<f32>,
    n: usize,
    m: usize,
    dim: usize,
    #[comptime] squared: bool,
    #[comptime] sum: Sum,
) {
    let tile = comptime!(sum.tile);
    let mut x_staged = staging(tile.rows, tile);
    let mut y_staged = staging(tile.cols, tile);
    let (unit_row, unit_col) = unit_origin(tile);
    let mask = no_mask();
    let col = CUBE_POS_X as usize * comptime!(tile.cols);
    for block in range_stepped(CUBE_POS_Y as usize, n.div_ceil(tile.rows), CUBE_COUNT_Y as usize) {
        let row = block * comptime!(tile.rows);
        let mut sums = zeros(tile);
        accumulate::<f32, f32>(
            &mut sums,
            x,
            y,
            &mut x_staged,
            &mut y_staged,
            &mask,
            row,
            n,
            dim,
            col,
            m,
            dim,
            0,
            dim,
            sum,
        );
        #[unroll]
        for i in 0..comptime!(tile.unit_rows) {
            #[unroll]
            for j in 0..comptime!(tile.unit_cols) {
                let at_row = row + unit_row + i;
                let at_col = col + unit_col + comptime!(j * tile.units_x());
                if at_row < n && at_col < m {
                    let value = sums[comptime!(i * tile.unit_cols + j)];
                    if comptime!(squared) {
                        d[at_row * m + at_col] = value;
                    } else {
                        d[at_row * m + at_col] = value.sqrt();
                    }
                }
            }
        }
    }
}

pub fn distances<R: Backend>(gpu: &Gpu<R>, x: &Tensor, y: &Tensor, squared: bool) -> Result<Tensor> {
    const OP: &str = "pairwise.distances";
    let (n, m, dim) = (x.rows(), y.rows(), x.cols());
    let d = gpu.output([n, m])?;
    distances_kernel::launch::<R>(
        gpu.client(),
        SETTINGS.tile.cube_count(n, m, 1),
        SETTINGS.tile.cube_dim(),
        x.gpu(OP)?.arg(),
        y.gpu(OP)?.arg(),
        d.gpu(OP)?.arg(),
        n,
        m,
        dim,
        squared,
        SETTINGS,
    );
    Ok(d)
}

/// Each cube owns a block of rows and streams over the column blocks of its part, `blocks` of them. When a block of squared
/// distances is complete, one unit a row merges it into the row's k least.
///
/// distances, indices (parts, N, k); places that no column filled keep `unfilled` and u32::MAX.
#[cube(launch)]
fn nearest_kernel(
    points: &Array<f32>,
    distances: &mut Array<f32>,
    indices: &mut Array<u32>,
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
    let own = row + UNIT_POS as usize;
    let merges = UNIT_POS < comptime!(tile.rows as u32) && own < n;

    let mut nearest = Array::<f32>::new(k);
    let mut columns = Array::<u32>::new(k);
    #[unroll]
    for slot in 0..k {
        nearest[slot] = unfilled;
        columns[slot] = 0xffff_ffffu32;
    }

    let last = (part * blocks + blocks).min(n.div_ceil(tile.cols));
    for col_block in part * blocks..last {
        let col = col_block * comptime!(tile.cols);
        let mut sums = zeros(tile);
        accumulate::<f32, f32>(
            &mut sums,
            points,
            points,
            &mut row_staged,
            &mut col_staged,
            &mask,
            row,
            n,
            dim,
            col,
            n,
            dim,
            0,
            dim,
            sum,
        );
        #[unroll]
        for i in 0..comptime!(tile.unit_rows) {
            #[unroll]
            for j in 0..comptime!(tile.unit_cols) {
                let at = (unit_row + i) * pitch + unit_col + comptime!(j * tile.units_x());
                block[at] = sums[comptime!(i * tile.unit_cols + j)];
            }
        }
        sync_cube();
        if merges {
            for j in 0..comptime!(tile.cols) {
                let column = col + j;
                let d = block[UNIT_POS as usize * pitch + j];
                if column < n && column != own && d < nearest[comptime!(k - 1)] {
                    insert(&mut nearest, &mut columns, d, column as u32, k);
                }
            }
        }
        // `accumulate` synchronises before any unit writes the block again.
    }
    if merges {
        #[unroll]
        for slot in 0..k {
            let at = (part * n + own) * k + slot;
            distances[at] = nearest[slot];
            indices[at] = columns[slot];
        }
    }
}

/// Puts a column into its place of an ascending list, behind equals: columns come in ascending order. Indices are comptime,
/// so that the list stays in registers.
#[cube]
fn insert(nearest: &mut Array<f32>, columns: &mut Array<u32>, d: f32, column: u32, #[comptime] k: usize) {
    #[unroll]
    for back in 0..comptime!(k - 1) {
        let slot = comptime!(k - 1 - back);
        if d < nearest[comptime!(slot - 1)] {
            nearest[slot] = nearest[comptime!(slot - 1)];
            columns[slot] = columns[comptime!(slot - 1)];
        } else if d < nearest[slot] {
            nearest[slot] = d;
            columns[slot] = column;
        }
    }
    if d < nearest[0] {
        nearest[0] = d;
        columns[0] = column;
    }
}

/// (squared distances, rows) of the k nearest, each (N, k). A row that has fewer than k at a finite distance has
/// u32::MAX in the places left.
pub fn nearest<R: Backend>(gpu: &Gpu<R>, points: &Tensor, k: usize) -> Result<(Vec<f32>, Vec<u32>)> {
    const OP: &str = "pairwise.nearest";
    let (n, dim, tile) = (points.rows(), points.cols(), SETTINGS.tile);
    let (row_blocks, col_blocks) = (n.div_ceil(tile.rows), n.div_ceil(tile.cols));
    let unsupported = |what| Err(Error::Unsupported { op: OP, device: R::KIND, what });
    if k > MAX_K {
        return unsupported("more than 16 neighbours; use the CPU");
    }
    if row_blocks > MAX_CUBES as usize {
        return unsupported("more than 4 million points; use the CPU");
    }
    // Few rows leave units idle unless the columns are shared out too. The host merges the parts, in order.
    let blocks = col_blocks.div_ceil((CUBES / row_blocks).clamp(1, col_blocks));
    let parts = col_blocks.div_ceil(blocks);
    let (distances, indices) = (gpu.scratch(parts * n * k)?, gpu.scratch(parts * n * k)?);
    nearest_kernel::launch::<R>(
        gpu.client(),
        CubeCount::Static(row_blocks as u32, parts as u32, 1),
        tile.cube_dim(),
        points.gpu(OP)?.arg(),
        distances.arg(),
        indices.arg(),
        n,
        dim,
        blocks,
        f32::MAX,
        k,
        SETTINGS,
    );
    let distances: Vec<f32> = bytemuck::pod_collect_to_vec(&gpu.read_bytes(&distances)?);
    let indices: Vec<u32> = bytemuck::pod_collect_to_vec(&gpu.read_bytes(&indices)?);
    if parts == 1 {
        return Ok((distances, indices));
    }
    Ok(merge(&distances, &indices, n, k, parts))
}

fn merge(distances: &[f32], indices: &[u32], n: usize, k: usize, parts: usize) -> (Vec<f32>, Vec<u32>) {
    let mut merged = (Vec::with_capacity(n * k), Vec::with_capacity(n * k));
    let mut row: Vec<(f32, u32)> = Vec::with_capacity(parts * k);
    for i in 0..n {
        row.clear();
        for part in 0..parts {
            let at = (part * n + i) * k;
            row.extend(distances[at..at + k].iter().copied().zip(indices[at..at + k].iter().copied()));
        }
        row.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for &(d, j) in &row[..k] {
            merged.0.push(d);
            merged.1.push(j);
        }
    }
    merged
}
