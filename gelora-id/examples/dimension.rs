//! The intrinsic dimension of a cloud with its interval, by every estimator, and how it depends on the scale.
//!
//!     cargo run --release -p gelora-id --example dimension
//!
//! The cloud is a Swiss roll of 2,000 points with a little noise: a surface, so its dimension is 2, in three columns.

use std::io::Write;

use gelora_id::{Estimator, Neighborhood, Options, manifolds, scale};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let points = manifolds::noisy(&manifolds::swiss_roll(2000, 1)?, 0.1, 2)?;

    // One neighbor search serves all estimators.
    let cloud = Neighborhood::for_estimators(&points, &Estimator::ALL)?;
    let mut out = std::io::stdout().lock();

    for estimator in Estimator::ALL {
        let found = cloud.estimate(&Options::of(estimator))?;
        let [low, high] = found.interval;
        writeln!(out, "{estimator:>14}: {:.2}, 95 % between {low:.2} and {high:.2}", found.id)?;
    }

    // Fewer points are further apart: the noise no longer counts.
    let options = Options::default();
    let curve = scale::decimation(&cloud, &cloud.estimate(&options)?, &options, 100, 0)?;
    for at in &curve {
        writeln!(out, "{:>5} points: {:.2}", at.scale, at.id)?;
    }
    if let Some(plateau) = scale::plateau(&curve) {
        writeln!(out, "flat from {} to {} points: {:.2}", plateau.scales[0], plateau.scales[1], plateau.id)?;
    }
    Ok(())
}
