//! Ranks of single modules beside measured dimensions: what the policies gradient, signal, eva and prune give and
//! refuse.

mod golden;

use std::cell::RefCell;

use gelora_lora::ranks::{Limits, Policy};
use gelora_model::measure::{
    Budget, ModuleRanks, PolicyChoice, Ranks, measure_points, measure_points_with, pooled_states,
};
use gelora_model::needs::module_ranks;
use gelora_model::{Classifier, Event, MeasureOptions, TaskModel, TokenRows, Tokens, Transformer, measure};
use golden::fixture;

fn model() -> TaskModel {
    Classifier::load(&fixture("tiny-bert"), None).expect("a model with a head").into()
}

/// Rows of two classes, told apart by their first token.
fn rows() -> (Vec<Tokens>, TokenRows) {
    let row = |i: u32| Tokens::of_ids(vec![6 + i % 2, 8 + i % 31, 9 + i * 5 % 29, 7 + i * 3 % 23, 11 + i % 7]);
    let tokens: Vec<Tokens> = (0..48).map(row).collect();
    (tokens.clone(), TokenRows::with_classes(tokens, (0..48).map(|i| i % 2).collect()))
}

fn options(policy: PolicyChoice) -> MeasureOptions {
    MeasureOptions { policy, ..MeasureOptions::default() }
}

fn found(options: &MeasureOptions) -> ModuleRanks {
    module_ranks(model(), &rows().1, options, &mut |_: Event<'_>| ()).expect("ranks of modules")
}

#[test]
fn ranks_of_modules_stand_beside_dimensions() {
    let transformer = Transformer::load(&fixture("tiny-bert")).expect("a model");
    let tokens = rows().0;
    let budget = Budget::UniformRank(3);
    let of_gradients = [PolicyChoice::Gradient(budget), PolicyChoice::Signal(budget)];
    for choice in of_gradients.into_iter().chain([PolicyChoice::Eva(budget), PolicyChoice::Prune(budget)]) {
        let options = options(choice);
        let found = found(&options);
        let points = pooled_states(&transformer, &tokens, &options, &mut |_: Event<'_>| ()).expect("points");
        let with = |modules: Option<&ModuleRanks>, options: &MeasureOptions| {
            measure_points_with(&transformer, points.clone(), modules, options, &mut |_: Event<'_>| ())
        };
        let ranks: Ranks = with(Some(&found), &options).expect("ranks");
        assert_eq!(ranks.modules, found.modules);
        assert_eq!(ranks.policy.policy, found.policy);
        // All modules have one size: 12 of 64 parameters a rank.
        assert_eq!(ranks.parameters, 3 * 12 * 64);
        assert_eq!(ranks.modules.values().map(|module| module.rank.rank).sum::<usize>(), 3 * 12);
        // The dimensions are those of any other policy.
        let gelora =
            measure_points(&transformer, points.clone(), &self::options(PolicyChoice::Gelora), &mut |_: Event<'_>| ())
                .expect("ranks");
        for (ours, gelora) in ranks.layers.iter().zip(&gelora.layers) {
            assert_eq!((ours.delta, ours.interval), (gelora.delta, gelora.interval));
            assert!(ours.mean_rank.is_some() && gelora.mean_rank.is_none());
            assert_eq!(ours.directions.is_some(), of_gradients.contains(&choice));
        }
        // Without them, with those of another policy, or with resamples of dimensions there are no ranks.
        let error = with(None, &options).expect_err("no ranks of modules").to_string();
        assert!(error.contains("needs ranks of single modules"), "{error}");
        let error = measure(&transformer, &tokens, &options, &mut |_: Event<'_>| ()).expect_err("no ranks of modules");
        assert!(error.to_string().contains("needs ranks of single modules"), "{error}");
        let other = self::options(PolicyChoice::Gradient(Budget::UniformRank(4)));
        assert!(with(Some(&found), &other).expect_err("another policy").to_string().contains("expected those by"));
        let resampled = MeasureOptions { resamples: 5, ..options.clone() };
        assert!(with(Some(&found), &resampled).expect_err("resamples").to_string().contains("resamples 0"));
    }
    let error = module_ranks(model(), &rows().1, &options(PolicyChoice::Gelora), &mut |_: Event<'_>| ());
    assert!(error.expect_err("of steps").to_string().contains("gelora gives no ranks to single modules"));
}

#[test]
fn a_cut_is_of_a_training_within_limits_and_memory() {
    let prune = |budget: usize, limits: Limits, batch_size: usize| {
        let options = MeasureOptions { limits, batch_size, ..options(PolicyChoice::Prune(Budget::Parameters(budget))) };
        let (said, steps) = (RefCell::new(String::new()), RefCell::new(0));
        let found = module_ranks(model(), &rows().1, &options, &mut |event: Event<'_>| match event {
            Event::Remark(text) => said.borrow_mut().push_str(text),
            Event::Step(_) => *steps.borrow_mut() += 1,
            _ => {}
        })
        .expect("ranks of modules");
        // Three epochs of 48 rows, 32 a step, whatever fits into memory at once.
        assert_eq!(steps.into_inner(), 5);
        let ranks: Vec<usize> = found.modules.values().map(|module| module.rank.rank).collect();
        let Policy::Prune { trained_rank, .. } = found.policy else { panic!("{:?}", found.policy) };
        assert!(said.into_inner().contains(&format!("uniform rank {trained_rank}")));
        (trained_rank, ranks)
    };
    let one = 12 * 64;
    let (trained, ranks) = prune(2 * one + 63, Limits::default(), 32);
    assert_eq!((trained, ranks.iter().sum::<usize>()), (8, 24), "63 parameters buy nothing");
    assert!(ranks.iter().all(|rank| (1..=8).contains(rank)) && ranks.iter().any(|rank| *rank != 2), "{ranks:?}");
    // Smaller parts of a step draw other dropout masks, so the ranks are not the same.
    let (trained, in_parts) = prune(2 * one, Limits::default(), 7);
    assert_eq!((trained, in_parts.iter().sum::<usize>()), (8, 24));
    let (trained, ranks) = prune(2 * one, Limits { min: 2, max: 6, multiple: 2 }, 32);
    assert_eq!((trained, ranks), (6, vec![2; 12]));
    let options = options(PolicyChoice::Prune(Budget::Parameters(one - 1)));
    let error = module_ranks(model(), &rows().1, &options, &mut |_: Event<'_>| ()).expect_err("too small");
    assert!(error.to_string().contains("take 768 parameters, but the budget is 767"), "{error}");
}
