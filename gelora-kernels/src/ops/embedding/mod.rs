//! Sums of table rows: `y_i = sum over tables t of table_t[ids_t[i]]`.
//!
//! A BERT embedding is one call with the word, position and token-type tables. Each table (V_t, C) has any storage type
//! and N ids; y (N, C). The tables are added in the given order, in f32. They are frozen, so there is no backward pass.

#[cfg(any(test, feature = "verify"))]
pub(crate) mod cases;
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
#[cfg(any(test, feature = "verify"))]
pub mod reference;

use super::check;
use crate::device::on_device;
use crate::{Result, Tensor, profile};

/// y (N, C): the sum of one row of each table, for each of the N ids.
///
/// # Errors
/// If there is no table or no id, the widths of the tables or the numbers of ids differ, or an id is not below the
/// number of rows of its table.
///
/// ```
/// use gelora_kernels::{Tensor, ops::embedding};
///
/// let words = Tensor::from_vec(vec![1.0, 2.0, 3.0, 4.0], [2, 2])?;
/// let positions = Tensor::from_vec(vec![10.0, 20.0], [1, 2])?;
/// let y = embedding::forward(&[(&words, &[1, 0]), (&positions, &[0, 0])])?;
/// assert_eq!(y.to_vec()?, [13.0, 24.0, 11.0, 22.0]);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
pub fn forward(tables: &[(&Tensor, &[u32])]) -> Result<Tensor> {
    const OP: &str = "embedding";
    check::value(OP, !tables.is_empty(), || "needs at least one table".into())?;
    let (first, first_ids) = tables[0];
    check::value(OP, !first_ids.is_empty(), || "needs at least one id".into())?;
    let (_, c) = check::matrix(OP, "table", first)?;
    for (table, ids) in tables {
        let (v, _) = check::matrix(OP, "table", table)?;
        check::shape(OP, "table", table, &[v, c])?;
        check::same_device(OP, &[first, table])?;
        check::value(OP, ids.len() == first_ids.len(), || {
            format!("every table needs as many ids, got {} and {}", first_ids.len(), ids.len())
        })?;
        if let Some((i, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= v) {
            return Err(crate::Error::Value {
                op: OP,
                message: format!("id {id} at {i} is not below the table's {v} rows"),
            });
        }
    }
    let values = (first_ids.len() * c) as f64;
    let stored: usize = tables.iter().map(|(table, _)| table.dtype().bytes(first_ids.len() * c)).sum();
    let _span = profile::span(OP, (tables.len() - 1) as f64 * values, stored as f64 + 4.0 * values);
    let n = first_ids.len();
    on_device!(first.device(), cpu::forward(tables, n, c), gpu => gpu::forward(gpu, tables, n, c))
}
