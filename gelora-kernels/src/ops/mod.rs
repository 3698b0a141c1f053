//! The operators, one module each.
//!
//! Every module has the formula, the shapes and the accumulation order in its documentation, the public functions with
//! their argument checks, and the dispatch over devices. Arguments are checked before anything is computed, and a wrong
//! argument is an error that names it.

pub mod activation;
pub mod adalora;
pub mod adamw;
pub mod add;
pub mod attention;
pub(crate) mod check;
pub mod concat;
pub mod dora;
pub mod dropout;
pub mod embedding;
pub mod head_product;
pub mod layer_norm;
pub mod linear;
pub mod lora_linear;
pub mod loss;
pub mod pairwise;
pub mod pool;
pub mod rms_norm;
pub mod rotary;
pub mod scale;

#[cfg(any(test, feature = "verify"))]
use crate::verify::Case;

/// All cases of all operators, in the order of the modules.
#[cfg(any(test, feature = "verify"))]
pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(activation::cases::cases());
    all.extend(adalora::cases::cases());
    all.extend(adamw::cases::cases());
    all.extend(add::cases::cases());
    all.extend(attention::cases::cases());
    all.extend(concat::cases::cases());
    all.extend(dora::cases::cases());
    all.extend(dropout::cases::cases());
    all.extend(embedding::cases::cases());
    all.extend(head_product::cases::cases());
    all.extend(layer_norm::cases::cases());
    all.extend(linear::cases::cases());
    all.extend(lora_linear::cases::cases());
    all.extend(loss::cases::cases());
    all.extend(pairwise::cases::cases());
    all.extend(pool::cases::cases());
    all.extend(rms_norm::cases::cases());
    all.extend(rotary::cases::cases());
    all.extend(scale::cases::cases());
    all
}
