//! What near copies do to every estimator, and what is left of it when they are found and left out. Prints a Markdown
//! table.
//!
//!     cargo run --release -p gelora-id --example near_copies -- [--clouds gaussian-5,sphere-10,..] [--sizes 500,2000]
//!         [--groups 2,3,10] [--distances 1e-3,0.01,0.03,0.1] [--shares 0,0.02,0.05,0.1,0.2] [--seeds 1]
//!         [--estimators two-nn-fit,..] [--keep] [--worst]
//!
//! Near copies take the place of a cloud's last rows (`manifolds::with_near_copies`), at a distance in medians of the
//! distance to the nearest neighbor. Every number is the deviation, in per cent, from the estimate of the same cloud
//! without the copies; a star marks what is beyond 5. With `--keep` near copies are kept. "left out" is how many rows
//! were left out, of how many copies there are. `--worst` prints one row a cloud, size and share: the largest deviation
//! of each estimator over groups, distances and seeds.

mod clouds;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Write;

use clouds::{Result, cloud};
use gelora_id::{Estimator, NearCopies, Neighborhood, Options, manifolds, scale};

const CLOUDS: &str = "cube-2,cube-5,cube-10,cube-20";

fn list<T: std::str::FromStr>(text: &str) -> std::result::Result<Vec<T>, T::Err> {
    text.split(',').map(str::parse).collect()
}

fn main() -> Result {
    let mut given = HashMap::new();
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let flag = name == "--keep" || name == "--worst";
        let value = if flag { String::new() } else { args.next().ok_or(format!("{name}: a value is missing"))? };
        given.insert(name, value);
    }
    let text = |name: &str, default: &str| given.get(name).cloned().unwrap_or(default.to_string());
    let estimators: Vec<Estimator> = list(&text("--estimators", &Estimator::names().join(",")))?;
    let near_copies = if given.contains_key("--keep") { NearCopies::Keep } else { NearCopies::Drop };
    let worst_only = given.contains_key("--worst");
    let needed = estimators.iter().map(Estimator::neighbors).max().unwrap_or(2);
    let ids = |cloud: &Neighborhood| -> Vec<f64> {
        let id =
            |e: &Estimator| cloud.estimate(&Options { estimator: *e, ..Options::default() }).map_or(f64::NAN, |e| e.id);
        estimators.iter().map(id).collect()
    };
    let (groups, distances) = (text("--groups", "2,3,10"), text("--distances", "1e-3,0.01,0.03,0.1"));
    let (groups, distances) = (list::<usize>(&groups)?, list::<f64>(&distances)?);

    let mut out = std::io::stdout().lock();
    let names: Vec<String> = estimators.iter().map(ToString::to_string).collect();
    let which = if worst_only { "" } else { " group | at |" };
    writeln!(out, "| cloud | n | share, % |{which} left out | {} |", names.join(" | "))?;
    writeln!(out, "|---|---|---|{}---|{}", if worst_only { "" } else { "---|---|" }, "---|".repeat(names.len()))?;
    let cell = |off: &f64| format!("{off:+.1}{}", if off.abs() <= 5.0 { "" } else { " *" });
    for name in text("--clouds", CLOUDS).split(',') {
        for n in list::<usize>(&text("--sizes", "2000"))? {
            for share in list::<f64>(&text("--shares", "0.04,0.2"))? {
                let mut worst = vec![0.0f64; estimators.len()];
                let (mut left_out, mut all_copies) = (0, 0);
                for seed in 0..text("--seeds", "1").parse::<u64>()? {
                    let smooth = cloud(name, n, seed)?;
                    // The cloud without copies depends on their number alone.
                    let mut clean: HashMap<usize, Vec<f64>> = HashMap::new();
                    for &size in if share > 0.0 { &groups[..] } else { &[2] } {
                        for &distance in if share > 0.0 { &distances[..] } else { &[1.0] } {
                            let (points, copies) =
                                manifolds::with_near_copies(&smooth, share, size, distance, seed + 1)?;
                            if let Entry::Vacant(entry) = clean.entry(copies) {
                                let rows: Vec<usize> = (0..n - copies).collect();
                                let rest = scale::subset(&smooth, &rows)?;
                                entry.insert(ids(&Neighborhood::keeping(&rest, needed, NearCopies::Keep)?));
                            }
                            let cloud = Neighborhood::keeping(&points, needed, near_copies)?;
                            let found = cloud.near_copies();
                            // A cloud that lost nothing is the one without copies.
                            let ids = if copies + found == 0 { clean[&0].clone() } else { ids(&cloud) };
                            let off =
                                ids.into_iter().zip(&clean[&copies]).map(|(id, clean)| 100.0 * (id / clean - 1.0));
                            let off: Vec<f64> = off.collect();
                            if worst_only {
                                let larger = |(worst, off): (&mut f64, &f64)| {
                                    if off.abs() > worst.abs() || off.is_nan() {
                                        *worst = *off
                                    }
                                };
                                worst.iter_mut().zip(&off).for_each(larger);
                                (left_out, all_copies) = (left_out + found, all_copies + copies);
                                continue;
                            }
                            let share = 100.0 * share;
                            let cells = off.iter().map(cell).collect::<Vec<_>>().join(" | ");
                            writeln!(
                                out,
                                "| {name} | {n} | {share} | {size} | {distance} | {found} of {copies} | {cells} |"
                            )?;
                            out.flush()?;
                        }
                    }
                }
                if worst_only {
                    let cells = worst.iter().map(cell).collect::<Vec<_>>().join(" | ");
                    writeln!(out, "| {name} | {n} | {} | {left_out} of {all_copies} | {cells} |", 100.0 * share)?;
                    out.flush()?;
                }
            }
        }
    }
    Ok(())
}
