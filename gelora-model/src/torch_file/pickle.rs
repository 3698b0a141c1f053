//! Python's pickles, as far as tensors by their names need them.
//!
//! A pickle is a program for a machine with a stack, and may ask for any function of Python. This one knows the
//! functions that make tensors and their containers, runs nothing, and refuses whatever asks for more.
//!
//! Objects refer to each other by number, so that a deep or circular pickle costs no stack of ours; each takes at least
//! a byte of the pickle, of which [`LONGEST`] are read at most.
//!
//! Source: Python's `pickletools.py`; `torch/_utils.py` for the functions.

use std::collections::HashMap;

use super::object::{Function, KINDS, Object, Storage, View};

/// The longest pickle: twenty thousand tensors take no more.
const LONGEST: usize = 4 << 20;
/// The most dimensions of a tensor.
const MOST_DIMENSIONS: usize = 8;

/// A pickle that was read.
pub struct Pickle<'a> {
    pub objects: Vec<Object<'a>>,
    root: u32,
    /// The bytes that it took.
    pub length: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle that these bytes begin with.
    ///
    /// # Errors
    /// If it ends too early, is damaged, or asks for a function that tensors do not need.
    pub fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let bytes = &bytes[..bytes.len().min(LONGEST)];
        let mut machine = Machine { bytes, ..Machine::default() };
        let root = machine.run()?;
        Ok(Self { objects: machine.objects, root, length: machine.at })
    }

    pub fn root(&self) -> &Object<'a> {
        self.get(self.root)
    }

    /// An object by its number. Numbers come from [`Machine::add`] alone.
    pub fn get(&self, object: u32) -> &Object<'a> {
        &self.objects[object as usize]
    }
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    objects: Vec<Object<'a>>,
    stack: Vec<u32>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<usize, u32>,
    /// Entries of dictionaries that were made of lists, which may be the same list over and over.
    copied: usize,
}

impl<'a> Machine<'a> {
    /// Runs until the pickle stops; the number of what it made.
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
                // What Python would set on an object. Dictionaries carry versions of modules, which nobody needs.
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
        let taken = self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| match self.bytes.len() {
            LONGEST => format!("its pickle is longer than {LONGEST} bytes"),
            length => format!("truncated: its pickle goes on after {length} bytes"),
        })?;
        self.at += n;
        Ok(taken)
    }

    fn skip(&mut self, n: usize) -> Result<(), String> {
        self.take(n).map(|_| ())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| damaged())
    }

    /// A text up to the end of its line.
    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let line = self.take(length + 1)?;
        std::str::from_utf8(&line[..length]).map_err(|_| damaged())
    }

    /// A text or bytes after their length, which takes `width` bytes.
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
        self.stack.push(self.objects.len() as u32); // fewer than LONGEST
        self.objects.push(object);
    }

    fn number(&mut self, read: impl Fn(&mut Self) -> Result<i64, String>) -> Result<(), String> {
        let number = read(self)?;
        self.add(Object::Int(number));
        Ok(())
    }

    /// What is on the stack from `from` on may be taken: no mark stands above.
    fn above_mark(&self, from: usize) -> Result<(), String> {
        if self.marks.last().is_none_or(|mark| *mark <= from) { Ok(()) } else { Err(damaged()) }
    }

    fn pop(&mut self) -> Result<u32, String> {
        self.above_mark(self.stack.len().saturating_sub(1))?;
        self.stack.pop().ok_or_else(damaged)
    }

    /// What is on the stack above the last mark.
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
            Object::Int(n) => usize::try_from(*n).map_err(|_| format!("has {n} where a tensor has a size or a stride")),
            _ => Err(damaged()),
        }
    }

    fn sizes(&self, object: u32) -> Result<Vec<usize>, String> {
        let sizes = self.list(object)?;
        if sizes.len() > MOST_DIMENSIONS {
            return Err(format!("has a tensor of {} dimensions; expected at most {MOST_DIMENSIONS}", sizes.len()));
        }
        sizes.iter().map(|size| self.size(*size)).collect()
    }

    /// The storage that a persistent id names: ("storage", type, key, device, length) and, in old files, a view of it.
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
        // Of which seven are known.
        let arguments: Vec<u32> = self.list(arguments)?.iter().copied().take(8).collect();
        match (function, arguments.as_slice()) {
            (Function::OrderedDict, []) => self.add(Object::Dict(Vec::new())),
            // As Python 2 writes it.
            (Function::OrderedDict, [items]) => {
                let pair = |item: &u32| match self.list(*item)? {
                    [key, value] => Ok((*key, *value)),
                    _ => Err(damaged()),
                };
                let pairs = self.list(*items)?.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
                self.copied += pairs.len();
                if self.copied > LONGEST {
                    return Err(format!("its pickle makes dictionaries of more than {LONGEST} entries"));
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
                let of_storage = matches!(self.objects[*storage as usize], Object::Storage(_));
                if !of_storage || view.shape.len() != view.stride.len() {
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

/// An integer of any length.
fn long(bytes: &[u8]) -> Object<'_> {
    if bytes.len() > 8 {
        return Object::Long(bytes);
    }
    let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
    let mut all = [if negative { 0xff } else { 0 }; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Object::Int(i64::from_le_bytes(all))
}

/// Keys and values that stand one after the other.
fn pairs(items: &[u32]) -> Result<Vec<(u32, u32)>, String> {
    let (pairs, []) = items.as_chunks::<2>() else { return Err(damaged()) };
    Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
}

/// What a name of Python stands for, if tensors need it.
fn global<'a>(module: &str, name: &str) -> Result<Object<'a>, String> {
    let kind = || KINDS.into_iter().find(|kind| name.strip_suffix("Storage") == Some(kind.name));
    Ok(match (module, name) {
        ("collections", "OrderedDict") => Object::Function(Function::OrderedDict),
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Object::Function(Function::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => Object::Function(Function::RebuildParameter),
        ("torch", _) if kind().is_some() => kind().map_or(Object::Nothing, Object::Kind),
        _ => {
            let shown: String = format!("{module}.{name}").chars().take(80).flat_map(char::escape_debug).collect();
            return Err(format!("asks to run {shown}; {ONLY}"));
        }
    })
}
