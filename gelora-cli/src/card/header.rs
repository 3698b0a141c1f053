//! The header of a card, in YAML.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::escape::quoted;
use super::{Card, CardTask};

impl Card<'_> {
    /// Returns the header.
    pub(super) fn header(&self) -> String {
        let mut text = String::from("---\nlibrary_name: peft\n");
        if !self.is_on_hub {
            text.push_str("# A path on the machine of the training; the hub expects the id of a model, org/name.\n");
        }
        let pipeline = match self.task {
            CardTask::LanguageModel { .. } => "text-generation",
            CardTask::Classification(_) | CardTask::MultiLabel(_) | CardTask::Regression => "text-classification",
        };
        let base = quoted(&self.base().0);
        let _ = write!(text, "base_model: {base}\npipeline_tag: {pipeline}\ntags:\n- lora\n- gelora\n");
        let metrics = self.training.metrics.iter().flat_map(|(_, metrics)| metrics);
        let metrics = metrics.filter(|(_, value)| value.is_finite());
        let metrics: Vec<_> = metrics.filter_map(|(name, value)| Some((hub_metric(name)?, name, value))).collect();
        if let (false, Some((data, _))) = (metrics.is_empty(), &self.training.held_out_data) {
            text.push_str("metrics:\n");
            let names: BTreeSet<&str> = metrics.iter().map(|(hub, ..)| *hub).collect();
            names.into_iter().for_each(|hub| text.push_str(&format!("- {hub}\n")));
            let name = self.out.file_name().map_or("adapter".into(), |name| name.to_string_lossy());
            let (name, data) = (quoted(&name), quoted(&data.data));
            let _ = write!(
                text,
                "model-index:\n- name: {name}\n  results:\n  - task:\n      type: {pipeline}\n    dataset:\n\
                 \x20     name: {data}\n      type: {data}\n    metrics:\n"
            );
            for (hub, name, value) in metrics {
                let _ = write!(text, "    - type: {hub}\n      name: {}\n      value: {value}\n", quoted(name));
            }
        }
        text.push_str("---\n\n");
        text
    }
}

/// Returns the name of a metric in the library `evaluate`, which the hub uses. None for what is no metric there.
fn hub_metric(name: &str) -> Option<&'static str> {
    Some(match name {
        "accuracy" => "accuracy",
        "macro_f1" | "micro_f1" => "f1",
        "subset_accuracy" => "accuracy",
        "matthews" => "matthews_correlation",
        "pearson" => "pearsonr",
        "spearman" => "spearmanr",
        "perplexity" => "perplexity",
        // With two classes the name has the class: f1 of "yes".
        name if name == "f1" || name.starts_with("f1 of ") => "f1",
        _ => return None,
    })
}
