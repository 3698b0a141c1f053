use super::{distances, nearest, reference};
use crate::random::Stream;
use crate::verify::{Case, Metric, random};
use crate::{DType, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (n, m, dim) in [(1, 1, 1), (3, 7, 3), (64, 65, 7), (65, 63, 48), (257, 3, 384), (65, 257, 65)] {
        all.push(between(&format!("{n}x{dim}, {m}x{dim}"), random([n, dim], 1), random([m, dim], 2), true));
        all.push(between(&format!("{n}x{dim}, {m}x{dim}"), random([n, dim], 3), random([m, dim], 4), false));
    }
    for (name, n, dim, k, points) in clouds() {
        all.push(between(name, points.clone(), points.clone(), false));
        all.push(among(name, n, dim, k, points));
    }
    for (n, dim, k) in [
        (2, 1, 1),
        (3, 1, 2),
        (7, 3, 5),
        (64, 48, 2),
        (65, 7, 1),
        (257, 48, 5),
        (257, 384, 2),
        (300, 768, 2),
        (1000, 104, 16),
        (4100, 12, 2), // from 4096 points on, GPUs take larger tiles
    ] {
        all.push(among("cloud", n, dim, k, random([n, dim], 5)));
    }
    for (dim, shapes) in [(16, 0..5), (7, 3..5)] {
        all.extend(shapes.map(|shape| among("cloud", 300, dim, 2, random([300, dim], 6)).forced(shape)));
    }
    all.push(among("far from the origin", 65, 7, 2, points_f64([65, 7], |_, _, z| 1e6 + 1e-6 * z)));
    // Clusters of 21 points that f32 cannot resolve.
    all.push(among("tight clusters", 63, 7, 5, points_f64([63, 7], |row, c, z| (row % 3 * 7 + c) as f64 + 1e-9 * z)));
    all
}

/// f64 points, each coordinate a function of its row, its column and a normal number.
fn points_f64([n, dim]: [usize; 2], f: impl Fn(usize, usize, f64) -> f64) -> Tensor {
    let mut s = Stream::new((n * dim) as u64);
    Tensor::from_f64((0..n * dim).map(|i| f(i / dim, i % dim, s.normal())).collect(), [n, dim]).expect("as many values")
}

/// Clouds with wrong distances by |x|^2 + |y|^2 - 2 x.y, as (name, N, D, k, points).
fn clouds() -> Vec<(&'static str, usize, usize, usize, Tensor)> {
    let cloud = |n, dim, f: &dyn Fn(usize, usize, f64) -> f64| {
        points_f64([n, dim], f).to_dtype(DType::F32).expect("a CPU tensor converts")
    };
    // Two rows share a center, a function of the pair and the dimension.
    let center = |row: usize, c: usize| ((row / 2 * 31 + c * 17) % 97) as f64 / 25.0 - 2.0;
    vec![
        ("near duplicates", 64, 48, 2, cloud(64, 48, &|i, c, z| center(i, c) + 1e-4 * z)),
        ("far from the origin", 65, 48, 2, cloud(65, 48, &|_, _, z| 1e3 + z)),
        ("farther from the origin", 65, 7, 5, cloud(65, 7, &|_, _, z| 1e4 + z)),
        ("duplicates", 63, 7, 1, cloud(63, 7, &|i, c, _| center(i, c))),
    ]
}

fn between(name: &str, x: Tensor, y: Tensor, squared: bool) -> Case {
    let (n, m, dim) = (x.rows(), y.rows(), x.cols());
    let op = if squared { "pairwise.distances_squared" } else { "pairwise.distances" };
    Case::new(op, format!("{name} ({n}, {m}, {dim})"))
        .inputs([x, y])
        .run(move |t| Ok(vec![distances(&t[0], &t[1], squared)?]))
        .reference(move |v| vec![reference::distances(&v[0], &v[1], dim, squared)])
        .metric(Metric::Relative)
        .bound(3e-6)
        .work(3.0 * (n * m * dim) as f64, 4.0 * (n * dim + m * dim + n * m) as f64)
}

/// A case with distances and indices. Distances of the clouds tie only where the lower index is right.
fn among(name: &str, n: usize, dim: usize, k: usize, points: Tensor) -> Case {
    let dtype = points.dtype();
    Case::new("pairwise.nearest", format!("{name} {n}x{dim} k={k}"))
        .dtype(dtype)
        .inputs([points])
        .run(move |t| {
            let found = nearest(&t[0], k)?;
            let indices: Vec<f64> = found.indices.iter().map(|&j| f64::from(j)).collect();
            Ok(vec![Tensor::from_f64(found.distances, [n, k])?, Tensor::from_f64(indices, [n, k])?])
        })
        .reference(move |v| {
            let (distances, indices) = reference::nearest(&v[0], dim, k);
            vec![distances, indices.into_iter().map(f64::from).collect()]
        })
        .metric(Metric::Relative)
        .bound(if dtype == DType::F64 { 1e-13 } else { 3e-6 })
        .work(2.0 * (n * n * dim) as f64, (dtype.bytes(n * dim) + 12 * n * k) as f64)
}
