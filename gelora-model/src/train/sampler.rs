//! Chooses the rows of each training step.

use std::ops::Range;

use gelora_kernels::random::Stream;

/// Number of batches whose rows are sorted by length together, as in transformers' group_by_length.
const GROUPED: usize = 50;

/// Returns the rows of every step. An epoch contains each row once, in an order that depends on the seed and the epoch
/// alone.
#[derive(Clone, Debug)]
pub(super) struct Sampler {
    rows: usize,
    batch_size: usize,
    seed: u64,
    /// Length of each row, if batches contain rows of similar length.
    lengths: Option<Vec<usize>>,
}

impl Sampler {
    /// Shuffles the rows and cuts them into batches.
    pub(super) fn shuffled(rows: usize, batch_size: usize, seed: u64) -> Self {
        Self { rows, batch_size, seed, lengths: None }
    }

    /// Shuffles the rows, sorts every group of 50 batches by length, cuts the rows into batches, and shuffles the
    /// batches. The last batch stays last if it is not full.
    pub(super) fn grouped(lengths: Vec<usize>, batch_size: usize, seed: u64) -> Self {
        Self { rows: lengths.len(), batch_size, seed, lengths: Some(lengths) }
    }

    /// Number of steps in an epoch.
    pub(super) fn steps(&self) -> usize {
        self.rows.div_ceil(self.batch_size)
    }

    /// Returns the rows of each of these steps.
    pub(super) fn batches(&self, steps: Range<usize>) -> impl Iterator<Item = Vec<usize>> {
        let (mut order, mut epoch_of_order) = (Vec::new(), None);
        steps.map(move |step| {
            let epoch = step / self.steps();
            if epoch_of_order != Some(epoch) {
                (order, epoch_of_order) = (self.epoch(epoch), Some(epoch));
            }
            order[self.range(step)].to_vec()
        })
    }

    /// Range of a step's rows in the order of its epoch.
    fn range(&self, step: usize) -> Range<usize> {
        let start = (step % self.steps()) * self.batch_size;
        start..self.rows.min(start + self.batch_size)
    }

    fn epoch(&self, epoch: usize) -> Vec<usize> {
        let mut rows: Vec<usize> = (0..self.rows).collect();
        Stream::at(self.seed, &[0x6f72_6465, epoch as u64]).shuffle(&mut rows); // "orde"
        let Some(lengths) = &self.lengths else { return rows };
        for group in rows.chunks_mut(GROUPED * self.batch_size) {
            group.sort_by_key(|&row| lengths[row]);
        }
        let mut batches: Vec<&[usize]> = rows.chunks(self.batch_size).collect();
        let full = self.rows / self.batch_size;
        Stream::at(self.seed, &[0x6772_6f75, epoch as u64]).shuffle(&mut batches[..full]); // "grou"
        batches.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths from 0 to 99, all equally frequent.
    fn lengths(n: usize) -> Vec<usize> {
        (0..n).map(|i| i * 37 % 100).collect()
    }

    #[test]
    fn every_epoch_has_every_row_once_in_a_new_order() {
        let orders = [|seed| Sampler::shuffled(1013, 8, seed), |seed| Sampler::grouped(lengths(1013), 8, seed)];
        let epoch = |order: &Sampler, e: usize| order.batches(e * 127..(e + 1) * 127).collect::<Vec<_>>().concat();
        for order in orders {
            let (a, b) = (epoch(&order(1), 0), epoch(&order(1), 1));
            assert_ne!(a, b);
            assert_ne!(a, epoch(&order(2), 0));
            assert_eq!(a, epoch(&order(1), 0));
            for mut rows in [a, b] {
                rows.sort_unstable();
                assert_eq!(rows, (0..1013).collect::<Vec<_>>());
            }
        }
        assert_ne!(epoch(&orders[0](1), 0), epoch(&orders[1](1), 0));
    }

    #[test]
    fn steps_can_begin_anywhere() {
        let order = Sampler::grouped(lengths(100), 8, 3);
        assert_eq!(order.steps(), 13);
        let all: Vec<_> = order.batches(0..40).collect();
        assert_eq!(all[17..], order.batches(17..40).collect::<Vec<_>>());
        assert!(all.iter().enumerate().all(|(step, rows)| rows.len() == if step % 13 == 12 { 4 } else { 8 }));
    }

    #[test]
    fn grouped_rows_are_of_similar_length() {
        let lengths = lengths(4000);
        let spread = |order: Sampler| {
            let spread = |rows: Vec<usize>| {
                let length = |row: &usize| lengths[*row];
                rows.iter().map(length).max().unwrap_or(0) - rows.iter().map(length).min().unwrap_or(0)
            };
            order.batches(0..125).map(spread).sum::<usize>() / 125
        };
        let (grouped, shuffled) = (Sampler::grouped(lengths.clone(), 32, 1), Sampler::shuffled(4000, 32, 1));
        let (grouped, shuffled) = (spread(grouped), spread(shuffled));
        assert!(grouped <= 3 && shuffled > 80, "{grouped} {shuffled}");
    }
}
