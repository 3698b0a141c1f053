//! The hidden states that a measurement takes: after every block, or after every half of a block.

use serde::{Deserialize, Serialize};

/// Points of the network at which hidden states are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// Before the first block and after each block.
    #[default]
    Block,
    /// Also inside each block: after attention and before the MLP.
    Sublayer,
}

impl Granularity {
    /// The name in ranks.json and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Granularity::Block => "block",
            Granularity::Sublayer => "sublayer",
        }
    }

    /// Number of steps between hidden states in one block.
    pub fn steps_per_block(self) -> usize {
        match self {
            Granularity::Block => 1,
            Granularity::Sublayer => 2,
        }
    }

    /// Index of the step that a linear module of a block belongs to. `attention` is true for a module of the attention.
    pub fn step_of(self, block: usize, attention: bool) -> usize {
        match self {
            Granularity::Block => block,
            Granularity::Sublayer => 2 * block + usize::from(!attention),
        }
    }
}
