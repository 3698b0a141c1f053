//! Tokenizes the rows of the next training step while the current step runs.

use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use super::parts::Share;
use super::sampler::Sampler;
use crate::{Result, Rows, Tokens};

/// The rows of one step.
#[derive(Debug)]
pub(super) struct StepRows {
    /// Their indices in the dataset.
    pub indices: Vec<usize>,
    /// Their tokens. Rows of other processes have none.
    pub tokens: Vec<Tokens>,
}

/// Starts a thread that tokenizes the rows of these steps, or those in a share of them, in order and one step ahead.
/// Tokens are not kept: tokenizing again in the next epoch costs a hundredth of a step. The thread ends when the
/// receiver is dropped.
pub(super) fn start<'scope>(
    rows: &'scope dyn Rows,
    sampler: &'scope Sampler,
    scope: &'scope Scope<'scope, '_>,
    steps: Range<usize>,
    share: Option<Share>,
) -> Receiver<Result<StepRows>> {
    // A channel without a buffer: the thread holds the next rows until the current step has finished.
    let (sender, receiver) = sync_channel(0);
    scope.spawn(move || {
        for indices in sampler.batches(steps) {
            let rows = tokens_of(rows, &indices, share.as_ref()).map(|tokens| StepRows { indices, tokens });
            let failed = rows.is_err();
            if sender.send(rows).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

fn tokens_of(rows: &dyn Rows, indices: &[usize], share: Option<&Share>) -> Result<Vec<Tokens>> {
    let Some(share) = share.filter(|share| !share.processes.is_alone()) else { return rows.tokens(indices) };
    let is_mine = |position: &usize| share.has(*position, indices.len());
    let positions: Vec<usize> = (0..indices.len()).filter(is_mine).collect();
    let mine: Vec<usize> = positions.iter().map(|position| indices[*position]).collect();
    let mut all = vec![Tokens::of_ids(Vec::new()); indices.len()];
    for (position, tokens) in positions.into_iter().zip(rows.tokens(&mine)?) {
        all[position] = tokens;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::{Error, Labels};

    /// Four rows, of which the third cannot be tokenized.
    struct Broken;

    impl Rows for Broken {
        fn len(&self) -> usize {
            4
        }

        fn tokens(&self, rows: &[usize]) -> Result<Vec<Tokens>> {
            let tokens = |&row: &usize| match row {
                2 => Err(Error::Rows("row 3: no tokens".into())),
                row => Ok(Tokens::of_ids(vec![row as u32])),
            };
            rows.iter().map(tokens).collect()
        }

        fn labels(&self) -> Labels<'_> {
            Labels::None
        }

        fn lengths(&self) -> Vec<usize> {
            vec![1; 4]
        }
    }

    #[test]
    fn rows_arrive_in_order_until_one_cannot_be_tokenized() {
        let sampler = Sampler::shuffled(4, 1, 5);
        let wanted: Vec<usize> = sampler.batches(0..4).flatten().collect();
        let bad = wanted.iter().position(|row| *row == 2).unwrap();
        assert!(bad > 0, "a row before the bad one");
        thread::scope(|scope| {
            let receiver = start(&Broken, &sampler, scope, 0..4, None);
            for row in &wanted[..bad] {
                let rows = receiver.recv().unwrap().unwrap();
                assert_eq!((rows.indices, rows.tokens), (vec![*row], vec![Tokens::of_ids(vec![*row as u32])]));
            }
            let error = receiver.recv().unwrap().unwrap_err().to_string();
            assert!(error.contains("row 3: no tokens"), "{error}");
            assert!(receiver.recv().is_err(), "nothing comes after an error");
        });
    }

    #[test]
    fn the_thread_ends_when_the_receiver_is_dropped() {
        let sampler = Sampler::shuffled(4, 1, 5);
        // If the thread did not end, the scope would never return.
        thread::scope(|scope| drop(start(&Broken, &sampler, scope, 0..4, None)));
    }
}
