use super::{Decay, Importance, Vectors, backward, forward, orthogonality, reference, scores, update};
use crate::Tensor;
use crate::ops::adamw::Clip;
use crate::verify::{Case, random};

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (r, c) in [(1, 1), (3, 7), (8, 65), (12, 384), (63, 257), (96, 1536), (4, 14_336)] {
        all.extend(of_products(r, c));
        for vectors in [Vectors::Rows, Vectors::Columns] {
            all.extend(of_vectors(r, c, vectors));
        }
    }
    for len in [1, 3, 257, 4608] {
        all.extend(of_updates(len));
    }
    all
}

fn of_products(r: usize, c: usize) -> [Case; 2] {
    let inputs = [random([r, 1], 1), random([r, c], 2), random([r, c], 3)];
    let (shape, values) = (format!("{r}x{c}"), (r * c) as f64);
    [
        Case::new("adalora", &shape)
            .inputs(inputs.clone())
            .run(|t| Ok(vec![forward(&t[0], &t[1])?]))
            .reference(|v| vec![reference::forward(&v[0], &v[1])])
            .bound(1e-7)
            .work(values, 8.0 * values),
        Case::new("adalora.backward", &shape)
            .inputs(inputs)
            .run(|t| {
                let (da, de) = backward(&t[2], &t[0], &t[1])?;
                Ok(vec![da, de])
            })
            .reference(|v| {
                let (da, de) = reference::backward(&v[2], &v[0], &v[1]);
                vec![da, de]
            })
            .bound(3e-6)
            .work(3.0 * values, 12.0 * values),
    ]
}

fn of_vectors(r: usize, len: usize, vectors: Vectors) -> [Case; 2] {
    let shape = match vectors {
        Vectors::Rows => [r, len],
        Vectors::Columns => [len, r],
    };
    let name = format!("{}x{} {}", shape[0], shape[1], if vectors == Vectors::Rows { "rows" } else { "columns" });
    let values = (r * len) as f64;
    [
        Case::new("adalora.orthogonality", &name)
            .inputs([random(shape, 1)])
            .run(move |t| {
                let (distance, gradient) = orthogonality(&t[0], vectors)?;
                Ok(vec![distance, gradient])
            })
            .reference(move |v| {
                let (distance, gradient) = reference::orthogonality(&v[0], r, vectors);
                vec![vec![distance], gradient]
            })
            .bound(3e-6)
            .work(4.0 * r as f64 * values + 2.0 * (r * r) as f64, 12.0 * values + 12.0 * (r * r) as f64),
        Case::new("adalora.scores", &name)
            .inputs([random(shape, 1), random(shape, 2)])
            .run(move |t| {
                let importance = Importance { sensitivity: t[0].clone(), uncertainty: t[1].clone() };
                Ok(vec![scores(&importance, vectors)?])
            })
            .reference(move |v| vec![reference::scores(&v[0], &v[1], r, vectors)])
            .bound(3e-6)
            .work(2.0 * values, 8.0 * values),
    ]
}

fn of_updates(len: usize) -> impl Iterator<Item = Case> {
    let decay = Decay { sensitivity: 0.85, uncertainty: 0.7 };
    let norm = Tensor::from_vec(vec![3.0], [1]).expect("one value");
    let inputs = [1, 2, 3, 4].map(|seed| random([len, 1], seed)).into_iter().chain([norm]);
    let inputs: Vec<Tensor> = inputs.collect();
    [(1.5, 1.5 / (3.0 + 1e-6)), (f32::INFINITY, 1.0)].into_iter().map(move |(max_norm, scale)| {
        Case::new("adalora.update", format!("{len}, norm 3 to {max_norm}"))
            .inputs(inputs.clone())
            .run(move |t| {
                let mut importance = Importance { sensitivity: t[2].clone(), uncertainty: t[3].clone() };
                update(decay, &t[0], &t[1], Clip { norm: &t[4], max_norm }, &mut importance)?;
                Ok(vec![importance.sensitivity, importance.uncertainty])
            })
            .reference(move |v| {
                let g: Vec<f64> = v[1].iter().map(|g| scale * g).collect();
                let (s, u) = reference::update(decay, &v[0], &g, &v[2], &v[3]);
                vec![s, u]
            })
            .bound(1e-6)
            .work(9.0 * len as f64, 24.0 * len as f64)
    })
}
