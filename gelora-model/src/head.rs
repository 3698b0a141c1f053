//! Task heads: the layers that map one token of each sequence to logits, as transformers defines them for each family.

use gelora_kernels::ops::activation::{self, Activation};
use gelora_kernels::ops::dropout::Dropout;
use gelora_kernels::ops::linear::{self, Weight};
use gelora_kernels::random::Stream;
use gelora_kernels::{DType, Device, Tensor};

use crate::linear::{Grads, Linear, Saved as LinearSaved, accumulate};
use crate::mode::{self, DropoutSite, Mode};
use crate::weights::Weights;
use crate::{Error, Result};

/// Layout of a family's head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadKind {
    /// Whether the first token of a sequence represents it; otherwise the last token does.
    pub first: bool,
    pub dense: Dense,
    /// Activation after the dense layer.
    pub activation: Activation,
    /// Name of the output layer.
    pub out: &'static str,
    /// Whether the output layer has a bias.
    pub biased: bool,
}

/// The dense layer before the output layer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dense {
    None,
    /// The pooler of the base model. It is frozen, but may have an adapter.
    Pooler,
    /// A trained layer of the head, with or without dropout before it.
    Trained {
        name: &'static str,
        dropped: bool,
    },
}

impl HeadKind {
    /// Names of the modules that PEFT must save whole.
    pub fn modules(&self) -> Vec<String> {
        let top = |name: &str| name.split('.').next().unwrap_or(name).to_owned();
        let dense = match self.dense {
            Dense::Trained { name, .. } => Some(top(name)),
            _ => None,
        };
        let mut all: Vec<String> = dense.into_iter().chain([top(self.out)]).collect();
        all.dedup();
        all
    }
}

/// A trained layer with its name inside the task model.
#[derive(Clone, Debug)]
struct Layer {
    name: &'static str,
    /// (C_out, C_in).
    weight: Tensor,
    /// (C_out).
    bias: Option<Tensor>,
}

impl Layer {
    /// Makes a layer with normal weights of standard deviation 0.02 and zero bias, as transformers initializes them.
    fn fresh(name: &'static str, [c_out, c_in]: [usize; 2], biased: bool, stream: &mut Stream) -> Result<Self> {
        let weight = (0..c_out * c_in).map(|_| (0.02 * stream.normal()) as f32).collect();
        let bias = biased.then(|| Tensor::from_vec(vec![0.0; c_out], [c_out])).transpose()?;
        Ok(Self { name, weight: Tensor::from_vec(weight, [c_out, c_in])?, bias })
    }

    fn find(name: &'static str, biased: bool, find: &mut dyn FnMut(&str) -> Option<Tensor>) -> Option<Result<Self>> {
        let weight = find(&format!("{name}.weight"))?;
        let bias = if biased { Some(find(&format!("{name}.bias"))?) } else { None };
        let f32 = |t: Tensor| Ok(t.to_dtype(DType::F32)?);
        Some(f32(weight).and_then(|weight| Ok(Self { name, weight, bias: bias.map(f32).transpose()? })))
    }

    /// The current weight, prepared for products.
    fn ready(&self) -> Result<Weight> {
        Ok(Weight::new(self.weight.clone(), DType::F32)?)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(linear::forward(x, &self.ready()?, self.bias.as_ref())?)
    }

    fn keep_gradients(&self, dy: &Tensor, x: &Tensor, grads: &mut Grads) -> Result<()> {
        let (dw, db) = linear::backward_weight(dy, x)?;
        accumulate(grads, format!("{}.weight", self.name), dw)?;
        if self.bias.is_some() {
            accumulate(grads, format!("{}.bias", self.name), db)?;
        }
        Ok(())
    }

    fn parameters(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let weight = (format!("{}.weight", self.name), &self.weight);
        [weight].into_iter().chain(self.bias.as_ref().map(|bias| (format!("{}.bias", self.name), bias)))
    }

    fn parameters_mut(&mut self) -> impl Iterator<Item = (String, &mut Tensor)> {
        let weight = (format!("{}.weight", self.name), &mut self.weight);
        [weight].into_iter().chain(self.bias.as_mut().map(|bias| (format!("{}.bias", self.name), bias)))
    }
}

/// A task head. All of its parameters are trained.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    kind: HeadKind,
    dense: Option<Layer>,
    out: Layer,
    dropout: f32,
}

/// Values that [`Head::backward`] needs.
pub(crate) struct Saved {
    input: Tensor,
    dropouts: [Option<Dropout>; 2],
    pooler: Option<LinearSaved>,
    inner: Option<Tensor>,
    features: Tensor,
}

impl Head {
    /// Makes a new head with K outputs for a model of C channels.
    pub fn fresh(kind: HeadKind, [k, c]: [usize; 2], dropout: f32, seed: u64) -> Result<Self> {
        // The output layer draws its weights first.
        let mut stream = Stream::at(seed, &[0x6865_6164]); // "head"
        let out = Layer::fresh(kind.out, [k, c], kind.biased, &mut stream)?;
        let dense = match kind.dense {
            Dense::Trained { name, .. } => Some(Layer::fresh(name, [c, c], true, &mut stream)?),
            _ => None,
        };
        Ok(Self { kind, dense, out, dropout })
    }

    /// Makes a head from the tensors that `find` returns for their full names. Returns None if a tensor is missing.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit a model of C channels.
    pub fn found(
        kind: HeadKind,
        c: usize,
        dropout: f32,
        mut find: impl FnMut(&str) -> Option<Tensor>,
    ) -> Result<Option<Self>> {
        let Some(out) = Layer::find(kind.out, kind.biased, &mut find).transpose()? else { return Ok(None) };
        let dense = match kind.dense {
            Dense::Trained { name, .. } => match Layer::find(name, true, &mut find).transpose()? {
                Some(dense) => Some(dense),
                None => return Ok(None),
            },
            _ => None,
        };
        let k = out.weight.rows();
        for (layer, shape) in [Some((&out, [k, c])), dense.as_ref().map(|layer| (layer, [c, c]))].into_iter().flatten()
        {
            let bias = layer.bias.as_ref().is_none_or(|bias| bias.shape() == [shape[0]]);
            if layer.weight.shape() != shape || !bias {
                let (name, got) = (layer.name, layer.weight.shape());
                return Err(Error::Value(format!("the head's {name} must be {shape:?}, got {got:?}")));
            }
        }
        Ok(Some(Self { kind, dense, out, dropout }))
    }

    /// Takes a head from a checkpoint, as [`Head::found`] does.
    pub fn take(kind: HeadKind, c: usize, dropout: f32, weights: &mut Weights) -> Result<Option<Self>> {
        Self::found(kind, c, dropout, |name| weights.take_any(name))
    }

    /// Names of the head's tensors that `is_there` does not find, for messages.
    pub fn missing(kind: HeadKind, is_there: impl Fn(&str) -> bool) -> Vec<String> {
        Self::names(kind).split(", ").filter(|name| !is_there(name)).map(str::to_owned).collect()
    }

    /// Names of all tensors of the head, for messages.
    pub fn names(kind: HeadKind) -> String {
        let dense = match kind.dense {
            Dense::Trained { name, .. } => vec![format!("{name}.weight"), format!("{name}.bias")],
            _ => Vec::new(),
        };
        let bias = kind.biased.then(|| format!("{}.bias", kind.out));
        dense.into_iter().chain([format!("{}.weight", kind.out)]).chain(bias).collect::<Vec<_>>().join(", ")
    }

    /// Number of logits, K.
    pub fn outputs(&self) -> usize {
        self.out.weight.rows()
    }

    /// Whether the first token of a sequence represents it; otherwise the last token does.
    pub fn takes_first(&self) -> bool {
        self.kind.first
    }

    /// All parameters with their names inside the task model.
    pub fn parameters(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.out.parameters().chain(self.dense.iter().flat_map(Layer::parameters))
    }

    /// All parameters with their names inside the task model, mutable.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = (String, &mut Tensor)> {
        self.out.parameters_mut().chain(self.dense.iter_mut().flat_map(Layer::parameters_mut))
    }

    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        self.parameters_mut().try_for_each(|(_, t)| {
            *t = t.to_device(device)?;
            Ok(())
        })
    }

    /// Computes the logits (B, K) of the rows x (B, C), one row for each sequence.
    pub fn forward(&self, x: Tensor, pooler: Option<&Linear>, mode: &Mode) -> Result<(Tensor, Saved)> {
        let dropout = |index| mode.dropout(DropoutSite::Head, index, self.dropout);
        let (mut input, mut dropouts, mut saved_pooler) = (x, [None, dropout(0)], None);
        let inner = match (self.kind.dense, &self.dense, pooler) {
            (Dense::None, ..) => {
                dropouts = [None, None];
                None
            }
            (Dense::Trained { dropped, .. }, Some(dense), _) => {
                if dropped {
                    dropouts[0] = dropout(1);
                    input = mode::apply_dropout(dropouts[0], input)?;
                }
                Some(dense.forward(&input)?)
            }
            (Dense::Pooler, _, Some(pooler)) => {
                let (inner, saved) = pooler.forward(&input, mode)?;
                saved_pooler = Some(saved);
                Some(inner)
            }
            _ => return Err(Error::Value("the model has no pooler".into())),
        };
        // features = drop(f(inner)), or the input itself without a dense layer.
        let features = match &inner {
            Some(inner) => mode::apply_dropout(dropouts[1], activation::forward(self.kind.activation, inner)?)?,
            None => input.clone(),
        };
        let logits = self.out.forward(&features)?;
        Ok((logits, Saved { input, dropouts, pooler: saved_pooler, inner, features }))
    }

    /// Returns the gradient of x, or None if no layer below needs it.
    pub fn backward(
        &self,
        d_logits: &Tensor,
        pooler: Option<&Linear>,
        saved: Saved,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        self.out.keep_gradients(d_logits, &saved.features, grads)?;
        let adapted_pooler = pooler.is_some_and(|pooler| pooler.lora.is_some());
        if !want_dx && self.dense.is_none() && !adapted_pooler {
            return Ok(None);
        }
        // Backward through the output layer, then through dropout and activation.
        let d_features = linear::backward_input(d_logits, &self.out.ready()?)?;
        let Some(inner) = &saved.inner else { return Ok(Some(d_features)) };
        let d_inner =
            activation::backward(self.kind.activation, &mode::apply_dropout(saved.dropouts[1], d_features)?, inner)?;
        if let Some(dense) = &self.dense {
            dense.keep_gradients(&d_inner, &saved.input, grads)?;
            if !want_dx {
                return Ok(None);
            }
            let d_input = linear::backward_input(&d_inner, &dense.ready()?)?;
            return Ok(Some(mode::apply_dropout(saved.dropouts[0], d_input)?));
        }
        let Some((pooler, saved)) = pooler.zip(saved.pooler) else { return Ok(None) };
        if want_dx {
            return pooler.backward(&d_inner, saved, grads).map(Some);
        }
        pooler.backward_parameters(&d_inner, saved, grads)?;
        Ok(None)
    }
}
