//! Rows of a classifier as a table.

use super::super::svg::escaped;
use super::super::table;

/// Number of rows that are shown.
pub const MAX_ROWS: usize = 20;
/// Number of characters of a text that are shown.
pub const MAX_CHARS: usize = 300;

/// What a page says of the texts in such a table.
pub const SHORTENED: &str = "Long texts are shortened.";

/// A row of a classifier.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Number of the row in the data, from 1.
    pub row: usize,
    /// The text, or both texts of a pair.
    pub texts: Vec<String>,
    pub label: String,
    pub predicted: String,
    /// Probability of the predicted class, loss of a row of several classes, or prediction minus score.
    pub value: f64,
}

/// Returns the table; `value` is the header of the values.
pub fn rows(rows: &[Row], value: &str) -> String {
    let row = |row: &Row| {
        let shown: Vec<String> = row.texts.iter().map(|text| escaped(&shortened(text, MAX_CHARS))).collect();
        format!(
            "<tr><td class=\"n\">{}</td><td class=\"wrap\">{}</td><td>{}</td><td>{}</td>\
             <td class=\"n\">{:.3}</td></tr>",
            row.row,
            shown.join("<hr/>"),
            escaped(&shortened(&row.label, 40)),
            escaped(&shortened(&row.predicted, 40)),
            row.value
        )
    };
    let body: String = rows.iter().map(row).collect();
    table(&[("row", true), ("text", false), ("label", false), ("predicted", false), (value, true)], &body)
}

/// Returns the beginning of a text in one line, with `...` if more follows.
pub fn shortened(text: &str, longest: usize) -> String {
    let spaced: Vec<&str> = text.split_whitespace().collect();
    let text = spaced.join(" ");
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_shortened_at_characters() {
        assert_eq!(shortened("a\n b  ä", 9), "a b ä");
        assert_eq!(shortened("äöü", 2), "äö ...");
    }
}
