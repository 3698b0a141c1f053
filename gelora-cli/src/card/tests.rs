use super::*;
use crate::report::training::tests::with_training;

fn with_card(is_full: bool, change: impl FnOnce(&mut Card<'_>), check: impl FnOnce(&str)) {
    with_training(is_full, |training| {
        let options = || vec!["--text-column".to_owned(), "the text".to_owned()];
        let data = |path: &str| CardData { path: path.into(), eval_options: options(), predict_options: options() };
        let mut card = Card {
            training,
            task: CardTask::Classification(vec!["no".into(), "<b>\"yes\"</b> `x` | \\".into()]),
            model: "models/mini lm".into(),
            revision: None,
            is_on_hub: false,
            out: "runs/a 1".into(),
            train: data("train.jsonl"),
            held_out: is_full.then(|| data("it's.jsonl")),
            has_pairs: false,
            max_length: 128,
        };
        change(&mut card);
        check(&card.markdown());
    });
}

/// Returns the header as lines.
fn header(card: &str) -> Vec<&str> {
    let mut parts = card.split("---\n");
    assert_eq!(parts.next(), Some(""));
    parts.next().expect("a header").lines().collect()
}

#[test]
fn the_header_has_what_the_hub_reads() {
    with_card(
        true,
        |_| (),
        |card| {
            let lines = header(card);
            for line in [
                "library_name: peft",
                "base_model: \"models/mini lm\"",
                "pipeline_tag: text-classification",
                "- lora",
                "- gelora",
                "- accuracy",
                "- f1",
                "- name: \"a 1\"",
                "      name: \"validation.jsonl\"",
                "    - type: accuracy",
                "      value: 0.75",
            ] {
                assert!(lines.contains(&line), "{line} in {lines:#?}");
            }
            assert!(lines.iter().any(|line| line.starts_with("# A path on the machine")));
        },
    );
    with_card(
        false,
        |card| card.is_on_hub = true,
        |card| {
            assert!(!header(card).iter().any(|line| line.starts_with('#') || line.starts_with("metrics")));
        },
    );
}

#[test]
fn names_are_shown_as_they_are() {
    with_card(
        true,
        |_| (),
        |card| {
            let body = card.split("---\n").nth(2).expect("a body");
            assert!(body.contains(r#"no, &lt;b&gt;"yes"&lt;/b&gt; \`x\` \| \\"#), "{body}");
            // What stands in fenced code is shown as it is by itself.
            let outside: String = body.split("```").step_by(2).collect();
            for tag in ["<b>", "<script", "<img", "</td>"] {
                assert!(!outside.contains(tag), "{tag} in {outside}");
            }
        },
    );
}

#[test]
fn commands_and_code_are_quoted() {
    with_card(
        true,
        |_| (),
        |card| {
            for line in [
                r"gelora eval 'models/mini lm' --adapter 'runs/a 1' --data 'it'\''s.jsonl' --text-column 'the text'",
                r"gelora predict 'models/mini lm' --adapter 'runs/a 1' --data 'it'\''s.jsonl' --text-column 'the text'",
                "gelora merge 'models/mini lm' --adapter 'runs/a 1' --out 'runs/a 1-merged'",
                "model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)",
                r#"labels = ["no", "<b>\"yes\"</b> `x` | \\"]"#,
            ] {
                assert!(card.lines().any(|other| other == line), "{line} in {card}");
            }
        },
    );
}

#[test]
fn language_models_and_files_on_the_hub_are_named_for_python() {
    let lm = |card: &mut Card<'_>| {
        card.task = CardTask::LanguageModel { prompt: "--instruction" };
        (card.model, card.is_on_hub) = ("org/name/sub/q4.gguf".into(), true);
        card.revision = Some("v1".into());
    };
    with_card(true, lm, |card| {
        assert!(header(card).contains(&"base_model: \"org/name\""));
        assert!(header(card).contains(&"pipeline_tag: text-generation"));
        let load = r#"model = AutoModelForCausalLM.from_pretrained(base, gguf_file="sub/q4.gguf", revision="v1")"#;
        assert!(card.contains(load), "{card}");
        let generate = "gelora generate org/name/sub/q4.gguf --revision v1 --adapter 'runs/a 1' --instruction ";
        assert!(card.contains(generate), "{card}");
        assert!(!card.contains("gelora predict"));
    });
    with_card(
        true,
        |card| card.model = "q4.gguf".into(),
        |card| {
            assert!(card.contains("base = \".\"\n") && card.contains("gguf_file=\"q4.gguf\""), "{card}");
        },
    );
}

#[test]
fn ranks_are_measured_or_given() {
    with_card(
        true,
        |_| (),
        |card| {
            assert!(card.contains("| layer 0 | 5.00 | 4.00 to 6.00 | +1.50 | -0.50 to +3.00 | 3 |"), "{card}");
            assert!(card.contains("| embeddings | 4.00 | 3.00 to 5.00 | | | |"), "{card}");
        },
    );
    with_card(
        false,
        |_| (),
        |card| {
            assert!(card.contains("Rank 3 and alpha 6 in all 1 modules, as given."), "{card}");
            assert!(card.contains("There were no held-out rows."), "{card}");
        },
    );
}
