//! The formulas in f64.

/// Distances (N, M) between the rows of x and of y.
pub fn distances(x: &[f64], y: &[f64], dim: usize, squared: bool) -> Vec<f64> {
    let mut d = Vec::new();
    for x in x.chunks(dim) {
        for y in y.chunks(dim) {
            let mut sum = 0.0;
            for c in 0..dim {
                sum += (x[c] - y[c]) * (x[c] - y[c]);
            }
            d.push(if squared { sum } else { sum.sqrt() });
        }
    }
    d
}

/// (distances, rows) of the k nearest neighbors of every point: all distances, sorted.
pub fn nearest(points: &[f64], dim: usize, k: usize) -> (Vec<f64>, Vec<u32>) {
    let n = points.len() / dim;
    let (mut nearest, mut indices) = (Vec::new(), Vec::new());
    for i in 0..n {
        let row = distances(&points[i * dim..][..dim], points, dim, true);
        let mut others: Vec<(f64, usize)> = row.into_iter().zip(0..n).filter(|&(_, j)| j != i).collect();
        others.sort_by(|a, b| a.partial_cmp(b).expect("finite"));
        for &(d, j) in &others[..k] {
            nearest.push(d.sqrt());
            indices.push(j as u32);
        }
    }
    (nearest, indices)
}
