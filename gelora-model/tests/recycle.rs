//! Training steps reuse the memory of earlier steps. The test has its own file because the counts are those of a
//! process.

use std::path::Path;

use gelora_kernels::recycle;
use gelora_lora::Adapter;
use gelora_model::optim::Optimizer;
use gelora_model::{Batch, Classifier, Grads, Mode, Targets};

#[test]
fn after_a_few_steps_no_large_buffer_is_allocated() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    let adapter = Adapter::read(&fixtures.join("tiny-bert-peft")).expect("a PEFT folder");
    let mut classifier = Classifier::with_adapter(&fixtures.join("tiny-bert"), adapter, None).expect("it fits");
    let mut optimizer = Optimizer::default();
    // The model has 32 channels for each token, so only large batches have large buffers.
    let mut step = |step: usize| {
        let rows = [80, 64, 77, 51, 70][step % 5];
        let sequences: Vec<_> = (0..rows).map(|i| (vec![5 + i as u32 % 50; 12 + i % 9], vec![0; 12 + i % 9])).collect();
        let labels: Vec<usize> = (0..rows).map(|i| i % 3).collect();
        let batch = Batch::new(&sequences).expect("a batch");
        let (mode, mut grads) = (Mode::training(1, step as u64), Grads::new());
        classifier.backward(&batch, Targets::Classes(&labels), &mode, 1.0, &mut grads).expect("backward");
        optimizer.step(classifier.parameters_mut(), &grads, 1e-3).expect("a step");
        recycle::stats()
    };
    let first = step(0);
    assert!(first.fresh > 10, "{first:?}");
    let warm = (1..5).map(&mut step).last().expect("a step");
    let last = (5..25).map(&mut step).last().expect("a step");
    assert_eq!(last.fresh, warm.fresh);
    assert!(last.reused > warm.reused + 20 * 10, "{warm:?} {last:?}");
    recycle::clear();
    assert_eq!(recycle::stats().kept_bytes, 0);
}
