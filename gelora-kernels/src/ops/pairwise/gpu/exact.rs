//! Sums of squared differences to the candidates, the k least of them, and whether that is proved to be the answer: step
//! 2 of the search.
//!
//! A column that is no candidate has a squared distance of at least the worst bound in the list, W. The f32 sum of its
//! squared differences would be at least W (1 - c) - t (see `shortlist.rs` for c and t, which exceed what the sum needs). If
//! that is above the sum of the k-th neighbour found, no column is missing, not even among equals. Points that a list
//! has room for are all candidates.

use cubecl::prelude::*;

use super::shortlist::{Bound, Lists, width};
use super::{EMPTY, FAR, OPEN, WILD};
use crate::gpu::{Backend, Gpu, GpuBuffer, cubes};
use crate::{Result, Tensor};

/// Units of a cube.
const UNITS: usize = 256;

/// One unit a candidate, in ascending order of the dimensions like the direct search, for the same bits; then one unit a
/// row.
///
/// found (N, 2, k): bits of the squared distances, then columns. In a row that is not proved the first column is `OPEN`, and in a
/// row of a wild point `WILD`.
#[cube(launch_unchecked)]
fn exact_kernel<V: Size>(
    points: &Array<Vector<f32, V>>,
    lower: &Array<f32>,
    bounds: &Array<f32>,
    columns: &Array<u32>,
    found: &mut Array<u32>,
    n: usize,
    length: usize,
    shrink: f32,
    tiny: f32,
    #[comptime] k: usize,
    #[comptime] room: usize,
) {
    let rows = comptime!(UNITS / room);
    let mut sums = SharedMemory::<f32>::new(comptime!(UNITS / room * room));
    let unit = UNIT_POS as usize;
    let first = CUBE_POS * rows;
    let row = first + unit / room;
    if unit < rows * room && row < n {
        let column = columns[unit % room * n + row];
        let mut sum = f32::new(FAR);
        if column != EMPTY {
            sum = 0.0f32;
            let other = column as usize * length;
            for at in 0..length {
                let difference = points[row * length + at] - points[other + at];
                #[unroll]
                for l in 0..V::value() {
                    sum += difference[l] * difference[l];
                }
            }
        }
        sums[unit] = sum;
    }
    sync_cube();
    let row = first + unit;
    if unit < rows && row < n {
        let mut nearest = Array::<f32>::new(k);
        let mut nearest_columns = Array::<u32>::new(k);
        #[unroll]
        for slot in 0..k {
            nearest[slot] = FAR;
            nearest_columns[slot] = EMPTY;
        }
        for entry in 0..room {
            // Whatever stands nearer goes before it: candidates come in no order of their columns.
            let mut d = sums[unit * room + entry];
            let mut column = columns[entry * n + row];
            #[unroll]
            for slot in 0..k {
                let other = nearest[slot];
                let other_column = nearest_columns[slot];
                if d < other || (d == other && column < other_column) {
                    nearest[slot] = d;
                    nearest_columns[slot] = column;
                    d = other;
                    column = other_column;
                }
            }
        }
        let last = comptime!(room - 1) * n + row;
        let complete = columns[last] == EMPTY || bounds[last] * shrink - tiny > nearest[comptime!(k - 1)];
        #[unroll]
        for slot in 0..k {
            found[row * 2 * k + slot] = u32::reinterpret(nearest[slot]);
            found[row * 2 * k + k + slot] = nearest_columns[slot];
        }
        if !complete {
            found[row * 2 * k + k] = OPEN;
        }
        if lower[row] == FAR {
            found[row * 2 * k + k] = WILD;
        }
    }
}

/// What was found in the lists, (N, 2, k).
pub fn exact<R: Backend>(gpu: &Gpu<R>, points: &Tensor, lists: &Lists, k: usize) -> Result<GpuBuffer> {
    let (n, dim) = (points.rows(), points.cols());
    let (width, bound) = (width(dim), Bound::of(dim));
    let found = gpu.scratch(2 * n * k)?;
    // SAFETY: the kernel compares points, columns and entries with their numbers before it reads or writes; the buffers have the sizes
    // that its documentation gives.
    unsafe {
        exact_kernel::launch_unchecked::<R>(
            gpu.client(),
            cubes(n.div_ceil(UNITS / lists.room)),
            CubeDim::new_1d(UNITS as u32),
            width,
            points.gpu("pairwise.nearest")?.arg(),
            lists.lower.arg(),
            lists.bounds.arg(),
            lists.columns.arg(),
            found.arg(),
            n,
            dim / width,
            bound.shrink,
            bound.tiny,
            k,
            lists.room,
        )
    };
    Ok(found)
}
