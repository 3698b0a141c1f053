//! Finds modules with the same inputs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gelora_kernels::Tensor;

use crate::probe::Probe;
use crate::{Error, Result};

/// Finds modules with the same inputs.
pub(super) struct Grouping(Mutex<Same>);

pub(super) struct Same {
    /// Wanted directions of every module.
    counts: BTreeMap<String, usize>,
    found: Found,
    /// The inputs of the module before, and its group.
    last: Option<(Vec<f32>, usize)>,
    failure: Option<Error>,
}

/// Modules with the same inputs.
#[derive(Clone, Default)]
pub(super) struct Found {
    /// Number of channels and wanted directions of each group.
    pub groups: Vec<(usize, usize)>,
    pub group_of: BTreeMap<String, usize>,
    /// The first module of each group.
    pub first: BTreeMap<String, usize>,
}

impl fmt::Debug for Grouping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grouping").finish_non_exhaustive()
    }
}

impl Grouping {
    pub fn new(counts: BTreeMap<String, usize>) -> Self {
        Self(Mutex::new(Same { counts, found: Found::default(), last: None, failure: None }))
    }

    pub fn lock(&self) -> MutexGuard<'_, Same> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe for Grouping {
    fn wants(&self, module: &str) -> bool {
        self.lock().counts.contains_key(module)
    }

    fn see(&self, module: &str, x: &Tensor) {
        let same = &mut *self.lock();
        if same.failure.is_none() {
            same.failure = same.add(module, x).err();
        }
    }
}

impl Same {
    fn add(&mut self, module: &str, x: &Tensor) -> Result<()> {
        let (values, count) = (x.to_vec()?, self.counts.get(module).copied().unwrap_or_default());
        let found = &mut self.found;
        if let Some((_, group)) = self.last.as_ref().filter(|(last, _)| *last == values) {
            found.group_of.insert(module.to_owned(), *group);
            found.groups[*group].1 = found.groups[*group].1.max(count);
            return Ok(());
        }
        let group = found.groups.len();
        found.groups.push((x.cols(), count));
        found.group_of.insert(module.to_owned(), group);
        found.first.insert(module.to_owned(), group);
        self.last = Some((values, group));
        Ok(())
    }

    pub fn finish(&mut self) -> Result<Found> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        match self.counts.keys().find(|module| !self.found.group_of.contains_key(*module)) {
            Some(module) => Err(Error::Value(format!("{module} has no inputs in a forward pass"))),
            None => Ok(self.found.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_with_the_same_inputs_are_one_group_with_the_most_directions() -> Result<()> {
        let counts = [("q", 2), ("k", 6), ("o", 3), ("u", 1)].map(|(name, count)| (name.to_owned(), count)).into();
        let grouping = Grouping::new(counts);
        let tensor = |value: f32| Tensor::from_vec(vec![value; 8], [2, 4]);
        for (module, value) in [("q", 1.0), ("k", 1.0), ("o", 2.0)] {
            grouping.see(module, &tensor(value)?);
        }
        let error = grouping.lock().finish().err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("u has no inputs in a forward pass"));
        grouping.see("u", &tensor(1.0)?);
        let found = grouping.lock().finish()?;
        assert_eq!(found.groups, [(4, 6), (4, 3), (4, 1)]);
        assert_eq!((found.group_of["k"], found.first.len()), (0, 3));
        Ok(())
    }
}
