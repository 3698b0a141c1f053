//! Steps on rows of one made-up text, to see what memory a training takes.

use super::Trainer;
use super::loader::StepRows;
use crate::optim::Optimizer;
use crate::{Result, Tokens};

/// A step that is rehearsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    /// Number of rows of the step.
    pub rows: usize,
    /// Number of tokens of each row.
    pub tokens: usize,
    /// Number of parts that the rows are run in.
    pub accumulate: usize,
    /// Whether the forward pass keeps only the input of each block.
    pub checkpoint_activations: bool,
}

impl Trainer<'_> {
    /// Runs `steps` optimizer steps on rows of one made-up text. The adapters are then of no use. The labels are those
    /// of the trainer's first row.
    ///
    /// # Errors
    /// Returns an error if the device runs out of memory or fails, or a row is longer than the model allows.
    pub fn rehearse(&mut self, rehearsal: Rehearsal, steps: usize, optimizer: &mut Optimizer) -> Result<()> {
        let Rehearsal { rows, tokens, accumulate, checkpoint_activations } = rehearsal;
        let row = Tokens::of_ids(vec![0; tokens]);
        let rows = StepRows { indices: vec![0; rows], tokens: vec![row; rows] };
        let options = self.options.clone();
        (self.options.accumulate, self.options.checkpoint_activations) = (accumulate, checkpoint_activations);
        let ran = (0..steps).try_for_each(|step| {
            let launched = self.launch(&rows, step, optimizer)?;
            self.finish(launched).map(drop)
        });
        self.options = options;
        ran
    }
}
