//! Matrices inside slices.

use std::marker::PhantomData;
use std::ops::Range;

/// A read-only matrix inside a slice: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a> View<'a> {
    /// A dense row-major matrix.
    ///
    /// # Panics
    /// As [`View::strided`].
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A matrix whose rows are `row_stride` values apart.
    ///
    /// # Panics
    /// If it is empty or the last element would be outside the slice.
    pub(crate) fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows > 0 && cols > 0 && last_end(rows, cols, row_stride) <= data.len(), "view outside its slice");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose. No values are moved.
    pub(crate) fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// The given rows.
    ///
    /// # Panics
    /// If there are not as many.
    pub(crate) fn some_rows(self, rows: Range<usize>) -> Self {
        assert!(rows.start < rows.end && rows.end <= self.rows, "rows of a view");
        Self { data: &self.data[rows.start * self.row_stride..], rows: rows.len(), ..self }
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The values of a column of a matrix with adjacent values in columns.
    pub(super) fn column(&self, j: usize) -> &'a [f32] {
        debug_assert_eq!(self.row_stride, 1);
        &self.data[j * self.col_stride..][..self.rows]
    }

    /// The values of a row of a matrix with adjacent values in rows.
    #[inline(always)]
    pub(crate) fn row(&self, i: usize) -> &'a [f32] {
        debug_assert_eq!(self.col_stride, 1);
        &self.data[i * self.row_stride..][..self.cols]
    }

    #[inline(always)]
    pub(super) fn at(&self, i: usize, j: usize) -> f32 {
        self.data[i * self.row_stride + j * self.col_stride]
    }
}

/// The end of the last row; beyond any slice if it overflows.
fn last_end(rows: usize, cols: usize, stride: usize) -> usize {
    (rows - 1).checked_mul(stride).and_then(|first| first.checked_add(cols)).unwrap_or(usize::MAX)
}

/// A writable block of a matrix: `rows` rows of `cols` values, `stride` values apart. The block borrows its values
/// exclusively.
#[derive(Debug)]
pub(crate) struct ViewMut<'a> {
    pub(super) data: *mut f32,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: in effect an exclusive borrow of f32 values.
unsafe impl Send for ViewMut<'_> {}

impl<'a> ViewMut<'a> {
    /// A dense row-major matrix.
    ///
    /// # Panics
    /// As [`ViewMut::strided`].
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A matrix whose rows are `stride` values apart.
    ///
    /// # Panics
    /// If it is empty or the last element would be outside the slice.
    pub(crate) fn strided(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(rows > 0 && cols > 0 && stride >= cols, "empty or overlapping rows");
        assert!(last_end(rows, cols, stride) <= data.len(), "destination outside its slice");
        Self { data: data.as_mut_ptr(), rows, cols, stride, borrow: PhantomData }
    }

    /// Splits the matrix into blocks of `width` columns.
    ///
    /// # Panics
    /// If `width` does not divide the columns.
    pub(crate) fn columns(self, width: usize) -> impl Iterator<Item = ViewMut<'a>> {
        assert!(width > 0 && self.cols.is_multiple_of(width), "width of a block");
        (0..self.cols / width).map(move |i| {
            let data = self.data.wrapping_add(i * width);
            Self { data, rows: self.rows, cols: width, stride: self.stride, borrow: PhantomData }
        })
    }

    /// The given rows, borrowed from this block.
    ///
    /// # Panics
    /// If there are not as many.
    pub(crate) fn rows_mut(&mut self, rows: Range<usize>) -> ViewMut<'_> {
        assert!(rows.start < rows.end && rows.end <= self.rows, "rows of a view");
        let data = self.data.wrapping_add(rows.start * self.stride);
        ViewMut { data, rows: rows.len(), cols: self.cols, stride: self.stride, borrow: PhantomData }
    }

    /// One row.
    ///
    /// # Panics
    /// If there are not as many.
    pub(crate) fn row_mut(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "row of a view");
        // SAFETY: the constructor checked that the row is inside the borrowed slice, whose part this view alone may
        // reach.
        unsafe { std::slice::from_raw_parts_mut(self.data.wrapping_add(i * self.stride), self.cols) }
    }
}
