//! Text generation: one token after the other, with the keys and values of earlier tokens cached.

use std::cell::RefCell;

use gelora_kernels::random::Stream;

use crate::kv_cache::KvCache;
use crate::{Batch, CausalLm, Error, Result};

/// Rule that chooses the next token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The most probable token; among equally probable tokens, the one with the smallest id.
    Greedy,
    /// A draw from softmax(logits / temperature), restricted to the smallest set of tokens whose probabilities sum to
    /// at least `top_p`.
    Nucleus {
        /// Above 0. A value below 1 favors tokens that are already probable.
        temperature: f32,
        /// Above 0 and at most 1.
        top_p: f32,
        /// Seed of the random draws.
        seed: u64,
    },
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
        let mut sampler = Sampler::new(sampling)?;
        let cache = RefCell::new(KvCache::new(config.layers));
        let (mut next, mut past, mut all) = (ids.to_vec(), 0, Vec::new());
        while all.len() < max_tokens {
            let batch = Batch::after(&next, past)?;
            let last = self.transformer().forward_cached(&batch, &cache)?;
            past += next.len();
            let logits = self.logits_of(&gelora_kernels::ops::pool::rows(&last, &[last.rows() - 1])?)?.to_vec()?;
            let token = sampler.choose(&logits);
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
}

impl Sampler {
    fn new(sampling: Sampling) -> Result<Self> {
        let seed = match sampling {
            Sampling::Greedy => 0,
            Sampling::Nucleus { temperature, top_p, seed } => {
                let fits = temperature > 0.0 && temperature.is_finite() && top_p > 0.0 && top_p <= 1.0;
                if !fits {
                    let problem = "temperature must be above 0 and top_p above 0 and at most 1";
                    return Err(Error::Value(format!("{problem}, got {temperature} and {top_p}")));
                }
                seed
            }
        };
        Ok(Self { sampling, stream: Stream::at(seed, &[0x6765_6e65]) }) // "gene"
    }

    fn choose(&mut self, logits: &[f32]) -> u32 {
        let Sampling::Nucleus { temperature, top_p, .. } = self.sampling else {
            return (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32;
        };
        // Unnormalized probabilities exp((logit - max) / temperature).
        let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: &f32| f64::from((logit - peak) / temperature).exp();
        let mut weights: Vec<(usize, f64)> = logits.iter().map(weight).enumerate().collect();
        let total: f64 = weights.iter().map(|(_, w)| w).sum();
        weights.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mut sum = 0.0;
        // Keep the most probable tokens until their sum reaches top_p of the total.
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
        let drawn = |temperature, top_p| {
            let mut sampler = Sampler::new(Sampling::Nucleus { temperature, top_p, seed: 3 }).unwrap();
            let mut counts = [0; 4];
            (0..4000).for_each(|_| counts[sampler.choose(&logits) as usize] += 1);
            counts
        };
        assert_eq!(drawn(1.0, 0.6), [0, 4000, 0, 0]);
        let [a, b, c, d] = drawn(1.0, 0.7);
        assert!(a == 0 && d == 0 && (b as f64 / c as f64 - std::f64::consts::E).abs() < 0.35, "{b} {c}");
        let all = drawn(1.0, 1.0);
        assert!(all.iter().zip([347, 2576, 947, 128]).all(|(n, want): (&i32, i32)| (n - want).abs() < 110), "{all:?}");
        assert!(drawn(0.2, 1.0)[1] > 3900);
        assert!(Sampler::new(Sampling::Nucleus { temperature: 0.0, top_p: 1.0, seed: 0 }).is_err());
    }
}
