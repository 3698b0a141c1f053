//! A separate project depends on the libraries alone. They build without the program and without the program's
//! dependencies.

use std::path::Path;
use std::process::Command;

/// Packages that no library may depend on.
const UNWANTED: [&str; 6] = ["cubecl", "wgpu", "clap", "tokenizers", "plotters", "gelora-cli"];

const MAIN: &str = r#"
use gelora_model::{Event, MeasureOptions, Tokens, Transformer, measure};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Transformer::load(std::env::args().nth(1).ok_or("a model folder")?.as_ref())?;
    let example = |i: u32| Tokens::of_ids(vec![2, 5 + i % 40, 5 + i * 7 % 40, 5 + i / 3, 3]);
    let tokens: Vec<Tokens> = (0..64).map(example).collect();
    let ranks = measure(&model, &tokens, &MeasureOptions::default(), &mut |_: Event<'_>| {})?;
    let config: gelora_lora::AdapterConfig = ranks.adapter_config(&model)?;
    let dimension: &gelora_id::Estimate = &ranks.states[1].estimate;
    println!("{} modules, dimension {:.1}, {:?}", ranks.modules.len(), dimension.id, config.task_type);
    Ok(())
}
"#;

#[test]
fn a_project_that_depends_on_the_libraries_builds_and_measures() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let project = tempfile::tempdir().expect("a folder");
    let mut manifest =
        "[package]\nname = \"embedder\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n"
            .to_owned();
    for library in ["gelora-id", "gelora-lora", "gelora-model"] {
        let path = root.join(library);
        manifest.push_str(&format!("{library} = {{ path = {path:?}, default-features = false }}\n"));
    }
    std::fs::create_dir(project.path().join("src")).expect("a folder");
    std::fs::write(project.path().join("Cargo.toml"), manifest).expect("a file");
    std::fs::write(project.path().join("src/main.rs"), MAIN).expect("a file");
    // The versions of the workspace, which are already downloaded.
    std::fs::copy(root.join("Cargo.lock"), project.path().join("Cargo.lock")).expect("a file");

    let tree = cargo(project.path(), root, &["tree", "--edges", "normal,build", "--prefix", "none"]);
    for line in tree.lines() {
        let package = line.split(' ').next().unwrap_or_default();
        assert!(!UNWANTED.iter().any(|name| package.starts_with(name)), "{package} is in the tree:\n{tree}");
    }
    assert!(tree.contains("gelora-model"), "{tree}");
    let model = root.join("fixtures/tiny-bert");
    let output = cargo(project.path(), root, &["run", "--quiet", "--", &model.display().to_string()]);
    assert!(output.contains("modules, dimension") && output.contains("SEQ_CLS"), "{output}");
}

/// Runs cargo in the project's folder and returns its output.
fn cargo(project: &Path, root: &Path, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO"));
    let (subcommand, rest) = args.split_first().expect("a subcommand");
    command.arg(subcommand).arg("--offline").args(rest).current_dir(project);
    // Keep the build between runs of the test.
    command.env("CARGO_TARGET_DIR", root.join("target/embedder"));
    let output = command.output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
