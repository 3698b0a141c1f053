//! What rank each module needs, measured on gradients instead of dimensions.
//!
//! The gradient of the loss with respect to a frozen weight, G = dL/dW (C_out, C_in), is what a training first follows.
//! Of its singular directions only those matter that are in all of the data: [`gelora_lora::directions`] finds them by
//! comparing parts of the rows. `gradients` measures G by LoRA backward passes on the frozen model. A classifier's
//! fresh head is trained alone first: the gradient below a random head says nothing.
//!
//! [`module_ranks`] turns this, or a training that is cut, into the ranks of a policy.

mod gradients;
mod modules;

use gelora_lora::directions::Directions;
use gelora_lora::ranks::spectra::Spectrum;

use crate::event::{Reply, Report, report};
use crate::train::Length;
use crate::{Error, Event, Result, Rows, TaskModel, TrainOptions, Trainer};

pub use modules::{module_ranks, ranks};

/// Options of [`gradient_needs`].
#[derive(Clone, Debug)]
pub struct GradientOptions {
    /// The modules to measure, as in [`MeasureOptions::target_modules`](crate::MeasureOptions::target_modules).
    pub target_modules: Vec<String>,
    /// Number of singular directions that are looked at. No more than half as many can be found.
    pub width: usize,
    /// A module with at most so many inputs or outputs, or with at most `parts` times `columns`, is seen whole, in one
    /// forward and backward pass over the rows; a larger one is seen by sketches, in four.
    pub whole: usize,
    /// Number of columns of a sketch: at least `width`, and more to find the last directions.
    pub columns: usize,
    /// Number of parts of the rows, at least 3.
    pub parts: usize,
    /// Confidence of the intervals.
    pub confidence: f64,
    /// Number of epochs in which a classifier's head is trained alone first; 0 for a model whose head is trained.
    pub head_epochs: f64,
    /// Learning rate of the head.
    pub head_lr: f64,
    /// Number of rows in one forward and backward pass.
    pub batch_size: usize,
    /// Seed of the sketches, the parts, and the training of the head.
    pub seed: u64,
}

impl Default for GradientOptions {
    fn default() -> Self {
        Self {
            target_modules: Vec::new(),
            width: 48,
            whole: 1024,
            columns: 64,
            parts: 8,
            confidence: 0.9,
            head_epochs: 3.0,
            head_lr: 1e-2,
            batch_size: 32,
            seed: 0,
        }
    }
}

/// What was found for one module.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Need {
    /// Full name of the module.
    pub module: String,
    /// Directions of its gradient that replicate.
    pub directions: Directions,
    /// Parameters per rank: C_in + C_out.
    pub cost: usize,
    /// The smaller of C_in and C_out.
    pub most: usize,
}

impl Need {
    /// The need of a module with these sizes.
    pub fn new(module: String, directions: Directions, c_in: usize, c_out: usize) -> Self {
        Self { module, directions, cost: c_in + c_out, most: c_in.min(c_out) }
    }

    /// The squared values of the directions that replicate: the gains of [`gelora_lora::ranks::spectra::greedy`].
    pub fn spectrum(&self) -> Spectrum {
        let gains = self.directions.values.iter().map(|value| value * value).collect();
        Spectrum { gains, cost: self.cost, most: self.most }
    }
}

/// Measures the gradient of every target module on labeled rows, or on those of a language model. The model is used up:
/// its head is trained, and it has adapters afterwards.
///
/// # Errors
/// Returns an error if an option is out of range or names no module of the model, there are fewer rows than parts, the
/// labels do not fit the model's task, the training of the head diverges, the device fails, or `progress` returns an
/// error.
pub fn gradient_needs<R: Reply>(
    mut model: TaskModel,
    rows: &dyn Rows,
    options: &GradientOptions,
    progress: &mut impl FnMut(Event<'_>) -> R,
) -> Result<Vec<Need>> {
    let report: &mut Report<'_> = &mut report(progress);
    if options.parts < 3 || rows.len() < options.parts {
        let problem =
            format!("{} rows in {} parts; expected 3 parts or more, each of a row", rows.len(), options.parts);
        return Err(Error::Value(problem));
    }
    if options.width < 2 {
        return Err(Error::Value(format!("{} directions to look at; expected 2 or more", options.width)));
    }
    if options.columns < options.width {
        let problem = format!("a sketch of {} columns; expected {} or more", options.columns, options.width);
        return Err(Error::Value(problem));
    }
    model.check_labels(rows.labels(), rows.len())?;
    if model.head_task().is_some() && options.head_epochs > 0.0 {
        let head = TrainOptions {
            lr: options.head_lr,
            length: Length::Epochs(options.head_epochs),
            accumulate: TrainOptions::default().batch_size.div_ceil(options.batch_size.max(1)),
            seed: options.seed,
            ..TrainOptions::default()
        };
        report(Event::Remark("training the head alone: the gradient below a random head says nothing"))?;
        Trainer::new(&mut model, rows, head)?.run(&mut |event: Event<'_>| report(event))?;
    }
    let found = gradients::directions(&mut model, rows, options, report)?;
    Ok(found.into_iter().map(|(info, directions)| Need::new(info.name, directions, info.c_in, info.c_out)).collect())
}
