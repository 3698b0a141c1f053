//! Two programs measured in turns on one machine, so that what slows one slows the other.

use std::process::Command;

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::line::{self, Line};
use super::median;
use crate::{note, say};

#[derive(clap::Args)]
pub struct Args {
    /// Also run this shell command, in turns with this bench, and compare the lines that both print
    #[arg(long, value_name = "CMD")]
    pub against: Option<String>,
    /// How often both are run
    #[arg(long, default_value_t = 3, requires = "against")]
    turns: usize,
    /// Print the comparison as JSON lines
    #[arg(long, requires = "against")]
    json: bool,
}

/// Parameters that do not decide whether two measurements are of the same work.
const ASIDE: [&str; 4] = ["dtype", "threads", "trainable", "adapter_parameters"];

/// One thing measured on both sides, turn by turn.
#[derive(Debug, PartialEq)]
struct Pair {
    what: String,
    /// Milliseconds, (ours, the peer's).
    turns: Vec<(f64, f64)>,
    /// Peaks in MB of the last turn.
    memory: (Option<f64>, Option<f64>),
}

/// A row of the result.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    what: String,
    turns: usize,
    ours_ms: f64,
    peer_ms: f64,
    /// The peer's median over ours: how many times faster we are.
    ratio: f64,
    /// The least and the greatest ratio of a turn.
    ratio_min: f64,
    ratio_max: f64,
    ours_peak_rss_mb: Option<f64>,
    peer_peak_rss_mb: Option<f64>,
}

pub fn run(command: &str, args: &Args) -> Result<()> {
    let program = std::env::current_exe().context("this program")?;
    let ours_args = without_comparison(std::env::args().skip(1));
    let mut pairs = Vec::new();
    for turn in 1..=args.turns.max(1) {
        note(format!("turn {turn} of {}", args.turns.max(1)));
        let ours = lines("this bench", Command::new(&program).args(&ours_args))?;
        let peer = lines("the peer", Command::new("sh").args(["-c", command]))?;
        if turn == 1 {
            pairs = pair(&ours, &peer)?;
            for line in peer.iter().filter(|p| !ours.iter().any(|o| of_one_kind(o, p) && same_dtype(o, p))) {
                note(format!("no counterpart here: {}", name(line)));
            }
        } else {
            join(&mut pairs, pair(&ours, &peer)?)?;
        }
    }
    let rows: Vec<Row> = pairs.into_iter().map(Row::from).collect();
    if args.json {
        return rows.iter().try_for_each(|row| {
            say(serde_json::to_string(row)?);
            Ok(())
        });
    }
    say(table(&rows));
    Ok(())
}

/// Our arguments without those that made this a comparison.
fn without_comparison(args: impl Iterator<Item = String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut args = args;
    while let Some(arg) = args.next() {
        let option = arg.split('=').next().unwrap_or_default();
        match option {
            "--against" | "--turns" if option == arg => drop(args.next()), // its value
            "--against" | "--turns" | "--json" => {}
            _ => kept.push(arg),
        }
    }
    kept
}

/// Runs one side; its lines.
fn lines(who: &str, command: &mut Command) -> Result<Vec<Line>> {
    let output = command.output().with_context(|| format!("{who} cannot be started"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let stdout = String::from_utf8_lossy(&output.stdout);
        let all: Vec<&str> = stdout.lines().chain(said.lines()).collect();
        bail!("{who} failed ({}); it said last:\n{}", output.status, all[all.len().saturating_sub(15)..].join("\n"));
    }
    let lines = line::parse(&String::from_utf8_lossy(&output.stdout)).with_context(|| who.to_string())?;
    if lines.is_empty() {
        let last = said.lines().last().unwrap_or_default();
        bail!("{who} printed no line that begins with {{\"bench\"; the last on stderr: {last}");
    }
    Ok(lines)
}

/// Kinds of benches whose peers have names: `kind/peer`.
const NAMED_PEERS: [&str; 4] = ["two-nn", "hidden", "generate", "prompt"];

/// `kind/variant` is compared with the same variant if both sides have it, else with all peers of the kind.
fn of_one_kind(ours: &Line, peer: &Line) -> bool {
    let kind = |line: &Line| line.bench.split('/').next().map(str::to_owned);
    let is_named = kind(ours).is_some_and(|kind| NAMED_PEERS.contains(&kind.as_str()));
    ours.bench == peer.bench || (kind(ours) == kind(peer) && is_named)
}

fn same_dtype(ours: &Line, peer: &Line) -> bool {
    ours.dtype().is_none() || peer.dtype().is_none() || ours.dtype() == peer.dtype()
}

fn name(line: &Line) -> String {
    [Some(line.bench.as_str()), line.dtype()].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// What both sides measured, and each of our trainings beside the peer's fastest type.
fn pair(ours: &[Line], peer: &[Line]) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for o in ours {
        for p in peer.iter().filter(|p| of_one_kind(o, p)) {
            let of_both = o.params.iter().filter_map(|(k, v)| Some((k, v, p.params.get(k)?)));
            let differs = of_both.filter(|(k, ..)| !ASIDE.contains(&k.as_str())).find(|(_, a, b)| a != b);
            if let Some((key, a, b)) = differs {
                bail!("{} is of other work on the other side: {key} is {a} here and {b} there", name(o));
            }
            let fastest = peer.iter().filter(|q| q.bench == p.bench).all(|q| p.ms <= q.ms);
            if same_dtype(o, p) {
                let versus = if o.bench == p.bench { String::new() } else { format!(" vs {}", p.bench) };
                pairs.push(of(format!("{}{versus}", name(o)), (o.ms, p.ms), o, p));
            } else if o.bench == "train-step" && fastest {
                let what = format!("{} vs {}, its fastest", name(o), p.dtype().unwrap_or_default());
                pairs.push(of(what, (o.ms, p.ms), o, p));
            }
            // Later lines of one process have not just been started.
            const FIRST_STEP: &str = "process_start_to_first_step_s";
            if let (Some(a), Some(b)) = (o.number(FIRST_STEP), p.number(FIRST_STEP))
                && same_dtype(o, p)
                && std::ptr::eq(p, &peer[0])
            {
                pairs.push(of(format!("{}, start to first step", name(o)), (a * 1e3, b * 1e3), o, p));
            }
        }
    }
    if pairs.is_empty() {
        let names = |lines: &[Line]| lines.iter().map(name).collect::<Vec<_>>().join(", ");
        bail!("nothing to compare: here {}; there {}", names(ours), names(peer));
    }
    Ok(pairs)
}

fn of(what: String, ms: (f64, f64), ours: &Line, peer: &Line) -> Pair {
    Pair { what, turns: vec![ms], memory: (ours.peak_rss_mb, peer.peak_rss_mb) }
}

/// Adds a turn. Which type of the peer is fastest can change between turns; what was paired first stays paired.
fn join(pairs: &mut [Pair], turn: Vec<Pair>) -> Result<()> {
    for pair in pairs.iter_mut() {
        if let Some(same) = turn.iter().find(|p| p.what == pair.what) {
            pair.turns.extend(&same.turns);
            pair.memory = same.memory;
        } else if !pair.what.ends_with("its fastest") {
            bail!("{} was measured in one turn and not in another", pair.what);
        }
    }
    Ok(())
}

impl From<Pair> for Row {
    fn from(pair: Pair) -> Self {
        let ours: Vec<f64> = pair.turns.iter().map(|(ours, _)| *ours).collect();
        let peer: Vec<f64> = pair.turns.iter().map(|(_, peer)| *peer).collect();
        let ratios = pair.turns.iter().map(|(ours, peer)| peer / ours);
        Self {
            what: pair.what,
            turns: pair.turns.len(),
            ours_ms: median(&ours),
            peer_ms: median(&peer),
            ratio: median(&peer) / median(&ours),
            ratio_min: ratios.clone().fold(f64::INFINITY, f64::min),
            ratio_max: ratios.fold(0.0, f64::max),
            ours_peak_rss_mb: pair.memory.0,
            peer_peak_rss_mb: pair.memory.1,
        }
    }
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["what", "ours ms", "peer ms", "peer / ours", "spread", "ours MB", "peer MB"]);
    let memory = |mb: Option<f64>| mb.map_or("-".into(), |mb| format!("{mb:.0}"));
    for row in rows {
        table.add_row([
            row.what.clone(),
            format!("{:.3}", row.ours_ms),
            format!("{:.3}", row.peer_ms),
            format!("{:.2}", row.ratio),
            format!("{:.2} .. {:.2}", row.ratio_min, row.ratio_max),
            memory(row.ours_peak_rss_mb),
            memory(row.peer_peak_rss_mb),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn line(bench: &str, params: Value, ms: f64) -> Line {
        Line::new(bench, params, &[ms], Some(100.0))
    }

    fn whats(pairs: &[Pair]) -> Vec<&str> {
        pairs.iter().map(|p| p.what.as_str()).collect()
    }

    #[test]
    fn lines_of_one_type_are_paired() {
        let forward = |dtype: &str, ms| line("lora/forward", json!({"r": 8, "dtype": dtype, "threads": 2}), ms);
        let backward = line("lora/forward+backward", json!({"r": 8, "dtype": "f32", "threads": 1}), 9.0);
        let ours = [forward("f32", 1.0), backward.clone()];
        let pairs = pair(&ours, &[forward("f32", 2.0), forward("bf16", 0.5), backward]).unwrap();
        assert_eq!(whats(&pairs), ["lora/forward f32", "lora/forward+backward f32"]);
        assert_eq!(pairs[0].turns, [(1.0, 2.0)]);
    }

    #[test]
    fn every_neighbor_search_is_paired_with_ours() {
        let at = |bench: &str, n: usize| line(bench, json!({"n": n, "d": 3}), 1.0);
        let peer = [at("two-nn/torch-chunked", 10), at("two-nn/faiss-flat", 10)];
        let pairs = pair(&[at("two-nn/gelora", 10)], &peer).unwrap();
        assert_eq!(whats(&pairs), ["two-nn/gelora vs two-nn/torch-chunked", "two-nn/gelora vs two-nn/faiss-flat"]);
        let error = pair(&[at("two-nn/gelora", 11)], &peer).unwrap_err().to_string();
        assert!(error.contains("n is 11 here and 10 there"), "{error}");
        let error = pair(&[at("two-nn/gelora", 10)], &[at("hidden", 10)]).unwrap_err().to_string();
        assert!(error.starts_with("nothing to compare"), "{error}");
    }

    #[test]
    fn several_peers_of_one_kind_are_measured_in_one_run() {
        let hidden = |bench: &str, dtype: Option<&str>| {
            let params = dtype.map_or(json!({"samples": 9}), |dtype| json!({"samples": 9, "dtype": dtype}));
            line(bench, params, 1.0)
        };
        let peers = [hidden("hidden/openvino bf16", None), hidden("hidden/onnxruntime f32", None)];
        let pairs = pair(&[hidden("hidden", Some("bf16"))], &peers).unwrap();
        assert_eq!(whats(&pairs), ["hidden bf16 vs hidden/openvino bf16", "hidden bf16 vs hidden/onnxruntime f32"]);
    }

    #[test]
    fn a_training_also_meets_the_fastest_type_of_the_peer() {
        let first_step = |line: Line, seconds| line.with("process_start_to_first_step_s", seconds, 2);
        let step = |dtype: &str, ms, s| first_step(line("train-step", json!({"steps": 40, "dtype": dtype}), ms), s);
        let peer = [step("f32", 50.0, 6.0), step("bf16", 30.0, 9.0)];
        let pairs = pair(&[step("f32", 20.0, 0.5), step("bf16", 10.0, 0.4)], &peer).unwrap();
        let wanted = [
            "train-step f32",
            "train-step f32, start to first step",
            "train-step f32 vs bf16, its fastest",
            "train-step bf16",
        ];
        assert_eq!(whats(&pairs), wanted);
        assert_eq!(pairs[1].turns, [(500.0, 6000.0)]);
        assert_eq!(pairs[2].turns, [(20.0, 30.0)]);
    }

    #[test]
    fn ratios_are_of_medians_and_spread_over_turns() {
        let pair = |ours, peer| Pair { what: "x".into(), turns: vec![(ours, peer)], memory: (Some(1.0), None) };
        let mut pairs = vec![pair(10.0, 20.0)];
        join(&mut pairs, vec![pair(20.0, 30.0)]).unwrap();
        join(&mut pairs, vec![pair(12.0, 60.0)]).unwrap();
        let row = Row::from(pairs.remove(0));
        assert_eq!((row.turns, row.ours_ms, row.peer_ms, row.ratio), (3, 12.0, 30.0, 2.5));
        assert_eq!((row.ratio_min, row.ratio_max), (1.5, 5.0));
        assert!(table(&[row]).contains("1.50 .. 5.00"));
        assert!(join(&mut [pair(1.0, 1.0)], Vec::new()).is_err());
    }

    #[test]
    fn our_own_side_is_run_without_the_comparison() {
        let args = "bench lora --against X --r 4 --turns=2 --against=Y --json --turns 5 --tokens 8";
        let kept = without_comparison(args.split(' ').map(Into::into));
        assert_eq!(kept, ["bench", "lora", "--r", "4", "--tokens", "8"]);
    }

    #[test]
    fn a_peer_may_make_noise_but_not_fail() {
        let mut noisy = Command::new("sh");
        noisy.args(["-c", "echo hello; echo noise >&2; echo '{\"bench\":\"hidden\",\"params\":{},\"ms\":1}'"]);
        assert_eq!(lines("the peer", &mut noisy).unwrap().len(), 1);
        let fails = |script: &str| lines("the peer", Command::new("sh").args(["-c", script])).unwrap_err().to_string();
        let error = fails("echo 'no module' >&2; exit 3");
        assert!(error.starts_with("the peer failed") && error.contains("no module"), "{error}");
        assert!(fails("echo hello").contains("printed no line"));
    }
}
