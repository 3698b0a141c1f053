//! Compares AdaLoRA with PEFT, on a language model and on MiniLM. `fixtures/adalora.py` describes the goldens.

#![allow(clippy::print_stdout)] // differences are worth seeing when a test fails

mod golden;
mod subject;

use gelora_kernels::Tensor;
use gelora_kernels::ops::adamw::{AdamW, Clip};
use gelora_lora::Adapter;
use gelora_model::adalora::{AdaLora, RankAllocator};
use gelora_model::optim::Optimizer;
use golden::{Golden, assert_close, fixture};
use subject::{Llama, Subject, compare_gradients};

const CLIP: f32 = 0.5;

fn goldens() -> Golden {
    Golden::open("adalora.golden.safetensors")
}

fn check<S: Subject>() {
    let (golden, name) = (goldens(), S::NAME);
    let config = gelora_lora::AdapterConfig { r: 4, ..S::config() }.with_adalora();
    let mut subject = S::load();
    subject.add_adapters(&config);
    let plain = S::load().logits();
    assert_close("new adapters", &subject.logits(), &plain, 1e-6);
    for (parameter, tensor) in subject.parameters_mut() {
        *tensor = Tensor::from_vec(golden.floats(&format!("{name}.{parameter}")), tensor.shape()).expect("its shape");
    }
    // The modules begin with 4 ranks and keep 2 on average, after steps 4, 6 and 7.
    let modules = golden.names(&format!("{name}."), ".lora_E").len();
    let options = AdaLora { t_init: 2.0, t_final: 3.0, interval: 2, ..AdaLora::default() };
    let mut allocator = RankAllocator::new(options, 10, 4 * modules, 2 * modules).expect("steps are left");
    let mut optimizer = Optimizer::new(AdamW::default(), Some(f64::from(CLIP)));
    let mut losses = Vec::new();
    for step in 1..=10 {
        let (loss, mut grads) = subject.backward();
        let (penalties, weight) = allocator.add_penalty(subject.parameters_mut(), &mut grads).expect("a penalty");
        let sum: f32 = penalties.iter().map(|penalty| penalty.item().expect("a value")).sum();
        losses.push(loss + weight as f32 * sum);
        if step == 1 {
            // The loss is that with its penalty.
            assert_close(&format!("{name} loss"), &losses, &goldens().floats(&format!("{name}.loss")), 1e-5);
            compare_gradients(&grads, &goldens(), &format!("{name}."));
        }
        let norm = optimizer.step(subject.parameters_mut(), &grads, 0.05).expect("a step");
        let clip = Clip { norm: &norm, max_norm: CLIP };
        allocator.after_step(step, subject.parameters_mut(), &grads, clip).expect("ranks are chosen");
    }
    assert_close(&format!("{name} losses"), &losses, &golden.floats(&format!("{name}.adamw_losses")), 1e-4);
    // The same triplets are kept.
    let mut kept = Vec::new();
    let mut parameters = subject.parameters_mut();
    parameters.retain(|(parameter, _)| parameter.ends_with(".lora_E"));
    parameters.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (_, tensor) in parameters {
        kept.extend(tensor.to_vec().expect("on the CPU").iter().map(|value| f32::from(u8::from(*value != 0.0))));
    }
    assert_eq!(kept, golden.floats(&format!("{name}.kept")));
    assert_eq!(kept.iter().sum::<f32>(), 2.0 * modules as f32);
    assert_logits(&subject, 1e-3);
    // The folder holds a plain adapter of the ranks that are left.
    let folder = tempfile::tempdir().expect("a folder");
    let adapter = subject.adapter(config);
    adapter.write(folder.path()).expect("it can be written");
    let plain = Adapter::read(folder.path()).expect("a PEFT folder");
    let ranks: Vec<usize> = plain.layers.values().map(gelora_lora::LoraLayer::rank).collect();
    let left: Vec<usize> = kept.chunks(4).map(|kept| kept.iter().sum::<f32>() as usize).filter(|r| *r > 0).collect();
    assert_eq!(ranks, left);
    assert_close("plain", &S::with_adapter(&S::base(), plain).logits(), &subject.logits(), 1e-5);
    // So does PEFT's, in its own form.
    let theirs = Adapter::read(&fixture("adalora").join(name)).expect("a PEFT folder");
    let theirs = S::with_adapter(&S::base(), theirs);
    assert_logits(&theirs, 1e-5);
    // Merged models compute the same.
    for subject in [&subject, &theirs] {
        let folder = tempfile::tempdir().expect("a folder");
        subject.write_merged(folder.path());
        assert_close(&format!("{name} merged"), &S::whole(folder.path()).logits(), &subject.logits(), 1e-5);
    }
}

fn assert_logits<S: Subject>(subject: &S, bound: f32) {
    let name = format!("{}.logits", S::NAME);
    assert_close(&name, &subject.logits(), &goldens().floats(&name), bound);
}

#[test]
fn adalora_matches_peft() {
    check::<Llama>();
}

#[cfg(feature = "testbed")]
#[test]
fn adalora_matches_peft_on_minilm() {
    check::<subject::minilm::MiniLm>();
}
