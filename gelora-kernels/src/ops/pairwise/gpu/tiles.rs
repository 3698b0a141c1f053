//! One tile of lower bounds for each cube: products in registers, then the least bounds of every row and of every
//! column.
//!
//! Shared memory holds the coordinates of both operands as vectors along the dimension, line by line. So copying needs
//! no transposition, and every unit reads whole vectors. While one part is multiplied, the next is loaded into
//! registers.

use cubecl::prelude::*;

use super::{EMPTY, FAR, insert};

/// Units of a cube along each side of its tile.
pub(crate) const SIDE: usize = 16;

/// Units of a cube.
pub(crate) const UNITS: usize = SIDE * SIDE;

/// Values of a line of a strip, with one value of padding against bank conflicts.
const STRIP: usize = SIDE + 1;

/// The comptime sizes of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Rows and columns of a unit.
    pub(crate) per_unit: usize,
    /// Coordinates in shared memory at a time.
    pub(crate) depth: usize,
    /// 2 if the next coordinates have a buffer of their own beside those in use, else 1.
    pub(crate) buffers: usize,
}

impl Shape {
    /// Rows and columns of a tile.
    pub(crate) const fn side(self) -> usize {
        SIDE * self.per_unit
    }

    /// Distance of two lines in vectors. It is odd, so that lines spread over the banks.
    const fn pitch(self, width: usize) -> usize {
        self.depth / width + 1
    }

    /// Vectors of a buffer.
    const fn staged(self, width: usize) -> usize {
        2 * self.side() * self.pitch(width)
    }

    /// Bytes of shared memory.
    const fn shared(self, width: usize) -> usize {
        4 * (self.buffers * self.staged(width) * width + 2 * self.side() * STRIP)
    }

    /// All tiles that [`Shape::of`] may choose.
    pub(crate) const ALL: [Self; 5] = [
        Self { per_unit: 4, depth: 16, buffers: 2 },
        Self { per_unit: 4, depth: 8, buffers: 2 },
        Self { per_unit: 4, depth: 8, buffers: 1 },
        Self { per_unit: 8, depth: 8, buffers: 2 },
        Self { per_unit: 8, depth: 8, buffers: 1 },
    ];

    /// Whether a device with this much shared memory can run the tile.
    pub(crate) const fn fits(self, width: usize, shared: usize) -> bool {
        self.shared(width) <= shared
    }

    /// The tile for `n` points on a device with this much shared memory.
    pub(crate) fn of(n: usize, width: usize, shared: usize) -> Self {
        // Few points make too few large tiles. Large tiles load fewer coordinates ahead: for two cubes side by side on
        // an NVIDIA GPU, a unit may have 128 registers, and with 16 coordinates it would have 212.
        let (per_unit, farthest) = if n < 32 * 128 { (4, 16) } else { (8, 8) };
        [(farthest, 2), (8, 2), (8, 1)]
            .map(|(depth, buffers)| Self { per_unit, depth, buffers })
            .into_iter()
            .find(|shape| shape.fits(width, shared))
            .unwrap_or(Self { per_unit: 4, depth: 8, buffers: 1 })
    }
}

/// Whether block `block` meets the block `lap` further on. Of two blocks half a circle apart, only the first does.
#[cube]
pub(crate) fn goes(block: usize, lap: usize, blocks: usize) -> bool {
    2 * lap != blocks || block < blocks / 2
}

/// The sizes of a launch.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Laps {
    /// Number of points.
    pub(crate) n: usize,
    /// Vectors of a point.
    pub(crate) length: usize,
    /// Blocks of rows on the circle.
    pub(crate) blocks: usize,
    /// The first lap of the launch.
    pub(crate) first_lap: usize,
    /// Laps of the launch.
    pub(crate) laps: usize,
}

/// One tile for each cube.
///
/// bounds (capacity, N): the lists so far. `slot_bounds` and `slot_columns` (2 laps, capacity, N): for each lap, the
/// entries found for the rows of the tiles, then those for the columns.
#[cube(launch_unchecked)]
pub(crate) fn tile_kernel<V: Size>(
    points: &Array<Vector<f32, V>>,
    center: &Array<Vector<f32, V>>,
    lower: &Array<f32>,
    bounds: &Array<f32>,
    slot_bounds: &mut Array<f32>,
    slot_columns: &mut Array<u32>,
    extent: &Laps,
    #[comptime] capacity: usize,
    #[comptime] shape: Shape,
) {
    let (n, length, laps) = (extent.n, extent.length, extent.laps);
    let width = V::value();
    let per_unit = comptime!(shape.per_unit);
    let side = comptime!(shape.side());
    let mut staged = SharedMemory::<Vector<f32, V>>::new(comptime!(shape.buffers * shape.staged(width)));
    let mut strip = SharedMemory::<f32>::new(comptime!(2 * side * STRIP));
    let unit = UNIT_POS as usize;
    // 32 adjacent units cover 4 rows by 8 columns, so that they read few distinct vectors at a time.
    let unit_col = unit / 32 % 2 * 8 + unit % 8;
    let unit_row = unit / 64 * 4 + unit / 8 % 4;

    let block = CUBE_POS / laps;
    let lap = extent.first_lap + CUBE_POS % laps;
    let blocks = extent.blocks;
    if block < blocks && goes(block, lap, blocks) {
        let row = block * side;
        let col = (block + lap) % blocks * side;
        let mut sums = Array::<f32>::new(comptime!(per_unit * per_unit));
        #[unroll]
        for own_sum in 0..comptime!(per_unit * per_unit) {
            sums[own_sum] = 0.0f32;
        }
        let mut fetched = Array::<Vector<f32, V>>::new(comptime!(2 * side * shape.depth / width / UNITS));
        fetch::<V>(points, center, &mut fetched, row, col, n, length, 0, shape);
        let depth = comptime!(shape.depth / width);
        let steps = length.div_ceil(depth);
        for step in 0..steps {
            let buffer = step % comptime!(shape.buffers) * comptime!(shape.staged(width));
            store::<V>(&fetched, &mut staged, buffer, shape);
            sync_cube();
            fetch::<V>(points, center, &mut fetched, row, col, n, length, (step + 1) * depth, shape);
            multiply::<V>(&staged, &mut sums, buffer, unit_row, unit_col, shape);
            if comptime!(shape.buffers == 1) {
                // The next step overwrites memory that slower units still read.
                sync_cube();
            }
        }

        // Products become lower bounds. Entries that are no pair get a bound too large for any list.
        let mut col_lower = Array::<f32>::new(per_unit);
        #[unroll]
        for j in 0..per_unit {
            col_lower[j] = lower[(col + unit_col + comptime!(j * SIDE)).min(n - 1)];
        }
        #[unroll]
        for i in 0..per_unit {
            let point_row = row + unit_row + comptime!(i * SIDE);
            let row_lower = lower[point_row.min(n - 1)];
            #[unroll]
            for j in 0..per_unit {
                let own_sum = comptime!(i * per_unit + j);
                let point_col = col + unit_col + comptime!(j * SIDE);
                let bound = row_lower + col_lower[j] - 2.0f32 * sums[own_sum];
                sums[own_sum] = select(point_row < n && point_col < n && point_row != point_col, bound, f32::new(FAR));
            }
        }

        // Each of the first units owns a row, each of the next units a column.
        let owns_row = unit < side;
        let line = unit % side;
        let own = select(owns_row, row, col) + line;
        let others = select(owns_row, col, row);
        // A block that meets itself finds everything by its rows.
        let keeps = own < n && (owns_row || (unit < 2 * side && lap != 0));
        let mut limit = f32::new(FAR);
        if keeps {
            limit = bounds[comptime!(capacity - 1) * n + own];
        }
        let mut kept = Array::<f32>::new(capacity);
        let mut kept_columns = Array::<u32>::new(capacity);
        #[unroll]
        for entry in 0..capacity {
            kept[entry] = limit;
            kept_columns[entry] = EMPTY;
        }
        #[unroll]
        for pass in 0..per_unit {
            // Slower units may still compute from the memory under the strip, or read the last strip.
            sync_cube();
            #[unroll]
            for i in 0..per_unit {
                let place = (unit_row + comptime!(i * SIDE)) * STRIP + unit_col;
                strip[place] = sums[comptime!(i * per_unit + pass)];
            }
            #[unroll]
            for j in 0..per_unit {
                let place = (side + unit_col + comptime!(j * SIDE)) * STRIP + unit_row;
                strip[place] = sums[comptime!(pass * per_unit + j)];
            }
            sync_cube();
            if keeps {
                for t in 0..SIDE {
                    let bound = strip[unit * STRIP + t];
                    if bound < kept[comptime!(capacity - 1)] {
                        let column = others + comptime!(pass * SIDE) + t;
                        insert(&mut kept, &mut kept_columns, bound, column as u32, capacity);
                    }
                }
            }
        }
        if keeps {
            let slot = CUBE_POS % laps + select(owns_row, 0, laps);
            #[unroll]
            for entry in 0..capacity {
                let place = (slot * capacity + entry) * n + own;
                slot_bounds[place] = kept[entry];
                slot_columns[place] = kept_columns[entry];
            }
        }
    }
}

/// The place of the `load`-th vector that a unit copies: (line of both operands, vector of the line).
#[cube]
fn place<V: Size>(#[comptime] load: usize, #[comptime] shape: Shape) -> (usize, usize) {
    let width = V::value();
    let depth = comptime!(shape.depth / width);
    let index = UNIT_POS as usize + comptime!(load * UNITS);
    (index / depth, index % depth)
}

/// Reads coordinates minus the center, from vector `from` of the lines of both operands on. Coordinates beyond the last
/// are 0.
#[cube]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn fetch<V: Size>(
    points: &Array<Vector<f32, V>>,
    center: &Array<Vector<f32, V>>,
    fetched: &mut Array<Vector<f32, V>>,
    row: usize,
    col: usize,
    n: usize,
    length: usize,
    from: usize,
    #[comptime] shape: Shape,
) {
    let width = V::value();
    let side = comptime!(shape.side());
    #[unroll]
    for load in 0..comptime!(2 * side * shape.depth / width / UNITS) {
        let (line, k) = place::<V>(load, shape);
        // Lines beyond the last point repeat it. Their products are dropped.
        let point = select(line < side, row + line, col + line - side).min(n - 1);
        let mut value = Vector::<f32, V>::new(0.0f32);
        if from + k < length {
            value = points[point * length + from + k] - center[from + k];
        }
        fetched[load] = value;
    }
}

#[cube]
fn store<V: Size>(
    fetched: &Array<Vector<f32, V>>,
    staged: &mut SharedMemory<Vector<f32, V>>,
    buffer: usize,
    #[comptime] shape: Shape,
) {
    let width = V::value();
    #[unroll]
    for load in 0..comptime!(2 * shape.side() * shape.depth / width / UNITS) {
        let (line, k) = place::<V>(load, shape);
        staged[buffer + line * comptime!(shape.pitch(width)) + k] = fetched[load];
    }
}

#[cube]
fn multiply<V: Size>(
    staged: &SharedMemory<Vector<f32, V>>,
    sums: &mut Array<f32>,
    buffer: usize,
    unit_row: usize,
    unit_col: usize,
    #[comptime] shape: Shape,
) {
    let width = V::value();
    let per_unit = comptime!(shape.per_unit);
    let pitch = comptime!(shape.pitch(width));
    let left = buffer + unit_row * pitch;
    let right = buffer + (comptime!(shape.side()) + unit_col) * pitch;
    for k in 0..comptime!(shape.depth / width) {
        let mut rows = Array::<Vector<f32, V>>::new(per_unit);
        #[unroll]
        for i in 0..per_unit {
            rows[i] = staged[left + comptime!(i * SIDE * pitch) + k];
        }
        #[unroll]
        for j in 0..per_unit {
            let other = staged[right + comptime!(j * SIDE * pitch) + k];
            #[unroll]
            for i in 0..per_unit {
                let row = rows[i];
                #[unroll]
                for l in 0..V::value() {
                    sums[comptime!(i * per_unit + j)] += row[l] * other[l];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_that_is_chosen_is_in_the_list() {
        for (n, shared) in [(2, 16 << 10), (2, 32 << 10), (4095, 227 << 10), (4096, 32 << 10), (20_000, 227 << 10)] {
            for width in [1, 2, 4] {
                let shape = Shape::of(n, width, shared);
                assert!(Shape::ALL.contains(&shape), "{n} points, {shared} bytes: {shape:?}");
            }
        }
        assert_eq!(Shape::of(4096, 4, 227 << 10), Shape::ALL[3]);
        assert_eq!(Shape::of(4096, 4, 32 << 10), Shape::ALL[4]);
    }
}
