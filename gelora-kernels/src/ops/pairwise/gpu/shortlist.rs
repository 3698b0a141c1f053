//! Step 1 of the search: for every point, the columns with the least lower bounds on the squared distance, from
//! products.
//!
//! Let x' = x - m for a point m near the cloud, and n_i = |x'_i|^2. With products p, the squared distance of i and j is
//! at least L_ij = l_i + l_j - 2 p_ij with l_i = n_i (1 - c) - t, for any rounding. With u = 2^-24 and n_i + n_j as the
//! unit: the inner product is within gamma_D / 2 in any order of summation (Higham 2002, 3.5) and counts twice; the
//! sums of n_i are within gamma_(D / 16 + 18), those of l and L within 8 u; rounding x' to f32 moves |x'_i - x'_j|^2 by
//! at most 6 u. The sum is less than c = (1.1 (D + D / 16) + 48) u. Values that are flushed to zero below 2^-126 take
//! less than t = 1e-36 D.
//!
//! Blocks of rows form a circle. On lap d, block b meets block b + d, so after half a circle every pair of blocks has
//! met once. One cube computes one such tile in registers and passes it through shared memory in strips; there one unit
//! for each row and one for each column keep the least bounds. Their lists go to slots of their own, and after each
//! launch of a few laps the slots of a row are folded into its list. This needs no atomics, and the order is fixed. The
//! largest bound of a list is the limit for the next laps, so almost nothing is inserted after the first laps.

use cubecl::prelude::*;

use super::tiles::{Laps, LapsLaunch, SIDE, Shape, UNITS, goes, tile_kernel};
use super::{EMPTY, FAR, insert};
use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, GpuBuffer, cubes, elementwise};
use crate::{Result, Tensor, profile};

/// Tiles of one launch: enough to keep a large GPU busy for several rounds. Slots take 16 bytes for each line of a tile
/// and entry.
pub(crate) const TILES: usize = 4096;

/// Number of sampled rows. Their coordinate-wise median is the center; a few outliers do not move it.
const SAMPLES: usize = 15;

/// A point with a coordinate of at least this magnitude, or one that is not finite, is left to the direct search.
const LARGEST_COORDINATE: f32 = 1e14;

/// The relative error of one f32 operation that rounds to nearest. Matrix units truncate their sums, so products on
/// matrix units would need 2^-23 here, and a margin for summands that lose bits by alignment.
const UNIT_ROUNDOFF: f64 = 1.0 / (1 << 24) as f64;

/// The constants of the lower bound on a distance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    /// 1 - c.
    pub(crate) shrink: f32,
    /// t.
    pub(crate) tiny: f32,
}

impl Bound {
    /// The constants for points of `dim` dimensions.
    pub(crate) fn of(dim: usize) -> Self {
        let dim = dim as f64;
        let c = (1.1 * (dim + dim / 16.0) + 48.0) * UNIT_ROUNDOFF;
        Self { shrink: (1.0 - c) as f32, tiny: (1e-36 * dim) as f32 }
    }
}

/// The candidates of every row, the least bounds first.
pub(crate) struct Lists {
    /// Number of entries of a list.
    pub(crate) capacity: usize,
    /// (capacity, N): lower bounds; [`FAR`] in empty entries.
    pub(crate) bounds: GpuBuffer,
    /// (capacity, N): columns; [`EMPTY`] in empty entries.
    pub(crate) columns: GpuBuffer,
    /// (N): l, or [`FAR`] for a point that is out of range.
    pub(crate) lower: GpuBuffer,
}

/// The median of each coordinate over a few rows: the value with as many values before it as behind it.
#[cube(launch)]
fn center_kernel(points: &Array<f32>, center: &mut Array<f32>, n: usize, dim: usize) {
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
        center[c] = median;
    }
}

/// l of every row, with [`SIDE`] units for each row, and empty lists.
#[cube(launch)]
fn lower_kernel<V: Size>(
    points: &Array<Vector<f32, V>>,
    center: &Array<Vector<f32, V>>,
    lower: &mut Array<f32>,
    bounds: &mut Array<f32>,
    columns: &mut Array<u32>,
    n: usize,
    length: usize,
    shrink: f32,
    tiny: f32,
    #[comptime] capacity: usize,
) {
    let mut parts = SharedMemory::<f32>::new(UNITS);
    let mut largest = SharedMemory::<u32>::new(UNITS);
    let unit = UNIT_POS as usize;
    let lane = unit % SIDE;
    let row = CUBE_POS * SIDE + unit / SIDE;
    let mut sum = 0.0f32;
    // Magnitudes are ordered as their bits, also infinities and NaNs.
    let mut top = 0u32;
    if row < n {
        for i in range_stepped(lane, length, SIDE) {
            let x = points[row * length + i];
            let centered = x - center[i];
            #[unroll]
            for l in 0..V::value() {
                sum += centered[l] * centered[l];
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
        if top >= comptime!(LARGEST_COORDINATE.to_bits()) {
            l = f32::new(FAR);
        }
        lower[row] = l;
        #[unroll]
        for entry in 0..capacity {
            bounds[entry * n + row] = FAR;
            columns[entry * n + row] = EMPTY;
        }
    }
}

/// Merges the slots of a row into its list, one unit for each row.
#[cube(launch_unchecked)]
fn fold_kernel(
    bounds: &mut Array<f32>,
    columns: &mut Array<u32>,
    slot_bounds: &Array<f32>,
    slot_columns: &Array<u32>,
    extent: &Laps,
    #[comptime] capacity: usize,
    #[comptime] side: usize,
) {
    let (n, blocks, first_lap, laps) = (extent.n, extent.blocks, extent.first_lap, extent.laps);
    let row = ABSOLUTE_POS;
    if row < n {
        let mut kept = Array::<f32>::new(capacity);
        let mut kept_columns = Array::<u32>::new(capacity);
        #[unroll]
        for entry in 0..capacity {
            kept[entry] = bounds[entry * n + row];
            kept_columns[entry] = columns[entry * n + row];
        }
        let block = row / side;
        for slot in 0..2 * laps {
            let lap = first_lap + slot % laps;
            // Slots that a tile wrote: for its rows if this block went, for its columns if another block came.
            let came = lap != 0 && goes((block + blocks - lap) % blocks, lap, blocks);
            let written = select(slot < laps, goes(block, lap, blocks), came);
            if written && slot_bounds[slot * capacity * n + row] < kept[comptime!(capacity - 1)] {
                for entry in 0..capacity {
                    let place = (slot * capacity + entry) * n + row;
                    let bound = slot_bounds[place];
                    if bound < kept[comptime!(capacity - 1)] {
                        insert(&mut kept, &mut kept_columns, bound, slot_columns[place], capacity);
                    }
                }
            }
        }
        #[unroll]
        for entry in 0..capacity {
            bounds[entry * n + row] = kept[entry];
            columns[entry * n + row] = kept_columns[entry];
        }
    }
}

/// Values of a vector: 4, 2 or 1, so that they divide the dimension.
pub(crate) fn width(dim: usize) -> usize {
    [4, 2, 1].into_iter().find(|width| dim.is_multiple_of(*width)).unwrap_or(1)
}

/// The `capacity` columns with the least lower bounds of every row, in launches of `tiles` tiles or, if that is more,
/// of one lap.
pub(crate) fn shortlist<R: Backend>(
    gpu: &Gpu<R>,
    points: &Tensor,
    capacity: usize,
    shape: Shape,
    tiles: usize,
) -> Result<Lists> {
    const OP: &str = "pairwise.nearest";
    let (n, dim) = (points.rows(), points.cols());
    let (width, bound) = (width(dim), Bound::of(dim));
    let blocks = n.div_ceil(shape.side());
    let all_laps = blocks / 2 + 1;
    let most_laps = (tiles / blocks).min(gpu.max_scratch() / (2 * capacity * n)).clamp(1, all_laps);
    let slots = [gpu.scratch(2 * most_laps * capacity * n)?, gpu.scratch(2 * most_laps * capacity * n)?];
    let center = gpu.scratch(dim)?;
    let lists = Lists {
        capacity,
        bounds: gpu.scratch(capacity * n)?,
        columns: gpu.scratch(capacity * n)?,
        lower: gpu.scratch(n)?,
    };
    let points = points.gpu(OP)?;
    let units = CubeDim::new_1d(UNITS as u32);
    center_kernel::launch::<R>(gpu.client(), elementwise(dim), units, points.arg(), center.arg(), n, dim);
    lower_kernel::launch::<R>(
        gpu.client(),
        cubes(n.div_ceil(SIDE)),
        units,
        width,
        points.arg(),
        center.arg(),
        lists.lower.arg(),
        lists.bounds.arg(),
        lists.columns.arg(),
        n,
        dim / width,
        bound.shrink,
        bound.tiny,
        capacity,
    );
    // The first laps insert most entries. Their launch is short, so that the next launches have limits.
    let (mut lap, mut laps) = (0, most_laps.div_ceil(4));
    while lap < all_laps {
        laps = laps.min(all_laps - lap);
        // SAFETY: the kernel compares points, columns and entries with their numbers before it reads or writes. The
        // buffers have the sizes in its documentation.
        unsafe {
            tile_kernel::launch_unchecked::<R>(
                gpu.client(),
                cubes(blocks * laps),
                units,
                width,
                points.arg(),
                center.arg(),
                lists.lower.arg(),
                lists.bounds.arg(),
                slots[0].arg(),
                slots[1].arg(),
                LapsLaunch::new(n, dim / width, blocks, lap, laps),
                capacity,
                shape,
            )
        };
        // SAFETY: as above.
        unsafe {
            fold_kernel::launch_unchecked::<R>(
                gpu.client(),
                elementwise(n),
                CubeDim::new_1d(ELEMENTWISE_UNITS),
                lists.bounds.arg(),
                lists.columns.arg(),
                slots[0].arg(),
                slots[1].arg(),
                LapsLaunch::new(n, dim / width, blocks, lap, laps),
                capacity,
                shape.side(),
            )
        };
        lap += laps;
        laps = most_laps;
    }
    profile::memory(|| gpu.memory_in_use())?;
    Ok(lists)
}
