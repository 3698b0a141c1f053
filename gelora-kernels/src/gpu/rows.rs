//! Reductions of rows. The units of a cube are divided among rows, and the partial values of a row are combined in
//! shared memory as a tree, always in the same order.

use cubecl::prelude::*;

use super::cubes;

/// Units of a cube.
const UNITS: usize = 256;

/// Values of a row in one unit, before the row gets more units.
const VALUES: usize = 8;

/// The number of units of each row: a comptime setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rows {
    /// Units of a row, a power of two.
    pub(crate) units: usize,
}

impl Rows {
    /// One row with all units of a cube.
    pub(crate) const WHOLE_CUBE: Self = Self { units: UNITS };

    /// The setting for rows of `cols` values.
    pub(crate) fn of(cols: usize) -> Self {
        Self { units: cols.div_ceil(VALUES).next_power_of_two().clamp(8, UNITS) }
    }

    /// Rows of a cube.
    pub(crate) const fn per_cube(&self) -> usize {
        UNITS / self.units
    }

    /// The units of a launch.
    pub(crate) fn cube_dim(&self) -> CubeDim {
        CubeDim::new_1d(UNITS as u32)
    }

    /// The cubes of a launch over `n` rows.
    pub(crate) fn cube_count(&self, n: usize) -> CubeCount {
        cubes(n.div_ceil(self.per_cube()))
    }
}

/// (row of a unit, index of the unit in its row). The row may be beyond the last.
#[cube]
pub(crate) fn place(#[comptime] rows: Rows) -> (usize, usize) {
    let unit = UNIT_POS as usize;
    (CUBE_POS * comptime!(rows.per_cube()) + unit / comptime!(rows.units), unit % comptime!(rows.units))
}

/// Shared memory for [`sum`] and [`max`].
#[cube]
pub(crate) fn shared() -> SharedMemory<f32> {
    SharedMemory::<f32>::new(comptime!(UNITS))
}

/// The sum of the values of a row's units, returned to each of them. All units of the cube must call it.
#[cube]
pub(crate) fn sum(value: f32, shared: &mut SharedMemory<f32>, #[comptime] rows: Rows) -> f32 {
    reduce(value, shared, rows, false)
}

/// The largest of the values of a row's units, returned to each of them. All units of the cube must call it.
#[cube]
pub(crate) fn max(value: f32, shared: &mut SharedMemory<f32>, #[comptime] rows: Rows) -> f32 {
    reduce(value, shared, rows, true)
}

/// Combines the values of a row's units as a tree.
#[cube]
fn reduce(value: f32, shared: &mut SharedMemory<f32>, #[comptime] rows: Rows, #[comptime] largest: bool) -> f32 {
    let unit = UNIT_POS as usize;
    let place = unit % comptime!(rows.units);
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(rows.units.ilog2()) {
        let half = comptime!(rows.units >> (level + 1));
        if place < half {
            let other = shared[unit + half];
            if comptime!(largest) {
                shared[unit] = clamp_min(shared[unit], other);
            } else {
                shared[unit] += other;
            }
        }
        sync_cube();
    }
    let total = shared[unit - place];
    // The next call overwrites shared memory that slower units still read.
    sync_cube();
    total
}

#[cube]
fn clamp_min(value: f32, least: f32) -> f32 {
    select(value < least, least, value)
}
