//! What the trained model does on held-out rows: a confusion matrix, and the rows with the largest errors.

use gelora_model::evaluate::{predicted_class, probabilities};

use super::super::svg::escaped;
use super::super::{section, table};
use super::rows::{MAX_CHARS, MAX_ROWS, Row, SHORTENED, rows, shortened};
use super::sets::Sets;
use crate::data::{Dataset, Targets};
use crate::ui::count;

/// Number of classes up to which the whole matrix is shown.
const MAX_CLASSES: usize = 20;

/// Predictions of the held-out rows.
#[derive(Clone, Debug, PartialEq)]
pub enum HeldOut {
    /// Classes: how many rows of each class (first index) are predicted to be of each class.
    Classes { labels: Vec<String>, confusion: Vec<Vec<usize>>, worst: Vec<Row> },
    /// Rows of any number of classes.
    Sets(Sets),
    /// Scores.
    Scores { worst: Vec<Row> },
    /// Rows of a language model. `scored` rows were scored one by one.
    Texts { scored: usize, of: usize, worst: Vec<TextRow> },
}

/// A row of a language model.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRow {
    /// What the answer follows. Empty in a block of text.
    pub prompt: String,
    pub answer: String,
    /// Mean loss of the tokens of the answer, and their number.
    pub loss: f64,
    pub tokens: usize,
}

impl HeldOut {
    /// Returns the predictions of a classifier. `logits` and `targets` are of the rows of `dataset`, in order.
    pub fn of(dataset: &Dataset, labels: &[String], targets: &Targets, logits: &[Vec<f32>]) -> Self {
        let row = |index: usize, label: String, predicted: String, value: f64| {
            let example = &dataset.examples[index];
            let texts = [Some(&example.text), example.pair.as_ref()].into_iter().flatten().cloned().collect();
            Row { row: dataset.row(index), texts, label, predicted, value }
        };
        match targets {
            Targets::Classes(targets) => {
                let mut confusion = vec![vec![0; labels.len()]; labels.len()];
                let mut wrong = Vec::new();
                for (index, (target, logits)) in targets.iter().zip(logits).enumerate() {
                    let predicted = predicted_class(logits);
                    confusion[*target][predicted] += 1;
                    if predicted != *target {
                        wrong.push((index, *target, predicted, f64::from(probabilities(logits)[predicted])));
                    }
                }
                wrong.sort_by(|a, b| b.3.total_cmp(&a.3).then(a.0.cmp(&b.0)));
                let rows = wrong.into_iter().take(MAX_ROWS);
                let worst = rows.map(|(i, target, p, value)| row(i, labels[target].clone(), labels[p].clone(), value));
                Self::Classes { labels: labels.to_vec(), confusion, worst: worst.collect() }
            }
            Targets::Sets(sets) => Self::Sets(Sets::of(labels, sets, logits, row)),
            Targets::Scores(scores) => {
                let predicted = |index: usize| f64::from(logits[index][0]);
                let mut order: Vec<(usize, f64)> =
                    scores.iter().take(logits.len()).enumerate().map(|(i, score)| (i, predicted(i) - score)).collect();
                order.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0)));
                let rows = order.into_iter().take(MAX_ROWS);
                let worst = rows.map(|(i, error)| row(i, scores[i].to_string(), format!("{:.4}", predicted(i)), error));
                Self::Scores { worst: worst.collect() }
            }
        }
    }

    /// Returns the sections of the page.
    pub fn html(&self, step: usize) -> String {
        match self {
            Self::Classes { labels, confusion, worst } => {
                let total: usize = confusion.iter().flatten().sum();
                let right: usize = (0..labels.len()).map(|class| confusion[class][class]).sum();
                let matrix = match labels.len() <= MAX_CLASSES {
                    true => matrix(labels, confusion),
                    false => pairs(labels, confusion),
                };
                let lead = format!(
                    "{} of {} held-out rows are right after step {step}. A row for each label, a column for each \
                     prediction.",
                    count(right as u64),
                    count(total as u64)
                );
                let errors = match worst.is_empty() {
                    true => String::new(),
                    false => {
                        let lead = format!(
                            "{} of {} wrong rows, those with the highest probability of the wrong class first. \
                             {SHORTENED}",
                            worst.len(),
                            count((total - right) as u64)
                        );
                        section("Errors", &lead, &rows(worst, "probability"))
                    }
                };
                section("Confusion matrix", &lead, &matrix) + &errors
            }
            Self::Sets(sets) => sets.html(step),
            Self::Scores { worst } => {
                let lead = format!(
                    "The {} held-out rows whose prediction differs most from their score, after step {step}. \
                     {SHORTENED}",
                    worst.len()
                );
                section("Largest errors", &lead, &rows(worst, "difference"))
            }
            Self::Texts { scored, of, worst } => {
                let lead = format!(
                    "The {} rows with the highest loss among {} of {} held-out rows, drawn evenly and scored one by \
                     one after the last step. {SHORTENED}",
                    worst.len(),
                    count(*scored as u64),
                    count(*of as u64)
                );
                section("Highest losses", &lead, &texts(worst))
            }
        }
    }
}

/// The matrix: a row for each class, with the share of its rows that are right.
fn matrix(labels: &[String], confusion: &[Vec<usize>]) -> String {
    let mut body = String::new();
    for (class, counts) in confusion.iter().enumerate() {
        let total: usize = counts.iter().sum();
        let share = |n: usize| n as f64 / total.max(1) as f64;
        body.push_str(&format!("<tr><th scope=\"row\">{}</th>", escaped(&shortened(&labels[class], 40))));
        for (predicted, n) in counts.iter().enumerate() {
            let color = if predicted == class { "0,114,178" } else { "217,140,0" };
            let style = match n {
                0 => String::new(),
                n => format!(" style=\"background:rgba({color},{:.2})\"", 0.08 + 0.42 * share(*n)),
            };
            body.push_str(&format!("<td class=\"n cell\"{style}>{}</td>", count(*n as u64)));
        }
        let right = if total == 0 { "-".to_owned() } else { format!("{:.1} %", 100.0 * share(counts[class])) };
        body.push_str(&format!("<td class=\"n\">{}</td><td class=\"n\">{right}</td></tr>", count(total as u64)));
    }
    let names: Vec<String> = labels.iter().map(|label| shortened(label, 40)).collect();
    let mut header = vec![("label", false)];
    header.extend(names.iter().map(|name| (name.as_str(), true)));
    header.extend([("rows", true), ("right", true)]);
    table(&header, &body)
}

/// The most frequent confusions.
fn pairs(labels: &[String], confusion: &[Vec<usize>]) -> String {
    let mut pairs: Vec<(usize, usize, usize)> = Vec::new();
    for (class, counts) in confusion.iter().enumerate() {
        let wrong = counts.iter().enumerate().filter(|(predicted, n)| *predicted != class && **n > 0);
        pairs.extend(wrong.map(|(predicted, n)| (*n, class, predicted)));
    }
    let found = pairs.len();
    pairs.sort_by(|a, b| b.0.cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let row = |&(n, class, predicted): &(usize, usize, usize)| {
        let total: usize = confusion[class].iter().sum();
        format!(
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            escaped(&shortened(&labels[class], 60)),
            escaped(&shortened(&labels[predicted], 60)),
            count(n as u64),
            count(total as u64)
        )
    };
    let body: String = pairs.iter().take(MAX_ROWS).map(row).collect();
    let header = [("label", false), ("predicted", false), ("rows", true), ("rows of the label", true)];
    format!(
        "<p class=\"soft\">{} classes: the {} most frequent of {found} confusions.</p>{}",
        labels.len(),
        pairs.len().min(MAX_ROWS),
        table(&header, &body)
    )
}

fn texts(rows: &[TextRow]) -> String {
    let row = |row: &TextRow| {
        format!(
            "<tr><td class=\"n\">{:.3}</td><td class=\"n\">{}</td><td class=\"wrap\">{}</td>\
             <td class=\"wrap\">{}</td></tr>",
            row.loss,
            count(row.tokens as u64),
            escaped(&shortened(&row.prompt, MAX_CHARS)),
            escaped(&shortened(&row.answer, MAX_CHARS))
        )
    };
    let body: String = rows.iter().map(row).collect();
    table(&[("loss", true), ("tokens", true), ("prompt", false), ("predicted text", false)], &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Example;

    fn dataset(texts: &[&str]) -> Dataset {
        let mut dataset = Dataset::new("d.jsonl".into());
        for (i, text) in texts.iter().enumerate() {
            dataset.read = i + 1;
            dataset.push(Example { text: (*text).to_owned(), ..Example::default() }, i + 1);
        }
        dataset
    }

    #[test]
    fn errors_are_counted_and_the_surest_come_first() {
        let data = dataset(&["a", "<b>", "c", "d"]);
        let labels = ["no".to_owned(), "<i>yes</i>".to_owned()];
        let logits = [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 5.0]].map(|row| row.to_vec());
        let found = HeldOut::of(&data, &labels, &Targets::Classes(vec![0, 1, 1, 0]), &logits);
        let HeldOut::Classes { confusion, worst, .. } = &found else { panic!("{found:?}") };
        assert_eq!(confusion, &[vec![1, 1], vec![1, 1]]);
        assert_eq!(worst.iter().map(|row| row.row).collect::<Vec<_>>(), [4, 2]);
        let html = found.html(7);
        assert!(html.contains("2 of 4 held-out rows are right after step 7"), "{html}");
        assert!(html.contains("&lt;b&gt;") && html.contains("&lt;i&gt;yes"), "{html}");
        assert!(!html.contains("<b>") && !html.contains("<i>"), "{html}");
    }

    #[test]
    fn many_classes_are_a_list_of_confusions() {
        let data = dataset(&["a", "b", "c"]);
        let labels: Vec<String> = (0..30).map(|class| format!("class {class}")).collect();
        let logits: Vec<Vec<f32>> =
            [3, 3, 5].map(|k: usize| (0..30).map(|class| f32::from(u8::from(class == k))).collect()).to_vec();
        let html = HeldOut::of(&data, &labels, &Targets::Classes(vec![2, 2, 5]), &logits).html(1);
        assert!(html.contains("the 1 most frequent of 1 confusions"), "{html}");
        assert!(html.contains("<td>class 2</td><td>class 3</td><td class=\"n\">2</td>"), "{html}");
    }

    #[test]
    fn scores_are_sorted_by_their_error() {
        let data = dataset(&["a", "b", "c"]);
        let logits = [vec![1.5], vec![-3.0], vec![2.0]];
        let found = HeldOut::of(&data, &[], &Targets::Scores(vec![1.0, 0.0, 2.0]), &logits);
        let HeldOut::Scores { worst } = &found else { panic!("{found:?}") };
        assert_eq!(worst.iter().map(|row| (row.row, row.value)).collect::<Vec<_>>(), [(2, -3.0), (1, 0.5), (3, 0.0)]);
    }
}
