//! The tokenizer classes of transformers, and the class of a model folder.
//!
//! Source: `AutoTokenizer.from_pretrained` and `TOKENIZER_MAPPING_NAMES` of transformers 5.23, and the constructors of
//! the classes.

use tokenizers::AddedToken;

/// Supported tokenizer classes of transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Bert,
    MpNet,
    Roberta,
    Gpt2,
    Qwen2,
    DebertaV2,
}

impl Class {
    /// Returns the class of a model type, unless the folder names another class.
    pub fn of(model_type: &str, named: Option<&str>) -> Option<Self> {
        let by_type = match model_type {
            "bert" | "distilbert" => Class::Bert,
            "mpnet" => Class::MpNet,
            "roberta" => Class::Roberta,
            "gpt2" => Class::Gpt2,
            "qwen2" => return Some(Class::Qwen2), // transformers ignores the name for this type
            "qwen3" => Class::Qwen2,
            "deberta-v2" => Class::DebertaV2,
            _ => return None,
        };
        let Some(named) = named else { return Some(by_type) };
        Some(match named.strip_suffix("Fast").unwrap_or(named) {
            "BertTokenizer" | "DistilBertTokenizer" => Class::Bert,
            "MPNetTokenizer" => Class::MpNet,
            "RobertaTokenizer" => Class::Roberta,
            "GPT2Tokenizer" => Class::Gpt2,
            "Qwen2Tokenizer" => Class::Qwen2,
            "DebertaV2Tokenizer" => Class::DebertaV2,
            _ => return None,
        })
    }

    /// Returns the files of the class's vocabulary.
    pub fn files(self) -> &'static [&'static str] {
        match self {
            Class::Bert | Class::MpNet => &["vocab.txt"],
            Class::Roberta | Class::Gpt2 | Class::Qwen2 => &["vocab.json", "merges.txt"],
            Class::DebertaV2 => &["spm.model"],
        }
    }

    /// Returns the default named tokens of the class.
    pub fn tokens(self) -> Vec<(&'static str, AddedToken)> {
        let all: &[(&'static str, &'static str)] = match self {
            Class::Bert => &[
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Class::DebertaV2 => &[
                ("bos_token", "[CLS]"),
                ("eos_token", "[SEP]"),
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Class::MpNet | Class::Roberta => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", if matches!(self, Class::MpNet) { "[UNK]" } else { "<unk>" }),
                ("sep_token", "</s>"),
                ("pad_token", "<pad>"),
                ("cls_token", "<s>"),
                ("mask_token", "<mask>"),
            ],
            Class::Gpt2 => {
                &[("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")]
            }
            Class::Qwen2 => {
                &[("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")]
            }
        };
        let token = |text: &str| {
            let takes_space = matches!(self, Class::MpNet) && text == "<mask>";
            AddedToken::from(text, true).lstrip(takes_space)
        };
        all.iter().map(|(name, text)| (*name, token(text))).collect()
    }
}
