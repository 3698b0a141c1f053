use crate::{Result, Tensor};

pub fn cross_entropy(logits: &Tensor, labels: &[usize]) -> Result<(Tensor, Tensor)> {
    let (b, k) = (logits.rows(), logits.cols());
    let mut d_logits = Tensor::output([b, k])?;
    let mut total = 0.0_f64;
    let rows = logits.as_slice()?.chunks_exact(k).zip(d_logits.as_mut_slice()?.chunks_exact_mut(k));
    for ((row, d), &label) in rows.zip(labels) {
        let peak = row.iter().fold(f32::NEG_INFINITY, |m, l| m.max(*l));
        let sum: f64 = row.iter().map(|l| f64::from(l - peak).exp()).sum();
        total += sum.ln() - f64::from(row[label] - peak);
        for (d, l) in d.iter_mut().zip(row) {
            *d = (f64::from(l - peak).exp() / sum / b as f64) as f32;
        }
        d[label] -= 1.0 / b as f32;
    }
    Ok((scalar(total / b as f64)?, d_logits))
}

pub fn squared_error(prediction: &Tensor, targets: &[f32]) -> Result<(Tensor, Tensor)> {
    let b = targets.len();
    let mut d = Tensor::output([b, 1])?;
    let mut total = 0.0_f64;
    for ((d, p), t) in d.as_mut_slice()?.iter_mut().zip(prediction.as_slice()?).zip(targets) {
        let error = f64::from(*p) - f64::from(*t);
        total += error * error;
        *d = (2.0 * error / b as f64) as f32;
    }
    Ok((scalar(total / b as f64)?, d))
}

fn scalar(value: f64) -> Result<Tensor> {
    let mut t = Tensor::output([1])?;
    t.as_mut_slice()?[0] = value as f32;
    Ok(t)
}
