//! A minimal transformer: load one from a Hugging Face folder or a GGUF file, take its hidden states, train LoRA adapters and
//! a head with explicit backward functions, and write the result back.
//!
//! - [`Transformer`]: embeddings, blocks, hidden states.
//! - [`Classifier`]: a transformer with a task head, in training or not; loss, gradients and logits.
//! - [`CausalLm`]: a decoder that predicts the next token: loss, gradients, and text that goes on.
//! - [`optim`]: AdamW over named parameters, the schedule, clipping.
//! - A family (BERT, ...) is one file under `family/` that translates a config.json and weight names into blocks; no
//!   model code is copied per family.
//!
//! Training has no tape. `forward` returns what the matching `backward` needs as a typed value, which `backward` takes by
//! value: a second backward pass does not compile, and activations are freed on the way down. Frozen weights have no
//! gradient code.
//!
//! A batch is unpadded (see [`gelora_kernels::Offsets`]): [`Batch`] holds its tokens one sequence after the other.
//!
//! ```no_run
//! use gelora_kernels::ops::pool;
//! use gelora_model::{Batch, Transformer, Granularity};
//!
//! let model = Transformer::load("all-MiniLM-L6-v2".as_ref())?;
//! let batch = Batch::new(&[(vec![101, 7592, 102], vec![0, 0, 0])])?;
//! model.hidden_states(&batch, Granularity::Block, |state, tokens| {
//!     let point = pool::mean(tokens, batch.sequences())?; // (1, D)
//!     println!("state {state}: {:?}", &point.to_vec()?[..4]);
//!     Ok(())
//! })?;
//! # Ok::<(), gelora_model::Error>(())
//! ```

mod adapter;
mod attention;
mod batch;
mod bitsandbytes;
mod block;
mod causal;
pub mod checkpoint;
mod classifier;
mod config;
mod convolution;
mod disentangled;
mod error;
mod family;
mod generate;
pub mod gguf;
mod head;
mod linear;
mod merged;
mod mlp;
mod norm;
pub mod optim;
mod pass;
mod position;
mod torch_file;
mod transformer;
mod weights;

pub use adapter::{AdapterTask, read_adapter};
pub use batch::Batch;
pub use causal::CausalLm;
pub use classifier::{Classifier, Targets, Task};
pub use config::Config;
pub use error::{Error, Result};
pub use generate::Sampling;
pub use linear::{Grads, Linear};
pub use pass::Pass;
pub use transformer::{Granularity, LinearInfo, Transformer};
