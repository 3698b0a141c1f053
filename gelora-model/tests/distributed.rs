//! Training, evaluation and measurement on several processes, which threads stand for, give the bits of one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use gelora_model::distributed::{Engine, Link, Processes, Thread, threads};
use gelora_model::evaluate::evaluate_shared;
use gelora_model::measure::{ModuleRank, Pool, pooled_states};
use gelora_model::train::{Checkpoints, Length};
use gelora_model::{
    CausalLm, Classifier, Error, Event, MeasureOptions, Task, TaskModel, TokenRows, Tokens, TrainOptions, Trainer,
    Transformer,
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name)
}

fn tokens(rows: usize) -> Vec<Tokens> {
    let row = |i: usize| Tokens::of_ids((0..3 + i * 5 % 9).map(|t| (5 + (i * 7 + t * 11) % 40) as u32).collect());
    (0..rows).map(row).collect()
}

/// A model and its rows.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Bert,
    Deberta,
    Lm,
}

impl Kind {
    fn model(self) -> TaskModel {
        let classes = |name: &str| {
            let task = Task::Classification { labels: vec!["a".into(), "b".into()] };
            Classifier::new(&fixture(name), task, 0).expect("it loads").into()
        };
        match self {
            Self::Bert => classes("tiny-bert"),
            Self::Deberta => classes("families/deberta"),
            Self::Lm => CausalLm::load(&fixture("families/llama")).expect("it loads").into(),
        }
    }

    fn rows(self, rows: usize) -> TokenRows {
        match self {
            Self::Lm => TokenRows::new(tokens(rows).into_iter().map(|row| Tokens::of_ids(row.ids)).collect()),
            _ => TokenRows::with_classes(tokens(rows), (0..rows).map(|i| i % 3 % 2).collect()),
        }
    }
}

/// What a training leaves: the bits of the adapter, losses, norms, and metrics of the held-out rows.
#[derive(Debug, PartialEq)]
struct Left {
    adapter: BTreeMap<String, Vec<u32>>,
    figures: Vec<u64>,
}

fn options(model: &TaskModel, parts: usize, processes: Processes) -> TrainOptions {
    let ends = ["query", "value", "query_proj", "value_proj", "q_proj", "v_proj"];
    let infos = model.transformer().linear_infos();
    let modules = infos.iter().filter(|info| ends.iter().any(|end| info.name.ends_with(end)));
    let ranks: BTreeMap<_, _> = modules.map(|info| (info.name.clone(), ModuleRank { rank: 2, alpha: 4.0 })).collect();
    assert!(!ranks.is_empty(), "no module has one of the names");
    TrainOptions {
        ranks,
        lora_dropout: 0.1,
        length: Length::Steps(7),
        batch_size: 8,
        accumulate: parts,
        lr: 1e-2,
        processes,
        ..TrainOptions::default()
    }
}

/// Trains in one process. 21 rows in batches of 8 leave one of 5 rows, which has fewer parts.
fn trained(kind: Kind, parts: usize, processes: Processes, checkpoints: Option<Checkpoints>) -> Result<Left, Error> {
    let (mut model, rows, held_out) = (kind.model(), kind.rows(21), kind.rows(13));
    let options = TrainOptions { checkpoints, ..options(&model, parts, processes) };
    let mut trainer = Trainer::new(&mut model, &rows, options)?.with_held_out(Some(&held_out));
    let mut figures = Vec::new();
    let metrics = trainer.run(&mut |event: Event<'_>| match event {
        Event::Step(record) => figures.extend([record.loss.to_bits(), record.grad_norm.to_bits()]),
        Event::Evaluated { logits, .. } => figures.extend(logits.iter().flatten().map(|v| u64::from(v.to_bits()))),
        _ => {}
    })?;
    figures.extend(metrics.expect("held-out rows").iter().map(|(_, value)| value.to_bits()));
    let adapter = trainer.adapter();
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
    let mut found = BTreeMap::new();
    for (name, layer) in &adapter.layers {
        found.insert(format!("{name}.a"), bits(layer.a.to_vec()?));
        found.insert(format!("{name}.b"), bits(layer.b.to_vec()?));
    }
    for (name, tensor) in &adapter.saved {
        found.insert(name.clone(), bits(tensor.to_vec()?));
    }
    Ok(Left { adapter: found, figures })
}

/// Runs the same work in `world` threads.
fn in_threads<T: Send>(world: usize, work: impl Fn(Thread) -> T + Sync) -> Vec<T> {
    let engines = threads(world, Link::INSTANT, Duration::from_secs(60));
    thread::scope(|scope| {
        let running: Vec<_> = engines.into_iter().map(|engine| scope.spawn(|| work(engine))).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

#[test]
fn the_bits_of_a_training_do_not_depend_on_the_number_of_processes() {
    for (kind, parts) in [(Kind::Bert, 4), (Kind::Deberta, 4), (Kind::Lm, 4), (Kind::Bert, 8)] {
        let alone = trained(kind, parts, Processes::default(), None).expect("it trains");
        for world in [2, 4] {
            let all =
                in_threads(world, |engine| trained(kind, parts, Processes::new(engine), None).expect("it trains"));
            for (rank, left) in all.iter().enumerate() {
                assert_eq!(*left, alone, "{kind:?}, {parts} parts, process {rank} of {world}");
            }
        }
        // The parts count, or the comparison would show nothing.
        assert_ne!(alone.adapter, trained(kind, 1, Processes::default(), None).expect("it trains").adapter);
    }
}

#[test]
fn a_training_goes_on_with_another_number_of_processes() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = trained(Kind::Bert, 4, Processes::default(), None).expect("it trains");
    let (mut before, stop) = (4, AtomicBool::new(true));
    // Every training is asked to stop after its first step, in one process only.
    for world in [2, 4, 1, 2] {
        let resume = before != 4 || world != 2;
        let checkpoints =
            Checkpoints { folder: folder.path().join("c"), every: Some(2), resume, ..Checkpoints::default() };
        let ended = in_threads(world, |engine| {
            let (mut model, rows) = (Kind::Bert.model(), Kind::Bert.rows(21));
            let asked = (world == 1 || engine.rank() == 1).then_some(&stop);
            let never = AtomicBool::new(false);
            let options = options(&model, 4, Processes::new(engine));
            let options = TrainOptions { checkpoints: Some(checkpoints.clone()), ..options };
            let trainer = Trainer::new(&mut model, &rows, options).expect("it fits");
            trainer.with_stop(asked.unwrap_or(&never)).run(&mut |_: Event<'_>| ()).expect_err("it is stopped")
        });
        for error in &ended {
            assert!(matches!(error, Error::Interrupted { .. }), "{error}");
        }
        before = world;
    }
    let checkpoints =
        Checkpoints { folder: folder.path().join("c"), every: Some(100), resume: true, ..Checkpoints::default() };
    let all = in_threads(4, |engine| {
        trained(Kind::Bert, 4, Processes::new(engine), Some(checkpoints.clone())).expect("it resumes")
    });
    assert!(all.iter().all(|left| left.adapter == whole.adapter));
    // Four steps were made before.
    assert!(all.iter().all(|left| whole.figures.ends_with(&left.figures[6..])));
}

#[test]
fn parts_must_divide_among_the_processes() {
    let all = in_threads(2, |engine| trained(Kind::Bert, 3, Processes::new(engine), None).map(|_| ()));
    for result in all {
        let problem = result.expect_err("3 parts, 2 processes").to_string();
        assert!(problem.contains("accumulate 3") && problem.contains("fits 1 or 3 processes"), "{problem}");
    }
}

#[test]
fn a_process_that_diverges_is_found_at_the_start() {
    let all = in_threads(3, |engine| {
        let processes = Processes::new(engine);
        let (mut model, rows) = (Kind::Bert.model(), Kind::Bert.rows(21));
        let seed = u64::from(processes.rank() == 1);
        let options = TrainOptions { seed, ..options(&model, 3, processes) };
        let trained = Trainer::new(&mut model, &rows, options).and_then(|mut t| t.run(&mut |_: Event<'_>| ()));
        trained.expect_err("another seed").to_string()
    });
    for problem in all {
        assert!(problem.contains("step 0: the adapter: differs") && problem.contains("in process 1"), "{problem}");
    }
}

/// Flips a bit of a gradient that process 1 receives in the fifth step.
#[derive(Debug)]
struct Faulty {
    engine: Thread,
    /// Number of gathered gradients so far.
    steps: AtomicUsize,
}

impl Engine for Faulty {
    fn rank(&self) -> usize {
        self.engine.rank()
    }

    fn world(&self) -> usize {
        self.engine.world()
    }

    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        // Hashes and predictions are shorter.
        let is_gradient = bytes.len() > 1000;
        let mut all = self.engine.all_gather(bytes)?;
        if is_gradient && self.steps.fetch_add(1, Ordering::Relaxed) == 4 && self.rank() == 1 {
            all[1] ^= 0x80;
        }
        Ok(all)
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.engine.broadcast(bytes)
    }

    fn barrier(&self) -> Result<(), Error> {
        self.engine.barrier()
    }
}

#[test]
fn a_process_that_diverges_on_the_way_is_found_at_the_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let all = in_threads(2, |engine| {
        let processes = Processes::new(Faulty { engine, steps: AtomicUsize::new(0) });
        let checkpoints =
            Checkpoints { folder: folder.path().join("c"), every: Some(2), keep: 9, ..Checkpoints::default() };
        trained(Kind::Bert, 2, processes, Some(checkpoints)).map(|_| ()).expect_err("a flipped bit").to_string()
    });
    for problem in all {
        assert!(problem.contains("step 6: the adapter: differs") && problem.contains("in process 1"), "{problem}");
    }
    assert!(folder.path().join("c/step-4").is_dir() && !folder.path().join("c/step-6").exists());
}

#[test]
fn measured_points_and_evaluations_are_those_of_one_process() {
    let (model, examples) = (Transformer::load(&fixture("tiny-bert")).expect("it loads"), tokens(37));
    let folder = tempfile::tempdir().expect("a folder");
    for pool in [Pool::Mean, Pool::Token] {
        let points = |processes: Processes, cached: bool| {
            let cache = cached.then(|| gelora_model::measure::Cache::new(folder.path()));
            let options = MeasureOptions { pool, batch_size: 4, processes, cache, ..MeasureOptions::default() };
            let points = pooled_states(&model, &examples, &options, &mut |_: Event<'_>| ()).expect("points");
            points.iter().map(|state| state.to_vec().expect("values")).collect::<Vec<_>>()
        };
        let alone = points(Processes::default(), false);
        for world in [2, 3] {
            // The second time they come from the cache.
            for cached in [false, true, true] {
                let all = in_threads(world, |engine| points(Processes::new(engine), cached));
                assert!(all.iter().all(|found| *found == alone), "{world} processes, {pool}");
            }
        }
    }
    for kind in [Kind::Bert, Kind::Lm] {
        let (model, rows) = (kind.model(), kind.rows(23));
        let scores = |processes: Processes| {
            let found = evaluate_shared(&model, &rows, 3, &processes, &mut |_: Event<'_>| ()).expect("scores");
            (found.metrics, found.logits)
        };
        let alone = scores(Processes::default());
        for world in [2, 5] {
            let all = in_threads(world, |engine| scores(Processes::new(engine)));
            assert!(all.iter().all(|found| *found == alone), "{kind:?} in {world} processes");
        }
    }
}
