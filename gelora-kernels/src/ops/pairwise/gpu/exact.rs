//! Step 2 of the search: sums of squared differences to the candidates, the k least of them, and the proof that they
//! are the result.
//!
//! A column that is not a candidate has a squared distance of at least W, the largest bound in the list. The f32 sum of
//! its squared differences is at least W (1 - c) - t; `shortlist.rs` has c and t, which exceed what the sum needs. If
//! that is above the sum of the k-th neighbor found, no column is missing, not even among equals. If the list has room
//! for all points, all points are candidates.

use cubecl::prelude::*;

use super::shortlist::{Bound, Lists, width};
use super::{EMPTY, FAR, OPEN, OUT_OF_RANGE};
use crate::gpu::{Backend, Gpu, GpuBuffer, cubes};
use crate::{Result, Tensor};

/// Units of a cube.
const UNITS: usize = 256;

/// One unit for each candidate sums in ascending order of the dimensions, as the direct search does, for the same bits.
/// Then one unit for each row sorts.
///
/// found (N, 2, k): bits of the squared distances, then columns. The first column is `OPEN` in a row that is not
/// proved, and `OUT_OF_RANGE` in the row of a point that is out of range.
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
    #[comptime] capacity: usize,
) {
    let rows = comptime!(UNITS / capacity);
    let mut sums = SharedMemory::<f32>::new(comptime!(UNITS / capacity * capacity));
    let unit = UNIT_POS as usize;
    let first = CUBE_POS * rows;
    let row = first + unit / capacity;
    if unit < rows * capacity && row < n {
        let column = columns[unit % capacity * n + row];
        // The squared distance to the unit's candidate.
        let mut sum = f32::new(FAR);
        if column != EMPTY {
            sum = 0.0f32;
            let other = column as usize * length;
            for i in 0..length {
                let difference = points[row * length + i] - points[other + i];
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
        for entry in 0..capacity {
            // Insertion by (distance, column), because candidates are in no order of their columns.
            let mut d = sums[unit * capacity + entry];
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
        // The proof.
        let last = comptime!(capacity - 1) * n + row;
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
            found[row * 2 * k + k] = OUT_OF_RANGE;
        }
    }
}

/// The results of the lists, (N, 2, k).
pub(crate) fn exact<R: Backend>(gpu: &Gpu<R>, points: &Tensor, lists: &Lists, k: usize) -> Result<GpuBuffer> {
    let (n, dim) = (points.rows(), points.cols());
    let (width, bound) = (width(dim), Bound::of(dim));
    let found = gpu.scratch(2 * n * k)?;
    // SAFETY: the kernel compares points, columns and entries with their numbers before it reads or writes. The buffers
    // have the sizes in its documentation.
    unsafe {
        exact_kernel::launch_unchecked::<R>(
            gpu.client(),
            cubes(n.div_ceil(UNITS / lists.capacity)),
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
            lists.capacity,
        )
    };
    Ok(found)
}
