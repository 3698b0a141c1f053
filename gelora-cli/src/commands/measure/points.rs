//! The pass over the model: one point for each example and hidden state.

use anyhow::Result;
use gelora_kernels::ops::pool;
use gelora_kernels::random::Stream;
use gelora_kernels::{Device, Tensor};
use gelora_model::{Batch, Granularity, Transformer};

use crate::args::PoolArg;
use crate::tokenize::Encoded;
use crate::ui::Progress;

/// Indices of the examples to measure on, ascending: all, or `samples` of them drawn from the seed.
pub fn sample(n: usize, samples: usize, seed: u64) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..n).collect();
    if samples < n {
        Stream::at(seed, &[0x7361_6d70]).shuffle(&mut rows); // "samp"
        rows.truncate(samples);
        rows.sort_unstable();
    }
    rows
}

/// How the pass is made.
#[derive(Clone, Copy, Debug)]
pub struct Passes {
    pub pool: PoolArg,
    pub granularity: Granularity,
    pub batch_size: usize,
    pub seed: u64,
    pub quiet: bool,
}

/// One point for each example and hidden state: as many tensors (n, D) as there are states.
pub fn points(encoder: &Transformer, examples: &[Encoded], passes: Passes) -> Result<Vec<Tensor>> {
    let d = encoder.config().hidden;
    let number = state_names(encoder.config().layers, passes.granularity).len();
    let mut states: Vec<Vec<f32>> = vec![Vec::with_capacity(examples.len() * d); number];
    let mut stream = Stream::at(passes.seed, &[0x746f_6b65]); // "toke"
    let progress = Progress::new(passes.quiet, "hidden states", examples.len() as u64);
    for chunk in examples.chunks(passes.batch_size) {
        let batch = crate::commands::batch(chunk)?;
        let rows = chosen_rows(&batch, passes.pool, &mut stream);
        let mut pooled = Vec::new();
        encoder.hidden_states(&batch, passes.granularity, |_, tokens| {
            pooled.push(match &rows {
                None => pool::mean(tokens, batch.sequences())?,
                Some(rows) => pool::rows(tokens, rows)?,
            });
            Ok(())
        })?;
        // Read when the whole pass is on its way, so that a GPU is waited for once.
        for (state, points) in states.iter_mut().zip(&pooled) {
            state.extend(points.to_vec()?);
        }
        progress.inc(chunk.len() as u64);
    }
    progress.finish();
    states.into_iter().map(|s| Ok(Tensor::from_vec(s, [examples.len(), d])?)).collect()
}

/// The row of each sequence that stands for it, or None for the mean of all.
fn chosen_rows(batch: &Batch, pool: PoolArg, stream: &mut Stream) -> Option<Vec<usize>> {
    let ranges = batch.sequences().ranges();
    match pool {
        PoolArg::Mean => None,
        PoolArg::First => Some(ranges.map(|r| r.start).collect()),
        PoolArg::Last => Some(ranges.map(|r| r.end - 1).collect()),
        PoolArg::Token => Some(ranges.map(|r| r.start + stream.below(r.len())).collect()),
    }
}

/// What the states are called, from the input up.
pub fn state_names(layers: usize, granularity: Granularity) -> Vec<String> {
    let of_layer = |l: usize| match granularity {
        Granularity::Block => vec![format!("after layer {l}")],
        Granularity::Sublayer => vec![format!("after attention {l}"), format!("after layer {l}")],
    };
    std::iter::once("embeddings".to_owned()).chain((0..layers).flat_map(of_layer)).collect()
}

/// The points on a device that searches them.
pub fn to_device(points: Vec<Tensor>, device: &Device) -> Result<Vec<Tensor>> {
    Ok(points.into_iter().map(|state| state.to_device(device)).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_a_sorted_subset_that_depends_on_the_seed() {
        assert_eq!(sample(5, 9, 1), [0, 1, 2, 3, 4]);
        let s = sample(1000, 100, 1);
        assert!(s.len() == 100 && s.windows(2).all(|w| w[0] < w[1]) && s[99] < 1000);
        assert_eq!(s, sample(1000, 100, 1));
        assert_ne!(s, sample(1000, 100, 2));
    }

    #[test]
    fn states_are_named_from_the_input_up() {
        assert_eq!(state_names(2, Granularity::Block), ["embeddings", "after layer 0", "after layer 1"]);
        let halves = state_names(2, Granularity::Sublayer);
        assert_eq!((halves.len(), &halves[1][..], &halves[4][..]), (5, "after attention 0", "after layer 1"));
    }
}
