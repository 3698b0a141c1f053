//! Models and datasets by their id, on a local server that behaves like the hub.

#[path = "../common/mod.rs"]
mod common;
mod dataset;
mod model;
mod server;
mod transfer;
