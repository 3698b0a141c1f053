use super::{backward, forward, norms, reference, row_squares};
use crate::ops::linear::Weight;
use crate::verify::{Case, random, random_quantized};
use crate::{DType, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let sizes = [(1, 1, 1), (3, 7, 2), (63, 65, 7), (64, 63, 8), (257, 65, 3), (384, 384, 8), (576, 1536, 64)];
    for (c_out, c_in, r) in sizes {
        all.push(of_norms(c_out, c_in, r, DType::F32));
    }
    all.push(of_norms(65, 64, 4, DType::Bf16));
    all.push(of_norms(65, 64, 4, DType::Q8_0));
    for (n, c_out, has_bias) in [(1, 1, true), (3, 7, false), (63, 65, true), (257, 64, false), (1300, 384, true)] {
        all.extend(of_rows(n, c_out, has_bias));
    }
    all
}

fn of_norms(c_out: usize, c_in: usize, r: usize, dtype: DType) -> Case {
    let weight = match dtype.is_quantized() {
        true => random_quantized([c_out, c_in], dtype, 1),
        false => random([c_out, c_in], 1).to_dtype(dtype).expect("a CPU tensor converts"),
    };
    let s = 2.0 / r as f32;
    // The products A W^T and A A^T, then the sum over k and l.
    let flops = 2 * r * c_in * c_out + 2 * r * c_in * r + 2 * c_out * r * (r + 2);
    let products = 4 * r * c_in + dtype.bytes(c_out * c_in) + 4 * r * c_out + 4 * (2 * r * c_in + r * r);
    let bytes = products + 4 * (c_out * (2 * r + 2) + r * r);
    Case::new("dora.norms", format!("{c_out}x{c_in} r{r} {dtype}"))
        .dtype(dtype)
        .inputs([weight, random([r, c_in], 2), random([c_out, r], 3)])
        .run(move |t| {
            let squares = row_squares(&t[0])?;
            Ok(vec![norms(&Weight::new(t[0].clone(), DType::F32)?, &squares, &t[1], &t[2], s)?])
        })
        .reference(move |v| vec![reference::norms(&v[0], &v[1], &v[2], s.into(), c_in)])
        .bound(1e-6)
        .work(flops as f64, bytes as f64)
}

fn of_rows(n: usize, c_out: usize, has_bias: bool) -> [Case; 2] {
    // Norms are above 0.
    let positive = |seed: u64| {
        let values = random([c_out], seed).to_vec().unwrap_or_default().iter().map(|v| v.abs() + 0.5).collect();
        Tensor::from_vec(values, [c_out]).expect("the shape fits")
    };
    let inputs = [random([n, c_out], 1), random([c_out], 2), positive(3), random([c_out], 4), random([n, c_out], 5)];
    let shape = format!("{n}x{c_out}{}", if has_bias { " bias" } else { "" });
    let values = (n * c_out) as f64;
    [
        Case::new("dora", &shape)
            .inputs(inputs.clone())
            .run(move |t| Ok(vec![forward(&t[0], &t[1], &t[2], has_bias.then_some(&t[3]))?]))
            .reference(move |v| vec![reference::forward(&v[0], &v[1], &v[2], has_bias.then_some(&v[3][..]))])
            .bound(2e-7)
            .work(2.0 * values, 8.0 * values),
        Case::new("dora.backward", &shape)
            .inputs(inputs)
            .run(move |t| {
                let (dz, dm) = backward(&t[4], &t[0], &t[1], &t[2])?;
                Ok(vec![dz, dm])
            })
            .reference(move |v| {
                let (dz, dm) = reference::backward(&v[4], &v[0], &v[1], &v[2]);
                vec![dz, dm]
            })
            .bound(1e-6)
            .work(3.0 * values, 12.0 * values),
    ]
}
