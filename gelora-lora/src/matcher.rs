//! PEFT's rules for which modules have an adapter, and of which rank.
//!
//! - If `target_modules` is a list, a module is a target if its full name is in the list or ends with "." and an entry.
//!   If it is a regular expression, the whole name must match. `exclude_modules`, `modules_to_save` and
//!   `layers_to_transform` remove targets.
//! - Rank and alpha are looked up separately. The first key of `rank_pattern` (`alpha_pattern`) for which
//!   `re.match(rf"(.*\.)?({key})$", name)` holds gives the value; without one it is `r` (`lora_alpha`).
//!
//! A key such as `layer.1` is therefore a regular expression that begins at the start of the name or after any dot, and
//! ends at the end of the name. It never matches `layer.11`, but its dots match any character.
//!
//! fancy-regex reads Python's regular expressions, with look-around and back-references. Where the two differ (a brace
//! that is no repetition must be escaped here, `&&` in a class is an intersection), the pattern is an error or does not
//! occur in names of modules.
//!
//! Source: PEFT 0.21.2, `tuners_utils.check_target_module_exists` and `utils.other.get_pattern_key`.

use fancy_regex::Regex;

use crate::config::{AdapterConfig, Layers, ModuleConfig, Names};
use crate::patterns::Patterns;
use crate::{Error, Result};

/// The modules that "all-linear" leaves out: heads, which PEFT knows by name or as output embeddings.
const HEADS: [&str; 6] = ["classifier", "score", "lm_head", "qa_outputs", "embed_out", "cls"];

/// The rules of one [`AdapterConfig`] with its patterns compiled.
#[derive(Clone, Debug)]
pub struct Matcher {
    targets: Targets,
    exclude: Option<Targets>,
    saved: Vec<Rule<()>>,
    layers: Option<(Vec<usize>, Vec<Rule<()>>)>,
    ranks: Vec<Rule<usize>>,
    alphas: Vec<Rule<f64>>,
    default_rank: usize,
    default_alpha: f64,
    rslora: bool,
    dropout: f32,
}

impl AdapterConfig {
    /// The rank, alpha, scaling and dropout of the module with this full name, or None if it has no adapter. For many
    /// modules use [`AdapterConfig::matcher`], which compiles the patterns once.
    ///
    /// # Errors
    /// If a pattern is invalid.
    pub fn module(&self, name: &str) -> Result<Option<ModuleConfig>> {
        self.matcher()?.module(name)
    }

    /// The rules of this config, compiled.
    ///
    /// # Errors
    /// If a pattern is invalid.
    pub fn matcher(&self) -> Result<Matcher> {
        Matcher::new(self)
    }
}

#[derive(Clone, Debug)]
enum Targets {
    AllLinear,
    Whole(Rule<()>),
    Names(Vec<String>),
}

/// A compiled pattern with the option it is from and its value.
#[derive(Clone, Debug)]
struct Rule<T> {
    option: &'static str,
    pattern: String,
    regex: Regex,
    value: T,
}

impl<T> Rule<T> {
    fn new(option: &'static str, pattern: &str, whole: &str, value: T) -> Result<Self> {
        let regex = Regex::new(whole).map_err(|e| pattern_error(option, pattern, &e))?;
        Ok(Self { option, pattern: pattern.into(), regex, value })
    }

    fn matches(&self, name: &str) -> Result<bool> {
        self.regex.is_match(name).map_err(|e| pattern_error(self.option, &self.pattern, &e))
    }

    fn layer_index(&self, name: &str) -> Result<Option<usize>> {
        let captures = self.regex.captures(name).map_err(|e| pattern_error(self.option, &self.pattern, &e))?;
        Ok(captures.and_then(|c| c.name("idx")?.as_str().parse().ok()))
    }
}

fn pattern_error(option: &str, pattern: &str, error: &fancy_regex::Error) -> Error {
    Error::Pattern { option: option.into(), pattern: pattern.into(), problem: error.to_string() }
}

impl Matcher {
    pub(crate) fn new(config: &AdapterConfig) -> Result<Self> {
        let targets = match &config.target_modules {
            None => return Err(Error::option("target_modules", "a regular expression or a list of names", "null")),
            Some(Names::Pattern(p)) if p.eq_ignore_ascii_case("all-linear") => Targets::AllLinear,
            Some(names) => Targets::new("target_modules", names)?,
        };
        let exclude = match &config.exclude_modules {
            Some(Names::Pattern(p)) if p.is_empty() => None,
            names => names.as_ref().map(|names| Targets::new("exclude_modules", names)).transpose()?,
        };
        let saved = config.modules_to_save.iter().flatten();
        let saved = saved.map(|m| Rule::new("modules_to_save", m, &format!(r"\A(?:(^|.*\.){m}($|\..*))"), ()));
        let layers = match &config.layers_to_transform {
            None => None,
            Some(Layers::Many(layers)) if layers.is_empty() => None,
            Some(Layers::Many(layers)) => Some((layers.clone(), layer_rules(config)?)),
            Some(Layers::One(layer)) => Some((vec![*layer], layer_rules(config)?)),
        };
        Ok(Self {
            targets,
            exclude,
            saved: saved.collect::<Result<_>>()?,
            layers,
            ranks: rules("rank_pattern", &config.rank_pattern)?,
            alphas: rules("alpha_pattern", &config.alpha_pattern)?,
            default_rank: config.r,
            default_alpha: config.lora_alpha,
            rslora: config.use_rslora,
            dropout: config.lora_dropout,
        })
    }

    /// The rank, alpha, scaling and dropout of the module with this full name, or None if it has no adapter. Call it
    /// for linear modules only: it does not know the type of a module.
    ///
    /// # Errors
    /// If a pattern needs too many steps on this name.
    pub fn module(&self, name: &str) -> Result<Option<ModuleConfig>> {
        if !self.is_target(name)? {
            return Ok(None);
        }
        let rank = lookup(&self.ranks, name)?.unwrap_or(self.default_rank);
        let alpha = lookup(&self.alphas, name)?.unwrap_or(self.default_alpha);
        let divisor = if self.rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok(Some(ModuleConfig { rank, alpha, scaling: (alpha / divisor) as f32, dropout: self.dropout }))
    }

    /// Whether a module, such as `classifier.dense`, is in a module of `modules_to_save`.
    pub(crate) fn is_saved(&self, module: &str) -> bool {
        // PEFT wraps every module whose name ends with an entry, and saves all of its parameters.
        let ends = |part: &str| self.saved.iter().any(|rule| part.ends_with(&rule.pattern));
        ends(module) || module.match_indices('.').any(|(dot, _)| ends(&module[..dot]))
    }

    fn is_target(&self, name: &str) -> Result<bool> {
        if let Some(exclude) = &self.exclude
            && exclude.matches(name)?
        {
            return Ok(false);
        }
        for rule in &self.saved {
            if rule.matches(name)? {
                return Ok(false);
            }
        }
        // A full name in the list counts in every layer. The end of a name counts only in `layers_to_transform`.
        if let Targets::Names(names) = &self.targets
            && names.iter().any(|n| n == name)
        {
            return Ok(true);
        }
        if !self.targets.matches(name)? {
            return Ok(false);
        }
        let Some((layers, rules)) = &self.layers else { return Ok(true) };
        for rule in rules {
            if rule.matches(name)? {
                return Ok(rule.layer_index(name)?.is_some_and(|index| layers.contains(&index)));
            }
        }
        Ok(false)
    }
}

impl Targets {
    fn new(option: &'static str, names: &Names) -> Result<Self> {
        Ok(match names {
            Names::Pattern(p) => Targets::Whole(Rule::new(option, p, &format!(r"\A(?:{p})\z"), ())?),
            Names::List(names) => Targets::Names(names.clone()),
        })
    }

    fn matches(&self, name: &str) -> Result<bool> {
        match self {
            Targets::AllLinear => Ok(!HEADS.contains(&name.split('.').next().unwrap_or(name))),
            Targets::Whole(rule) => rule.matches(name),
            Targets::Names(names) => Ok(names.iter().any(|n| is_or_ends_with(name, n))),
        }
    }
}

/// Whether a module's name is `end`, or ends with "." and `end`.
pub(crate) fn is_or_ends_with(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn rules<T: Copy>(option: &'static str, patterns: &Patterns<T>) -> Result<Vec<Rule<T>>> {
    // One group before those of the key, as in Python, so that back-references have the same numbers.
    patterns.iter().map(|(key, &value)| Rule::new(option, key, &format!(r"\A(?:(.*\.)?({key})$)"), value)).collect()
}

fn lookup<T: Copy>(rules: &[Rule<T>], name: &str) -> Result<Option<T>> {
    for rule in rules {
        if rule.matches(name)? {
            return Ok(Some(rule.value));
        }
    }
    // Else PEFT looks up the name itself among the keys.
    Ok(rules.iter().find(|rule| rule.pattern == name).map(|rule| rule.value))
}

/// The expressions that find the index of a module's layer in its name.
fn layer_rules(config: &AdapterConfig) -> Result<Vec<Rule<()>>> {
    let patterns: &[String] = match &config.layers_pattern {
        Some(Names::Pattern(p)) if !p.is_empty() => std::slice::from_ref(p),
        Some(Names::List(patterns)) => patterns,
        _ => &[],
    };
    if patterns.is_empty() {
        return Ok(vec![Rule::new("layers_to_transform", "", r"\A(?:.*?\.[^.]*\.(?P<idx>\d+)\.)", ())?]);
    }
    let rule = |p: &String| Rule::new("layers_pattern", p, &format!(r"\A(?:(?:^|.*?\.){p}\.(?P<idx>\d+)\.)"), ());
    patterns.iter().map(rule).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn module(mut config: Value, name: &str) -> Option<(usize, f64, f32)> {
        if config.get("target_modules").is_none() {
            config["target_modules"] = json!(["query"]);
        }
        let config: AdapterConfig = serde_json::from_value(config).unwrap();
        config.module(name).unwrap().map(|m| (m.rank, m.alpha, m.scaling))
    }

    #[test]
    fn layer_1_is_not_layer_11() {
        let config = json!({
            "r": 2, "lora_alpha": 2, "rank_pattern": {"layer.1.query": 4}, "alpha_pattern": {r"layer\.11\.query": 8},
        });
        assert_eq!(module(config.clone(), "bert.layer.1.query"), Some((4, 2.0, 0.5)));
        assert_eq!(module(config.clone(), "bert.layer.11.query"), Some((2, 8.0, 4.0)));
        assert_eq!(module(config.clone(), "layer.1.query"), Some((4, 2.0, 0.5)));
        assert_eq!(module(config, "bert.layer.1.key"), None);
        // Matched from a dot on, to the end.
        assert_eq!(module(json!({"rank_pattern": {"ayer.1.query": 4}}), "bert.layer.1.query").unwrap().0, 8);
        assert_eq!(module(json!({"rank_pattern": {"layer.1": 4}}), "bert.layer.1.query").unwrap().0, 8);
    }

    #[test]
    fn the_first_pattern_of_the_file_holds() {
        let order = |json: &str| {
            let text = format!(r#"{{"target_modules": ["query"], "rank_pattern": {json}}}"#);
            serde_json::from_str::<AdapterConfig>(&text).unwrap().module("layer.3.query").unwrap().unwrap().rank
        };
        assert_eq!(order(r#"{"query": 5, ".*3.query": 6}"#), 5);
        assert_eq!(order(r#"{".*3.query": 6, "query": 5}"#), 6);
    }

    #[test]
    fn scaling_divides_by_r_or_its_root() {
        let name = "layer.0.query";
        assert_eq!(module(json!({"r": 4, "lora_alpha": 6}), name), Some((4, 6.0, 1.5)));
        assert_eq!(module(json!({"r": 4, "lora_alpha": 6, "use_rslora": true}), name), Some((4, 6.0, 3.0)));
        let of_the_module = json!({"r": 4, "lora_alpha": 6, "rank_pattern": {"query": 9}, "use_rslora": true});
        assert_eq!(module(of_the_module, name), Some((9, 6.0, 2.0)));
    }

    #[test]
    fn all_linear_leaves_out_heads() {
        let config = json!({"target_modules": "All-Linear"});
        assert!(module(config.clone(), "bert.encoder.layer.0.output.dense").is_some());
        for head in ["classifier", "classifier.dense", "score", "lm_head", "qa_outputs", "cls.predictions.decoder"] {
            assert!(module(config.clone(), head).is_none(), "{head}");
        }
    }

    #[test]
    fn invalid_patterns_are_named() {
        let problem =
            |json: Value| serde_json::from_value::<AdapterConfig>(json).unwrap().module("q").unwrap_err().to_string();
        let message = problem(json!({"target_modules": ["q"], "rank_pattern": {"layer.(": 3}}));
        assert!(message.starts_with("adapter config: rank_pattern has the pattern \"layer.(\""), "{message}");
        assert!(problem(json!({"target_modules": "[a"})).contains("target_modules has the pattern \"[a\""));
        assert!(problem(json!({"target_modules": ["q"], "exclude_modules": "*"})).contains("exclude_modules"));
        assert!(problem(json!({})).contains("target_modules is null"));
    }

    #[test]
    fn a_pattern_that_explodes_is_an_error() {
        let config = json!({"target_modules": r"(?=(a+)+$)(a+)+\2b"});
        let config: AdapterConfig = serde_json::from_value(config).unwrap();
        let message = config.module(&"a".repeat(64)).unwrap_err().to_string();
        assert!(message.contains("target_modules") && message.contains("limit"), "{message}");
    }
}
