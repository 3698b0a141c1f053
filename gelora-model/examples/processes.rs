//! How the time of a training step depends on the number of processes: measured on this machine, simulated in threads
//! with a slow link, and by a formula for clusters.
//!
//! ```text
//! cargo run --release -p gelora-model --example processes -- MODEL [OUT.svg]
//! mpirun -n 2 cargo run --release -p gelora-model --features mpi --example processes -- gather
//! ```
//!
//! With W processes, as many parts as processes, B rows in a step and n gradient values:
//!
//! ```text
//! t(W) = fixed + B row / W + W n add + (W - 1) (delay + 4 n / bandwidth)
//! ```
//!
//! `row` and `fixed` are the slope and the intercept of a step's time over its rows, `add` is the time to add one value
//! of a part, and the last term is that of an all-gather on a ring ([`Link::all_gather`]).
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use gelora_model::distributed::{Link, Processes, bytes_of, floats_of, threads};
use gelora_model::measure::ModuleRank;
use gelora_model::train::Length;
use gelora_model::{Classifier, Error, Event, Result, Task, TaskModel, TokenRows, Tokens, TrainOptions, Trainer};

/// Tokens of a row.
const LENGTH: usize = 32;
/// Rank of every projection of attention.
const RANK: usize = 8;
/// Rows of a step in the predictions.
const BATCH: usize = 1024;
/// Links: name, delay, bytes per second.
const LINKS: [(&str, Link); 3] = [
    ("100 Mbit/s, 500 us", Link { delay: Duration::from_micros(500), bandwidth: 12.5e6 }),
    ("10 Gbit/s, 50 us", Link { delay: Duration::from_micros(50), bandwidth: 1.25e9 }),
    ("200 Gbit/s, 5 us", Link { delay: Duration::from_micros(5), bandwidth: 25e9 }),
];

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match &arguments[..] {
        [gather] if gather == "gather" => measure_gather(),
        [model] => predict(Path::new(model), None),
        [model, out] => predict(Path::new(model), Some(out.into())),
        _ => Err(Error::Value("expected MODEL [OUT.svg], or gather".into())),
    }
}

/// What a step consists of, in seconds.
#[derive(Clone, Copy, Debug)]
struct Costs {
    fixed: f64,
    row: f64,
    add: f64,
    /// Number of gradient values.
    values: usize,
}

impl Costs {
    /// Seconds of a step of `rows` rows in `world` processes.
    fn step(&self, rows: usize, world: usize, link: &Link) -> f64 {
        let (w, n) = (world as f64, self.values as f64);
        let gathered = link.all_gather(world, 4 * self.values).as_secs_f64();
        self.fixed + rows as f64 * self.row / w + if world > 1 { w * n * self.add } else { 0.0 } + gathered
    }
}

fn predict(model: &Path, out: Option<PathBuf>) -> Result<()> {
    let costs = measured(model)?;
    println!(
        "measured: fixed {:.2} ms, {:.3} ms a row of {LENGTH} tokens, {} gradient values, {:.2} ns to add one",
        costs.fixed * 1e3,
        costs.row * 1e3,
        costs.values,
        costs.add * 1e9
    );
    println!("\nsimulated in threads, 4 rows a step, against the formula (threads share this machine's cores):");
    let slow = Link { delay: Duration::from_millis(100), bandwidth: 1.25e6 };
    for (name, link) in [LINKS[0], ("10 Mbit/s, 100 ms", slow)] {
        for world in [1, 2, 4] {
            let step = simulated(model, world, link)?;
            // Threads share the cores, so the computation does not get faster.
            let shared = costs.step(4, world, &link) - 4.0 * costs.row / world as f64 + 4.0 * costs.row;
            println!("  {name}, W = {world}: {:.1} ms, formula {:.1} ms", step * 1e3, shared * 1e3);
        }
    }
    println!("\nmilliseconds of a step of {BATCH} rows by the formula:");
    let worlds: Vec<usize> = (0..=10).map(|power| 1 << power).collect();
    print!("  {:>6}", "W");
    LINKS.iter().for_each(|(name, _)| print!("  {name:>18}"));
    println!("  {:>18}", "no link");
    for &world in &worlds {
        print!("  {world:>6}");
        for link in LINKS.map(|(_, link)| link).iter().chain([&Link::INSTANT]) {
            print!("  {:>18.1}", costs.step(BATCH, world, link) * 1e3);
        }
        println!();
    }
    for (name, link) in LINKS {
        let best =
            worlds.iter().copied().min_by(|a, b| costs.step(BATCH, *a, &link).total_cmp(&costs.step(BATCH, *b, &link)));
        println!("  fastest with {name}: W = {}", best.unwrap_or(1));
    }
    if let Some(path) = out {
        let curve = |link: &Link| -> Vec<(f64, f64)> {
            worlds.iter().map(|w| (*w as f64, costs.step(BATCH, *w, link) * 1e3)).collect()
        };
        let mut curves: Vec<(&str, Vec<(f64, f64)>)> = LINKS.iter().map(|(name, link)| (*name, curve(link))).collect();
        curves.push(("no link", curve(&Link::INSTANT)));
        fs::write(&path, svg(&curves)).map_err(|e| Error::Value(format!("{}: {e}", path.display())))?;
    }
    Ok(())
}

/// The least of some times: other programs on the machine only add to it.
fn least(times: &[f64]) -> f64 {
    times.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The time of a step over its rows, and of the sum of gradients.
fn measured(model: &Path) -> Result<Costs> {
    let mut points = Vec::new();
    let mut values = 0;
    for rows in [8, 16, 32, 64] {
        let (ms, parameters) = train(model, rows, 1, 12, Processes::default())?;
        points.push((rows as f64, ms));
        values = parameters;
    }
    // Least squares.
    let n = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let row = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum::<f64>()
        / points.iter().map(|p| (p.0 - x).powi(2)).sum::<f64>();
    // What a process does with each gathered part: bytes to floats, and their sum.
    let part = bytes_of(&vec![1.0; values]);
    let mut sum = vec![0f32; values];
    let mut times = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        floats_of(&part).iter().zip(&mut sum).for_each(|(value, sum)| *sum += value);
        times.push(began.elapsed().as_secs_f64());
    }
    assert_eq!(sum.first(), Some(&50.0));
    let add = least(&times) / values as f64;
    Ok(Costs { fixed: (y - row * x).max(0.0), row, add, values })
}

/// Seconds of a step, of `world` processes that are threads.
fn simulated(model: &Path, world: usize, link: Link) -> Result<f64> {
    let engines = threads(world, link, Duration::from_secs(600));
    let all: Vec<Result<(f64, usize)>> = thread::scope(|scope| {
        let running: Vec<_> = engines
            .into_iter()
            .map(|engine| scope.spawn(move || train(model, 4, world, 6, Processes::new(engine))))
            .collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut first = Err(Error::Value("no thread has finished".into()));
    for result in all.into_iter().rev() {
        first = result;
    }
    first.map(|(seconds, _)| seconds)
}

/// Trains for some steps. Returns the seconds of a step and the number of gradient values.
fn train(model: &Path, batch_size: usize, parts: usize, steps: usize, processes: Processes) -> Result<(f64, usize)> {
    let task = Task::Classification { labels: vec!["a".into(), "b".into()] };
    let mut model: TaskModel = Classifier::new(model, task, 0)?.into();
    let row = |i: usize| Tokens::of_ids((0..LENGTH).map(|t| (5 + (i * 7 + t * 11) % 100) as u32).collect());
    let rows = TokenRows::with_classes((0..128).map(row).collect(), (0..128).map(|i| i % 2).collect());
    let hidden = model.transformer().config().hidden;
    let infos = model.transformer().linear_infos();
    let square = infos.iter().filter(|info| info.c_in == hidden && info.c_out == hidden);
    let ranks: BTreeMap<_, _> =
        square.map(|info| (info.name.clone(), ModuleRank { rank: RANK, alpha: 16.0 })).collect();
    let options = TrainOptions {
        ranks,
        batch_size,
        accumulate: parts,
        length: Length::Steps(steps),
        processes,
        ..TrainOptions::default()
    };
    let mut trainer = Trainer::new(&mut model, &rows, options)?;
    let mut times = Vec::new();
    trainer.run(&mut |event: Event<'_>| {
        if let Event::Step(record) = event {
            times.push(record.ms / 1e3);
        }
    })?;
    let adapter = trainer.adapter();
    let head: usize = adapter.saved.values().map(|tensor| tensor.len()).sum();
    times.remove(0); // packs weights
    Ok((least(&times), trainer.parameters() + head))
}

/// Prints the time of an all-gather between the processes that mpirun started.
#[cfg(feature = "mpi")]
fn measure_gather() -> Result<()> {
    let processes = Processes::new(gelora_model::distributed::Mpi::open(Duration::from_secs(60))?);
    for power in [10, 14, 18, 20, 22, 24] {
        let bytes = vec![processes.rank() as u8; 1 << power];
        let mut times = Vec::new();
        for _ in 0..15 {
            processes.barrier()?;
            let began = Instant::now();
            processes.all_gather(bytes.clone())?;
            times.push(began.elapsed().as_secs_f64());
        }
        let time = least(&times);
        if processes.is_first() {
            let rate = (processes.world() - 1) as f64 * bytes.len() as f64 / time / 1e9;
            println!("W = {}, {:>8} bytes each: {:.3} ms, {rate:.2} GB/s", processes.world(), bytes.len(), time * 1e3);
        }
    }
    Ok(())
}

#[cfg(not(feature = "mpi"))]
fn measure_gather() -> Result<()> {
    Err(Error::Value("gather needs --features mpi and mpirun".into()))
}

/// A picture with logarithmic axes: processes, and milliseconds of a step.
fn svg(curves: &[(&str, Vec<(f64, f64)>)]) -> String {
    let (left, top, width, height) = (64.0, 20.0, 560.0, 300.0);
    let all = || curves.iter().flat_map(|(_, points)| points);
    let high = all().map(|p| p.1.log10()).fold(f64::NEG_INFINITY, f64::max).ceil();
    let low = all().map(|p| p.1.log10()).fold(f64::INFINITY, f64::min).floor();
    let most = all().map(|p| p.0.log2()).fold(1.0, f64::max);
    let x = |world: f64| left + world.log2() / most * width;
    let y = |ms: f64| top + (high - ms.log10()) / (high - low) * height;
    let colors = ["#d55e00", "#0072b2", "#009e73", "#5a5a5a"];
    let mut text = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 370\" font-family=\"sans-serif\" \
         font-size=\"12\">\n\
         <rect width=\"800\" height=\"370\" fill=\"white\"/>\n",
    );
    // Writing to a String does not fail.
    for power in low as i32..=high as i32 {
        let (at, value) = (y(10f64.powi(power)), 10f64.powi(power));
        let _ = writeln!(text, "<path d=\"M{left} {at:.1}h{width}\" stroke=\"#e1e1e1\"/>");
        let _ = writeln!(text, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>", left - 6.0, at + 4.0);
    }
    for power in 0..=most as i32 {
        let world = 2f64.powi(power);
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{world}</text>",
            x(world),
            top + height + 18.0
        );
    }
    for ((name, points), color) in curves.iter().zip(colors) {
        let line: Vec<String> = points.iter().map(|(w, ms)| format!("{:.1},{:.1}", x(*w), y(*ms))).collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        if let Some((w, ms)) = points.last() {
            let _ = writeln!(
                text,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{color}\">{name}</text>",
                x(*w) + 8.0,
                y(*ms) + 4.0
            );
        }
    }
    let _ = writeln!(text, "<text x=\"{}\" y=\"{}\">processes</text>", left + width / 2.0, top + height + 40.0);
    let _ = writeln!(text, "<text x=\"8\" y=\"14\">ms of a step</text>\n</svg>");
    text
}
