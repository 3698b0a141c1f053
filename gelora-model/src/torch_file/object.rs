//! Objects that the pickle of a checkpoint creates.

use gelora_kernels::DType;

/// An object that a pickle creates.
#[derive(Debug)]
pub enum Object<'a> {
    Nothing,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits, little-endian.
    Long(&'a [u8]),
    Float,
    Text(&'a str),
    Bytes,
    /// A tuple or a list.
    List(Vec<u32>),
    Dict(Vec<(u32, u32)>),
    Function(Function),
    Kind(Kind),
    Storage(Box<Storage<'a>>),
    Tensor(Box<View>),
}

impl Object<'_> {
    /// Description of the object, for messages.
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

/// Functions that a pickle of tensors calls.
#[derive(Clone, Copy, Debug)]
pub enum Function {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
}

/// An element type.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Name in PyTorch.
    pub name: &'static str,
    /// Element type of weights. None if weights do not have this type.
    pub dtype: Option<DType>,
    /// Number of bytes of an element.
    pub size: usize,
}

/// Types of the storages that a pickle may name.
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

/// Values stored beside the pickle.
#[derive(Debug)]
pub struct Storage<'a> {
    pub kind: Kind,
    pub key: &'a str,
    /// Number of values according to the pickle.
    pub len: usize,
}

/// A tensor: a view of a storage.
#[derive(Debug)]
pub struct View {
    /// Number of the storage object.
    pub storage: u32,
    /// Offset in values. Strides have the same unit.
    pub offset: usize,
    pub shape: Vec<usize>,
    pub stride: Vec<usize>,
}
