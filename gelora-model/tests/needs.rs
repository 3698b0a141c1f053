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

fn needs(width: usize) -> Vec<Need> {
    let options = GradientOptions { width, head_epochs: 0.0, ..GradientOptions::default() };
    gradient_needs(MiniLm::load().task_model(), &rows(), &options, &mut |_: Event<'_>| ()).expect("gradients")
}

/// The strongest direction is the same within 6 %. A sketch of 64 columns misses some of the weakest directions, so n is
/// lower: by 8 % in the mean, and by a quarter in the worst module of these rows, which have little noise.
#[test]
fn sketches_find_the_directions_of_the_whole_gradients() {
    // Two bases of 192 columns hold all 384 outputs of a module.
    let (sketched, whole) = (needs(64), needs(192));
    let modules = whole.len() as f64;
    let (mut first, mut number, mut numbers) = (0.0_f64, [0.0_f64; 2], 0.0);
    for (sketched, whole) in sketched.iter().zip(&whole) {
        let (n, want) = (sketched.directions.number, whole.directions.number);
        assert!(want > 1.0, "{}: one direction needs no sketch", whole.module);
        let strongest = |need: &Need| need.directions.values[0];
        first = first.max((strongest(sketched) / strongest(whole) - 1.0).abs());
        number = [number[0].min(n / want - 1.0), number[1].max(n / want - 1.0)];
        numbers += (n / want - 1.0) / modules;
    }
    println!(
        "strongest direction within {first:.1e}; n from {:+.3} to {:+.3}, mean {numbers:+.3}",
        number[0], number[1]
    );
    assert!(first < 0.08, "{first}");
    assert!(number[0] > -0.3 && number[1] < 0.05 && numbers > -0.12, "{number:?} {numbers}");
}
