//! The formula in f64.

/// y_i = sum over tables of row `ids[i]`.
pub fn forward(tables: &[(&[f64], &[u32])], c: usize) -> Vec<f64> {
    let n = tables[0].1.len();
    let mut y = vec![0.0; n * c];
    for (table, ids) in tables {
        for i in 0..n {
            for j in 0..c {
                y[i * c + j] += table[ids[i] as usize * c + j];
            }
        }
    }
    y
}
