//! The adapter of one linear module: y = x W^T + b + s drop(x) A^T B^T.
//!
//! A (R, C_in), B (C_out, R); s = alpha / R, or alpha / sqrt(R) with rsLoRA. The model owns the frozen W
//! (C_out, C_in) and b (C_out), and lends them to [`LoraLayer::bind`]. [`gelora_kernels::ops::lora_linear`] computes
//! forward and backward.

use gelora_kernels::ops::dropout::Dropout;
use gelora_kernels::ops::linear::Weight;
use gelora_kernels::ops::lora_linear::LoraLinear;
use gelora_kernels::random::Stream;
use gelora_kernels::{Device, Tensor};

use crate::{ModuleConfig, Result, ranks};

/// A and B of one module, with the scaling and the dropout of its config.
#[derive(Clone, Debug)]
pub struct LoraLayer {
    /// A (R, C_in), f32.
    pub a: Tensor,
    /// B (C_out, R), f32.
    pub b: Tensor,
    /// s = alpha / R, or alpha / sqrt(R) with rsLoRA.
    pub scaling: f32,
    /// The probability of dropping an input of A while training.
    pub dropout: f32,
    /// m (C_out), f32, if this is DoRA: y = m / n (x W^T + s x A^T B^T) + b, with n the norms of the rows of W + s B A.
    pub magnitude: Option<Tensor>,
    /// A0 and B0, if A and B began as singular triplets of the weight: the layer then belongs on
    /// [`LoraLayer::residual`] of the weight.
    pub initial: Option<Initial>,
    /// e (R, 1), f32, if this is AdaLoRA: A counts as diag(e) A.
    pub singular: Option<Tensor>,
}

/// A0 (R, C_in) and B0 (C_out, R) of an adapter that began as singular triplets of its weight.
#[derive(Clone, Debug)]
pub struct Initial {
    /// A0 (R, C_in), f32, on the CPU.
    pub a: Tensor,
    /// B0 (C_out, R), f32, on the CPU.
    pub b: Tensor,
}

impl LoraLayer {
    /// A new adapter on the CPU, which does not change the result yet: A is uniform in [-1/sqrt(C_in), 1/sqrt(C_in)), B
    /// is zero. A depends only on the seed and the name of the module, not on the other modules that have an adapter.
    ///
    /// Source: PEFT, `LoraLayer.reset_lora_parameters`: `kaiming_uniform_(a=sqrt(5))` has the bound
    /// sqrt(3) sqrt(2 / (1 + 5)) / sqrt(C_in).
    ///
    /// # Errors
    /// If the rank is 0 or above min(C_in, C_out).
    pub fn new(module: &str, c_in: usize, c_out: usize, config: &ModuleConfig, seed: u64) -> Result<Self> {
        ranks::check_rank(module, config.rank, c_in, c_out)?;
        let bound = 1.0 / (c_in as f64).sqrt();
        let mut stream = Stream::at(seed, &[name_hash(module)]);
        let a = (0..config.rank * c_in).map(|_| (bound * (2.0 * stream.uniform() - 1.0)) as f32).collect();
        Ok(Self {
            a: Tensor::from_vec(a, [config.rank, c_in])?,
            b: Tensor::from_vec(vec![0.0; c_out * config.rank], [c_out, config.rank])?,
            scaling: config.scaling,
            dropout: config.dropout,
            magnitude: None,
            initial: None,
            singular: None,
        })
    }

    /// R.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.a.rows()
    }

    /// Number of trained values, R (C_in + C_out), C_out more with magnitudes, and R more with singular values.
    #[must_use]
    pub fn parameters(&self) -> usize {
        let others = [&self.magnitude, &self.singular];
        self.a.len() + self.b.len() + others.into_iter().flatten().map(Tensor::len).sum::<usize>()
    }

    /// Moves A, B, magnitudes and singular values to a device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        self.a = self.a.to_device(device)?;
        self.b = self.b.to_device(device)?;
        self.magnitude = self.magnitude.as_ref().map(|m| m.to_device(device)).transpose()?;
        self.singular = self.singular.as_ref().map(|e| e.to_device(device)).transpose()?;
        Ok(())
    }

    /// A and B with the frozen weight W (C_out, C_in) and bias b (C_out), for forward and backward. `a` is
    /// [`LoraLayer::factor_a`]. Magnitudes apply to the result without a bias: [`gelora_kernels::ops::dora`]. Dropout
    /// is on only with a key; a training step makes one with [`gelora_kernels::random::key`].
    #[must_use]
    pub fn bind<'a>(
        &'a self,
        a: &'a Tensor,
        weight: &'a Weight,
        bias: Option<&'a Tensor>,
        dropout_key: Option<[u32; 2]>,
    ) -> LoraLinear<'a> {
        let dropout = dropout_key.filter(|_| self.dropout > 0.0).map(|key| Dropout { p: self.dropout, key });
        LoraLinear { weight, bias, a, b: &self.b, scaling: self.scaling, dropout }
    }

    /// (R, C_in, C_out), or a message that says what is wrong with the shapes of A and B.
    pub(crate) fn sizes(&self) -> Result<(usize, usize, usize), String> {
        match (self.a.shape(), self.b.shape()) {
            (&[rank, _], &[_, r]) if r == rank && self.singular.as_ref().is_some_and(|e| e.shape() != [rank, 1]) => {
                let e = self.singular.as_ref().map(Tensor::shape);
                Err(format!("expected a singular value for each of {rank} ranks, got {e:?}"))
            }
            (&[rank, c_in], &[c_out, r]) if r == rank => match self.magnitude.as_ref().map(Tensor::shape) {
                None => Ok((rank, c_in, c_out)),
                Some(&[n]) if n == c_out => Ok((rank, c_in, c_out)),
                Some(m) => Err(format!("expected a magnitude for each of {c_out} outputs, got {m:?}")),
            },
            (a, b) => Err(format!("expected A (R, C_in) and B (C_out, R), got A {a:?} and B {b:?}")),
        }
    }
}

/// FNV-1a, 64 bits.
///
/// Source: Fowler, Noll, Vo, "The FNV non-cryptographic hash algorithm" (RFC 9923).
pub(crate) fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use gelora_kernels::DType;

    use super::*;
    use crate::Error;

    const CONFIG: ModuleConfig = ModuleConfig { rank: 3, alpha: 6.0, scaling: 2.0, dropout: 0.5 };

    #[test]
    fn a_new_layer_is_uniform_and_changes_nothing() -> Result<()> {
        let layer = LoraLayer::new("q", 400, 7, &CONFIG, 1)?;
        assert_eq!((layer.rank(), layer.parameters()), (3, 3 * (400 + 7)));
        let (a, bound) = (layer.a.to_vec()?, 1.0 / 20.0f32);
        assert!(a.iter().all(|v| v.abs() <= bound));
        let mean = a.iter().sum::<f32>() / a.len() as f32;
        let variance = a.iter().map(|v| v * v).sum::<f32>() / a.len() as f32;
        assert!(mean.abs() < 0.1 * bound && (variance / (bound * bound / 3.0) - 1.0).abs() < 0.1, "{mean} {variance}");

        let weight = Weight::new(Tensor::from_vec(vec![0.5; 7 * 400], [7, 400])?, DType::F32)?;
        let x = Tensor::from_vec((0..400).map(|i| i as f32).collect::<Vec<_>>(), [1, 400])?;
        let (y, _) = layer.bind(&layer.a, &weight, None, Some([1, 2])).forward(&x)?;
        assert_eq!(y.to_vec()?, gelora_kernels::ops::linear::forward(&x, &weight, None)?.to_vec()?);
        Ok(())
    }

    #[test]
    fn seed_and_name_decide() -> Result<()> {
        let a = |name, seed| LoraLayer::new(name, 64, 64, &CONFIG, seed)?.a.to_vec().map_err(Error::from);
        assert_eq!(a("layer.0.query", 7)?, a("layer.0.query", 7)?);
        assert_ne!(a("layer.0.query", 7)?, a("layer.0.key", 7)?);
        assert_ne!(a("layer.0.query", 7)?, a("layer.0.query", 8)?);
        Ok(())
    }

    #[test]
    fn dropout_needs_a_key_and_a_probability() -> Result<()> {
        let mut layer = LoraLayer::new("q", 4, 4, &CONFIG, 1)?;
        let weight = Weight::new(Tensor::from_vec(vec![0.0; 16], [4, 4])?, DType::F32)?;
        assert!(layer.bind(&layer.a, &weight, None, Some([1, 2])).dropout.is_some());
        assert!(layer.bind(&layer.a, &weight, None, None).dropout.is_none());
        layer.dropout = 0.0;
        assert!(layer.bind(&layer.a, &weight, None, Some([1, 2])).dropout.is_none());
        assert!(LoraLayer::new("q", 2, 400, &CONFIG, 1).is_err());
        Ok(())
    }
}
