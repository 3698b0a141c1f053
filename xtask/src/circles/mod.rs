//! Circles of imports between the modules of a crate.
//!
//! A module is a file. It imports another if it names one of that file's items: in a `use`, or in a path in its code. A
//! name that a module re-exports counts for the file that defines it, so `crate::Tensor` is an import of `tensor`.
//! Declarations (`mod x;`), re-exports (`pub use`) and code of tests are no imports.
//!
//! A module and the modules inside it may use each other: `ops::linear` calls `ops::linear::cpu`, which uses the types
//! of
//! `ops::linear`. Every other circle is a problem. So two graphs must have none: the one without the imports of a
//! module's ancestors, and the one without the imports of its descendants.

mod modules;
mod tokens;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::Path;

use anyhow::{Context, Result};
use modules::Crate;

/// An import that may close circles.
struct Exception {
    krate: &'static str,
    from: &'static str,
    to: &'static str,
    #[allow(dead_code)] // for who reads the list
    reason: &'static str,
}

/// Imports that may close circles. One that no longer closes a circle is a problem itself.
const EXCEPTIONS: [Exception; 1] = [Exception {
    krate: "gelora-kernels",
    from: "gpu",
    to: "device",
    reason: "an open `Gpu` is the payload of a `Device`, and a launcher gives its output the `Device` of its `Gpu`",
}];

/// The circles of some crates of the workspace, and the exceptions that no longer close one.
pub fn problems(root: &Path, crates: &[&str]) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for name in crates {
        let source = root.join(name).join("src");
        let file = ["lib.rs", "main.rs"].map(|file| source.join(file)).into_iter().find(|file| file.is_file());
        let krate = Crate::read(&file.with_context(|| format!("{name} has no lib.rs or main.rs"))?)?;
        let exceptions: Vec<&Exception> = EXCEPTIONS.iter().filter(|e| e.krate == *name).collect();
        let allowed = |from: &str, to: &str| exceptions.iter().any(|e| e.from == from && e.to == to);
        let found = krate.circles(allowed).into_iter();
        problems.extend(found.map(|circle| format!("{name}: circle {}", circle.join(" -> "))));
        let all = krate.circles(|_, _| false);
        let closes = |e: &Exception| all.iter().any(|circle| circle.windows(2).any(|w| w[0] == e.from && w[1] == e.to));
        let stale = exceptions.into_iter().filter(|e| !closes(e));
        problems.extend(stale.map(|e| format!("{name}: no circle has {} -> {}; remove the exception", e.from, e.to)));
    }
    Ok(problems)
}

impl Crate {
    /// Pairs of (importing file, imported file).
    fn imports(&self) -> BTreeSet<(usize, usize)> {
        let mut imports = BTreeSet::new();
        for (index, module) in self.modules.iter().enumerate() {
            let uses = module.uses.iter().filter(|u| !u.exported);
            // A `use` of a module imports nothing yet: the paths through the module do.
            let used = uses.filter_map(|u| {
                let (target, is_module) = self.resolve(index, &u.path)?;
                (u.name.is_none() || !is_module).then_some(target)
            });
            let named = module.paths.iter().filter_map(|path| Some(self.resolve(index, path)?.0));
            for target in used.chain(named) {
                let (from, to) = (module.file, self.modules[target].file);
                if from != to {
                    imports.insert((from, to));
                }
            }
        }
        imports
    }

    /// The path of a module, as text.
    fn name(&self, module: usize) -> String {
        match self.modules[module].path.as_slice() {
            [] => "crate".into(),
            path => path.join("::"),
        }
    }

    /// For each import in a circle, the shortest circle through it. A circle begins and ends with its first module by
    /// name.
    fn circles(&self, allowed: impl Fn(&str, &str) -> bool) -> BTreeSet<Vec<String>> {
        let inside = |inner: usize, outer: usize| self.modules[inner].path.starts_with(&self.modules[outer].path);
        let imports = self.imports();
        let imports = imports.into_iter().filter(|&(from, to)| !allowed(&self.name(from), &self.name(to)));
        let imports: Vec<_> = imports.collect();
        let without_ancestors = imports.iter().copied().filter(|&(from, to)| !inside(from, to));
        let without_descendants = imports.iter().copied().filter(|&(from, to)| !inside(to, from));
        let mut circles = shortest_circles(&without_ancestors.collect::<Vec<_>>());
        circles.extend(shortest_circles(&without_descendants.collect::<Vec<_>>()));
        let named = circles.into_iter().map(|circle| {
            let mut names: Vec<String> = circle.into_iter().map(|module| self.name(module)).collect();
            let first = (0..names.len()).min_by_key(|&i| &names[i]).unwrap_or(0);
            names.rotate_left(first);
            names.extend(names.first().cloned());
            names
        });
        named.collect()
    }
}

/// For each edge in a circle, one of the shortest circles through it.
fn shortest_circles(edges: &[(usize, usize)]) -> Vec<Vec<usize>> {
    let mut next = HashMap::<usize, Vec<usize>>::new();
    for &(from, to) in edges {
        next.entry(from).or_default().push(to);
    }
    let way_back = |from: usize, to: usize| {
        let (mut came_from, mut queue) = (HashMap::from([(from, from)]), VecDeque::from([from]));
        while let Some(node) = queue.pop_front() {
            if node == to {
                let mut way = vec![node];
                while let Some(&last) = way.last().filter(|&&last| last != from) {
                    way.push(came_from[&last]);
                }
                way.reverse();
                return Some(way);
            }
            for &following in next.get(&node).into_iter().flatten() {
                came_from.entry(following).or_insert_with(|| {
                    queue.push_back(following);
                    node
                });
            }
        }
        None
    };
    edges.iter().filter_map(|&(from, to)| way_back(to, from)).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The circles of a crate made of these files.
    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let krate = Crate::read(&folder.path().join("lib.rs")).unwrap();
        krate.circles(|_, _| false).into_iter().map(|circle| circle.join(" -> ")).collect()
    }

    #[test]
    fn a_clean_crate_has_none() {
        let found = circles(&[
            ("lib.rs", "mod above; mod below; mod parts; pub use below::Item; pub use above::high;"),
            // A re-export, a comment, a string and a test are no imports of `above`.
            (
                "below.rs",
                "pub use crate::above::high as higher; pub struct Item; // crate::above::high()
                 const S: &str = \"crate::above::high\"; #[cfg(test)] mod tests { use crate::above::high; }",
            ),
            ("above.rs", "use crate::{Item, parts::{one as first}}; pub fn high(_: Item) { first() }"),
            // A module and the modules inside it may use each other.
            ("parts/mod.rs", "mod inner; pub struct Kept; pub fn one() { inner::two(Kept) }"),
            ("parts/inner.rs", "use super::Kept; pub fn two(_: Kept) {}"),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn planted_circles_are_found() {
        let lib = ("lib.rs", "mod a; mod b; mod c; pub use a::A;");
        // Through a re-export of the root, a path in code, and `super`.
        let found = circles(&[
            lib,
            ("a.rs", "use crate::b::B; pub struct A(B);"),
            ("b.rs", "pub struct B; fn f() { crate::c::g() }"),
            ("c.rs", "use super::A; pub fn g() {}"),
        ]);
        assert_eq!(found, ["a -> b -> c -> a"]);
        // Through a module inside another, and a macro.
        let found = circles(&[
            ("lib.rs", "mod a; mod b;"),
            ("a/mod.rs", "mod deep; pub fn f() { deep::g() }"),
            ("a/deep.rs", "pub fn g() { crate::b::m!() }"),
            (
                "b.rs",
                "macro_rules! m { () => {} } pub(crate) use m; fn h<'a>(c: &'a char) -> bool \
                 { *c == '\"' && crate::a::f() }",
            ),
        ]);
        assert_eq!(found, ["a -> a::deep -> b -> a"]);
        // Through the import of an ancestor, which alone is allowed.
        let found = circles(&[
            ("lib.rs", "mod a; mod b;"),
            ("a/mod.rs", "pub mod deep; pub struct Kept; pub fn f() { crate::b::h() }"),
            ("a/deep.rs", "use super::Kept; pub fn g() -> Kept { Kept }"),
            ("b.rs", "pub fn h() { crate::a::deep::g(); }"),
        ]);
        assert_eq!(found, ["a -> b -> a::deep -> a"]);
    }
}
