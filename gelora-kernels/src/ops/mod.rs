//! The operators, one room each.

mod check;
pub mod linear;

use crate::verify::Case;

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(linear::cases::cases());
    all
}
