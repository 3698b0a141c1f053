//! The leading singular triplets of a matrix.
//!
//! Golub-Kahan-Lanczos bidiagonalization with full reorthogonalization, in f64: from v_1, a random vector times W^T,
//!
//! ```text
//! alpha_j u_j     = W v_j   - beta_{j-1} u_{j-1}
//! beta_j  v_{j+1} = W^T u_j - alpha_j v_j
//! ```
//!
//! so that W V = U B with B upper bidiagonal (alpha on the diagonal, beta above it). With B = X S Y^T, the triplets of
//! W are (U x_i, s_i, V y_i), and |W^T U x_i - s_i V y_i| = beta_k |X_ki|. Steps are added until this is below
//! 1e-10 s_1 for every wanted triplet, or the vectors span the row space of W. A run is deterministic.
//!
//! Source: Golub and Van Loan, "Matrix computations", 4th edition, section 10.4.

use gelora_kernels::random::Stream;
use nalgebra::{DMatrix, DVector, SymmetricEigen};

/// Largest residual of a triplet, relative to the largest singular value.
const TOLERANCE: f64 = 1e-10;
/// A vector shorter than this, relative to the largest singular value, is rounding.
const NOTHING: f64 = 1e-13;

/// The singular triplets with the largest singular values, in descending order. There are fewer than asked for if the
/// rank of the matrix is lower.
#[derive(Clone, Debug)]
pub(crate) struct Triplets {
    /// The left vectors, each of C_out values.
    pub left: Vec<Vec<f64>>,
    pub values: Vec<f64>,
    /// The right vectors, each of C_in values.
    pub right: Vec<Vec<f64>>,
}

/// The bidiagonalization so far.
struct Lanczos<'a> {
    w: &'a DMatrix<f64>,
    u: DMatrix<f64>,
    v: DMatrix<f64>,
    alpha: Vec<f64>,
    beta: Vec<f64>,
    stream: Stream,
    /// Size of W, for the comparison with [`NOTHING`].
    scale: f64,
    /// Whether the vectors span the row space of W.
    complete: bool,
}

/// The `rank` leading singular triplets of W (C_out, C_in), row-major.
pub(crate) fn leading(w: &[f32], c_out: usize, c_in: usize, rank: usize) -> Triplets {
    let w = DMatrix::from_row_iterator(c_out, c_in, w.iter().map(|value| f64::from(*value)));
    // Right vectors drift out of a row space that is smaller than the space around it. In a tall matrix they fill it.
    if c_out < c_in {
        let Triplets { left, values, right } = leading_of_tall(&w.transpose(), rank);
        return Triplets { left: right, values, right: left };
    }
    leading_of_tall(&w, rank)
}

/// The leading triplets of a matrix with at least as many rows as columns.
pub(crate) fn leading_of_tall(w: &DMatrix<f64>, rank: usize) -> Triplets {
    let (rows, most) = w.shape();
    let mut lanczos = Lanczos {
        scale: w.norm(),
        u: DMatrix::zeros(rows, most),
        v: DMatrix::zeros(most, most + 1),
        alpha: Vec::new(),
        beta: Vec::new(),
        stream: Stream::new(0),
        complete: false,
        w,
    };
    lanczos.start();
    let mut steps = (2 * rank + 20).min(most);
    loop {
        while lanczos.alpha.len() < steps && !lanczos.complete {
            lanczos.step();
        }
        let finished = lanczos.complete || steps == most;
        if let Some(triplets) = lanczos.triplets(rank, finished) {
            return triplets;
        }
        steps = (steps + steps / 3 + 1).min(most);
    }
}

/// Subtracts from x its components along the columns of an orthonormal basis. The second pass removes what rounding
/// left.
fn orthogonalize(x: &mut DVector<f64>, basis: nalgebra::DMatrixView<'_, f64>) {
    for _ in 0..2 {
        let components = basis.tr_mul(x);
        x.gemv(-1.0, &basis, &components, 1.0);
    }
}

impl Lanczos<'_> {
    /// A vector of the row space, orthogonal to the first `count` right vectors; None if they span it.
    fn fresh_right(&mut self, count: usize) -> Option<DVector<f64>> {
        let random = DVector::from_fn(self.w.nrows(), |_, _| self.stream.normal());
        let mut right = self.w.tr_mul(&random);
        let before = right.norm();
        orthogonalize(&mut right, self.v.columns(0, count));
        let length = right.norm();
        (length > 1e-10 * before && length > NOTHING * self.scale).then(|| right / length)
    }

    fn start(&mut self) {
        match self.fresh_right(0) {
            Some(first) => self.v.set_column(0, &first),
            None => self.complete = true,
        }
    }

    /// Adds u_j and v_{j+1}.
    fn step(&mut self) {
        let j = self.alpha.len();
        let right = self.v.column(j).into_owned();
        let mut left = self.w * &right;
        orthogonalize(&mut left, self.u.columns(0, j));
        let alpha = left.norm();
        if alpha <= NOTHING * self.scale {
            // W v_j lies in the span of the left vectors, so the right vectors span the row space without v_j.
            self.complete = true;
            return;
        }
        left /= alpha;
        let mut next = self.w.tr_mul(&left);
        orthogonalize(&mut next, self.v.columns(0, j + 1));
        self.u.set_column(j, &left);
        self.alpha.push(alpha);
        let beta = next.norm();
        if beta > NOTHING * self.scale {
            self.v.set_column(j + 1, &(next / beta));
            self.beta.push(beta);
            return;
        }
        // An invariant subspace: another one may have large singular values too.
        self.beta.push(0.0);
        match self.fresh_right(j + 1) {
            Some(fresh) => self.v.set_column(j + 1, &fresh),
            None => self.complete = true,
        }
    }

    /// The triplets, if their residuals are small or the search is finished.
    fn triplets(&self, rank: usize, finished: bool) -> Option<Triplets> {
        let k = self.alpha.len();
        if k == 0 {
            return Some(Triplets { left: Vec::new(), values: Vec::new(), right: Vec::new() });
        }
        let mut b = DMatrix::zeros(k, k);
        for j in 0..k {
            b[(j, j)] = self.alpha[j];
            if j + 1 < k {
                b[(j, j + 1)] = self.beta[j];
            }
        }
        // B = X S Y^T by the eigenvectors Y of B^T B, and x_i = B y_i / s_i. Leading triplets lose nothing by squaring.
        let eigen = SymmetricEigen::new(b.tr_mul(&b));
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|i, j| eigen.eigenvalues[*j].total_cmp(&eigen.eigenvalues[*i]));
        let value = |i: usize| eigen.eigenvalues[i].max(0.0).sqrt();
        let largest = value(order[0]);
        order.truncate(rank);
        order.retain(|i| value(*i) > 1e-12 * largest);
        let y = DMatrix::from_columns(&order.iter().map(|i| eigen.eigenvectors.column(*i)).collect::<Vec<_>>());
        let mut x = b * &y;
        for (column, i) in order.iter().enumerate() {
            x.column_mut(column).unscale_mut(value(*i));
        }
        let residual = |column: usize| self.beta[k - 1] * x[(k - 1, column)].abs();
        let accurate = (0..order.len()).all(|column| residual(column) <= TOLERANCE * largest);
        let is_done = finished || (accurate && order.len() == rank);
        if !is_done {
            return None;
        }
        let (left, right) = (self.u.columns(0, k) * x, self.v.columns(0, k) * y);
        let columns = |m: &DMatrix<f64>| m.column_iter().map(|c| c.iter().copied().collect()).collect();
        Some(Triplets { left: columns(&left), values: order.into_iter().map(value).collect(), right: columns(&right) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(c_out: usize, c_in: usize, seed: u64) -> Vec<f32> {
        let mut stream = Stream::new(seed);
        (0..c_out * c_in).map(|_| stream.normal() as f32).collect()
    }

    /// Compares the values with nalgebra's decomposition of the whole matrix, and the vectors with their definition.
    fn check(w: &[f32], c_out: usize, c_in: usize, rank: usize) {
        let got = leading(w, c_out, c_in, rank);
        let w = DMatrix::from_row_iterator(c_out, c_in, w.iter().map(|v| f64::from(*v)));
        let whole = w.clone().svd(false, false).singular_values;
        assert_eq!(got.values.len(), rank);
        let matrix = |columns: &[Vec<f64>]| {
            DMatrix::from_columns(&columns.iter().cloned().map(DVector::from_vec).collect::<Vec<_>>())
        };
        let (left, right) = (matrix(&got.left), matrix(&got.right));
        let s = DMatrix::from_diagonal(&DVector::from_vec(got.values.clone()));
        let limit = 2e-10 * whole[0];
        assert!((&w * &right - &left * &s).amax() < limit, "W V = U S: {:e}", (&w * &right - &left * &s).amax());
        assert!((w.tr_mul(&left) - &right * &s).amax() < limit, "W^T U = V S");
        for basis in [left, right] {
            assert!((basis.tr_mul(&basis) - DMatrix::identity(rank, rank)).amax() < 1e-12, "orthonormal");
        }
        for (got, want) in got.values.iter().zip(whole.iter()) {
            assert!((got - want).abs() < limit, "{got} {want}");
        }
    }

    #[test]
    fn triplets_are_those_of_the_whole_decomposition() {
        for (c_out, c_in, rank) in [(1, 1, 1), (7, 3, 2), (3, 7, 3), (64, 65, 4), (96, 40, 8), (40, 96, 40)] {
            check(&random(c_out, c_in, 1 + c_out as u64), c_out, c_in, rank);
        }
    }

    #[test]
    fn a_matrix_of_low_rank_has_as_many_triplets() {
        let (a, b) = (random(30, 2, 1), random(2, 20, 2));
        let value = |i: usize| (0..2).map(|k| a[i / 20 * 2 + k] * b[k * 20 + i % 20]).sum();
        let w: Vec<f32> = (0..600).map(value).collect();
        let got = leading(&w, 30, 20, 5);
        // The rounding of the product to f32 is a third direction, far below the two.
        assert!(got.values[1] > 0.1 && got.values[2..].iter().all(|value| *value < 1e-5), "{:?}", got.values);
        assert!(leading(&[0.0; 12], 3, 4, 2).values.is_empty());
        // All singular values are equal: every vector is singular.
        let identity: Vec<f32> = (0..36).map(|i| if i % 7 == 0 { 2.0 } else { 0.0 }).collect();
        let got = leading(&identity, 6, 6, 3);
        assert!(
            got.values.len() == 3 && got.values.iter().all(|value| (value - 2.0).abs() < 1e-12),
            "{:?}",
            got.values
        );
    }
}
