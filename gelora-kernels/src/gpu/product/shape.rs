//! Sizes of the cubes on matrix units, and the choice of one for an output.

/// Values of a vector of 16 bytes, the unit of a copy.
pub(crate) const WIDTH: usize = 8;
/// Steps of the shared dimension in a stage.
pub(crate) const DEPTH: usize = 64;
/// Rows of a fragment, and steps of one multiplication.
pub(crate) const SIDE: usize = 16;
/// Units of a plane.
pub(crate) const PLANE: usize = 32;
/// Vectors of a staged line: `DEPTH` values and one vector of padding, so that 8 lines begin in different banks.
pub(crate) const LINE: usize = DEPTH / WIDTH + 1;

/// The comptime sizes of a cube.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Output rows of a cube.
    pub(crate) rows: usize,
    /// Output columns of a cube.
    pub(crate) cols: usize,
    /// Output rows, and columns, of a plane.
    pub(crate) plane: usize,
    /// Stages in shared memory.
    pub(crate) stages: usize,
}

impl Shape {
    /// Eight planes and 162 KiB of shared memory: one cube on a multiprocessor.
    pub(crate) const LARGE: Self = Self { rows: 128, cols: 256, plane: 64, stages: 3 };
    /// Four planes and 108 KiB: two cubes on a multiprocessor of a data-center GPU.
    pub(crate) const MEDIUM: Self = Self { rows: 128, cols: 128, plane: 64, stages: 3 };
    /// As [`Shape::MEDIUM`], in 72 KiB.
    pub(crate) const MEDIUM_TWO_STAGES: Self = Self { stages: 2, ..Self::MEDIUM };
    /// Four planes and 54 KiB, for small outputs.
    pub(crate) const SMALL: Self = Self { rows: 64, cols: 64, plane: 32, stages: 3 };
    /// As [`Shape::SMALL`], in 36 KiB: within the 48 KiB that every device has.
    pub(crate) const SMALL_TWO_STAGES: Self = Self { stages: 2, ..Self::SMALL };

    /// Units of a cube.
    pub(crate) const fn units(&self) -> usize {
        PLANE * (self.rows / self.plane) * (self.cols / self.plane)
    }

    /// Vectors of a stage of the left operand.
    pub(crate) const fn left_stage(&self) -> usize {
        self.rows * LINE
    }

    /// Vectors of a stage of the right operand, in either layout.
    pub(crate) const fn right_stage(&self) -> usize {
        let (lines, steps) = (self.cols * LINE, DEPTH * (self.cols / WIDTH + 1));
        if lines > steps { lines } else { steps }
    }

    /// Bytes of shared memory, barriers included.
    pub(crate) const fn shared(&self) -> usize {
        self.stages * (2 * WIDTH * (self.left_stage() + self.right_stage()) + 16)
    }

    /// The largest shape that `runs` and that splits an output of this size into at least `busy` cubes, else the
    /// smallest that runs.
    pub(crate) fn choose(rows: usize, cols: usize, busy: usize, runs: impl Fn(&Self) -> bool) -> Option<Self> {
        let all = [Self::LARGE, Self::MEDIUM, Self::MEDIUM_TWO_STAGES, Self::SMALL, Self::SMALL_TWO_STAGES].into_iter();
        let running: Vec<Self> = all.filter(runs).collect();
        let smallest = running.iter().copied().find(|shape| shape.plane == Self::SMALL.plane);
        running.into_iter().find(|shape| rows.div_ceil(shape.rows) * cols.div_ceil(shape.cols) >= busy).or(smallest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_divide_and_shapes_fit() {
        for shape in [Shape::LARGE, Shape::MEDIUM, Shape::MEDIUM_TWO_STAGES, Shape::SMALL, Shape::SMALL_TWO_STAGES] {
            for tile in [shape.rows, shape.cols] {
                assert_eq!(tile * DEPTH / WIDTH % shape.units(), 0, "{shape:?}");
            }
            assert_eq!((shape.rows % shape.plane, shape.cols % shape.plane), (0, 0), "{shape:?}");
        }
        const { assert!(Shape::SMALL_TWO_STAGES.shared() <= 48 << 10) };
        const { assert!(Shape::LARGE.shared() <= 163 << 10) };
        const { assert!(2 * Shape::MEDIUM.shared() <= 227 << 10) };
    }
}
