//! Charts of the report.

use gelora_id::scale::AtScale;

use super::svg::{Scale, Svg, label};
use super::text;
use gelora_model::Granularity;
use gelora_model::measure::{Layer, Ranks, State};

const WIDTH: f64 = 880.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 14.0;

/// Maximum number of labels on the axis of layers.
const LABELS: usize = 16;

/// Draws the dimension of every state with its interval, and below it the rank of every step, between the two states
/// that the step joins.
pub fn profile(ranks: &Ranks) -> String {
    let (states, layers) = (&ranks.states, &ranks.layers);
    let mut svg =
        Svg::new(WIDTH, 440.0, "wide", "Intrinsic dimension of every hidden state, and the rank of every layer");
    let x = Scale::new(0.0, layers.len() as f64, [LEFT + 12.0, WIDTH - RIGHT]);
    let top = states.iter().map(|s| s.estimate.interval[1]).filter(|v| v.is_finite()).fold(1.0, f64::max) * 1.05;
    let y = Scale::new(0.0, top, [240.0, 28.0]);
    svg.text("strong", [0.0, 14.0], "start", "Intrinsic dimension (band: confidence interval)");
    axis(&mut svg, y, [LEFT, WIDTH - RIGHT]);
    // Upper panel: the band of the intervals, the line of dimensions, and a dot per state.
    let known: Vec<(usize, &State)> = states.iter().enumerate().filter(|(_, s)| !s.is_constant()).collect();
    let edge = |end: usize| {
        move |(s, state): &(usize, &State)| {
            [x.at(*s as f64), y.at(finite(state.estimate.interval[end], state.estimate.id))]
        }
    };
    svg.path("band", known.iter().map(edge(0)).chain(known.iter().rev().map(edge(1))).collect::<Vec<_>>());
    svg.path("line", known.iter().map(|(s, state)| [x.at(*s as f64), y.at(state.estimate.id)]));
    for (s, state) in &known {
        let e = &state.estimate;
        let tooltip = format!("{}: {:.2} ({:.2} to {:.2})", state.name, e.id, e.interval[0], e.interval[1]);
        svg.dot("dot", [x.at(*s as f64), y.at(e.id)], &tooltip);
    }
    // Lower panel: a bar per layer between its two states.
    let max_rank = layers.iter().map(Layer::mean_rank).fold(0.0, f64::max).max(1.0);
    let y = Scale::new(0.0, max_rank, [404.0, 290.0]);
    svg.text("strong", [0.0, 274.0], "start", "Rank");
    axis(&mut svg, y, [LEFT, WIDTH - RIGHT]);
    let every = layers.len().div_ceil(LABELS);
    for (l, layer) in layers.iter().enumerate() {
        let (from, to) = (x.at(l as f64), x.at(l as f64 + 1.0));
        let width = (0.7 * (to - from)).min(70.0);
        let center = 0.5 * (from + to);
        let rank = layer.mean_rank();
        let tooltip = match layer.mean_rank {
            Some(mean) => format!("{}: mean rank {}", layer.name(), text::mean(mean)),
            None => format!("{}: rank {}", layer.name(), layer.rank),
        };
        svg.bar("bar", [center - 0.5 * width, y.at(rank)], [width, 404.0 - y.at(rank)], &tooltip);
        if l % every == 0 {
            let short = match layer.part.as_deref() {
                None => layer.layer.to_string(),
                Some(part) => format!("{}{}", layer.layer, &part[..1]),
            };
            svg.text("", [center, 420.0], "middle", &short);
        }
    }
    let unit = if ranks.granularity == Granularity::Block { "layer" } else { "layer and half (a: attention, m: MLP)" };
    svg.text("", [0.5 * (LEFT + WIDTH), 436.0], "middle", unit);
    svg.finish()
}

/// Draws the growth of every step with its interval around zero.
pub fn growth(layers: &[Layer]) -> String {
    let (row, first) = (24.0, 34.0);
    let height = first + row * layers.len() as f64 + 12.0;
    let mut svg = Svg::new(WIDTH, height, "wide", "Growth of the dimension in every layer, with its interval");
    let ends = || layers.iter().flat_map(|l| [l.interval[0], l.interval[1], 0.0]).filter(|v| v.is_finite());
    let x = Scale::new(ends().fold(0.0, f64::min), ends().fold(0.0, f64::max), [150.0, WIDTH - 120.0]);
    for tick in x.ticks(7) {
        svg.segment("grid", [x.at(tick), 20.0], [x.at(tick), height - 8.0]);
        svg.text("", [x.at(tick), 14.0], "middle", &label(tick));
    }
    svg.segment("zero", [x.at(0.0), 20.0], [x.at(0.0), height - 8.0]);
    for (l, layer) in layers.iter().enumerate() {
        let y = first + row * l as f64 + 4.0;
        svg.text("strong", [140.0, y + 4.0], "end", &layer.name());
        let [low, high] = layer.interval;
        svg.path("line", [[x.at(low), y], [x.at(high), y]]);
        let tooltip = format!("{:+.2} ({low:+.2} to {high:+.2})", layer.delta);
        svg.dot("dot", [x.at(layer.delta), y], &tooltip);
        let noise = low <= 0.0 && high >= 0.0;
        svg.text(
            "",
            [WIDTH - 112.0, y + 4.0],
            "start",
            if noise {
                "within the noise"
            } else if low > 0.0 {
                "grows"
            } else {
                "falls"
            },
        );
    }
    svg.finish()
}

/// Draws the two curves of a state against scale: fewer points, or more distant neighbors, to the right.
pub fn scales(state: &State, top: f64) -> String {
    let mut svg = Svg::new(300.0, 170.0, "", &format!("Dimension of {} against scale", state.name));
    let y = Scale::new(0.0, top, [140.0, 10.0]);
    axis(&mut svg, y, [34.0, 294.0]);
    let longest = state.decimation.len().max(state.gride.len()).max(2);
    let x = Scale::new(0.0, (longest - 1) as f64, [46.0, 286.0]);
    let line = |curve: &[AtScale]| -> Vec<[f64; 2]> {
        curve.iter().enumerate().map(|(i, at)| [x.at(i as f64), y.at(at.id)]).collect()
    };
    let band = |end: usize| {
        let edge = move |(i, at): (usize, &AtScale)| [x.at(i as f64), y.at(finite(at.interval[end], at.id))];
        state.decimation.iter().enumerate().map(edge).collect::<Vec<_>>()
    };
    if let Some(plateau) = &state.plateau {
        let inside = |at: &AtScale| plateau.scales[1] <= at.scale && at.scale <= plateau.scales[0];
        let first = state.decimation.iter().position(inside).unwrap_or(0);
        let last = state.decimation.iter().rposition(inside).unwrap_or(first);
        svg.segment("flat", [x.at(first as f64), 137.0], [x.at(last as f64), 137.0]);
    }
    svg.path("band", band(0).into_iter().chain(band(1).into_iter().rev()));
    svg.path("other", line(&state.gride));
    svg.path("line", line(&state.decimation));
    for (i, at) in state.decimation.iter().enumerate() {
        svg.dot("dot", [x.at(i as f64), y.at(at.id)], &format!("{:.2} from {} points", at.id, at.scale));
        svg.text("", [x.at(i as f64), 156.0], "middle", &short(at.scale));
    }
    for (i, at) in state.gride.iter().enumerate() {
        let tooltip = format!("{:.2} from neighbors {} and {}", at.id, at.scale / 2, at.scale);
        svg.dot("odot", [x.at(i as f64), y.at(at.id)], &tooltip);
    }
    svg.finish()
}

/// Returns a short form of a number: 6920 as 6.9k.
fn short(n: usize) -> String {
    if n < 1000 { n.to_string() } else { format!("{}k", (n as f64 / 100.0).round() / 10.0) }
}

/// Draws how often each rank occurred, as bars from `low` to `high`, and marks the rank of the full measurement.
pub fn histogram(ranks: &[usize], given: usize, [low, high]: [usize; 2]) -> String {
    let bins = (high - low + 1).min(24);
    let bin_of = |rank: usize| (rank - low) * bins / (high - low + 1);
    let mut counts = vec![0usize; bins];
    ranks.iter().for_each(|rank| counts[bin_of(*rank)] += 1);
    let step = 200.0 / bins as f64;
    let mut svg = Svg::new(200.0, 34.0, "", &format!("ranks of {} resamples", ranks.len()));
    let y = Scale::new(0.0, ranks.len().max(1) as f64, [30.0, 2.0]);
    for (bin, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let tooltip = format!("{count} of {}", ranks.len());
        let top = y.at(*count as f64);
        svg.bar("bar", [bin as f64 * step + 1.0, top], [(step - 2.0).min(26.0), 30.0 - top], &tooltip);
    }
    svg.segment("zero", [0.0, 30.5], [200.0, 30.5]);
    let mark = bin_of(given.clamp(low, high)) as f64 * step + 1.0;
    svg.segment("line", [mark, 33.0], [mark + (step - 2.0).min(26.0), 33.0]);
    svg.finish()
}

/// Draws the lines and labels of a vertical axis.
fn axis(svg: &mut Svg, y: Scale, [from, to]: [f64; 2]) {
    for tick in y.ticks(4) {
        svg.segment("grid", [from, y.at(tick)], [to, y.at(tick)]);
        svg.text("", [from - 6.0, y.at(tick) + 4.0], "end", &label(tick));
    }
}

/// Returns the end of an interval, or the estimate if the end is not finite.
fn finite(end: f64, id: f64) -> f64 {
    if end.is_finite() { end } else { id }
}
