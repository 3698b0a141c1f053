//! Distances are computed in tiles of sums of (x - y)^2 in f32. No norms and no matrix product are involved, so nothing
//! cancels.
//!
//! Neighbors are found on the device in two steps. Matrix products shortlist a few columns for every row
//! (`gpu/shortlist.rs`); sums of squared differences choose among them and prove that no other column was nearer
//! (`gpu/exact.rs`). A row that cannot be proved is searched directly (`gpu/direct.rs`), with the same bits: its k-th
//! neighbor has many points nearly as near, or its cloud is a point to the products. Beside the points, the search
//! takes 16 (k + 4) bytes of lists a point, and at most about 8 (k + 4) MB of slots for up to half a million points.

mod direct;
mod exact;
mod shortlist;
mod tiles;

use cubecl::prelude::*;

use self::tiles::Shape;
use crate::gpu::mask::no_mask;
use crate::gpu::tile::{Layout, Lines, Sum, Tile, accumulate, staging, unit_origin, zeros};
use crate::gpu::{Backend, Gpu, cubes};
use crate::guard::forced_shape;
use crate::{Error, Result, Tensor};

/// The largest k: a list of this length stays in registers.
const MAX_K: usize = 16;

/// Candidates beyond k. The proof needs the distance of the next candidate to be larger than that of the k-th.
const SLACK: usize = 4;

/// A squared distance larger than that of any pair.
const FAR: f32 = f32::MAX;

/// The column of an empty entry.
const EMPTY: u32 = u32::MAX;

/// The first column of a row whose shortlist is not proved complete.
const OPEN: u32 = u32::MAX - 1;

/// The first column of a row whose point has a coordinate that is out of the range of products.
const OUT_OF_RANGE: u32 = u32::MAX - 2;

const SETTINGS: Sum = Sum { squared_difference: true, ..Sum::products(Tile::SQUARE, Layout::Rows, Layout::Rows) };

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
    let col_blocks = m.div_ceil(tile.cols);
    let row = CUBE_POS / col_blocks * comptime!(tile.rows);
    let col = CUBE_POS % col_blocks * comptime!(tile.cols);
    if row < n {
        let left_lines = Lines { first: row, end: n, pitch: dim };
        let right_lines = Lines { first: col, end: m, pitch: dim };
        let mut sums = zeros(tile);
        accumulate::<f32, f32>(
            &mut sums,
            x,
            y,
            &mut x_staged,
            &mut y_staged,
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
                let out_row = row + unit_row + i;
                let out_col = col + unit_col + comptime!(j * tile.units_x());
                if out_row < n && out_col < m {
                    let value = sums[comptime!(i * tile.unit_cols + j)];
                    if comptime!(squared) {
                        d[out_row * m + out_col] = value;
                    } else {
                        d[out_row * m + out_col] = value.sqrt();
                    }
                }
            }
        }
    }
}

pub(crate) fn distances<R: Backend>(gpu: &Gpu<R>, x: &Tensor, y: &Tensor, squared: bool) -> Result<Tensor> {
    const OP: &str = "pairwise.distances";
    let (n, m, dim) = (x.rows(), y.rows(), x.cols());
    let d = gpu.output([n, m])?;
    distances_kernel::launch::<R>(
        gpu.client(),
        cubes(n.div_ceil(SETTINGS.tile.rows) * m.div_ceil(SETTINGS.tile.cols)),
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

/// Inserts a column into an ascending list, behind equals, because columns come in ascending order. Indices are
/// comptime, so the list stays in registers.
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

/// The neighbors of every point, and the rows that were searched directly.
struct Found {
    /// (N, k): squared distances.
    squared: Vec<f32>,
    /// (N, k): columns.
    indices: Vec<u32>,
    /// Rows whose shortlist was not proved complete.
    #[cfg_attr(not(test), allow(dead_code))] // tests ask whether the fallback ran
    open: Vec<u32>,
}

/// (squared distances, columns) of the k nearest, each (N, k). A row with fewer than k points at a finite distance has
/// [`EMPTY`] in the remaining places.
pub(crate) fn nearest<R: Backend>(gpu: &Gpu<R>, points: &Tensor, k: usize) -> Result<(Vec<f32>, Vec<u32>)> {
    if k > MAX_K {
        let what = "more than 16 neighbors; use the CPU";
        return Err(Error::Unsupported { op: "pairwise.nearest", device: R::KIND, what });
    }
    let (shared, width) = (gpu.client().properties().hardware.max_shared_memory_size, shortlist::width(points.cols()));
    let shape = match forced_shape() {
        None => Shape::of(points.rows(), width, shared),
        Some(place) => Shape::ALL.get(place).copied().filter(|shape| shape.fits(width, shared)).ok_or_else(|| {
            let what = "a tile of this shape, in the shared memory of this device";
            Error::Unsupported { op: "pairwise.nearest", device: R::KIND, what }
        })?,
    };
    let found = search(gpu, points, k, shape, shortlist::TILES)?;
    Ok((found.squared, found.indices))
}

/// The search with tiles of a shape, `tiles` of them in one launch.
fn search<R: Backend>(gpu: &Gpu<R>, points: &Tensor, k: usize, shape: Shape, tiles: usize) -> Result<Found> {
    let n = points.rows();
    let lists = shortlist::shortlist(gpu, points, k + SLACK, shape, tiles)?;
    let found = exact::exact(gpu, points, &lists, k)?;
    drop(lists);
    let found: Vec<u32> = bytemuck::pod_collect_to_vec(&gpu.read_bytes(&found)?);
    let (mut squared, mut indices) = (Vec::with_capacity(n * k), Vec::with_capacity(n * k));
    for row in found.chunks_exact(2 * k) {
        squared.extend(row[..k].iter().map(|&bits| f32::from_bits(bits)));
        indices.extend_from_slice(&row[k..]);
    }
    // The products of a point out of range may have spoilt any list, so all rows are searched directly.
    let out_of_range = indices.iter().step_by(k).any(|&first| first == OUT_OF_RANGE);
    let open: Vec<u32> = (0..n).filter(|row| out_of_range || indices[row * k] == OPEN).map(|row| row as u32).collect();
    let (direct_squared, direct_indices) = direct::nearest(gpu, points, &open, k)?;
    for (i, row) in open.iter().map(|&row| row as usize).enumerate() {
        squared[row * k..][..k].copy_from_slice(&direct_squared[i * k..][..k]);
        indices[row * k..][..k].copy_from_slice(&direct_indices[i * k..][..k]);
    }
    Ok(Found { squared, indices, open })
}

#[cfg(all(test, feature = "wgpu"))]
mod tests;
