//! Measures ranks on a sample of the data, for `gelora rank` and `gelora train`.

use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_lora::files;
use gelora_model::measure::{
    ModuleRanks, PolicyChoice, Ranks, TargetModules, measure_points_with, pooled_states, sample,
};
use gelora_model::needs::module_ranks;
use gelora_model::{
    CausalLm, Classifier, Error, Event, MeasureOptions, Task, TaskModel, TokenRows, Tokens, Transformer,
};

use super::rows::{encode_rows, lm_rows, token_rows};
use super::screen::Screen;
use super::task::model_task;
use crate::args::TrainArgs;
use crate::data::{Dataset, LabelSet};
use crate::profile::mark;
use crate::report::text;
use crate::tokenize::Tokenizer;

/// What is measured.
pub struct Measuring<'a> {
    pub model: &'a Transformer,
    pub dataset: &'a Dataset,
    pub tokenizer: &'a Tokenizer,
    /// What the labels are; None for a language model, and where no policy needs them.
    pub labels: Option<&'a LabelSet>,
    /// Number of rows to draw.
    pub samples: usize,
    pub quiet: bool,
}

impl<'a> Measuring<'a> {
    /// Returns what a training measures before it begins.
    pub fn of(
        args: &TrainArgs,
        model: &'a Transformer,
        dataset: &'a Dataset,
        tokenizer: &'a Tokenizer,
        labels: Option<&'a LabelSet>,
    ) -> Self {
        Self { model, dataset, tokenizer, labels, samples: args.measure.samples, quiet: args.output.quiet }
    }

    /// Measures the ranks. Writes the points to `points_file` if it is given. Several processes share the forward pass;
    /// the first one does the rest, and the others return None.
    ///
    /// # Errors
    /// Returns an error if there are too few rows, an option does not fit the model, or a measurement fails.
    pub fn ranks(&self, options: &MeasureOptions, points_file: Option<&Path>) -> Result<Option<Ranks>> {
        let (model, dataset) = (self.model, self.dataset);
        let (infos, layers) = (model.linear_infos(), model.config().layers);
        TargetModules::new(&infos, layers, options.granularity, &options.target_modules).context("--target-modules")?;
        let rows = sample(dataset.examples.len(), self.samples, options.seed);
        if rows.len() < 3 {
            bail!("{}: {} rows; two nearest neighbors need at least 3", dataset.path.display(), rows.len());
        }
        let tokens = encode_rows(self.tokenizer, dataset, &rows)?;
        mark("tokenized");
        let mut screen = Screen::new(self.quiet);
        let mut progress = |event: Event<'_>| screen.show(event);
        // Run the model, then estimate dimensions and assign ranks.
        let points = pooled_states(model, &tokens, options, &mut progress)?;
        if !options.processes.is_first() {
            return Ok(None);
        }
        if let Some(path) = points_file {
            files::write_tensors(path, points.iter().enumerate().map(|(s, t)| (format!("layer_{s}"), t)))?;
        }
        let modules = match options.policy.ranks_modules() {
            true => Some(self.modules(&rows, tokens, options, &mut progress)?),
            false => None,
        };
        let mut ranks = match measure_points_with(model, points, modules.as_ref(), options, &mut progress) {
            Err(Error::NoPlateau) if options.policy == PolicyChoice::Plateau => {
                bail!("--policy plateau: the dimension of no state has a plateau; --policy gelora takes all examples")
            }
            Err(Error::NoPlateau) => {
                bail!("--scale plateau: the dimension of no state has a plateau; --scale all takes all examples")
            }
            other => other?,
        };
        mark("stability");
        text::advise(&mut ranks, dataset.examples.len());
        Ok(Some(ranks))
    }

    /// Measures the ranks of single modules on the drawn rows, which have these tokens.
    fn modules(
        &self,
        rows: &[usize],
        tokens: Vec<Tokens>,
        options: &MeasureOptions,
        progress: &mut impl FnMut(Event<'_>),
    ) -> Result<ModuleRanks> {
        let (model, dataset) = (self.model, self.dataset);
        let (mut fresh, rows): (TaskModel, TokenRows) = match self.labels {
            Some(labels) => {
                let targets = labels.targets(dataset)?;
                let classifier = Classifier::new(model.source(), model_task(labels), options.seed)?;
                (classifier.into(), token_rows(tokens, &targets, rows))
            }
            // Inputs need no labels, so the head does not matter.
            None if !model.config().causal => {
                (Classifier::new(model.source(), Task::Regression, options.seed)?.into(), TokenRows::new(tokens))
            }
            None => (CausalLm::load(model.source())?.into(), TokenRows::new(self.lm_rows(tokens, options.seed)?)),
        };
        fresh.compute_in(model.dtype())?;
        fresh.move_to(model.device())?;
        mark("model loaded again");
        let found = module_ranks(fresh, &rows, options, progress);
        let found = found.map_err(anyhow::Error::from).context("the ranks of single modules (--policy)")?;
        mark("modules");
        Ok(found)
    }

    /// Returns the drawn rows of a language model: those with an answer, or as many blocks of text.
    fn lm_rows(&self, tokens: Vec<Tokens>, seed: u64) -> Result<Vec<Tokens>> {
        if self.dataset.has_answers() {
            return Ok(tokens.into_iter().filter(|row| row.predicted() > 0).collect());
        }
        let blocks = lm_rows(self.tokenizer, self.dataset)?;
        Ok(sample(blocks.len(), self.samples, seed).into_iter().map(|block| blocks[block].clone()).collect())
    }
}
