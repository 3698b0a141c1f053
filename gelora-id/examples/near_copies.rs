//! What near copies do to every estimator, and what is left of it when they are found and left out. Prints a Markdown
//! table.
//!
//!     cargo run --release -p gelora-id --example near_copies -- [--n 2000] [--dims 2,5,10,20] [--sizes 2,3,5,10]
//!         [--distances 1e-6,0.01,0.1,0.3] [--shares 0.04,0.2] [--estimators two-nn-fit,..] [--keep]
//!
//! A cloud is a cube with near copies in the place of its last rows (`manifolds::with_near_copies`). Every number is
//! the deviation, in per cent, from the estimate of the same cloud without the copies; a star marks what is beyond 5.
//! With `--keep` near copies are kept. "found" is how many rows were left out, of how many copies there are.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Write;

use gelora_id::{Estimator, NearCopies, Neighbourhood, Options, manifolds, scale};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn list<T: std::str::FromStr>(text: &str) -> std::result::Result<Vec<T>, T::Err> {
    text.split(',').map(str::parse).collect()
}

fn main() -> Result {
    let mut given = HashMap::new();
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value =
            if name == "--keep" { String::new() } else { args.next().ok_or(format!("{name}: a value is missing"))? };
        given.insert(name, value);
    }
    let text = |name: &str, default: &str| given.get(name).cloned().unwrap_or(default.to_string());
    let n: usize = text("--n", "2000").parse()?;
    let estimators: Vec<Estimator> = list(&text("--estimators", &Estimator::names().join(",")))?;
    let near_copies = if given.contains_key("--keep") { NearCopies::Keep } else { NearCopies::Drop };
    let needed = estimators.iter().map(Estimator::neighbours).max().unwrap_or(2);
    let ids = |cloud: &Neighbourhood| -> Result<Vec<f64>> {
        let id =
            |e: &Estimator| cloud.estimate(&Options { estimator: *e, ..Options::default() }).map_or(f64::NAN, |e| e.id);
        Ok(estimators.iter().map(id).collect())
    };

    let mut out = std::io::stdout().lock();
    let names: Vec<String> = estimators.iter().map(ToString::to_string).collect();
    writeln!(out, "| cube of | group | at | share, % | found | {} |", names.join(" | "))?;
    writeln!(out, "|---|---|---|---|---|{}", "---|".repeat(names.len()))?;
    for dim in list::<usize>(&text("--dims", "2,5,10,20"))? {
        let cube = manifolds::cube(n, dim, dim as u64)?;
        // The cloud without copies depends on their number alone.
        let mut clean: HashMap<usize, Vec<f64>> = HashMap::new();
        for size in list::<usize>(&text("--sizes", "2,3,5,10"))? {
            for distance in list::<f64>(&text("--distances", "1e-6,0.01,0.1,0.3"))? {
                for share in list::<f64>(&text("--shares", "0.04,0.2"))? {
                    let (points, copies) = manifolds::with_near_copies(&cube, share, size, distance, 1)?;
                    if let Entry::Vacant(place) = clean.entry(copies) {
                        let rows: Vec<usize> = (0..n - copies).collect();
                        let cloud = Neighbourhood::keeping(&scale::subset(&cube, &rows)?, needed, NearCopies::Keep)?;
                        place.insert(ids(&cloud)?);
                    }
                    let cloud = Neighbourhood::keeping(&points, needed, near_copies)?;
                    let off =
                        ids(&cloud)?.into_iter().zip(&clean[&copies]).map(|(id, clean)| 100.0 * (id / clean - 1.0));
                    let cell = |off: f64| format!("{off:+.1}{}", if off.abs() <= 5.0 { "" } else { " *" });
                    writeln!(
                        out,
                        "| {dim} | {size} | {distance} | {} | {} of {copies} | {} |",
                        100.0 * share,
                        cloud.near_copies(),
                        off.map(cell).collect::<Vec<_>>().join(" | ")
                    )?;
                    out.flush()?;
                }
            }
        }
    }
    Ok(())
}
