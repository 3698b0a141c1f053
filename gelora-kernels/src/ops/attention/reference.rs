//! The formulas in f64, over a batch. `mask(i, h, j)` is the dropout factor of P_ij in head h.

/// The settings of one call.
#[derive(Debug)]
pub struct Shape {
    /// The first query of every sequence, then the number of queries.
    pub starts: Vec<usize>,
    /// The first key of every sequence, then the number of keys.
    pub key_starts: Vec<usize>,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Head size.
    pub head_size: usize,
    /// The factor of the scores.
    pub scale: f64,
    /// Whether a row sees only itself and earlier rows.
    pub causal: bool,
    /// The most rows that a row sees.
    pub window: Option<usize>,
    /// The bias of the scores by head and by distance j - i, from 1 - M to M - 1; empty without a bias.
    pub bias: Vec<f64>,
    /// A and B; each is empty if the call does not have it.
    pub by_distance: [Vec<f64>; 2],
}

/// (dq, dk, dv), and the gradients of A and B.
pub type Gradients = ([Vec<f64>; 3], [Vec<f64>; 2]);

impl Shape {
    fn probabilities(&self, q: &[f64], k: &[f64], i: usize, h: usize, rows: &[(usize, isize)]) -> (Vec<f64>, f64) {
        let score = |&(j, distance): &(usize, isize)| {
            let added: f64 = (0..2)
                .filter(|which| !self.by_distance[*which].is_empty())
                .map(|which| self.by_distance[which][self.distance_index(which, i, j, h, distance)])
                .sum();
            self.scale * (self.dot(q, i, k, j, h) + added) + self.bias(h, distance)
        };
        let scores: Vec<f64> = rows.iter().map(score).collect();
        let peak = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - peak).exp()).sum();
        (scores.iter().map(|s| (s - peak).exp() / sum).collect(), peak + sum.ln())
    }

    /// The index of channel d of query head h.
    fn index(&self, row: usize, h: usize, d: usize) -> usize {
        (row * self.heads + h) * self.head_size + d
    }

    /// The index of channel d of the key and value head that query head h reads.
    fn kv_index(&self, row: usize, h: usize, d: usize) -> usize {
        let group = self.heads / self.kv_heads;
        (row * self.kv_heads + h / group) * self.head_size + d
    }

    /// The product of row i of a query-like matrix and row j of a key-like one.
    fn dot(&self, a: &[f64], i: usize, b: &[f64], j: usize, h: usize) -> f64 {
        (0..self.head_size).map(|d| a[self.index(i, h, d)] * b[self.kv_index(j, h, d)]).sum()
    }

    /// The index of the term of query i and key j in A (0) or B (1).
    fn distance_index(&self, which: usize, i: usize, j: usize, h: usize, distance: isize) -> usize {
        let rows = self.starts[self.starts.len() - 1];
        let width = self.by_distance[which].len() / (rows * self.heads);
        let row = if which == 0 { i } else { j };
        (row * self.heads + h) * width + (distance + (width / 2) as isize) as usize
    }

    fn bias(&self, h: usize, distance: isize) -> f64 {
        if self.bias.is_empty() {
            return 0.0;
        }
        let width = self.bias.len() / self.heads;
        self.bias[h * width + (distance + (width / 2) as isize) as usize]
    }

    /// Calls `f` for every row and head, with the first key of the sequence and the visible keys, each with its
    /// distance.
    fn each_row(&self, mut f: impl FnMut(usize, usize, usize, Vec<(usize, isize)>)) {
        for (s, t) in self.starts.windows(2).zip(self.key_starts.windows(2)) {
            for h in 0..self.heads {
                for i in s[0]..s[1] {
                    // The last query has the position of the last key.
                    let distance = |j: usize| (j as isize - t[1] as isize) - (i as isize - s[1] as isize);
                    let sees = |d: isize| (!self.causal || d <= 0) && self.window.is_none_or(|w| -d < w as isize);
                    let keys = (t[0]..t[1]).map(|j| (j, distance(j))).filter(|(_, d)| sees(*d));
                    f(i, h, t[0], keys.collect());
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
        self.each_row(|i, h, first, rows| {
            let (p, l) = self.probabilities(q, k, i, h, &rows);
            lse[i * self.heads + h] = l;
            for (p, (row, _)) in p.into_iter().zip(rows) {
                for d in 0..self.head_size {
                    o[self.index(i, h, d)] += p * mask(i, h, row - first) * v[self.kv_index(row, h, d)];
                }
            }
        });
        (o, lse)
    }

    /// The gradients of everything but the bias.
    pub fn backward(
        &self,
        d_o: &[f64],
        q: &[f64],
        k: &[f64],
        v: &[f64],
        mask: impl Fn(usize, usize, usize) -> f64,
    ) -> Gradients {
        let mut d_by_distance = self.by_distance.each_ref().map(|t| vec![0.0; t.len()]);
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        self.each_row(|i, h, first, rows| {
            let (p, _) = self.probabilities(q, k, i, h, &rows);
            let dp: Vec<f64> =
                rows.iter().map(|(row, _)| self.dot(d_o, i, v, *row, h) * mask(i, h, row - first)).collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for (j, (row, distance)) in rows.into_iter().enumerate() {
                let ds = p[j] * (dp[j] - mean) * self.scale;
                for (which, d) in d_by_distance.iter_mut().enumerate().filter(|(_, d)| !d.is_empty()) {
                    d[self.distance_index(which, i, row, h, distance)] += ds;
                }
                for d in 0..self.head_size {
                    let (here, there) = (self.index(i, h, d), self.kv_index(row, h, d));
                    dq[here] += ds * k[there];
                    dk[there] += ds * q[here];
                    dv[there] += p[j] * mask(i, h, row - first) * d_o[here];
                }
            }
        });
        ([dq, dk, dv], d_by_distance)
    }
}
