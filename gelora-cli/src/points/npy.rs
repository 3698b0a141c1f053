//! Reader of `.npy` and `.npz` files: f2, f4, f8, integers and truth values of either byte order, in C or Fortran
//! order.
//!
//! Source: numpy.lib.format. npyz parses the header, and zip the archive. The values are decoded here, to distinguish a
//! short file from an unsupported type.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use gelora_kernels::Tensor;
use npyz::npz::array_name_from_file_name;
use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};
use zip::ZipArchive;

use super::{Entry, Values, choose};

/// Maximum length of a header in bytes. numpy refuses headers of more than 10,000 characters.
const MAX_HEADER: usize = 1 << 16;

/// Maximum nesting of brackets in a header. The parser of npyz uses a stack frame for each level.
const MAX_NESTING: usize = 32;

/// Reads the matrix of a .npy file.
pub fn read(path: &Path) -> Result<Tensor> {
    let what = path.display().to_string();
    let mut reader = BufReader::new(File::open(path).with_context(|| format!("{what}: cannot be read"))?);
    let header = read_header(&mut reader).with_context(|| format!("{what}: not a readable .npy file"))?;
    matrix(&what, &header, reader)
}

/// Reads the matrices of a .npz file.
pub fn read_archive(path: &Path, tensor: Option<&str>) -> Result<Vec<(String, Tensor)>> {
    let display = path.display();
    let file = File::open(path).with_context(|| format!("{display}: cannot be read"))?;
    let archive = ZipArchive::new(BufReader::new(file));
    let mut archive = archive.map_err(|e| anyhow!("{display}: not a readable .npz file: {e}"))?;
    let mut arrays = Vec::with_capacity(archive.len());
    for index in 0..archive.len() {
        let unreadable = |e: zip::result::ZipError| anyhow!("{display}: array {} is not readable: {e}", index + 1);
        let file_name =
            archive.by_index_raw(index).and_then(|file| Ok(file.name()?.into_owned())).map_err(unreadable)?;
        let Some(name) = array_name_from_file_name(&file_name) else { continue };
        let unreadable = || format!("{display}: \"{name}\" is not a readable array");
        let mut file = archive.by_index(index).with_context(unreadable)?;
        let header = read_header(&mut file).with_context(unreadable)?;
        arrays.push((index, name.to_owned(), header));
    }
    let entry = |(_, name, header): &(usize, String, NpyHeader)| Entry {
        name: name.clone(),
        shape: header.shape().iter().map(|&n| n as usize).collect(),
        dtype: header.dtype().descr(),
        readable: decoder(&header.dtype()).is_some(),
    };
    let chosen = choose(path, arrays.iter().map(entry).collect(), tensor)?;
    let mut matrices = Vec::with_capacity(chosen.len());
    for name in chosen {
        let what = format!("{display}: \"{name}\"");
        let (index, ..) = arrays.iter().find(|(_, other, _)| *other == name).with_context(|| what.clone())?;
        let mut file = archive.by_index(*index).with_context(|| what.clone())?;
        let header = read_header(&mut file).with_context(|| what.clone())?;
        matrices.push((name, matrix(&what, &header, file)?));
    }
    Ok(matrices)
}

/// Reads the header of an array, with limits on its length and nesting.
fn read_header(reader: &mut impl Read) -> Result<NpyHeader> {
    // The magic bytes and the version come first, then the length of the rest: two bytes in version 1, four in later
    // versions.
    let mut bytes = vec![0; 10];
    reader.read_exact(&mut bytes).context("magic not found for NPY file")?;
    let length = if bytes[6] > 1 {
        bytes.resize(12, 0);
        reader.read_exact(&mut bytes[10..])?;
        u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize
    } else {
        u16::from_le_bytes([bytes[8], bytes[9]]).into()
    };
    if !bytes.starts_with(b"\x93NUMPY") {
        bail!("magic not found for NPY file");
    }
    if length > MAX_HEADER {
        bail!("its header of {length} bytes is longer than {MAX_HEADER}");
    }
    let start = bytes.len();
    bytes.resize(start + length, 0);
    reader.read_exact(&mut bytes[start..])?;
    let mut nesting = 0usize;
    for byte in &bytes[start..] {
        match byte {
            b'(' | b'[' | b'{' => nesting += 1,
            b')' | b']' | b'}' => nesting = nesting.saturating_sub(1),
            _ => {}
        }
        if nesting > MAX_NESTING {
            bail!("its header nests deeper than {MAX_NESTING}");
        }
    }
    Ok(NpyHeader::from_reader(bytes.as_slice())?)
}

/// Reads the values after a header.
fn matrix(what: &str, header: &NpyHeader, reader: impl Read) -> Result<Tensor> {
    let &[rows, columns] = header.shape() else {
        bail!("{what}: expected a matrix (points, columns), got the shape {:?}", header.shape());
    };
    let Some((width, big_endian, decode)) = decoder(&header.dtype()) else {
        bail!("{what}: expected f2, f4, f8, integers or truth values, got {}", header.dtype().descr());
    };
    if rows == 0 || columns == 0 {
        bail!("{what}: is empty: shape {:?}", header.shape());
    }
    let bytes = rows.checked_mul(columns).and_then(|n| n.checked_mul(width)).filter(|&n| n < isize::MAX as u64);
    let bytes = bytes.with_context(|| format!("{what}: impossible shape {:?}", header.shape()))?;
    let mut data = Vec::new(); // grows with the data, because the header may be wrong
    // Read one byte more: a zip reader checks the checksum at the end of the data only.
    reader.take(bytes + 1).read_to_end(&mut data).with_context(|| format!("{what}: cannot be read"))?;
    if (data.len() as u64) < bytes {
        bail!("{what}: truncated: {} of {bytes} bytes of values", data.len());
    }
    data.truncate(bytes as usize);
    if big_endian {
        data.chunks_exact_mut(width as usize).for_each(<[u8]>::reverse);
    }
    let shape = [rows as usize, columns as usize];
    let values = match (decode(&data), header.order()) {
        (values, Order::C) => values,
        (Values::F32(values), Order::Fortran) => Values::F32(transposed(&values, shape)),
        (Values::F64(values), Order::Fortran) => Values::F64(transposed(&values, shape)),
    };
    values.into_matrix(shape).with_context(|| what.to_owned())
}

/// Converts column-major values to row-major.
fn transposed<T: Copy>(values: &[T], [rows, columns]: [usize; 2]) -> Vec<T> {
    (0..rows).flat_map(|row| (0..columns).map(move |column| values[column * rows + row])).collect()
}

type Decode = fn(&[u8]) -> Values;

/// Returns the bytes per value, whether the most significant byte comes first, and the decoder of little-endian values.
fn decoder(dtype: &DType) -> Option<(u64, bool, Decode)> {
    let DType::Plain(plain) = dtype else { return None };
    let decode: Decode = match (plain.endianness(), plain.type_char(), plain.size_field()) {
        (_, TypeChar::Bool, 1) => |b| Values::F64(each(b, |[b]: [u8; 1]| f64::from(b))),
        (_, TypeChar::Float, 2) => |b| Values::F32(each(b, |b| half(u16::from_le_bytes(b)))),
        (_, TypeChar::Float, 4) => |b| Values::F32(each(b, f32::from_le_bytes)),
        (_, TypeChar::Float, 8) => |b| Values::F64(each(b, f64::from_le_bytes)),
        (_, TypeChar::Int, 1) => |b| Values::F64(each(b, |b| i8::from_le_bytes(b).into())),
        (_, TypeChar::Int, 2) => |b| Values::F64(each(b, |b| i16::from_le_bytes(b).into())),
        (_, TypeChar::Int, 4) => |b| Values::F64(each(b, |b| i32::from_le_bytes(b).into())),
        (_, TypeChar::Int, 8) => |b| Values::F64(each(b, |b| i64::from_le_bytes(b) as f64)),
        (_, TypeChar::Uint, 1) => |b| Values::F64(each(b, |b| u8::from_le_bytes(b).into())),
        (_, TypeChar::Uint, 2) => |b| Values::F64(each(b, |b| u16::from_le_bytes(b).into())),
        (_, TypeChar::Uint, 4) => |b| Values::F64(each(b, |b| u32::from_le_bytes(b).into())),
        (_, TypeChar::Uint, 8) => |b| Values::F64(each(b, |b| u64::from_le_bytes(b) as f64)),
        _ => return None,
    };
    Some((plain.size_field(), plain.endianness() == Endianness::Big, decode))
}

/// Decodes every chunk of N bytes.
fn each<T, const N: usize>(bytes: &[u8], value: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&chunk| value(chunk)).collect()
}

/// Converts IEEE half precision to f32, exactly.
fn half(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    #[test]
    fn half_precision() {
        let of = super::half;
        assert_eq!(
            [0x3c00, 0xc000, 0x7bff, 0x0001, 0x0400].map(of),
            [1.0, -2.0, 65504.0, 2f32.powi(-24), 2f32.powi(-14)]
        );
        assert!(of(0x7e00).is_nan() && of(0xfc00) == f32::NEG_INFINITY && of(0x8000).is_sign_negative());
    }
}
