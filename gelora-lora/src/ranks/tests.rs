use proptest::prelude::*;

use super::*;

fn steps(deltas: &[f64]) -> Vec<Step> {
    deltas.iter().map(|&delta| Step { delta, upper: delta + 0.7, cost: 100, most: usize::MAX }).collect()
}

fn ranks_of(steps: &[Step], policy: &Policy, limits: &Limits) -> Vec<usize> {
    assign(steps, policy, ALPHA_RATIO, limits).unwrap().iter().map(|s| s.rank).collect()
}

fn ranks(ids: &[f64], rounding: Rounding) -> Vec<usize> {
    ranks_of(&steps(&differences(ids).unwrap()), &Policy::Gelora { rounding }, &Limits::default())
}

fn budget(parameters: usize) -> Policy {
    Policy::Budget { parameters, rounding: Rounding::Ceil }
}

#[test]
fn rounding_by_hand() {
    let ids = [4.0, 6.5, 6.5, 5.0, 5.4];
    assert_eq!(ranks(&ids, Rounding::Ceil), [4, 1, 1, 2]);
    assert_eq!(ranks(&ids, Rounding::Nearest), [4, 1, 1, 1]);
    assert_eq!(ranks(&ids, Rounding::Floor), [3, 1, 1, 1]);
}

#[test]
fn policies_by_hand() {
    let (steps, any) = (steps(&[2.5, -1.0, 0.4]), Limits::default());
    let of = |policy: Policy| ranks_of(&steps, &policy, &any);
    assert_eq!(of(Policy::default()), [4, 1, 2]);
    assert_eq!(of(Policy::GeloraUpper { rounding: Rounding::Ceil }), [5, 1, 3]);
    assert_eq!(of(Policy::Uniform { rank: 8 }), [8, 8, 8]);
    // 2100 parameters are 21 ranks: three times 4, 1, 2.
    assert_eq!(of(budget(2100)), [12, 3, 6]);
    assert_eq!(of(budget(700)), [4, 1, 2], "nothing above the bound");
    assert_eq!(of(budget(750)), [4, 1, 2], "half a rank cannot be bought");
    let mut shuffled = of(Policy::Shuffled { seed: 5, rounding: Rounding::Ceil });
    shuffled.sort_unstable();
    assert_eq!(shuffled, [1, 2, 4]);
    assert_eq!(of(Policy::Plateau { rounding: Rounding::Floor }), of(Policy::Gelora { rounding: Rounding::Floor }));
}

#[test]
fn policies_of_modules_give_steps_no_ranks() {
    let policies = [
        Policy::Gradient { parameters: 900 },
        Policy::Signal { parameters: 900 },
        Policy::Eva { parameters: 900, most: 6 },
        Policy::Prune { parameters: 900, trained_rank: 12 },
    ];
    for policy in policies {
        assert!(policy.ranks_modules() && !policy.follows_growth());
        let error = assign(&steps(&[1.0]), &policy, 2.0, &Limits::default()).unwrap_err().to_string();
        assert!(error.contains(&format!("the policy {} gives ranks to single modules", policy.name())), "{error}");
    }
    assert!(!Policy::default().ranks_modules());
}

#[test]
fn the_remainder_of_a_budget_goes_to_the_neediest() {
    let any = Limits::default();
    // Nothing grows, so every step needs one rank; of 7 the last one goes where the dimension falls least.
    assert_eq!(ranks_of(&steps(&[-3.0, -0.5, -2.0]), &budget(700), &any), [2, 3, 2]);
    assert_eq!(ranks_of(&steps(&[-3.0, -2.0, -0.5]), &budget(800), &any), [2, 3, 3]);
    // Of 1, 2 and 4 ranks needed the first above proportion goes to the 4, the next to the 2.
    let growing = steps(&[-1.0, 0.4, 2.5]);
    assert_eq!(ranks_of(&growing, &budget(800), &any), [1, 2, 5]);
    assert_eq!(ranks_of(&growing, &budget(900), &any), [1, 3, 5]);
    assert_eq!(ranks_of(&growing, &budget(1400), &any), [2, 4, 8]);
}

#[test]
fn a_step_without_modules_costs_nothing_and_gets_no_more() {
    let mut steps = steps(&[2.5, -1.0, 0.4]);
    steps[1].cost = 0;
    assert_eq!(ranks_of(&steps, &budget(1800), &Limits::default()), [12, 1, 6]);
    for seed in 0..20 {
        let dealt = ranks_of(&steps, &Policy::Shuffled { seed, rounding: Rounding::Ceil }, &Limits::default());
        assert!(dealt == [4, 1, 2] || dealt == [2, 1, 4], "{dealt:?}");
    }
}

#[test]
fn limits_and_multiples() {
    let steps = steps(&[2.5, -1.0, 17.0]);
    let of = |limits: Limits| ranks_of(&steps, &Policy::default(), &limits);
    assert_eq!(of(Limits { min: 3, max: 10, multiple: 1 }), [4, 3, 10]);
    assert_eq!(of(Limits { multiple: 4, ..Limits::default() }), [4, 4, 20]);
    assert_eq!(of(Limits { min: 1, max: 14, multiple: 4 }), [4, 4, 12], "the greatest multiple within the limit");
    assert_eq!(of(Limits { min: 1, max: 3, multiple: 4 }), [3, 3, 3], "no multiple fits");
    let narrow: Vec<Step> = steps.iter().map(|s| Step { most: 6, ..*s }).collect();
    assert_eq!(ranks_of(&narrow, &Policy::default(), &Limits::default()), [4, 1, 6]);
    assert!(
        assign(&narrow, &Policy::Uniform { rank: 7 }, 2.0, &Limits::default())
            .unwrap_err()
            .to_string()
            .contains("1 to 6")
    );
}

#[test]
fn wrong_input_is_an_error() {
    let fails = |policy: &Policy, ratio, min, max| {
        assign(&steps(&[1.0, 2.0]), policy, ratio, &Limits { min, max, multiple: 1 }).unwrap_err().to_string()
    };
    let gelora = Policy::default();
    assert!(differences(&[]).unwrap_err().to_string().contains("got 0"));
    assert!(differences(&[3.0]).unwrap_err().to_string().contains("got 1"));
    assert!(differences(&[3.0, f64::NAN]).unwrap_err().to_string().contains("state 1 is NaN"));
    assert!(fails(&Policy::Uniform { rank: 0 }, 2.0, 1, 8).contains("at least 1"));
    assert!(fails(&gelora, 2.0, 0, 8).contains("min 0"));
    assert!(fails(&gelora, 2.0, 9, 8).contains("min 9 and max 8"));
    assert!(fails(&gelora, 0.0, 1, 8).contains("alpha ratio"));
    assert!(fails(&budget(499), 2.0, 1, 8).contains("takes 500 parameters, but the budget is 499"));
    assert!(fails(&Policy::Random { parameters: 199, seed: 1 }, 2.0, 1, 8).contains("take 200 parameters"));
    assert!(assign(&[], &gelora, 2.0, &Limits::default()).is_err());
    assert!(assign(&steps(&[f64::NAN]), &gelora, 2.0, &Limits::default()).unwrap_err().to_string().contains("step 0"));
    assert!(check_rank("q", 5, 4, 8).unwrap_err().to_string().starts_with("module q: the rank must be 1 to 4"));
    assert!(check_rank("q", 0, 4, 8).is_err() && check_rank("q", 4, 4, 8).is_ok());
}

#[test]
fn json_names_are_fixed() {
    let json = |policy: &Policy| serde_json::to_string(policy).unwrap();
    assert_eq!(json(&Policy::default()), r#"{"name":"gelora","rounding":"ceil"}"#);
    assert_eq!(json(&Policy::Uniform { rank: 8 }), r#"{"name":"uniform","rank":8}"#);
    assert_eq!(json(&budget(9)), r#"{"name":"budget","parameters":9,"rounding":"ceil"}"#);
    assert_eq!(json(&Policy::Random { parameters: 9, seed: 1 }), r#"{"name":"random","parameters":9,"seed":1}"#);
    let read = |text: &str| serde_json::from_str::<Policy>(text).unwrap();
    assert_eq!(read(r#"{"name":"gelora"}"#), Policy::default());
    assert_eq!(read(r#"{"name":"fixed","rank":8}"#), Policy::Uniform { rank: 8 });
    assert_eq!(json(&Policy::Plateau { rounding: Rounding::Ceil }), r#"{"name":"plateau","rounding":"ceil"}"#);
    assert_eq!(json(&Policy::Signal { parameters: 9 }), r#"{"name":"signal","parameters":9}"#);
    let prune = Policy::Prune { parameters: 9, trained_rank: 4 };
    assert_eq!(json(&prune), r#"{"name":"prune","parameters":9,"trained_rank":4}"#);
    assert_eq!(read(&json(&prune)), prune);
    for policy in [Policy::default(), Policy::GeloraUpper { rounding: Rounding::Floor }, budget(3)] {
        assert!(json(&policy).contains(&format!("\"{}\"", policy.name())));
    }
    assert_eq!(serde_json::to_string(&Limits::default()).unwrap(), r#"{"min":1}"#);
    assert_eq!(serde_json::from_str::<Limits>(r#"{"min":1}"#).unwrap(), Limits::default());
}

fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (-20.0..20.0f64, 0.0..5.0f64, 1..500usize, 1..200usize);
    let step = step.prop_map(|(delta, more, cost, most)| Step { delta, upper: delta + more, cost, most });
    prop::collection::vec(step, 1..14)
}

proptest! {
    #[test]
    fn gelora_is_one_more_than_the_bound(ids in prop::collection::vec(-1e3..1e3f64, 2..20), ratio in 0.1..10.0f64) {
        let limits = Limits { min: 1, max: 64, multiple: 1 };
        let growth = differences(&ids).unwrap();
        for (got, delta) in assign(&steps(&growth), &Policy::default(), ratio, &limits).unwrap().iter().zip(&growth) {
            prop_assert!((1..=64).contains(&got.rank));
            let excess = got.rank as f64 - delta.max(0.0);
            prop_assert!(got.rank == 64 || (1.0..=2.0).contains(&excess), "{got:?}");
            prop_assert_eq!(got.alpha, ratio * got.rank as f64);
        }
    }

    #[test]
    fn only_differences_matter(ids in prop::collection::vec(-1000..1000i32, 2..20), shift in -10_000..10_000i32) {
        // Multiples of 1/1024 add exactly, so rounding cannot hide a mistake.
        let of = |shift: i32| ids.iter().map(|d| f64::from(d + shift) / 1024.0).collect::<Vec<_>>();
        prop_assert_eq!(ranks(&of(0), Rounding::Ceil), ranks(&of(shift), Rounding::Ceil));
    }

    #[test]
    fn ceil_nearest_floor_in_order(ids in prop::collection::vec(0.0..50.0f64, 2..20)) {
        let [up, near, down] = [Rounding::Ceil, Rounding::Nearest, Rounding::Floor].map(|r| ranks(&ids, r));
        for ((up, near), down) in up.into_iter().zip(near).zip(down) {
            prop_assert!(down <= near && near <= up && up <= down + 1);
        }
    }

    #[test]
    fn a_budget_is_spent_in_proportion(steps in any_steps(), extra in 0..200_000usize) {
        let any = Limits::default();
        let needed = ranks_of(&steps, &Policy::default(), &any);
        let total = parameters(&steps, needed.iter().copied()) + extra;
        let got = ranks_of(&steps, &budget(total), &any);
        let spent = parameters(&steps, got.iter().copied());
        prop_assert!(spent <= total);
        for (s, step) in steps.iter().enumerate() {
            prop_assert!(got[s] >= needed[s] && got[s] <= step.most);
            prop_assert!(got[s] == step.most || spent + step.cost > total, "step {s} could have one more");
            // Whoever could still be paid for is behind no one by more than one rank.
            for t in 0..steps.len() {
                let behind = got[s] < step.most && step.cost <= steps[t].cost;
                let ahead = got[t] > needed[t];
                let by_one = (got[t] - 1) * needed[s] <= got[s] * needed[t];
                prop_assert!(!(behind && ahead) || by_one, "{s} {t} {got:?} {needed:?}");
            }
        }
    }

    #[test]
    fn controls_stay_in_their_budget(steps in any_steps(), extra in 0..50_000usize, seed in any::<u64>()) {
        let any = Limits::default();
        let total = uniform_parameters(&steps, 1) + extra;
        let policy = Policy::Random { parameters: total, seed };
        let got = ranks_of(&steps, &policy, &any);
        prop_assert_eq!(&got, &ranks_of(&steps, &policy, &any));
        let spent = parameters(&steps, got.iter().copied());
        prop_assert!(spent <= total);
        for (rank, step) in got.iter().zip(&steps) {
            prop_assert!((1..=step.most).contains(rank) && (*rank == step.most || spent + step.cost > total));
        }
        let wide: Vec<Step> = steps.iter().map(|s| Step { most: usize::MAX, ..*s }).collect();
        let mut dealt = ranks_of(&wide, &Policy::Shuffled { seed, rounding: Rounding::Ceil }, &any);
        let mut dealt_from = ranks_of(&wide, &Policy::default(), &any);
        dealt.sort_unstable();
        dealt_from.sort_unstable();
        prop_assert_eq!(dealt, dealt_from);
    }

    #[test]
    fn any_growth_gives_ranks_in_the_limits(
        deltas in prop::collection::vec(prop::num::f64::NORMAL, 1..6), min in 1..9usize, multiple in 1..9usize,
    ) {
        let limits = Limits { min, max: min + 20, multiple };
        for rank in ranks_of(&steps(&deltas), &Policy::default(), &limits) {
            prop_assert!((min..=min + 20).contains(&rank) && rank % multiple == 0);
        }
    }
}
