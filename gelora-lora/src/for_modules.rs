//! Makes a config from the ranks of modules.
//!
//! Every pattern is anchored and escaped, `^(bert\.)?encoder\.layer\.1\.attention\.self\.query$`, so that it matches
//! one module only, both in the bare model (`encoder. ...`) and in a task model (`bert.encoder. ...`).

use std::collections::{BTreeMap, HashSet};

use crate::config::{AdapterConfig, Names};
use crate::matcher::is_or_ends_with;
use crate::{Error, Result};

impl AdapterConfig {
    /// The config that gives each of `modules` (full name, rank, alpha) its adapter, and no other module an adapter.
    ///
    /// `prefix` is what a task model puts before the names of the bare model, with its dot ("bert.", "model."), or "".
    /// The config serves both models. `all` has the names that `target_modules` must not match: at least all linear
    /// modules of the model (those in `modules` may be among them). `r` is the most common rank (of equally common
    /// ranks the smallest), and the patterns hold the other ranks. The caller sets task, base model, dropout and
    /// `modules_to_save`.
    ///
    /// # Errors
    /// If `modules` is empty, names a module twice, or has a rank of 0 or an alpha that is not finite.
    ///
    /// ```
    /// use gelora_lora::AdapterConfig;
    ///
    /// let name = |layer| format!("bert.encoder.layer.{layer}.attention.self.query");
    /// let modules = [(name(0), 2, 4.0), (name(1), 5, 10.0), (name(2), 2, 4.0)];
    /// let config = AdapterConfig::for_modules(&modules, "bert.", &["bert.pooler.dense"])?;
    /// assert_eq!((config.r, config.lora_alpha), (2, 4.0));
    /// let (pattern, rank) = config.rank_pattern.iter().next().unwrap();
    /// assert_eq!((pattern, *rank), (r"^(bert\.)?encoder\.layer\.1\.attention\.self\.query$", 5));
    /// # Ok::<(), gelora_lora::Error>(())
    /// ```
    pub fn for_modules(modules: &[(String, usize, f64)], prefix: &str, all: &[impl AsRef<str>]) -> Result<Self> {
        let mut wanted = HashSet::new();
        for (name, rank, alpha) in modules {
            if !wanted.insert(name.as_str()) {
                return Err(Error::module(name, "is listed twice"));
            }
            if *rank == 0 || !alpha.is_finite() {
                let problem = format!("expected a rank of at least 1 and a finite alpha, got {rank} and {alpha}");
                return Err(Error::module(name, problem));
            }
        }
        let Some(r) = most_common(modules.iter().map(|m| m.1)) else {
            return Err(Error::Ranks { problem: "expected at least one module to adapt".into() });
        };
        // The bits of a float are compared for equality only.
        let alphas = modules.iter().filter(|m| m.1 == r).map(|m| m.2.to_bits());
        let lora_alpha = f64::from_bits(most_common(alphas).unwrap_or_default());

        let others: Vec<&str> = all.iter().map(AsRef::as_ref).filter(|name| !wanted.contains(name)).collect();
        let mut targets: Vec<String> = Vec::new();
        for (name, ..) in modules {
            let target = shortest_end(name.strip_prefix(prefix).unwrap_or(name), &others);
            if !targets.iter().any(|t| t == target) {
                targets.push(target.into());
            }
        }
        let pattern = |name: &str| anchored(name, prefix);
        let unlike_r = modules.iter().filter(|m| m.1 != r).map(|m| (pattern(&m.0), m.1));
        let unlike_alpha = modules.iter().filter(|m| m.2 != lora_alpha).map(|m| (pattern(&m.0), m.2));
        Ok(Self {
            r,
            lora_alpha,
            target_modules: Some(Names::List(targets)),
            rank_pattern: unlike_r.collect(),
            alpha_pattern: unlike_alpha.collect(),
            ..Self::default()
        })
    }
}

/// The most common value; of equally common ones the smallest. None if there are no values.
fn most_common<T: Ord>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_insert(0usize) += 1;
    }
    // `max_by_key` returns the last of equal elements.
    counts.into_iter().rev().max_by_key(|&(_, count)| count).map(|(value, _)| value)
}

/// The shortest end of a name, in whole parts, with which none of `others` ends: "query", "attention.output.dense". It
/// does not begin with the number of a layer.
fn shortest_end<'a>(name: &'a str, others: &[&str]) -> &'a str {
    let starts = name.rmatch_indices('.').map(|(dot, _)| dot + 1);
    let ends = starts.map(|start| &name[start..]);
    let good = |end: &&str| {
        let first = end.split('.').next().unwrap_or_default();
        let number = first.bytes().all(|byte| byte.is_ascii_digit());
        !number && !others.iter().any(|other| is_or_ends_with(other, end))
    };
    ends.into_iter().find(good).unwrap_or(name)
}

/// `^(prefix)?name$`, escaped for both Python and Rust.
fn anchored(name: &str, prefix: &str) -> String {
    let name = fancy_regex::escape(name.strip_prefix(prefix).unwrap_or(name));
    match prefix {
        "" => format!("^{name}$"),
        prefix => format!("^({})?{name}$", fancy_regex::escape(prefix)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BERT: [&str; 6] = [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ];

    /// All linear modules of a BERT with a head.
    fn bert(layers: usize) -> Vec<String> {
        let blocks = (0..layers).flat_map(|l| BERT.map(|m| format!("bert.encoder.layer.{l}.{m}")));
        blocks.chain(["bert.pooler.dense".into(), "classifier".into()]).collect()
    }

    fn targets(config: &AdapterConfig) -> Vec<&str> {
        match &config.target_modules {
            Some(Names::List(names)) => names.iter().map(String::as_str).collect(),
            _ => unreachable!(),
        }
    }

    #[test]
    fn target_modules_are_short_and_unambiguous() -> Result<()> {
        let all = bert(12);
        let attention: Vec<_> = all.iter().filter(|n| n.contains("attention")).map(|n| (n.clone(), 2, 4.0)).collect();
        let config = AdapterConfig::for_modules(&attention, "bert.", &all)?;
        assert_eq!(targets(&config), ["query", "key", "value", "attention.output.dense"]);
        assert!(config.rank_pattern.is_empty() && config.alpha_pattern.is_empty());

        // Only layer 1 of 12: the name without the prefix, which layer 11 does not end with.
        let one = [("bert.encoder.layer.1.attention.self.query".to_owned(), 2, 4.0)];
        let config = AdapterConfig::for_modules(&one, "bert.", &all)?;
        assert_eq!(targets(&config), ["layer.1.attention.self.query"]);
        assert!(config.module("bert.encoder.layer.11.attention.self.query")?.is_none());
        assert!(config.module("encoder.layer.1.attention.self.query")?.is_some());
        Ok(())
    }

    #[test]
    fn special_characters_are_escaped() -> Result<()> {
        let modules = [("a.b+c(1).q".to_owned(), 2, 2.0), ("a.bbc1.q".to_owned(), 3, 3.0), ("x.q".to_owned(), 3, 3.0)];
        let config = AdapterConfig::for_modules(&modules, "", &[""; 0])?;
        assert_eq!(config.rank_pattern.iter().next().unwrap().0, r"^a\.b\+c\(1\)\.q$");
        for (name, rank, _) in &modules {
            assert_eq!(config.module(name)?.unwrap().rank, *rank);
        }
        Ok(())
    }

    #[test]
    fn wrong_input_is_an_error() {
        let fails = |modules: &[(String, usize, f64)]| {
            AdapterConfig::for_modules(modules, "", &[""; 0]).unwrap_err().to_string()
        };
        assert!(fails(&[]).contains("at least one module"));
        assert!(fails(&[("q".into(), 0, 1.0)]).contains("module q: expected a rank of at least 1"));
        assert!(fails(&[("q".into(), 1, f64::NAN)]).contains("NaN"));
        assert!(fails(&[("q".into(), 1, 1.0), ("q".into(), 1, 1.0)]).contains("listed twice"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn each_module_gets_its_rank_and_no_other_gets_any(
            chosen in prop::collection::vec((any::<bool>(), 1..6usize, 1..40u32), 14 * BERT.len() + 2),
            rslora: bool,
        ) {
            let all = bert(14);
            let choice = |(name, &(on, rank, alpha)): (&String, &(bool, usize, u32))| {
                on.then(|| (name.clone(), rank, f64::from(alpha) / 2.0))
            };
            let modules: Vec<_> = all.iter().zip(&chosen).filter_map(choice).collect();
            prop_assume!(!modules.is_empty());
            let mut config = AdapterConfig::for_modules(&modules, "bert.", &all).unwrap();
            config.use_rslora = rslora;
            // As it is after a trip through the file.
            let config: AdapterConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
            config.validate().unwrap();
            let matcher = config.matcher().unwrap();
            for name in &all {
                let expected = modules.iter().find(|m| m.0 == *name).map(|m| (m.1, m.2));
                for name in [name, name.strip_prefix("bert.").unwrap_or(name)] {
                    let got = matcher.module(name).unwrap();
                    prop_assert_eq!(got.map(|m| (m.rank, m.alpha)), expected, "{}", name);
                    if let Some(m) = got {
                        let rank = m.rank as f64;
                        let scaling = m.alpha / if rslora { rank.sqrt() } else { rank };
                        prop_assert_eq!(m.scaling, scaling as f32);
                    }
                }
            }
        }
    }
}
