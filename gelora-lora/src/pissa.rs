//! PiSSA: adapters that begin as the leading singular triplets of the weight.
//!
//! With W = U S V^T (C_out, C_in), scaling s and rank R:
//!
//! ```text
//! A0    = sqrt(S_R / s) V_R^T     (R, C_in)
//! B0    = U_R sqrt(S_R / s)       (C_out, R)
//! W_res = W - s B0 A0             frozen while A and B are trained from A0 and B0
//! ```
//!
//! The trained model is W_res + s B A = W + s (B A - B0 A0), so that a plain LoRA of twice the rank on W holds it:
//! A' = [A; A0], B' = [B, -B0]. This is what is written.
//!
//! Source: Meng, Wang and Zhang, "PiSSA" (arXiv 2404.02948), section 3; PEFT 0.21.2, `LoraLayer.pissa_init` and
//! `LoraModel.subtract_mutated_init`.

use gelora_kernels::Tensor;
use gelora_kernels::ops::lora_linear;

use crate::config::{AdapterConfig, Init};
use crate::{Error, Initial, LoraLayer, ModuleConfig, Result, ranks, svd};

/// The name of the initialization in `init_lora_weights`.
pub(crate) const NAME: &str = "pissa";

impl LoraLayer {
    /// An adapter on the CPU that begins as the leading singular triplets of W (C_out, C_in). It belongs on
    /// [`LoraLayer::residual`] of W, with which it computes what W computes.
    ///
    /// # Errors
    /// If the rank is 0 or above min(C_in, C_out), W is quantized or not finite, the scaling is not above 0, or a
    /// device fails.
    pub fn pissa(module: &str, weight: &Tensor, config: &ModuleConfig) -> Result<Self> {
        let (c_out, c_in, rank) = (weight.rows(), weight.cols(), config.rank);
        ranks::check_rank(module, rank, c_in, c_out)?;
        if weight.dtype().is_quantized() {
            let problem = format!(
                "PiSSA subtracts from the base weights, and {} weights cannot hold the difference; expected f32, f16 \
                 or bf16 weights",
                weight.dtype()
            );
            return Err(Error::module(module, problem));
        }
        if !(config.scaling.is_finite() && config.scaling > 0.0) {
            let problem = format!("PiSSA needs a scaling above 0, got {}", config.scaling);
            return Err(Error::module(module, problem));
        }
        let values = weight.to_vec()?;
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::module(module, format!("its weight has the value {value}")));
        }
        let triplets = svd::leading(&values, c_out, c_in, rank);
        // If W has a lower rank, the other rows and columns stay 0.
        let (mut a, mut b) = (vec![0.0; rank * c_in], vec![0.0; c_out * rank]);
        for (k, value) in triplets.values.iter().enumerate() {
            let root = (value / f64::from(config.scaling)).sqrt();
            for (to, from) in a[k * c_in..].iter_mut().zip(&triplets.right[k]) {
                *to = (root * from) as f32;
            }
            for (i, from) in triplets.left[k].iter().enumerate() {
                b[i * rank + k] = (root * from) as f32;
            }
        }
        let initial = Initial { a: Tensor::from_vec(a, [rank, c_in])?, b: Tensor::from_vec(b, [c_out, rank])? };
        Ok(Self {
            a: initial.a.clone(),
            b: initial.b.clone(),
            scaling: config.scaling,
            dropout: config.dropout,
            magnitude: None,
            initial: Some(initial),
            singular: None,
        })
    }

    /// W_res = W - s B0 A0 (C_out, C_in) in f32 on the CPU, for W on any device. None if the adapter did not begin as
    /// singular triplets.
    ///
    /// # Errors
    /// If the sizes do not fit W, or a device fails.
    pub fn residual(&self, weight: &Tensor) -> Result<Option<Tensor>> {
        let Some(Initial { a, b }) = &self.initial else { return Ok(None) };
        Ok(Some(lora_linear::merge(weight, a, b, -self.scaling)?))
    }

    /// The plain adapter A' = [A; A0], B' = [B, -B0] on W that computes what this adapter computes on W_res.
    pub(crate) fn on_the_base(&self) -> Result<Self> {
        let Some(initial) = &self.initial else { return Ok(self.clone()) };
        let (rank, c_in, c_out) = (self.rank(), self.a.cols(), self.b.rows());
        let a = [self.a.to_vec()?, initial.a.to_vec()?].concat();
        let (trained, first) = (self.b.to_vec()?, initial.b.to_vec()?);
        let rows = trained.chunks(rank).zip(first.chunks(rank));
        let b = rows.flat_map(|(row, first)| row.iter().copied().chain(first.iter().map(|value| -value)));
        Ok(Self {
            a: Tensor::from_vec(a, [2 * rank, c_in])?,
            b: Tensor::from_vec(b.collect(), [c_out, 2 * rank])?,
            initial: None,
            ..self.clone()
        })
    }

    /// The adapter on W_res of which [`LoraLayer::on_the_base`] made this one.
    pub(crate) fn on_the_residual(&self) -> Result<Self> {
        let (rank, c_in, c_out) = (self.rank() / 2, self.a.cols(), self.b.rows());
        let (a, b) = (self.a.to_vec()?, self.b.to_vec()?);
        let (a, a0) = a.split_at(rank * c_in);
        let half = |of: usize, sign: f32| {
            let rows = b.chunks(2 * rank);
            rows.flat_map(|row| row[of * rank..(of + 1) * rank].iter().map(|value| sign * value)).collect::<Vec<_>>()
        };
        let initial = Initial {
            a: Tensor::from_vec(a0.to_vec(), [rank, c_in])?,
            b: Tensor::from_vec(half(1, -1.0), [c_out, rank])?,
        };
        Ok(Self {
            a: Tensor::from_vec(a.to_vec(), [rank, c_in])?,
            b: Tensor::from_vec(half(0, 1.0), [c_out, rank])?,
            initial: Some(initial),
            singular: None,
            ..self.clone()
        })
    }
}

impl AdapterConfig {
    /// Whether new adapters begin as singular triplets of their weights.
    #[must_use]
    pub fn is_pissa(&self) -> bool {
        matches!(&self.init_lora_weights, Init::Named(name) if name == NAME)
    }

    /// The config of the plain adapters on W: twice the ranks and the same scalings.
    pub(crate) fn on_the_base(&self) -> Self {
        // s = alpha / r, or alpha / sqrt(r) with rsLoRA.
        let factor = if self.use_rslora { 2f64.sqrt() } else { 2.0 };
        Self {
            init_lora_weights: Init::Default(true),
            r: 2 * self.r,
            lora_alpha: factor * self.lora_alpha,
            rank_pattern: self.rank_pattern.iter().map(|(pattern, rank)| (pattern, 2 * rank)).collect(),
            alpha_pattern: self.alpha_pattern.iter().map(|(pattern, alpha)| (pattern, factor * alpha)).collect(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gelora_kernels::DType;
    use gelora_kernels::random::Stream;

    use super::*;
    use crate::{Adapter, Names};

    const CONFIG: ModuleConfig = ModuleConfig { rank: 3, alpha: 6.0, scaling: 2.0, dropout: 0.0 };

    fn weight() -> Tensor {
        let mut stream = Stream::new(4);
        Tensor::from_vec((0..9 * 12).map(|_| stream.normal() as f32).collect(), [9, 12]).unwrap()
    }

    fn close(got: &Tensor, want: &Tensor) {
        let (got, want) = (got.to_vec().unwrap(), want.to_vec().unwrap());
        assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-5), "{got:?} {want:?}");
    }

    #[test]
    fn residual_and_adapter_are_the_weight() -> Result<()> {
        let layer = LoraLayer::pissa("q", &weight(), &CONFIG)?;
        let residual = layer.residual(&weight())?.expect("it began as triplets");
        close(&crate::merge::merge(&residual, &layer)?, &weight());
        // The residual is smaller by the sum of the squares of three singular values, the largest of nine.
        let squares = |t: &Tensor| t.to_vec().unwrap().iter().map(|v| v * v).sum::<f32>();
        assert!(squares(&residual) < 0.6 * squares(&weight()), "{} {}", squares(&residual), squares(&weight()));
        let plain = LoraLayer::new("q", 12, 9, &CONFIG, 1)?;
        assert!(plain.residual(&weight())?.is_none());
        Ok(())
    }

    #[test]
    fn the_adapter_on_the_base_computes_the_same_and_comes_back() -> Result<()> {
        let mut layer = LoraLayer::pissa("q", &weight(), &CONFIG)?;
        let residual = layer.residual(&weight())?.expect("it began as triplets");
        layer.a.as_mut_slice()?.iter_mut().enumerate().for_each(|(i, v)| *v += 0.01 * i as f32);
        layer.b.as_mut_slice()?.iter_mut().enumerate().for_each(|(i, v)| *v -= 0.02 * i as f32);
        let plain = layer.on_the_base()?;
        assert_eq!((plain.rank(), plain.scaling, plain.initial.is_none()), (6, 2.0, true));
        close(&crate::merge::merge(&weight(), &plain)?, &crate::merge::merge(&residual, &layer)?);
        let back = plain.on_the_residual()?;
        assert_eq!((back.a.bytes()?, back.b.bytes()?), (layer.a.bytes()?, layer.b.bytes()?));
        let (back, first) = (back.initial.expect("both halves"), layer.initial.expect("it began as triplets"));
        assert_eq!((back.a.bytes()?, back.b.bytes()?), (first.a.bytes()?, first.b.bytes()?));
        Ok(())
    }

    #[test]
    fn folders_hold_the_plain_adapter() -> Result<()> {
        for use_rslora in [false, true] {
            let config = AdapterConfig {
                r: 2,
                lora_alpha: 3.0,
                use_rslora,
                target_modules: Some(Names::List(vec!["q".into(), "v".into()])),
                rank_pattern: [("v".to_owned(), 3)].into_iter().collect(),
                alpha_pattern: [("v".to_owned(), 5.0)].into_iter().collect(),
                init_lora_weights: Init::Named(NAME.into()),
                ..AdapterConfig::default()
            };
            let layer = |name: &str| {
                let module = config.module(name)?.expect("a target");
                Ok::<_, Error>((name.to_owned(), LoraLayer::pissa(name, &weight(), &module)?))
            };
            let layers = [layer("q")?, layer("v")?].into();
            let adapter = Adapter { config: config.clone(), layers, saved: [].into() };
            let folder = tempfile::tempdir().unwrap();
            adapter.write(folder.path())?;
            let read = Adapter::read(folder.path())?;
            assert_eq!((read.config.r, read.layers["q"].rank(), read.layers["v"].rank()), (4, 4, 6));
            for (name, layer) in &adapter.layers {
                assert!((read.layers[name].scaling - layer.scaling).abs() < 1e-6, "{name}");
            }
            let back = read.on_the_residual(&config)?;
            assert_eq!(back.config, config);
            for (name, layer) in &adapter.layers {
                assert_eq!(back.layers[name].a.bytes()?, layer.a.bytes()?);
                assert_eq!(back.layers[name].scaling, layer.scaling);
            }
        }
        Ok(())
    }

    #[test]
    fn weights_that_cannot_lose_their_triplets() {
        let fails =
            |weight: &Tensor, config: &ModuleConfig| LoraLayer::pissa("l.q", weight, config).unwrap_err().to_string();
        let quantized = Tensor::from_bytes(Arc::new(vec![0u8; 9 * 34]), 0..9 * 34, DType::Q8_0, [9, 32]).unwrap();
        let error = fails(&quantized, &CONFIG);
        assert!(error.contains("module l.q: PiSSA subtracts from the base weights, and q8_0"), "{error}");
        let error = fails(&weight(), &ModuleConfig { scaling: 0.0, ..CONFIG });
        assert!(error.contains("scaling above 0"), "{error}");
        let mut infinite = weight();
        infinite.as_mut_slice().unwrap()[5] = f32::INFINITY;
        assert!(fails(&infinite, &CONFIG).contains("inf"));
    }
}
