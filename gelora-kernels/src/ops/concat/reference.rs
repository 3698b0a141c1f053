//! From the definitions alone.

/// Matrices of n rows side by side.
pub fn columns(parts: &[(&[f64], usize)], n: usize) -> Vec<f64> {
    let row = |i: usize| parts.iter().flat_map(move |(x, c)| x[i * c..(i + 1) * c].to_vec());
    (0..n).flat_map(row).collect()
}

/// The columns from `first` on of a matrix of c columns.
pub fn columns_of(x: &[f64], c: usize, first: usize, width: usize) -> Vec<f64> {
    x.chunks(c).flat_map(|row| row[first..first + width].to_vec()).collect()
}

/// Matrices of as many columns one below the other.
pub fn rows(parts: &[&[f64]]) -> Vec<f64> {
    parts.concat()
}
