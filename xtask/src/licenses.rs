//! Licenses of the dependencies: `cargo deny check` where it is installed, and what `cargo metadata` alone can tell.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{cargo, note, root};

/// Runs `cargo deny check`. Leaves it out, and says so, where cargo-deny is not installed; leaves out the advisories,
/// and says so, where their database cannot be downloaded.
///
/// # Errors
/// If a dependency breaks a rule of deny.toml.
pub fn deny() -> Result<()> {
    let runs = |args: &[&str]| {
        let mut command = Command::new("cargo");
        command.args(args).current_dir(root()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !runs(&["deny", "--version"]) {
        note("left out: cargo deny check (cargo install cargo-deny); tidy has checked the licenses alone");
        return Ok(());
    }
    let mut checks = vec!["deny", "check", "licenses", "bans", "sources"];
    match runs(&["deny", "fetch", "db"]) {
        true => checks.push("advisories"),
        false => note("left out: cargo deny check advisories: their database cannot be downloaded"),
    }
    cargo(&checks)
}

/// Packages whose license deny.toml does not allow.
///
/// # Errors
/// If `cargo metadata` fails or deny.toml has no list of licenses.
pub fn problems() -> Result<Vec<String>> {
    let rules = std::fs::read_to_string(root().join("deny.toml")).context("deny.toml")?;
    let allowed = allowed(&rules).context("deny.toml: no list `allow` in [licenses]")?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let target = host()?;
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", &target])
        .current_dir(root())
        .output()
        .context("cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let problem = |package: &Package| {
        let license = package.license.as_deref().unwrap_or_default();
        let shown = if license.is_empty() { "none" } else { license };
        let text = || format!("{} {}: license {shown}, which deny.toml does not allow", package.name, package.version);
        (!is_allowed(license, &allowed)).then(text)
    };
    Ok(metadata.packages.iter().filter_map(problem).collect())
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
}

/// The target that this machine compiles for, as rustc names it.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

/// The strings of the list `allow`.
fn allowed(rules: &str) -> Option<Vec<&str>> {
    let (_, list) = rules.split_once("allow = [")?;
    let (list, _) = list.split_once(']')?;
    Some(list.split('"').skip(1).step_by(2).collect())
}

/// Whether an SPDX expression is satisfied by allowed licenses alone. An older form has `/` for OR.
fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest, allowed) == Some(true) && rest.is_empty()
}

/// `A OR B`; None if the expression is malformed.
fn any_of(rest: &mut &[&str], allowed: &[&str]) -> Option<bool> {
    let mut satisfied = all_of(rest, allowed)?;
    while let ["OR", after @ ..] = *rest {
        *rest = after;
        satisfied |= all_of(rest, allowed)?;
    }
    Some(satisfied)
}

/// `A AND B`, which binds tighter.
fn all_of(rest: &mut &[&str], allowed: &[&str]) -> Option<bool> {
    let mut satisfied = license(rest, allowed)?;
    while let ["AND", after @ ..] = *rest {
        *rest = after;
        satisfied &= license(rest, allowed)?;
    }
    Some(satisfied)
}

/// A license, one with an exception, or an expression in parentheses.
fn license(rest: &mut &[&str], allowed: &[&str]) -> Option<bool> {
    match *rest {
        ["(", after @ ..] => {
            *rest = after;
            let satisfied = any_of(rest, allowed)?;
            let (first, after) = rest.split_first()?;
            *rest = after;
            (*first == ")").then_some(satisfied)
        }
        [name, "WITH", exception, after @ ..] => {
            *rest = after;
            Some(allowed.contains(&format!("{name} WITH {exception}").as_str()))
        }
        [name, after @ ..] => {
            *rest = after;
            Some(allowed.contains(name))
        }
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_of_licenses() {
        let allowed = ["MIT", "Apache-2.0 WITH LLVM-exception", "Zlib"];
        let check = |expression| is_allowed(expression, &allowed);
        assert!(check("MIT") && check("GPL-3.0 OR MIT") && check("Apache-2.0/MIT") && check("MIT AND Zlib"));
        assert!(check("Apache-2.0 WITH LLVM-exception OR GPL-3.0") && check("(MIT OR GPL-3.0) AND Zlib"));
        assert!(!check("") && !check("GPL-3.0") && !check("MIT AND GPL-3.0") && !check("Apache-2.0"));
        assert!(!check("MIT OR") && !check("(MIT") && !check("MIT)") && !check("MIT Zlib"));
        assert!(!check("MIT AND (GPL-3.0 OR LGPL-3.0)") && check("GPL-3.0 AND LGPL-3.0 OR Zlib"));
    }

    #[test]
    fn the_list_of_deny_toml_is_found() {
        let rules = "[bans]\n[licenses]\nallow = [\n    \"MIT\",\n    \"Zlib\", \"ISC\"\n]\n[x]\ndeny = [\"GPL\"]";
        assert_eq!(allowed(rules).unwrap(), ["MIT", "Zlib", "ISC"]);
        assert!(allowed("[licenses]").is_none());
    }
}
