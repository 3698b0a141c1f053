//! The tree of modules of a crate, and the modules that paths lead to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::tokens::{group_end, is_name, tokens, without_tests};

/// Re-exports that one path is followed through, at most.
const DEEPEST: usize = 16;

/// A node of the crate's tree of modules. Modules in braces have nodes of their own.
#[derive(Debug)]
pub struct Module {
    pub path: Vec<String>,
    /// The node of the file that the module is in.
    pub file: usize,
    children: BTreeMap<String, usize>,
    /// Names of items. Names of functions in `impl` blocks are among them; they match no path.
    items: BTreeSet<String>,
    pub uses: Vec<Use>,
    /// Paths in code.
    pub paths: Vec<Vec<String>>,
}

/// One leaf of a `use`.
#[derive(Debug)]
pub struct Use {
    pub path: Vec<String>,
    /// The name that the `use` brings into scope; None for a glob.
    pub name: Option<String>,
    /// Whether the `use` is a re-export.
    pub exported: bool,
}

/// The modules of a crate; the first is the crate itself.
#[derive(Debug, Default)]
pub struct Crate {
    pub modules: Vec<Module>,
}

impl Crate {
    /// Reads all modules of a crate, from its root file on.
    pub fn read(root: &Path) -> Result<Self> {
        let mut this = Self::default();
        let folder = root.parent().context("a root file is in a folder")?.to_path_buf();
        this.add(Vec::new(), None);
        this.read_file(0, root, &folder)?;
        Ok(this)
    }

    /// Adds a module; `file` is the node of its file, None if the module has a file of its own.
    fn add(&mut self, path: Vec<String>, file: Option<usize>) -> usize {
        let index = self.modules.len();
        self.modules.push(Module {
            path,
            file: file.unwrap_or(index),
            children: BTreeMap::new(),
            items: BTreeSet::new(),
            uses: Vec::new(),
            paths: Vec::new(),
        });
        index
    }

    /// Reads the file of a module, and those of the modules that it declares from `folder`.
    fn read_file(&mut self, module: usize, file: &Path, folder: &Path) -> Result<()> {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let tokens = without_tests(tokens(&text));
        let declared = self.parse(module, &tokens, folder);
        for (child, folder) in declared {
            let Some(name) = self.modules[child].path.last().cloned() else { continue };
            let [flat, nested] = [folder.join(format!("{name}.rs")), folder.join(&name).join("mod.rs")];
            let file = match (flat.is_file(), nested.is_file()) {
                (true, _) => flat,
                (_, true) => nested,
                _ => bail!("{}: no file for `mod {name}`", file.display()),
            };
            self.read_file(child, &file, &folder.join(&name))?;
        }
        Ok(())
    }

    /// Reads the tokens of a module; returns the modules that have files of their own, with the folders of these.
    fn parse(&mut self, module: usize, tokens: &[String], folder: &Path) -> Vec<(usize, PathBuf)> {
        let mut declared = Vec::new();
        let mut i = 0;
        let mut exported = false;
        while i < tokens.len() {
            let next = |k: usize| tokens.get(i + k).map_or("", String::as_str);
            match tokens[i].as_str() {
                "pub" => {
                    exported = true;
                    i += 1;
                    if tokens.get(i).is_some_and(|t| t == "(") {
                        i = group_end(tokens, i);
                    }
                    continue;
                }
                "mod" if is_name(next(1)) => {
                    let name = next(1).to_string();
                    let mut path = self.modules[module].path.clone();
                    path.push(name.clone());
                    if next(2) == "{" {
                        let end = group_end(tokens, i + 2);
                        let child = self.add(path, Some(self.modules[module].file));
                        self.modules[module].children.insert(name.clone(), child);
                        declared.extend(self.parse(child, &tokens[i + 3..end - 1], &folder.join(&name)));
                        i = end;
                    } else {
                        let child = self.add(path, None);
                        self.modules[module].children.insert(name, child);
                        declared.push((child, folder.to_path_buf()));
                        i += 3;
                    }
                }
                "use" => {
                    let end = (i..tokens.len()).find(|&k| tokens[k] == ";").unwrap_or(tokens.len());
                    let mut uses = Vec::new();
                    use_tree(&tokens[i + 1..end], &[], exported, &mut uses);
                    self.modules[module].uses.extend(uses);
                    i = end + 1;
                }
                "fn" | "struct" | "enum" | "trait" | "type" | "const" | "static" | "union" if is_name(next(1)) => {
                    let skip = if next(1) == "mut" || next(1) == "fn" || next(1) == "unsafe" { 1 } else { 2 };
                    if skip == 2 {
                        let name = next(1).to_string();
                        self.modules[module].items.insert(name);
                    }
                    i += skip;
                }
                "macro_rules" if next(1) == "!" => {
                    let name = next(2).to_string();
                    self.modules[module].items.insert(name);
                    i += 3;
                }
                word if is_name(word) && next(1) == "::" => {
                    let mut path = vec![word.to_string()];
                    let mut k = i + 1;
                    while tokens.get(k).is_some_and(|t| t == "::") && tokens.get(k + 1).is_some_and(|t| is_name(t)) {
                        path.push(tokens[k + 1].clone());
                        k += 2;
                    }
                    let after_dot = i > 0 && (tokens[i - 1] == "." || tokens[i - 1] == "::");
                    if !after_dot {
                        self.modules[module].paths.push(path);
                    }
                    i = k;
                }
                _ => i += 1,
            }
            exported = false;
        }
        declared
    }

    /// The module that defines what `path` names in `module`, and whether the path names a module itself. None if the
    /// path leads to another crate.
    pub fn resolve(&self, module: usize, path: &[String]) -> Option<(usize, bool)> {
        self.resolve_at_depth(module, path, 0)
    }

    /// [`Crate::resolve`] after `depth` re-exports.
    fn resolve_at_depth(&self, module: usize, path: &[String], depth: usize) -> Option<(usize, bool)> {
        if depth > DEEPEST {
            return None;
        }
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.descend(0, rest, depth),
            "self" => self.descend(module, rest, depth),
            "super" => {
                let above = &self.modules[module].path;
                let above = self.find(above.get(..above.len().checked_sub(1)?)?)?;
                if rest.first().is_some_and(|s| s == "super") {
                    return self.resolve_at_depth(above, rest, depth + 1);
                }
                self.descend(above, rest, depth)
            }
            name => {
                let here = &self.modules[module];
                let known =
                    here.children.contains_key(name) || here.uses.iter().any(|u| u.name.as_deref() == Some(name));
                if known { self.descend(module, path, depth) } else { None }
            }
        }
    }

    /// The module with this path.
    fn find(&self, path: &[String]) -> Option<usize> {
        path.iter().try_fold(0, |module, name| self.modules[module].children.get(name).copied())
    }

    /// Follows a path from a module downwards.
    fn descend(&self, from: usize, path: &[String], depth: usize) -> Option<(usize, bool)> {
        if depth > DEEPEST {
            return None;
        }
        let Some((name, rest)) = path.split_first() else { return Some((from, true)) };
        let here = &self.modules[from];
        if let Some(child) = here.children.get(name) {
            return self.descend(*child, rest, depth);
        }
        if let Some(import) = here.uses.iter().find(|u| u.name.as_ref() == Some(name)) {
            // `use name;` names an item of this module, such as a macro, or another crate.
            if import.path.first() == Some(name) && import.path.len() == 1 {
                return here.items.contains(name).then_some((from, false));
            }
            let full: Vec<String> = import.path.iter().chain(rest).cloned().collect();
            return self.resolve_at_depth(from, &full, depth + 1);
        }
        if here.items.contains(name) {
            return Some((from, false));
        }
        let globs = here.uses.iter().filter(|u| u.name.is_none());
        let found = globs.filter_map(|u| self.resolve_at_depth(from, &u.path, depth + 1)).find(|(target, _)| {
            let target = &self.modules[*target];
            target.items.contains(name) || target.children.contains_key(name)
        });
        match found {
            Some((target, _)) => self.descend(target, path, depth + 1),
            None => Some((from, false)),
        }
    }
}

/// The leaves of a `use` tree, whose tokens come without `use` and `;`.
fn use_tree(tokens: &[String], prefix: &[String], exported: bool, out: &mut Vec<Use>) {
    let mut path = prefix.to_vec();
    let mut i = 0;
    while i < tokens.len() {
        match tokens[i].as_str() {
            "::" => {}
            "*" => {
                out.push(Use { path, name: None, exported });
                return;
            }
            "{" => {
                let end = group_end(tokens, i);
                let mut start = i + 1;
                while start < end - 1 {
                    let mut k = start;
                    while k < end - 1 && tokens[k] != "," {
                        k = if tokens[k] == "{" { group_end(tokens, k) } else { k + 1 };
                    }
                    use_tree(&tokens[start..k], &path, exported, out);
                    start = k + 1;
                }
                return;
            }
            "as" => {
                let name = tokens.get(i + 1).cloned();
                out.push(Use { path, name: Some(name.unwrap_or_default()), exported });
                return;
            }
            "self" if !path.is_empty() => {}
            word => path.push(word.to_string()),
        }
        i += 1;
    }
    if let Some(name) = path.last().cloned() {
        out.push(Use { path, name: Some(name), exported });
    }
}
