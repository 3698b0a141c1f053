//! Disentangled attention (He et al., arXiv 2006.03654). Beside Q_i K_j, the score of query i and key j has two terms
//! that depend on their distance:
//!
//! ```text
//! Q_i K^d_(j - i)      content of the query, distance (c2p)
//! K_j Q^d_(j - i)      content of the key, distance (p2c)
//! ```
//!
//! K^d and Q^d are projections of the embeddings of distances. Only the 2 T - 1 distances within a batch of longest
//! sequence T are projected. If several distances share a row of the embeddings, the row is projected once for each
//! distance, so that gradients need no scatter.

use gelora_kernels::Tensor;
use gelora_kernels::ops::attention::Gradients;
use gelora_kernels::ops::{add, embedding, head_product};

use crate::Result;
use crate::linear::{Grads, Linear, Saved as LinearSaved};
use crate::mode::{self, DropoutSite, Mode};
use crate::position::Distances;

/// Projection of the embeddings of distances.
pub(crate) enum Projection {
    /// The projection of the content.
    Shared,
    Own(Box<Linear>),
}

/// The terms of a model, each with its projection of the distances.
pub(crate) struct Disentangled {
    /// Projection to K^d, multiplied with the queries (c2p).
    pub keys: Option<Projection>,
    /// Projection to Q^d, multiplied with the keys (p2c).
    pub queries: Option<Projection>,
    /// Dropout probability of the embeddings of distances.
    pub dropout: f32,
}

/// K^d and Q^d of a forward pass, each (2 T - 1, H D).
pub(crate) struct Projected {
    keys: Option<(Tensor, LinearSaved)>,
    queries: Option<(Tensor, LinearSaved)>,
}

/// The terms added to the scores, in the form that [`gelora_kernels::ops::attention`] takes.
#[derive(Default)]
pub(crate) struct Added {
    pub by_query: Option<Tensor>,
    pub by_key: Option<Tensor>,
}

impl Disentangled {
    /// The projections that are not shared with the content.
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

    /// Projects the distances. `content` holds the projections of the content, [queries, keys, ..], for shared
    /// projections.
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
            let linear = projection.as_ref().map(|projection| projection.linear(content, shared));
            linear.map(|linear| linear.forward(&rows, &mode.for_distances())).transpose()
        };
        Ok(Projected { keys: project(&self.keys, 1)?, queries: project(&self.queries, 0)? })
    }

    /// Passes the gradients of the added terms on: adds to dq and dk in `g`, and to the gradients of the projections'
    /// adapters.
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
            let linear = projection.linear(content, shared);
            if linear.lora.is_some() {
                linear.backward_parameters(&head_product::backward_table(&d, x, heads)?, saved, grads)?;
            }
        }
        Ok(())
    }
}

impl Projection {
    fn linear<'l>(&'l self, content: &'l [Linear], shared: usize) -> &'l Linear {
        match self {
            Projection::Shared => &content[shared],
            Projection::Own(linear) => linear,
        }
    }
}

impl Projected {
    /// Computes the terms that the distances add to the scores of these queries and keys.
    pub fn added(&self, q: &Tensor, k: &Tensor, heads: usize) -> Result<Added> {
        let product = |term: &Option<(Tensor, LinearSaved)>, x: &Tensor| {
            term.as_ref().map(|(table, _)| head_product::forward(x, table, heads)).transpose()
        };
        Ok(Added { by_query: product(&self.keys, q)?, by_key: product(&self.queries, k)? })
    }
}
