//! report.html of `gelora compare`: differences, scores over learning rates, ranks of every arm.

use std::path::Path;

use super::svg::{Scale, Svg, escaped, label};
use super::{facts_list, figure, head, section, table};
use crate::compare::mechanism::{COLUMNS, Correlation, NEEDS};
use crate::compare::table::{ArmRow, Comparison, Verdict};
use crate::ui::count;

const WIDTH: f64 = 880.0;

/// The page.
pub fn html(comparison: &Comparison, model: &Path, data: &Path) -> String {
    let reference = &comparison.reference;
    let parts = [
        head(&format!("Arms compared on {}", data.display())),
        "<body><main>".into(),
        headline(comparison),
        remarks(&comparison.remarks),
        section("Table", "Means over the seeds. Differences are paired by seed.", &rows(comparison)),
        section(
            "Differences",
            &format!(
                "Score of each arm minus that of {reference}, with its 95 % interval. Shaded: what is too small to be \
                 seen \
                 with these seeds (two-sided 5 %, power 80 %)."
            ),
            &figure(&forest(comparison)),
        ),
        curves(comparison),
        section("Ranks", "Mean rank of each step through the model, from the input up.", &ranks(comparison)),
        mechanism(comparison),
        facts(comparison, model, data),
        "</main></body></html>\n".into(),
    ];
    parts.concat()
}

fn headline(comparison: &Comparison) -> String {
    let of = |verdict: Verdict| {
        let is = |row: &&ArmRow| row.difference.as_ref().is_some_and(|d| d.verdict == verdict);
        let names: Vec<&str> = comparison.arms.iter().filter(is).map(|row| row.arm.as_str()).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let (reference, metric) = (escaped(&comparison.reference), escaped(&comparison.metric));
    format!(
        "<header><h1>{} arms against {reference}</h1><p class=\"lead\">Scored by {metric}. Better: {}. Worse: {}. \
         No difference seen: {}.</p></header>\n",
        comparison.arms.len().saturating_sub(1),
        of(Verdict::Better),
        of(Verdict::Worse),
        of(Verdict::NoDifference)
    )
}

fn remarks(remarks: &[String]) -> String {
    if remarks.is_empty() {
        return String::new();
    }
    let items: String = remarks.iter().map(|remark| format!("<li>{}</li>", escaped(remark))).collect();
    format!("<ul class=\"warnings\" aria-label=\"Remarks\">{items}</ul>\n")
}

fn rows(comparison: &Comparison) -> String {
    let number = |value: Option<f64>, digits: usize| value.map_or(String::new(), |value| format!("{value:.digits$}"));
    let row = |row: &ArmRow| {
        let d = row.difference.as_ref();
        let cells = [
            row.parameters.map_or(String::new(), |mean| count(mean.round() as u64)),
            row.lr.map_or(String::new(), |lr| format!("{lr:e}")),
            row.scores.len().to_string(),
            number(row.mean, 4),
            d.map_or(String::new(), |d| format!("{:+.4}", d.mean)),
            d.map_or(String::new(), |d| format!("{:+.4} to {:+.4}", d.interval[0], d.interval[1])),
            number(d.map(|d| d.p_holm), 3),
            number(d.map(|d| d.least_detectable), 4),
            number(row.train_seconds, 1),
            number(row.measure_seconds, 1),
        ];
        let cells: String = cells.iter().map(|cell| format!("<td class=\"n\">{cell}</td>")).collect();
        let is_reference = row.arm == comparison.reference;
        let class = if is_reference { " class=\"chosen\"" } else { "" };
        let verdict = if is_reference { "reference" } else { d.map_or("", |d| d.verdict.words()) };
        format!(
            "<tr{class}><td>{}</td>{cells}<td>{verdict}</td><td class=\"wrap\">{}</td></tr>",
            escaped(&row.arm),
            escaped(&row.what)
        )
    };
    let rows: String = comparison.arms.iter().map(row).collect();
    let header = [
        ("arm", false),
        ("parameters", true),
        ("rate", true),
        ("seeds", true),
        (comparison.metric.as_str(), true),
        ("difference", true),
        ("95 % interval", true),
        ("p (Holm)", true),
        ("least seen", true),
        ("train s", true),
        ("measure s", true),
        ("", false),
        ("what it is", false),
    ];
    table(&header, &rows)
}

/// The difference of every arm with its interval around zero, over what could not have been seen.
fn forest(comparison: &Comparison) -> String {
    let compared: Vec<(&ArmRow, _)> =
        comparison.arms.iter().filter_map(|row| Some((row, row.difference.as_ref()?))).collect();
    let (row_height, first) = (28.0, 34.0);
    let height = first + row_height * compared.len().max(1) as f64 + 8.0;
    let mut svg = Svg::new(WIDTH, height, "wide", "Difference of every arm to the reference, with its interval");
    let ends =
        || compared.iter().flat_map(|(_, d)| [d.interval[0], d.interval[1], d.least_detectable, -d.least_detectable]);
    let x = Scale::new(ends().fold(0.0, f64::min), ends().fold(1e-9, f64::max), [150.0, WIDTH - 150.0]);
    for tick in x.ticks(6) {
        svg.segment("grid", [x.at(tick), 20.0], [x.at(tick), height - 6.0]);
        svg.text("", [x.at(tick), 14.0], "middle", &fine_label(tick));
    }
    for (index, (row, d)) in compared.iter().enumerate() {
        let y = first + row_height * index as f64 + 6.0;
        let least = d.least_detectable;
        let says = format!("differences below {least:.4} cannot be seen");
        svg.bar("band", [x.at(-least), y - 10.0], [x.at(least) - x.at(-least), 20.0], &says);
        svg.text("strong", [140.0, y + 4.0], "end", &row.arm);
        svg.path("line", [[x.at(d.interval[0]), y], [x.at(d.interval[1]), y]]);
        let says = format!("{:+.4} ({:+.4} to {:+.4}), {} seeds", d.mean, d.interval[0], d.interval[1], d.seeds);
        svg.dot("dot", [x.at(d.mean), y], &says);
        svg.text("", [WIDTH - 142.0, y + 4.0], "start", d.verdict.words());
    }
    svg.segment("zero", [x.at(0.0), 20.0], [x.at(0.0), height - 6.0]);
    svg.finish()
}

/// A picture for every arm: its mean score at every rate, and the reference's.
fn curves(comparison: &Comparison) -> String {
    let of = |row: &ArmRow| -> Vec<(f64, f64)> {
        row.curve.iter().filter_map(|point| Some((point.lr.log10(), point.mean?))).collect()
    };
    let all: Vec<(f64, f64)> = comparison.arms.iter().flat_map(of).collect();
    if all.is_empty() {
        return String::new();
    }
    let range = |values: fn(&(f64, f64)) -> f64| {
        let fold = |start: f64, of: fn(f64, f64) -> f64| all.iter().map(values).fold(start, of);
        [fold(f64::INFINITY, f64::min), fold(f64::NEG_INFINITY, f64::max)]
    };
    let ([left, right], [low, high]) = (range(|p| p.0), range(|p| p.1));
    let reference: Vec<(f64, f64)> =
        comparison.arms.iter().filter(|row| row.arm == comparison.reference).flat_map(of).collect();
    let one = |row: &ArmRow| {
        let mut svg = Svg::new(300.0, 170.0, "", &format!("Score of {} over the learning rate", row.arm));
        let (x, y) = (Scale::new(left, right, [52.0, 286.0]), Scale::new(low, high, [140.0, 10.0]));
        for tick in y.ticks(4) {
            svg.segment("grid", [44.0, y.at(tick)], [294.0, y.at(tick)]);
            svg.text("", [40.0, y.at(tick) + 4.0], "end", &fine_label(tick));
        }
        for tick in x.ticks(3).into_iter().filter(|tick| tick.fract() == 0.0) {
            svg.text("", [x.at(tick), 160.0], "middle", &format!("{:e}", 10f64.powi(tick as i32)));
        }
        let line = |points: &[(f64, f64)]| points.iter().map(|p| [x.at(p.0), y.at(p.1)]).collect::<Vec<_>>();
        if row.arm != comparison.reference {
            svg.path("other", line(&reference));
        }
        svg.path("line", line(&of(row)));
        for point in &row.curve {
            let Some(mean) = point.mean else { continue };
            let chosen = if row.lr == Some(point.lr) { ", chosen" } else { "" };
            let class = if row.lr == Some(point.lr) { "odot" } else { "dot" };
            let says = format!("{mean:.4} at {:e} ({} seeds{chosen})", point.lr, point.seeds);
            svg.dot(class, [x.at(point.lr.log10()), y.at(mean)], &says);
        }
        small(&row.arm, &svg.finish(), &row.lr.map_or("no rate yet".into(), |lr| format!("chosen: {lr:e}")))
    };
    let all: String = comparison.arms.iter().map(one).collect();
    let lead = format!(
        "Mean {} on the parts cut from train. Orange, dashed: the reference. The orange dot is the rate that \
         was chosen.",
        comparison.metric
    );
    section("Score over learning rate", &lead, &format!("<div class=\"small\">{all}</div>"))
}

/// A picture for every arm with adapters: the mean rank of every step.
fn ranks(comparison: &Comparison) -> String {
    let means = |row: &ArmRow| -> Vec<f64> {
        let steps = row.ranks.values().map(Vec::len).max().unwrap_or(0);
        let mean = |step: usize| {
            let ranks = || row.ranks.values().filter_map(|ranks| ranks.get(step));
            ranks().sum::<f64>() / ranks().count().max(1) as f64
        };
        (0..steps).map(mean).collect()
    };
    let most = comparison.arms.iter().flat_map(means).fold(1.0, f64::max);
    let one = |row: &ArmRow| {
        let means = means(row);
        if means.iter().all(|mean| *mean == 0.0) {
            return String::new();
        }
        let mut svg = Svg::new(300.0, 120.0, "", &format!("Ranks of {}", row.arm));
        let y = Scale::new(0.0, most, [100.0, 10.0]);
        for tick in y.ticks(3) {
            svg.segment("grid", [34.0, y.at(tick)], [294.0, y.at(tick)]);
            svg.text("", [28.0, y.at(tick) + 4.0], "end", &label(tick));
        }
        let width = 252.0 / means.len() as f64;
        for (step, mean) in means.iter().enumerate() {
            let left = 38.0 + width * step as f64;
            let says = format!("step {step}: {mean:.1}");
            svg.bar("bar", [left, y.at(*mean)], [0.7 * width, 100.0 - y.at(*mean)], &says);
        }
        svg.text("", [166.0, 116.0], "middle", "steps");
        let differ = row.ranks.values().any(|ranks| Some(ranks) != row.ranks.values().next());
        small(&row.arm, &svg.finish(), if differ { "they differ from seed to seed" } else { "the same for every seed" })
    };
    format!("<div class=\"small\">{}</div>", comparison.arms.iter().map(one).collect::<String>())
}

/// The effective rank of every trained update over the needs that were known before, and their correlations.
fn mechanism(comparison: &Comparison) -> String {
    let updates = &comparison.updates;
    let Some(first) = updates.first() else { return String::new() };
    let modules = || updates.iter().flat_map(|updates| &updates.modules);
    let picture = |need: usize| {
        let points: Vec<(f64, f64, &str)> =
            modules().map(|module| (module.need(need), module.effective, module.module.as_str())).collect();
        let most = |of: fn(&(f64, f64, &str)) -> f64| points.iter().map(of).fold(1e-9, f64::max);
        let left = points.iter().map(|point| point.0).fold(0.0, f64::min);
        let mut svg = Svg::new(420.0, 240.0, "", &format!("Effective rank over the {}", NEEDS[need]));
        let (x, y) = (Scale::new(left, most(|p| p.0), [44.0, 406.0]), Scale::new(0.0, most(|p| p.1), [200.0, 12.0]));
        for tick in y.ticks(4) {
            svg.segment("grid", [40.0, y.at(tick)], [412.0, y.at(tick)]);
            svg.text("", [34.0, y.at(tick) + 4.0], "end", &label(tick));
        }
        x.ticks(5).into_iter().for_each(|tick| svg.text("", [x.at(tick), 216.0], "middle", &label(tick)));
        for (known, effective, module) in &points {
            svg.dot("dot", [x.at(*known), y.at(*effective)], &format!("{module}: {known:.2}, {effective:.2}"));
        }
        svg.text("", [225.0, 234.0], "middle", NEEDS[need]);
        let title = format!("Effective rank over the {}", NEEDS[need]);
        small(&title, &svg.finish(), "a dot for every module of every seed")
    };
    // Numbers are on the right.
    let is_number = [false, true, false, false, true, true, true];
    let row = |correlation: &Correlation| {
        let cell = |(text, is_number): (&String, bool)| {
            format!("<td{}>{}</td>", if is_number { " class=\"n\"" } else { "" }, escaped(text))
        };
        format!("<tr>{}</tr>", correlation.cells().iter().zip(is_number).map(cell).collect::<String>())
    };
    let body: String = comparison.correlations.iter().map(row).collect();
    let header: Vec<(&str, bool)> = COLUMNS.into_iter().zip(is_number).collect();
    let lead = format!(
        "A uniform rank of {} was trained on {} seeds at {:e}. Spearman's correlation over the modules: its mean over \
         the seeds with a 95 % interval (bootstrap over layers), and the smallest and largest of a seed. A growth is \
         one number for all modules of a step.",
        first.rank,
        updates.len(),
        first.lr
    );
    let pictures = format!("<div class=\"small\">{}</div>", (0..NEEDS.len()).map(picture).collect::<String>());
    section("What trained updates need", &lead, &(pictures + &table(&header, &body)))
}

fn small(title: &str, picture: &str, caption: &str) -> String {
    let (title, caption) = (escaped(title), escaped(caption));
    format!("<figure style=\"margin:0\"><h3>{title}</h3>{picture}<figcaption>{caption}</figcaption></figure>")
}

fn facts(comparison: &Comparison, model: &Path, data: &Path) -> String {
    let facts = [
        ("model", model.display().to_string()),
        ("data", data.display().to_string()),
        ("study", comparison.study.clone()),
        ("runs", format!("{} of {}", count(comparison.runs_finished as u64), count(comparison.runs_planned as u64))),
        ("gelora", env!("CARGO_PKG_VERSION").into()),
    ];
    let facts = facts_list(&facts);
    format!(
        "<section><h2>How to read it</h2>\
         <p>The rate of every arm was chosen by its mean score on parts cut from the training rows; the held-out \
         rows were scored once, at that rate. A seed draws the rows, the measured sample, the batches and the fresh \
         head, the same for every arm.</p>\
         <p>A difference is called one if the Wilcoxon signed-rank test, adjusted by Holm for the number of arms, is \
         below 5 % and the interval (BCa bootstrap over seeds) does not hold 0. The seeds share the held-out rows, so \
         that intervals say how seeds scatter, and not how other held-out rows would.</p>{facts}</section>\n"
    )
}

/// A number on an axis of scores, whose steps may be small.
fn fine_label(value: f64) -> String {
    let rounded = (value * 1e4).round() / 1e4;
    format!("{}", if rounded == 0.0 { 0.0 } else { rounded })
}
