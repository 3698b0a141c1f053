//! Compares a tiny random model of every family with transformers and PEFT. `fixtures/families.py` describes the
//! goldens.

#![allow(clippy::print_stdout)] // differences are worth seeing when a test fails

mod golden;

use std::path::PathBuf;

use gelora_kernels::{DType, Rounding, Tensor};
use gelora_lora::Adapter;
use gelora_model::{Batch, CausalLm, Classifier, Grads, Granularity, Mode, Sampling, Targets, Transformer};
use golden::{Golden, assert_close, fixture};

/// Padded length T of the goldens.
const T: usize = 23;

struct Family {
    name: &'static str,
    golden: Golden,
    /// Token ids without padding.
    rows: Vec<Vec<u32>>,
}

impl Family {
    fn open(name: &'static str) -> Self {
        let golden = Golden::open(&format!("families/{name}.golden.safetensors"));
        let (ids, mask) = (golden.integers("input_ids"), golden.integers("attention_mask"));
        let row = |(ids, mask): (&[u32], &[u32])| ids[..mask.iter().sum::<u32>() as usize].to_vec();
        let rows = ids.chunks(T).zip(mask.chunks(T)).map(row).collect();
        Self { name, golden, rows }
    }

    fn folder(&self) -> PathBuf {
        fixture("families").join(self.name)
    }

    fn adapter(&self) -> Adapter {
        Adapter::read(&self.folder().join("adapter")).expect("a PEFT folder")
    }

    fn batch(&self) -> Batch {
        Batch::of_ids(&self.rows).expect("rows are not empty")
    }

    /// A golden of shape (B, T, columns) without its padding.
    fn unpadded(&self, name: &str) -> Vec<f32> {
        let padded = self.golden.floats(name);
        let columns = padded.len() / (self.rows.len() * T);
        let row = |(b, ids): (usize, &Vec<u32>)| padded[b * T * columns..][..ids.len() * columns].to_vec();
        self.rows.iter().enumerate().flat_map(row).collect()
    }

    fn assert_gradients(&self, prefix: &str, grads: &Grads) {
        let keys = self.golden.names(&format!("{prefix}.base_model.model."), ".grad");
        let mut worst = 0.0_f64;
        for key in &keys {
            let name = &key[prefix.len() + ".base_model.model.".len()..key.len() - ".grad".len()];
            let got = grads.get(name).unwrap_or_else(|| panic!("no gradient of {name}")).to_vec().expect("on the CPU");
            let want = self.golden.floats(key);
            let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let whole = norm(&mut want.iter().copied());
            let error = norm(&mut got.iter().zip(&want).map(|(g, w)| g - w));
            // A value added to all keys of a row changes no probability, so the exact gradient of a key bias is 0.
            if whole < 1e-7 {
                assert!(error < 1e-6, "{name}: {error:.1e} where there is no gradient");
                continue;
            }
            worst = worst.max(error / whole);
            assert!(error / whole < 1e-3, "{name}: relative error {:.1e}", error / whole);
        }
        println!("{}: {} gradients of {prefix}, largest relative error {worst:.1e}", self.name, keys.len());
        assert_eq!(grads.len(), keys.len());
    }

    /// Checks the hidden states, for all rows together and for each row alone, and the classifier's logits, loss and
    /// gradients.
    fn check(&self) {
        let model = Transformer::load(&self.folder()).expect("it loads");
        let state = |l: usize| self.unpadded(&format!("hidden_{l}"));
        let states = self.golden.names("hidden_", "").len();
        assert_eq!(states, model.config().layers + 1);
        let mut seen = 0;
        let mut visit = |l: usize, tokens: &Tensor| {
            assert_close(&format!("{} hidden {l}", self.name), tokens.as_slice()?, &state(l), 1e-4);
            seen += 1;
            Ok(())
        };
        model.hidden_states(&self.batch(), Granularity::Block, &mut visit).expect("it runs");
        assert_eq!(seen, states);
        let mut start = 0;
        for ids in &self.rows {
            let compare = |l: usize, tokens: &Tensor| {
                let got = tokens.as_slice()?;
                let c = tokens.cols();
                assert_close(
                    &format!("{} hidden {l} alone", self.name),
                    got,
                    &state(l)[start * c..][..got.len()],
                    1e-4,
                );
                Ok(())
            };
            model.hidden_states(&Batch::of_ids(&[ids]).expect("a row"), Granularity::Block, compare).expect("it runs");
            start += ids.len();
        }

        let adapter = self.adapter();
        let classifier = Classifier::with_adapter(&self.folder(), adapter.clone(), None).expect("it fits");
        let batch = self.batch();
        let logits = classifier.logits(&batch).and_then(|t| Ok(t.to_vec()?)).expect("logits");
        assert_close(&format!("{} logits", self.name), &logits, &self.golden.floats("classify.logits"), 1e-4);
        let labels: Vec<usize> = self.golden.integers("labels").iter().map(|l| *l as usize).collect();
        let train = |mode: &Mode| {
            let mut grads = Grads::new();
            let loss = classifier.backward(&batch, Targets::Classes(&labels), mode, 1.0, &mut grads).expect("backward");
            (loss.item().expect("one value"), grads)
        };
        let (loss, grads) = train(&Mode::inference());
        assert_close("loss", &[loss], &self.golden.floats("classify.loss"), 1e-5);
        self.assert_gradients("classify", &grads);
        // Activation checkpointing changes no bit of the gradients.
        let bits = |grads: &Grads| {
            grads.values().flat_map(|t| t.to_vec().expect("on the CPU")).map(f32::to_bits).collect::<Vec<_>>()
        };
        assert_eq!(bits(&train(&Mode::training(1, 2)).1), bits(&train(&Mode::training(1, 2).recomputing()).1));
        // A written adapter can be read again.
        let folder = tempfile::tempdir().expect("a folder");
        classifier.adapter(adapter.config.clone()).write(folder.path()).expect("it can be written");
        let again = Adapter::read(folder.path()).expect("a PEFT folder");
        assert_eq!(again.saved.keys().collect::<Vec<_>>(), adapter.saved.keys().collect::<Vec<_>>());
        // A merged model computes the same without the adapter.
        classifier.write_merged(&self.folder(), folder.path()).expect("it merges");
        let merged = Classifier::load(folder.path(), None).expect("a whole model");
        let merged_logits = merged.logits(&batch).and_then(|t| Ok(t.to_vec()?)).expect("logits");
        // If the weights have bf16 values, the merged weights are rounded to bf16.
        let rounds = model.linears().any(|l| l.weight.tensor().dtype().unquantized() == DType::Bf16);
        assert_close(&format!("{} merged", self.name), &merged_logits, &logits, if rounds { 5e-2 } else { 1e-4 });
    }

    /// Checks logits, loss and gradients of the language model, and greedy generation.
    fn check_lm(&self) {
        let mut adapter = self.adapter();
        adapter.saved.clear();
        let lm = CausalLm::with_adapter(&self.folder(), adapter).expect("it fits");
        let batch = self.batch();
        let rows: Vec<usize> = (0..batch.ids().len()).collect();
        let logits = lm.logits(&batch, &rows).and_then(|t| Ok(t.to_vec()?)).expect("logits");
        assert_close(&format!("{} lm logits", self.name), &logits, &self.unpadded("lm.logits"), 1e-4);
        let targets = vec![true; rows.len()];
        let mut grads = Grads::new();
        let loss = lm.backward(&batch, &targets, &Mode::inference(), 1.0, &mut grads).expect("backward");
        let loss = loss.item().expect("one value");
        assert_close("lm loss", &[loss], &self.golden.floats("lm.loss"), 1e-5);
        self.assert_gradients("lm", &grads);
        let (sum, n) = lm.loss(&batch, &targets).expect("a loss");
        assert!((sum / n as f64 - f64::from(loss)).abs() < 1e-5, "{sum} / {n}, {loss}");

        let base = CausalLm::load(&self.folder()).expect("it loads");
        let generated = base.generate(&self.rows[1], 40, Sampling::default(), &[], |_| true).expect("it generates");
        assert_eq!(generated, self.golden.integers("lm.greedy"), "{}", self.name);
        let stopped =
            base.generate(&self.rows[1], 40, Sampling::default(), &generated[3..4], |_| true).expect("it generates");
        let first = generated.iter().position(|token| *token == generated[3]).expect("it is there");
        assert_eq!(stopped, generated[..first]);
    }
}

/// Weights in 4-bit blocks stay quantized. Weights whose rows are not whole blocks are decoded to the type of their
/// values.
#[test]
fn weights_of_bitsandbytes_stay_quantized() {
    let types = |name: &str| {
        let model = Transformer::load(&fixture("families").join(name)).expect("it loads");
        let dtypes = |end: &str| {
            let mut found = model.linears().filter(|l| l.name.ends_with(end)).map(|l| l.weight.tensor().dtype());
            (found.next(), found.next())
        };
        [dtypes("q_proj"), dtypes("down_proj")]
    };
    let both = |dtype| (Some(dtype), Some(dtype));
    assert_eq!(types("llama-nf4"), [both(DType::Nf4(Rounding::Bf16)), both(DType::Bf16)]);
    assert_eq!(types("qwen2-fp4"), [both(DType::Fp4(Rounding::F32)), both(DType::F32)]);
}

macro_rules! families {
    ($($test:ident: $name:literal $($lm:ident)?;)*) => {
        $(
            #[test]
            fn $test() {
                let family = Family::open($name);
                family.check();
                $(family.$lm();)?
            }
        )*
    };
}

families! {
    bert: "bert";
    roberta: "roberta";
    xlm_roberta: "xlm-roberta";
    distilbert: "distilbert";
    mpnet: "mpnet";
    deberta_v3: "deberta";
    deberta_v2_with_a_convolution: "deberta-conv";
    gpt2: "gpt2" check_lm;
    llama: "llama" check_lm;
    llama_with_tied_embeddings_and_llama3_rope: "llama-tied" check_lm;
    llama_with_linear_rope: "llama-linear" check_lm;
    mistral: "mistral" check_lm;
    qwen2: "qwen2" check_lm;
    qwen3_with_yarn_rope: "qwen3" check_lm;
    gemma3: "gemma3" check_lm;
    llama_in_nf4_with_quantized_scales: "llama-nf4" check_lm;
    qwen2_in_fp4: "qwen2-fp4" check_lm;
}
