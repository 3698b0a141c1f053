use serde_json::json;

use super::super::tests::{sample, unclosed_tags};
use super::*;
use crate::history::{Run, Step};

const HOSTILE: &str = "</td><script>alert(1)</script> <img src=x onerror=alert(2)> & \"quotes\"";

pub fn understood(data: &str) -> Understood {
    serde_json::from_value(json!({
        "data": data, "task": "classification", "columns": {"text": "sentence", "label": "label"},
        "ignored_columns": [HOSTILE], "classes": {"no": 3, HOSTILE: 5}, "rows": 8, "kept": 8, "distinct": 8,
        "left_out": [], "max_length": 128, "notes": ["a <note>"], "warnings": ["first < warning"],
    }))
    .unwrap()
}

pub fn history() -> History {
    let step = |step: usize| Step {
        step,
        loss: (step != 3).then_some(1.0 / step as f64),
        lr: 1e-3 * (50 - step) as f64 / 50.0,
        grad_norm: Some(2.0),
        ms: 100.0,
        tokens_per_s: Some(1234.0),
    };
    let evaluation = |step: usize, accuracy: f64| Evaluation {
        step,
        metrics: vec![("accuracy".into(), Some(accuracy)), ("f1".into(), None)],
    };
    History {
        steps: (1..=50).map(step).collect(),
        evaluations: vec![evaluation(25, 0.5), evaluation(50, 0.75)],
        runs: vec![Run { seconds: 7.25, peak_memory_bytes: Some(345_600_000) }],
    }
}

fn held_out() -> HeldOut {
    let row = |row: usize| rows::Row {
        row,
        texts: vec![HOSTILE.into(), "second".into()],
        label: "no".into(),
        predicted: HOSTILE.into(),
        value: 0.875,
    };
    HeldOut::Classes {
        labels: vec!["no".into(), HOSTILE.into()],
        confusion: vec![vec![2, 1], vec![0, 5]],
        worst: vec![row(3)],
    }
}

/// Calls `check` with a training that has everything, or neither held-out rows nor a measurement.
pub fn with_training(is_full: bool, check: impl FnOnce(&Training<'_>)) {
    let (data, held_out_data) = (understood(HOSTILE), understood("validation.jsonl"));
    let ranks = sample(4.0, 100);
    let modules = ranks.module_ranks();
    let history = if is_full { history() } else { History { evaluations: Vec::new(), ..history() } };
    check(&Training {
        model: format!("models/{HOSTILE}"),
        data: &data,
        fingerprint: "0123456789abcdef".into(),
        held_out_data: is_full.then(|| (&held_out_data, "fedcba9876543210".into())),
        modules: &modules,
        ranks: is_full.then_some(&ranks),
        parameters: 3072,
        settings: vec![("peak learning rate", "0.001".into())],
        command: format!("gelora train '{HOSTILE}'"),
        history: &history,
        metrics: is_full.then(|| (50, vec![("accuracy".into(), 0.75), (format!("f1 of \"{HOSTILE}\""), 0.5)])),
        held_out: is_full.then(held_out),
    });
}

#[test]
fn the_page_is_complete_well_formed_and_inert() {
    with_training(true, |training| {
        let page = training.html();
        assert!(unclosed_tags(&page.replace("</body></html>", "</body>")).is_empty());
        let expected = [
            "Held-out accuracy 0.7500 after step 50",
            "first &lt; warning",
            "a &lt;note&gt;",
            "7 of 8 held-out rows are right",
            "66.7 %",
            "1 of 1 wrong rows",
            "not finite",
            "Rank 3 everywhere, measured on 100 examples",
            "346 MB",
            "0123456789abcdef",
            "fedcba9876543210",
        ];
        for text in expected {
            assert!(page.contains(text), "{text}");
        }
        for bad in ["<script", "<img", "NaN", "inf\"", "@import", "url(", "http"] {
            assert!(!page.contains(bad), "{bad}");
        }
    });
}

#[test]
fn a_training_without_held_out_rows_says_so() {
    with_training(false, |training| {
        let page = training.html();
        assert!(unclosed_tags(&page.replace("</body></html>", "</body>")).is_empty());
        assert!(page.contains("There were no held-out rows"));
        assert!(page.contains("Training loss 0.0200 at the last step"));
        assert!(!page.contains("Confusion matrix") && !page.contains("NaN"));
    });
}
