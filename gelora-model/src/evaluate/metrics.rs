//! Metrics of predictions. Every function returns 0 if its formula has no value.
//!
//! Source: scikit-learn's definitions (accuracy_score, f1_score, matthews_corrcoef) and SciPy's (pearsonr, spearmanr),
//! which GLUE reports.

use crate::Task;

/// A metric of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Name of the metric.
    pub name: &'static str,
    /// Whether a smaller value is better.
    pub lower_is_better: bool,
}

impl Metric {
    /// Whether a value is better than the best one so far, if there is one. An equal value is not, and NaN never is.
    pub fn is_better(&self, value: f64, best: Option<f64>) -> bool {
        match best {
            None => !value.is_nan(),
            Some(best) if self.lower_is_better => value < best,
            Some(best) => value > best,
        }
    }
}

/// Returns the metrics by which models of a task are compared, the usual one first. The task of a language model is
/// None.
pub fn metrics(task: Option<&Task>) -> Vec<Metric> {
    let (names, lower_is_better): (&[&str], bool) = match task {
        Some(Task::Classification { labels }) if labels.len() == 2 => (&["accuracy", "f1", "matthews"], false),
        Some(Task::Classification { .. }) => (&["accuracy", "macro_f1", "matthews"], false),
        Some(Task::MultiLabel { .. }) => (&["micro_f1", "macro_f1", "subset_accuracy"], false),
        Some(Task::Regression) => (&["pearson", "spearman"], false),
        None => (&["loss", "perplexity"], true),
    };
    names.iter().map(|name| Metric { name, lower_is_better }).collect()
}

/// Share of correct predictions. 0 if there are no predictions.
///
/// # Panics
/// Panics if the slices differ in length, as all functions in this file do.
pub(super) fn accuracy(predicted: &[usize], gold: &[usize]) -> f64 {
    assert_eq!(predicted.len(), gold.len(), "accuracy: as many predictions as labels");
    let right = predicted.iter().zip(gold).filter(|(p, g)| p == g).count();
    ratio(right as f64, gold.len() as f64)
}

/// F1 = 2 TP / (2 TP + FP + FN). With two classes, the F1 of the second class; with more, the mean over the classes
/// that occur.
pub(super) fn f1(predicted: &[usize], gold: &[usize], classes: usize) -> f64 {
    let counts = Counts::of(predicted, gold, classes);
    let f1_of_class = |class: usize| ratio(2.0 * counts.right[class], counts.predicted[class] + counts.gold[class]);
    if classes == 2 {
        return f1_of_class(1);
    }
    let occurring: Vec<usize> =
        (0..counts.gold.len()).filter(|k| counts.predicted[*k] + counts.gold[*k] > 0.0).collect();
    ratio(occurring.iter().map(|k| f1_of_class(*k)).sum(), occurring.len() as f64)
}

/// Matthews correlation for any number of classes:
///
/// ```text
/// R_K = (c s - sum_k p_k t_k) / sqrt((s^2 - sum_k p_k^2) (s^2 - sum_k t_k^2))
/// ```
///
/// with s rows, of which c are predicted correctly; p_k rows are predicted to be class k, and t_k rows are of class k.
/// 0 if only one class is predicted or occurs.
///
/// Source: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient", eq. 8.
pub(super) fn matthews(predicted: &[usize], gold: &[usize], classes: usize) -> f64 {
    let counts = Counts::of(predicted, gold, classes);
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(x, y)| x * y).sum() };
    let s = gold.len() as f64;
    // Numerator c s - sum_k p_k t_k, then the two factors of the denominator.
    let covariance = counts.right.iter().sum::<f64>() * s - dot(&counts.predicted, &counts.gold);
    let predicted_variance = s * s - dot(&counts.predicted, &counts.predicted);
    let gold_variance = s * s - dot(&counts.gold, &counts.gold);
    ratio(covariance, predicted_variance.sqrt() * gold_variance.sqrt())
}

/// Pearson correlation, sum (x - mean x)(y - mean y) / sqrt(sum (x - mean x)^2 sum (y - mean y)^2).
/// 0 if x or y is constant or a value is not finite (the model diverged).
pub(super) fn pearson(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len(), "pearson: as many predictions as scores");
    if x.is_empty() || !x.iter().chain(y).all(|v| v.is_finite()) {
        return 0.0;
    }
    let constant = |v: &[f64]| v.iter().all(|a| *a == v[0]);
    if constant(x) || constant(y) {
        return 0.0;
    }
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (mean_x, mean_y) = (mean(x), mean(y));
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (a, b) in x.iter().zip(y) {
        let (a, b) = (a - mean_x, b - mean_y);
        xx += a * a;
        yy += b * b;
        xy += a * b;
    }
    ratio(xy, xx.sqrt() * yy.sqrt()).clamp(-1.0, 1.0)
}

/// Spearman correlation: the Pearson correlation of the ranks. Equal values share the mean of their ranks. 0 if x or y
/// is constant or a value is not finite.
///
/// # Panics
/// Panics if the slices differ in length.
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    if !x.iter().chain(y).all(|v| v.is_finite()) {
        return 0.0;
    }
    pearson(&ranks(x), &ranks(y))
}

/// Metrics of a classification: accuracy, F1 (macro F1 with more than two classes) and Matthews correlation.
pub(super) fn classification(predicted: &[usize], gold: &[usize], classes: usize) -> Vec<(&'static str, f64)> {
    let f1_name = if classes == 2 { "f1" } else { "macro_f1" };
    vec![
        ("accuracy", accuracy(predicted, gold)),
        (f1_name, f1(predicted, gold, classes)),
        ("matthews", matthews(predicted, gold, classes)),
    ]
}

/// Metrics of classes that do not exclude each other. A row has a set of predicted and a set of true classes; TP, FP
/// and FN of a class count rows.
///
/// - micro F1 = 2 TP / (2 TP + FP + FN) over all classes together;
/// - macro F1: the mean of the F1 of all classes; that of a class that is neither predicted nor true is 0, as in
///   scikit-learn;
/// - subset accuracy: share of rows whose predicted set is the true one.
///
/// # Panics
/// Panics if the slices differ in length, or a class is not below `classes`.
pub fn multi_label(predicted: &[Vec<usize>], gold: &[Vec<usize>], classes: usize) -> Vec<(&'static str, f64)> {
    assert_eq!(predicted.len(), gold.len(), "multi_label: as many predictions as sets");
    // For each class, 2 TP and 2 TP + FP + FN.
    let (mut right, mut all) = (vec![0.0; classes], vec![0.0; classes]);
    let mut equal = 0;
    for (predicted, gold) in predicted.iter().zip(gold) {
        let shared = predicted.iter().filter(|class| gold.contains(class));
        shared.clone().for_each(|class| right[*class] += 2.0);
        predicted.iter().chain(gold).for_each(|class| all[*class] += 1.0);
        equal += usize::from(shared.count() == predicted.len() && predicted.len() == gold.len());
    }
    let of_classes: f64 = right.iter().zip(&all).map(|(right, all)| ratio(*right, *all)).sum();
    vec![
        ("micro_f1", ratio(right.iter().sum(), all.iter().sum())),
        ("macro_f1", ratio(of_classes, classes as f64)),
        ("subset_accuracy", ratio(equal as f64, gold.len() as f64)),
    ]
}

/// Metrics of a regression: Pearson and Spearman correlation.
pub(super) fn regression(predicted: &[f64], gold: &[f64]) -> Vec<(&'static str, f64)> {
    vec![("pearson", pearson(predicted, gold)), ("spearman", spearman(predicted, gold))]
}

/// For each class, how many rows are predicted to be in it, are in it, and both.
struct Counts {
    predicted: Vec<f64>,
    gold: Vec<f64>,
    right: Vec<f64>,
}

impl Counts {
    fn of(predicted: &[usize], gold: &[usize], classes: usize) -> Self {
        assert_eq!(predicted.len(), gold.len(), "as many predictions as labels");
        let classes = predicted.iter().chain(gold).map(|k| k + 1).max().unwrap_or(0).max(classes);
        let zeros = || vec![0.0; classes];
        let mut counts = Counts { predicted: zeros(), gold: zeros(), right: zeros() };
        for (p, g) in predicted.iter().zip(gold) {
            counts.predicted[*p] += 1.0;
            counts.gold[*g] += 1.0;
            counts.right[*g] += f64::from(u8::from(p == g));
        }
        counts
    }
}

fn ratio(numerator: f64, denominator: f64) -> f64 {
    let ratio = numerator / denominator;
    if ratio.is_finite() { ratio } else { 0.0 }
}

/// Ranks of the values, counted from 1. Equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for tied in order.chunk_by(|a, b| values[*a] == values[*b]) {
        for index in tied {
            ranks[*index] = before as f64 + (tied.len() + 1) as f64 / 2.0;
        }
        before += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    #[test]
    fn every_metric_is_reported_under_its_name() {
        let reported =
            |metrics: Vec<(&'static str, f64)>| metrics.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let named = |task: Option<&Task>| metrics(task).into_iter().map(|metric| metric.name).collect::<Vec<_>>();
        for labels in [vec!["a".to_owned(); 2], vec!["a".to_owned(); 3]] {
            let classes = labels.len();
            let task = Task::Classification { labels };
            assert_eq!(reported(classification(&[0, 1], &[0, 1], classes)), named(Some(&task)));
        }
        assert_eq!(reported(regression(&[0.0, 1.0], &[0.0, 1.0])), named(Some(&Task::Regression)));
        let sets = [vec![0], vec![1]];
        let task = Task::MultiLabel { labels: vec!["a".to_owned(); 2] };
        assert_eq!(reported(multi_label(&sets, &sets, 2)), named(Some(&task)));
        assert_eq!(named(None), ["loss", "perplexity"]);
    }

    use super::*;

    /// TP 3, FP 1, FN 2, TN 4.
    const PREDICTED: [usize; 10] = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0];
    const GOLD: [usize; 10] = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0];

    #[test]
    fn two_classes_by_hand() {
        assert_relative_eq!(accuracy(&PREDICTED, &GOLD), 0.7);
        assert_relative_eq!(f1(&PREDICTED, &GOLD, 2), 6.0 / 9.0);
        // (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)) = (12 - 2) / sqrt(4 * 5 * 5 * 6)
        assert_relative_eq!(matthews(&PREDICTED, &GOLD, 2), 10.0 / 600f64.sqrt());
        assert_eq!(classification(&PREDICTED, &GOLD, 2)[1].0, "f1");
    }

    #[test]
    fn three_classes_by_hand() {
        let gold = [0, 0, 1, 1, 2, 2];
        let predicted = [0, 1, 1, 1, 2, 0];
        // Per class 2 TP / (predicted + occurring): 2/4, 4/5, 2/3.
        assert_relative_eq!(f1(&predicted, &gold, 3), (0.5 + 0.8 + 2.0 / 3.0) / 3.0);
        // c = 4, s = 6, p = (2, 3, 1), t = (2, 2, 2): (24 - 12) / sqrt((36 - 14)(36 - 12)).
        assert_relative_eq!(matthews(&predicted, &gold, 3), 12.0 / 528f64.sqrt(), epsilon = 1e-15);
        // A class that never occurs does not count.
        assert_relative_eq!(f1(&predicted, &gold, 9), f1(&predicted, &gold, 3));
        assert_eq!(classification(&predicted, &gold, 3)[1].0, "macro_f1");
    }

    #[test]
    fn sets_of_classes_by_hand() {
        let values = |predicted: &[Vec<usize>], gold: &[Vec<usize>], classes: usize| {
            multi_label(predicted, gold, classes).into_iter().map(|(_, value)| value).collect::<Vec<_>>()
        };
        let gold = [vec![0, 1], vec![], vec![2], vec![0]];
        let predicted = [vec![0], vec![], vec![2, 1], vec![0]];
        // Class 0: TP 2; class 1: FP 1, FN 1; class 2: TP 1; class 3 is not there. Rows 2 and 4 are right.
        assert_eq!(values(&predicted, &gold, 4), [6.0 / 8.0, (1.0 + 0.0 + 1.0 + 0.0) / 4.0, 0.5]);
        // The order of classes within a set does not matter.
        assert_eq!(values(&[vec![1, 0]], &[vec![0, 1]], 2), [1.0, 1.0, 1.0]);
        assert_eq!(values(&[vec![], vec![]], &[vec![], vec![]], 2), [0.0, 0.0, 1.0]);
        assert_eq!(values(&[], &[], 2), [0.0, 0.0, 0.0]);
    }

    #[test]
    fn correlations_by_hand() {
        let (x, y) = ([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 5.0]);
        // Deviations (-1.5, -0.5, 0.5, 1.5) and (-1.75, 0.25, -0.75, 2.25): 5.5 / sqrt(5 * 8.75).
        assert_relative_eq!(pearson(&x, &y), 5.5 / 43.75f64.sqrt(), epsilon = 1e-15);
        // 1 - 6 sum d^2 / (n (n^2 - 1)) = 1 - 6 * 2 / 60.
        assert_relative_eq!(spearman(&x, &y), 0.8, epsilon = 1e-15);
        // Ranks (1, 2.5, 2.5, 4) against (1, 2, 3, 4): 4.5 / sqrt(4.5 * 5).
        assert_relative_eq!(spearman(&[0.0, 7.0, 7.0, 9.0], &x), 4.5 / 22.5f64.sqrt(), epsilon = 1e-15);
        assert_eq!(ranks(&[5.0, -1.0, 5.0, 5.0, f64::MAX]), [3.0, 1.0, 3.0, 3.0, 5.0]);
        assert_relative_eq!(pearson(&x, &x.map(|v| -1e9 * v + 3.0)), -1.0, epsilon = 1e-12);
    }

    #[test]
    fn undefined_metrics_are_zero() {
        assert_eq!(accuracy(&[], &[]), 0.0);
        assert_eq!(f1(&[], &[], 3), 0.0);
        assert_eq!(f1(&[0, 0], &[0, 0], 2), 0.0);
        assert_eq!(matthews(&[1, 1, 1], &[0, 1, 0], 2), 0.0);
        assert_eq!(matthews(&[0, 1, 0], &[1, 1, 1], 2), 0.0);
        assert_eq!(pearson(&[], &[]), 0.0);
        assert_eq!(pearson(&[0.1, 0.1, 0.1], &[1.0, 2.0, 3.0]), 0.0);
        assert_eq!(spearman(&[1.0, f64::NAN], &[1.0, 2.0]), 0.0);
        assert_eq!(pearson(&[1.0, f64::INFINITY], &[1.0, 2.0]), 0.0);
    }
}
