use super::{Attention, Saved, reference};
use crate::Offsets;
use crate::ops::dropout::Dropout;
use crate::random;
use crate::verify::{Case, random as tensor};

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (lengths, heads, kv_heads, d, causal, p) in [
        (&[1][..], 1, 1, 1, false, 0.0),
        (&[3, 7], 2, 2, 3, false, 0.0),
        (&[63, 1, 65], 3, 3, 7, false, 0.0),
        (&[130], 2, 2, 64, false, 0.0),
        (&[20, 33, 11], 12, 12, 32, false, 0.0),
        (&[3, 70, 7], 2, 2, 8, false, 0.3),
        (&[65, 1, 40], 4, 2, 32, false, 0.0),
        (&[63, 33], 6, 2, 8, true, 0.0),
        (&[130, 3], 3, 1, 64, true, 0.2),
        (&[17, 34], 2, 1, 80, true, 0.0),
        (&[33], 2, 2, 128, false, 0.1),
    ] {
        let Ok(sequences) = Offsets::from_lengths(lengths) else { continue };
        let (n, c, kv_c) = (sequences.tokens(), heads * d, kv_heads * d);
        let t = |seed| tensor([n, c], seed);
        let of_key = |seed| tensor([n, kv_c], seed);
        let dropout = (p > 0.0).then(|| Dropout { p, key: random::key(5, &[1]) });
        let grouped = if kv_heads < heads { format!("/{kv_heads}") } else { String::new() };
        let drop_label = if p > 0.0 { format!(" drop {p}") } else { String::new() };
        let shape = format!("{lengths:?} {heads}{grouped}x{d}{}{drop_label}", if causal { " causal" } else { "" });
        let seen = |t: &usize| if causal { t * (t + 1) / 2 } else { t * t };
        let pairs: f64 = lengths.iter().map(|t| seen(t) as f64).sum();
        let scale = 1.0 / (d as f32).sqrt();

        let want = oracle(&sequences, [heads, kv_heads], d, scale, causal);
        let mask = masks(dropout, heads, sequences.longest());
        let (call, m) = (sequences.clone(), mask.clone());
        all.push(
            Case::new("attention", &shape)
                .inputs([t(1), of_key(2), of_key(3)])
                .run(move |t| {
                    let call = Attention { sequences: &call, heads, kv_heads, scale, causal, dropout };
                    let (o, saved) = call.forward(&t[0], &t[1], &t[2])?;
                    Ok(vec![o, saved.lse])
                })
                .reference(move |v| {
                    let (o, lse) = want.forward(&v[0], &v[1], &v[2], &m);
                    vec![o, lse]
                })
                .bound(2e-6)
                .work(4.0 * pairs * c as f64, 8.0 * (n * (c + kv_c)) as f64),
        );
        let (call, want) = (sequences.clone(), oracle(&sequences, [heads, kv_heads], d, scale, causal));
        all.push(
            Case::new("attention.backward", &shape)
                .inputs([t(4), t(1), of_key(2), of_key(3)])
                .run(move |t| {
                    let call = Attention { sequences: &call, heads, kv_heads, scale, causal, dropout };
                    let (_, saved) = call.forward(&t[1], &t[2], &t[3])?;
                    let Saved { o, lse } = saved;
                    let g = call.backward(&t[0], &t[1], &t[2], &t[3], Saved { o, lse })?;
                    Ok(vec![g.dq, g.dk, g.dv])
                })
                .reference(move |v| {
                    let (dq, dk, dv) = want.backward(&v[0], &v[1], &v[2], &v[3], &mask);
                    vec![dq, dk, dv]
                })
                .bound(3e-6)
                .work(14.0 * pairs * c as f64, 24.0 * (n * (c + kv_c)) as f64),
        );
    }
    all
}

fn oracle(
    sequences: &Offsets,
    [heads, kv_heads]: [usize; 2],
    head_size: usize,
    scale: f32,
    causal: bool,
) -> reference::Shape {
    reference::Shape { starts: sequences.starts().to_vec(), heads, kv_heads, head_size, scale: scale.into(), causal }
}

/// The dropout mask by the documented index.
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
    use crate::{Result, Tensor};

    #[test]
    fn backward_matches_finite_differences() {
        let shape =
            reference::Shape { starts: vec![0, 3, 5], heads: 2, kv_heads: 1, head_size: 3, scale: 0.6, causal: true };
        let values = |heads: usize, seed| tensor([5 * 3 * heads], seed).to_vec_f64().unwrap_or_default();
        let inputs = [values(2, 1), values(1, 2), values(1, 3)];
        let d_o = values(2, 4);
        let mask = |i: usize, h: usize, j: usize| if (i + h + j).is_multiple_of(3) { 0.0 } else { 1.5 };
        let loss = |x: &[Vec<f64>; 3]| -> f64 {
            shape.forward(&x[0], &x[1], &x[2], mask).0.iter().zip(&d_o).map(|(o, d)| o * d).sum()
        };
        let (dq, dk, dv) = shape.backward(&d_o, &inputs[0], &inputs[1], &inputs[2], mask);
        for (which, gradient) in [dq, dk, dv].iter().enumerate() {
            for i in 0..gradient.len() {
                let (mut up, mut down) = (inputs.clone(), inputs.clone());
                up[which][i] += 1e-6;
                down[which][i] -= 1e-6;
                approx::assert_abs_diff_eq!((loss(&up) - loss(&down)) / 2e-6, gradient[i], epsilon = 1e-8);
            }
        }
    }

    #[test]
    fn a_sequence_is_not_changed_by_its_neighbours() -> Result<()> {
        let run = |lengths: &[usize], rows: usize| -> Result<Vec<f32>> {
            let sequences = Offsets::from_lengths(lengths)?;
            let cut = |seed| Tensor::from_vec(tensor([40, 8], seed).to_vec()?[..rows * 8].to_vec(), [rows, 8]);
            let call =
                Attention { sequences: &sequences, heads: 2, kv_heads: 2, scale: 0.5, causal: false, dropout: None };
            call.forward(&cut(1)?, &cut(2)?, &cut(3)?)?.0.to_vec()
        };
        assert_eq!(run(&[9], 9)?, run(&[9, 31], 40)?[..9 * 8]);
        Ok(())
    }

    #[test]
    fn misfits_are_errors() -> Result<()> {
        let sequences = Offsets::from_lengths(&[4])?;
        let call = Attention { sequences: &sequences, heads: 3, kv_heads: 3, scale: 1.0, causal: false, dropout: None };
        let t = tensor([4, 8], 1);
        assert!(call.forward(&t, &t, &t).unwrap_err().to_string().contains("3 heads do not divide 8 channels"));
        let call = Attention { heads: 2, ..call };
        let three = Attention { kv_heads: 3, ..call }.forward(&t, &t, &t).unwrap_err().to_string();
        assert!(three.contains("3 key heads do not divide 2 query heads"), "{three}");
        let call = Attention { kv_heads: 2, ..call };
        let short = tensor([3, 8], 1);
        assert!(call.forward(&short, &short, &short).unwrap_err().to_string().contains("q has 3 rows"));
        assert!(call.forward(&t, &short, &t).unwrap_err().to_string().contains("k must be [4, 8]"));
        Ok(())
    }
}
