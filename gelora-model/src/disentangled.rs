//! Disentangled attention (He et al., arXiv 2006.03654): beside Q_i K_j, scores have Q_i K^d_(j - i), what a query's
//! content has to do with a distance, and K_j Q^d_(j - i), the same of a key's. K^d and Q^d are projections of the
//! distances' embeddings.
//!
//! Only the distances within a batch are projected; there are 2 T - 1 of them. A row of the embeddings that stands for
//! many distances is projected for each, so that gradients need no scatter.

use gelora_kernels::Tensor;
use gelora_kernels::ops::attention::Gradients;
use gelora_kernels::ops::{add, embedding, head_product};

use crate::Result;
use crate::linear::{Grads, Linear, Saved as LinearSaved};
use crate::mode::{self, DropoutSite, Mode};
use crate::position::Distances;

/// What projects the embeddings of distances.
pub(crate) enum Projection {
    /// The projection of content.
    Shared,
    Own(Box<Linear>),
}

/// The terms that a model has, each with what projects distances for it.
pub(crate) struct Disentangled {
    /// K^d, for queries of content (c2p).
    pub keys: Option<Projection>,
    /// Q^d, for keys of content (p2c).
    pub queries: Option<Projection>,
    /// Dropout of the embeddings.
    pub dropout: f32,
}

/// K^d and Q^d of a pass, each (2 T - 1, H D).
pub(crate) struct Projected {
    keys: Option<(Tensor, LinearSaved)>,
    queries: Option<(Tensor, LinearSaved)>,
}

/// What is added to the scores, as [`gelora_kernels::ops::attention`] takes it.
#[derive(Default)]
pub(crate) struct Added {
    pub by_query: Option<Tensor>,
    pub by_key: Option<Tensor>,
}

impl Disentangled {
    /// Projections of its own.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        [&self.keys, &self.queries].into_iter().flatten().filter_map(|projection| match projection {
            Projection::Own(linear) => Some(&**linear),
            Projection::Shared => None,
        })
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        [&mut self.keys, &mut self.queries].into_iter().flatten().filter_map(|projection| match projection {
            Projection::Own(linear) => Some(&mut **linear),
            Projection::Shared => None,
        })
    }

    /// The distances under the projections of content, [queries, keys, ..], or their own.
    pub fn project(
        &self,
        content: &[Linear],
        distances: &Distances<'_>,
        mode: &Mode,
        layer: usize,
    ) -> Result<Projected> {
        let table =
            mode::apply_dropout(mode.dropout(DropoutSite::Distances, layer, self.dropout), distances.table.clone())?;
        let rows = embedding::forward(&[(&table, &distances.rows)])?;
        let project = |projection: &Option<Projection>, shared: usize| {
            let linear = projection.as_ref().map(|projection| projection.of(content, shared));
            linear.map(|linear| linear.forward(&rows, &mode.of_distances())).transpose()
        };
        Ok(Projected { keys: project(&self.keys, 1)?, queries: project(&self.queries, 0)? })
    }

    /// Takes the gradients of what was added further: to dq and dk, and to the adapters of the projections.
    pub fn backward(
        &self,
        content: &[Linear],
        projected: Projected,
        [q, k]: [&Tensor; 2],
        heads: usize,
        g: &mut Gradients,
        grads: &mut Grads,
    ) -> Result<()> {
        let terms = [
            (&self.keys, projected.keys, 1, q, &mut g.dq, g.d_by_query.take()),
            (&self.queries, projected.queries, 0, k, &mut g.dk, g.d_by_key.take()),
        ];
        for (projection, projected, shared, x, dx, d_added) in terms {
            let (Some(projection), Some((table, saved)), Some(d)) = (projection, projected, d_added) else { continue };
            add::accumulate(dx, &head_product::backward_input(&d, &table, heads)?)?;
            let linear = projection.of(content, shared);
            if linear.lora.is_some() {
                linear.backward_parameters(&head_product::backward_table(&d, x, heads)?, saved, grads)?;
            }
        }
        Ok(())
    }
}

impl Projection {
    fn of<'l>(&'l self, content: &'l [Linear], shared: usize) -> &'l Linear {
        match self {
            Projection::Shared => &content[shared],
            Projection::Own(linear) => linear,
        }
    }
}

impl Projected {
    /// What these distances add to the scores of these queries and keys.
    pub fn added(&self, q: &Tensor, k: &Tensor, heads: usize) -> Result<Added> {
        let of = |term: &Option<(Tensor, LinearSaved)>, x: &Tensor| {
            term.as_ref().map(|(table, _)| head_product::forward(x, table, heads)).transpose()
        };
        Ok(Added { by_query: of(&self.keys, q)?, by_key: of(&self.queries, k)? })
    }
}
