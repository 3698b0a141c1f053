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

/// (loss, d_logits) with the weights of all classes and label smoothing, in torch's two parts: the weighted mean of the
/// losses of the labels, and that of the losses of all classes.
pub fn weighted_cross_entropy(logits: &[f64], labels: &[usize], weights: &[f64], smoothing: f64) -> (f64, Vec<f64>) {
    let k = weights.len();
    let total: f64 = labels.iter().map(|label| weights[*label]).sum();
    let (mut of_labels, mut of_all, mut d) = (0.0, 0.0, Vec::new());
    for (row, label) in logits.chunks(k).zip(labels) {
        let peak = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = peak + row.iter().map(|l| (l - peak).exp()).sum::<f64>().ln();
        of_labels -= weights[*label] * (row[*label] - log_sum) / total;
        of_all -= row.iter().zip(weights).map(|(l, w)| w * (l - log_sum)).sum::<f64>() / total;
        let target =
            |j: usize| weights[j] * ((1.0 - smoothing) * f64::from(u8::from(j == *label)) + smoothing / k as f64);
        let sum: f64 = (0..k).map(target).sum();
        d.extend(row.iter().enumerate().map(|(j, l)| ((l - log_sum).exp() * sum - target(j)) / total));
    }
    ((1.0 - smoothing) * of_labels + smoothing / k as f64 * of_all, d)
}

/// (loss, d_logits).
pub fn binary_cross_entropy(logits: &[f64], targets: &[f64]) -> (f64, Vec<f64>) {
    let n = targets.len() as f64;
    let pairs = || logits.iter().zip(targets);
    let loss = pairs().map(|(x, t)| x.max(0.0) + (-x.abs()).exp().ln_1p() - t * x).sum::<f64>() / n;
    (loss, pairs().map(|(x, t)| (1.0 / (1.0 + (-x).exp()) - t) / n).collect())
}

/// (loss, d_prediction).
pub fn squared_error(prediction: &[f64], targets: &[f64]) -> (f64, Vec<f64>) {
    let b = targets.len() as f64;
    let errors: Vec<f64> = prediction.iter().zip(targets).map(|(p, t)| p - t).collect();
    (errors.iter().map(|e| e * e).sum::<f64>() / b, errors.iter().map(|e| 2.0 * e / b).collect())
}
