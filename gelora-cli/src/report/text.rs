//! Formats a measurement as text: tables for the terminal, and a summary with advice for its warnings.

use anyhow::Result;
use gelora_lora::ranks::Policy;
use gelora_model::measure::{DirectionCount, Layer, PolicyOutcome, Ranks, ResampledRanks, Warning, WarningKind};

use super::RanksFile;
use crate::plot::id_profile_svg;
use crate::ui::{self, TableStyle};

/// Adds advice to each warning: which options of the program help. `examples` is the number of examples in the data.
pub fn advise(ranks: &mut Ranks, examples: usize) {
    let (samples, scale) = (ranks.samples, ranks.scale);
    for Warning { kind, text, .. } in &mut ranks.warnings {
        let advice = match kind {
            WarningKind::NearCopiesKept => "--near-copies drop leaves them out.",
            WarningKind::NearCopiesDropped => "If they are meant to count, --near-copies keep measures them too.",
            WarningKind::NearCopiesUncertain => "--near-copies keep measures all rows there.",
            WarningKind::NoGrowth => {
                "To spend more there, --budget-rank R spreads the parameters of a uniform rank R, and --min-rank R \
                 sets a floor; the table of policies shows what each would do."
            }
            WarningKind::Noise if samples < examples => {
                text.push_str(&format!(
                    " More of the {examples} examples (--samples, now {samples}) narrow the intervals."
                ));
                continue;
            }
            WarningKind::Noise => {
                text.push_str(&format!(" All {samples} examples were measured:"));
                "more data would narrow the intervals, and --policy gelora-upper takes their upper ends."
            }
            WarningKind::NoDirections | WarningKind::UncertainDirections if samples < examples => {
                text.push_str(&format!(" More of the {examples} examples (--samples, now {samples}) find more."));
                continue;
            }
            WarningKind::NoDirections | WarningKind::UncertainDirections => {
                text.push_str(&format!(" All {samples} examples were measured; more data would find more."));
                continue;
            }
            WarningKind::Level => "A smaller budget, or more examples (--samples), may tell them apart.",
            WarningKind::NoPlateau if scale < samples => continue,
            WarningKind::NoPlateau => "--scale plateau takes all growths at the scale of most plateaus.",
            WarningKind::NoPlateauAtAll => {
                "Compare dimensions of one number of examples only, and look at --stability before relying on a rank."
            }
            WarningKind::NotEnough => {
                "More examples (--samples) make ranks more certain; --policy uniform does not depend on them, and \
                 --policy gelora-upper errs on the large side."
            }
            _ => continue,
        };
        text.push(' ');
        text.push_str(advice);
    }
}

/// Returns the picture of the measurement as SVG.
pub fn profile(ranks: &Ranks) -> Result<String> {
    let states: Vec<_> = ranks.states.iter().map(|s| (s.estimate.id, s.estimate.interval)).collect();
    let bars: Vec<usize> = ranks.layers.iter().map(|l| l.rank).collect();
    id_profile_svg(&states, &bars)
}

/// Maximum width of a bar in columns.
const BAR_WIDTH: usize = 14;

/// Returns a bar for a share from 0 to 1, in eighths of a column on a terminal.
fn bar(share: f64, style: TableStyle) -> String {
    let share = share.clamp(0.0, 1.0);
    if style == TableStyle::Plain {
        return "#".repeat((share * BAR_WIDTH as f64).round() as usize);
    }
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share * BAR_WIDTH as f64 * 8.0).round() as usize;
    format!("{}{}", "█".repeat(eighths / 8), PARTS[eighths % 8])
}

/// Returns the table of states and layers.
pub fn table(ranks: &Ranks) -> String {
    let style = TableStyle::of_stdout();
    let percent = ranks.policy.confidence * 100.0;
    let (interval, growth) = (format!("{percent} % interval"), format!("growth, {percent} %"));
    let directions = format!("directions, {percent} %");
    let has_directions = ranks.layers.iter().any(|layer| layer.directions.is_some());
    let rank = if ranks.policy.policy.ranks_modules() { "mean rank" } else { "rank" };
    let mut header = vec!["state", "id", "", &interval, "plateau", "layer", &growth, rank, ""];
    if has_directions {
        header.insert(7, &directions);
    }
    let highest = ranks.states.iter().map(|s| s.estimate.id).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let largest = ranks.layers.iter().map(Layer::mean_rank).fold(1.0, f64::max);
    let mut rows = Vec::new();
    for (s, state) in ranks.states.iter().enumerate() {
        let e = &state.estimate;
        let mut row = vec![
            state.name.clone(),
            if state.is_constant() { "constant".into() } else { format!("{:.2}", e.id) },
            bar(e.id / highest, style),
            if state.is_constant() { "-".into() } else { format!("{:.2} .. {:.2}", e.interval[0], e.interval[1]) },
            state.plateau.as_ref().map_or("-".into(), |p| format!("n {} .. {}", p.scales[1], p.scales[0])),
        ];
        // Each row also has the layer that starts at its state.
        let Some(layer) = ranks.layers.get(s) else {
            row.resize(header.len(), String::new());
            rows.push(row);
            continue;
        };
        row.push(layer.name().trim_start_matches("layer ").to_owned());
        row.push(format!("{:+.2} ± {:.2}", layer.delta, (layer.interval[1] - layer.interval[0]) / 2.0));
        if has_directions {
            row.push(layer.directions.map_or(String::new(), |DirectionCount { number, interval: [low, high] }| {
                format!("{number:.1} ({low:.1} .. {high:.1})")
            }));
        }
        row.extend([mean(layer.mean_rank()), bar(layer.mean_rank() / largest, style)]);
        rows.push(row);
    }
    ui::table(&header, &rows, style)
}

/// Returns the table of the policies, each with its ranks and parameters.
pub fn policies(ranks: &Ranks) -> String {
    let style = TableStyle::of_stdout();
    let max_parameters = ranks.policies.iter().map(|p| p.parameters).max().unwrap_or(1) as f64;
    let row = |p: &PolicyOutcome| {
        let chosen = if p.policy.name() == ranks.policy.policy.name() { "*" } else { "" };
        vec![
            format!("{}{chosen}", title(&p.policy)),
            ranks_of(p),
            ui::count(p.parameters as u64),
            bar(p.parameters as f64 / max_parameters, style),
        ]
    };
    let rows: Vec<_> = ranks.policies.iter().map(row).collect();
    ui::table(&["policy (* chosen)", "ranks, from the first layer", "parameters", ""], &rows, style)
}

/// Returns the rank of every step, or the mean rank of its modules.
pub fn ranks_of(policy: &PolicyOutcome) -> String {
    let ranks: Vec<String> = match &policy.mean_ranks {
        Some(means) => means.iter().copied().map(mean).collect(),
        None => policy.ranks.iter().map(ToString::to_string).collect(),
    };
    ranks.join(" ")
}

/// Returns a mean rank: with one decimal, or none if it is whole.
pub fn mean(rank: f64) -> String {
    if rank.fract() == 0.0 { rank.to_string() } else { format!("{rank:.1}") }
}

/// Returns the name of a policy with its number.
pub fn title(policy: &Policy) -> String {
    match policy {
        Policy::Uniform { rank } => format!("uniform {rank}"),
        Policy::Budget { parameters, .. } => format!("budget {}", ui::count(*parameters as u64)),
        Policy::Random { parameters, .. }
        | Policy::Gradient { parameters }
        | Policy::Signal { parameters }
        | Policy::Eva { parameters, .. }
        | Policy::Prune { parameters, .. } => format!("{} {}", policy.name(), ui::count(*parameters as u64)),
        other => other.name().to_owned(),
    }
}

/// Returns the table of resampled ranks, one row per layer, with the count of each rank.
pub fn stability(ranks: &Ranks) -> String {
    let Some(stability) = &ranks.stability else { return String::new() };
    let column_name = |s: &ResampledRanks| format!("ranks in {} x {} examples", stability.resamples, s.n);
    let mut header = vec!["layer".to_owned(), "rank".to_owned()];
    header.extend(stability.sizes.iter().map(column_name));
    header.extend(stability.other_scale.iter().map(|other| format!("rank at {} points", other.scale)));
    let row = |(step, layer): (usize, &Layer)| {
        let mut row = vec![layer.name(), layer.rank.to_string()];
        row.extend(stability.sizes.iter().map(|size| counts(&size.ranks[step])));
        row.extend(stability.other_scale.iter().map(|other| other.ranks[step].to_string()));
        row
    };
    let rows: Vec<_> = ranks.layers.iter().enumerate().map(row).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let table = ui::table(&header, &rows, TableStyle::of_stdout());
    // A bad verdict is already among the warnings.
    let is_warning = |w: &Warning| w.text.starts_with(&stability.verdict);
    if ranks.warnings.iter().any(is_warning) { table } else { format!("{table}\n{}", stability.verdict) }
}

/// Returns the count of each value in ascending order: "3 x12, 4 x8". For more than six different values returns their
/// range.
fn counts(values: &[usize]) -> String {
    let mut counted = std::collections::BTreeMap::new();
    values.iter().for_each(|v| *counted.entry(v).or_insert(0) += 1);
    let parts: Vec<String> = counted.iter().map(|(value, times)| format!("{value} x{times}")).collect();
    match (parts.len() > 6, counted.first_key_value(), counted.last_key_value()) {
        (true, Some((low, _)), Some((high, _))) => format!("{low} to {high}, {} different", parts.len()),
        _ => parts.join(", "),
    }
}

/// Returns the measurement in a few sentences.
pub fn summary(ranks: &RanksFile) -> String {
    let mut text = format!(
        "{} modules, {} adapter parameters; measured on {} examples",
        ranks.modules.len(),
        ui::count(ranks.parameters as u64),
        ui::count(ranks.samples as u64)
    );
    if ranks.scale < ranks.samples {
        text.push_str(&format!(
            "\nGrowths and ranks are measured at {} examples, the scale of most plateaus.",
            ui::count(ranks.scale as u64)
        ));
    }
    text.push_str(&of_modules(ranks));
    if ranks.policy.policy.follows_growth() {
        text.push_str(NOT_SHOWN);
    }
    if let Some(serve) = &ranks.serve {
        text.push_str(&format!("\nServe it with {} --max-lora-rank {}.", serve.server, serve.max_lora_rank));
    }
    for warning in &ranks.warnings {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    text
}

/// What docs/study.md says of ranks that follow the dimension.
const NOT_SHOWN: &str = "\nSuch ranks are not known to score better than uniform ones with as many parameters; \
                         `gelora compare` tells for your data.";

/// Returns what the ranks of single modules are, if the policy gives such ranks.
fn of_modules(ranks: &Ranks) -> String {
    let policy = &ranks.policy.policy;
    if !policy.ranks_modules() {
        return String::new();
    }
    let all = || ranks.modules.values().map(|module| module.rank.rank);
    let range = match (all().min().unwrap_or(0), all().max().unwrap_or(0)) {
        (least, most) if least == most => format!("here {least} everywhere"),
        (least, most) => format!("from {least} to {most}"),
    };
    let cut = match policy {
        Policy::Prune { trained_rank, .. } => {
            format!(": what a cut leaves of the uniform rank {trained_rank}, trained on these examples")
        }
        _ => String::new(),
    };
    format!(
        "\nEach module has a rank of its own, {range}, by the policy {}{cut}. Such ranks do not follow the dimensions.",
        title(policy),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_drawn_in_eighths_or_hashes() {
        assert_eq!(bar(0.5, TableStyle::Plain), "#######");
        assert_eq!(bar(0.5 / 14.0, TableStyle::Terminal), "▌");
        assert_eq!((bar(7.0, TableStyle::Terminal), bar(-1.0, TableStyle::Plain)), ("█".repeat(14), String::new()));
    }

    #[test]
    fn ranks_are_counted_or_given_as_a_range() {
        assert_eq!(counts(&[3, 4, 3, 3]), "3 x3, 4 x1");
        assert_eq!(counts(&[1, 2, 3, 4, 5, 6, 9]), "1 to 9, 7 different");
    }

    #[test]
    fn warnings_say_what_to_do() {
        let advised = |kind: WarningKind, examples: usize| {
            let mut ranks = crate::report::tests::sample(4.0, 100).ranks;
            let mut warning = Warning::from("A fact.".to_owned());
            warning.kind = kind;
            ranks.warnings = vec![warning];
            advise(&mut ranks, examples);
            ranks.warnings.remove(0).text
        };
        let more = advised(WarningKind::Noise, 3000);
        assert_eq!(more, "A fact. More of the 3000 examples (--samples, now 100) narrow the intervals.");
        assert!(advised(WarningKind::Noise, 100).contains("All 100 examples were measured"));
        assert!(advised(WarningKind::NoGrowth, 100).starts_with("A fact. To spend more there, --budget-rank R"));
        assert!(advised(WarningKind::NearCopiesDropped, 100).contains("--near-copies keep"));
        assert!(advised(WarningKind::NearCopiesUncertain, 100).contains("--near-copies keep"));
        assert_eq!(advised(WarningKind::Unknown, 100), "A fact.");
    }
}
