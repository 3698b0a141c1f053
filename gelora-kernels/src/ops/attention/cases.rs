use super::{Attention, Saved, reference};
use crate::Offsets;
use crate::ops::dropout::Dropout;
use crate::random;
use crate::verify::{Case, random as tensor};

/// The settings of one case.
#[derive(Clone, Copy)]
struct Shape {
    lengths: &'static [usize],
    /// Keys of each sequence beyond its queries.
    past: &'static [usize],
    heads: usize,
    kv_heads: usize,
    d: usize,
    causal: bool,
    window: Option<usize>,
    /// M of the bias.
    bias: Option<usize>,
    /// M of the terms of the queries' content, and of the keys'.
    by_query: Option<usize>,
    by_key: Option<usize>,
    p: f32,
    /// The block that GPU kernels must take, as an index into their list.
    forced: Option<usize>,
}

const PLAIN: Shape = Shape {
    lengths: &[1],
    past: &[],
    heads: 1,
    kv_heads: 1,
    d: 1,
    causal: false,
    window: None,
    bias: None,
    by_query: None,
    by_key: None,
    p: 0.0,
    forced: None,
};

/// Head sizes for which the size of shared memory decides the block.
const LARGE_HEADS: Shape =
    Shape { lengths: &[70, 3], heads: 2, kv_heads: 1, d: 64, causal: true, window: Some(40), p: 0.1, ..PLAIN };

const SHAPES: [Shape; 30] = [
    PLAIN,
    Shape { lengths: &[3, 7], heads: 2, kv_heads: 2, d: 3, ..PLAIN },
    Shape { lengths: &[63, 1, 65], heads: 3, kv_heads: 3, d: 7, ..PLAIN },
    Shape { lengths: &[130], heads: 2, kv_heads: 2, d: 64, ..PLAIN },
    Shape { lengths: &[20, 33, 11], heads: 12, kv_heads: 12, d: 32, ..PLAIN },
    Shape { lengths: &[3, 70, 7], heads: 2, kv_heads: 2, d: 8, p: 0.3, ..PLAIN },
    Shape { lengths: &[65, 1, 40], heads: 4, kv_heads: 2, d: 32, ..PLAIN },
    Shape { lengths: &[63, 33], heads: 6, kv_heads: 2, d: 8, causal: true, ..PLAIN },
    Shape { lengths: &[130, 3], heads: 3, kv_heads: 1, d: 64, causal: true, p: 0.2, ..PLAIN },
    Shape { lengths: &[17, 34], heads: 2, kv_heads: 1, d: 80, causal: true, ..PLAIN },
    Shape { lengths: &[33], heads: 2, kv_heads: 2, d: 128, p: 0.1, ..PLAIN },
    Shape { lengths: &[90, 3], heads: 2, kv_heads: 1, d: 16, causal: true, window: Some(21), ..PLAIN },
    Shape { lengths: &[70], heads: 1, kv_heads: 1, d: 8, causal: true, window: Some(3), p: 0.1, ..PLAIN },
    Shape { lengths: &[40, 67], heads: 3, kv_heads: 3, d: 8, bias: Some(67), ..PLAIN },
    Shape { lengths: &[65, 2], heads: 2, kv_heads: 1, d: 8, causal: true, bias: Some(100), p: 0.2, ..PLAIN },
    Shape { lengths: &[1, 5, 1], past: &[40, 66, 0], heads: 4, kv_heads: 2, d: 16, causal: true, ..PLAIN },
    Shape {
        lengths: &[34, 1],
        past: &[7, 99],
        heads: 2,
        kv_heads: 2,
        d: 8,
        causal: true,
        window: Some(30),
        bias: Some(100),
        ..PLAIN
    },
    // Rows that see none of the first keys.
    Shape { lengths: &[200, 3], heads: 2, kv_heads: 1, d: 64, causal: true, window: Some(20), p: 0.1, ..PLAIN },
    Shape {
        lengths: &[150],
        heads: 2,
        kv_heads: 2,
        d: 8,
        causal: true,
        window: Some(5),
        bias: Some(150),
        by_query: Some(150),
        by_key: Some(150),
        p: 0.1,
        ..PLAIN
    },
    Shape { by_query: Some(1), by_key: Some(1), ..PLAIN },
    Shape { lengths: &[3, 33, 1], heads: 2, kv_heads: 2, d: 7, by_query: Some(33), ..PLAIN },
    Shape { lengths: &[65, 7], heads: 3, kv_heads: 3, d: 8, by_key: Some(70), p: 0.2, ..PLAIN },
    Shape { lengths: &[40, 130], heads: 2, kv_heads: 2, d: 64, by_query: Some(130), by_key: Some(130), ..PLAIN },
    Shape {
        lengths: &[20, 63],
        heads: 4,
        kv_heads: 2,
        d: 8,
        causal: true,
        window: Some(9),
        bias: Some(63),
        by_query: Some(63),
        by_key: Some(63),
        p: 0.1,
        ..PLAIN
    },
    Shape { forced: Some(0), ..LARGE_HEADS },
    Shape { forced: Some(1), ..LARGE_HEADS },
    Shape { forced: Some(2), ..LARGE_HEADS },
    Shape { d: 80, forced: Some(2), ..LARGE_HEADS },
    Shape { d: 128, forced: Some(1), ..LARGE_HEADS },
    Shape { d: 128, forced: Some(2), ..LARGE_HEADS },
];

impl Shape {
    fn name(&self) -> String {
        let Self { lengths, past, heads, kv_heads, d, causal, window, bias, by_query, by_key, p, .. } = self;
        let mut name = format!("{lengths:?} {heads}");
        if kv_heads < heads {
            name.push_str(&format!("/{kv_heads}"));
        }
        name.push_str(&format!("x{d}"));
        let said = [
            (!past.is_empty()).then(|| format!(" after {past:?}")),
            causal.then(|| " causal".to_owned()),
            window.map(|window| format!(" window {window}")),
            bias.map(|_| " bias".to_owned()),
            by_query.map(|_| " by query".to_owned()),
            by_key.map(|_| " by key".to_owned()),
            (*p > 0.0).then(|| format!(" drop {p}")),
        ];
        said.into_iter().flatten().for_each(|part| name.push_str(&part));
        name
    }

    /// Number of pairs of a row and a key that it sees.
    fn pairs(&self) -> f64 {
        let seen_by = |position: usize, keys: usize| {
            let seen = if self.causal { position + 1 } else { keys };
            self.window.map_or(seen, |window| seen.min(window))
        };
        let sequence_pairs = |(s, t): (usize, &usize)| {
            let past = self.past.get(s).unwrap_or(&0);
            (0..*t).map(|i| seen_by(past + i, past + t)).sum::<usize>()
        };
        self.lengths.iter().enumerate().map(sequence_pairs).sum::<usize>() as f64
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for shape in SHAPES {
        let Shape { lengths, past, heads, kv_heads, d, causal, window, bias, by_query, by_key, p, forced } = shape;
        let forced = |case: Case| if let Some(place) = forced { case.forced(place) } else { case };
        let key_lengths: Vec<usize> = lengths.iter().enumerate().map(|(s, t)| t + past.get(s).unwrap_or(&0)).collect();
        let both = (Offsets::from_lengths(lengths), Offsets::from_lengths(&key_lengths));
        let (Ok(sequences), Ok(keys)) = both else { continue };
        let (n, c, kv_n, kv_c) = (sequences.tokens(), heads * d, keys.tokens(), kv_heads * d);
        let t = |seed| tensor([n, c], seed);
        let key_like = |seed| tensor([kv_n, kv_c], seed);
        let dropout = (p > 0.0).then(|| Dropout { p, key: random::key(5, &[1]) });
        let scale = 1.0 / (d as f32).sqrt();
        let pairs = shape.pairs();
        // The terms added to the scores, in the order of the inputs: the bias, A and B.
        let by_distance = |m: Option<usize>, seed| m.map(|m| tensor([n, heads * (2 * m - 1)], seed));
        let added = [bias.map(|m| tensor([heads, 2 * m - 1], 7)), by_distance(by_query, 8), by_distance(by_key, 9)];
        let present = added.each_ref().map(Option::is_some);
        let added: Vec<_> = added.into_iter().flatten().collect();
        let terms = present[1..].iter().filter(|present| **present).count() as f64 * pairs * heads as f64;

        let oracle = {
            let (starts, key_starts) = (sequences.starts().to_vec(), keys.starts().to_vec());
            move |added: &[Vec<f64>]| {
                let [bias, by_query, by_key] = place(present, added).map(|t| t.cloned().unwrap_or_default());
                reference::Shape {
                    starts: starts.clone(),
                    key_starts: key_starts.clone(),
                    heads,
                    kv_heads,
                    head_size: d,
                    scale: scale.into(),
                    causal,
                    window,
                    bias,
                    by_distance: [by_query, by_key],
                }
            }
        };
        let mask = masks(dropout, heads, keys.longest());
        let (call, call_keys, want, m) = (sequences.clone(), keys.clone(), oracle.clone(), mask.clone());
        all.push(forced(
            Case::new("attention", shape.name())
                .inputs([t(1), key_like(2), key_like(3)].into_iter().chain(added.clone()).collect::<Vec<_>>())
                .run(move |t| {
                    let keys = (!past.is_empty()).then_some(&call_keys);
                    let [bias, by_query, by_key] = place(present, &t[3..]);
                    let plain = Attention::new(&call, heads, d);
                    let plain = Attention { keys, kv_heads, causal, window, dropout, ..plain };
                    let call = Attention { bias, by_query, by_key, ..plain };
                    let (o, saved) = call.forward(&t[0], &t[1], &t[2])?;
                    Ok(vec![o, saved.lse])
                })
                .reference(move |v| {
                    let (o, lse) = want(&v[3..]).forward(&v[0], &v[1], &v[2], &m);
                    vec![o, lse]
                })
                .bound(2e-6)
                .work(4.0 * pairs * c as f64, 8.0 * (n * c + kv_n * kv_c) as f64 + 4.0 * terms),
        ));
        if !past.is_empty() {
            continue;
        }
        let (call, want) = (sequences.clone(), oracle);
        all.push(forced(
            Case::new("attention.backward", shape.name())
                .inputs([t(4), t(1), key_like(2), key_like(3)].into_iter().chain(added).collect::<Vec<_>>())
                .run(move |t| {
                    let [bias, by_query, by_key] = place(present, &t[4..]);
                    let plain = Attention { kv_heads, causal, window, dropout, ..Attention::new(&call, heads, d) };
                    let call = Attention { bias, by_query, by_key, ..plain };
                    let (_, saved) = call.forward(&t[1], &t[2], &t[3])?;
                    let Saved { o, lse } = saved;
                    let g = call.backward(&t[0], &t[1], &t[2], &t[3], Saved { o, lse })?;
                    Ok([g.dq, g.dk, g.dv].into_iter().chain(g.d_by_query).chain(g.d_by_key).collect())
                })
                .reference(move |v| {
                    let want = want(&v[4..]);
                    let (inputs_gradients, added_gradients) = want.backward(&v[0], &v[1], &v[2], &v[3], &mask);
                    inputs_gradients.into_iter().chain(added_gradients.into_iter().filter(|d| !d.is_empty())).collect()
                })
                .bound(3e-6)
                .work(14.0 * pairs * c as f64, 24.0 * (n * (c + kv_c)) as f64 + 12.0 * terms),
        ));
    }
    all
}

/// The inputs of the terms that are present, in the order of `present`.
fn place<T>(present: [bool; 3], inputs: &[T]) -> [Option<&T>; 3] {
    let mut inputs = inputs.iter();
    present.map(|present| if present { inputs.next() } else { None })
}

/// The dropout factors by the documented index.
fn masks(
    dropout: Option<Dropout>,
    heads: usize,
    longest: usize,
) -> impl Fn(usize, usize, usize) -> f64 + Clone + Send + Sync + 'static {
    move |i, h, j| match dropout {
        Some(d) => {
            let bits = random::hash(d.key, ((i * heads + h) * longest + j) as u32);
            if f64::from(bits) >= f64::from(d.p) * 2f64.powi(32) { 1.0 / (1.0 - f64::from(d.p)) } else { 0.0 }
        }
        None => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::assert_slopes;
    use crate::{Result, Tensor};

    #[test]
    fn backward_matches_finite_differences() {
        let shape = |by_distance: [Vec<f64>; 2]| reference::Shape {
            key_starts: vec![0, 3, 5],
            starts: vec![0, 3, 5],
            heads: 2,
            kv_heads: 1,
            head_size: 3,
            scale: 0.6,
            causal: true,
            window: Some(2),
            bias: vec![0.3, -0.2, 0.4, 0.1, -0.7, 0.6, 0.5, -0.1, 0.2, 0.8],
            by_distance,
        };
        let values = |len: usize, seed| tensor([len], seed).to_vec_f64().unwrap_or_default();
        let inputs = [values(30, 1), values(15, 2), values(15, 3), values(5 * 2 * 5, 5), values(5 * 2 * 5, 6)];
        let d_o = values(30, 4);
        let mask = |i: usize, h: usize, j: usize| if (i + h + j).is_multiple_of(3) { 0.0 } else { 1.5 };
        let loss = |x: &[Vec<f64>]| -> f64 {
            let shape = shape([x[3].clone(), x[4].clone()]);
            shape.forward(&x[0], &x[1], &x[2], mask).0.iter().zip(&d_o).map(|(o, d)| o * d).sum()
        };
        let by_distance = [inputs[3].clone(), inputs[4].clone()];
        let (inputs_gradients, added_gradients) =
            shape(by_distance).backward(&d_o, &inputs[0], &inputs[1], &inputs[2], mask);
        assert_slopes(&inputs, &inputs_gradients.into_iter().chain(added_gradients).collect::<Vec<_>>(), loss);
    }

    #[test]
    fn a_sequence_is_not_changed_by_its_neighbors() -> Result<()> {
        let run = |lengths: &[usize], rows: usize| -> Result<Vec<f32>> {
            let sequences = Offsets::from_lengths(lengths)?;
            let cut = |seed| Tensor::from_vec(tensor([40, 8], seed).to_vec()?[..rows * 8].to_vec(), [rows, 8]);
            Attention::new(&sequences, 2, 4).forward(&cut(1)?, &cut(2)?, &cut(3)?)?.0.to_vec()
        };
        assert_eq!(run(&[9], 9)?, run(&[9, 31], 40)?[..9 * 8]);
        Ok(())
    }

    #[test]
    fn misfits_are_errors() -> Result<()> {
        let sequences = Offsets::from_lengths(&[4])?;
        let call = Attention::new(&sequences, 3, 1);
        let t = tensor([4, 8], 1);
        assert!(call.forward(&t, &t, &t).unwrap_err().to_string().contains("3 heads do not divide 8 channels"));
        let call = Attention { heads: 2, ..call };
        let three = Attention { kv_heads: 3, ..call }.forward(&t, &t, &t).unwrap_err().to_string();
        assert!(three.contains("3 key heads do not divide 2 query heads"), "{three}");
        let call = Attention { kv_heads: 2, ..call };
        let narrow = tensor([2, 5], 1);
        let narrow = Attention { bias: Some(&narrow), ..call }.forward(&t, &t, &t).unwrap_err().to_string();
        assert!(narrow.contains("a bias of 5 columns does not reach over sequences of 4"), "{narrow}");
        let short = tensor([4, 10], 1);
        let short = Attention { by_key: Some(&short), ..call }.forward(&t, &t, &t).unwrap_err().to_string();
        assert!(short.contains("by_key of 10 columns does not reach over sequences of 4"), "{short}");
        let loose = Attention { window: Some(2), ..call }.forward(&t, &t, &t).unwrap_err().to_string();
        assert!(loose.contains("a window must be causal"), "{loose}");
        let few = Offsets::from_lengths(&[3])?;
        let few = Attention { keys: Some(&few), ..call }.forward(&t, &t, &t).unwrap_err().to_string();
        assert!(few.contains("as many keys as queries"), "{few}");
        let short = tensor([3, 8], 1);
        assert!(call.forward(&short, &short, &short).unwrap_err().to_string().contains("q has 3 rows"));
        assert!(call.forward(&t, &short, &t).unwrap_err().to_string().contains("k must be [4, 8]"));
        Ok(())
    }
}
