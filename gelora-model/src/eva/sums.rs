//! Sums over the inputs of modules, from which the leading directions of their covariance follow.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gelora_kernels::ops::linear::{self, Weight};
use gelora_kernels::random::Stream;
use gelora_kernels::{DType, Tensor};
use gelora_lora::directions;
use gelora_lora::eva::Explained;
use rayon::prelude::*;

use super::WHOLE;
use super::grouping::Found;
use crate::linear::transpose;
use crate::probe::Probe;
use crate::{Error, Result, Tokens};

/// Columns of the random matrix beside twice the wanted directions.
const SPARE: usize = 16;

/// Sums over the inputs of modules.
pub(super) struct Sums(Mutex<Seen>);

pub(super) struct Seen {
    /// The first module of each group.
    first: BTreeMap<String, usize>,
    pub groups: Vec<Group>,
    /// Whether the inputs at each token of the batch count.
    chosen: Vec<bool>,
    pub failure: Option<Error>,
}

impl fmt::Debug for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sums").finish_non_exhaustive()
    }
}

impl Sums {
    pub fn new(found: Found, seed: u64) -> Self {
        let groups = found.groups.into_iter().map(|(c_in, count)| Group::new(c_in, count, seed)).collect();
        Self(Mutex::new(Seen { first: found.first, groups, chosen: Vec::new(), failure: None }))
    }

    pub fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe for Sums {
    fn wants(&self, module: &str) -> bool {
        self.lock().first.contains_key(module)
    }

    fn see(&self, module: &str, x: &Tensor) {
        let seen = &mut *self.lock();
        if seen.failure.is_none() {
            seen.failure = seen.add(module, x).err();
        }
    }
}

impl Seen {
    pub fn begin_batch(&mut self, tokens: &[Tokens], is_lm: bool) {
        self.chosen = tokens.iter().flat_map(|row| row.targets.iter().map(|target| *target || !is_lm)).collect();
    }

    fn add(&mut self, module: &str, x: &Tensor) -> Result<()> {
        if x.rows() != self.chosen.len() {
            let (rows, tokens) = (x.rows(), self.chosen.len());
            return Err(Error::Value(format!("{module} has {rows} inputs for {tokens} tokens")));
        }
        match self.first.get(module) {
            Some(group) => self.groups[*group].add(&x.to_vec()?, &self.chosen),
            None => Ok(()),
        }
    }

    pub fn end_pass(&mut self) -> Result<()> {
        self.groups.par_iter_mut().try_for_each(Group::end_pass)
    }
}

/// Sums over the inputs of modules that have the same.
pub(super) struct Group {
    c_in: usize,
    /// Wanted directions.
    count: usize,
    seed: u64,
    /// Passes that have ended.
    pass: usize,
    /// Number of inputs.
    n: usize,
    /// What is subtracted from every input: the mean of the first batch in the first pass, then that of all inputs.
    /// Sums of squares lose fewer digits.
    shift: Vec<f32>,
    /// Sum of the shifted inputs of the first pass.
    sum: Vec<f64>,
    /// Sum of the squares of their values.
    squares: f64,
    moment: Moment,
}

/// Sums of products of shifted inputs.
enum Moment {
    /// No input was seen.
    Nothing,
    /// sum of x x^T (C, C).
    Whole(Vec<f64>),
    /// G^T (k, C), and the sum of x (x^T G), transposed (k, C).
    Range(Tensor, Vec<f64>),
    /// Q^T (k, C), and the sum of (Q^T x) (Q^T x)^T (k, k).
    Within(Tensor, Vec<f64>),
}

impl Group {
    fn new(c_in: usize, count: usize, seed: u64) -> Self {
        let (sum, moment) = (vec![0.0; c_in], Moment::Nothing);
        Self { c_in, count, seed, pass: 0, n: 0, shift: Vec::new(), sum, squares: 0.0, moment }
    }

    fn add(&mut self, values: &[f32], chosen: &[bool]) -> Result<()> {
        let c = self.c_in;
        let rows = || values.chunks(c).zip(chosen).filter(|(_, chosen)| **chosen).map(|(row, _)| row);
        let n = rows().count();
        if n == 0 || (self.pass > 0 && matches!(self.moment, Moment::Whole(_))) {
            return Ok(());
        }
        if let Moment::Nothing = self.moment {
            let mut sum = vec![0.0_f64; c];
            rows().for_each(|row| sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x)));
            self.shift = sum.iter().map(|sum| (sum / n as f64) as f32).collect();
            self.moment = match c > WHOLE {
                true => {
                    let k = (2 * self.count + SPARE).min(c);
                    let mut stream = Stream::at(self.seed, &[0x0065_7661, c as u64]); // "eva"
                    let random = (0..k * c).map(|_| stream.normal() as f32).collect();
                    Moment::Range(Tensor::from_vec(random, [k, c])?, vec![0.0; k * c])
                }
                false => Moment::Whole(vec![0.0; c * c]),
            };
        }
        let mut x = Vec::with_capacity(n * c);
        rows().for_each(|row| x.extend(row.iter().zip(&self.shift).map(|(x, shift)| x - shift)));
        if self.pass == 0 {
            self.n += n;
            for row in x.chunks(c) {
                self.sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            self.squares += x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
        }
        let x = Tensor::from_vec(x, [n, c])?;
        let frozen = |tensor: Tensor| Weight::new(tensor, DType::F32);
        match &mut self.moment {
            Moment::Nothing => Ok(()),
            Moment::Whole(sum) => {
                let across = transpose(&x)?;
                add_to(sum, &linear::forward(&across, &frozen(across.clone())?, None)?)
            }
            Moment::Range(columns, sum) => {
                let along = linear::forward(&x, &frozen(columns.clone())?, None)?; // x G (n, k)
                add_to(sum, &linear::forward(&transpose(&along)?, &frozen(transpose(&x)?)?, None)?)
            }
            Moment::Within(basis, sum) => {
                let across = transpose(&linear::forward(&x, &frozen(basis.clone())?, None)?)?;
                add_to(sum, &linear::forward(&across, &frozen(across.clone())?, None)?)
            }
        }
    }

    /// Goes on to the next pass with a basis of the range, if the covariance is not summed whole.
    fn end_pass(&mut self) -> Result<()> {
        let (c, n) = (self.c_in, self.n as f64);
        if let Moment::Range(columns, sum) = &mut self.moment {
            let k = columns.rows();
            if self.pass == 0 {
                // Without the mean: Y - n m (m^T G).
                for (row, column) in sum.chunks_mut(c).zip(columns.to_vec()?.chunks(c)) {
                    let dot: f64 = self.sum.iter().zip(column).map(|(sum, g)| sum * f64::from(*g)).sum();
                    row.iter_mut().zip(&self.sum).for_each(|(value, sum)| *value -= dot / n * sum);
                }
                self.shift.iter_mut().zip(&self.sum).for_each(|(shift, sum)| *shift += (sum / n) as f32);
            }
            let scale = sum.iter().fold(f64::MIN_POSITIVE, |most, value| most.max(value.abs()));
            let values = (0..c * k).map(|i| (sum[i % k * c + i / k] / scale) as f32).collect();
            let basis = transpose(&directions::basis(&Tensor::from_vec(values, [c, k])?, k)?)?; // Q^T (k, C)
            self.moment = match self.pass {
                0 => Moment::Range(basis, vec![0.0; k * c]),
                _ => Moment::Within(basis, vec![0.0; k * k]),
            };
        }
        self.pass += 1;
        Ok(())
    }

    pub fn explained(&self) -> Result<Explained> {
        let (c, n) = (self.c_in, self.n as f64);
        let whole = self.squares - self.sum.iter().map(|sum| sum * sum).sum::<f64>() / n.max(1.0);
        match &self.moment {
            Moment::Within(basis, sum) => Ok(Explained::of_covariance(sum, self.count, whole, Some(basis))?),
            Moment::Whole(sum) => {
                let centered = sum.iter().enumerate().map(|(i, value)| value - self.sum[i / c] * self.sum[i % c] / n);
                Ok(Explained::of_covariance(&centered.collect::<Vec<_>>(), self.count, whole, None)?)
            }
            Moment::Range(..) | Moment::Nothing => {
                Err(Error::Value("the inputs of a module were not seen in every pass".into()))
            }
        }
    }
}

fn add_to(sum: &mut [f64], part: &Tensor) -> Result<()> {
    sum.iter_mut().zip(part.as_slice()?).for_each(|(sum, part)| *sum += f64::from(*part));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inputs whose variances fall as 1 / k^2, and a large mean.
    fn inputs(n: usize, c: usize, seed: u64) -> Vec<f32> {
        let mut stream = Stream::new(seed);
        (0..n * c).map(|i| (20.0 + stream.normal() * 10.0 / (1.0 + (i % c) as f64)) as f32).collect()
    }

    fn explained(c: usize, count: usize) -> Result<Explained> {
        let mut group = Group::new(c, count, 1);
        for pass in 0..3 {
            if pass > 0 {
                group.end_pass()?;
            }
            for seed in 0..4 {
                let chosen: Vec<bool> = (0..100).map(|i| i % 3 != 0).collect();
                group.add(&inputs(100, c, seed), &chosen)?;
            }
        }
        group.explained()
    }

    /// The covariance of the same inputs, from its definition.
    fn dense(c: usize) -> Vec<f64> {
        let all: Vec<f32> = (0..4).flat_map(|seed| inputs(100, c, seed)).collect();
        let rows: Vec<&[f32]> =
            all.chunks(c).enumerate().filter(|(i, _)| i % 100 % 3 != 0).map(|(_, row)| row).collect();
        let mean: Vec<f64> =
            (0..c).map(|j| rows.iter().map(|row| f64::from(row[j])).sum::<f64>() / rows.len() as f64).collect();
        let mut sum = vec![0.0; c * c];
        for row in rows {
            let x: Vec<f64> = row.iter().zip(&mean).map(|(x, mean)| f64::from(*x) - mean).collect();
            for (i, a) in x.iter().enumerate() {
                sum[i * c..(i + 1) * c].iter_mut().zip(&x).for_each(|(sum, b)| *sum += a * b);
            }
        }
        sum
    }

    #[test]
    fn sums_are_those_of_the_definition_whole_and_along_a_range() -> Result<()> {
        for c in [40, WHOLE + 6] {
            let (got, covariance) = (explained(c, 4)?, dense(c));
            let whole = (0..c).map(|i| covariance[i * c + i]).sum();
            let want = Explained::of_covariance(&covariance, 4, whole, None)?;
            for (got, want) in got.ratios.iter().zip(&want.ratios) {
                assert!((got / want - 1.0).abs() < 1e-3, "{c}: {got} {want}");
            }
            let (got, want) = (got.directions.to_vec()?, want.directions.to_vec()?);
            for (k, (got, want)) in got.chunks(c).zip(want.chunks(c)).enumerate() {
                let dot: f32 = got.iter().zip(want).map(|(a, b)| a * b).sum();
                assert!((dot.abs() - 1.0).abs() < 1e-3, "{c}, direction {k}: {dot}");
            }
        }
        Ok(())
    }
}
