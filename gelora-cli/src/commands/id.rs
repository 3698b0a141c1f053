//! `gelora id`: estimates the intrinsic dimension of any points.

use anyhow::{Context, Result};
use gelora_id::{Estimate, Estimator, Neighborhood, Options, near_copies};
use gelora_kernels::DeviceKind;
use gelora_kernels::ops::pairwise;
use gelora_model::measure::constant_estimate;
use serde_json::{Map, Value, json};

use super::open_device;
use crate::args::IdArgs;
use crate::points::read_points;
use crate::ui::{self, TableStyle};

pub fn run(args: &IdArgs) -> Result<()> {
    let device = open_device(args.device)?;
    let mut notes = Vec::new();
    let matrices = read_points(&args.points, args.tensor.as_deref(), &args.columns, &mut notes)?;
    for note in notes {
        ui::note(args.output.quiet, format!("{}: {note}", args.points.display()));
    }
    let several = matrices.len() > 1;
    let needed = Estimator::most_neighbors(&args.estimator);
    let mut found: Vec<(String, Vec<Estimate>)> = Vec::new();
    for (name, points) in matrices {
        let place = || match name.as_str() {
            "" => args.points.display().to_string(),
            name => format!("{}: {name}", args.points.display()),
        };
        let points = match device.kind() {
            DeviceKind::Cpu => points,
            // A GPU computes in f32, whose rounding error is smallest for points near the origin.
            _ => pairwise::centered(&points).with_context(place)?.to_device(&device)?,
        };
        let neighborhood = match Neighborhood::keeping(&points, needed, args.near_copies) {
            // One of several matrices may hold a single distinct point, such as the first token before the first block.
            Err(gelora_id::Error::Identical { points, .. }) if several => {
                let constant = |e: &Estimator| constant_estimate(*e, args.confidence, points);
                found.push((name, args.estimator.iter().map(constant).collect()));
                continue;
            }
            other => other.with_context(place)?,
        };
        let mut estimates = Vec::new();
        for &estimator in &args.estimator {
            let options = Options { estimator, confidence: args.confidence };
            let estimate = neighborhood.estimate(&options).with_context(place)?;
            if let Some(warning) = uncertain_near_copies(&estimate) {
                ui::warn(format!("{}: {warning}", place()));
            }
            estimates.push(estimate);
        }
        found.push((name, estimates));
    }
    if args.output.json { print_json(found) } else { print_table(&found) }
}

/// A warning for an estimate of so low a dimension that near copies are not told from chance pairs.
fn uncertain_near_copies(estimate: &Estimate) -> Option<String> {
    estimate.near_copies_are_uncertain().then(|| {
        format!(
            "{} near copies were left out at a dimension below {}, where chance makes pairs that are as near; the \
             dimension may be off by more than 5 %. --near-copies keep measures all rows",
            estimate.near_copies,
            near_copies::RELIABLE_FROM
        )
    })
}

/// Prints one estimate as an object and several as a list. Several matrices become an object from name to that value.
fn print_json(mut found: Vec<(String, Vec<Estimate>)>) -> Result<()> {
    fn one(estimate: &Estimate) -> Result<Value> {
        let mut value = serde_json::to_value(estimate)?;
        if let Some(warning) = uncertain_near_copies(estimate) {
            value["warnings"] = json!([warning]);
        }
        Ok(value)
    }
    fn value(estimates: Vec<Estimate>) -> Result<Value> {
        Ok(match &estimates[..] {
            [estimate] => one(estimate)?,
            _ => Value::Array(estimates.iter().map(one).collect::<Result<_>>()?),
        })
    }
    let json = match found.len() {
        1 => value(found.remove(0).1)?,
        _ => {
            let named = found.into_iter().map(|(name, estimates)| Ok((name, value(estimates)?)));
            Value::Object(named.collect::<Result<Map<_, _>>>()?)
        }
    };
    Ok(ui::result(json.to_string())?)
}

fn print_table(found: &[(String, Vec<Estimate>)]) -> Result<()> {
    let several = found.len() > 1;
    // Add a column with the dimension that includes near copies, if there are any.
    let with_near_copies = found.iter().flat_map(|(_, estimates)| estimates).any(|e| e.near_copies > 0);
    let mut rows = Vec::new();
    for (name, estimates) in found {
        for e in estimates {
            let mut row = if several { vec![name.clone()] } else { Vec::new() };
            row.extend([
                e.estimator.clone(),
                format!("{:.3}", e.id),
                format!("{:.3} .. {:.3}", e.interval[0], e.interval[1]),
                format!("{}", e.n),
                format!("{}", e.duplicates),
                format!("{}", e.near_copies),
            ]);
            if with_near_copies {
                row.push(match (e.near_copies, e.id_with_near_copies) {
                    (0, _) => String::new(),
                    (_, Some(id)) => format!("{id:.3}"),
                    (_, None) => "none".into(),
                });
            }
            rows.push(row);
        }
    }
    let percent = found.iter().flat_map(|(_, e)| e).next().map_or(95.0, |e| e.confidence * 100.0);
    let interval = format!("{percent} % interval");
    let mut header = if several { vec!["points"] } else { Vec::new() };
    header.extend(["estimator", "id", &interval, "n", "duplicates", "near copies"]);
    if with_near_copies {
        header.push("id with them");
    }
    Ok(ui::result(ui::table(&header, &rows, TableStyle::of_stdout()))?)
}
