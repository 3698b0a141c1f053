//! Directions of gradients of MiniLM: what sketches find of those of the whole gradients.
#![cfg(feature = "testbed")]
#![allow(clippy::print_stdout)] // differences are worth seeing when a test fails

mod golden;
#[allow(dead_code)] // this test needs little of it
mod subject;

use gelora_model::needs::{GradientOptions, Need, gradient_needs};
use gelora_model::{Event, TokenRows, Tokens};
use golden::Golden;
use subject::Subject;
use subject::minilm::MiniLm;

/// All rows of minilm.golden. Every one is of the second class, so that their gradients have directions in common.
fn rows() -> TokenRows {
    let golden = Golden::open("minilm.golden.safetensors");
    let (ids, types) = (golden.integers("input_ids"), golden.integers("token_type_ids"));
    let row = |(row, length): (usize, u32)| {
        let cut = |values: &[u32]| values[row * 128..][..length as usize].to_vec();
        Tokens { ids: cut(&ids), type_ids: cut(&types), targets: vec![true; length as usize] }
    };
    let tokens: Vec<Tokens> = golden.integers("lengths").into_iter().enumerate().map(row).collect();
    let classes = vec![1; tokens.len()];
    TokenRows::with_classes(tokens, classes)
}

fn needs(options: GradientOptions) -> Vec<Need> {
    let options = GradientOptions { head_epochs: 0.0, ..options };
    gradient_needs(MiniLm::load().task_model(), &rows(), &options, &mut |_: Event<'_>| ()).expect("gradients")
}

#[test]
fn sketches_find_the_directions_of_the_whole_gradients() {
    let options = GradientOptions { width: 32, columns: 44, ..GradientOptions::default() };
    let (sketched, whole) = (needs(GradientOptions { whole: 0, ..options.clone() }), needs(options));
    let (mut first, mut number) = (0.0_f64, 0.0_f64);
    for (sketched, whole) in sketched.iter().zip(&whole) {
        assert!(whole.directions.number > 1.0, "{}: one direction needs no sketch", whole.module);
        let difference = |of: &dyn Fn(&Need) -> f64| (of(sketched) / of(whole) - 1.0).abs();
        first = first.max(difference(&|need| need.directions.values[0]));
        number = number.max(difference(&|need| need.directions.number));
    }
    println!("strongest direction within {first:.1e}, n within {number:.1e}");
    assert!(first < 1e-3 && number < 0.01, "{first} {number}");
}
