//! Tasks of rows. Only the rows of the given ids are widened, because a table can be the largest tensor of a model.

use half::{bf16, f16};

use crate::cpu::{Scratch, for_row_blocks};
use crate::quantized::decode;
use crate::{DType, Result, Tensor};

pub(crate) fn forward(tables: &[(&Tensor, &[u32])], n: usize, c: usize) -> Result<Tensor> {
    let mut y = Tensor::output([n, c])?;
    let out = y.as_mut_slice()?;
    out.fill(0.0);
    for (table, ids) in tables {
        let bytes = table.bytes()?;
        let dtype = table.dtype();
        for_row_blocks(out, c, |first, rows| {
            for (row, &id) in rows.chunks_exact_mut(c).zip(&ids[first..]) {
                let size = dtype.bytes(c);
                add_row(row, &bytes[id as usize * size..][..size], dtype);
            }
        });
    }
    Ok(y)
}

/// row += the values of these bytes.
fn add_row(row: &mut [f32], bytes: &[u8], dtype: DType) {
    match dtype {
        DType::F32 => add(row, bytemuck::cast_slice(bytes).iter().copied()),
        DType::Bf16 => add(row, bytemuck::cast_slice(bytes).iter().map(|v: &bf16| v.to_f32())),
        DType::F16 => add(row, bytemuck::cast_slice(bytes).iter().map(|v: &f16| v.to_f32())),
        DType::F64 => add(row, bytemuck::cast_slice(bytes).iter().map(|v: &f64| *v as f32)),
        _ => {
            let mut values = Scratch::new(row.len());
            decode(dtype, bytes, &mut values);
            add(row, values.iter().copied());
        }
    }
}

fn add(row: &mut [f32], values: impl Iterator<Item = f32>) {
    for (y, v) in row.iter_mut().zip(values) {
        *y += v;
    }
}
