//! The formulas in f64.

/// y (N, H R) of x (N, H D) and t (R, H D).
pub fn forward(x: &[f64], t: &[f64], heads: usize, d: usize) -> Vec<f64> {
    let (n, r) = (x.len() / (heads * d), t.len() / (heads * d));
    let mut y = vec![0.0; n * heads * r];
    for_each(n, r, heads, d, |iy, ix, it| y[iy] += x[ix] * t[it]);
    y
}

/// (dx, dt) from dy (N, H R).
pub fn backward(dy: &[f64], x: &[f64], t: &[f64], heads: usize, d: usize) -> (Vec<f64>, Vec<f64>) {
    let (n, r) = (x.len() / (heads * d), t.len() / (heads * d));
    let (mut dx, mut dt) = (vec![0.0; x.len()], vec![0.0; t.len()]);
    for_each(n, r, heads, d, |iy, ix, it| {
        dx[ix] += dy[iy] * t[it];
        dt[it] += dy[iy] * x[ix];
    });
    (dx, dt)
}

/// Calls `f` with the indices of every term in y, x and t.
fn for_each(n: usize, r: usize, heads: usize, d: usize, mut f: impl FnMut(usize, usize, usize)) {
    for i in 0..n {
        for h in 0..heads {
            for j in 0..r {
                for c in 0..d {
                    f((i * heads + h) * r + j, (i * heads + h) * d + c, (j * heads + h) * d + c);
                }
            }
        }
    }
}
