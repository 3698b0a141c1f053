//! Counter-based random numbers. A value depends on a key and an index alone, never on the order of calls, so every
//! thread and every device draws the same values. All arithmetic is on u32, which WGSL has too.

/// 32 random bits for an index under a key: two rounds of a 32-bit finalizer, each with one word of the key.
///
/// Source: the "lowbias32" constants of C. Wellons, "Prospecting for hash functions" (2018).
#[inline(always)]
pub fn hash(key: [u32; 2], index: u32) -> u32 {
    lowbias32(lowbias32(index ^ key[0]).wrapping_add(key[1]))
}

#[inline(always)]
fn lowbias32(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// The key for one use of randomness, from a seed and a path that tells this use from others: a step, a layer, a site.
///
/// Source: the SplitMix64 step of Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
pub fn key(seed: u64, path: &[u64]) -> [u32; 2] {
    key_of(seed, path.iter().copied())
}

/// As [`key`], for a path that is computed while it is read, such as the words of a file.
pub fn key_of(seed: u64, path: impl IntoIterator<Item = u64>) -> [u32; 2] {
    let mut state = splitmix(seed);
    for p in path {
        state = splitmix(state ^ splitmix(p));
    }
    [(state >> 32) as u32, state as u32]
}

fn splitmix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A sequence of random numbers from one key, for initial values and test data.
#[derive(Clone, Debug)]
pub struct Stream {
    key: [u32; 2],
    index: u32,
}

impl Stream {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self { key: key(seed, &[]), index: 0 }
    }

    /// The stream of a seed and a path (see [`key`]).
    pub fn at(seed: u64, path: &[u64]) -> Self {
        Self { key: key(seed, path), index: 0 }
    }

    /// 32 random bits.
    pub fn bits(&mut self) -> u32 {
        let bits = hash(self.key, self.index);
        self.index = self.index.wrapping_add(1);
        if self.index == 0 {
            self.key = [lowbias32(self.key[0]), lowbias32(self.key[1] ^ 1)];
        }
        bits
    }

    /// Uniform in [0, 1), with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        let high = u64::from(self.bits()) << 21;
        let low = u64::from(self.bits()) >> 11;
        (high | low) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal.
    ///
    /// Source: Box and Muller, "A note on the generation of random normal deviates" (1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Uniform in 0..n.
    ///
    /// # Panics
    /// If n is 0.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "below(0)");
        ((self.uniform() * n as f64) as usize).min(n - 1)
    }

    /// Shuffles the items (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_has_unit_moments() {
        let mut s = Stream::new(7);
        let v: Vec<f64> = (0..100_000).map(|_| s.normal()).collect();
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        let var = v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / v.len() as f64;
        assert!(mean.abs() < 0.01 && (var - 1.0).abs() < 0.02, "mean {mean}, variance {var}");
    }

    #[test]
    fn bits_are_balanced_and_keys_differ() {
        let k = key(1, &[2, 3]);
        assert_ne!(k, key(1, &[3, 2]));
        for bit in 0..32 {
            let ones = (0..20_000).filter(|&i| hash(k, i) >> bit & 1 == 1).count();
            assert!((9_500..10_500).contains(&ones), "bit {bit}: {ones} ones of 20000");
        }
    }

    #[test]
    fn shuffle_keeps_every_item() {
        let mut v: Vec<usize> = (0..257).collect();
        Stream::new(3).shuffle(&mut v);
        assert_ne!(v, (0..257).collect::<Vec<_>>());
        v.sort_unstable();
        assert_eq!(v, (0..257).collect::<Vec<_>>());
    }
}
