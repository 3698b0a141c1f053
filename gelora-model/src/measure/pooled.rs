//! Forward pass that computes one point for each example and hidden state.

use gelora_kernels::Tensor;
use gelora_kernels::ops::pool;
use gelora_kernels::random::Stream;

use super::options::{MeasureOptions, Pool};
use crate::event::{Reply, Report, report};
use crate::{Batch, Event, Granularity, Result, Tokens, Transformer, Work};

/// Returns the indices of the examples to measure, in ascending order: all n, or `samples` of them drawn from the seed.
pub fn sample(n: usize, samples: usize, seed: u64) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..n).collect();
    if samples < n {
        Stream::at(seed, &[0x7361_6d70]).shuffle(&mut rows); // "samp"
        rows.truncate(samples);
        rows.sort_unstable();
    }
    rows
}

/// Computes the pooled hidden states of a model. There is one matrix (n, C) for each state, in order from the input to
/// the output, with one row for each example.
///
/// # Errors
/// Returns an error if a token is outside the model's tables, the device fails, or `progress` returns an error.
pub fn pooled_states<R: Reply>(
    model: &Transformer,
    examples: &[Tokens],
    options: &MeasureOptions,
    progress: &mut impl FnMut(Event<'_>) -> R,
) -> Result<Vec<Tensor>> {
    pooled(model, examples, options, &mut report(progress))
}

/// Reads the pooled hidden states from the cache if it has them, else runs the model.
pub(super) fn pooled(
    model: &Transformer,
    examples: &[Tokens],
    options: &MeasureOptions,
    report: &mut Report<'_>,
) -> Result<Vec<Tensor>> {
    let &MeasureOptions { pool, granularity, seed, batch_size, ref cache, .. } = options;
    // The key of the cache covers the model's files, but no adapter that was attached later.
    let Some(cache) = cache.as_ref().filter(|_| model.lowest_adapted().is_none()) else {
        return forward(model, examples, options, report);
    };
    // The seed and the batch size matter only if tokens are drawn at random, which happens batch by batch.
    let drawn = (pool == Pool::Token).then_some((seed, batch_size));
    let settings = format!("{pool:?} {granularity:?} {drawn:?} {} {:?}", model.dtype(), model.device().kind());
    let entry = cache.entry(model.source(), examples, &settings)?;
    let states = state_names(model.config().layers, granularity).len();
    if let Some(points) = entry.read(states) {
        report(Event::CacheHit)?;
        return Ok(points);
    }
    let points = forward(model, examples, options, report)?;
    if let Err(problem) = entry.write(&points) {
        report(Event::Remark(&format!("the hidden states could not be cached: {problem}")))?;
    }
    Ok(points)
}

fn forward(
    model: &Transformer,
    examples: &[Tokens],
    options: &MeasureOptions,
    report: &mut Report<'_>,
) -> Result<Vec<Tensor>> {
    let channels = model.config().hidden;
    let number = state_names(model.config().layers, options.granularity).len();
    let mut states: Vec<Vec<f32>> = vec![Vec::with_capacity(examples.len() * channels); number];
    let mut stream = Stream::at(options.seed, &[0x746f_6b65]); // "toke"
    report(Event::Began { work: Work::HiddenStates, units: examples.len() })?;
    for chunk in examples.chunks(options.batch_size) {
        let batch = Batch::of_tokens(chunk)?;
        let rows = chosen_rows(&batch, options.pool, &mut stream);
        // Pool each state as it is computed, so that only one full state is in memory.
        let mut pooled = Vec::new();
        model.hidden_states(&batch, options.granularity, |_, tokens| {
            pooled.push(match &rows {
                None => pool::mean(tokens, batch.sequences())?,
                Some(rows) => pool::rows(tokens, rows)?,
            });
            Ok(())
        })?;
        // Read the states after the whole forward pass has been launched, so that a GPU is waited for only once.
        for (state, points) in states.iter_mut().zip(&pooled) {
            state.extend(points.to_vec()?);
        }
        report(Event::Advanced { units: chunk.len() })?;
    }
    report(Event::Finished { work: Work::HiddenStates })?;
    states.into_iter().map(|s| Ok(Tensor::from_vec(s, [examples.len(), channels])?)).collect()
}

/// The row that represents each sequence, or None for the mean of all rows.
fn chosen_rows(batch: &Batch, pool: Pool, stream: &mut Stream) -> Option<Vec<usize>> {
    let ranges = batch.sequences().ranges();
    match pool {
        Pool::Mean => None,
        Pool::First => Some(ranges.map(|r| r.start).collect()),
        Pool::Last => Some(ranges.map(|r| r.end - 1).collect()),
        Pool::Token => Some(ranges.map(|r| r.start + stream.below(r.len())).collect()),
    }
}

/// Names of the hidden states, in order from the input to the output: "embeddings", "after layer 0", "after attention
/// 0".
pub fn state_names(layers: usize, granularity: Granularity) -> Vec<String> {
    let names_of_layer = |l: usize| match granularity {
        Granularity::Block => vec![format!("after layer {l}")],
        Granularity::Sublayer => vec![format!("after attention {l}"), format!("after layer {l}")],
    };
    std::iter::once("embeddings".to_owned()).chain((0..layers).flat_map(names_of_layer)).collect()
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
        let sublayers = state_names(2, Granularity::Sublayer);
        assert_eq!((sublayers.len(), &sublayers[1][..], &sublayers[4][..]), (5, "after attention 0", "after layer 1"));
    }
}
