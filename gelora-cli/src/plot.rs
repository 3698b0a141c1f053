//! The SVG picture of a measurement: intrinsic dimension of each state, and the rank of each layer.

use std::ops::Range;

use anyhow::{Result, anyhow, bail};
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Polygon, Rectangle, Text};
use plotters::prelude::SVGBackend;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{BLACK, Color, FontTransform, IntoFont, IntoTextStyle, RGBColor, TextStyle, WHITE};

const SIZE: (u32, u32) = (800, 500);
/// Height of the upper panel; the ranks begin below it.
const SPLIT: u32 = 305;
/// Width of the labels left of the axes. The margin beyond them holds the part of a letter above its line.
const LEFT: u32 = 54;
const MARGIN: u32 = 16;
const FONT: &str = "sans-serif";
/// Blue and orange of the palette of Okabe and Ito, distinct with any color vision.
const BLUE: RGBColor = RGBColor(0, 114, 178);
const ORANGE: RGBColor = RGBColor(230, 159, 0);
const GRAY: RGBColor = RGBColor(90, 90, 90);
const GRID: RGBColor = RGBColor(225, 225, 225);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

/// Linear axis with labels at given values.
struct Axis {
    range: Range<f64>,
    labels: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        start + (share * f64::from(end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.labels.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// Returns an SVG of 800 x 500 with the intrinsic dimension of every hidden state, its confidence band, and below it
/// the rank of every layer.
///
/// `states` are (intrinsic dimension, interval) of the L + 1 hidden states, the embeddings first. A state without a
/// dimension (constant over the data) is NaN and leaves a gap. `ranks` are those of the L layers: the bar of layer l
/// stands between the states l and l + 1, its input and its output.
///
/// # Errors
/// Returns an error if there is no layer, or if the number of states is not one more than the number of layers.
pub fn id_profile_svg(states: &[(f64, [f64; 2])], ranks: &[usize]) -> Result<String> {
    if ranks.is_empty() || states.len() != ranks.len() + 1 {
        bail!("plot: {} hidden states do not go with {} layers", states.len(), ranks.len());
    }
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(plot_error)?;
        let (upper, lower) = root.split_vertically(SPLIT);
        dimensions(&upper, states)?;
        bars(&lower, ranks)?;
        root.present().map_err(plot_error)?;
    }
    Ok(svg)
}

fn dimensions(area: &Area<'_>, states: &[(f64, [f64; 2])]) -> Result<()> {
    // An interval without a finite upper end must not compress the rest of the plot.
    let highest_id = states.iter().map(|(id, _)| *id).filter(|id| id.is_finite()).fold(0.0, f64::max);
    let highest = states.iter().map(|(_, [_, high])| *high).filter(|high| high.is_finite()).fold(highest_id, f64::max);
    let top = if highest > 0.0 { highest.min(3.0 * highest_id.max(f64::MIN_POSITIVE)) * 1.08 } else { 1.0 };
    let (mut chart, y) = frame(
        area,
        "Intrinsic dimension of the hidden states (band: confidence interval)",
        states.len() - 1,
        top,
        true,
    )?;
    labels(&mut chart, "intrinsic dimension", None, &y)?;

    for run in runs(states) {
        let clip = |value: f64| value.clamp(0.0, top);
        let point = |l: usize| (l as f64, clip(states[l].0));
        let low = run.clone().map(|l| (l as f64, clip(states[l].1[0])));
        let high = run.clone().rev().map(|l| (l as f64, clip(states[l].1[1])));
        if run.len() == 1 {
            let stroke = BLUE.mix(0.45).stroke_width(5);
            chart
                .plotting_area()
                .draw(&PathElement::new(low.chain(high).collect::<Vec<_>>(), stroke))
                .map_err(plot_error)?;
        } else {
            let band = Polygon::new(low.chain(high).collect::<Vec<_>>(), BLUE.mix(0.22));
            chart.plotting_area().draw(&band).map_err(plot_error)?;
            let line = PathElement::new(run.clone().map(point).collect::<Vec<_>>(), BLUE.stroke_width(2));
            chart.plotting_area().draw(&line).map_err(plot_error)?;
        }
        let size = if states.len() > 60 { 2 } else { 4 };
        for l in run {
            chart.plotting_area().draw(&Circle::new(point(l), size, BLUE.filled())).map_err(plot_error)?;
        }
    }
    Ok(())
}

fn bars(area: &Area<'_>, ranks: &[usize]) -> Result<()> {
    let highest = ranks.iter().copied().max().unwrap_or(0).max(1);
    let (mut chart, y) = frame(area, "LoRA rank of the layers", ranks.len(), highest as f64 * 1.28, false)?;
    labels(
        &mut chart,
        "rank",
        Some("hidden state (0 = embeddings); each layer stands between its input and its output"),
        &y,
    )?;

    let pitch = f64::from(SIZE.0 - LEFT - 2 * MARGIN) / (ranks.len() + 1) as f64;
    let (half, font_size) = if pitch < 14.0 { (0.42, 9) } else { (0.33, 13) };
    let digits = highest.to_string().len() as f64;
    let upright = digits * f64::from(font_size) * 0.6 < pitch;
    for (layer, rank) in ranks.iter().enumerate() {
        let (center, height) = (layer as f64 + 0.5, *rank as f64);
        let bar = Rectangle::new([(center - half, 0.0), (center + half, height)], ORANGE.filled());
        chart.plotting_area().draw(&bar).map_err(plot_error)?;
        let style = if upright {
            text(font_size).pos(Pos::new(HPos::Center, VPos::Bottom))
        } else {
            text(font_size).transform(FontTransform::Rotate270).pos(Pos::new(HPos::Left, VPos::Center))
        };
        let gap = highest as f64 * 0.04;
        chart.plotting_area().draw(&Text::new(rank.to_string(), (center, height + gap), style)).map_err(plot_error)?;
    }
    Ok(())
}

/// Draws the axes, the same in x for both panels. Returns the chart and the labeled values of y.
fn frame<'a, 'b>(
    area: &'a Area<'b>,
    title: &str,
    last_state: usize,
    top: f64,
    fractions: bool,
) -> Result<(Chart<'a, 'b>, Vec<f64>)> {
    let x_step = [1, 2, 5, 10, 20, 50].into_iter().find(|step| last_state / step <= 20).unwrap_or(100);
    let x: Vec<f64> = (0..=last_state).step_by(x_step).map(|l| l as f64).collect();
    let y = ticks(top, if fractions { 5.0 } else { 4.0 }, fractions);
    let chart = ChartBuilder::on(area)
        .caption(title, text(17))
        .margin_top(6)
        .margin_left(MARGIN)
        .margin_right(MARGIN)
        .margin_bottom(2)
        .set_label_area_size(plotters::chart::LabelAreaPosition::Left, LEFT)
        .set_label_area_size(plotters::chart::LabelAreaPosition::Bottom, if fractions { 24 } else { 44 })
        .build_cartesian_2d(
            Axis { range: -0.5..last_state as f64 + 0.5, labels: x },
            Axis { range: 0.0..top, labels: y.clone() },
        )
        .map_err(plot_error)?;
    Ok((chart, y))
}

fn labels(chart: &mut Chart<'_, '_>, y: &str, x: Option<&str>, y_ticks: &[f64]) -> Result<()> {
    let decimals = usize::from(y_ticks.iter().any(|tick| tick.fract() != 0.0));
    let y_label = move |value: &f64| format!("{value:.decimals$}");
    let x_label = |value: &f64| format!("{value:.0}");
    let mut mesh = chart.configure_mesh();
    mesh.y_desc(y).axis_desc_style(text(14)).label_style(text(13));
    mesh.disable_x_mesh().bold_line_style(GRID).light_line_style(WHITE).axis_style(GRAY);
    mesh.x_label_formatter(&x_label).y_label_formatter(&y_label);
    if let Some(x) = x {
        mesh.x_desc(x);
    }
    mesh.draw().map_err(plot_error)
}

/// Returns about `wanted` round values from 0 to `top`.
fn ticks(top: f64, wanted: f64, fractions: bool) -> Vec<f64> {
    let rough = top / wanted;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= rough).unwrap_or(rough);
    let step = if fractions { step } else { step.max(1.0) };
    (0..=(top / step) as usize).map(|i| i as f64 * step).collect()
}

/// Returns the longest ranges of states that have a dimension.
fn runs(states: &[(f64, [f64; 2])]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (l, (id, interval)) in states.iter().enumerate() {
        if !id.is_finite() || interval.iter().any(|end| end.is_nan()) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == l => run.end = l + 1,
            _ => runs.push(l..l + 1),
        }
    }
    runs
}

fn text(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&BLACK).into_text_style(&SIZE)
}

fn plot_error<E: std::error::Error + Send + Sync>(error: plotters::drawing::DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow!("plot: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(id: f64) -> (f64, [f64; 2]) {
        (id, [id * 0.9, id * 1.12])
    }

    #[test]
    fn states_and_ranks_are_drawn() {
        let states: Vec<_> = [9.8, 12.1, 13.0, 14.9, 14.2, 12.5, 11.0].map(around).to_vec();
        let svg = id_profile_svg(&states, &[4, 2, 3, 1, 1, 13]).unwrap();
        assert!(svg.starts_with("<svg width=\"800\" height=\"500\"") && svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg.matches("<circle").count(), 7);
        assert_eq!(svg.matches("<polygon").count(), 1);
        assert_eq!(svg.matches("fill=\"#E69F00\"").count(), 6);
        for label in ["Intrinsic dimension", "LoRA rank", "embeddings", "\n13\n"] {
            assert!(svg.contains(label), "{label}");
        }
    }

    #[test]
    fn a_state_without_a_dimension_leaves_a_gap() {
        let gap = [(f64::NAN, [f64::NAN; 2]), around(3.0), around(2.0), (f64::NAN, [0.0; 2]), around(1.0)];
        assert_eq!(runs(&gap), [1..3, 4..5]);
        let svg = id_profile_svg(&gap, &[1, 1, 1, 1]).unwrap();
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(!svg.contains("NaN"));
        assert!(id_profile_svg(&[(f64::NAN, [0.0; 2]); 3], &[1, 1]).is_ok());
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(16.2, 5.0, true), [0.0, 5.0, 10.0, 15.0]);
        assert_eq!(ticks(1.28, 3.0, false), [0.0, 1.0]);
        assert_eq!(ticks(1.0, 5.0, true).len(), 6);
    }

    #[test]
    fn states_and_layers_must_fit() {
        assert!(id_profile_svg(&[around(1.0)], &[]).is_err());
        assert!(id_profile_svg(&[around(1.0); 3], &[1]).is_err());
    }
}
