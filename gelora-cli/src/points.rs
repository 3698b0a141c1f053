//! Point files: a matrix, or several, of which each row is a point, for `gelora id`.
//!
//! One file per format; each turns what is written into tensors of the type that is written: f64 stays f64, integers and
//! text become f64. Rows and columns are counted from 1 in messages. NaN and infinity pass: gelora-id names them.

mod delimited;
mod npy;
mod parquet;
mod safetensors;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_kernels::Tensor;

/// File endings that [`read_points`] knows.
pub const FORMATS: [&str; 6] = ["npy", "npz", "safetensors", "csv", "tsv", "parquet"];

/// Every matrix (n, D) of a file, by name: as named in a .npz or .safetensors file, `layer_2` before `layer_10`; the
/// file's name without its ending where there can be only one.
///
/// `tensor` picks one by name. `columns` picks columns of a table: .csv and .tsv (all of them by default, so that all must
/// be numeric) and .parquet (by default the one column of lists, or every numeric column if there is none). A column that is
/// named as pandas names row numbers is left out by default. What is left out, or counts the rows, is added to `notes`.
///
/// # Errors
/// If the file is missing, empty, damaged or of another kind, holds no matrix or not the one asked for, or has a cell
/// that is not a number. The message names the file and the place.
pub fn read_points(
    path: &Path,
    tensor: Option<&str>,
    columns: &[String],
    notes: &mut Vec<String>,
) -> Result<Vec<(String, Tensor)>> {
    let shown = path.display();
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if !FORMATS.contains(&ending.as_str()) {
        bail!("{shown}: not a point file: its name must end in .{}", FORMATS.join(", ."));
    }
    let metadata = std::fs::metadata(path).with_context(|| format!("{shown}: cannot be read"))?;
    if !metadata.is_file() {
        bail!("{shown}: expected a file, got a folder or device");
    }
    if metadata.len() == 0 {
        bail!("{shown}: the file is empty");
    }
    let (is_archive, is_table) = match ending.as_str() {
        "npz" | "safetensors" => (true, false),
        "npy" => (false, false),
        _ => (false, true),
    };
    if let (Some(name), false) = (tensor, is_archive) {
        bail!("{shown}: a .{ending} file holds one matrix, so none is named \"{name}\"");
    }
    if !columns.is_empty() && !is_table {
        bail!("{shown}: columns can be chosen in .csv, .tsv and .parquet files only");
    }
    let (matrix, names) = match ending.as_str() {
        "npz" => return npy::read_archive(path, tensor),
        "safetensors" => return safetensors::read(path, tensor),
        "npy" => (npy::read(path)?, Vec::new()),
        "csv" => delimited::read(path, b',', columns, notes)?,
        "tsv" => delimited::read(path, b'\t', columns, notes)?,
        _ => crate::contained::contained(path, || parquet::read(path, columns, notes))?,
    };
    if columns.is_empty() && names.len() == matrix.cols() && matrix.cols() > 1 {
        let counting: Vec<&String> = counting(&matrix)?.into_iter().map(|column| &names[column]).collect();
        notes.extend(
            counting.iter().map(|name| format!("{name} only counts the rows; --columns names those of the points")),
        );
    }
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(vec![(name, matrix)])
}

/// Whether pandas calls the number of a row so.
fn is_row_number(name: &str) -> bool {
    name.is_empty() || name == "__index_level_0__" || name.starts_with("Unnamed: ")
}

/// The columns that hold 0, 1, 2 and so on, or 1, 2, 3.
fn counting(matrix: &Tensor) -> Result<Vec<usize>> {
    let (values, columns) = (matrix.to_vec_f64()?, matrix.cols());
    let counts = |column: &usize| {
        let first = values[*column];
        let mut rows = values.iter().skip(*column).step_by(columns).enumerate();
        (first == 0.0 || first == 1.0) && rows.all(|(row, value)| *value == first + row as f64)
    };
    Ok((0..columns).filter(|column| values.len() >= 4 * columns && counts(column)).collect())
}

/// Values in the order of a row-major matrix.
enum Values {
    F32(Vec<f32>),
    F64(Vec<f64>),
}

impl Values {
    fn into_matrix(self, shape: [usize; 2]) -> gelora_kernels::Result<Tensor> {
        match self {
            Values::F32(values) => Tensor::from_vec(values, shape),
            Values::F64(values) => Tensor::from_f64(values, shape),
        }
    }
}

/// What an archive says of one of its arrays before any is read.
struct Entry {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    /// Whether the type is one that can be read.
    readable: bool,
}

/// The names of the matrices to read: the one asked for, or all.
fn choose(path: &Path, mut entries: Vec<Entry>, tensor: Option<&str>) -> Result<Vec<String>> {
    let shown = path.display();
    entries.sort_by_cached_key(|entry| numbered(&entry.name));
    let describe = |entry: &Entry| format!("{} {:?} {}", entry.name, entry.shape, entry.dtype);
    let is_matrix = |entry: &Entry| entry.shape.len() == 2 && entry.readable;
    let chosen: Vec<&Entry> = match tensor {
        None => entries.iter().filter(|entry| is_matrix(entry)).collect(),
        Some(name) => match entries.iter().find(|entry| entry.name == name) {
            Some(entry) if is_matrix(entry) => vec![entry],
            Some(entry) => bail!("{shown}: expected a matrix (points, columns) of numbers, got {}", describe(entry)),
            None => {
                bail!("{shown}: has no array \"{name}\"; it has {}", listed(entries.iter().map(|e| e.name.clone())))
            }
        },
    };
    if chosen.is_empty() {
        bail!("{shown}: holds no matrix (points, columns) of numbers; it has {}", listed(entries.iter().map(describe)));
    }
    Ok(chosen.into_iter().map(|entry| entry.name.clone()).collect())
}

/// A key that sorts a number at the end of a name by its value.
fn numbered(name: &str) -> (String, Option<u64>, String) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (stem.to_owned(), name[stem.len()..].parse().ok(), name.to_owned())
}

/// A list for a message, cut where it gets long.
fn listed(names: impl Iterator<Item = String>) -> String {
    const MOST: usize = 12;
    let names: Vec<String> = names.collect();
    match names.len() {
        0 => "nothing".to_owned(),
        n if n > MOST => format!("{} and {} more", names[..MOST].join(", "), n - MOST),
        _ => names.join(", "),
    }
}
