//! Forward pass that computes one point for each example and hidden state.

use gelora_kernels::Tensor;
use gelora_kernels::ops::pool;
use gelora_kernels::random::Stream;

use super::options::{MeasureOptions, Pool};
use crate::distributed::{Processes, bytes_of, floats_of};
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
/// the output, with one row for each example. Several processes share the batches, and each returns all points.
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
    let &MeasureOptions { pool, granularity, seed, batch_size, ref cache, ref processes, .. } = options;
    // The key of the cache covers the model's files, but no adapter that was attached later.
    let cache = cache.as_ref().filter(|_| model.lowest_adapted().is_none());
    // A process without a cache folder would not know that the others have the points.
    let lacks_cache = processes.any(cache.is_none())?;
    let Some(cache) = cache.filter(|_| !lacks_cache) else {
        return forward(model, examples, options, report);
    };
    // The seed and the batch size matter only if tokens are drawn at random, which happens batch by batch.
    let drawn = (pool == Pool::Token).then_some((seed, batch_size));
    let settings = format!("{pool:?} {granularity:?} {drawn:?} {} {:?}", model.dtype(), model.device().kind());
    let entry = cache.entry(model.source(), examples, &settings)?;
    let states = state_names(model.config().layers, granularity).len();
    let cached = if processes.is_first() { entry.read(states) } else { None };
    if processes.any(cached.is_some())? {
        report(Event::CacheHit)?;
        return cached_points(processes, cached, states, [examples.len(), model.config().hidden]);
    }
    let points = forward(model, examples, options, report)?;
    if processes.is_first()
        && let Err(problem) = entry.write(&points)
    {
        report(Event::Remark(&format!("the hidden states could not be cached: {problem}")))?;
    }
    Ok(points)
}

/// Returns the points that the first process found in its cache.
fn cached_points(
    processes: &Processes,
    cached: Option<Vec<Tensor>>,
    states: usize,
    shape: [usize; 2],
) -> Result<Vec<Tensor>> {
    if processes.is_alone() {
        return Ok(cached.unwrap_or_default());
    }
    let of_state = |s: usize| {
        let own = cached.as_ref().and_then(|points| points.get(s));
        let own = own.map(|points| points.to_vec()).transpose()?.unwrap_or_default();
        let points = floats_of(&processes.broadcast(bytes_of(&own))?);
        Ok(Tensor::from_vec(points, shape)?)
    };
    (0..states).map(of_state).collect()
}

fn forward(
    model: &Transformer,
    examples: &[Tokens],
    options: &MeasureOptions,
    report: &mut Report<'_>,
) -> Result<Vec<Tensor>> {
    let (channels, processes) = (model.config().hidden, &options.processes);
    let number = state_names(model.config().layers, options.granularity).len();
    let mut stream = Stream::at(options.seed, &[0x746f_6b65]); // "toke"
    let batches: Vec<&[Tokens]> = examples.chunks(options.batch_size).collect();
    let (world, rank) = (processes.world(), processes.rank());
    // The points of each state, batch by batch.
    let mut mine: Vec<Vec<Vec<f32>>> = vec![Vec::new(); number];
    report(Event::Began { work: Work::HiddenStates, units: examples.len() })?;
    for (b, &examples) in batches.iter().enumerate() {
        let batch = Batch::of_tokens(examples)?;
        // Every process draws the rows of all batches, so that the draws do not depend on the number of processes.
        let rows = chosen_rows(&batch, options.pool, &mut stream);
        if b % world == rank {
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
            for (state, points) in mine.iter_mut().zip(&pooled) {
                state.push(points.to_vec()?);
            }
        }
        report(Event::Advanced { units: examples.len() })?;
    }
    report(Event::Finished { work: Work::HiddenStates })?;
    let gathered = |state: Vec<Vec<f32>>| -> Result<Tensor> {
        let points = match processes.is_alone() {
            true => state.concat(),
            false => {
                let state = state.iter().map(|points| bytes_of(points)).collect();
                floats_of(&processes.collect(batches.len(), state)?.concat())
            }
        };
        Ok(Tensor::from_vec(points, [examples.len(), channels])?)
    };
    mine.into_iter().map(gathered).collect()
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
