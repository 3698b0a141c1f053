//! The GeLoRA method on a minimal transformer: load a model, measure a rank for every LoRA matrix on your own data,
//! train the adapter, evaluate it, and write it in PEFT's format.
//!
//! Measure ranks and write the PEFT config, for use with any trainer:
//!
//! ```no_run
//! # let tokens: Vec<gelora_model::Tokens> = Vec::new();
//! use gelora_model::{Event, MeasureOptions, Transformer, measure};
//!
//! let model = Transformer::load("all-MiniLM-L6-v2".as_ref())?;
//! let mut progress = |event: Event<'_>| println!("{event}");
//! let ranks = measure(&model, &tokens, &MeasureOptions::default(), &mut progress)?;
//! ranks.adapter_config(&model)?.write("adapter_config.json".as_ref())?;
//! # Ok::<(), gelora_model::Error>(())
//! ```
//!
//! Train an adapter with these ranks:
//!
//! ```no_run
//! # let (rows, ranks) = (gelora_model::TokenRows::new(Vec::new()), Default::default());
//! use gelora_model::{Classifier, Task, TaskModel, TrainOptions, Trainer};
//!
//! let task = Task::Classification { labels: vec!["bad".into(), "good".into()] };
//! let mut model = TaskModel::from(Classifier::new("all-MiniLM-L6-v2".as_ref(), task, 0)?);
//! let mut trainer = Trainer::new(&mut model, &rows, TrainOptions { ranks, lr: 1e-3, ..Default::default() })?;
//! trainer.run(&mut |event| println!("{event}"))?;
//! trainer.adapter().write("adapter".as_ref())?;
//! # Ok::<(), gelora_model::Error>(())
//! ```
//!
//! | module or type | what it does |
//! |---|---|
//! | [`Transformer`] | loads a Hugging Face folder or a GGUF file; computes hidden states |
//! | [`Classifier`], [`CausalLm`], [`TaskModel`] | a transformer with a task head or a language-model head |
//! | [`measure()`], [`mod@measure`] | turn tokens into intrinsic dimensions, and those into ranks |
//! | [`Trainer`], [`train`] | optimizer steps, checkpoints, metrics on held-out rows |
//! | [`evaluate()`], [`mod@evaluate`] | predictions and metrics |
//! | [`distributed`] | the same work on several processes |
//! | [`eva`] | directions in which the inputs of modules vary, to begin adapters with |
//! | [`adalora`] | ranks that are given up while a training runs |
//! | [`optim`] | AdamW over named parameters, the learning-rate schedule, clipping |
//! | [`gguf`], [`checkpoint`] | weight files |
//!
//! This crate does not tokenize. [`Tokens`] holds the token ids of one example, made by any tokenizer. Each model
//! family (BERT, ...) is one file under `family/`, which translates a config.json and weight names into blocks.
//!
//! Training needs no tape. `forward` returns a typed value, and the matching `backward` takes it by value: a second
//! backward pass does not compile, and activations are freed on the way down. Frozen weights have no gradient code. A
//! [`Batch`] is unpadded: its sequences follow each other without gaps (see [`gelora_kernels::Offsets`]).

#![forbid(unsafe_code)]
#![warn(missing_debug_implementations)]

pub mod adalora;
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
pub mod distributed;
mod error;
pub mod eva;
pub mod evaluate;
mod event;
mod family;
mod generate;
pub mod gguf;
mod granularity;
mod head;
mod kv_cache;
mod linear;
pub mod measure;
mod merged;
mod mlp;
mod mode;
pub mod needs;
mod norm;
pub mod optim;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub mod plan;
mod position;
mod probe;
mod record;
mod rows;
mod sublayer;
mod task;
mod task_model;
mod torch_file;
pub mod train;
mod transformer;
mod weights;

pub use adapter::{AdapterTask, read_adapter};
pub use batch::{Batch, Tokens};
pub use causal::CausalLm;
pub use classifier::{Classifier, Targets, Task};
pub use config::Config;
pub use error::{Error, Result};
pub use evaluate::evaluate;
pub use event::{Event, Reply, Work};
pub use generate::Sampling;
pub use granularity::Granularity;
pub use linear::{Grads, Linear};
pub use measure::{MeasureOptions, measure};
pub use mode::Mode;
pub use rows::{Labels, Rows, TokenRows};
pub use task::{LM_MAX_LENGTH, is_language_model};
pub use task_model::TaskModel;
pub use train::{TrainOptions, Trainer};
pub use transformer::{LinearInfo, Transformer};
