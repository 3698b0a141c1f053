//! Adapters beyond plain LoRA, compared with transformers and PEFT. `fixtures/adapters.py` describes the goldens.

mod golden;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gelora_kernels::random::Stream;
use gelora_kernels::{DType, Device, Tensor};
use gelora_lora::cut::Update;
use gelora_lora::files::{read_tensors, write_tensors};
use gelora_lora::{Adapter, AdapterConfig, LoraLayer, Names};
use gelora_model::needs::{GradientOptions, gradient_needs};
use gelora_model::{
    AdapterTask, Batch, CausalLm, Classifier, Error, Event, Grads, Granularity, Mode, Targets, Task, TokenRows, Tokens,
    Transformer, read_adapter,
};
use golden::{Golden, assert_close, fixture};
use serde_json::{Value, json};

fn goldens() -> Golden {
    Golden::open("adapters.golden.safetensors")
}

fn rows() -> Vec<Vec<u32>> {
    let (ids, lengths) = (goldens().integers("ids"), goldens().integers("lengths"));
    ids.chunks(ids.len() / lengths.len()).zip(lengths).map(|(row, n)| row[..n as usize].to_vec()).collect()
}

fn batch() -> Batch {
    Batch::of_ids(&rows()).expect("rows are not empty")
}

fn adapter(name: &str) -> Adapter {
    read_adapter(&fixture("adapters").join(name)).expect("a PEFT folder")
}

fn family(name: &str) -> PathBuf {
    fixture("families").join(name)
}

fn expect(name: &str, got: &[f32]) {
    assert_close(name, got, &goldens().floats(name), 1e-4);
}

fn logits(classifier: &Classifier) -> Vec<f32> {
    classifier.logits(&batch()).and_then(|t| Ok(t.to_vec()?)).expect("logits")
}

fn lm_logits(lm: &CausalLm) -> Vec<f32> {
    let rows: Vec<usize> = (0..batch().ids().len()).collect();
    lm.logits(&batch(), &rows).and_then(|t| Ok(t.to_vec()?)).expect("logits")
}

fn last_states(model: &Transformer) -> Vec<f32> {
    let mut last = Vec::new();
    let visit = |_: usize, state: &Tensor| {
        last = state.to_vec()?;
        Ok(())
    };
    model.hidden_states(&batch(), Granularity::Block, visit).expect("hidden states");
    last
}

/// Copies a family's folder and changes values in config.json.
fn with_config(name: &str, changes: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    copy(&family(name), folder.path(), changes);
    folder
}

fn copy(from: &Path, to: &Path, changes: &[(&str, Value)]) {
    std::fs::copy(from.join("model.safetensors"), to.join("model.safetensors")).expect("a copy");
    let mut config = config_of(from);
    for (key, value) in changes {
        config[key] = value.clone();
    }
    std::fs::write(to.join("config.json"), config.to_string()).expect("a config");
}

fn config_of(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).expect("a config")).expect("JSON")
}

/// Compares the classifier of an adapter with PEFT's, and the merged model too.
fn check_classifier(golden: &str, base: &Path, adapter: Adapter) -> tempfile::TempDir {
    let classifier = Classifier::with_adapter(base, adapter.clone(), None).expect("it fits");
    expect(golden, &logits(&classifier));
    let again = classifier.adapter(adapter.config.clone());
    assert!(adapter.saved.keys().all(|name| again.saved.contains_key(name)), "{golden}: nothing trained is lost");
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(classifier.write_merged(base, folder.path()).expect("it merges"), [""; 0]);
    expect(golden, &logits(&Classifier::load(folder.path(), None).expect("a whole model")));
    folder
}

#[test]
fn modules_that_an_adapter_saves_replace_those_of_the_base_model() {
    check_classifier("bert-saved.logits", &family("bert"), adapter("bert-saved"));
    check_classifier("llama-saved.logits", &family("llama"), adapter("llama-saved"));
    for name in ["tied-words", "tied-both", "tied-head"] {
        let (base, golden) = (family("llama-tied"), format!("{name}.logits"));
        let lm = CausalLm::with_adapter(&base, adapter(name)).expect("it fits");
        expect(&golden, &lm_logits(&lm));
        let folder = tempfile::tempdir().expect("a folder");
        lm.write_merged(&base, folder.path()).expect("it merges");
        let merged = CausalLm::load(folder.path()).expect("a whole model");
        expect(&golden, &lm_logits(&merged));
        assert_eq!(config_of(folder.path())["tie_word_embeddings"], false, "{name}: the head has its own values");
        assert!(merged.remarks().is_empty());
    }
}

#[test]
fn tensors_that_an_adapter_saves_must_exist_in_the_model_and_fit() {
    let fails = |name: &str, shape: [usize; 2]| {
        let mut adapter = adapter("bert-saved");
        adapter.saved.insert(name.into(), Tensor::from_vec(vec![0.0; shape[0] * shape[1]], shape).expect("zeros"));
        match Classifier::with_adapter(&family("bert"), adapter, None) {
            Err(Error::Value(problem)) => problem,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{name} was taken"),
        }
    };
    assert_eq!(
        fails("bert.pooler.other.weight", [2, 2]),
        "the adapter saves bert.pooler.other.weight, which a sequence classifier does not have"
    );
    let problem = fails("bert.pooler.dense.weight", [32, 31]);
    assert!(
        problem.contains("saves bert.pooler.dense.weight with the shape [32, 31]; the model has [32, 32]"),
        "{problem}"
    );
}

#[test]
fn parts_of_a_head_that_an_adapter_lacks_come_from_the_base_model() {
    let base = tempfile::tempdir().expect("a folder");
    let whole = Adapter::read(&family("roberta").join("adapter")).expect("a PEFT folder");
    let classifier = Classifier::with_adapter(&family("roberta"), whole, None).expect("it fits");
    classifier.write_merged(&family("roberta"), base.path()).expect("it merges");
    check_classifier("roberta-part.logits", base.path(), adapter("roberta-part"));
    // On a model without a head, the other half of the head is missing.
    let error = Classifier::with_adapter(&family("roberta"), adapter("roberta-part"), None).expect_err("no head");
    let problem = error.to_string();
    assert!(
        problem
            .starts_with("neither the adapter nor the base model has classifier.dense.weight, classifier.dense.bias;"),
        "{problem}"
    );
}

#[test]
fn an_adapter_without_a_task_takes_that_of_its_base_model() {
    let task = |adapter: &Adapter, base: &str| AdapterTask::of(adapter, &family(base)).map_err(|e| e.to_string());
    let null = adapter("gpt2-null");
    assert_eq!(task(&null, "gpt2"), Ok(AdapterTask::CausalLm));
    let lm = CausalLm::with_adapter(&family("gpt2"), null.clone()).expect("it fits");
    expect("gpt2-null.logits", &lm_logits(&lm));
    assert_eq!(task(&adapter("roberta-part"), "roberta"), Ok(AdapterTask::SequenceClassification));
    assert_eq!(task(&adapter("features"), "bert"), Ok(AdapterTask::Features));

    // If the class is missing too, the names and the base model determine the task.
    let mut without_class = null;
    without_class.config.other.remove("auto_mapping");
    assert_eq!(task(&without_class, "gpt2"), Ok(AdapterTask::CausalLm));
    for (class, expected) in
        [("GPT2ForSequenceClassification", AdapterTask::SequenceClassification), ("GPT2Model", AdapterTask::CausalLm)]
    {
        let base = with_config("gpt2", &[("architectures", json!([class]))]);
        assert_eq!(AdapterTask::of(&without_class, base.path()).expect("a task"), expected, "{class}");
    }
    without_class.config.other.insert("auto_mapping".into(), json!({"base_model_class": "GPT2ForTokenClassification"}));
    assert!(
        task(&without_class, "gpt2")
            .is_err_and(|problem| problem.contains("base_model_class is \"GPT2ForTokenClassification\""))
    );
    without_class.config.task_type = Some("TOKEN_CLS".into());
    let problem = task(&without_class, "gpt2").expect_err("no such task");
    let expected = "adapter_config.json: task_type is \"TOKEN_CLS\", which is not supported; expected SEQ_CLS, \
                    CAUSAL_LM or FEATURE_EXTRACTION";
    assert_eq!(problem, expected);
}

#[test]
fn an_adapter_of_a_model_without_a_head_merges_into_such_a_model() {
    let base = family("bert");
    let model = Transformer::with_adapter(&base, adapter("features")).expect("it fits");
    expect("features.last", &last_states(&model));
    let folder = tempfile::tempdir().expect("a folder");
    model.write_merged(&base, folder.path()).expect("it merges");
    expect("features.last", &last_states(&Transformer::load(folder.path()).expect("a whole model")));
    assert_eq!(config_of(folder.path())["architectures"], json!(["BertModel"]));
    let tensors = read_tensors(&folder.path().join("model.safetensors"), |_| true).expect("tensors");
    assert!(tensors.contains_key("encoder.layer.0.attention.self.key.weight"), "{:?}", tensors.keys());
}

#[test]
fn an_adapter_in_a_pickle_is_read() {
    check_classifier("pickled.logits", &family("bert"), adapter("pickled"));
}

#[test]
fn the_classifier_of_a_decoder_reads_the_last_token_that_is_not_padding() {
    let adapter = || Adapter::read(&family("llama").join("adapter")).expect("a PEFT folder");
    for (name, pad) in [("pad.3.logits", json!(3)), ("pad.1.logits", json!(1)), ("pad.none.logits", json!(null))] {
        let base = with_config("llama", &[("pad_token_id", pad)]);
        check_classifier(name, base.path(), adapter());
    }
}

#[test]
fn roberta_positions_skip_the_padding_token() {
    let model = with_config("roberta", &[("pad_token_id", json!(5))]);
    let model = Transformer::load(model.path()).expect("it loads");
    assert_eq!(model.config().max_positions, 34);
    expect("roberta-pad.last", &last_states(&model));
}

#[test]
fn a_head_with_different_values_is_not_tied() {
    let untied = CausalLm::load(&family("llama")).expect("it loads");
    let base = with_config("llama", &[("tie_word_embeddings", json!(true))]);
    let lm = CausalLm::load(base.path()).expect("it loads");
    assert_close("logits", &lm_logits(&lm), &lm_logits(&untied), 0.0);
    assert!(lm.remarks()[0].contains("tie_word_embeddings") && untied.remarks().is_empty());
    let folder = tempfile::tempdir().expect("a folder");
    lm.write_merged(base.path(), folder.path()).expect("it is written");
    let again = CausalLm::load(folder.path()).expect("it loads");
    assert_close("logits", &lm_logits(&again), &lm_logits(&untied), 0.0);
    assert!(again.remarks().is_empty());

    // A head with the same values is tied, as in every .bin file of a tied model.
    let file = base.path().join("model.safetensors");
    let mut tensors = read_tensors(&file, |_| true).expect("tensors");
    tensors.insert("lm_head.weight".into(), tensors["model.embed_tokens.weight"].clone());
    write_tensors(&file, tensors.iter().map(|(name, t)| (name.as_str(), t))).expect("a file");
    assert!(CausalLm::load(base.path()).expect("it loads").remarks().is_empty());
}

#[test]
fn a_merged_model_that_f16_cannot_hold_is_written_in_f32() {
    let base = with_config("llama", &[("dtype", json!("float16"))]);
    let file = base.path().join("model.safetensors");
    let half = |(name, t): (String, Tensor)| (name, t.to_dtype(DType::F16).expect("f16"));
    let tensors: Vec<_> = read_tensors(&file, |_| true).expect("tensors").into_iter().map(half).collect();
    write_tensors(&file, tensors.iter().map(|(name, t)| (name.as_str(), t))).expect("a file");
    let mut adapter = Adapter::read(&family("llama").join("adapter")).expect("a PEFT folder");
    adapter.saved.clear();
    let merged = |adapter: Adapter| {
        let folder = tempfile::tempdir().expect("a folder");
        let lm = CausalLm::with_adapter(base.path(), adapter).expect("it fits");
        let remarks = lm.write_merged(base.path(), folder.path()).expect("it merges");
        let tensors = read_tensors(&folder.path().join("model.safetensors"), |_| true).expect("tensors");
        (remarks, tensors, config_of(folder.path())["dtype"].clone())
    };
    let (remarks, tensors, dtype) = merged(adapter.clone());
    assert!(remarks.is_empty() && dtype == "float16" && tensors.values().all(|t| t.dtype() == DType::F16));
    let name = "model.layers.1.mlp.up_proj";
    let layer: &mut LoraLayer = adapter.layers.get_mut(name).expect("it is adapted");
    layer.scaling = 1e6;
    let (remarks, tensors, dtype) = merged(adapter);
    assert!(
        remarks.len() == 1 && remarks[0].starts_with(&format!("{name}.weight have merged values beyond 65504")),
        "{remarks:?}"
    );
    assert!(dtype == "float32" && tensors.values().all(|t| t.dtype() == DType::F32));
    let largest =
        tensors[&format!("{name}.weight")].to_vec().expect("values").into_iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert!(largest > 65504.0 && largest.is_finite(), "{largest}");
}

/// An adapter does not tell whether classes exclude each other; the base model's config.json does.
#[test]
fn a_merged_classifier_keeps_the_task_of_the_base_model_unless_another_was_trained() {
    let base = with_config(
        "bert",
        &[("problem_type", json!("multi_label_classification")), ("id2label", json!({"0": "a", "1": "b", "2": "c"}))],
    );
    let adapter = || Adapter::read(&family("bert").join("adapter")).expect("a PEFT folder");
    let merged = |task: Option<Task>| {
        let folder = tempfile::tempdir().expect("a folder");
        let classifier = Classifier::with_adapter(base.path(), adapter(), task).expect("it fits");
        classifier.write_merged(base.path(), folder.path()).expect("it merges");
        let config = config_of(folder.path());
        (config["problem_type"].clone(), config["id2label"]["2"].clone())
    };
    assert_eq!(merged(None), (json!("multi_label_classification"), json!("c")));
    let labels = ["x", "y", "z"].map(String::from).to_vec();
    assert_eq!(merged(Some(Task::Classification { labels })), (json!("single_label_classification"), json!("z")));
}

/// Rows that are all the same have one gradient, whose directions replicate whole: they are its singular values.
#[test]
fn directions_of_equal_rows_are_the_singular_values_of_their_gradient() {
    let plain = || Classifier::load(&fixture("tiny-bert"), None).expect("a model with a head");
    let row: Vec<u32> = (6..14).collect();
    let (copies, label) = (12, 1);
    let same = TokenRows::with_classes(vec![Tokens::of_ids(row.clone()); copies], vec![label; copies]);

    // The whole gradient: with A = 1 and B = 0, that of B is G; with B = 1 and A = 0, where there are more inputs, that
    // of A.
    let mut dense = plain();
    let (size, names) = (dense.transformer().config().hidden, ["query", "intermediate.dense", "output.dense"]);
    let names = names.map(String::from).to_vec();
    let config = AdapterConfig {
        r: size,
        lora_alpha: size as f64,
        task_type: Some("SEQ_CLS".into()),
        target_modules: Some(Names::List(names.clone())),
        ..AdapterConfig::default()
    };
    dense.add_adapters(&config, 1).expect("they fit");
    let one: Vec<f32> = (0..size * size).map(|i| f32::from(u8::from(i % (size + 1) == 0))).collect();
    let one = || Tensor::from_vec(one.clone(), [size, size]).expect("a matrix");
    let mut wide = BTreeSet::new();
    for (parameter, tensor) in dense.parameters_mut() {
        // A comes before B.
        if let Some(module) = parameter.strip_suffix(".lora_A.weight") {
            let is_square = tensor.cols() == size;
            *tensor = if is_square { one() } else { Tensor::zeros(tensor.shape(), &Device::Cpu).expect("zeros") };
            wide.extend((!is_square).then(|| module.to_owned()));
        } else if parameter.strip_suffix(".lora_B.weight").is_some_and(|module| wide.contains(module)) {
            *tensor = one();
        }
    }
    let mut grads = Grads::new();
    let batch = Batch::of_ids(&[row]).expect("a row");
    dense.backward(&batch, Targets::Classes(&[label]), &Mode::inference(), 1.0, &mut grads).expect("backward");
    let values = |module: &str| {
        let (a, b) = match wide.contains(module) {
            true => (grads[&format!("{module}.lora_A.weight")].clone(), one()),
            false => (one(), grads[&format!("{module}.lora_B.weight")].clone()),
        };
        let layer = LoraLayer { a, b, scaling: 1.0, dropout: 0.0, magnitude: None, initial: None, singular: None };
        Update::of(&layer).expect("a decomposition").values
    };

    // Exact, and by bases of 10 columns.
    for width in [size, 10] {
        let options = GradientOptions {
            target_modules: names.clone(),
            width,
            columns: width,
            whole: if width == size { size } else { 0 },
            parts: 3,
            head_epochs: 0.0,
            batch_size: 2,
            ..GradientOptions::default()
        };
        let found = gradient_needs(plain().into(), &same, &options, &mut |_: Event<'_>| ()).expect("it runs");
        assert!(found.len() > 3 && !wide.is_empty());
        for need in found {
            let want = values(&need.module);
            let (largest, got) = (want[0], &need.directions.values);
            assert!(!got.is_empty(), "{need:?}");
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() < 1e-3 * largest, "{}: {got} beside {want}, width {width}", need.module);
            }
            // Eight tokens have eight directions. Of 10 directions the first half can be found.
            let squares = |all: &[f64]| all.iter().map(|value| value * value).sum::<f64>();
            let share = squares(got) / squares(&want);
            assert!(share > if width == size { 0.999 } else { 0.6 }, "{}: {got:?} beside {want:?}", need.module);
        }
    }
    let few = GradientOptions { parts: 13, head_epochs: 0.0, ..GradientOptions::default() };
    let error = gradient_needs(plain().into(), &same, &few, &mut |_: Event<'_>| ()).expect_err("too few rows");
    assert!(error.to_string().contains("12 rows in 13 parts"), "{error}");
}

/// Labels without relation to the rows have no direction that another part of the rows shares. A fold that saw its own
/// part would find many.
#[test]
fn random_labels_have_hardly_any_direction_that_replicates() {
    let mut stream = Stream::new(5);
    let mut row = || Tokens::of_ids((0..8).map(|_| 6 + stream.below(60) as u32).collect());
    let tokens: Vec<Tokens> = (0..64).map(|_| row()).collect();
    let labels = (0..64).map(|_| stream.below(3)).collect();
    let rows = TokenRows::with_classes(tokens, labels);
    // A head that was trained on the same labels has seen every part.
    for (whole, head_epochs) in [(64, 0.0), (0, 0.0), (64, 3.0)] {
        let options = GradientOptions {
            target_modules: ["query", "intermediate.dense", "output.dense"].map(String::from).to_vec(),
            width: 10,
            columns: 10,
            whole,
            parts: 3,
            head_epochs,
            ..GradientOptions::default()
        };
        let model = Classifier::load(&fixture("tiny-bert"), None).expect("a model with a head");
        for need in gradient_needs(model.into(), &rows, &options, &mut |_: Event<'_>| ()).expect("it runs") {
            let found = &need.directions.values;
            assert!(found.len() <= 1, "{}, whole {whole}, head {head_epochs}: {found:?}", need.module);
        }
    }
}
