//! The tokens of training steps, made while the step before runs.

use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use anyhow::{Context, Result};

use super::order::Order;
use crate::data::Dataset;
use crate::tokenize::{Encoded, Tokenizer};

/// Where steps get their rows from.
pub struct Source {
    pub dataset: Dataset,
    pub tokenizer: Tokenizer,
    /// What a language model learns from, made before; else the rows of the data are encoded when they are needed.
    pub made: Option<Vec<Encoded>>,
    pub order: Order,
}

/// The rows of one step.
pub struct Rows {
    /// Their indices in the data.
    pub indices: Vec<usize>,
    /// Their tokens.
    pub tokens: Vec<Encoded>,
}

impl Source {
    /// Rows of an epoch.
    pub fn len(&self) -> usize {
        self.made.as_ref().map_or(self.dataset.examples.len(), Vec::len)
    }

    /// Starts a thread that makes the rows of these steps, in order and one step ahead. Tokens are not kept: making them
    /// again in the next epoch costs a hundredth of a step. The thread ends when the receiver is dropped.
    pub fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        steps: Range<usize>,
    ) -> Receiver<Result<Rows>> {
        // Without a place to put them down, the next rows are made and held while a step runs.
        let (sender, receiver) = sync_channel(0);
        scope.spawn(move || {
            for indices in self.order.batches(steps) {
                let rows = self.rows(indices);
                let failed = rows.is_err();
                if sender.send(rows).is_err() || failed {
                    return;
                }
            }
        });
        receiver
    }

    fn rows(&self, indices: Vec<usize>) -> Result<Rows> {
        if let Some(made) = &self.made {
            return Ok(Rows { tokens: indices.iter().map(|&row| made[row].clone()).collect(), indices });
        }
        let tokens =
            |&row: &usize| self.tokenizer.encode(&self.dataset.examples[row]).with_context(|| self.dataset.place(row));
        Ok(Rows { tokens: indices.iter().map(tokens).collect::<Result<_>>()?, indices })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::thread;

    use super::*;

    /// A tokenizer without an unknown token, and data of which one row needs it.
    fn source() -> Source {
        let folder = tempfile::tempdir().unwrap();
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/tiny-bert/tokenizer.json");
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(tiny).unwrap()).unwrap();
        json["model"]["unk_token"] = "[NONE]".into();
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        let data = folder.path().join("rows.csv");
        std::fs::write(&data, "text,label\nthe film,0\na plot,1\nthe \u{2603},0\nthe good film,1\n").unwrap();
        Source {
            dataset: crate::data::read(&data, None, &Default::default()).unwrap(),
            tokenizer: Tokenizer::open(folder.path()).unwrap(),
            made: None,
            order: Order::shuffled(4, 1, 5),
        }
    }

    #[test]
    fn rows_come_in_order_until_one_has_no_tokens() {
        let source = source();
        let wanted: Vec<usize> = source.order.batches(0..4).flatten().collect();
        let bad = wanted.iter().position(|row| *row == 2).unwrap();
        thread::scope(|scope| {
            let receiver = source.start(scope, 0..4);
            for row in &wanted[..bad] {
                let rows = receiver.recv().unwrap().unwrap();
                assert_eq!(rows.indices, [*row]);
                assert_eq!(rows.tokens, [source.tokenizer.encode(&source.dataset.examples[*row]).unwrap()]);
            }
            let error = format!("{:#}", receiver.recv().unwrap().err().unwrap());
            assert!(error.contains("rows.csv: row 3 (line 4): tokenizer: "), "{error}");
            assert!(receiver.recv().is_err(), "nothing comes after an error");
        });
    }

    #[test]
    fn the_thread_ends_with_its_receiver() {
        let source = source();
        thread::scope(|scope| drop(source.start(scope, 0..4))); // a thread that went on would never be joined
    }
}
