//! The options of DeBERTa's attention.

use gelora_kernels::ops::activation::Activation;

use crate::position::Buckets;

/// Options that other families do not have.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DebertaOptions {
    /// Whether positions are added to the embeddings too.
    pub positions: bool,
    /// What makes up the scores beside content with content, in the order of `pos_att_type`.
    pub terms: Vec<Term>,
    /// How distances are embedded; None without relative attention.
    pub distances: Option<Distances>,
    /// Taps and nonlinearity of the convolution.
    pub convolution: Option<(usize, Activation)>,
}

/// How distances between tokens are embedded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Distances {
    /// Rows of the table are 2 span.
    pub span: usize,
    pub buckets: Option<Buckets>,
    /// Whether the embeddings pass a layer norm.
    pub normed: bool,
    /// Queries and keys of distances are made by the projections of content.
    pub shared: bool,
}

/// A term of the attention scores beside content with content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Term {
    /// Content of the query, distance of the key.
    ContentToPosition,
    /// Distance of the query, content of the key.
    PositionToContent,
}
