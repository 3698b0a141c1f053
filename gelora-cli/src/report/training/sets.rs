//! Held-out rows of any number of classes: how well each class is found, and the rows with the highest losses.

use gelora_model::evaluate::predicted_set;

use super::super::svg::escaped;
use super::super::{section, table};
use super::rows::{MAX_ROWS, Row, SHORTENED, rows, shortened};
use crate::ui::count;

/// Number of classes that are shown.
const MAX_CLASSES: usize = 200;

/// Predictions of rows of any number of classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Sets {
    classes: Vec<Class>,
    /// Number of rows, and of those whose predicted set is the true one.
    rows: usize,
    right: usize,
    worst: Vec<Row>,
}

/// Numbers of rows.
#[derive(Clone, Debug, Default, PartialEq)]
struct Class {
    name: String,
    labeled: usize,
    predicted: usize,
    both: usize,
}

impl Sets {
    /// Returns the predictions. `row` makes a row of its index, its labels, its predictions and its loss.
    pub fn of(
        names: &[String],
        sets: &[Vec<usize>],
        logits: &[Vec<f32>],
        row: impl Fn(usize, String, String, f64) -> Row,
    ) -> Self {
        let mut classes: Vec<Class> =
            names.iter().map(|name| Class { name: name.clone(), ..Class::default() }).collect();
        let (mut right, mut losses) = (0, Vec::new());
        for (index, (set, logits)) in sets.iter().zip(logits).enumerate() {
            let predicted = predicted_set(logits);
            set.iter().for_each(|class| classes[*class].labeled += 1);
            predicted.iter().for_each(|class| classes[*class].predicted += 1);
            predicted.iter().filter(|class| set.contains(class)).for_each(|class| classes[*class].both += 1);
            right += usize::from(predicted == *set);
            losses.push((index, loss(logits, set)));
        }
        losses.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let named = |set: &[usize]| match set {
            [] => "none".to_owned(),
            set => set.iter().map(|class| names[*class].as_str()).collect::<Vec<_>>().join(", "),
        };
        let worst = losses.into_iter().take(MAX_ROWS);
        let worst = worst.map(|(i, loss)| row(i, named(&sets[i]), named(&predicted_set(&logits[i])), loss)).collect();
        Self { classes, rows: sets.len().min(logits.len()), right, worst }
    }

    /// Returns the sections of the page.
    pub fn html(&self, step: usize) -> String {
        let lead = format!(
            "The classes of {} of {} held-out rows are all right after step {step}. A class is predicted where its \
             probability is above one half.",
            count(self.right as u64),
            count(self.rows as u64)
        );
        let share = |part: f64, whole: f64| match whole {
            0.0 => "-".to_owned(),
            whole => format!("{:.3}", part / whole),
        };
        let row = |class: &Class| {
            let (labeled, predicted, both) = (class.labeled as f64, class.predicted as f64, class.both as f64);
            let numbers = [
                count(class.labeled as u64),
                count(class.predicted as u64),
                share(both, predicted),
                share(both, labeled),
                share(2.0 * both, labeled + predicted),
            ];
            let cells: String = numbers.iter().map(|number| format!("<td class=\"n\">{number}</td>")).collect();
            format!("<tr><th scope=\"row\">{}</th>{cells}</tr>", escaped(&shortened(&class.name, 60)))
        };
        let body: String = self.classes.iter().take(MAX_CLASSES).map(row).collect();
        let header = [
            ("class", false),
            ("rows", true),
            ("predicted", true),
            ("precision", true),
            ("recall", true),
            ("F1", true),
        ];
        let more = match self.classes.len().saturating_sub(MAX_CLASSES) {
            0 => String::new(),
            more => format!("<p class=\"soft\">{more} more classes are not shown.</p>"),
        };
        let worst = format!(
            "The {} held-out rows with the highest loss, the mean of the binary cross entropies of all classes. \
             {SHORTENED}",
            self.worst.len()
        );
        section("Classes", &lead, &(table(&header, &body) + &more))
            + &section("Highest losses", &worst, &rows(&self.worst, "loss"))
    }
}

/// The mean binary cross entropy of a row: ln(1 + e^x) - t x, as the training has it.
fn loss(logits: &[f32], set: &[usize]) -> f64 {
    let of_class = |(class, logit): (usize, &f32)| {
        let x = f64::from(*logit);
        x.max(0.0) + (-x.abs()).exp().ln_1p() - if set.contains(&class) { x } else { 0.0 }
    };
    logits.iter().enumerate().map(of_class).sum::<f64>() / logits.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_counted_and_the_highest_loss_comes_first() {
        let names = ["<a>", "b"].map(str::to_owned);
        let logits = [vec![2.0, -1.0], vec![3.0, 1.0], vec![-1.0, -9.0]];
        let row =
            |index: usize, label, predicted, value| Row { row: index + 1, texts: vec![], label, predicted, value };
        let sets = Sets::of(&names, &[vec![0], vec![0], vec![1]], &logits, row);
        assert_eq!((sets.rows, sets.right), (3, 1));
        let counts: Vec<_> = sets.classes.iter().map(|class| (class.labeled, class.predicted, class.both)).collect();
        assert_eq!(counts, [(2, 2, 2), (1, 1, 0)]);
        assert_eq!((sets.worst[0].row, &*sets.worst[0].label, &*sets.worst[0].predicted), (3, "b", "none"));
        // ln(1 + e^-1) and 9 + ln(1 + e^-9), each weighted by one half.
        approx::assert_relative_eq!(sets.worst[0].value, (0.313_261_687 + 9.000_123_402) / 2.0, epsilon = 1e-8);
        let html = sets.html(5);
        assert!(html.contains("1 of 3 held-out rows are all right after step 5"), "{html}");
        assert!(html.contains("&lt;a&gt;") && !html.contains("<a>"), "{html}");
        assert!(html.contains("<td class=\"n\">1.000</td>"), "{html}");
    }
}
