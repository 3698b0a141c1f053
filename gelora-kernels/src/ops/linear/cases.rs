use super::{Weight, backward_input, backward_weight, forward, reference};
use crate::verify::{Case, random, random_quantized};
use crate::{DType, Result, Rounding, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (n, c_in, c_out) in [
        (1, 1, 1),
        (1, 104, 48),
        (3, 7, 3),
        (48, 104, 7),
        (63, 64, 65),
        (257, 48, 104),
        (64, 384, 1536),
        (66_000, 3, 2),   // more rows than a GPU has cubes in one dimension
        (1500, 20, 1400), // enough for a GPU's largest blocks, in fours
        (1409, 7, 1501),  // and in single values
    ] {
        let shape = format!("{n}x{c_in}->{c_out}");
        let (x, w, b, dy) = (random([n, c_in], 1), random([c_out, c_in], 2), random([c_out], 3), random([n, c_out], 4));
        let flops = 2.0 * (n * c_in * c_out) as f64;
        let bytes = 4.0 * (n * c_in + c_in * c_out + n * c_out) as f64;
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let w = stored(&w, dtype);
            let bytes = (4 * n * (c_in + c_out) + dtype.bytes(c_in * c_out)) as f64;
            all.push(
                Case::new("linear", &shape)
                    .dtype(dtype)
                    .inputs([x.clone(), w.clone(), b.clone()])
                    .run(|t| Ok(vec![forward(&t[0], &f32(&t[1])?, Some(&t[2]))?]))
                    .reference(move |v| vec![reference::forward(&v[0], &v[1], Some(&v[2]), c_in)])
                    .bound(of_long_sums(1e-6, c_in))
                    .work(flops, bytes),
            );
            all.push(
                Case::new("linear.backward_input", &shape)
                    .dtype(dtype)
                    .inputs([dy.clone(), w])
                    .run(|t| Ok(vec![backward_input(&t[0], &f32(&t[1])?)?]))
                    .reference(move |v| vec![reference::backward_input(&v[0], &v[1], c_out)])
                    .bound(of_long_sums(1e-6, c_out))
                    .work(flops, bytes),
            );
        }
        all.push(
            Case::new("linear.backward_weight", &shape)
                .inputs([dy, x])
                .run(|t| backward_weight(&t[0], &t[1]).map(|(dw, db)| vec![dw, db]))
                .reference(move |v| {
                    let (dw, db) = reference::backward_weight(&v[0], &v[1], c_in);
                    vec![dw, db]
                })
                // A long sum in f32 loses digits.
                .bound(if n > 60_000 { 3e-5 } else { 1e-6 })
                .work(flops, bytes),
        );
    }
    for (n, c_in, c_out) in [(1, 1, 1), (3, 7, 3), (63, 65, 49), (257, 48, 104), (64, 384, 1536)] {
        let values = [random([n, c_in], 1), random([c_out, c_in], 2), random([c_out], 3), random([n, c_out], 4)];
        // Factors that bf16 holds leave the rounding of f32 sums alone; others are rounded by up to 2^-9 each.
        for (label, exact) in [("bf16 products, exact factors", true), ("bf16 products", false)] {
            let bound = |depth| if exact { of_long_sums(1e-6, depth) } else { 5e-3 };
            let shape = format!("{n}x{c_in}->{c_out} {label}");
            let flops = 2.0 * (n * c_in * c_out) as f64;
            let bytes = 4.0 * (n * c_in + c_in * c_out + n * c_out) as f64;
            let [x, w, b, dy] = values.clone().map(|t| if exact { rounded(&t) } else { t });
            all.push(
                Case::new("linear", &shape)
                    .inputs([x, w.clone(), b])
                    .run(|t| Ok(vec![forward(&t[0], &Weight::new(t[1].clone(), DType::Bf16)?, Some(&t[2]))?]))
                    .reference(move |v| vec![reference::forward(&v[0], &v[1], Some(&v[2]), c_in)])
                    .bound(bound(c_in))
                    .work(flops, bytes),
            );
            all.push(
                Case::new("linear.backward_input", &shape)
                    .inputs([dy, w])
                    .run(|t| Ok(vec![backward_input(&t[0], &Weight::new(t[1].clone(), DType::Bf16)?)?]))
                    .reference(move |v| vec![reference::backward_input(&v[0], &v[1], c_out)])
                    .bound(bound(c_out))
                    .work(flops, bytes),
            );
        }
    }
    // Few rows read the weight as it is stored; more rows read a packed layout.
    for shape in [(1, 256, 7), (1, 1536, 203), (3, 256, 20), (5, 1536, 70), (8, 512, 33), (9, 256, 40), (130, 768, 65)]
    {
        all.extend(QUANTIZED.into_iter().flat_map(|dtype| quantized_cases(shape, dtype, DType::F32)));
    }
    // Large enough for the largest blocks of a GPU, forward and backward.
    for shape in [(1500, 64, 1400), (1500, 1408, 20)] {
        let types = [DType::Q8_0, DType::Nf4(Rounding::Bf16)];
        all.extend(types.into_iter().flat_map(|dtype| quantized_cases(shape, dtype, DType::F32)));
    }
    for dtype in [DType::Q5K, DType::Nf4(Rounding::Bf16)] {
        all.extend(quantized_cases((70, 256, 192), dtype, DType::Bf16));
    }
    all
}

/// Both products with a quantized weight, computed in f32 or bf16.
fn quantized_cases((n, c_in, c_out): (usize, usize, usize), dtype: DType, compute: DType) -> [Case; 2] {
    let in_bf16 = compute == DType::Bf16;
    let shape = format!("{n}x{c_in}->{c_out}{}", if in_bf16 { " bf16 products" } else { "" });
    let flops = 2.0 * (n * c_in * c_out) as f64;
    let bytes = (4 * n * (c_in + c_out) + dtype.bytes(c_in * c_out)) as f64;
    // Factors that bf16 holds leave the rounding of sums alone.
    let exact = !in_bf16 || dtype.unquantized() == DType::Bf16;
    let bound = |depth| if exact { of_long_sums(1e-6, depth) } else { 5e-3 };
    let factor = |t: Tensor| if in_bf16 { rounded(&t) } else { t };
    let w = random_quantized([c_out, c_in], dtype, 5);
    let forward = Case::new("linear", &shape)
        .dtype(dtype)
        .inputs([factor(random([n, c_in], 1)), w.clone(), random([c_out], 3)])
        .run(move |t| Ok(vec![forward(&t[0], &Weight::new(t[1].clone(), compute)?, Some(&t[2]))?]))
        .reference(move |v| vec![reference::forward(&v[0], &v[1], Some(&v[2]), c_in)])
        .bound(bound(c_in))
        .work(flops, bytes);
    let backward = Case::new("linear.backward_input", &shape)
        .dtype(dtype)
        .inputs([factor(random([n, c_out], 4)), w])
        .run(move |t| Ok(vec![backward_input(&t[0], &Weight::new(t[1].clone(), compute)?.kept())?]))
        .reference(move |v| vec![reference::backward_input(&v[0], &v[1], c_out)])
        .bound(bound(c_out))
        .work(flops, bytes);
    [forward, backward]
}

/// The quantized types of GGUF files and of bitsandbytes.
pub(crate) const QUANTIZED: [DType; 16] = {
    use DType::{Fp4, Iq4Nl, Iq4Xs, Nf4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    use Rounding::{Bf16, F16, F32};
    [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, Iq4Nl, Iq4Xs, Nf4(F32), Nf4(Bf16), Nf4(F16), Fp4(Bf16)]
};

/// The error bound of sums of `depth` products: `short`, or proportional to the depth if it is large. Errors of sums
/// that round to nearest grow with the root of the depth. Matrix units of GPUs truncate, so their errors have one sign
/// and add up.
pub(crate) fn of_long_sums(short: f64, depth: usize) -> f64 {
    short.max(2e-9 * depth as f64)
}

/// The values rounded to bf16, as f32.
pub(crate) fn rounded(t: &Tensor) -> Tensor {
    let rounded = t.to_dtype(DType::Bf16).and_then(|t| t.to_dtype(DType::F32));
    rounded.expect("a CPU tensor converts")
}

fn stored(w: &Tensor, dtype: DType) -> Tensor {
    w.to_dtype(dtype).expect("a CPU tensor converts")
}

fn f32(w: &Tensor) -> Result<Weight> {
    Weight::new(w.clone(), DType::F32)
}
