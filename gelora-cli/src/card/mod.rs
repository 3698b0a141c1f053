//! README.md of an adapter: a model card as the Hugging Face hub shows it.
//!
//! Source of the header: "Model Cards" in the documentation of the hub, and the cards that PEFT writes.

mod escape;
mod header;
#[cfg(test)]
mod tests;
mod usage;

use std::fmt::Write;
use std::path::PathBuf;

use gelora_model::measure::{Layer, State};

use crate::report::RanksFile;
use crate::report::text::mean;
use crate::report::training::{Training, decimals};
use crate::ui::count;
use crate::understood::Understood;
use escape::{code, markdown};

pub use escape::shell;

/// File name of the card.
pub const CARD_NAME: &str = "README.md";

/// What the adapter's model predicts.
#[derive(Clone, Debug, PartialEq)]
pub enum CardTask {
    /// One of these classes.
    Classification(Vec<String>),
    /// Any number of these classes.
    MultiLabel(Vec<String>),
    /// A number.
    Regression,
    /// The next token. `prompt` is the option of `gelora generate` that writes a prompt as in the training data.
    LanguageModel { prompt: &'static str },
}

/// Rows of the training, and the options that make a command read them as the training did.
#[derive(Clone, Debug)]
pub struct CardData {
    /// File or folder.
    pub path: PathBuf,
    /// Options of `gelora eval`.
    pub eval_options: Vec<String>,
    /// Options of `gelora predict`.
    pub predict_options: Vec<String>,
}

/// What a card says beside the training itself.
#[derive(Debug)]
pub struct Card<'a> {
    pub training: &'a Training<'a>,
    pub task: CardTask,
    /// The model as typed, and its revision.
    pub model: PathBuf,
    pub revision: Option<String>,
    /// Whether the model is an id on the hub.
    pub is_on_hub: bool,
    /// Folder of the adapter.
    pub out: PathBuf,
    pub train: CardData,
    pub held_out: Option<CardData>,
    /// Whether a row has two texts.
    pub has_pairs: bool,
    /// Maximum number of tokens of an example.
    pub max_length: usize,
}

impl Card<'_> {
    /// Returns the text of the card.
    pub fn markdown(&self) -> String {
        let parts =
            [self.header(), self.about(), self.metrics(), self.usage(), self.data(), self.ranks(), self.settings()];
        parts.concat()
    }

    fn about(&self) -> String {
        let classes = |labels: &[String]| {
            let names: Vec<String> = labels.iter().map(|label| markdown(label)).collect();
            format!("{} classes: {}", labels.len(), names.join(", "))
        };
        let task = match &self.task {
            CardTask::Classification(labels) => format!("classification, {}", classes(labels)),
            CardTask::MultiLabel(labels) => {
                format!("multi-label classification (a text may be of several classes), {}", classes(labels))
            }
            CardTask::Regression => "regression: one score".into(),
            CardTask::LanguageModel { .. } => "language model".into(),
        };
        let revision = self.revision.as_ref().map_or(String::new(), |name| format!(" (revision {})", markdown(name)));
        let training = self.training;
        format!(
            "# LoRA adapter of {model}\n\nTrained by gelora {version}.\n\n- Base model: {model}{revision}\n- Task: \
             {task}\n- Adapter: {parameters} parameters in {modules} modules\n- Training: {steps} steps on {rows} \
             rows\n\n",
            model = markdown(&self.model.display().to_string()),
            version = env!("CARGO_PKG_VERSION"),
            parameters = count(training.parameters as u64),
            modules = count(training.modules.len() as u64),
            steps = count(training.steps() as u64),
            rows = count(training.data.kept as u64),
        )
    }

    fn metrics(&self) -> String {
        let (Some((step, metrics)), Some((data, _))) = (&self.training.metrics, &self.training.held_out_data) else {
            return match self.training.held_out_data {
                None => "## Evaluation\n\nThere were no held-out rows.\n\n".into(),
                Some(_) => "## Evaluation\n\nThe metrics of this adapter are not known.\n\n".into(),
            };
        };
        let row = |(name, value): &(String, f64)| format!("| {} | {} |\n", markdown(name), decimals(*value));
        let rows: String = metrics.iter().map(row).collect();
        format!(
            "## Evaluation\n\nOn {} held-out rows of {}, after step {} of {}:\n\n| metric | value |\n|---|---:|\n\
             {rows}\n",
            count(data.kept as u64),
            markdown(&data.data),
            count(*step as u64),
            count(self.training.steps() as u64)
        )
    }

    fn data(&self) -> String {
        let part = |title: &str, data: &Understood, fingerprint: &str| {
            let mut text = format!("{title}:\n\n- data: {}\n", markdown(&data.data));
            data.facts().iter().for_each(|(name, value)| {
                let _ = writeln!(text, "- {name}: {}", markdown(value));
            });
            let _ = writeln!(text, "- fingerprint of the texts: {fingerprint}\n");
            text
        };
        let training = part("Training", self.training.data, &self.training.fingerprint);
        let held_out = self.training.held_out_data.as_ref().map(|(data, print)| part("Held out", data, print));
        format!("## Data\n\n{training}{}", held_out.unwrap_or_default())
    }

    fn ranks(&self) -> String {
        let table = match self.training.ranks {
            Some(ranks) => measured(ranks),
            None => self.given(),
        };
        format!("## Ranks\n\n{table}\n")
    }

    /// The ranks that the user gave, with their alphas.
    fn given(&self) -> String {
        let modules = self.training.modules;
        let mut kinds = modules.values().map(|module| (module.rank, module.alpha));
        match kinds.next() {
            None => "The head was trained alone.\n".into(),
            Some((rank, alpha)) if kinds.all(|kind| kind == (rank, alpha)) => {
                format!("Rank {rank} and alpha {alpha} in all {} modules, as given.\n", modules.len())
            }
            Some(_) => {
                let row = |(name, module): (&String, &gelora_model::measure::ModuleRank)| {
                    format!("| {} | {} | {} |\n", markdown(name), module.rank, module.alpha)
                };
                let rows: String = modules.iter().map(row).collect();
                format!("As given:\n\n| module | rank | alpha |\n|---|---:|---:|\n{rows}")
            }
        }
    }

    fn settings(&self) -> String {
        let row = |(name, value): &(&'static str, String)| format!("| {} | {} |\n", markdown(name), markdown(value));
        let rows: String = self.training.settings.iter().chain(&self.training.resources()).map(row).collect();
        format!(
            "## Settings\n\n| setting | value |\n|---|---|\n{rows}\nCommand:\n\n{}",
            code("sh", &self.training.command)
        )
    }
}

/// The table of a measurement: every layer with the dimension after it, its growth and its rank.
fn measured(ranks: &RanksFile) -> String {
    let percent = ranks.policy.confidence * 100.0;
    let dimension = |state: &State| match state.is_constant() {
        true => "constant | ".to_owned(),
        false => {
            let [low, high] = state.estimate.interval;
            format!("{:.2} | {low:.2} to {high:.2}", state.estimate.id)
        }
    };
    let row = |(layer, state): (&Layer, &State)| {
        let [low, high] = layer.interval;
        let name = layer.name();
        format!(
            "| {name} | {} | {:+.2} | {low:+.2} to {high:+.2} | {} |\n",
            dimension(state),
            layer.delta,
            mean(layer.mean_rank())
        )
    };
    let first = ranks
        .states
        .first()
        .map_or(String::new(), |state| format!("| {} | {} | | | |\n", markdown(&state.name), dimension(state)));
    let of_modules = match ranks.policy.policy.ranks_modules() {
        true => " Each module has a rank of its own, which does not follow the growth; ranks of layers are means.",
        false => "",
    };
    let rows: String = ranks.layers.iter().zip(ranks.states.iter().skip(1)).map(row).collect();
    format!(
        "Measured on {} examples by the policy {} (estimator {}). The growth of the intrinsic dimension across a layer \
         is a lower bound on the rank of its adapters.{of_modules}\n\n\
         | layer | dimension after it | {percent} % interval | growth | {percent} % interval | rank |\n\
         |---|---:|---|---:|---|---:|\n{first}{rows}",
        count(ranks.samples as u64),
        ranks.policy.policy.name(),
        ranks.states.first().map_or("", |state| &state.estimate.estimator),
    )
}
