//! Writes SVG by hand. Its colors are those of the page, so that charts follow light and dark mode; the colors of a
//! plotting library cannot.

use std::fmt::Write;

/// Escapes a text for use between tags and in attributes.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Linear map from values to pixels.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    values: [f64; 2],
    pixels: [f64; 2],
}

impl Scale {
    /// Returns a scale from `low` to `high`. An empty range is widened to 1. Values outside are clipped.
    pub fn new(low: f64, high: f64, pixels: [f64; 2]) -> Self {
        let high = if high > low { high } else { low + 1.0 };
        Self { values: [low, high], pixels }
    }

    /// Returns the pixel of a value.
    pub fn at(&self, value: f64) -> f64 {
        let [low, high] = self.values;
        let share = (value.clamp(low, high) - low) / (high - low);
        self.pixels[0] + share * (self.pixels[1] - self.pixels[0])
    }

    /// Returns about `wanted` round values inside the range.
    pub fn ticks(&self, wanted: usize) -> Vec<f64> {
        let [low, high] = self.values;
        let rough = (high - low) / wanted.max(1) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough * 0.999).unwrap_or(rough);
        let first = (low / step).ceil() as i64;
        let last = (high / step + 1e-9).floor() as i64;
        (first..=last).map(|i| i as f64 * step).collect()
    }
}

/// A picture under construction.
pub struct Svg {
    body: String,
    size: [f64; 2],
    title: String,
    class: &'static str,
}

impl Svg {
    /// Returns an empty picture. Screen readers read the title.
    pub fn new(width: f64, height: f64, class: &'static str, title: &str) -> Self {
        Self { body: String::new(), size: [width, height], title: escaped(title), class }
    }

    /// Draws a straight line.
    pub fn segment(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
        let _ = write!(self.body, r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#);
    }

    /// Draws a line through points, or a filled area if the style of the class fills it.
    pub fn path(&mut self, class: &str, points: impl IntoIterator<Item = [f64; 2]>) {
        let mut d = String::new();
        for [x, y] in points {
            let _ = write!(d, "{}{x:.1} {y:.1}", if d.is_empty() { "M" } else { "L" });
        }
        let _ = write!(self.body, r#"<path class="{class}" d="{d}"/>"#);
    }

    /// Draws a rectangle with a tooltip.
    pub fn bar(&mut self, class: &str, [x, y]: [f64; 2], [w, h]: [f64; 2], tooltip: &str) {
        let tooltip = escaped(tooltip);
        let (w, h) = (w.max(0.5), h.max(0.0));
        let rect = format!(r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}">"#);
        let _ = write!(self.body, "{rect}<title>{tooltip}</title></rect>");
    }

    /// Draws a dot with a tooltip.
    pub fn dot(&mut self, class: &str, [x, y]: [f64; 2], tooltip: &str) {
        let tooltip = escaped(tooltip);
        let _ = write!(
            self.body,
            r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="3.5"><title>{tooltip}</title></circle>"#
        );
    }

    /// Writes a text; `anchor` is start, middle or end.
    pub fn text(&mut self, class: &str, [x, y]: [f64; 2], anchor: &str, text: &str) {
        let text = escaped(text);
        let _ =
            write!(self.body, r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#);
    }

    /// Returns the SVG element.
    pub fn finish(self) -> String {
        let Self { body, size: [width, height], title, class } = self;
        let open = format!(r#"<svg class="{class}" role="img" viewBox="0 0 {width} {height}">"#);
        format!("{open}<title>{title}</title>{body}</svg>")
    }
}

/// Returns the shortest label of a number on an axis: at most two decimals.
pub fn label(value: f64) -> String {
    let rounded = (value * 100.0).round() / 100.0;
    format!("{}", if rounded == 0.0 { 0.0 } else { rounded })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_map_and_have_round_ticks() {
        let scale = Scale::new(0.0, 43.0, [100.0, 0.0]);
        assert_eq!((scale.at(0.0), scale.at(43.0), scale.at(99.0), scale.at(-5.0)), (100.0, 0.0, 0.0, 100.0));
        assert_eq!(scale.ticks(4), [0.0, 20.0, 40.0]);
        assert_eq!(Scale::new(-3.0, 1.0, [0.0, 1.0]).ticks(4), [-3.0, -2.0, -1.0, 0.0, 1.0]);
        assert!(Scale::new(2.0, 2.0, [0.0, 1.0]).at(2.0).is_finite());
        assert_eq!([label(-0.0001), label(2.5), label(40.0)], ["0", "2.5", "40"]);
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escaped(r#"<a href="x">&"#), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
