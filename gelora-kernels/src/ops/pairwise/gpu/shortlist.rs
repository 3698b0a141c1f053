//! For every point the columns with the least lower bounds on the squared distance, from products: step 1 of the search.
//!
//! x' = x - m for a point m near the cloud, n_i = |x'_i|^2. With products p the squared distance of i and j is at least
//! L_ij = l_i + l_j - 2 p_ij, l_i = n_i (1 - c) - t, whatever the roundings: with u = 2^-24 and n_i + n_j as the unit, the inner
//! product is within gamma_D / 2 in any order of summation (Higham 2002, 3.5) and counts twice, the sums that make n_i
//! are within gamma_(D / 16 + 18), those that make l and L within 8 u, and rounding x' to f32 moves |x'_i - x'_j|^2 by at
//! most 6 u. Together less than c = (1.1 (D + D / 16) + 48) u; values that are flushed to zero below 2^-126 take less
//! than t = 1e-36 D.
//!
//! Blocks of rows stand in a circle. On lap d, block b meets block b + d, so that after half a circle every pair of
//! blocks has met once. One cube computes one such tile in registers and passes it through shared memory a strip at a
//! time, where one unit a row and one unit a column keep the least. Their lists go to slots of their own, and after
//! each launch of a few laps every row's slots are folded into its list: no atomics, and the order is fixed. The worst
//! of the list so far is what the next laps must be below, so that nearly nothing is inserted after the first.

use cubecl::prelude::*;

use super::tiles::{SIDE, Shape, UNITS, goes, tile_kernel};
use super::{EMPTY, FAR, insert};
use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, GpuBuffer, cubes, elementwise};
use crate::{Result, Tensor, profile};

/// Tiles of a launch: what keeps a large GPU busy for several rounds. The slots take 16 bytes a line of a tile and entry.
pub const TILES: usize = 4096;

/// Rows whose coordinate-wise median is the centre. No few outliers move it.
const SAMPLES: usize = 15;

/// A point with a coordinate of this magnitude, or one that is not finite, is left to the direct search.
const WILD: f32 = 1e14;

/// The relative error of one f32 operation that rounds to nearest. Matrix units truncate their sums: products that are summed
/// there need 2^-23 here, and an allowance for what the alignment of a block's summands drops.
const UNIT_ROUNDOFF: f64 = 1.0 / (1 << 24) as f64;

/// What bounds the distance of a pair from below.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// 1 - c.
    pub shrink: f32,
    /// t.
    pub tiny: f32,
}

impl Bound {
    /// For points of so many dimensions.
    pub fn of(dim: usize) -> Self {
        let dim = dim as f64;
        let c = (1.1 * (dim + dim / 16.0) + 48.0) * UNIT_ROUNDOFF;
        Self { shrink: (1.0 - c) as f32, tiny: (1e-36 * dim) as f32 }
    }
}

/// Candidates of every row, the least bounds first.
pub struct Lists {
    /// Entries of a list.
    pub room: usize,
    /// (room, N): lower bounds; [`FAR`] where there is none.
    pub bounds: GpuBuffer,
    /// (room, N): columns; [`EMPTY`] where there is none.
    pub columns: GpuBuffer,
    /// (N): l, or [`FAR`] for a wild point.
    pub lower: GpuBuffer,
}

/// Each coordinate's median over a few rows.
#[cube(launch)]
fn centre_kernel(points: &Array<f32>, centre: &mut Array<f32>, n: usize, dim: usize) {
    let c = ABSOLUTE_POS;
    if c < dim {
        let mut values = Array::<f32>::new(SAMPLES);
        #[unroll]
        for s in 0..SAMPLES {
            values[s] = points[(s * n / SAMPLES) * dim + c];
        }
        let mut median = values[0];
        #[unroll]
        for s in 0..SAMPLES {
            let mut before = 0u32;
            #[unroll]
            for other in 0..SAMPLES {
                if comptime!(other < s) {
                    before += u32::cast_from(values[other] <= values[s]);
                } else if comptime!(other > s) {
                    before += u32::cast_from(values[other] < values[s]);
                }
            }
            if before == comptime!(SAMPLES as u32 / 2) {
                median = values[s];
            }
        }
        centre[c] = median;
    }
}

/// l of every row, [`SIDE`] units a row; and empty lists.
#[cube(launch)]
fn lower_kernel<V: Size>(
    points: &Array<Vector<f32, V>>,
    centre: &Array<Vector<f32, V>>,
    lower: &mut Array<f32>,
    bounds: &mut Array<f32>,
    columns: &mut Array<u32>,
    n: usize,
    length: usize,
    shrink: f32,
    tiny: f32,
    #[comptime] room: usize,
) {
    let mut parts = SharedMemory::<f32>::new(UNITS);
    let mut largest = SharedMemory::<u32>::new(UNITS);
    let unit = UNIT_POS as usize;
    let lane = unit % SIDE;
    let row = CUBE_POS * SIDE + unit / SIDE;
    let mut sum = 0.0f32;
    // The order of magnitudes is that of their bits, also where they are infinite or no numbers.
    let mut top = 0u32;
    if row < n {
        for at in range_stepped(lane, length, SIDE) {
            let x = points[row * length + at];
            let centred = x - centre[at];
            #[unroll]
            for l in 0..V::value() {
                sum += centred[l] * centred[l];
                let bits = u32::reinterpret(x[l]) & 0x7fff_ffffu32;
                if bits > top {
                    top = bits;
                }
            }
        }
    }
    parts[unit] = sum;
    largest[unit] = top;
    sync_cube();
    if lane == 0 && row < n {
        for other in 1..SIDE {
            sum += parts[unit + other];
            if largest[unit + other] > top {
                top = largest[unit + other];
            }
        }
        let mut l = sum * shrink - tiny;
        if top >= comptime!(WILD.to_bits()) {
            l = f32::new(FAR);
        }
        lower[row] = l;
        #[unroll]
        for entry in 0..room {
            bounds[entry * n + row] = FAR;
            columns[entry * n + row] = EMPTY;
        }
    }
}

/// Merges the slots of a row into its list, one unit a row.
#[cube(launch_unchecked)]
fn fold_kernel(
    bounds: &mut Array<f32>,
    columns: &mut Array<u32>,
    slot_bounds: &Array<f32>,
    slot_columns: &Array<u32>,
    n: usize,
    blocks: usize,
    first_lap: usize,
    laps: usize,
    #[comptime] room: usize,
    #[comptime] side: usize,
) {
    let row = ABSOLUTE_POS;
    if row < n {
        let mut kept = Array::<f32>::new(room);
        let mut kept_columns = Array::<u32>::new(room);
        #[unroll]
        for entry in 0..room {
            kept[entry] = bounds[entry * n + row];
            kept_columns[entry] = columns[entry * n + row];
        }
        let block = row / side;
        for slot in 0..2 * laps {
            let lap = first_lap + slot % laps;
            // The slots that a tile wrote: of its rows if this block went, of its columns if another came.
            let came = lap != 0 && goes((block + blocks - lap) % blocks, lap, blocks);
            let written = select(slot < laps, goes(block, lap, blocks), came);
            if written && slot_bounds[slot * room * n + row] < kept[comptime!(room - 1)] {
                for entry in 0..room {
                    let at = (slot * room + entry) * n + row;
                    let bound = slot_bounds[at];
                    if bound < kept[comptime!(room - 1)] {
                        insert(&mut kept, &mut kept_columns, bound, slot_columns[at], room);
                    }
                }
            }
        }
        #[unroll]
        for entry in 0..room {
            bounds[entry * n + row] = kept[entry];
            columns[entry * n + row] = kept_columns[entry];
        }
    }
}

/// Values of a vector: as many as divide the dimension.
pub fn width(dim: usize) -> usize {
    [4, 2, 1].into_iter().find(|width| dim.is_multiple_of(*width)).unwrap_or(1)
}

/// The `room` columns with the least lower bounds of every row, in launches of `tiles` tiles or, if more, one lap.
pub fn shortlist<R: Backend>(gpu: &Gpu<R>, points: &Tensor, room: usize, shape: Shape, tiles: usize) -> Result<Lists> {
    const OP: &str = "pairwise.nearest";
    let (n, dim) = (points.rows(), points.cols());
    let (width, bound) = (width(dim), Bound::of(dim));
    let blocks = n.div_ceil(shape.side());
    let all_laps = blocks / 2 + 1;
    let most_laps = (tiles / blocks).min(gpu.max_scratch() / (2 * room * n)).clamp(1, all_laps);
    let slots = [gpu.scratch(2 * most_laps * room * n)?, gpu.scratch(2 * most_laps * room * n)?];
    let centre = gpu.scratch(dim)?;
    let lists = Lists { room, bounds: gpu.scratch(room * n)?, columns: gpu.scratch(room * n)?, lower: gpu.scratch(n)? };
    let points = points.gpu(OP)?;
    let units = CubeDim::new_1d(UNITS as u32);
    centre_kernel::launch::<R>(gpu.client(), elementwise(dim), units, points.arg(), centre.arg(), n, dim);
    lower_kernel::launch::<R>(
        gpu.client(),
        cubes(n.div_ceil(SIDE)),
        units,
        width,
        points.arg(),
        centre.arg(),
        lists.lower.arg(),
        lists.bounds.arg(),
        lists.columns.arg(),
        n,
        dim / width,
        bound.shrink,
        bound.tiny,
        room,
    );
    // The first laps insert most: they are few, so that the others have limits.
    let (mut lap, mut laps) = (0, most_laps.div_ceil(4));
    while lap < all_laps {
        laps = laps.min(all_laps - lap);
        // SAFETY: the kernel compares points, columns and entries with their numbers before it reads or writes; the buffers have the sizes
        // that its documentation gives.
        unsafe {
            tile_kernel::launch_unchecked::<R>(
                gpu.client(),
                cubes(blocks * laps),
                units,
                width,
                points.arg(),
                centre.arg(),
                lists.lower.arg(),
                lists.bounds.arg(),
                slots[0].arg(),
                slots[1].arg(),
                n,
                dim / width,
                blocks,
                lap,
                laps,
                room,
                shape,
            )
        };
        // SAFETY: the kernel compares points, columns and entries with their numbers before it reads or writes; the buffers have the sizes
        // that its documentation gives.
        unsafe {
            fold_kernel::launch_unchecked::<R>(
                gpu.client(),
                elementwise(n),
                CubeDim::new_1d(ELEMENTWISE_UNITS),
                lists.bounds.arg(),
                lists.columns.arg(),
                slots[0].arg(),
                slots[1].arg(),
                n,
                blocks,
                lap,
                laps,
                room,
                shape.side(),
            )
        };
        lap += laps;
        laps = most_laps;
    }
    profile::memory(|| gpu.memory_in_use())?;
    Ok(lists)
}
