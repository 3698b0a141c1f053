//! Writes report.html: a measurement, a comparison or a training on one self-contained page. The page fetches nothing
//! from the network, has no script, and follows light and dark mode.

mod charts;
pub mod compare;
mod ranks_file;
mod svg;
#[cfg(test)]
pub mod tests;
pub mod text;
pub mod training;

use std::collections::BTreeMap;
use std::fmt::Write;

use gelora_lora::ranks::Policy;
use gelora_model::measure::{DirectionCount, Layer, ModuleRank, PolicyOutcome, Stability, State};

use crate::ui::count;
use svg::escaped;
use text::title;

pub use ranks_file::{RANKS_NAME, RanksFile, Serve};

const STYLE: &str = include_str!("style.css");

/// File name of a page.
pub const REPORT_NAME: &str = "report.html";

/// Returns the page of a measurement.
pub fn html(ranks: &RanksFile) -> String {
    let mut page = String::new();
    let parts = [
        head(&format!("LoRA ranks of {}", ranks.model)),
        "<body><main>".into(),
        headline(ranks),
        warnings(ranks.warnings.iter().map(|warning| &*warning.text)),
        section(
            "Profile",
            "The dimension that the states of your data need, from the embeddings up. The growth across a layer is a \
             lower bound on the layer's rank.",
            &figure(&charts::profile(ranks)),
        ),
        section(
            "Growth of the dimension",
            "Each layer's growth with its interval, from a jackknife over the examples. If the interval holds 0, the \
             growth is within the noise.",
            &figure(&charts::growth(&ranks.layers)),
        ),
        directions(&ranks.layers),
        policies(ranks),
        ranks.stability.as_ref().map_or(String::new(), |s| stability(s, &ranks.layers)),
        scales(ranks),
        modules(&ranks.module_ranks(), Some(ranks)),
        facts(ranks),
        "</main></body></html>\n".into(),
    ];
    parts.iter().for_each(|part| page.push_str(part));
    page
}

/// Returns the head of a page.
fn head(title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{}</title><style>{STYLE}</style></head>",
        escaped(title)
    )
}

fn section(title: &str, lead: &str, body: &str) -> String {
    let lead = if lead.is_empty() { String::new() } else { format!("<p class=\"soft\">{}</p>", escaped(lead)) };
    format!("<section><h2>{}</h2>{lead}{body}</section>\n", escaped(title))
}

/// Returns a list of names and values.
fn facts_list(facts: &[(&str, String)]) -> String {
    let facts: String =
        facts.iter().map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(value))).collect();
    format!("<dl>{facts}</dl>")
}

fn figure(svg: &str) -> String {
    format!("<figure class=\"scroll\" tabindex=\"0\">{svg}</figure>")
}

fn headline(ranks: &RanksFile) -> String {
    let all: Vec<usize> = match ranks.policy.policy.ranks_modules() {
        true => ranks.modules.values().map(|module| module.rank.rank).collect(),
        false => ranks.layers.iter().map(|l| l.rank).collect(),
    };
    let (least, most) = (all.iter().min().copied().unwrap_or(0), all.iter().max().copied().unwrap_or(0));
    let range = if least == most { format!("Rank {least} everywhere") } else { format!("Ranks {least} to {most}") };
    let uniform = ranks.policies.iter().find(|p| matches!(p.policy, Policy::Uniform { .. }));
    let against = uniform.filter(|u| u.parameters > 0).map_or(String::new(), |u| {
        let share = 100.0 * ranks.parameters as f64 / u.parameters as f64;
        format!(", {share:.0} % of what {} takes", title(&u.policy))
    });
    let serve = ranks.serve.as_ref().map_or(String::new(), |s| {
        format!(" Serve it with {} <code>--max-lora-rank {}</code>.", escaped(&s.server), s.max_lora_rank)
    });
    format!(
        "<header><h1>{range} in {} modules</h1><p class=\"lead\">{} adapter parameters{against}, by the policy {}, \
         measured on {} examples.{serve}</p></header>\n",
        ranks.modules.len(),
        count(ranks.parameters as u64),
        escaped(&title(&ranks.policy.policy)),
        count(ranks.samples as u64),
    )
}

fn warnings<'w>(warnings: impl Iterator<Item = &'w str>) -> String {
    let items: String = warnings.map(|text| format!("<li>{}</li>", escaped(text))).collect();
    if items.is_empty() {
        return String::new();
    }
    format!("<ul class=\"warnings\" aria-label=\"Warnings\">{items}</ul>\n")
}

fn policies(ranks: &RanksFile) -> String {
    let most = ranks.policies.iter().map(|p| p.parameters).max().unwrap_or(1).max(1);
    let row = |p: &PolicyOutcome| {
        let chosen = if p.policy.name() == ranks.policy.policy.name() { " class=\"chosen\"" } else { "" };
        format!(
            "<tr{chosen}><td>{}</td><td>{}</td><td class=\"n\">{}</td>\
             <td><span class=\"meter\" style=\"width:{:.1}rem\"></span></td><td class=\"wrap\">{}</td></tr>",
            escaped(&title(&p.policy)),
            text::ranks_of(p),
            count(p.parameters as u64),
            6.0 * p.parameters as f64 / most as f64,
            p.policy.description(),
        )
    };
    let rows: String = ranks.policies.iter().map(row).collect();
    section(
        "What each policy would do",
        "Parameters of all adapters together, and ranks from the first layer on; mean ranks where each module has a \
         rank of its own. The chosen policy is highlighted.",
        &table(&[("policy", false), ("ranks", false), ("parameters", true), ("", false), ("what it is", false)], &rows),
    )
}

/// Returns an HTML table. `header` has the name of each column and whether the column holds numbers.
fn table(header: &[(&str, bool)], rows: &str) -> String {
    let cell = |(name, number): &(&str, bool)| {
        format!("<th scope=\"col\"{}>{}</th>", if *number { " class=\"n\"" } else { "" }, escaped(name))
    };
    let header: String = header.iter().map(cell).collect();
    format!(
        "<div class=\"scroll\" tabindex=\"0\"><table><thead><tr>{header}</tr></thead>\
         <tbody>{rows}</tbody></table></div>"
    )
}

fn stability(stability: &Stability, layers: &[Layer]) -> String {
    let all = || stability.sizes.iter().flat_map(|s| s.ranks.iter().flatten()).chain(layers.iter().map(|l| &l.rank));
    let range = [all().min().copied().unwrap_or(1), all().max().copied().unwrap_or(1)];
    let mut rows = String::new();
    for (step, layer) in layers.iter().enumerate() {
        let _ = write!(rows, "<tr><td>{}</td><td class=\"n\">{}</td>", escaped(&layer.name()), layer.rank);
        for size in &stability.sizes {
            let ranks = &size.ranks[step];
            let (low, high) = (ranks.iter().min().unwrap_or(&0), ranks.iter().max().unwrap_or(&0));
            let display = if low == high { format!("{low}") } else { format!("{low} to {high}") };
            let _ = write!(
                rows,
                "<td style=\"min-width:9rem\">{}</td><td>{display}</td>",
                charts::histogram(ranks, layer.rank, range)
            );
        }
        rows.push_str("</tr>");
    }
    let mut header = vec![("layer".to_owned(), false), ("rank".to_owned(), true)];
    for size in &stability.sizes {
        header.push((format!("in {} × {} examples", stability.resamples, count(size.n as u64)), false));
        header.push((String::new(), false));
    }
    let header: Vec<(&str, bool)> = header.iter().map(|(name, number)| (name.as_str(), *number)).collect();
    let axis =
        format!("Bars: how often each rank occurred, from {} on the left to {} on the right.", range[0], range[1]);
    section("Stability", &format!("{} {axis}", stability.verdict), &table(&header, &rows))
}

fn scales(ranks: &RanksFile) -> String {
    let curves = || ranks.states.iter().flat_map(|s| s.decimation.iter().chain(&s.gride)).map(|at| at.id);
    let top = curves().filter(|v| v.is_finite()).fold(1.0, f64::max) * 1.05;
    let figure = |s: &State| {
        let flat = match &s.plateau {
            Some(p) => format!("{:.1} from {} to {} points", p.id, p.scales[0], p.scales[1]),
            None => "no plateau".into(),
        };
        let body =
            if s.is_constant() { "<p>The same point for every example.</p>".into() } else { charts::scales(s, top) };
        format!(
            "<figure style=\"margin:0\"><h3>{}</h3>{body}<figcaption>{flat}</figcaption></figure>",
            escaped(&s.name)
        )
    };
    let all: String = ranks.states.iter().map(figure).collect();
    section(
        "Scale",
        "Blue: the estimate from n, n/2, n/4, .. points (labeled), with its interval; the bar at the bottom is the \
         plateau. Orange, dashed: GRIDE, from the first and second neighbor on the left to more distant neighbors on \
         the right. A reliable dimension is flat.",
        &format!("<div class=\"small\">{all}</div>"),
    )
}

/// Returns the table of the layers' directions, if they were measured.
fn directions(layers: &[Layer]) -> String {
    let row = |layer: &Layer| {
        let DirectionCount { number, interval: [low, high] } = layer.directions?;
        Some(format!(
            "<tr><td>{}</td><td class=\"n\">{number:.1}</td><td>{low:.1} to {high:.1}</td><td class=\"n\">{}</td></tr>",
            escaped(&layer.name()),
            text::mean(layer.mean_rank())
        ))
    };
    let rows: String = layers.iter().filter_map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    section(
        "Directions of gradients",
        "How many directions of the gradients replicate over parts of the examples: the sum over the modules of a \
         layer, with the intervals added.",
        &table(&[("layer", false), ("directions", true), ("interval", false), ("mean rank", true)], &rows),
    )
}

/// Returns the table of modules. `measured` may have what was measured of each.
fn modules(modules: &BTreeMap<String, ModuleRank>, measured: Option<&RanksFile>) -> String {
    let most = modules.values().map(|m| m.rank).max().unwrap_or(1).max(1) as f64;
    let directions = |name: &String| measured?.modules.get(name)?.directions;
    let has_directions = modules.keys().any(|name| directions(name).is_some());
    let row = |(name, m): (&String, &ModuleRank)| {
        let directions = match directions(name) {
            Some(DirectionCount { number, interval: [low, high] }) => {
                format!("<td class=\"n\">{number:.1}</td><td>{low:.1} to {high:.1}</td>")
            }
            None if has_directions => "<td></td><td></td>".into(),
            None => String::new(),
        };
        format!(
            "<tr><td><code>{}</code></td><td class=\"n\">{}</td>\
             <td><span class=\"meter rank\" style=\"width:{:.1}rem\"></span></td>\
             <td class=\"n\">{}</td>{directions}</tr>",
            escaped(name),
            m.rank,
            6.0 * m.rank as f64 / most,
            m.alpha
        )
    };
    let rows: String = modules.iter().map(row).collect();
    let mut header = vec![("module", false), ("rank", true), ("", false), ("alpha", true)];
    if has_directions {
        header.extend([("directions", true), ("interval", false)]);
    }
    let table = table(&header, &rows);
    format!("<details><summary>All {} modules</summary>{table}</details>\n", modules.len())
}

fn facts(ranks: &RanksFile) -> String {
    let first = ranks.states.first();
    let facts = [
        ("model", ranks.model.clone()),
        ("data", ranks.data.clone()),
        ("examples", count(ranks.samples as u64)),
        ("growths measured at", format!("{} points", count(ranks.scale as u64))),
        ("pooling", ranks.pool.to_string()),
        ("states", format!("{} (granularity {})", ranks.states.len(), ranks.granularity.name())),
        ("estimator", first.map_or(String::new(), |s| s.estimate.estimator.clone())),
        ("confidence", format!("{} %", 100.0 * ranks.policy.confidence)),
        ("type", ranks.dtype.clone()),
        ("seed", ranks.seed.to_string()),
        match (ranks.policy.alpha_ratio, ranks.policy.alpha) {
            (Some(ratio), _) => ("alpha / rank", ratio.to_string()),
            (None, alpha) => ("alpha", alpha.map_or(String::new(), |alpha| alpha.to_string())),
        },
        ("gelora", env!("CARGO_PKG_VERSION").into()),
    ];
    let facts = facts_list(&facts);
    let of_modules = match ranks.policy.policy.ranks_modules() {
        true => format!(
            "<p>The policy {} gives each module a rank of its own, which does not follow the dimensions: they are \
             shown beside it. {}</p>",
            escaped(&title(&ranks.policy.policy)),
            ranks.policy.policy.description()
        ),
        false => String::new(),
    };
    let duplicates = ranks.states.iter().map(|s| s.estimate.duplicates).max().unwrap_or(0);
    let near = ranks.states.iter().map(|s| s.estimate.near_copies).max().unwrap_or(0);
    format!(
        "<section><h2>How to read it</h2>{of_modules}<p>The method is GeLoRA as reconstructed from <a \
         href=\"https://arxiv.org/abs/2412.09250\">arXiv 2412.09250</a>: the growth of the intrinsic dimension \
         across a layer is a lower bound on the rank that the layer's LoRA needs. The bound comes from two \
         estimates, each with its own error.</p><p>Nearest-neighbor estimators are biased low in high dimension, and \
         more so with fewer points: compare only dimensions of the same n, and read 16 as \"at least \
         16\".</p><p>Identical points count once, and so do near copies, unless they were kept: at most {duplicates} \
         examples of a state were copies of others, and at most {near} more were left out as near copies.</p><h2>How \
         it was measured</h2>{facts}</section>\n"
    )
}
