use gelora_kernels::Tensor;
use gelora_kernels::ops::activation::{self, Activation};
use gelora_kernels::ops::add;

use crate::Result;
use crate::linear::{Grads, Linear, Saved as LinearSaved};
use crate::sublayer::{Context, Sublayer};

/// The MLP: down(f(up x)), or down(f(gate x) up x) with a gate.
pub(crate) struct Mlp {
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
    pub activation: Activation,
}

pub(crate) struct Saved {
    gate: Option<(Tensor, LinearSaved)>,
    up: LinearSaved,
    inner: Tensor,
    down: LinearSaved,
}

impl Mlp {
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.gate.iter().chain([&self.up, &self.down])
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.gate.iter_mut().chain([&mut self.up, &mut self.down])
    }
}

impl Sublayer for Mlp {
    type Saved = Saved;

    fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<(Tensor, Saved)> {
        let mode = context.mode;
        let gate = self.gate.as_ref().map(|gate| gate.forward(x, mode)).transpose()?;
        let (inner, up) = self.up.forward(x, mode)?;
        let activated = match &gate {
            Some((gate, _)) => activation::gated(self.activation, gate, &inner)?,
            None => activation::forward(self.activation, &inner)?,
        };
        let (y, down) = self.down.forward(&activated, mode)?;
        Ok((y, Saved { gate, up, inner, down }))
    }

    fn backward(
        &self,
        dy: &Tensor,
        _: &Context<'_>,
        saved: Saved,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let d_activated = self.down.backward(dy, saved.down, grads)?;
        let (d_inner, gate_backward) = match (&self.gate, saved.gate) {
            (Some(linear), Some((gate, saved_gate))) => {
                let (d_gate, d_up) = activation::gated_backward(self.activation, &d_activated, &gate, &saved.inner)?;
                (d_up, Some((linear, d_gate, saved_gate)))
            }
            _ => (activation::backward(self.activation, &d_activated, &saved.inner)?, None),
        };
        drop(d_activated);
        if !want_dx {
            self.up.backward_parameters(&d_inner, saved.up, grads)?;
            if let Some((gate, d_gate, saved)) = gate_backward {
                gate.backward_parameters(&d_gate, saved, grads)?;
            }
            return Ok(None);
        }
        let mut dx = self.up.backward(&d_inner, saved.up, grads)?;
        if let Some((gate, d_gate, saved)) = gate_backward {
            add::accumulate(&mut dx, &gate.backward(&d_gate, saved, grads)?)?;
        }
        Ok(Some(dx))
    }
}
