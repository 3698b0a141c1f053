//! `gelora rank`: measure, and write what the ranks came from.

use anyhow::Result;
use gelora_lora::CONFIG_NAME;
use gelora_lora::ranks::Policy;
use gelora_model::{Config, Transformer};

use super::learner::of_lm;
use super::measure::{self, Outcome, Ranks};
use super::train::{LM_MAX_LENGTH, is_lm};
use super::understood::{Understood, Use};
use super::{check_max_length, distinct, open_device, open_tokenizer, read_options};
use crate::args::{RankArgs, TaskArg};
use crate::data::{self, Aim, Dataset, ReadOptions};
use crate::output::OutDir;
use crate::plot::id_profile_svg;
use crate::profile::mark;
use crate::report;
use crate::ui::{self, TableStyle};

/// Its files.
pub const RANKS_NAME: &str = "ranks.json";
const PROFILE_NAME: &str = "id_profile.svg";
const REPORT_NAME: &str = "report.html";

pub fn run(args: &RankArgs) -> Result<()> {
    let out = OutDir::prepare(&args.out, &[RANKS_NAME, CONFIG_NAME, PROFILE_NAME, REPORT_NAME], "--out")?;
    let options = ReadOptions { labels_do_not_matter: true, ..read_options(&args.data, Aim::Any, &args.output) };
    let mut dataset = data::read(&args.data.data, None, &options)?;
    mark("data read");
    let mut encoder = Transformer::load(&args.model.path)?;
    encoder.compute_in(args.compute.dtype.into())?;
    encoder.move_to(&open_device(args.compute.device)?)?;
    mark("model loaded");
    let lm = encoder.config().causal && is_lm(TaskArg::Auto, encoder.config(), &dataset);
    if lm && dataset.has_answers() {
        dataset.take_answers()?;
    } else {
        dataset.take_texts();
    }
    check_max_length(args.data.max_length, encoder.config())?;
    // Of the tokens that it would be trained on.
    let mut args = args.clone();
    args.data.max_length = args.data.max_length.or(lm.then_some(LM_MAX_LENGTH));
    let understood = understood(&args, encoder.config(), &dataset, lm)?;
    understood.say(args.output.quiet);
    distinct::check(&dataset, understood.distinct)?;
    let mut ranks = measure::ranks(&args, &encoder, &dataset)?;
    ranks.dataset = Some(understood);

    out.write_json(RANKS_NAME, &ranks)?;
    let config = measure::peft_config(&encoder, &args.model.name, &ranks.modules)?;
    if lm { of_lm(config) } else { config }.write(&out.file(CONFIG_NAME))?;
    out.write(PROFILE_NAME, profile(&ranks)?.as_bytes())?;
    out.write(REPORT_NAME, report::html(&ranks).as_bytes())?;
    if args.output.json {
        return Ok(ui::result(serde_json::to_string(&ranks)?)?);
    }
    ui::result(table(&ranks))?;
    ui::result(format!("\n{}", policies(&ranks)))?;
    if ranks.stability.is_some() {
        ui::result(format!("\n{}", stability(&ranks)))?;
    }
    ui::result(format!("\n{}", summary(&ranks)))?;
    ui::note(
        args.output.quiet,
        format!("written: {}/{{{RANKS_NAME}, {REPORT_NAME}, {CONFIG_NAME}, {PROFILE_NAME}}}", args.out.display()),
    );
    Ok(())
}

/// What the data is taken for.
fn understood(args: &RankArgs, config: &Config, dataset: &Dataset, lm: bool) -> Result<Understood> {
    let tokenizer = open_tokenizer(&args.model.path, args.data.max_length, config)?;
    let labels = if lm { None } else { data::labels(&[dataset], None).ok() };
    let used = labels.as_ref().map_or(Use::Texts, Use::Labels);
    let mut understood = Understood::of(dataset, &used, &tokenizer)?;
    if lm {
        understood.task = "language model".into();
    }
    Ok(understood)
}

/// The picture of the measurement.
pub fn profile(ranks: &Ranks) -> Result<String> {
    let states: Vec<_> = ranks.states.iter().map(|s| (s.estimate.id, s.estimate.interval)).collect();
    let bars: Vec<usize> = ranks.layers.iter().map(|l| l.rank).collect();
    id_profile_svg(&states, &bars)
}

/// Columns of a bar at most.
const BAR: usize = 14;

/// A bar of a share from 0 to 1, in eighths of a column on a terminal.
fn bar(share: f64, style: TableStyle) -> String {
    let share = share.clamp(0.0, 1.0);
    if style == TableStyle::Plain {
        return "#".repeat((share * BAR as f64).round() as usize);
    }
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share * BAR as f64 * 8.0).round() as usize;
    format!("{}{}", "█".repeat(eighths / 8), PARTS[eighths % 8])
}

/// States and layers, one above the other.
pub fn table(ranks: &Ranks) -> String {
    let style = TableStyle::of_stdout();
    let percent = ranks.policy.confidence * 100.0;
    let (interval, growth) = (format!("{percent} % interval"), format!("growth, {percent} %"));
    let header = ["state", "id", "", &interval, "plateau", "layer", &growth, "rank", ""];
    let highest = ranks.states.iter().map(|s| s.estimate.id).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let largest = ranks.layers.iter().map(|l| l.rank).max().unwrap_or(1) as f64;
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
        // The step that this state enters stands on its line.
        row.extend(match ranks.layers.get(s) {
            Some(layer) => [
                layer.name().trim_start_matches("layer ").to_owned(),
                format!("{:+.2} ± {:.2}", layer.delta, (layer.interval[1] - layer.interval[0]) / 2.0),
                layer.rank.to_string(),
                bar(layer.rank as f64 / largest, style),
            ],
            None => Default::default(),
        });
        rows.push(row);
    }
    ui::table(&header, &rows, style)
}

/// What each policy would do, against one rank everywhere.
fn policies(ranks: &Ranks) -> String {
    let style = TableStyle::of_stdout();
    let most = ranks.policies.iter().map(|p| p.parameters).max().unwrap_or(1) as f64;
    let row = |p: &Outcome| {
        let chosen = if p.policy.name() == ranks.policy.policy.name() { "*" } else { "" };
        vec![
            format!("{}{chosen}", title(&p.policy)),
            p.ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            ui::count(p.parameters as u64),
            bar(p.parameters as f64 / most, style),
        ]
    };
    let rows: Vec<_> = ranks.policies.iter().map(row).collect();
    ui::table(&["policy (* chosen)", "ranks, from the first layer", "parameters", ""], &rows, style)
}

/// A policy with the number that matters.
pub fn title(policy: &Policy) -> String {
    match policy {
        Policy::Uniform { rank } => format!("uniform {rank}"),
        Policy::Budget { parameters, .. } => format!("budget {}", ui::count(*parameters as u64)),
        Policy::Random { parameters, .. } => format!("random {}", ui::count(*parameters as u64)),
        other => other.name().to_owned(),
    }
}

/// The ranks of resamples, a line a step: how often which rank.
fn stability(ranks: &Ranks) -> String {
    let Some(stability) = &ranks.stability else { return String::new() };
    let of_size = |s: &measure::OfSize| format!("ranks in {} x {} examples", stability.resamples, s.n);
    let mut header = vec!["layer".to_owned(), "rank".to_owned()];
    header.extend(stability.sizes.iter().map(of_size));
    header.extend(stability.other_scale.iter().map(|other| format!("rank at {} points", other.scale)));
    let row = |(step, layer): (usize, &measure::Layer)| {
        let mut row = vec![layer.name(), layer.rank.to_string()];
        row.extend(stability.sizes.iter().map(|size| counts(&size.ranks[step])));
        row.extend(stability.other_scale.iter().map(|other| other.ranks[step].to_string()));
        row
    };
    let rows: Vec<_> = ranks.layers.iter().enumerate().map(row).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let table = ui::table(&header, &rows, TableStyle::of_stdout());
    // Where it is bad news it is among the warnings.
    if ranks.warnings.contains(&stability.verdict) { table } else { format!("{table}\n{}", stability.verdict) }
}

/// "3 x12, 4 x8": which value how often, ascending; of many different ones the range.
fn counts(values: &[usize]) -> String {
    let mut counted = std::collections::BTreeMap::new();
    values.iter().for_each(|v| *counted.entry(v).or_insert(0) += 1);
    let shown: Vec<String> = counted.iter().map(|(value, times)| format!("{value} x{times}")).collect();
    match (shown.len() > 6, counted.first_key_value(), counted.last_key_value()) {
        (true, Some((low, _)), Some((high, _))) => format!("{low} to {high}, {} different", shown.len()),
        _ => shown.join(", "),
    }
}

/// The measurement in a few sentences.
pub fn summary(ranks: &Ranks) -> String {
    let mut text = format!(
        "{} modules, {} adapter parameters; measured on {} examples",
        ranks.modules.len(),
        ui::count(ranks.parameters as u64),
        ui::count(ranks.samples as u64)
    );
    if ranks.scale < ranks.samples {
        text.push_str(&format!(
            "\nGrowths and ranks are of {} examples, the scale of most plateaus.",
            ui::count(ranks.scale as u64)
        ));
    }
    if let Some(serve) = &ranks.serve {
        text.push_str(&format!("\nServe it with {} --max-lora-rank {}.", serve.server, serve.max_lora_rank));
    }
    for warning in &ranks.warnings {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_of_eighths_or_of_hashes() {
        assert_eq!(bar(0.5, TableStyle::Plain), "#######");
        assert_eq!(bar(0.5 / 14.0, TableStyle::Terminal), "▌");
        assert_eq!((bar(7.0, TableStyle::Terminal), bar(-1.0, TableStyle::Plain)), ("█".repeat(14), String::new()));
    }

    #[test]
    fn ranks_are_counted_or_given_as_a_range() {
        assert_eq!(counts(&[3, 4, 3, 3]), "3 x3, 4 x1");
        assert_eq!(counts(&[1, 2, 3, 4, 5, 6, 9]), "1 to 9, 7 different");
    }
}
