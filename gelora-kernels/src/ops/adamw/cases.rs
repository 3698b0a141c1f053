use super::{AdamW, Clip, Factors, Group, Member, Moments, global_norm, reference, step};
use crate::Tensor;
use crate::verify::{Case, random};

pub(crate) fn cases() -> Vec<Case> {
    let settings = AdamW { lr: 0.05, weight_decay: 0.1, ..AdamW::default() };
    let mut all = Vec::new();
    for len in [1, 3, 63, 257, 3072, 100_000] {
        let squared = random([len], 4).to_vec().unwrap_or_default().iter().map(|v| v * v).collect();
        let Ok(v) = Tensor::from_vec(squared, [len]) else { continue };
        let Ok(norm) = Tensor::from_vec(vec![3.0], [1]) else { continue };
        let inputs = [random([len], 1), random([len], 2), random([len], 3), v, norm];
        // Clipped to half of the norm, not clipped, and below the limit.
        for (t, max_norm, scale) in [(1, 1.5, 1.5 / (3.0 + 1e-6)), (1000, f32::INFINITY, 1.0), (2, 3.5, 1.0)] {
            all.push(
                Case::new("adamw", format!("{len}, t {t}, norm 3 to {max_norm}"))
                    .inputs(inputs.clone())
                    .run(move |x| {
                        let (mut p, mut moments) = (x[0].clone(), Moments { m: x[2].clone(), v: x[3].clone() });
                        step(&settings, t, &mut p, &x[1], Clip { norm: &x[4], max_norm }, &mut moments)?;
                        Ok(vec![p, moments.m, moments.v])
                    })
                    .reference(move |x| {
                        let g: Vec<f64> = x[1].iter().map(|g| scale * g).collect();
                        let (p, m, v) = reference::step(&settings, t as i32, &x[0], &g, &x[2], &x[3]);
                        vec![p, m, v]
                    })
                    .bound(2e-6)
                    .work(14.0 * len as f64, 28.0 * len as f64),
            );
        }
        all.push(
            Case::new("adamw.global_norm", format!("{len} + {len}"))
                .inputs([inputs[0].clone(), inputs[1].clone()])
                .run(|t| Ok(vec![global_norm(t)?]))
                .reference(|v| vec![vec![v.iter().flatten().map(|x| x * x).sum::<f64>().sqrt()]])
                .bound(1e-6)
                .work(4.0 * len as f64, 8.0 * len as f64),
        );
    }
    all.extend(groups());
    all
}

/// The factors of a group's members: the first half steps as the settings say, the other half otherwise.
fn factors(member: usize, count: usize) -> Factors {
    if member < count.div_ceil(2) { Factors::default() } else { Factors { lr: 16.0, weight_decay: 0.5 } }
}

/// Two steps of many parameters, the second with clipping.
fn groups() -> impl Iterator<Item = Case> {
    let settings = AdamW { lr: 0.05, weight_decay: 0.1, ..AdamW::default() };
    // More tensors than one launch copies, some of them large enough for several cubes.
    let many: Vec<usize> = (0..150).map(|i| 1 + 37 * i % 200).collect();
    [("1", vec![1]), ("3 + 65", vec![3, 65]), ("1 + 70000 + 64 + 3", vec![1, 70_000, 64, 3]), ("150", many)]
        .map(move |(name, lens)| {
            let (count, total) = (lens.len(), lens.iter().sum::<usize>() as f64);
            let inputs = (0..2).flat_map(|kind| {
                lens.iter().enumerate().map(move |(at, len)| random([*len], (1000 * kind + at) as u64))
            });
            let max_norm = (0.5 * (total + 1.0).sqrt()) as f32;
            Case::new("adamw.group", name)
                .inputs(inputs.collect::<Vec<_>>())
                .run(move |x| {
                    let (mut parameters, gradients) = (x[..count].to_vec(), &x[count..]);
                    let mut moments = parameters.iter().map(Moments::zeros).collect::<crate::Result<Vec<_>>>()?;
                    let (mut group, mut norms) = (Group::default(), Vec::new());
                    for (t, max_norm) in [(1, f32::INFINITY), (2, max_norm)] {
                        let mut members: Vec<_> = parameters
                            .iter_mut()
                            .zip(gradients)
                            .zip(&mut moments)
                            .enumerate()
                            .map(|(at, ((parameter, gradient), moments))| Member {
                                parameter,
                                gradient,
                                moments,
                                factors: factors(at, count),
                            })
                            .collect();
                        norms.push(group.step(&settings, t, max_norm, &mut members)?);
                    }
                    let moments = moments.into_iter().flat_map(|pair| [pair.m, pair.v]);
                    Ok(norms.into_iter().chain(parameters).chain(moments).collect())
                })
                .reference(move |x| {
                    let (parameters, gradients) = (&x[..count], &x[count..]);
                    let norm = gradients.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
                    let scale = (f64::from(max_norm) / (norm + 1e-6)).min(1.0);
                    let (mut stepped, mut stepped_moments) = (Vec::new(), Vec::new());
                    for (at, (p, g)) in parameters.iter().zip(gradients).enumerate() {
                        let settings = settings.scaled(factors(at, count));
                        let zeros = vec![0.0; p.len()];
                        let (p, m, v) = reference::step(&settings, 1, p, g, &zeros, &zeros);
                        let clipped: Vec<f64> = g.iter().map(|g| scale * g).collect();
                        let (p, m, v) = reference::step(&settings, 2, &p, &clipped, &m, &v);
                        stepped.push(p);
                        stepped_moments.extend([m, v]);
                    }
                    [vec![norm], vec![norm]].into_iter().chain(stepped).chain(stepped_moments).collect()
                })
                .bound(4e-6)
                .work(32.0 * total, 64.0 * total)
        })
        .into_iter()
}
