//! Hashes that tell whether data changed. They do not depend on the machine or the version of Rust.

use std::iter;

use gelora_kernels::random;

/// Nonzero seed. With the seed 0, zeros at the beginning would not change the hash.
const SEED: u64 = 0x6461_7461; // "data"

/// Returns a hash of byte strings, any of which may be absent. Boundaries between strings count. The hash detects
/// mistakes, not attacks.
pub fn of<'a>(parts: impl IntoIterator<Item = Option<&'a [u8]>>) -> [u32; 2] {
    of_numbers(parts.into_iter().flat_map(words))
}

/// Returns a hash of numbers in their order.
pub fn of_numbers(numbers: impl IntoIterator<Item = u64>) -> [u32; 2] {
    random::key_of(SEED, numbers)
}

/// Returns a hash of sets of numbers in their order. Boundaries between sets count.
pub fn of_sets(sets: &[Vec<usize>]) -> [u32; 2] {
    of_numbers(sets.iter().flat_map(|set| iter::once(set.len()).chain(set.iter().copied())).map(|number| number as u64))
}

/// Returns the words of a byte string: its length plus one (0 if absent), then its bytes eight at a time.
fn words(part: Option<&[u8]>) -> impl Iterator<Item = u64> {
    let length = part.map_or(0, |bytes| bytes.len() as u64 + 1);
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    iter::once(length).chain(part.unwrap_or_default().chunks(8).map(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_boundary_counts() {
        let of = |parts: &[Option<&str>]| of(parts.iter().map(|p| p.map(str::as_bytes)));
        let different: [&[Option<&str>]; 8] = [
            &[],
            &[None],
            &[Some("")],
            &[Some("a good film"), Some("bad")],
            &[Some("bad"), Some("a good film")],
            &[Some("a good"), Some(" filmbad")],
            &[Some("a good film"), Some("bad\0")],
            &[Some("a good filn"), Some("bad")],
        ];
        for (i, a) in different.iter().enumerate() {
            for (j, b) in different.iter().enumerate() {
                assert_eq!(of(a) == of(b), i == j, "{a:?} {b:?}");
            }
        }
    }
}
