//! Names of tensors in GGUF files and in Hugging Face checkpoints, and differences in the order of their rows.
//!
//! Sources: llama.cpp, `gguf-py/gguf/tensor_mapping.py` for names; `convert_hf_to_gguf.py` for tensors that are stored
//! differently: the rows of Llama's queries and keys, Gemma's norms (1 is added), and GPT-2's matrices (transposed).

use std::sync::Arc;

use gelora_kernels::{DType, Tensor};

use crate::{Config, Result, linear};

/// A GGUF architecture that can be read and written.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// Value of `general.architecture`.
    pub name: &'static str,
    /// Value of `model_type` in config.json.
    pub family: &'static str,
    /// Prefix of the names in a language model's checkpoint. `blocks` is the name of its list of blocks.
    pub prefix: &'static str,
    blocks: &'static str,
    /// Tensors outside the blocks: name in a GGUF file, and name in a checkpoint without the prefix.
    outside: &'static [(&'static str, &'static str)],
    /// Modules of a block: name in a GGUF file, and name in a checkpoint.
    modules: &'static [(&'static str, &'static str)],
}

const HEAD: (&str, &str) = ("output", "lm_head");

const OUTSIDE: &[(&str, &str)] = &[("token_embd", "embed_tokens"), ("output_norm", "norm")];

const LLAMA: &[(&str, &str)] = &[
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
];

const GEMMA: &[(&str, &str)] = &[
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("attn_norm", "input_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

const GPT2: &[(&str, &str)] = &[
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
    ("attn_norm", "ln_1"),
    ("ffn_norm", "ln_2"),
];

const fn like_llama(
    name: &'static str,
    family: &'static str,
    modules: &'static [(&'static str, &'static str)],
) -> Architecture {
    Architecture { name, family, prefix: "model.", blocks: "layers", outside: OUTSIDE, modules }
}

const ARCHITECTURES: [Architecture; 5] = [
    like_llama("llama", "llama", LLAMA),
    like_llama("qwen2", "qwen2", LLAMA),
    like_llama("qwen3", "qwen3", LLAMA),
    like_llama("gemma3", "gemma3_text", GEMMA),
    Architecture {
        name: "gpt2",
        family: "gpt2",
        prefix: "transformer.",
        blocks: "h",
        outside: &[("token_embd", "wte"), ("position_embd", "wpe"), ("output_norm", "ln_f")],
        modules: GPT2,
    },
];

/// A linear module of a model, to which an adapter can be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinearName {
    /// Name in a checkpoint, `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Name in a GGUF file, `blk.0.attn_q`.
    pub stored: String,
    pub c_in: usize,
    pub c_out: usize,
}

impl Architecture {
    /// Returns the architecture of this name in `general.architecture`.
    pub fn named(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|architecture| architecture.name == name)
    }

    /// Returns the architecture of a `model_type`. Mistral uses Llama's.
    pub fn of_family(family: &str) -> Option<&'static Self> {
        let family = if family == "mistral" { "llama" } else { family };
        ARCHITECTURES.iter().find(|architecture| architecture.family == family)
    }

    /// Lists all names, for messages.
    pub fn all() -> String {
        let (last, others) = (ARCHITECTURES.len() - 1, &ARCHITECTURES);
        let names: Vec<&str> = others.iter().map(|architecture| architecture.name).collect();
        format!("{} or {}", names[..last].join(", "), names[last])
    }

    /// Converts the name of a tensor in a GGUF file to its name in a checkpoint.
    pub fn checkpoint_name(&self, stored: &str) -> Option<String> {
        let (module, parameter) = stored.rsplit_once('.')?;
        if module == HEAD.0 {
            return Some(format!("{}.{parameter}", HEAD.1));
        }
        if let Some((_, name)) = self.outside.iter().find(|(known, _)| *known == module) {
            return Some(format!("{}{name}.{parameter}", self.prefix));
        }
        let (block, module) = module.strip_prefix("blk.")?.split_once('.')?;
        let (_, name) = self.modules.iter().find(|(known, _)| *known == module)?;
        Some(format!("{}{}.{block}.{name}.{parameter}", self.prefix, self.blocks))
    }

    /// Converts the name of a tensor in a checkpoint to its name in a GGUF file.
    pub fn stored_name(&self, name: &str) -> Option<String> {
        let (module, parameter) = name.rsplit_once('.')?;
        if module == HEAD.1 {
            return Some(format!("{}.{parameter}", HEAD.0));
        }
        let module = module.strip_prefix(self.prefix)?;
        if let Some((stored, _)) = self.outside.iter().find(|(_, known)| *known == module) {
            return Some(format!("{stored}.{parameter}"));
        }
        let (block, module) = module.strip_prefix(self.blocks)?.strip_prefix('.')?.split_once('.')?;
        block.parse::<usize>().ok()?;
        let (stored, _) = self.modules.iter().find(|(_, known)| *known == module)?;
        Some(format!("blk.{block}.{stored}.{parameter}"))
    }

    /// All linear modules of a model's blocks, in order from the input to the output.
    pub fn linears(&self, config: &Config) -> Vec<LinearName> {
        let (hidden, inner) = (config.hidden, config.intermediate);
        let (wide, narrow) = (config.heads * config.head_size, config.kv_heads * config.head_size);
        let sizes = |module: &str| match module {
            "attn_q" => Some((hidden, wide)),
            "attn_k" | "attn_v" => Some((hidden, narrow)),
            "attn_qkv" => Some((hidden, 3 * hidden)),
            "attn_output" => Some((wide, hidden)),
            "ffn_gate" | "ffn_up" => Some((hidden, inner)),
            "ffn_down" => Some((inner, hidden)),
            _ => None, // a norm
        };
        let linears_of_block = |block: usize| {
            self.modules.iter().filter_map(move |(stored, name)| {
                let (c_in, c_out) = sizes(stored)?;
                let name = format!("{}{}.{block}.{name}", self.prefix, self.blocks);
                Some(LinearName { name, stored: format!("blk.{block}.{stored}"), c_in, c_out })
            })
        };
        (0..config.layers).flat_map(linears_of_block).collect()
    }

    /// Returns the number of heads whose rows are in a different order in the file than in a checkpoint, or None if the
    /// order of tensor `stored` is the same.
    pub fn reordered_heads(&self, stored: &str, heads: usize, kv_heads: usize) -> Option<usize> {
        match stored.split('.').nth(2) {
            Some("attn_q") if self.name == "llama" => Some(heads),
            Some("attn_k") if self.name == "llama" => Some(kv_heads),
            _ => None,
        }
    }

    /// Value that the file adds to the weights of a norm, compared with a checkpoint.
    pub fn norm_offset(&self, stored: &str) -> f32 {
        if self.name == "gemma3" && stored.ends_with("norm.weight") { 1.0 } else { 0.0 }
    }

    /// Whether a checkpoint stores the tensor as (C_in, C_out) while the file stores it as (C_out, C_in).
    pub fn is_transposed(&self, stored: &str) -> bool {
        const MATRICES: [&str; 4] = ["attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight"];
        self.name == "gpt2" && MATRICES.iter().any(|name| stored.ends_with(name))
    }
}

/// Order of the rows within a head of queries or keys. A rotary embedding rotates pairs of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// The rows of a pair are D/2 apart, as in Hugging Face checkpoints.
    Halves,
    /// The rows of a pair are adjacent, as in llama.cpp's files.
    Pairs,
}

/// Reorders the rows of queries or keys, or of their B matrices, from the other order to `wanted`.
///
/// # Errors
/// Returns a message if the rows cannot be split into pairs in this number of heads.
pub(crate) fn reorder(t: &Tensor, heads: usize, wanted: RowOrder) -> Result<Tensor, String> {
    let rows = t.shape().first().copied().unwrap_or(0);
    let d = rows.checked_div(heads).unwrap_or(0);
    if d < 2 || !d.is_multiple_of(2) || d * heads != rows {
        return Err(format!("has {rows} rows, which cannot be split into pairs in {heads} heads"));
    }
    let size = t.dtype().bytes(t.len() / rows);
    let bytes = t.bytes().map_err(|error| error.to_string())?;
    let mut ordered = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let (head, within) = (row / d, row % d);
        let from = match wanted {
            RowOrder::Halves => 2 * (within % (d / 2)) + within / (d / 2),
            RowOrder::Pairs => within % 2 * (d / 2) + within / 2,
        };
        ordered.extend_from_slice(&bytes[(head * d + from) * size..][..size]);
    }
    let range = 0..ordered.len();
    Tensor::from_bytes(Arc::new(ordered), range, t.dtype(), t.shape()).map_err(|error| error.to_string())
}

/// Returns the transpose of a matrix. A quantized matrix becomes f32.
pub(crate) fn transposed(t: &Tensor) -> Result<Tensor> {
    if t.dtype().is_quantized() { linear::transpose(&t.to_dtype(DType::F32)?) } else { linear::transpose(t) }
}

/// Returns a tensor with `offset` added to its values. If `offset` is 0, returns the tensor unchanged.
pub(crate) fn plus(t: &Tensor, offset: f32) -> Result<Tensor> {
    if offset == 0.0 {
        return Ok(t.clone());
    }
    let values = t.to_vec()?.into_iter().map(|v| v + offset).collect();
    Ok(Tensor::from_vec(values, t.shape())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_convert_in_both_directions() {
        for (architecture, stored, name) in [
            ("llama", "blk.11.attn_q.weight", "model.layers.11.self_attn.q_proj.weight"),
            ("qwen2", "blk.0.attn_k.bias", "model.layers.0.self_attn.k_proj.bias"),
            ("gemma3", "blk.3.ffn_norm.weight", "model.layers.3.pre_feedforward_layernorm.weight"),
            ("qwen3", "blk.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
            ("gpt2", "blk.1.attn_qkv.bias", "transformer.h.1.attn.c_attn.bias"),
            ("gpt2", "position_embd.weight", "transformer.wpe.weight"),
            ("llama", "output.weight", "lm_head.weight"),
            ("llama", "output_norm.weight", "model.norm.weight"),
        ] {
            let architecture = Architecture::named(architecture).expect("it is known");
            assert_eq!(architecture.checkpoint_name(stored).as_deref(), Some(name));
            assert_eq!(architecture.stored_name(name).as_deref(), Some(stored));
        }
        let llama = Architecture::of_family("mistral").expect("as Llama");
        assert_eq!((llama.name, llama.stored_name("model.layers.x.self_attn.q_proj.weight")), ("llama", None));
        assert_eq!(llama.stored_name("model.layers.0.self_attn.c_attn.weight"), None);
        assert_eq!(llama.checkpoint_name("blk.0.attn_qkv.weight"), None);
        assert!(Architecture::of_family("bert").is_none());
    }

    #[test]
    fn reordering_rows_is_invertible() {
        let t = Tensor::from_vec((0..24).map(|v| v as f32).collect(), [12, 2]).expect("it fits");
        let pairs = reorder(&t, 2, RowOrder::Pairs).expect("heads of 6");
        let first: Vec<f32> = pairs.to_vec().expect("f32").into_iter().step_by(2).map(|v| v / 2.0).collect();
        assert_eq!(first, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0]);
        let again = reorder(&pairs, 2, RowOrder::Halves).expect("heads of 6");
        assert_eq!(again.to_vec().expect("f32"), t.to_vec().expect("f32"));
        assert!(
            reorder(&t, 4, RowOrder::Pairs)
                .expect_err("heads of 3")
                .contains("12 rows, which cannot be split into pairs in 4")
        );
        let scalar = Tensor::from_vec(vec![1.0], Vec::new()).expect("a scalar");
        assert!(reorder(&scalar, 1, RowOrder::Halves).is_err());
    }
}
