use super::{Gradients, LoraLinear, reference};
use crate::ops::dropout::Dropout;
use crate::ops::linear::Weight;
use crate::ops::linear::cases::{of_long_sums, rounded};
use crate::random::key;
use crate::verify::{Case, random, random_quantized};
use crate::{DType, Rounding, Tensor};

/// One shape and its settings.
#[derive(Clone, Copy)]
struct Setup {
    n: usize,
    c_in: usize,
    c_out: usize,
    r: usize,
    bias: bool,
    p: f32,
    dtype: DType,
    products: Products,
}

/// The type of the weight's products.
#[derive(Clone, Copy, PartialEq)]
enum Products {
    F32,
    Bf16,
    /// bf16, with factors that bf16 represents exactly: only the sums round.
    Bf16Exact,
}

pub(crate) fn cases() -> Vec<Case> {
    use DType::{Bf16, F16, F32, Fp4, Nf4, Q4_1, Q4K, Q6K, Q8_0};
    let setup =
        |(n, c_in, c_out, r), bias, p, dtype| Setup { n, c_in, c_out, r, bias, p, dtype, products: Products::F32 };
    let bf16 = |products, (n, c_in, c_out, r), bias, p| Setup { n, c_in, c_out, r, bias, p, dtype: F32, products };
    let real = (64, 384, 384, 8);
    [
        setup((1, 1, 1, 1), false, 0.0, F32),
        setup((1, 7, 3, 1), true, 0.0, F32),
        setup((3, 7, 48, 3), true, 0.5, F32),
        setup((48, 63, 64, 1), false, 0.1, F32),
        setup((63, 64, 65, 3), true, 0.0, F32),
        setup((65, 104, 63, 8), false, 0.0, F32),
        setup((65, 104, 63, 8), true, 0.1, F16),
        setup((65, 104, 63, 8), true, 0.1, Bf16),
        setup((257, 48, 104, 8), true, 0.25, F32),
        setup((64, 65, 257, 64), true, 0.0, F32),
        setup((1030, 7, 5, 3), true, 0.1, F32), // more rows than dA and dB sum in one part
        setup((7, 257, 48, 64), false, 0.9, F32),
        setup(real, false, 0.0, F32),
        setup(real, true, 0.1, F32),
        setup(real, true, 0.0, Bf16),
        setup(real, true, 0.0, F16),
        setup((1024, 384, 384, 8), true, 0.0, F32), // what the benches quote
        setup((4, 256, 40, 3), true, 0.2, Q8_0),    // few rows: W is read as it is stored
        setup((8, 104, 63, 8), true, 0.1, F16),
        setup((1, 104, 63, 3), false, 0.0, Bf16),
        setup((4, 512, 33, 2), false, 0.0, Q4K),
        setup((70, 256, 33, 3), true, 0.1, Q4_1),
        setup((70, 256, 33, 3), true, 0.0, Q6K),
        setup((70, 192, 33, 3), true, 0.1, Nf4(Rounding::Bf16)),
        setup((5, 64, 40, 8), false, 0.0, Fp4(Rounding::F32)),
        bf16(Products::Bf16, (1024, 384, 384, 8), true, 0.0),
        bf16(Products::Bf16, (65, 104, 63, 3), true, 0.1),
        bf16(Products::Bf16Exact, (1, 1, 1, 1), false, 0.0),
        bf16(Products::Bf16Exact, (63, 65, 49, 1), true, 0.5),
        bf16(Products::Bf16Exact, (257, 48, 104, 8), true, 0.0),
        bf16(Products::Bf16Exact, (7, 257, 48, 64), false, 0.0),
        // Inner sums of several blocks: the adapter's terms are added once.
        setup((33, 1100, 49, 3), true, 0.0, F32),
        setup((33, 49, 1100, 3), true, 0.0, F32),
        bf16(Products::Bf16Exact, (33, 1100, 49, 8), true, 0.0),
        bf16(Products::Bf16Exact, (33, 49, 1100, 8), true, 0.0),
        // Large enough for the larger cubes of the matrix units, forward and backward.
        bf16(Products::Bf16Exact, (1300, 72, 1536, 8), true, 0.0),
        bf16(Products::Bf16Exact, (1300, 1536, 72, 8), false, 0.5),
        bf16(Products::Bf16Exact, (2048, 72, 2048, 32), true, 0.5),
        bf16(Products::Bf16Exact, (2048, 2048, 72, 32), true, 0.5),
    ]
    .into_iter()
    .flat_map(cases_of)
    .collect()
}

fn cases_of(setup: Setup) -> Vec<Case> {
    let Setup { n, c_in, c_out, r, bias, p, dtype, products } = setup;
    let scaling = 16.0 / r as f32;
    let dropout = (p > 0.0).then(|| Dropout { p, key: key(5, &[n as u64]) });
    let (label, compute) = match products {
        Products::F32 => ("", DType::F32),
        Products::Bf16 => (" bf16 products", DType::Bf16),
        Products::Bf16Exact => (" bf16 products, exact factors", DType::Bf16),
    };
    // On matrix units, the left operand of an adapter is three factors of 8 bits.
    let bound = |short: f64, depth: usize| match products {
        Products::Bf16 => 2500.0 * short,
        Products::F32 | Products::Bf16Exact => of_long_sums(short, depth + 3 * r),
    };
    let (bias_label, drop_label) = (if bias { " bias" } else { "" }, if p > 0.0 { " drop" } else { "" });
    let shape = format!("{n}x{c_in}->{c_out} r{r}{bias_label}{drop_label}{label}");
    let weight = match dtype.is_quantized() {
        true => random_quantized([c_out, c_in], dtype, 2),
        false => random([c_out, c_in], 2).to_dtype(dtype).expect("a CPU tensor converts"),
    };
    let inputs = [
        random([n, c_in], 1),
        weight,
        random([r, c_in], 3),
        random([c_out, r], 4),
        random([c_out], 5),
        random([n, c_out], 6),
    ]
    .map(|t| if products == Products::Bf16Exact { rounded(&t) } else { t });
    let layer = move |t: &[Tensor], f: &dyn Fn(LoraLinear<'_>) -> crate::Result<Vec<Tensor>>| {
        let weight = Weight::new(t[1].clone(), compute)?;
        f(LoraLinear { weight: &weight, bias: bias.then_some(&t[4]), a: &t[2], b: &t[3], scaling, dropout })
    };
    let s = f64::from(scaling);
    let gradients = move |v: &[Vec<f64>]| reference::backward(&v[0], &v[5], &v[1], &v[2], &v[3], s, dropout, c_in);
    let (base, adapter) = (2.0 * (n * c_in * c_out) as f64, 2.0 * (n * r * (c_in + c_out)) as f64);
    let activations = 4.0 * (n * (c_in + c_out)) as f64;
    let parameters = 4.0 * (r * (c_in + c_out)) as f64;
    let bytes = activations + parameters + (dtype.bytes(c_in * c_out)) as f64;
    vec![
        Case::new("lora_linear", &shape)
            .dtype(dtype)
            .inputs(inputs.clone())
            .run(move |t| layer(t, &|l| l.forward(&t[0]).map(|(y, saved)| vec![y, saved.xa])))
            .reference(move |v| {
                let bias = bias.then_some(&v[4][..]);
                let (y, xa) = reference::forward(&v[0], &v[1], bias, &v[2], &v[3], s, dropout, c_in);
                vec![y, xa]
            })
            .bound(bound(2e-6, c_in))
            .work(base + adapter, bytes),
        Case::new("lora_linear.backward", &shape)
            .dtype(dtype)
            .inputs(inputs.clone())
            .run(move |t| {
                layer(t, &|l| {
                    let (_, saved) = l.forward(&t[0])?;
                    let Gradients { dx, da, db } = l.backward(&t[0], &t[5], saved)?;
                    Ok(vec![dx, da, db])
                })
            })
            .reference(move |v| {
                let (dx, da, db) = gradients(v);
                vec![dx, da, db]
            })
            .bound(bound(4e-6, c_out))
            .work(2.0 * base + 3.0 * adapter, 2.0 * bytes),
        Case::new("lora_linear.backward_parameters", &shape)
            .dtype(dtype)
            .inputs(inputs)
            .run(move |t| {
                layer(t, &|l| {
                    let (_, saved) = l.forward(&t[0])?;
                    l.backward_parameters(&t[0], &t[5], saved).map(|(da, db)| vec![da, db])
                })
            })
            .reference(move |v| {
                let (_, da, db) = gradients(v);
                vec![da, db]
            })
            .bound(bound(4e-6, c_out))
            .work(base + 3.0 * adapter, bytes + activations + parameters),
    ]
}
