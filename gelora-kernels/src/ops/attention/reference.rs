//! Naive loops over a batch, from the formulas alone; `mask(i, h, j)` is what drop multiplies P_ij of head h by.

/// Shapes of one call.
#[derive(Debug)]
pub struct Shape {
    /// First row of each sequence and, last, the number of rows.
    pub starts: Vec<usize>,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Head size.
    pub head_size: usize,
    /// What S is multiplied by.
    pub scale: f64,
    /// Whether a row sees only itself and the rows before it.
    pub causal: bool,
}

impl Shape {
    fn probabilities(&self, q: &[f64], k: &[f64], i: usize, h: usize, rows: std::ops::Range<usize>) -> (Vec<f64>, f64) {
        let scores: Vec<f64> = rows.map(|j| self.scale * self.dot(q, i, k, j, h)).collect();
        let peak = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - peak).exp()).sum();
        (scores.iter().map(|s| (s - peak).exp() / sum).collect(), peak + sum.ln())
    }

    /// Channel d of query head h.
    fn at(&self, row: usize, h: usize, d: usize) -> usize {
        (row * self.heads + h) * self.head_size + d
    }

    /// Channel d of the key and value head that query head h reads.
    fn kv_at(&self, row: usize, h: usize, d: usize) -> usize {
        let group = self.heads / self.kv_heads;
        (row * self.kv_heads + h / group) * self.head_size + d
    }

    /// Row i of a query-like matrix times row j of a key-like one.
    fn dot(&self, a: &[f64], i: usize, b: &[f64], j: usize, h: usize) -> f64 {
        (0..self.head_size).map(|d| a[self.at(i, h, d)] * b[self.kv_at(j, h, d)]).sum()
    }

    /// Every (row, head) with the rows that it sees.
    fn each_row(&self, mut f: impl FnMut(usize, usize, std::ops::Range<usize>)) {
        for s in self.starts.windows(2) {
            for h in 0..self.heads {
                for i in s[0]..s[1] {
                    f(i, h, s[0]..if self.causal { i + 1 } else { s[1] });
                }
            }
        }
    }

    /// (o, lse).
    pub fn forward(
        &self,
        q: &[f64],
        k: &[f64],
        v: &[f64],
        mask: impl Fn(usize, usize, usize) -> f64,
    ) -> (Vec<f64>, Vec<f64>) {
        let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; q.len() / self.head_size]);
        self.each_row(|i, h, rows| {
            let (p, l) = self.probabilities(q, k, i, h, rows.clone());
            lse[i * self.heads + h] = l;
            for (j, row) in rows.enumerate() {
                for d in 0..self.head_size {
                    o[self.at(i, h, d)] += p[j] * mask(i, h, j) * v[self.kv_at(row, h, d)];
                }
            }
        });
        (o, lse)
    }

    /// (dq, dk, dv).
    pub fn backward(
        &self,
        d_o: &[f64],
        q: &[f64],
        k: &[f64],
        v: &[f64],
        mask: impl Fn(usize, usize, usize) -> f64,
    ) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        self.each_row(|i, h, rows| {
            let (p, _) = self.probabilities(q, k, i, h, rows.clone());
            let dp: Vec<f64> =
                rows.clone().enumerate().map(|(j, row)| self.dot(d_o, i, v, row, h) * mask(i, h, j)).collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for (j, row) in rows.enumerate() {
                let ds = p[j] * (dp[j] - mean) * self.scale;
                for d in 0..self.head_size {
                    let (here, there) = (self.at(i, h, d), self.kv_at(row, h, d));
                    dq[here] += ds * k[there];
                    dk[there] += ds * q[here];
                    dv[there] += p[j] * mask(i, h, j) * d_o[here];
                }
            }
        });
        (dq, dk, dv)
    }
}
