use gemm::Parallelism;

/// A read-only matrix inside a slice: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// A dense row-major matrix.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A matrix whose rows begin `row_stride` apart.
    ///
    /// # Panics
    /// If the last element would be outside the slice.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows > 0 && cols > 0 && (rows - 1) * row_stride + cols <= data.len(), "view outside its slice");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, without moving data.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// `dst = beta dst + alpha a b` with all threads; `dst` has rows `dst_stride` apart.
///
/// # Panics
/// If the shapes do not fit together.
pub fn gemm(dst: &mut [f32], dst_stride: usize, beta: f32, alpha: f32, a: View<'_>, b: View<'_>) {
    // A product this small is done before other threads wake.
    let small = a.rows * a.cols * b.cols < 64 * 64 * 64;
    run(dst, dst_stride, beta, alpha, a, b, if small { Parallelism::None } else { Parallelism::Rayon(0) });
}

/// [`gemm`] on the calling thread alone.
///
/// # Panics
/// If the shapes do not fit together.
pub fn gemm_serial(dst: &mut [f32], dst_stride: usize, beta: f32, alpha: f32, a: View<'_>, b: View<'_>) {
    run(dst, dst_stride, beta, alpha, a, b, Parallelism::None);
}

fn run(dst: &mut [f32], dst_stride: usize, beta: f32, alpha: f32, a: View<'_>, b: View<'_>, parallelism: Parallelism) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert_eq!(b.rows, k, "inner dimensions");
    assert!(dst_stride >= n && (m - 1) * dst_stride + n <= dst.len(), "destination too small");
    // SAFETY: `View`'s constructors and the assertion above keep every element that the strides reach inside its slice,
    // and `dst` is exclusive, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            dst_stride as isize,
            beta != 0.0,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            beta,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_and_transposes() {
        // a (2, 3) inside rows of 4; b = I (3, 3) transposed.
        let a = [1.0, 2.0, 3.0, -1.0, 4.0, 5.0, 6.0, -1.0];
        let b = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0];
        let mut dst = [10.0; 2 * 5];
        gemm(&mut dst, 5, 1.0, 2.0, View::strided(&a, 2, 3, 4), View::new(&b, 3, 3).t());
        assert_eq!(dst, [12.0, 14.0, 18.0, 10.0, 10.0, 18.0, 20.0, 30.0, 10.0, 10.0]);
        let mut ata = [f32::NAN; 9];
        gemm_serial(&mut ata, 3, 0.0, 1.0, View::strided(&a, 2, 3, 4).t(), View::strided(&a, 2, 3, 4));
        assert_eq!(ata, [17.0, 22.0, 27.0, 22.0, 29.0, 36.0, 27.0, 36.0, 45.0]);
    }
}
