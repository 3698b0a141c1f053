//! Selects the splits that a command reads, by their names.

use crate::data::Split;

/// Words that name the splits of datasets on the hub.
const WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The splits that a command reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// For a measurement: the training split, or the only one.
    Measured,
    /// For training: the training split, and with `validates` the validation split if there is one.
    Trained { validates: bool },
    /// For an evaluation: the given split, or else the validation split, or else the test split.
    Evaluated(Option<Split>),
}

/// Returns the split that a name with one of these words means: `train`, `my-training-set`, `dev_2`.
pub fn split_word(name: &str) -> Option<String> {
    let lowercase = name.to_lowercase();
    let words: Vec<&str> = lowercase.split(|c: char| !c.is_alphabetic()).collect();
    let means = |(_, known): &&(&str, &[&str])| known.iter().any(|known| words.contains(known));
    WORDS.iter().find(means).map(|(split, _)| (*split).to_owned())
}

/// Returns the splits to take, with the split names of data folders.
///
/// # Errors
/// Returns an error if the wanted split does not exist or is ambiguous. The message continues the dataset's name.
pub fn needed(splits: &[(String, Vec<String>)], wanted: Wanted) -> Result<Vec<(String, Vec<String>)>, String> {
    let find = |split: Split| of_kind(splits, split);
    let missing = |split: Split| format!("the dataset has no {} split; it has {}", split.name(), names(splits));
    match wanted {
        Wanted::Measured => match find(Split::Train)? {
            found if !found.is_empty() => Ok(found),
            _ => match splits {
                [(name, files)] => Ok(vec![(split_word(name).unwrap_or_else(|| "train".into()), files.clone())]),
                _ => Err(missing(Split::Train)),
            },
        },
        Wanted::Trained { validates } => {
            let mut found = find(Split::Train)?;
            if found.is_empty() {
                return Err(missing(Split::Train));
            }
            if validates {
                found.extend(find(Split::Validation)?);
            }
            Ok(found)
        }
        Wanted::Evaluated(Some(split)) => match find(split)? {
            found if found.is_empty() => Err(missing(split)),
            found => Ok(found),
        },
        Wanted::Evaluated(None) => {
            let validation = find(Split::Validation)?;
            let found = if validation.is_empty() { find(Split::Test)? } else { validation };
            match found.is_empty() {
                false => Ok(found),
                true => Err(format!("the dataset has {} alone; say which with --split", names(splits))),
            }
        }
    }
}

/// Returns the splits of one kind: the split with exactly this name, or else with another word for it, or else the only
/// split with such a word in its name. The halves of a validation or test split (`validation_matched`) keep their
/// names.
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
