//! `gelora train --dry-run`: what a training would do, measured on its first steps. Nothing is written.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use gelora_model::{Error as Failure, Event, Trainer};
use serde_json::{Value, json};

use crate::{memory, ui};

/// Steps that are run. The first one packs weights and is left out of the estimate.
const STEPS: usize = 4;

/// Runs a few steps of a training, and prints what the whole would take. `result` is the account of the data.
pub fn run(trainer: Trainer<'_>, modules: usize, json: bool, mut result: Value) -> Result<()> {
    let (steps, parameters) = (trainer.steps(), trainer.parameters());
    let device = trainer.model().transformer().device().clone();
    let (stop, mut seconds) = (AtomicBool::new(false), Vec::new());
    let mut trainer = trainer.with_held_out(None).with_stop(&stop);
    let ran = trainer.run(&mut |event: Event<'_>| {
        if let Event::Step(record) = event {
            seconds.push(record.ms / 1000.0);
            stop.store(seconds.len() >= STEPS, Ordering::Relaxed);
        }
    });
    match ran {
        Ok(_) | Err(Failure::Interrupted { .. }) => {}
        Err(failure) => return Err(failure.into()),
    }
    let per_step = median(&seconds[usize::from(seconds.len() > 1)..]);
    let total = per_step * steps as f64;
    let memory = memory::peak_resident_bytes();
    let (tensors, reserved) = (device.peak_memory(), device.memory_reserved()?);
    if json {
        result["steps"] = json!(steps);
        result["parameters"] = json!(parameters);
        result["modules"] = json!(modules);
        result["seconds_per_step"] = json!(per_step);
        result["seconds"] = json!(total);
        result["peak_memory_bytes"] = json!(memory);
        result["device_peak_bytes"] = json!(tensors);
        result["device_reserved_bytes"] = json!(reserved);
        return Ok(ui::result(ui::with_warnings(result).to_string())?);
    }
    let memory =
        memory.map_or("not known on this system".to_owned(), |bytes| format!("{} MB", ui::count(bytes / 1_000_000)));
    let megabytes = |bytes: u64| ui::count(bytes / 1_000_000);
    let of_gpu = tensors.zip(reserved).map_or(String::new(), |(tensors, reserved)| {
        format!("; {} MB of tensors on the device, in {} MB that are held", megabytes(tensors), megabytes(reserved))
    });
    Ok(ui::result(format!(
        "steps       {}\nparameters  {} in {modules} modules\ntime        about {} ({:.3} s a step, without \
         evaluations)\nmemory      {memory} of this process at its peak so far{of_gpu}\nnothing was written \
         (--dry-run)",
        ui::count(steps as u64),
        ui::count(parameters as u64),
        duration(total),
        per_step,
    ))?)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n => (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0,
    }
}

/// Seconds as hours, minutes and seconds.
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, _) => format!("{seconds:.1} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        assert_eq!([0.25, 75.0, 7290.0].map(duration), ["0.2 s", "1 min 15 s", "2 h 1 min"]);
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[1.0, 2.0]), median(&[])), (2.0, 1.5, 0.0));
    }
}
