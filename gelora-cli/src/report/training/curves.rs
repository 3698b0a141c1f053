//! Curves over the steps of a training.

use super::super::svg::{Scale, Svg};
use crate::history::{History, Step};

const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 300.0;
/// Number of parts that a long curve is drawn in. Of each, the smallest and the largest value are drawn.
const PARTS: usize = 500;

/// A point of a curve: step and value.
type Point = [f64; 2];

/// Draws the loss of every step, its moving average, and the held-out loss where it was evaluated. Returns the picture
/// and the number of steps of the average.
pub fn loss(history: &History) -> (String, usize) {
    let raw = points(&history.steps, |step| step.loss);
    let window = (raw.len() / 25).max(1);
    let smooth = smoothed(&raw, window);
    let held_out = metric(history, "loss");
    let mut svg = Svg::new(WIDTH, HEIGHT, "wide", "Loss over the steps");
    let (x, y) = scales([&raw, &held_out], [52.0, WIDTH - 14.0], [HEIGHT - 40.0, 12.0]);
    axes(&mut svg, [x, y], [46.0, WIDTH - 14.0], HEIGHT - 22.0, [8, 5]);
    svg.path("raw", pixels(&thinned(&raw), x, y));
    svg.path("line", pixels(&thinned(&smooth), x, y));
    for [step, value] in held_out {
        svg.dot("odot", [x.at(step), y.at(value)], &format!("held-out loss {value:.4} after step {step}"));
    }
    svg.text("", [0.5 * WIDTH, HEIGHT - 4.0], "middle", "step");
    (svg.finish(), window)
}

/// Draws a value of every step as a small picture.
pub fn of_steps(title: &str, steps: &[Step], value: impl Fn(&Step) -> Option<f64>) -> String {
    small(title, &points(steps, value), false)
}

/// Draws a metric of every evaluation as a small picture.
pub fn of_evaluations(name: &str, history: &History) -> String {
    small(&format!("{name} over the steps"), &metric(history, name), true)
}

fn small(title: &str, curve: &[Point], dots: bool) -> String {
    let mut svg = Svg::new(300.0, 170.0, "", title);
    let (x, y) = scales([curve, &[]], [52.0, 286.0], [140.0, 10.0]);
    axes(&mut svg, [x, y], [46.0, 294.0], 160.0, [3, 4]);
    svg.path("line", pixels(&thinned(curve), x, y));
    for &[step, value] in curve.iter().filter(|_| dots) {
        svg.dot("dot", [x.at(step), y.at(value)], &format!("{value:.4} after step {step}"));
    }
    svg.finish()
}

fn points(steps: &[Step], value: impl Fn(&Step) -> Option<f64>) -> Vec<Point> {
    steps.iter().filter_map(|step| Some([step.step as f64, value(step)?])).collect()
}

fn metric(history: &History, name: &str) -> Vec<Point> {
    let value = |metrics: &[(String, Option<f64>)]| metrics.iter().find(|(other, _)| other == name)?.1;
    history.evaluations.iter().filter_map(|e| Some([e.step as f64, value(&e.metrics)?])).collect()
}

/// Returns the scales of steps and values for some curves.
fn scales(curves: [&[Point]; 2], x: [f64; 2], y: [f64; 2]) -> (Scale, Scale) {
    let range = |axis: usize| {
        let values = || curves.iter().flat_map(|curve| curve.iter().map(|point| point[axis]));
        [values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max)]
    };
    let ([first, last], [low, high]) = (range(0), range(1));
    if low > high {
        return (Scale::new(0.0, 1.0, x), Scale::new(0.0, 1.0, y));
    }
    // A constant has its line in the middle, and no curve touches the frame.
    let margin = if high > low { 0.05 * (high - low) } else { 0.1 * high.abs().max(1e-6) };
    // A margin does not cross 0, where most of these values end.
    let low = if low >= 0.0 { (low - margin).max(0.0) } else { low - margin };
    (Scale::new(first.min(last - 1.0), last, x), Scale::new(low, high + margin, y))
}

/// Draws the grid of values with its labels, and the labels of steps at height `below`.
fn axes(svg: &mut Svg, [x, y]: [Scale; 2], [left, right]: [f64; 2], below: f64, [steps, values]: [usize; 2]) {
    for tick in y.ticks(values) {
        svg.segment("grid", [left, y.at(tick)], [right, y.at(tick)]);
        svg.text("", [left - 6.0, y.at(tick) + 4.0], "end", &number(tick));
    }
    for tick in x.ticks(steps).into_iter().filter(|tick| tick.fract() == 0.0) {
        svg.text("", [x.at(tick), below], "middle", &number(tick));
    }
}

fn pixels(curve: &[Point], x: Scale, y: Scale) -> Vec<Point> {
    curve.iter().map(|&[step, value]| [x.at(step), y.at(value)]).collect()
}

/// Returns the exponential moving average with the weight 1 / window of the latest value. It is divided by the sum of
/// the weights, so that it begins at the first value.
fn smoothed(curve: &[Point], window: usize) -> Vec<Point> {
    let keep = 1.0 - 1.0 / window as f64;
    let (mut sum, mut weight) = (0.0, 0.0);
    let average = |&[step, value]: &Point| {
        sum = keep * sum + value;
        weight = keep * weight + 1.0;
        [step, sum / weight]
    };
    curve.iter().map(average).collect()
}

/// Returns a curve of at most 2 `PARTS` points: of each part the smallest and the largest value, in their order.
fn thinned(curve: &[Point]) -> Vec<Point> {
    if curve.len() <= 2 * PARTS {
        return curve.to_vec();
    }
    let mut kept = Vec::with_capacity(2 * PARTS);
    for part in curve.chunks(curve.len().div_ceil(PARTS)) {
        let index_of = |better: fn(f64, f64) -> bool| {
            (1..part.len()).fold(0, |best, i| if better(part[i][1], part[best][1]) { i } else { best })
        };
        let (low, high) = (index_of(|a, b| a < b), index_of(|a, b| a > b));
        kept.push(part[low.min(high)]);
        if low != high {
            kept.push(part[low.max(high)]);
        }
    }
    kept
}

/// Returns a number on an axis: 0.25, 1.5e-4, 6.9k.
pub fn number(value: f64) -> String {
    let trimmed = |value: f64, decimals: usize| {
        let text = format!("{value:.decimals$}");
        match text.contains('.') {
            true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            false => text,
        }
    };
    match value.abs() {
        0.0 => "0".into(),
        size if !(1e-3..1e6).contains(&size) => {
            let text = format!("{value:.1e}");
            text.replace(".0e", "e")
        }
        size if size >= 1e4 => format!("{}k", trimmed(value / 1e3, 1)),
        size if size >= 10.0 => trimmed(value, 1),
        _ => trimmed(value, 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_begin_at_the_first_value_and_follow_the_rest() {
        let curve = [[1.0, 4.0], [2.0, 1.0], [3.0, 1.0]];
        // Weights 1; 1/2 and 1; 1/4, 1/2 and 1.
        assert_eq!(smoothed(&curve, 2), [[1.0, 4.0], [2.0, 2.0], [3.0, (1.0 + 0.5 + 1.0) / 1.75]]);
        assert_eq!(smoothed(&curve, 1), curve);
    }

    #[test]
    fn long_curves_keep_their_extremes() {
        let curve: Vec<Point> =
            (0..100_000).map(|i| [i as f64, if i == 77_777 { 9.0 } else { (i % 7) as f64 }]).collect();
        let thin = thinned(&curve);
        assert!(thin.len() <= 2 * PARTS, "{}", thin.len());
        assert!(thin.contains(&[77_777.0, 9.0]));
        assert!(thin.is_sorted_by(|a, b| a[0] < b[0]));
        assert_eq!(thinned(&curve[..1000]), curve[..1000]);
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.25, 1.0, 0.0005, 1.5e-4, 12.5, 200.0, 12_345.0, 2e6].map(number);
        assert_eq!(shown, ["0", "0.25", "1", "5e-4", "1.5e-4", "12.5", "200", "12.3k", "2e6"]);
    }

    #[test]
    fn curves_without_values_and_of_one_value_are_drawn() {
        for history in [History::default(), History { steps: vec![step(1, 0.5)], ..History::default() }] {
            let (svg, window) = loss(&history);
            assert!(window == 1 && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    fn step(step: usize, loss: f64) -> Step {
        Step { step, loss: Some(loss), lr: 1e-3, grad_norm: Some(1.0), ms: 1.0, tokens_per_s: Some(10.0) }
    }
}
