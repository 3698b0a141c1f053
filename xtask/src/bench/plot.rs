//! The picture of `bench scaling`: time and memory over size, both axes logarithmic.

use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::chart::ChartBuilder;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Text};
use plotters::prelude::SVGBackend;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{BLACK, Color, IntoFont, IntoTextStyle, RGBColor, TextStyle, WHITE};

const SIZE: (u32, u32) = (1000, 380);
/// Blue and orange of Okabe and Ito's palette, told apart with any color vision.
const BLUE: RGBColor = RGBColor(0, 114, 178);
const ORANGE: RGBColor = RGBColor(213, 94, 0);
const GREY: RGBColor = RGBColor(90, 90, 90);
const GRID: RGBColor = RGBColor(225, 225, 225);

/// One panel.
pub struct Panel {
    pub title: String,
    /// What x is, and the letter for it in the title.
    pub x: String,
    pub symbol: char,
    /// (size, milliseconds).
    pub ms: Vec<(f64, f64)>,
    /// (size, peak memory in MB).
    pub mb: Vec<(f64, f64)>,
}

/// A logarithmic axis with labels at given values.
struct Axis {
    range: Range<f64>,
    labelled: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        let share = (value / self.range.start).ln() / (self.range.end / self.range.start).ln();
        start + (share * f64::from(end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.labelled.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// An SVG of 1000 x 380 with the panels side by side.
///
/// # Errors
/// If plotters cannot draw it.
pub fn svg(panels: &[Panel]) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        for (area, panel) in root.split_evenly((1, panels.len())).iter().zip(panels) {
            draw(area, panel)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

fn draw(area: &DrawingArea<SVGBackend<'_>, Shift>, panel: &Panel) -> Result<()> {
    let all = || panel.ms.iter().chain(&panel.mb).filter(|(x, y)| *x > 0.0 && *y > 0.0);
    let span = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), v| (low.min(v), high.max(v)))
    };
    let (x_low, x_high) = span(&mut all().map(|(x, _)| *x));
    let (y_low, y_high) = span(&mut all().map(|(_, y)| *y));
    if x_high <= 0.0 {
        return Err(anyhow!("plot: {}: nothing to draw", panel.title));
    }
    let beside = (x_high / x_low).powf(0.035).max(1.04);
    // Room right of the last point for its unit.
    let x = x_low / 1.2..x_high * (x_high / x_low).powf(0.16).max(1.2);
    let y = y_low / 1.5..y_high * 1.5;
    let sizes = panel.ms.iter().map(|(x, _)| *x).collect();
    let power = |points: &[(f64, f64)]| exponent(points).map_or("?".into(), |e| format!("{e:.2}"));
    let x_is = panel.symbol;
    let caption = format!("{}: ms ~ {x_is}^{}, MB ~ {x_is}^{}", panel.title, power(&panel.ms), power(&panel.mb));
    let mut chart = ChartBuilder::on(area)
        .caption(caption, text(15, BLACK))
        .margin(10)
        .margin_right(14)
        .set_label_area_size(plotters::chart::LabelAreaPosition::Left, 52)
        .set_label_area_size(plotters::chart::LabelAreaPosition::Bottom, 44)
        .build_cartesian_2d(Axis { range: x, labelled: sizes }, Axis { labelled: ticks(&y), range: y })
        .map_err(failed)?;
    let (x_label, y_label) = (|value: &f64| short(*value), |value: &f64| short(*value));
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(&panel.x).y_desc("ms, MB").axis_desc_style(text(13, BLACK)).label_style(text(12, BLACK));
    mesh.bold_line_style(GRID).light_line_style(WHITE).axis_style(GREY);
    mesh.x_label_formatter(&x_label).y_label_formatter(&y_label);
    mesh.draw().map_err(failed)?;
    for (points, color, unit) in [(&panel.mb, ORANGE, "MB"), (&panel.ms, BLUE, "ms")] {
        let points: Vec<_> = points.iter().copied().filter(|(x, y)| *x > 0.0 && *y > 0.0).collect();
        let plane = chart.plotting_area();
        plane.draw(&PathElement::new(points.clone(), color.stroke_width(2))).map_err(failed)?;
        for point in &points {
            plane.draw(&Circle::new(*point, 4, color.filled())).map_err(failed)?;
        }
        if let Some((x, y)) = points.last() {
            let style = text(14, color).pos(Pos::new(HPos::Left, VPos::Center));
            plane.draw(&Text::new(unit, (x * beside, *y), style)).map_err(failed)?;
        }
    }
    Ok(())
}

/// 1, 2 and 5 times the powers of ten in the range; the powers alone if these are many.
fn ticks(range: &Range<f64>) -> Vec<f64> {
    let (low, high) = (range.start.log10().floor() as i32, range.end.log10().ceil() as i32);
    let multiples: &[f64] = if high - low > 4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let all = (low..=high).flat_map(|e| multiples.iter().map(move |m| m * 10f64.powi(e)));
    all.filter(|v| range.contains(v)).collect()
}

/// 0.5, 20, 50k.
fn short(value: f64) -> String {
    let round = |v: f64| format!("{}", (v * 1000.0).round() / 1000.0);
    if value >= 1000.0 { format!("{}k", round(value / 1000.0)) } else { round(value) }
}

fn text(size: u32, color: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&color).into_text_style(&SIZE)
}

fn failed<E: std::error::Error + Send + Sync>(error: plotters::drawing::DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow!("plot: {error}")
}

/// The exponent of y ~ x^exponent in the upper half of the points, but three at least: the slope of ln y on ln x.
fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let upper = &points[points.len().saturating_sub(points.len().div_ceil(2).max(3))..];
    let n = upper.len() as f64;
    let logs: Vec<(f64, f64)> = upper.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let (mean_x, mean_y) = logs.iter().fold((0.0, 0.0), |(sx, sy), (x, y)| (sx + x / n, sy + y / n));
    let covariance: f64 = logs.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let variance: f64 = logs.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    Some(covariance / variance).filter(|slope| slope.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponent_is_that_of_the_upper_points() {
        let at = |f: fn(f64) -> f64| [1.0, 2.0, 4.0, 8.0, 16.0, 32.0].map(|x: f64| (x, f(x)));
        let square = exponent(&at(|x| 3.0 * x * x)).unwrap();
        assert!((square - 2.0).abs() < 1e-12, "{square}");
        // A fixed cost below, linear above.
        let knee = exponent(&at(|x| x.max(8.0))).unwrap();
        assert!((knee - 1.0).abs() < 1e-12, "{knee}");
        assert!((exponent(&[(1.0, 5.0), (2.0, 5.0), (4.0, 5.0)]).unwrap()).abs() < 1e-12);
        assert_eq!((exponent(&[]), exponent(&[(1.0, 1.0)])), (None, None));
    }

    #[test]
    fn panels_are_drawn_with_their_exponents() {
        let sizes = [32.0, 64.0, 128.0, 256.0];
        let panel = || Panel {
            title: "Step".into(),
            x: "tokens".into(),
            symbol: 'T',
            ms: sizes.map(|x| (x, 0.01 * x * x)).to_vec(),
            mb: sizes.map(|x| (x, 50.0 + x)).to_vec(),
        };
        let svg = svg(&[panel(), panel()]).unwrap();
        assert!(svg.starts_with("<svg width=\"1000\"") && svg.contains("ms ~ T^2.00") && !svg.contains("NaN"));
        assert_eq!(svg.matches("<circle").count(), 16);
        assert!(super::svg(&[Panel { ms: Vec::new(), mb: Vec::new(), ..panel() }]).is_err());
    }

    #[test]
    fn axes_have_round_labels() {
        assert_eq!(ticks(&(0.7..30.0)), [1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(ticks(&(0.5..2e5)).len(), 6);
        assert_eq!([0.5, 20.0, 50_000.0, 1500.0].map(short), ["0.5", "20", "50k", "1.5k"]);
    }
}
