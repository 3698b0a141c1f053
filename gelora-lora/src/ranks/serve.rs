//! The ranks that servers of LoRA adapters accept.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A server that loads LoRA adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Server {
    /// vLLM. It allocates memory for one rank, `--max-lora-rank`, out of [`Server::ranks`], and pads every module of
    /// every adapter to it. It scales by `lora_alpha / r` of adapter_config.json and does not read `rank_pattern` and
    /// `alpha_pattern`. That is correct for an adapter with the same alpha / r in every module, as all policies of this
    /// crate make them, and wrong for others.
    Vllm,
}

impl Server {
    /// The ranks that the server can be started with, ascending.
    #[must_use]
    pub fn ranks(self) -> &'static [usize] {
        match self {
            Server::Vllm => &[1, 8, 16, 32, 64, 128, 256, 320, 512],
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Server::Vllm => "vllm",
        })
    }
}

impl FromStr for Server {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "vllm" => Ok(Server::Vllm),
            _ => Err(Error::Ranks { problem: format!("unknown server {s:?}; known is vllm") }),
        }
    }
}

/// The smallest rank to start a server with for an adapter of these ranks.
///
/// # Errors
/// If the largest rank is above every rank that the server accepts.
pub fn max_lora_rank(server: Server, ranks: impl IntoIterator<Item = usize>) -> Result<usize> {
    let largest = ranks.into_iter().max().unwrap_or(0);
    let allowed = server.ranks();
    allowed.iter().copied().find(|rank| *rank >= largest).ok_or_else(|| Error::Ranks {
        problem: format!("{server} serves ranks up to {}, got {largest}", allowed[allowed.len() - 1]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_allowed_rank_is_taken() -> Result<()> {
        for (largest, started) in [(1, 1), (2, 8), (8, 8), (9, 16), (257, 320), (512, 512)] {
            assert_eq!(max_lora_rank(Server::Vllm, [1, largest])?, started);
        }
        let message = max_lora_rank(Server::Vllm, [513]).unwrap_err().to_string();
        assert!(message.contains("vllm serves ranks up to 512, got 513"), "{message}");
        assert_eq!("vllm".parse::<Server>()?.to_string(), "vllm");
        assert!("tgi".parse::<Server>().is_err());
        Ok(())
    }
}
