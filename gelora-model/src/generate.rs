//! Text generation: one token after the other, with the keys and values of earlier tokens cached.

use std::cell::RefCell;
use std::collections::BTreeSet;

use gelora_kernels::random::Stream;

use crate::kv_cache::KvCache;
use crate::{Batch, CausalLm, Error, Result};

/// Rule that chooses the next token. The default takes the most probable one; among equally probable tokens, the one
/// with the smallest id.
///
/// Source: the logits processors of transformers, in their order: repetition penalty, temperature, top k, top p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Draw from softmax(logits / temperature). Below 1, tokens that are already probable are favored; 0 takes the most
    /// probable token.
    pub temperature: f32,
    /// Draw among the k most probable tokens; 0 for all.
    pub top_k: usize,
    /// Draw among the fewest tokens whose probabilities sum to at least this share, above 0 and at most 1.
    pub top_p: f32,
    /// Divide the logits above 0 of tokens that occurred in the prompt or since by this number, and multiply those
    /// below 0 by it. Above 0; 1 changes nothing.
    ///
    /// Source: Keskar et al., "CTRL", arXiv 1909.05858, section 4.1.
    pub repetition_penalty: f32,
    /// Seed of the random draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl CausalLm {
    /// Generates up to `max_tokens` tokens after `ids` and stops before any token in `stop`. Calls `on_token` with each
    /// generated token; generation ends when it returns false.
    ///
    /// # Errors
    /// Returns an error if `ids` is empty, a token is not in the vocabulary, `ids` and `max_tokens` together exceed the
    /// model's positions, or a sampling parameter is out of range.
    pub fn generate(
        &self,
        ids: &[u32],
        max_tokens: usize,
        sampling: Sampling,
        stop: &[u32],
        mut on_token: impl FnMut(u32) -> bool,
    ) -> Result<Vec<u32>> {
        let config = self.transformer().config();
        if ids.len() + max_tokens > config.max_positions {
            let (given, positions) = (ids.len(), config.max_positions);
            return Err(Error::Value(format!(
                "{given} tokens and {max_tokens} more exceed the model's {positions} positions"
            )));
        }
        let mut sampler = Sampler::new(sampling, ids)?;
        let cache = RefCell::new(KvCache::new(config.layers));
        let (mut next, mut past, mut all) = (ids.to_vec(), 0, Vec::new());
        while all.len() < max_tokens {
            let batch = Batch::after(&next, past)?;
            let last = self.transformer().forward_cached(&batch, &cache)?;
            past += next.len();
            let logits = self.logits_of(&gelora_kernels::ops::pool::rows(&last, &[last.rows() - 1])?)?.to_vec()?;
            let token = sampler.choose(logits);
            if stop.contains(&token) {
                break;
            }
            all.push(token);
            if !on_token(token) {
                break;
            }
            next = vec![token];
        }
        Ok(all)
    }
}

struct Sampler {
    sampling: Sampling,
    stream: Stream,
    /// Tokens that occurred, if they are penalized.
    seen: BTreeSet<u32>,
}

impl Sampler {
    fn new(sampling: Sampling, prompt: &[u32]) -> Result<Self> {
        let Sampling { temperature, top_p, repetition_penalty, seed, .. } = sampling;
        let wrong = [
            ("temperature must be at least 0", temperature, temperature >= 0.0 && temperature.is_finite()),
            ("top_p must be above 0 and at most 1", top_p, top_p > 0.0 && top_p <= 1.0),
            (
                "repetition_penalty must be above 0",
                repetition_penalty,
                repetition_penalty > 0.0 && repetition_penalty.is_finite(),
            ),
        ];
        if let Some((problem, value, _)) = wrong.into_iter().find(|(.., fits)| !fits) {
            return Err(Error::Value(format!("{problem}, got {value}")));
        }
        let mut sampler = Self { sampling, stream: Stream::at(seed, &[0x6765_6e65]), seen: BTreeSet::new() }; // "gene"
        prompt.iter().for_each(|token| sampler.saw(*token));
        Ok(sampler)
    }

    /// Notes a token that occurred.
    fn saw(&mut self, token: u32) {
        if self.sampling.repetition_penalty != 1.0 {
            self.seen.insert(token);
        }
    }

    /// Chooses a token.
    fn choose(&mut self, mut logits: Vec<f32>) -> u32 {
        let penalty = self.sampling.repetition_penalty;
        for token in &self.seen {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit *= if *logit < 0.0 { penalty } else { 1.0 / penalty };
            }
        }
        let token = match self.sampling.temperature > 0.0 {
            true => self.draw(&logits),
            false => (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32,
        };
        self.saw(token);
        token
    }

    /// Draws among the tokens that `top_k` and `top_p` leave.
    fn draw(&mut self, logits: &[f32]) -> u32 {
        let Sampling { temperature, top_k, top_p, .. } = self.sampling;
        // Unnormalized probabilities exp((logit - max) / temperature), the largest first.
        let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: &f32| f64::from((logit - peak) / temperature).exp();
        let mut weights: Vec<(usize, f64)> = logits.iter().map(weight).enumerate().collect();
        weights.sort_by(|a, b| b.1.total_cmp(&a.1));
        if top_k > 0 {
            weights.truncate(top_k);
        }
        // Keep the most probable tokens until their sum reaches top_p of the total.
        let total: f64 = weights.iter().map(|(_, w)| w).sum();
        let mut sum = 0.0;
        let kept = weights.iter().position(|(_, w)| {
            sum += w;
            sum >= total * f64::from(top_p)
        });
        weights.truncate(kept.map_or(weights.len(), |last| last + 1));
        // Draw from the kept tokens by inversion of their cumulative sum.
        let mut left = self.stream.uniform() * weights.iter().map(|(_, w)| w).sum::<f64>();
        for (token, weight) in &weights {
            left -= weight;
            if left < 0.0 {
                return *token as u32;
            }
        }
        weights.last().map_or(0, |(token, _)| *token as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nucleus_has_the_fewest_tokens_that_reach_its_share() {
        let logits = [0.0_f32, 2.0, 1.0, -1.0]; // softmax 0.087, 0.644, 0.237, 0.032
        let drawn = |temperature, top_k, top_p| {
            let sampling = Sampling { temperature, top_k, top_p, seed: 3, ..Sampling::default() };
            let mut sampler = Sampler::new(sampling, &[]).unwrap();
            let mut counts = [0; 4];
            (0..4000).for_each(|_| counts[sampler.choose(logits.to_vec()) as usize] += 1);
            counts
        };
        assert_eq!(drawn(1.0, 0, 0.6), [0, 4000, 0, 0]);
        let [a, b, c, d] = drawn(1.0, 0, 0.7);
        assert!(a == 0 && d == 0 && (b as f64 / c as f64 - std::f64::consts::E).abs() < 0.35, "{b} {c}");
        let all = drawn(1.0, 0, 1.0);
        assert!(all.iter().zip([347, 2576, 947, 128]).all(|(n, want): (&i32, i32)| (n - want).abs() < 110), "{all:?}");
        assert!(drawn(0.2, 0, 1.0)[1] > 3900);
        assert_eq!(drawn(1.0, 1, 1.0), [0, 4000, 0, 0]);
        let [a, _, c, d] = drawn(1.0, 2, 1.0);
        assert!(a == 0 && d == 0 && c > 800);
        // The share is one of what top_k left: 0.644 of 0.881 is 73 %.
        assert_eq!(drawn(1.0, 2, 0.7), [0, 4000, 0, 0]);
        assert_eq!(drawn(0.0, 0, 1.0), [0, 4000, 0, 0]);
    }

    #[test]
    fn tokens_that_occurred_are_penalized_above_and_below_zero() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, &[1]).unwrap();
        // 3 / 2 is less than 2; then 2 / 2 is less than 3 / 2.
        assert_eq!(sampler.choose(vec![2.0, 3.0, 0.0]), 0);
        assert_eq!(sampler.choose(vec![2.0, 3.0, 0.0]), 1);
        assert_eq!(sampler.choose(vec![-1.0, -1.5, -1.9]), 2);
        assert_eq!(Sampler::new(Sampling::default(), &[1]).unwrap().choose(vec![2.0, 3.0, 0.0]), 1);
    }

    #[test]
    fn settings_out_of_range_are_errors() {
        for wrong in [
            Sampling { temperature: -1.0, ..Sampling::default() },
            Sampling { top_p: 0.0, ..Sampling::default() },
            Sampling { repetition_penalty: 0.0, ..Sampling::default() },
        ] {
            assert!(Sampler::new(wrong, &[]).is_err());
        }
    }
}
