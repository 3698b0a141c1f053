use super::*;
use crate::compare::results::Study;

const RATES: [f64; 3] = [1e-4, 1e-3, 1e-2];

fn plan(arms: &[Arm], seeds: u64) -> Plan {
    Plan { arms: arms.to_vec(), rates: RATES.to_vec(), seeds, choose_seeds: 2 }
}

fn accuracy() -> Metric {
    Metric { name: "accuracy".into(), lower_is_better: false }
}

fn result(part: Part, arm: Arm, lr: f64, seed: u64, score: Option<f64>) -> RunResult {
    RunResult {
        study: String::new(),
        part,
        arm: arm.name().into(),
        lr,
        seed,
        ranks: vec![1.0, 2.0],
        parameters: 100,
        metrics: score.map(|score| ("accuracy".to_owned(), score)).into_iter().collect(),
        train_loss: None,
        train_seconds: 2.0,
        measure_seconds: 1.0,
    }
}

/// Results in memory: choosing runs that are best at 1e-3, and final runs with these scores.
fn results(scores: &[(Arm, &[f64])]) -> Results {
    let study = Study::new(BTreeMap::new());
    let mut results = Results::read("nowhere.jsonl".as_ref(), &study).unwrap();
    for &(arm, scores) in scores {
        for (lr, score) in RATES.into_iter().zip([0.5, 0.7, 0.6]) {
            (0..2).for_each(|seed| results.add(result(Part::Choose, arm, lr, seed, Some(score))).unwrap());
        }
        for (seed, score) in scores.iter().enumerate() {
            results.add(result(Part::Final, arm, 1e-3, seed as u64, Some(*score))).unwrap();
        }
    }
    results
}

/// Scores of ten seeds: a level, what the seed brings to every arm, and what is this arm's own.
fn scores(level: f64, own: f64) -> Vec<f64> {
    (0..10).map(|seed| level + 0.05 * f64::from(seed * 7 % 10) + own * f64::from(seed * 3 % 7 - 3)).collect()
}

fn compared(scores: &[(Arm, &[f64])]) -> Comparison {
    let arms: Vec<Arm> = scores.iter().map(|(arm, _)| *arm).collect();
    Comparison::new("s", &results(scores), &plan(&arms, 10), &accuracy(), Arm::Uniform)
}

fn difference(comparison: &Comparison, arm: Arm) -> &Difference {
    let row = comparison.arms.iter().find(|row| row.arm == arm.name()).unwrap();
    row.difference.as_ref().unwrap()
}

#[test]
fn the_same_arm_is_no_difference_and_a_planted_gain_is_one() {
    let (base, same, gain, loss) = (scores(0.5, 0.0), scores(0.5, 0.002), scores(0.53, 0.002), scores(0.47, 0.002));
    let arms: [(Arm, &[f64]); 5] =
        [(Arm::Uniform, &base), (Arm::Repeat, &same), (Arm::RsLora, &base), (Arm::Leaked, &gain), (Arm::Head, &loss)];
    let comparison = compared(&arms);
    assert_eq!(difference(&comparison, Arm::Repeat).verdict, Verdict::NoDifference);
    let identical = difference(&comparison, Arm::RsLora);
    assert_eq!((identical.mean, identical.interval, identical.p), (0.0, [0.0; 2], 1.0));
    assert_eq!(identical.verdict, Verdict::NoDifference);
    assert_eq!(difference(&comparison, Arm::Leaked).verdict, Verdict::Better);
    assert_eq!(difference(&comparison, Arm::Head).verdict, Verdict::Worse);
    assert!(comparison.arms[0].difference.is_none());
    let said = &comparison.remarks;
    assert!(said.len() == 1 && said[0].starts_with("rslora: every seed scored exactly as uniform did"), "{said:?}");
    assert_eq!(comparison.arms[3].lr, Some(1e-3));

    // The same numbers as losses: what was better is worse.
    let arms: Vec<Arm> = arms.iter().map(|(arm, _)| *arm).collect();
    let metric = Metric { lower_is_better: true, ..accuracy() };
    let plan = Plan { rates: vec![1e-3], ..plan(&arms, 10) };
    let results = results(&[(Arm::Uniform, &base), (Arm::Leaked, &gain)]);
    let comparison = Comparison::new("s", &results, &plan, &metric, Arm::Uniform);
    assert_eq!(difference(&comparison, Arm::Leaked).verdict, Verdict::Worse);
}

#[test]
fn a_large_scatter_hides_a_gain() {
    let (base, gain) = (scores(0.5, 0.0), scores(0.51, 0.02));
    let comparison = compared(&[(Arm::Uniform, &base), (Arm::Gelora, &gain)]);
    let d = difference(&comparison, Arm::Gelora);
    assert_eq!(d.verdict, Verdict::NoDifference);
    assert!(d.least_detectable > 0.03, "{}", d.least_detectable);
}

#[test]
fn a_rate_is_chosen_among_those_that_converged() {
    let arms = [Arm::Uniform, Arm::Gelora];
    let (plan, metric) = (plan(&arms, 3), accuracy());
    let mut results = results(&[]);
    let mut add = |lr: f64, seed: u64, score: Option<f64>| {
        results.add(result(Part::Choose, Arm::Uniform, lr, seed, score)).unwrap();
        chosen_rate(&results, &plan, Arm::Uniform, &metric)
    };
    // No rate before a seed has all of them.
    assert_eq!(add(1e-4, 0, Some(0.6)), None);
    assert_eq!(add(1e-3, 0, Some(0.8)), None);
    assert_eq!(add(1e-2, 0, Some(0.9)), Some(1e-2));
    // At the second seed the best rate diverges.
    assert_eq!(add(1e-4, 1, Some(0.9)), Some(1e-2));
    assert_eq!(add(1e-3, 1, Some(0.7)), Some(1e-2));
    // Of two equal means the lesser rate.
    assert_eq!(add(1e-2, 1, None), Some(1e-4));
    let lower = Metric { lower_is_better: true, ..accuracy() };
    assert_eq!(chosen_rate(&results, &plan, Arm::Uniform, &lower), Some(1e-4));
    assert_eq!(chosen_rate(&results, &plan, Arm::Gelora, &metric), None);
}

#[test]
fn what_speaks_against_the_numbers_is_said() {
    let (base, arms) = (scores(0.5, 0.0), [Arm::Uniform, Arm::Gelora, Arm::Budget]);
    let mut results = results(&[(Arm::Uniform, &base), (Arm::Gelora, &base[..3])]);
    results.add(result(Part::Final, Arm::Gelora, 1e-3, 3, None)).unwrap();
    let plan = Plan { rates: vec![1e-3, 1e-2], seeds: 5, ..plan(&arms, 5) };
    let comparison = Comparison::new("s", &results, &plan, &accuracy(), Arm::Uniform);
    assert_eq!((comparison.runs_finished, comparison.runs_planned), (8 + 5 + 4, 12 + 15));
    let said = comparison.remarks.join("\n");
    for words in [
        "Unfinished: 17 of 27 runs.",
        "uniform: the rate 1e-3 is at the end of those tried",
        "gelora: every seed scored exactly as uniform did",
        "gelora: 1 final runs diverged",
        "5 seeds cannot show a difference",
    ] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    let text = comparison.text(TableStyle::Plain);
    assert!(text.contains("no difference seen") && text.contains("reference"), "{text}");
    assert_eq!(comparison.arms[1].scores.len(), 3);
}
