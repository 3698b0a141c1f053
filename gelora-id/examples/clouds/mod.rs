//! Clouds by name, for the examples and the tests: a family and its dimension, such as `gaussian-10`.
//!
//! `noise-0.05-NAME` adds Gaussian noise of that standard deviation to every column; `wide-64-NAME` first embeds the
//! cloud in 64 columns by a random linear map.

use std::f64::consts::PI;

use gelora_id::manifolds;
use gelora_kernels::{Tensor, random::Stream};

/// `Result` with any error.
pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// n points of the cloud of a name.
///
/// # Errors
/// If there is no such cloud.
pub fn cloud(name: &str, n: usize, seed: u64) -> Result<Tensor> {
    if let Some((deviation, rest)) = name.strip_prefix("noise-").and_then(|rest| rest.split_once('-')) {
        return Ok(manifolds::noisy(&cloud(rest, n, seed)?, deviation.parse()?, seed)?);
    }
    if let Some((columns, rest)) = name.strip_prefix("wide-").and_then(|rest| rest.split_once('-')) {
        return Ok(manifolds::embedded(&cloud(rest, n, seed)?, columns.parse()?, seed)?);
    }
    let (family, dim) = name.rsplit_once('-').ok_or("a cloud is a family and its dimension, such as ball-5")?;
    let dim: usize = dim.parse()?;
    let mut random = Stream::at(seed, &[dim as u64, family.bytes().map(u64::from).fold(0, |hash, b| 31 * hash + b)]);
    Ok(match family {
        "cube" => manifolds::cube(n, dim, seed)?,
        "ball" => manifolds::ball(n, dim, seed)?,
        "sphere" => manifolds::sphere(n, dim, seed)?,
        "nonlinear" => manifolds::nonlinear(n, dim, 4 * dim, seed)?,
        "swiss-roll" => manifolds::swiss_roll(n, seed)?,
        _ => {
            let draw = match family {
                "gaussian" => gaussian,
                "anisotropic" => anisotropic,
                "student" => student,
                "lognormal" => lognormal,
                "power" => power,
                "mixture" => mixture,
                "clusters" => clusters,
                "tree" => tree,
                "dims" => several_dimensions,
                "network" => network,
                "helix" => helix,
                "torus" => ring_torus,
                "moebius" => moebius,
                "paraboloid" => paraboloid,
                "words" => bags_of_words,
                _ => return Err(format!("{name}: unknown family of clouds").into()),
            };
            let values = draw(n, dim, &mut random);
            let columns = values.len() / n;
            Tensor::from_f64(values, [n, columns])?
        }
    })
}

fn normals(n: usize, random: &mut Stream) -> Vec<f64> {
    (0..n).map(|_| random.normal()).collect()
}

/// Standard normal in every column.
fn gaussian(n: usize, dim: usize, random: &mut Stream) -> Vec<f64> {
    normals(n * dim, random)
}

/// Normal with standard deviations that fall geometrically from 1 to 1/20.
fn anisotropic(n: usize, dim: usize, random: &mut Stream) -> Vec<f64> {
    let deviation = |c: usize| 20f64.powf(-(c as f64) / (dim.max(2) - 1) as f64);
    (0..n * dim).map(|i| deviation(i % dim) * random.normal()).collect()
}

/// Student's t with 2 degrees of freedom: heavy tails.
fn student(n: usize, dim: usize, random: &mut Stream) -> Vec<f64> {
    let mut point = || {
        // chi^2 of 2 degrees of freedom is exponential of mean 2.
        let scale = (-(1.0 - random.uniform()).ln()).sqrt().max(1e-3);
        normals(dim, random).into_iter().map(move |v| v / scale)
    };
    (0..n).flat_map(|_| point().collect::<Vec<_>>()).collect()
}

/// The exponential of a normal number in every column.
fn lognormal(n: usize, dim: usize, random: &mut Stream) -> Vec<f64> {
    normals(n * dim, random).into_iter().map(f64::exp).collect()
}

/// The cube of a uniform number in every column: the density has a pole at each face through the origin.
fn power(n: usize, dim: usize, random: &mut Stream) -> Vec<f64> {
    (0..n * dim).map(|_| random.uniform().powi(3)).collect()
}

/// Six Gaussians with standard deviations from 0.05 to 1.
fn mixture(n: usize, dim: usize, random: &mut Stream) -> Vec<f64> {
    let centers: Vec<Vec<f64>> = (0..6).map(|_| normals(dim, random).iter().map(|v| 3.0 * v).collect()).collect();
    let mut point = || {
        let component = random.below(6);
        let deviation = 0.05 * 20f64.powf(component as f64 / 5.0);
        centers[component].iter().map(|c| c + deviation * random.normal()).collect::<Vec<_>>()
    };
    (0..n).flat_map(|_| point()).collect()
}

/// n / 25 Gaussians of standard deviation 0.1 around normal centers.
fn clusters(n: usize, dim: usize, random: &mut Stream) -> Vec<f64> {
    let count = (n / 25).max(1);
    let centers = normals(count * dim, random);
    let mut point = || {
        let center = random.below(count);
        centers[center * dim..][..dim].iter().map(|c| c + 0.1 * random.normal()).collect::<Vec<_>>()
    };
    (0..n).flat_map(|_| point()).collect()
}

/// Ten clusters of eight clusters each, with standard deviations 1, 0.2 and 0.04.
fn tree(n: usize, dim: usize, random: &mut Stream) -> Vec<f64> {
    let roots = normals(10 * dim, random);
    let branches: Vec<f64> = (0..80)
        .flat_map(|b| (0..dim).map(move |c| (b / 8) * dim + c))
        .map(|i| roots[i] + 0.2 * random.normal())
        .collect();
    let mut point = || {
        let branch = random.below(80);
        branches[branch * dim..][..dim].iter().map(|c| c + 0.04 * random.normal()).collect::<Vec<_>>()
    };
    (0..n).flat_map(|_| point()).collect()
}

/// Three Gaussians of dimensions 1, dim / 2 and dim, apart from each other.
fn several_dimensions(n: usize, dim: usize, random: &mut Stream) -> Vec<f64> {
    let mut point = || {
        let part = random.below(3);
        let own = [1, (dim / 2).max(1), dim][part];
        (0..dim).map(|c| 20.0 * part as f64 + if c < own { random.normal() } else { 0.0 }).collect::<Vec<_>>()
    };
    (0..n).flat_map(|_| point()).collect()
}

/// Normal numbers through two layers of a random network with tanh, 64 wide, and a layer norm.
fn network(n: usize, dim: usize, random: &mut Stream) -> Vec<f64> {
    const WIDTH: usize = 64;
    // The network is the same for every seed of the points.
    let mut weights = Stream::at(7, &[dim as u64]);
    let mut layer = |inputs: usize| normals(inputs * WIDTH, &mut weights);
    let layers = [layer(dim), layer(WIDTH)];
    let mut point = || {
        let mut x = normals(dim, random);
        for weights in &layers {
            let scale = 1.5 / (x.len() as f64).sqrt();
            let row = |row: &[f64]| (scale * row.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>()).tanh();
            x = weights.chunks_exact(x.len()).map(row).collect();
        }
        let mean = x.iter().sum::<f64>() / WIDTH as f64;
        let deviation = (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / WIDTH as f64).sqrt();
        x.into_iter().map(move |v| (v - mean) / deviation)
    };
    (0..n).flat_map(|_| point().collect::<Vec<_>>()).collect()
}

/// A helix of ten turns in three columns.
fn helix(n: usize, _: usize, random: &mut Stream) -> Vec<f64> {
    let mut point = || {
        let t = 20.0 * PI * random.uniform();
        [t.cos(), t.sin(), 0.1 * t]
    };
    (0..n).flat_map(|_| point()).collect()
}

/// A ring torus of radii 1 and 0.3 in three columns, uniform in its angles.
fn ring_torus(n: usize, _: usize, random: &mut Stream) -> Vec<f64> {
    let mut point = || {
        let [u, v] = [0; 2].map(|_| 2.0 * PI * random.uniform());
        let radius = 1.0 + 0.3 * v.cos();
        [radius * u.cos(), radius * u.sin(), 0.3 * v.sin()]
    };
    (0..n).flat_map(|_| point()).collect()
}

/// A Moebius strip with ten half turns in three columns.
fn moebius(n: usize, _: usize, random: &mut Stream) -> Vec<f64> {
    let mut point = || {
        let (u, v) = (2.0 * PI * random.uniform(), 2.0 * random.uniform() - 1.0);
        let radius = 1.0 + 0.5 * v * (5.0 * u).cos();
        [radius * u.cos(), radius * u.sin(), 0.5 * v * (5.0 * u).sin()]
    };
    (0..n).flat_map(|_| point()).collect()
}

/// Exponential numbers with the sum of their squares as one column more.
fn paraboloid(n: usize, dim: usize, random: &mut Stream) -> Vec<f64> {
    let mut point = || {
        let mut x: Vec<f64> = (0..dim).map(|_| -(1.0 - random.uniform()).ln()).collect();
        x.push(x.iter().map(|v| v * v).sum());
        x
    };
    (0..n).flat_map(|_| point()).collect()
}

/// Means of 8 to 24 random vectors of dim columns, out of 2,000 whose frequencies follow Zipf's law.
fn bags_of_words(n: usize, dim: usize, random: &mut Stream) -> Vec<f64> {
    const VOCABULARY: usize = 2000;
    let vectors = normals(VOCABULARY * dim, &mut Stream::at(7, &[dim as u64]));
    let mut point = || {
        let length = 8 + random.below(17);
        let mut sum = vec![0.0; dim];
        for _ in 0..length {
            // P(rank > r) falls as log r: uniform in the logarithm of the rank.
            let word = (VOCABULARY as f64).powf(random.uniform()) as usize - 1;
            sum.iter_mut().zip(&vectors[word.min(VOCABULARY - 1) * dim..]).for_each(|(s, v)| *s += v / length as f64);
        }
        sum
    };
    (0..n).flat_map(|_| point()).collect()
}
