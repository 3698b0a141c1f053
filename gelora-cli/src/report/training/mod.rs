//! report.html of `gelora train`: curves, ranks, held-out errors, the account of the data, settings.

mod curves;
mod held_out;
mod rows;
mod sets;
#[cfg(test)]
pub mod tests;

use std::collections::BTreeMap;

use gelora_model::measure::ModuleRank;

use super::svg::escaped;
use super::{RanksFile, charts, facts_list, figure, head, modules, section, table};
use crate::history::{Evaluation, History};
use crate::ui::{self, count};
use crate::understood::Understood;
use std::time::Duration;

pub use held_out::{HeldOut, TextRow};

/// A finished training, as report.html and the model card describe it.
#[derive(Debug)]
pub struct Training<'a> {
    /// The base model, as the user named it.
    pub model: String,
    /// The account of the training data, and their fingerprint.
    pub data: &'a Understood,
    pub fingerprint: String,
    /// The same for the held-out data.
    pub held_out_data: Option<(&'a Understood, String)>,
    /// Rank and alpha of every adapted module.
    pub modules: &'a BTreeMap<String, ModuleRank>,
    /// The measurement behind the ranks, if there was one.
    pub ranks: Option<&'a RanksFile>,
    /// Number of parameters of the adapters.
    pub parameters: usize,
    /// Every option that the result depends on, with its value.
    pub settings: Vec<(&'static str, String)>,
    /// The command line.
    pub command: String,
    pub history: &'a History,
    /// The step at which the written adapter was evaluated, and its metrics by the names that users see.
    pub metrics: Option<(usize, Vec<(String, f64)>)>,
    /// Predictions of the written adapter on the held-out rows.
    pub held_out: Option<HeldOut>,
}

impl Training<'_> {
    /// Returns the number of steps.
    pub fn steps(&self) -> usize {
        self.history.steps.last().map_or(0, |step| step.step)
    }

    /// Returns time and memory, each with its name.
    pub fn resources(&self) -> Vec<(&'static str, String)> {
        let seconds = |seconds: f64| ui::duration(Duration::from_secs_f64(seconds.max(0.0)));
        let history = self.history;
        let mut facts = vec![("time of all steps", seconds(history.seconds_of_steps()))];
        if let Some(run) = history.runs.last() {
            let name = if history.runs.len() > 1 { "time of the last run" } else { "time with evaluations" };
            facts.push((name, seconds(run.seconds)));
        }
        if let Some(rate) = history.tokens_per_second() {
            facts.push(("tokens a second (median)", count(rate as u64)));
        }
        if let Some(bytes) = history.peak_memory_bytes() {
            facts.push(("peak resident memory", format!("{} MB", count(bytes.div_ceil(1_000_000)))));
        }
        facts
    }

    /// Returns the page.
    pub fn html(&self) -> String {
        let parts = [
            head(&format!("Adapter of {}", self.model)),
            "<body><main>".into(),
            self.headline(),
            self.warnings(),
            self.loss(),
            self.curves(),
            self.evaluations(),
            self.held_out
                .as_ref()
                .zip(self.metrics.as_ref())
                .map_or(String::new(), |(rows, (step, _))| rows.html(*step)),
            self.ranks(),
            self.account(),
            section("Settings", "", &facts_list(&self.settings)),
            section("Time and memory", "", &facts_list(&self.resources())),
            format!(
                "<section><h2>Command</h2><p><code>{}</code></p><p class=\"soft\">gelora {}</p></section>",
                escaped(&self.command),
                env!("CARGO_PKG_VERSION")
            ),
            "</main></body></html>\n".into(),
        ];
        parts.concat()
    }

    fn headline(&self) -> String {
        let title = match &self.metrics {
            Some((step, metrics)) => {
                let (name, value) = metrics.first().map_or(("", f64::NAN), |(name, value)| (name, *value));
                format!("Held-out {} {value:.4} after step {}", escaped(name), count(*step as u64))
            }
            None => {
                let loss = self.history.steps.last().and_then(|step| step.loss);
                format!("Training loss {:.4} at the last step", loss.unwrap_or(f64::NAN))
            }
        };
        let others: Vec<String> =
            self.metrics.iter().flat_map(|(_, metrics)| metrics.iter().skip(1)).map(shown).collect();
        let others = if others.is_empty() { String::new() } else { format!(" Also {}.", escaped(&others.join(", "))) };
        let no_rows = match self.metrics {
            Some(_) => "",
            None => " There were no held-out rows, so nothing here says how well the adapter does on new ones.",
        };
        format!(
            "<header><h1>{title}</h1><p class=\"lead\">{} with {} adapter parameters in {} modules, trained for {} \
             steps on {} rows of {}.{others}{no_rows}</p></header>\n",
            escaped(&self.model),
            count(self.parameters as u64),
            self.modules.len(),
            count(self.steps() as u64),
            count(self.data.kept as u64),
            escaped(&self.data.data),
        )
    }

    fn warnings(&self) -> String {
        let of_data = [Some(self.data), self.held_out_data.as_ref().map(|(data, _)| *data)].into_iter().flatten();
        let of_data = of_data.flat_map(|data| data.warnings.iter().cloned());
        let of_ranks = self.ranks.iter().flat_map(|ranks| ranks.warnings.iter().map(|warning| warning.text.clone()));
        let mut all: Vec<String> = of_data.chain(of_ranks).collect();
        let mut seen = std::collections::HashSet::new();
        all.retain(|warning| seen.insert(warning.clone()));
        super::warnings(all.iter().map(String::as_str))
    }

    fn loss(&self) -> String {
        let (svg, window) = curves::loss(self.history);
        let has_dots = self.history.metric_names().contains(&"loss");
        let dots = if has_dots { " Orange dots: the loss of the held-out rows." } else { "" };
        let lead = match window {
            1 => format!("Training loss of every step, before the parameters change.{dots}"),
            _ => format!(
                "Thin: training loss of every step, before the parameters change. Thick: its exponential moving \
                 average over about {window} steps.{dots}"
            ),
        };
        section("Loss", &lead, &figure(&svg))
    }

    /// The small pictures: metrics, learning rate, gradient norm.
    fn curves(&self) -> String {
        let mut all = String::new();
        // One value is no curve; the table has it.
        let names = if self.history.evaluations.len() > 1 { self.history.metric_names() } else { Vec::new() };
        for name in names.into_iter().filter(|name| *name != "tokens") {
            all.push_str(&picture(name, &curves::of_evaluations(name, self.history), "held-out rows"));
        }
        let steps = &self.history.steps;
        let lr = curves::of_steps("Learning rate over the steps", steps, |step| Some(step.lr));
        let norm = curves::of_steps("Gradient norm over the steps", steps, |step| step.grad_norm);
        all.push_str(&picture("learning rate", &lr, "every step"));
        all.push_str(&picture("gradient norm", &norm, "every step, before clipping"));
        section("Over the steps", "", &format!("<div class=\"small\">{all}</div>"))
    }

    /// The table of all evaluations. The one of the written adapter is highlighted.
    fn evaluations(&self) -> String {
        let names = self.history.metric_names();
        if names.is_empty() {
            return String::new();
        }
        let taken = self.metrics.as_ref().map(|(step, _)| *step);
        let row = |evaluation: &Evaluation| {
            let class = if taken == Some(evaluation.step) { " class=\"chosen\"" } else { "" };
            let value = |name: &&str| {
                let value = evaluation.metrics.iter().find(|(other, _)| other == name).and_then(|(_, value)| *value);
                format!("<td class=\"n\">{}</td>", value.map_or("not finite".into(), decimals))
            };
            let values: String = names.iter().map(value).collect();
            format!("<tr{class}><td class=\"n\">{}</td>{values}</tr>", count(evaluation.step as u64))
        };
        let rows: String = self.history.evaluations.iter().map(row).collect();
        let mut header = vec![("step", true)];
        header.extend(names.iter().map(|name| (*name, true)));
        let table = table(&header, &rows);
        let table = match self.history.evaluations.len() {
            0..=12 => table,
            n => format!("<details><summary>All {n} evaluations</summary>{table}</details>"),
        };
        section("Evaluations", "Metrics of the held-out rows. The adapter that was written is highlighted.", &table)
    }

    fn ranks(&self) -> String {
        let least = self.modules.values().map(|m| m.rank).min().unwrap_or(0);
        let most = self.modules.values().map(|m| m.rank).max().unwrap_or(0);
        let range = if least == most { format!("Rank {least} everywhere") } else { format!("Ranks {least} to {most}") };
        let (lead, picture) = match self.ranks {
            Some(ranks) => (
                format!(
                    "{range}, measured on {} examples by the policy {}. The growth of the dimension across a layer is \
                     a lower bound on the layer's rank.",
                    count(ranks.samples as u64),
                    ranks.policy.policy.name()
                ),
                figure(&charts::profile(ranks)),
            ),
            None => (format!("{range}, as given."), String::new()),
        };
        section("Ranks", &lead, &(picture + &modules(self.modules, self.ranks)))
    }

    fn account(&self) -> String {
        let part = |title: &str, data: &Understood, fingerprint: &str| {
            let mut facts = vec![("data", data.data.clone())];
            facts.extend(data.facts());
            facts.extend(data.notes.iter().map(|note| ("note", note.clone())));
            facts.push(("fingerprint of the texts", fingerprint.to_owned()));
            section(title, "", &facts_list(&facts))
        };
        let held_out = self.held_out_data.as_ref().map(|(data, fingerprint)| part("Held-out data", data, fingerprint));
        part("Training data", self.data, &self.fingerprint) + &held_out.unwrap_or_default()
    }
}

fn picture(title: &str, svg: &str, caption: &str) -> String {
    let title = escaped(title);
    format!("<figure style=\"margin:0\"><h3>{title}</h3>{svg}<figcaption>{caption}</figcaption></figure>")
}

/// Returns `accuracy 0.9375`.
fn shown((name, value): &(String, f64)) -> String {
    format!("{name} {}", decimals(*value))
}

/// Returns a metric with four decimals; a count has none.
pub fn decimals(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() >= 10.0 { count(value.abs() as u64) } else { format!("{value:.4}") }
}
