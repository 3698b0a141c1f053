//! What the pickle of a checkpoint makes.

use gelora_kernels::DType;

/// What a pickle makes.
#[derive(Debug)]
pub enum Object<'a> {
    Nothing,
    Bool(bool),
    Int(i64),
    /// More than 64 bits, little-endian.
    Long(&'a [u8]),
    Float,
    Text(&'a str),
    Bytes,
    /// Tuples and lists.
    List(Vec<u32>),
    Dict(Vec<(u32, u32)>),
    Function(Function),
    Kind(Kind),
    Storage(Box<Storage<'a>>),
    Tensor(Box<View>),
}

impl Object<'_> {
    /// What it is, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Object::Nothing => "None",
            Object::Bool(_) => "a bool",
            Object::Int(_) | Object::Long(_) => "an integer",
            Object::Float => "a float",
            Object::Text(_) => "a string",
            Object::Bytes => "bytes",
            Object::List(_) => "a list",
            Object::Dict(_) => "a dictionary",
            Object::Function(_) => "a function",
            Object::Kind(_) => "a type of storage",
            Object::Storage(_) => "a storage",
            Object::Tensor(_) => "a tensor",
        }
    }
}

/// The functions that a pickle of tensors calls.
#[derive(Clone, Copy, Debug)]
pub enum Function {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
}

/// An element type.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// As PyTorch calls it.
    pub name: &'static str,
    /// None for those that weights are not stored in.
    pub dtype: Option<DType>,
    /// Bytes of an element.
    pub size: usize,
}

/// The types whose storages a pickle may name.
pub const KINDS: [Kind; 10] = [
    Kind { name: "Float", dtype: Some(DType::F32), size: 4 },
    Kind { name: "Half", dtype: Some(DType::F16), size: 2 },
    Kind { name: "BFloat16", dtype: Some(DType::Bf16), size: 2 },
    Kind { name: "Double", dtype: Some(DType::F64), size: 8 },
    Kind { name: "Long", dtype: None, size: 8 },
    Kind { name: "Int", dtype: None, size: 4 },
    Kind { name: "Short", dtype: None, size: 2 },
    Kind { name: "Char", dtype: None, size: 1 },
    Kind { name: "Byte", dtype: None, size: 1 },
    Kind { name: "Bool", dtype: None, size: 1 },
];

/// Values that are stored beside the pickle.
#[derive(Debug)]
pub struct Storage<'a> {
    pub kind: Kind,
    pub key: &'a str,
    /// How many values the pickle says there are.
    pub len: usize,
}

/// A tensor: a part of a storage.
#[derive(Debug)]
pub struct View {
    /// The number of its storage.
    pub storage: u32,
    /// In values, as the strides.
    pub offset: usize,
    pub shape: Vec<usize>,
    pub stride: Vec<usize>,
}
