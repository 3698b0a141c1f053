//! Models and data sets by their id on a hub: a server on this machine that does what the real one does.

#[path = "../common/mod.rs"]
mod common;
mod dataset;
mod model;
mod server;
mod transfer;
