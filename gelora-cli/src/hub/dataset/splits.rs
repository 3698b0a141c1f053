//! Which splits a command reads, by what they are called.

use crate::data::Split;

/// Words for the splits, as data sets on the hub are searched for them.
const WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// What a command reads of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What is measured: the training split, or the only one.
    Measured,
    /// The training split, and for the evaluation after each epoch the validation split if there is one.
    Trained { validates: bool },
    /// One split, or without a choice the validation split, or else the test split.
    Evaluated(Option<Split>),
}

/// The split that a name with one of its words means: `train`, `my-training-set`, `dev_2`.
pub fn split_word(name: &str) -> Option<String> {
    let lowercase = name.to_lowercase();
    let words: Vec<&str> = lowercase.split(|c: char| !c.is_alphabetic()).collect();
    let means = |(_, known): &&(&str, &[&str])| known.iter().any(|known| words.contains(known));
    WORDS.iter().find(means).map(|(split, _)| (*split).to_owned())
}

/// Returns the splits to take, called by the names that a data folder knows.
///
/// # Errors
/// If the wanted split is not there, or several could be meant; the message goes on after the data set's name.
pub fn needed(splits: &[(String, Vec<String>)], wanted: Wanted) -> Result<Vec<(String, Vec<String>)>, String> {
    let of = |split: Split| of_kind(splits, split);
    let missing = |split: Split| format!("the data set has no {} split; it has {}", split.name(), names(splits));
    match wanted {
        Wanted::Measured => match of(Split::Train)? {
            found if !found.is_empty() => Ok(found),
            _ => match splits {
                [(name, files)] => Ok(vec![(split_word(name).unwrap_or_else(|| "train".into()), files.clone())]),
                _ => Err(missing(Split::Train)),
            },
        },
        Wanted::Trained { validates } => {
            let mut found = of(Split::Train)?;
            if found.is_empty() {
                return Err(missing(Split::Train));
            }
            if validates {
                found.extend(of(Split::Validation)?);
            }
            Ok(found)
        }
        Wanted::Evaluated(Some(split)) => match of(split)? {
            found if found.is_empty() => Err(missing(split)),
            found => Ok(found),
        },
        Wanted::Evaluated(None) => {
            let validation = of(Split::Validation)?;
            let found = if validation.is_empty() { of(Split::Test)? } else { validation };
            match found.is_empty() {
                false => Ok(found),
                true => Err(format!("the data set has {} alone; say which with --split", names(splits))),
            }
        }
    }
}

/// The splits of one kind: the one called by its very name, or else by another word for it, or else the only one with such a
/// word in its name. The halves of a validation or test split (`validation_matched`) keep their names.
fn of_kind(splits: &[(String, Vec<String>)], kind: Split) -> Result<Vec<(String, Vec<String>)>, String> {
    let known = WORDS.iter().find(|(name, _)| *name == kind.name()).map_or(&[][..], |(_, known)| known);
    let exact = known.iter().find_map(|word| splits.iter().find(|(name, _)| name.to_lowercase() == *word));
    if let Some((_, files)) = exact {
        return Ok(vec![(kind.name().to_owned(), files.clone())]);
    }
    let alike: Vec<&(String, Vec<String>)> =
        splits.iter().filter(|(name, _)| split_word(name).as_deref() == Some(kind.name())).collect();
    let is_half = |name: &str| name.ends_with("matched");
    match alike.as_slice() {
        [] => Ok(Vec::new()),
        all if all.iter().all(|(name, _)| is_half(name)) => Ok(all.iter().map(|&split| split.clone()).collect()),
        [(_, files)] => Ok(vec![(kind.name().to_owned(), files.clone())]),
        _ => {
            let names: Vec<&str> = alike.iter().map(|(name, _)| name.as_str()).collect();
            let first = alike.first().and_then(|(_, files)| files.first()).map_or("FILE", String::as_str);
            Err(format!(
                "each of {} could be the {} split; name a file of the one to take, as in org/name/{first}",
                names.join(", "),
                kind.name()
            ))
        }
    }
}

fn names(splits: &[(String, Vec<String>)]) -> String {
    let names: Vec<&str> = splits.iter().map(|(name, _)| name.as_str()).collect();
    names.join(", ")
}
