//! An interpreter for the part of Python's pickle format that a dictionary of tensors needs.
//!
//! A pickle is a program for a stack machine and may call any Python function. This interpreter supports the functions
//! that create tensors and their containers. It executes no other code and returns an error if a pickle asks for more.
//!
//! Objects refer to each other by number, so a deep or circular pickle needs no recursion here. Each object takes at
//! least one byte of the pickle, of which at most [`MAX_LENGTH`] bytes are read.
//!
//! Source: Python's `pickletools.py`; `torch/_utils.py` for the functions.

use std::collections::HashMap;

use super::object::{Function, KINDS, Object, Storage, View};

/// Largest length of a pickle in bytes. Twenty thousand tensors need no more.
const MAX_LENGTH: usize = 4 << 20;
/// Largest number of dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;

/// A pickle that was read.
pub struct Pickle<'a> {
    pub objects: Vec<Object<'a>>,
    root: u32,
    /// Number of bytes of the pickle.
    pub length: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle at the start of these bytes.
    ///
    /// # Errors
    /// Returns an error if it is truncated or damaged, or asks for a function that tensors do not need.
    pub fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let bytes = &bytes[..bytes.len().min(MAX_LENGTH)];
        let mut machine = Machine { bytes, ..Machine::default() };
        let root = machine.run()?;
        Ok(Self { objects: machine.objects, root, length: machine.position })
    }

    pub fn root(&self) -> &Object<'a> {
        self.get(self.root)
    }

    /// Returns an object by its number. All numbers come from [`Machine::add`].
    pub fn get(&self, object: u32) -> &Object<'a> {
        &self.objects[object as usize]
    }
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    objects: Vec<Object<'a>>,
    stack: Vec<u32>,
    /// Heights of the stack at the marks.
    marks: Vec<usize>,
    memo: HashMap<usize, u32>,
    /// Number of dictionary entries copied from lists. The same list can be copied many times.
    copied: usize,
}

impl<'a> Machine<'a> {
    /// Runs the pickle to its end. Returns the number of the resulting object.
    fn run(&mut self) -> Result<u32, String> {
        loop {
            let [operation] = self.array()?;
            match operation {
                b'.' => return self.pop(),
                0x80 => self.skip(1)?, // version
                0x95 => self.skip(8)?, // length of a frame
                b'(' => self.marks.push(self.stack.len()),
                b'N' => self.add(Object::Nothing),
                0x88 => self.add(Object::Bool(true)),
                0x89 => self.add(Object::Bool(false)),
                b'J' => self.number(|m| Ok(i32::from_le_bytes(m.array()?).into()))?,
                b'K' => self.number(|m| Ok(u8::from_le_bytes(m.array()?).into()))?,
                b'M' => self.number(|m| Ok(u16::from_le_bytes(m.array()?).into()))?,
                0x8a => {
                    let [length] = self.array()?;
                    let bytes = self.take(length.into())?;
                    self.add(long(bytes));
                }
                b'G' => {
                    self.skip(8)?;
                    self.add(Object::Float);
                }
                b'X' | b'T' | b'B' => self.text(4, operation == b'B')?,
                0x8c | b'U' | b'C' => self.text(1, operation == b'C')?,
                0x8d | 0x8e => self.text(8, operation == 0x8e)?,
                b')' | b']' => self.add(Object::List(Vec::new())),
                b'}' => self.add(Object::Dict(Vec::new())),
                b't' | b'l' => {
                    let items = self.pop_mark()?;
                    self.add(Object::List(items));
                }
                0x85..=0x87 => {
                    let from = self.stack.len().checked_sub(usize::from(operation - 0x84)).ok_or_else(damaged)?;
                    self.above_mark(from)?;
                    let items = self.stack.split_off(from);
                    self.add(Object::List(items));
                }
                b'd' => {
                    let pairs = pairs(&self.pop_mark()?)?;
                    self.add(Object::Dict(pairs));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(&[item])?;
                }
                b'e' => {
                    let items = self.pop_mark()?;
                    self.append(&items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.insert(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.insert(&items)?;
                }
                b'q' => self.remember(|m| Ok(u8::from_le_bytes(m.array()?).into()))?,
                b'r' => self.remember(|m| Ok(u32::from_le_bytes(m.array()?) as usize))?,
                0x94 => self.remember(|m| Ok(m.memo.len()))?,
                b'h' => self.recall(|m| Ok(u8::from_le_bytes(m.array()?).into()))?,
                b'j' => self.recall(|m| Ok(u32::from_le_bytes(m.array()?) as usize))?,
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.add(global(module, name)?);
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    match (&self.objects[module as usize], &self.objects[name as usize]) {
                        (Object::Text(module), Object::Text(name)) => self.add(global(module, name)?),
                        _ => return Err(damaged()),
                    }
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id)?;
                    self.add(storage);
                }
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    self.call(function, arguments)?;
                }
                // Attributes to set on an object. Dictionaries have versions of modules there, which are not needed.
                b'b' => {
                    self.pop()?;
                    let target = *self.stack.last().ok_or_else(damaged)?;
                    if !matches!(self.objects[target as usize], Object::Dict(_)) {
                        return Err(format!("sets attributes of {}; {ONLY}", self.objects[target as usize].name()));
                    }
                }
                other => return Err(format!("has the pickle operation 0x{other:02x}, which tensors do not need")),
            }
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let taken = self.position.checked_add(n).and_then(|end| self.bytes.get(self.position..end));
        let taken = taken.ok_or_else(|| match self.bytes.len() {
            MAX_LENGTH => format!("its pickle is longer than {MAX_LENGTH} bytes"),
            length => format!("truncated: its pickle does not end within {length} bytes"),
        })?;
        self.position += n;
        Ok(taken)
    }

    fn skip(&mut self, n: usize) -> Result<(), String> {
        self.take(n).map(|_| ())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| damaged())
    }

    /// Reads text up to the end of the line.
    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.position..];
        let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let line = self.take(length + 1)?;
        std::str::from_utf8(&line[..length]).map_err(|_| damaged())
    }

    /// Reads a string or bytes after their length, which takes `width` bytes.
    fn text(&mut self, width: usize, bytes: bool) -> Result<(), String> {
        let mut length = [0; 8];
        length[..width].copy_from_slice(self.take(width)?);
        let length = usize::try_from(u64::from_le_bytes(length)).map_err(|_| damaged())?;
        let taken = self.take(length)?;
        self.add(match bytes {
            true => Object::Bytes,
            false => Object::Text(std::str::from_utf8(taken).map_err(|_| "a string of its pickle is not UTF-8")?),
        });
        Ok(())
    }

    fn add(&mut self, object: Object<'a>) {
        self.stack.push(self.objects.len() as u32); // fewer than MAX_LENGTH
        self.objects.push(object);
    }

    fn number(&mut self, read: impl Fn(&mut Self) -> Result<i64, String>) -> Result<(), String> {
        let number = read(self)?;
        self.add(Object::Int(number));
        Ok(())
    }

    /// Returns an error if there is a mark above position `from` of the stack, which would protect the items below it.
    fn above_mark(&self, from: usize) -> Result<(), String> {
        if self.marks.last().is_none_or(|mark| *mark <= from) { Ok(()) } else { Err(damaged()) }
    }

    fn pop(&mut self) -> Result<u32, String> {
        self.above_mark(self.stack.len().saturating_sub(1))?;
        self.stack.pop().ok_or_else(damaged)
    }

    /// Removes and returns the items above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<u32>, String> {
        let mark = self.marks.pop().ok_or_else(damaged)?;
        Ok(self.stack.split_off(mark))
    }

    fn append(&mut self, items: &[u32]) -> Result<(), String> {
        match self.stack.last().map(|list| &mut self.objects[*list as usize]) {
            Some(Object::List(list)) => list.extend_from_slice(items),
            _ => return Err(damaged()),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[u32]) -> Result<(), String> {
        let pairs = pairs(items)?;
        match self.stack.last().map(|dict| &mut self.objects[*dict as usize]) {
            Some(Object::Dict(dict)) => dict.extend(pairs),
            _ => return Err(damaged()),
        }
        Ok(())
    }

    fn remember(&mut self, key: impl Fn(&mut Self) -> Result<usize, String>) -> Result<(), String> {
        let key = key(self)?;
        let object = *self.stack.last().ok_or_else(damaged)?;
        self.memo.insert(key, object);
        Ok(())
    }

    fn recall(&mut self, key: impl Fn(&mut Self) -> Result<usize, String>) -> Result<(), String> {
        let key = key(self)?;
        self.stack.push(*self.memo.get(&key).ok_or_else(damaged)?);
        Ok(())
    }

    fn list(&self, object: u32) -> Result<&[u32], String> {
        match &self.objects[object as usize] {
            Object::List(items) => Ok(items),
            _ => Err(damaged()),
        }
    }

    fn size(&self, object: u32) -> Result<usize, String> {
        match &self.objects[object as usize] {
            Object::Int(n) => usize::try_from(*n).map_err(|_| format!("has a tensor with the size or stride {n}")),
            _ => Err(damaged()),
        }
    }

    fn sizes(&self, object: u32) -> Result<Vec<usize>, String> {
        let sizes = self.list(object)?;
        if sizes.len() > MAX_DIMENSIONS {
            return Err(format!("has a tensor of {} dimensions; expected at most {MAX_DIMENSIONS}", sizes.len()));
        }
        sizes.iter().map(|size| self.size(*size)).collect()
    }

    /// Makes the storage of a persistent id: ("storage", type, key, device, length) and, in old files, a view of the
    /// storage.
    fn storage(&self, id: u32) -> Result<Object<'a>, String> {
        let id = self.list(id)?;
        let object = |i: usize| id.get(i).map(|object| &self.objects[*object as usize]);
        match (object(0), object(1), object(2)) {
            (Some(Object::Text("storage")), Some(Object::Kind(kind)), Some(Object::Text(key))) => {
                if !matches!(object(5), None | Some(Object::Nothing)) {
                    return Err("has a view of a storage, as PyTorch wrote them before 0.4; it is not supported".into());
                }
                let len = self.size(*id.get(4).ok_or_else(damaged)?)?;
                Ok(Object::Storage(Box::new(Storage { kind: *kind, key, len })))
            }
            _ => Err("refers to something that is not a storage of PyTorch; only tensors are read".into()),
        }
    }

    fn call(&mut self, function: u32, arguments: u32) -> Result<(), String> {
        let Object::Function(function) = self.objects[function as usize] else { return Err(damaged()) };
        // No supported call takes more than seven arguments.
        let arguments: Vec<u32> = self.list(arguments)?.iter().copied().take(8).collect();
        match (function, arguments.as_slice()) {
            (Function::OrderedDict, []) => self.add(Object::Dict(Vec::new())),
            // The form that Python 2 writes.
            (Function::OrderedDict, [items]) => {
                let pair = |item: &u32| match self.list(*item)? {
                    [key, value] => Ok((*key, *value)),
                    _ => Err(damaged()),
                };
                let pairs = self.list(*items)?.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
                self.copied += pairs.len();
                if self.copied > MAX_LENGTH {
                    return Err(format!("its pickle makes dictionaries of more than {MAX_LENGTH} entries"));
                }
                self.add(Object::Dict(pairs));
            }
            (Function::RebuildTensor, [storage, offset, shape, stride, ..]) => {
                let view = View {
                    storage: *storage,
                    offset: self.size(*offset)?,
                    shape: self.sizes(*shape)?,
                    stride: self.sizes(*stride)?,
                };
                let has_storage = matches!(self.objects[*storage as usize], Object::Storage(_));
                if !has_storage || view.shape.len() != view.stride.len() {
                    return Err(damaged());
                }
                self.add(Object::Tensor(Box::new(view)));
            }
            (Function::RebuildParameter, [tensor, ..]) => self.stack.push(*tensor),
            _ => return Err(damaged()),
        }
        Ok(())
    }
}

const ONLY: &str = "only tensors are read";

fn damaged() -> String {
    "its pickle is damaged".into()
}

/// Makes an integer of any length.
fn long(bytes: &[u8]) -> Object<'_> {
    if bytes.len() > 8 {
        return Object::Long(bytes);
    }
    let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
    let mut all = [if negative { 0xff } else { 0 }; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Object::Int(i64::from_le_bytes(all))
}

/// Splits a list of alternating keys and values into pairs.
fn pairs(items: &[u32]) -> Result<Vec<(u32, u32)>, String> {
    let (pairs, []) = items.as_chunks::<2>() else { return Err(damaged()) };
    Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
}

/// Returns the object of a Python name, or an error if tensors do not need it.
fn global<'a>(module: &str, name: &str) -> Result<Object<'a>, String> {
    let kind = || KINDS.into_iter().find(|kind| name.strip_suffix("Storage") == Some(kind.name));
    Ok(match (module, name) {
        ("collections", "OrderedDict") => Object::Function(Function::OrderedDict),
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Object::Function(Function::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => Object::Function(Function::RebuildParameter),
        ("torch", _) if kind().is_some() => kind().map_or(Object::Nothing, Object::Kind),
        _ => {
            let function: String = format!("{module}.{name}").chars().take(80).flat_map(char::escape_debug).collect();
            return Err(format!("asks to run {function}; {ONLY}"));
        }
    })
}
