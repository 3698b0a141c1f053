//! Position information inside attention: rotary embeddings, and biases or embeddings of distances.

use std::sync::{Mutex, PoisonError};

use gelora_kernels::ops::rotary::{Angles, Table};
use gelora_kernels::{Device, Tensor};

use crate::Result;

/// A rotary embedding of queries and keys. Layers of a model may have different ones.
#[derive(Debug)]
pub(crate) struct Rope {
    frequencies: Vec<f32>,
    /// Cosines and sines, the number of positions in the table, and its device. The number is the largest one requested
    /// so far, rounded up.
    table: Mutex<Option<(Table, usize, Device)>>,
}

/// Smallest number of positions in a table.
const MIN_POSITIONS: usize = 512;

impl Rope {
    pub fn new(frequencies: Vec<f32>) -> Self {
        Self { frequencies, table: Mutex::new(None) }
    }

    /// Returns the angles at these positions.
    pub fn at(&self, positions: &[u32], device: &Device) -> Result<Angles> {
        let needed = positions.iter().max().map_or(1, |p| *p as usize + 1);
        let mut slot = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((table, size, table_device)) = &*slot
            && *size >= needed
            && table_device.same(device)
        {
            return Ok(table.at(positions)?);
        }
        let size = needed.next_power_of_two().max(MIN_POSITIONS);
        let table = Table::new(&self.frequencies, size, device)?;
        let angles = table.at(positions)?;
        *slot = Some((table, size, device.clone()));
        Ok(angles)
    }
}

/// A bias of attention scores by the distance between key and query. Distances fall into buckets whose width grows with
/// the distance (T5, MPNet).
#[derive(Clone, Debug)]
pub(crate) struct RelativeBias {
    /// (buckets, H), on the CPU.
    table: Tensor,
    /// The distance from which on all distances share the last bucket.
    furthest: usize,
}

impl RelativeBias {
    /// Makes a bias from the embedding (buckets, H).
    pub fn new(table: Tensor, furthest: usize) -> Self {
        Self { table, furthest }
    }

    /// Returns the bias of every distance between `longest` tokens, (H, 2 longest - 1), in the form that
    /// [`gelora_kernels::ops::attention`] takes.
    pub fn by_distance(&self, longest: usize, device: &Device) -> Result<Tensor> {
        let (buckets, heads) = (self.table.rows(), self.table.cols());
        let (values, width, last) = (self.table.to_f32()?, 2 * longest - 1, longest as isize - 1);
        let mut bias = Vec::with_capacity(heads * width);
        for h in 0..heads {
            bias.extend((-last..=last).map(|distance| values[self.bucket(distance, buckets) * heads + h]));
        }
        Ok(Tensor::from_vec(bias, [heads, width])?.to_device(device)?)
    }

    /// Index of a distance's bucket. Half of the buckets are for keys after the query. In each half, the first half of
    /// the buckets hold one distance each, and the others hold logarithmic ranges. The rounding in f32 is that of
    /// transformers.
    fn bucket(&self, distance: isize, buckets: usize) -> usize {
        let half = buckets / 2;
        let side = if distance > 0 { half } else { 0 };
        let (n, exact) = (distance.unsigned_abs(), half / 2);
        if n < exact {
            return side + n;
        }
        let range = (self.furthest as f64 / exact as f64).ln() as f32;
        let far = (n as f32 / exact as f32).ln() / range * (half - exact) as f32;
        side + (exact + far as usize).min(half - 1)
    }
}

/// Embeddings of the distances between tokens, with their norm applied. Attention projects them (DeBERTa).
#[derive(Clone, Debug)]
pub(crate) struct RelativeEmbedding {
    /// (2 span, C). Row `span` is for a token itself; the rows after it are for earlier keys.
    pub table: Tensor,
    /// Buckets of the distances. None if every distance up to the span has its own row.
    pub buckets: Option<Buckets>,
}

/// Number of buckets on each side, and the distance that falls into the last bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buckets {
    pub count: usize,
    pub furthest: usize,
}

/// The distances of a batch: rows of the table, in the column order of the terms of [`gelora_kernels::ops::attention`].
pub(crate) struct Distances<'a> {
    pub table: &'a Tensor,
    pub rows: Vec<u32>,
}

impl RelativeEmbedding {
    /// Rows of all distances between `longest` tokens, starting with the most distant earlier key.
    pub fn within(&self, longest: usize) -> Distances<'_> {
        let (span, last) = (self.table.rows() as isize / 2, longest as isize - 1);
        let row = |back: isize| {
            let bucket = self.buckets.map_or(back, |buckets| buckets.index(back));
            (bucket + span).clamp(0, 2 * span - 1) as u32
        };
        Distances { table: &self.table, rows: (-last..=last).map(|ahead| row(-ahead)).collect() }
    }
}

impl Buckets {
    /// Index of a distance's bucket. Distances up to half of the buckets have one bucket each; beyond, the index grows
    /// with the logarithm of the distance. The rounding in f32 is that of transformers.
    fn index(self, back: isize) -> isize {
        let (n, half) = (back.unsigned_abs(), self.count / 2);
        if n <= half {
            return back;
        }
        let range = (((self.furthest - 1) as f64 / half as f64) as f32).ln();
        let far = (n as f32 / half as f32).ln() / range * (half - 1) as f32;
        (far.ceil() as isize + half as isize) * back.signum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are those of transformers' `MPNetEncoder.relative_position_bucket`.
    #[test]
    fn buckets_match_transformers() {
        let bias = RelativeBias::new(Tensor::from_vec(vec![0.0; 32], [32, 1]).unwrap(), 128);
        for (distance, bucket) in [
            (0, 0),
            (1, 17),
            (-1, 1),
            (7, 23),
            (-7, 7),
            (8, 24),
            (-8, 8),
            (-15, 9),
            (-16, 10),
            (127, 31),
            (-127, 15),
            (-500, 15),
        ] {
            assert_eq!(bias.bucket(distance, 32), bucket, "{distance}");
        }
    }
}
