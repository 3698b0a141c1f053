//! The adapter that a training begins with (`--init-adapter`).

use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_lora::{Adapter, AdapterConfig};
use gelora_model::{CausalLm, TaskModel};

use super::eval::{decide_task, label_set};
use super::{CAUSAL_LM, adapter_info, check_base, hash_of_adapter, load_classifier, read_adapter};
use crate::args::{ModelArgs, TaskArg};
use crate::data::{Form, LabelSet, Sets};
use crate::ui;

/// A model with an adapter that is trained on.
pub struct InitAdapter {
    /// The model, on the CPU and in f32.
    pub model: TaskModel,
    /// Config of the adapter.
    pub config: AdapterConfig,
    /// Hash of the adapter's files.
    pub fingerprint: String,
    /// Form of the labels that it was trained on, if a row may be of several classes and it is known.
    label_form: Option<Form>,
}

impl InitAdapter {
    /// Loads the model with the adapter of a folder.
    ///
    /// # Errors
    /// Returns an error if the folder or the model cannot be read, they do not fit each other, or the adapter's task is
    /// not that of the data.
    pub fn load(folder: &Path, model: &ModelArgs, is_lm: bool) -> Result<Self> {
        if !folder.is_dir() {
            bail!("{}: is no folder; --init-adapter expects one from `gelora train` or PEFT", folder.display());
        }
        let adapter = read_adapter(folder, &model.path)?;
        let task = adapter.config.task_type.as_deref().unwrap_or_default();
        let expected = if is_lm { CAUSAL_LM } else { "SEQ_CLS" };
        if task != expected {
            bail!("{}: the adapter's task is {task}, but that of the data is {expected}", folder.display());
        }
        check_base(&adapter, folder, model);
        let (config, fingerprint) = (adapter.config.clone(), hash_of_adapter(folder)?);
        let name = model.name.display().to_string();
        let model =
            if is_lm { language_model(&model.path, adapter, name) } else { classifier(&model.path, folder, name) };
        let label_form = adapter_info(folder)?.and_then(|info| info.label_form);
        Ok(Self { model: model.with_context(|| folder.display().to_string())?, config, fingerprint, label_form })
    }

    /// Returns the labels of the data in the order of the head. The data decides whether classes exclude each other, if
    /// the adapter's files do not say so.
    ///
    /// # Errors
    /// Returns an error if the classes of the data are not those of the head.
    pub fn labels(&mut self, folder: &Path, data: LabelSet) -> Result<LabelSet> {
        let TaskModel::Classifier(classifier) = &mut self.model else { return Ok(data) };
        let requested = match &data {
            LabelSet::Sets(_) if !classifier.is_task_known() => TaskArg::MultiLabel,
            LabelSet::Classes(_) if !classifier.is_task_known() => TaskArg::Classification,
            _ => TaskArg::Auto,
        };
        decide_task(requested, classifier, folder)?;
        let of_head = label_set(classifier, self.label_form.or(data.form()));
        let (head, rows) = (names(&of_head), names(&data));
        let is_same = |a: &[String], b: &[String]| a.len() == b.len() && b.iter().all(|class| a.contains(class));
        match (&of_head, &data) {
            (LabelSet::Scores, LabelSet::Scores) => Ok(of_head),
            (LabelSet::Classes(a), LabelSet::Classes(b)) if is_same(a, b) => Ok(of_head),
            // Some classes may be of no row, and every row of one class. Vectors have no names, but a length.
            (LabelSet::Sets(a), LabelSet::Sets(b))
                if b.form == Some(Form::Vectors) && a.names.len() == b.names.len() =>
            {
                Ok(of_head)
            }
            (LabelSet::Sets(Sets { names: a, .. }), LabelSet::Sets(Sets { names: b, .. }) | LabelSet::Classes(b))
                if b.iter().all(|class| a.contains(class)) =>
            {
                Ok(of_head)
            }
            _ => bail!("{}: the adapter's head predicts {head}, but the data has {rows}", folder.display()),
        }
    }
}

fn names(labels: &LabelSet) -> String {
    match labels {
        LabelSet::Classes(names) => format!("the classes {}", names.join(", ")),
        LabelSet::Sets(sets) => format!("any of the classes {}", sets.names.join(", ")),
        LabelSet::Scores => "scores".to_owned(),
    }
}

fn language_model(model: &Path, adapter: Adapter, name: String) -> Result<TaskModel> {
    let mut lm = CausalLm::with_adapter(model, adapter)?;
    lm.remarks().iter().for_each(ui::warn);
    lm.set_name(name);
    Ok(lm.into())
}

fn classifier(model: &Path, folder: &Path, name: String) -> Result<TaskModel> {
    let mut classifier = load_classifier(model, Some(folder))?;
    classifier.set_name(name);
    Ok(classifier.into())
}
