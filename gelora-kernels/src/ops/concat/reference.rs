//! The definitions in f64.

/// Matrices of n rows, concatenated by columns. Each comes with its number of columns.
pub fn columns(parts: &[(&[f64], usize)], n: usize) -> Vec<f64> {
    let row = |i: usize| parts.iter().flat_map(move |(x, c)| x[i * c..(i + 1) * c].to_vec());
    (0..n).flat_map(row).collect()
}

/// `width` columns from column `first` on, of a matrix of c columns.
pub fn columns_of(x: &[f64], c: usize, first: usize, width: usize) -> Vec<f64> {
    x.chunks(c).flat_map(|row| row[first..first + width].to_vec()).collect()
}

/// Matrices with the same number of columns, concatenated by rows.
pub fn rows(parts: &[&[f64]]) -> Vec<f64> {
    parts.concat()
}
