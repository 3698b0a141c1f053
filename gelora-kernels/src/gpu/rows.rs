//! Kernels that reduce rows: the units of a cube are shared out over rows, and a row's partial values are combined in
//! shared memory as a tree, always in the same order.

use cubecl::prelude::*;

use super::cubes;

/// Units of a cube.
const UNITS: usize = 256;

/// Values a unit takes before its row gets more units.
const VALUES: usize = 8;

/// How many units work on each row: a comptime setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rows {
    /// Units of a row, a power of two.
    pub units: usize,
}

impl Rows {
    /// One row, of all units of a cube.
    pub const WHOLE_CUBE: Self = Self { units: UNITS };

    /// For rows of `cols` values.
    pub fn of(cols: usize) -> Self {
        Self { units: cols.div_ceil(VALUES).next_power_of_two().clamp(8, UNITS) }
    }

    /// Rows of a cube.
    pub const fn per_cube(&self) -> usize {
        UNITS / self.units
    }

    /// The units of a launch.
    pub fn cube_dim(&self) -> CubeDim {
        CubeDim::new_1d(UNITS as u32)
    }

    /// The cubes of a launch over `n` rows.
    pub fn cube_count(&self, n: usize) -> CubeCount {
        cubes(n.div_ceil(self.per_cube()))
    }
}

/// Where a unit is: (its row, which may be beyond the last, and its place among the row's units).
#[cube]
pub fn place(#[comptime] rows: Rows) -> (usize, usize) {
    let unit = UNIT_POS as usize;
    (CUBE_POS * comptime!(rows.per_cube()) + unit / comptime!(rows.units), unit % comptime!(rows.units))
}

/// Memory for [`sum`] and [`max`].
#[cube]
pub fn shared() -> SharedMemory<f32> {
    SharedMemory::<f32>::new(comptime!(UNITS))
}

/// The sum of the values of a row's units, to each of them. All units of the cube must call it.
#[cube]
pub fn sum(value: f32, shared: &mut SharedMemory<f32>, #[comptime] rows: Rows) -> f32 {
    reduce(value, shared, rows, false)
}

/// The largest of the values of a row's units, to each of them. All units of the cube must call it.
#[cube]
pub fn max(value: f32, shared: &mut SharedMemory<f32>, #[comptime] rows: Rows) -> f32 {
    reduce(value, shared, rows, true)
}

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
    // The next call overwrites what slower units still read.
    sync_cube();
    total
}

#[cube]
fn clamp_min(value: f32, least: f32) -> f32 {
    select(value < least, least, value)
}
