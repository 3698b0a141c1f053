//! LoRA adapters: ranks from intrinsic dimensions, the layer, PEFT adapter folders, merging.
//!
//! - [`ranks`]: one rank per layer from the intrinsic dimensions of hidden states (GeLoRA).
//! - [`AdapterConfig`]: adapter_config.json, and PEFT's rules for which module has which rank.
//! - [`LoraLayer`]: A and B of one module.
//! - [`Adapter`]: a folder that PEFT reads and writes.
//! - [`directions`]: how many directions of a gradient replicate, and [`ranks::spectra`] the ranks that follow.
//! - [`cut`]: the singular values of a trained adapter, and the adapter cut to a budget.
//! - [`merge`]: merges an adapter into the weight, and unmerges it.
//! - [`files`]: safetensors files, and atomic writes.
//!
//! This crate knows a module as a name with two sizes. The names of a model's modules, and their weights, come from the
//! caller.
//!
//! ```
//! use gelora_lora::ranks::{self, Limits, Policy, Step};
//! use gelora_lora::{AdapterConfig, LoraLayer};
//!
//! // Intrinsic dimensions of the 4 hidden states of a model with 3 layers.
//! let step = |delta| Step { delta, upper: delta, cost: 2 * (384 + 384), most: 384 };
//! let steps: Vec<Step> = ranks::differences(&[6.1, 8.9, 9.3, 8.0])?.into_iter().map(step).collect();
//! let layers = ranks::assign(&steps, &Policy::default(), 2.0, &Limits::default())?;
//! assert_eq!(layers.iter().map(|l| l.rank).collect::<Vec<_>>(), [4, 2, 1]);
//!
//! // One config for all query and value projections, to be trained here or in PEFT.
//! let name = |layer, projection| format!("bert.encoder.layer.{layer}.attention.self.{projection}");
//! let modules: Vec<_> =
//!     layers.iter().zip(0..).flat_map(|(s, l)| ["query", "value"].map(|p| (name(l, p), s.rank, s.alpha))).collect();
//! let others = ["bert.pooler.dense", "classifier"];
//! let config = AdapterConfig {
//!     task_type: Some("SEQ_CLS".into()),
//!     modules_to_save: Some(vec!["classifier".into()]),
//!     ..AdapterConfig::for_modules(&modules, "bert.", &others)?
//! };
//!
//! // The settings of one module, and a new adapter for it.
//! let query = config.module(&name(0, "query"))?.unwrap();
//! assert_eq!((query.rank, query.alpha, query.scaling), (4, 8.0, 2.0));
//! assert!(config.module("bert.pooler.dense")?.is_none());
//! let layer = LoraLayer::new(&name(0, "query"), 384, 384, &query, 42)?;
//! assert_eq!(layer.a.shape(), [4, 384]);
//! # Ok::<(), gelora_lora::Error>(())
//! ```

#![deny(unsafe_code)]
#![warn(missing_debug_implementations, unreachable_pub)]

pub mod adalora;
mod adapter;
mod config;
pub mod cut;
pub mod directions;
mod error;
pub mod eva;
pub mod files;
mod for_modules;
mod layer;
mod matcher;
pub mod merge;
mod patterns;
mod peft_adalora;
mod pissa;
pub mod ranks;
mod svd;

pub use adapter::{Adapter, WEIGHTS_NAME};
pub use config::{AdapterConfig, CONFIG_NAME, Init, Layers, ModuleConfig, Names};
pub use error::{Error, Result};
pub use layer::{Initial, LoraLayer};
pub use matcher::Matcher;
pub use patterns::Patterns;
