//! Options of DeBERTa's attention.

use gelora_kernels::ops::activation::Activation;

use crate::position::Buckets;

/// Options that only DeBERTa has.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DebertaOptions {
    /// Whether position embeddings are added to the token embeddings.
    pub positions: bool,
    /// Terms of the scores beside content-to-content, in the order of `pos_att_type`.
    pub terms: Vec<Term>,
    /// Embeddings of distances. None without relative attention.
    pub distances: Option<Distances>,
    /// Number of taps and activation of the convolution.
    pub convolution: Option<(usize, Activation)>,
}

/// Options of the embeddings of distances.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Distances {
    /// Half the number of rows in the table.
    pub span: usize,
    pub buckets: Option<Buckets>,
    /// Whether the embeddings go through a layer norm.
    pub normed: bool,
    /// Whether the projections of the content also project the distances.
    pub shared: bool,
}

/// A term of the attention scores beside content-to-content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Term {
    /// Content of the query and distance of the key.
    ContentToPosition,
    /// Distance of the query and content of the key.
    PositionToContent,
}
