//! The formulas in f64.

/// (loss, d_logits).
pub fn cross_entropy(logits: &[f64], labels: &[usize]) -> (f64, Vec<f64>) {
    let b = labels.len();
    let k = logits.len() / b;
    let (mut loss, mut d) = (0.0, Vec::new());
    for (row, label) in logits.chunks(k).zip(labels) {
        let peak = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|l| (l - peak).exp()).sum();
        loss -= (row[*label] - peak - sum.ln()) / b as f64;
        for (j, l) in row.iter().enumerate() {
            d.push(((l - peak).exp() / sum - f64::from(u8::from(j == *label))) / b as f64);
        }
    }
    (loss, d)
}

/// (loss, d_prediction).
pub fn squared_error(prediction: &[f64], targets: &[f64]) -> (f64, Vec<f64>) {
    let b = targets.len() as f64;
    let errors: Vec<f64> = prediction.iter().zip(targets).map(|(p, t)| p - t).collect();
    (errors.iter().map(|e| e * e).sum::<f64>() / b, errors.iter().map(|e| 2.0 * e / b).collect())
}
