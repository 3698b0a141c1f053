//! What a trained update needs, beside what could have been known before the training.
//!
//! For every seed a high uniform rank is trained, and the update D = s B A of every module has
//!
//! ```text
//! effective    exp of the entropy of the squared singular values
//! stable       |D|_F^2 / s_1^2
//! energy       the number of singular values that hold 90 % of |D|_F^2
//! ```
//!
//! Before the training, every module has the growth of the dimension over its step, the number of directions of its
//! gradient that replicate, and the number of all its directions, most of them noise. Table: Spearman's correlation
//! over the modules, its mean over the seeds with an interval, and the smallest and largest of a seed. A growth is one
//! number for all modules of a step, so the interval is one over layers.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_kernels::random::Stream;
use gelora_model::evaluate::spearman;
use serde::{Deserialize, Serialize};

use super::stats::{mean, quantile};
use crate::ui::{self, TableStyle};

/// Resamples of the bootstrap over layers.
const RESAMPLES: usize = 1_999;
/// A bootstrap over fewer layers has hardly any other sample to draw.
const FEWEST_LAYERS: usize = 4;

/// The updates of one seed, a line of mechanism.jsonl.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Updates {
    pub study: String,
    pub seed: u64,
    /// Peak learning rate.
    pub lr: f64,
    /// The uniform rank that was trained.
    pub rank: usize,
    pub modules: Vec<ModuleUpdate>,
}

/// One module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleUpdate {
    pub module: String,
    /// Growth of the dimension over the module's step.
    pub growth: f64,
    /// Number of directions of its gradient that replicate, and the interval of that number.
    pub directions: f64,
    pub interval: [f64; 2],
    /// Effective number of all directions of the gradient that were looked at, noise included; 0 in older files.
    #[serde(default)]
    pub with_noise: f64,
    pub effective: f64,
    pub stable: f64,
    pub energy: usize,
}

/// What is related: a need that was known before the training, and a property of the update.
pub const NEEDS: [&str; 3] =
    ["growth of the dimension", "directions of the gradient", "all its directions, noise included"];
pub const PROPERTIES: [&str; 3] = ["effective rank", "stable rank", "rank of 90 % energy"];

impl ModuleUpdate {
    pub fn need(&self, which: usize) -> f64 {
        [self.growth, self.directions, self.with_noise][which]
    }

    pub fn property(&self, which: usize) -> f64 {
        [self.effective, self.stable, self.energy as f64][which]
    }
}

/// Spearman's correlation of a need and a property.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Correlation {
    pub need: &'static str,
    pub property: &'static str,
    /// Modules of this kind alone, by the last part of their names; None for all modules.
    pub kind: Option<String>,
    /// Number of modules.
    pub modules: usize,
    /// Mean over the seeds; None if the need or the property is constant in every seed.
    pub spearman: Option<f64>,
    /// 95 % interval of the mean over these seeds, by a bootstrap over layers; None of fewer than four layers.
    pub interval: Option<[f64; 2]>,
    /// The smallest and the largest of a seed.
    pub range: Option<[f64; 2]>,
    /// Number of seeds in which neither is constant.
    pub seeds: usize,
}

/// What [`Correlation::cells`] holds.
pub const COLUMNS: [&str; 7] =
    ["modules", "number", "known before", "of the update", "correlation", "95 % interval", "of the seeds"];

impl Correlation {
    /// The cells of its row in a table.
    pub fn cells(&self) -> [String; 7] {
        let ends =
            |ends: Option<[f64; 2]>| ends.map_or(String::new(), |[low, high]| format!("{low:+.2} to {high:+.2}"));
        [
            self.kind.clone().unwrap_or_else(|| "all".into()),
            self.modules.to_string(),
            self.need.to_owned(),
            self.property.to_owned(),
            self.spearman.map_or(String::new(), |value| format!("{value:+.2}")),
            ends(self.interval),
            ends(self.range),
        ]
    }
}

/// Reads the lines of a study.
///
/// # Errors
/// Returns an error if the file cannot be read, or a line is not of this study.
pub fn read(path: &Path, study: &str) -> Result<Vec<Updates>> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut all = Vec::new();
    // A line without its end is what a killed run left.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for (number, line) in (1..).zip(whole.lines()) {
        let updates: Updates =
            serde_json::from_str(line).with_context(|| format!("{}: line {number}", path.display()))?;
        if updates.study != study {
            bail!("{}: line {number} is of another study ({}), expected {study}", path.display(), updates.study);
        }
        all.push(updates);
    }
    Ok(all)
}

/// Removes what follows the last whole line.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn without_torn_line(path: &Path) -> Result<()> {
    let Ok(text) = std::fs::read(path) else { return Ok(()) };
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if whole < text.len() {
        let file = std::fs::OpenOptions::new().write(true).open(path).with_context(|| path.display().to_string())?;
        file.set_len(whole as u64).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Returns the updates that were trained as the last ones were: with one rank, at one rate; of one rank alone, if one
/// is given. They are in the order of their seeds.
pub fn alike(mut updates: Vec<Updates>, rank: Option<usize>) -> Vec<Updates> {
    updates.retain(|updates| rank.is_none_or(|rank| updates.rank == rank));
    let Some((rank, lr)) = updates.last().map(|last| (last.rank, last.lr)) else { return updates };
    updates.retain(|updates| updates.rank == rank && updates.lr == lr);
    updates.sort_by_key(|updates| updates.seed);
    updates
}

/// Returns the correlations over all modules, and over the modules of each kind with at least four modules.
pub fn correlations(updates: &[Updates]) -> Vec<Correlation> {
    let Some(first) = updates.first() else { return Vec::new() };
    let mut kinds: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, module) in first.modules.iter().enumerate() {
        kinds.entry(kind(&module.module)).or_default().push(i);
    }
    let several = if kinds.len() > 1 { kinds } else { BTreeMap::new() };
    let groups = several.into_iter().filter(|(_, modules)| modules.len() >= 4);
    let groups = groups.map(|(kind, modules)| (Some(kind), modules));
    let mut all = Vec::new();
    for (group, modules) in [(None, (0..first.modules.len()).collect())].into_iter().chain(groups) {
        for (n, need) in NEEDS.into_iter().enumerate() {
            for (p, property) in PROPERTIES.into_iter().enumerate() {
                let values = of_seeds(updates, (n, p), &modules);
                let fold = |of: fn(f64, f64) -> f64| values.iter().copied().reduce(of);
                all.push(Correlation {
                    need,
                    property,
                    kind: group.map(str::to_owned),
                    modules: modules.len(),
                    spearman: (!values.is_empty()).then(|| mean(&values)),
                    interval: interval(updates, (n, p), &modules),
                    range: fold(f64::min).zip(fold(f64::max)).map(|(low, high)| [low, high]),
                    seeds: values.len(),
                });
            }
        }
    }
    all
}

/// The correlation of a need and a property over these modules in every seed in which neither is constant.
fn of_seeds(updates: &[Updates], (need, property): (usize, usize), modules: &[usize]) -> Vec<f64> {
    let of_seed = |updates: &Updates| {
        let chosen = || modules.iter().filter_map(|&i| updates.modules.get(i));
        let needs: Vec<f64> = chosen().map(|module| module.need(need)).collect();
        let properties: Vec<f64> = chosen().map(|module| module.property(property)).collect();
        let varies = |values: &[f64]| values.iter().any(|value| *value != values[0]);
        (varies(&needs) && varies(&properties)).then(|| spearman(&needs, &properties))
    };
    updates.iter().filter_map(of_seed).collect()
}

/// The 95 % interval of the mean correlation over the seeds, by a percentile bootstrap over layers: the modules of a
/// layer share a growth, and come or stay away together, in all seeds. Of few layers it is too narrow. None of fewer
/// than four layers, or if a need is constant.
fn interval(updates: &[Updates], which: (usize, usize), modules: &[usize]) -> Option<[f64; 2]> {
    let mut layers: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for &i in modules {
        layers.entry(layer(&updates.first()?.modules[i].module)).or_default().push(i);
    }
    let layers: Vec<Vec<usize>> = layers.into_values().collect();
    if layers.len() < FEWEST_LAYERS {
        return None;
    }
    let mut stream = Stream::at(layers.len() as u64, &[0x6c61_7965]); // "laye"
    let mut means = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let drawn: Vec<usize> =
            (0..layers.len()).flat_map(|_| layers[stream.below(layers.len())].iter().copied()).collect();
        // A resample in which a need is constant says nothing.
        let values = of_seeds(updates, which, &drawn);
        means.extend((values.len() == updates.len()).then(|| mean(&values)));
    }
    means.sort_unstable_by(f64::total_cmp);
    (!means.is_empty()).then(|| [0.025, 0.975].map(|share| quantile(&means, share)))
}

/// The layer of a module: what comes before its kind.
fn layer(module: &str) -> &str {
    module.strip_suffix(kind(module)).unwrap_or(module)
}

/// The kind of a module: the part of its name that its layers share.
pub fn kind(module: &str) -> &str {
    // What follows the number of the layer: `layer.0.attention.self.query` is of the kind `attention.self.query`.
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let mut rest = module;
    while let Some((part, after)) = rest.split_once('.') {
        rest = after;
        if is_number(part) {
            return rest;
        }
    }
    module
}

/// Returns the correlations as a table.
pub fn text(correlations: &[Correlation], updates: &[Updates], style: TableStyle) -> String {
    let rows: Vec<Vec<String>> = correlations.iter().map(|correlation| correlation.cells().to_vec()).collect();
    let rank = updates.first().map_or(0, |updates| updates.rank);
    let seeds: Vec<String> = updates.iter().map(|updates| updates.seed.to_string()).collect();
    format!(
        "Updates of a uniform rank of {rank}, seeds {}: Spearman's correlation over modules, with an interval by a \
         bootstrap over layers\n{}",
        seeds.join(", "),
        ui::table(&COLUMNS, &rows, style)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn updates(seed: u64, order: [usize; 4]) -> Updates {
        let module = |i: usize| ModuleUpdate {
            module: format!("layer.{i}.query"),
            growth: i as f64,
            directions: -(i as f64),
            interval: [0.0, 1.0],
            with_noise: 0.0,
            effective: order[i] as f64,
            stable: 1.0,
            energy: order[i],
        };
        Updates { study: "s".into(), seed, lr: 1e-3, rank: 8, modules: (0..4).map(module).collect() }
    }

    #[test]
    fn correlations_are_means_over_seeds() {
        let found = correlations(&[updates(0, [1, 2, 3, 4]), updates(1, [1, 2, 4, 3])]);
        // One kind of module is all of them.
        assert_eq!(found.len(), 9);
        let of = |need: usize, property: usize| found[need * 3 + property].clone();
        // 1 and 1 - 6 * 2 / (4 * 15) = 0.8.
        let close = |value: Option<f64>, want: f64| value.is_some_and(|value| (value - want).abs() < 1e-12);
        assert!(close(of(0, 0).spearman, 0.9) && close(of(1, 2).spearman, -0.9));
        assert_eq!((of(0, 1).spearman, of(0, 1).seeds), (None, 0), "a constant has no correlation");
        let [low, high] = of(0, 0).range.expect("two seeds");
        assert!((low - 0.8).abs() < 1e-12 && (high - 1.0).abs() < 1e-12);
        // Any resample of rising values rises; of 1 2 4 3 some fall.
        let [low, high] = of(0, 0).interval.expect("four layers");
        assert!((0.0..0.9).contains(&low) && close(Some(high), 1.0), "{low} {high}");
        let alike = correlations(&[updates(0, [1, 2, 3, 4])]);
        let is =
            |interval: Option<[f64; 2]>, want| interval.is_some_and(|ends| ends.iter().all(|e| close(Some(*e), want)));
        assert!(is(alike[0].interval, 1.0) && is(alike[3].interval, -1.0), "{alike:?}");
        let mut few = updates(0, [1, 2, 3, 4]);
        few.modules.truncate(3);
        assert_eq!(correlations(&[few])[0].interval, None);
        // Two modules of each layer have its growth, and come together: the interval is that of one of each.
        let mut double = updates(0, [1, 2, 4, 3]);
        let keys =
            double.modules.iter().map(|m| ModuleUpdate { module: m.module.replace("query", "key"), ..m.clone() });
        let keys: Vec<ModuleUpdate> = keys.collect();
        double.modules.extend(keys);
        let both = correlations(&[double]);
        assert_eq!((both[0].modules, both[0].kind.as_deref(), both[9].kind.as_deref()), (8, None, Some("key")));
        let (all, keys) = (both[0].interval.expect("four layers"), both[9].interval.expect("four layers"));
        assert!(all.iter().zip(keys).all(|(a, b)| (a - b).abs() < 1e-9), "{all:?} {keys:?}");
        assert!(correlations(&[]).is_empty());
        assert!(text(&found, &[updates(0, [1, 2, 3, 4])], TableStyle::Plain).contains("rank of 90 % energy"));
    }

    #[test]
    fn only_updates_that_were_trained_alike_are_related() {
        let of = |seed, rank, lr| Updates { rank, lr, ..updates(seed, [1, 2, 3, 4]) };
        let all = vec![of(1, 8, 1e-3), of(0, 8, 1e-3), of(0, 8, 1e-2), of(0, 16, 1e-3), of(1, 16, 1e-3)];
        let seeds = |rank| alike(all.clone(), rank).iter().map(|found| (found.rank, found.seed)).collect::<Vec<_>>();
        assert_eq!(seeds(None), [(16, 0), (16, 1)]);
        assert_eq!(seeds(Some(8)), [(8, 0)]);
        assert!(seeds(Some(4)).is_empty());
    }

    #[test]
    fn kinds_are_what_layers_share() {
        assert_eq!(kind("bert.encoder.layer.11.attention.self.query"), "attention.self.query");
        assert_eq!(kind("model.layers.0.mlp.up_proj"), "mlp.up_proj");
        assert_eq!(kind("pooler.dense"), "pooler.dense");
        assert_eq!(layer("bert.encoder.layer.11.attention.self.query"), "bert.encoder.layer.11.");
        assert_eq!(layer("pooler.dense"), "");
    }

    #[test]
    fn lines_of_another_study_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mechanism.jsonl");
        assert!(read(&path, "s").unwrap().is_empty());
        let line = serde_json::to_string(&updates(0, [1, 2, 3, 4])).unwrap();
        std::fs::write(&path, format!("{line}\n")).unwrap();
        assert_eq!(read(&path, "s").unwrap(), [updates(0, [1, 2, 3, 4])]);
        assert!(read(&path, "t").unwrap_err().to_string().contains("line 1 is of another study (s), expected t"));
        // A line without its end is no line.
        std::fs::write(&path, format!("{line}\n{}", &line[..20])).unwrap();
        assert_eq!(read(&path, "s").unwrap(), [updates(0, [1, 2, 3, 4])]);
        without_torn_line(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{line}\n"));
        std::fs::write(&path, "{}\n").unwrap();
        assert!(format!("{:#}", read(&path, "s").unwrap_err()).contains("line 1"));
    }
}
