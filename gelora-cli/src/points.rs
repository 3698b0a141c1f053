//! Reads point files for `gelora id`: one or several matrices whose rows are points.
//!
//! Each format has a file. Values keep their type: f64 stays f64; integers and text become f64. Messages count rows and
//! columns from 1. NaN and infinity are passed on, because gelora-id reports them.

mod delimited;
mod npy;
mod parquet;
mod safetensors;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::{Context, Result, bail};
use gelora_kernels::Tensor;

/// File endings that [`read_points`] supports.
pub const FORMATS: [&str; 6] = ["npy", "npz", "safetensors", "csv", "tsv", "parquet"];

/// Reads every matrix (n, D) of a file, with its name. Names are those of a .npz or .safetensors file, with `layer_2`
/// before `layer_10`. In a format with one matrix the name is the file's name without its ending.
///
/// `tensor` selects one matrix by name. `columns` selects columns of a table. The default for .csv and .tsv is all
/// columns, which must be numeric. The default for .parquet is the only column of lists, or every numeric column if
/// there is no column of lists. A column that pandas would use for row numbers is left out by default. Columns that are
/// left out, or that only count the rows, are reported in `notes`.
///
/// # Errors
/// Returns an error if the file is missing, empty, damaged or of another kind, if it holds no matrix or not the
/// requested one, or if a cell is not a number. The message names the file and the place.
pub fn read_points(
    path: &Path,
    tensor: Option<&str>,
    columns: &[String],
    notes: &mut Vec<String>,
) -> Result<Vec<(String, Tensor)>> {
    let display = path.display();
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if !FORMATS.contains(&ending.as_str()) {
        bail!("{display}: not a point file: its name must end in .{}", FORMATS.join(", ."));
    }
    let metadata = std::fs::metadata(path).with_context(|| format!("{display}: cannot be read"))?;
    if !metadata.is_file() {
        bail!("{display}: expected a file, got a folder or device");
    }
    if metadata.len() == 0 {
        bail!("{display}: the file is empty");
    }
    let (is_archive, is_table) = match ending.as_str() {
        "npz" | "safetensors" => (true, false),
        "npy" => (false, false),
        _ => (false, true),
    };
    if let (Some(name), false) = (tensor, is_archive) {
        bail!("{display}: a .{ending} file holds one matrix, so none is named \"{name}\"");
    }
    if !columns.is_empty() && !is_table {
        bail!("{display}: columns can be chosen in .csv, .tsv and .parquet files only");
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
        let counting_columns: Vec<&String> =
            counting_columns(&matrix)?.into_iter().map(|column| &names[column]).collect();
        notes.extend(
            counting_columns
                .iter()
                .map(|name| format!("{name} only counts the rows; --columns selects the columns of the points")),
        );
    }
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(vec![(name, matrix)])
}

/// Returns true for names that pandas gives to a column of row numbers.
fn is_row_number(name: &str) -> bool {
    name.is_empty() || name == "__index_level_0__" || name.starts_with("Unnamed: ")
}

/// Returns the columns that count the rows: 0, 1, 2, ... or 1, 2, 3, ...
fn counting_columns(matrix: &Tensor) -> Result<Vec<usize>> {
    let (values, columns) = (matrix.to_vec_f64()?, matrix.cols());
    let counts = |column: &usize| {
        let first = values[*column];
        let mut rows = values.iter().skip(*column).step_by(columns).enumerate();
        (first == 0.0 || first == 1.0) && rows.all(|(row, value)| *value == first + row as f64)
    };
    Ok((0..columns).filter(|column| values.len() >= 4 * columns && counts(column)).collect())
}

/// Values of a row-major matrix.
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

/// Description of an array in an archive, before any array is read.
struct Entry {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    /// Whether the dtype is supported.
    readable: bool,
}

/// Returns the names of the matrices to read: the requested one, or all.
fn choose(path: &Path, mut entries: Vec<Entry>, tensor: Option<&str>) -> Result<Vec<String>> {
    let display = path.display();
    entries.sort_by_cached_key(|entry| numbered(&entry.name));
    let describe = |entry: &Entry| format!("{} {:?} {}", entry.name, entry.shape, entry.dtype);
    let is_matrix = |entry: &Entry| entry.shape.len() == 2 && entry.readable;
    let chosen: Vec<&Entry> = match tensor {
        None => entries.iter().filter(|entry| is_matrix(entry)).collect(),
        Some(name) => match entries.iter().find(|entry| entry.name == name) {
            Some(entry) if is_matrix(entry) => vec![entry],
            Some(entry) => bail!("{display}: expected a matrix (points, columns) of numbers, got {}", describe(entry)),
            None => {
                bail!("{display}: has no array \"{name}\"; it has {}", listed(entries.iter().map(|e| e.name.clone())))
            }
        },
    };
    if chosen.is_empty() {
        bail!(
            "{display}: holds no matrix (points, columns) of numbers; it has {}",
            listed(entries.iter().map(describe))
        );
    }
    Ok(chosen.into_iter().map(|entry| entry.name.clone()).collect())
}

/// Returns a sort key in which a number at the end of a name sorts by its value.
fn numbered(name: &str) -> (String, Option<u64>, String) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (stem.to_owned(), name[stem.len()..].parse().ok(), name.to_owned())
}

/// Returns a list for a message, shortened if it is long.
fn listed(names: impl Iterator<Item = String>) -> String {
    const MAX_NAMES: usize = 12;
    let names: Vec<String> = names.collect();
    match names.len() {
        0 => "nothing".to_owned(),
        n if n > MAX_NAMES => format!("{} and {} more", names[..MAX_NAMES].join(", "), n - MAX_NAMES),
        _ => names.join(", "),
    }
}
