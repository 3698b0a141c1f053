use std::fs;
use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Arc;

use gelora_kernels::{DType, Tensor};
use npyz::WriterBuilder;
use parquet::data_type::{DoubleType, FloatType, Int64Type};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use tempfile::TempDir;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::read_points;

/// Returns a folder with one file.
fn file(name: &str, bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn names(columns: &[&str]) -> Vec<String> {
    columns.iter().map(|&c| c.to_owned()).collect()
}

/// Reads the only matrix of a file. Returns its dtype, shape and values.
fn good(name: &str, bytes: &[u8], columns: &[&str]) -> (DType, Vec<usize>, Vec<f64>) {
    let (_folder, path) = file(name, bytes);
    let mut all = read_points(&path, None, &names(columns), &mut Vec::new()).unwrap();
    let (got, matrix) = all.pop().unwrap();
    assert!(all.is_empty() && name.starts_with(&got), "{got}");
    (matrix.dtype(), matrix.shape().to_vec(), matrix.to_vec_f64().unwrap())
}

/// Returns the error of a file, without its folder.
fn bad(name: &str, bytes: &[u8], tensor: Option<&str>, columns: &[&str]) -> String {
    let (folder, path) = file(name, bytes);
    let error = read_points(&path, tensor, &names(columns), &mut Vec::new()).unwrap_err();
    format!("{error:#}").replace(&format!("{}/", folder.path().display()), "")
}

/// Returns a .npy file in the form of numpy.
fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let fortran = if fortran { "True" } else { "False" };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
    header.push_str(&" ".repeat(63 - (10 + header.len()) % 64));
    header.push('\n');
    let length = u16::try_from(header.len()).unwrap().to_le_bytes();
    [b"\x93NUMPY\x01\0", length.as_slice(), header.as_bytes(), data].concat()
}

fn f64s(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn npy_in_every_type_and_order() {
    let want = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let shape = vec![2, 3];
    let c = f64s(&want);
    assert_eq!(good("a.npy", &npy("<f8", false, "(2, 3)", &c), &[]), (DType::F64, shape.clone(), want.clone()));
    let fortran = f64s(&[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    assert_eq!(good("a.NPY", &npy("<f8", true, "(2, 3)", &fortran), &[]), (DType::F64, shape.clone(), want.clone()));
    let f4: Vec<u8> = [1f32, 4.0, 2.0, 5.0, 3.0, 6.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(good("a.npy", &npy("<f4", true, "(2, 3)", &f4), &[]), (DType::F32, shape.clone(), want.clone()));
    let f2: Vec<u8> =
        [0x3c00u16, 0x4000, 0x4200, 0x4400, 0x4500, 0x4600].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(good("a.npy", &npy("<f2", false, "(2, 3)", &f2), &[]), (DType::F32, shape.clone(), want.clone()));
    assert_eq!(good("a.npy", &npy("|u1", false, "(2, 3)", &[1, 2, 3, 4, 5, 6]), &[]).2, want);
    let big: Vec<u8> = [1f32, 4.0, 2.0, 5.0, 3.0, 6.0].iter().flat_map(|v| v.to_be_bytes()).collect();
    assert_eq!(good("a.npy", &npy(">f4", true, "(2, 3)", &big), &[]), (DType::F32, shape.clone(), want.clone()));
    let big: Vec<u8> = want.iter().flat_map(|v| v.to_be_bytes()).collect();
    assert_eq!(good("a.npy", &npy(">f8", false, "(2, 3)", &big), &[]), (DType::F64, shape.clone(), want.clone()));
    let big: Vec<u8> = [-1i32, 1 << 20].iter().flat_map(|v| v.to_be_bytes()).collect();
    assert_eq!(good("a.npy", &npy(">i4", false, "(2, 1)", &big), &[]).2, [-1.0, 2f64.powi(20)]);
    assert_eq!(good("a.npy", &npy(">f2", false, "(1, 2)", &[0x3c, 0, 0x40, 0]), &[]).2, [1.0, 2.0]);
    assert_eq!(good("a.npy", &npy("|b1", false, "(1, 2)", &[1, 0]), &[]).2, [1.0, 0.0]);
    let i8s: Vec<u8> = [-1i64, 1 << 40].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(good("a.npy", &npy("<i8", false, "(2, 1)", &i8s), &[]).2, [-1.0, 2f64.powi(40)]);
    assert!(good("a.npy", &npy("<f8", false, "(1, 1)", &f64s(&[f64::NAN])), &[]).2[0].is_nan());
}

#[test]
fn errors_of_npy_name_the_problem() {
    let data = f64s(&[1.0, 2.0]);
    assert_eq!(
        bad("a.npy", &npy("<f8", false, "(2,)", &data), None, &[]),
        "a.npy: expected a matrix (points, columns), got the shape [2]"
    );
    assert_eq!(
        bad("a.npy", &npy("<f8", false, "(2, 2)", &data), None, &[]),
        "a.npy: truncated: 16 of 32 bytes of values"
    );
    assert_eq!(bad("a.npy", &npy("<f8", false, "(0, 2)", b""), None, &[]), "a.npy: is empty: shape [0, 2]");
    let huge = npy("<f8", false, "(4611686018427387904, 4)", &data);
    assert!(bad("a.npy", &huge, None, &[]).contains("impossible shape"));
    assert!(
        bad("a.npy", &npy("<c16", false, "(1, 1)", &data), None, &[])
            .contains("expected f2, f4, f8, integers or truth values, got '<c16'")
    );
    assert!(bad("a.npy", b"hello", None, &[]).starts_with("a.npy: not a readable .npy file"));
}

/// Length and nesting of a header are checked before memory is allocated.
#[test]
fn headers_of_npy_are_bounded() {
    let mut long = b"\x93NUMPY\x02\0".to_vec();
    long.extend(u32::MAX.to_le_bytes());
    assert_eq!(
        bad("a.npy", &long, None, &[]),
        "a.npy: not a readable .npy file: its header of 4294967295 bytes is longer than 65536"
    );
    let deep = npy("<f8", false, &"(".repeat(60_000), b"");
    assert_eq!(bad("a.npy", &deep, None, &[]), "a.npy: not a readable .npy file: its header nests deeper than 32");
}

#[test]
fn files_and_options_are_checked_before_reading() {
    assert_eq!(
        bad("a.txt", b"1", None, &[]),
        "a.txt: not a point file: its name must end in .npy, .npz, .safetensors, .csv, .tsv, .parquet"
    );
    for ending in super::FORMATS {
        let name = format!("a.{ending}");
        assert_eq!(bad(&name, b"", None, &[]), format!("{name}: the file is empty"));
        assert!(bad(&name, b"\0\xff\xfe", None, &[]).starts_with(&name));
    }
    assert!(bad("a.csv", b"1", Some("x"), &[]).contains("holds one matrix, so none is named \"x\""));
    assert!(bad("a.npy", b"1", None, &["x"]).contains("columns can be chosen in"));
    let missing = read_points("/no/such.csv".as_ref(), None, &[], &mut Vec::new()).unwrap_err();
    assert!(format!("{missing:#}").starts_with("/no/such.csv: cannot be read: No such file"));
}

/// Returns a .npz file with the matrices `s_2` and `s_10`, a vector, and a file that is no array. `s_2` is not
/// compressed.
fn npz() -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, shape) in [("s_10", vec![1, 2]), ("bias", vec![2]), ("s_2", vec![2, 1])] {
        let method = if name == "s_2" { CompressionMethod::Stored } else { CompressionMethod::Deflated };
        let options = SimpleFileOptions::default().compression_method(method);
        archive.start_file(format!("{name}.npy"), options).unwrap();
        let mut array =
            npyz::WriteOptions::<f32>::new().default_dtype().shape(&shape).writer(&mut archive).begin_nd().unwrap();
        array.extend([1f32, 2.0]).unwrap();
        array.finish().unwrap();
    }
    archive.start_file("notes.txt", SimpleFileOptions::default()).unwrap();
    archive.finish().unwrap().into_inner()
}

fn safetensors() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let tensor = |shape: &[usize]| Tensor::from_f64(vec![1.0, 2.0], shape).unwrap();
    let tensors = [("s_10", tensor(&[1, 2])), ("bias", tensor(&[2])), ("s_2", tensor(&[2, 1]))];
    gelora_lora::files::write_tensors(&path, tensors.iter().map(|(name, tensor)| (*name, tensor))).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn archives_give_their_matrices_by_name() {
    for (name, bytes, dtype) in [("a.npz", npz(), DType::F32), ("a.safetensors", safetensors(), DType::F64)] {
        let (_folder, path) = file(name, &bytes);
        let all = read_points(&path, None, &[], &mut Vec::new()).unwrap();
        let got: Vec<_> = all.iter().map(|(name, t)| (name.as_str(), t.shape(), t.dtype())).collect();
        assert_eq!(got, [("s_2", [2, 1].as_slice(), dtype), ("s_10", [1, 2].as_slice(), dtype)]);
        let one = read_points(&path, Some("s_10"), &[], &mut Vec::new()).unwrap();
        assert_eq!((one.len(), one[0].1.to_vec().unwrap()), (1, vec![1.0, 2.0]));

        assert!(
            bad(name, &bytes, Some("bias"), &[])
                .starts_with(&format!("{name}: expected a matrix (points, columns) of numbers, got bias [2] "))
        );
        assert_eq!(
            bad(name, &bytes, Some("s_3"), &[]),
            format!("{name}: has no array \"s_3\"; it has bias, s_2, s_10")
        );
        assert!(bad(name, &bytes[..bytes.len() - 30], None, &[]).starts_with(name));
    }
}

/// A value is changed without its checksum.
#[test]
fn damaged_npz_is_an_error() {
    let mut bytes = npz();
    let value = bytes.windows(8).position(|w| w == [0, 0, 128, 63, 0, 0, 0, 64]).unwrap();
    bytes[value] = 1;
    assert_eq!(bad("a.npz", &bytes, None, &[]), "a.npz: \"s_2\": cannot be read: Invalid checksum");
}

#[test]
fn integers_in_safetensors_are_skipped() {
    let header = br#"{"x":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},
 "y":{"dtype":"I32","shape":[1,1],"data_offsets":[4,8]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &1f32.to_le_bytes(), &[0; 4]].concat();
    let (_folder, path) = file("a.safetensors", &bytes);
    assert_eq!(read_points(&path, None, &[], &mut Vec::new()).unwrap().len(), 1);
    assert!(bad("a.safetensors", &bytes, Some("y"), &[]).contains("got y [1, 1] I32"));
}

#[test]
fn tables_with_and_without_a_header() {
    let want = (DType::F64, vec![2, 2], vec![1.0, -2.5, 3.0, 4e-3]);
    assert_eq!(good("a.csv", b"1,-2.5\n3, 4e-3\n", &[]), want);
    assert_eq!(good("a.csv", b"\xef\xbb\xbfx,\"y\"\r\n1,-2.5\r\n\r\n3,\"4e-3\"", &[]), want);
    assert_eq!(good("a.tsv", b"x\ty\n1\t-2.5\n3\t4e-3\n", &[]), want);
    assert_eq!(good("a.csv", b"x,label,y\n1,good,-2.5\n3,bad,4e-3\n", &["x", "y"]), want);
    // Column names that are numbers, as pandas writes them.
    assert_eq!(good("a.csv", b"0,label,1\n1,good,-2.5\n3,bad,4e-3\n", &["0", "1"]), want);
    assert_eq!(good("a.csv", b"7,1,-2.5\n7,3,4e-3\n", &["2", "3"]), want);
    assert!(good("a.csv", b"nan,1\n2,inf", &[]).2[0].is_nan());
}

#[test]
fn errors_of_tables_name_row_and_column() {
    let csv = |text: &str, columns: &[&str]| bad("a.csv", text.as_bytes(), None, columns);
    assert_eq!(
        csv("x,y\n1,2\n\n3,four\n", &[]),
        "a.csv: row 2 (line 4), column 2 \"y\": expected a number, got \"four\""
    );
    assert_eq!(csv("1,2\n3,\n", &[]), "a.csv: row 2 (line 2), column 2: expected a number, got \"\"");
    assert_eq!(csv("1,two\n3,4\n", &[]), "a.csv: row 1 (line 1), column 2: expected a number, got \"two\"");
    assert_eq!(csv("1,2\n3,4,5\n", &[]), "a.csv: row 2 (line 2) has 3 cells, but the first row has 2");
    assert_eq!(csv("x,y\n3\n", &[]), "a.csv: row 1 (line 2) has 1 cells, but the header has 2");
    assert_eq!(csv("x,y\n", &[]), "a.csv: has a header, but no rows");
    assert_eq!(csv("\n\n", &[]), "a.csv: the file is empty");
    assert_eq!(csv("x,y\n1,2\n", &["z"]), "a.csv: has no column \"z\"; it has x, y");
    assert_eq!(csv("x,x\n1,2\n", &["x"]), "a.csv: two columns are named \"x\"");
    assert!(csv("1,2\n", &["3"]).contains("numbers from 1 to 2, not \"3\""));
}

/// Returns a parquet file with one row group. `write` writes the columns of the schema in order.
fn parquet_file(schema: &str, write: impl FnOnce(&mut SerializedFileWriter<&mut Vec<u8>>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Default::default()).unwrap();
    write(&mut writer);
    writer.flush().unwrap();
    writer.close().unwrap();
    bytes
}

macro_rules! columns {
    ($writer:expr, $($kind:ty: $values:expr, $definition:expr, $repetition:expr);+) => {{
        let mut group = $writer.next_row_group().unwrap();
        $(
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<$kind>().write_batch($values, $definition, $repetition).unwrap();
            column.close().unwrap();
        )+
        group.close().unwrap();
    }};
}

#[test]
fn parquet_columns_side_by_side() {
    let schema = "message m { required double x; required int64 day (TIMESTAMP(MILLIS, true)); required int64 y; }";
    let bytes = parquet_file(schema, |w| {
        columns!(w, DoubleType: &[1.0, 2.5], None, None;
            Int64Type: &[7, 8], None, None; Int64Type: &[3, -4], None, None);
    });
    assert_eq!(good("a.parquet", &bytes, &[]), (DType::F64, vec![2, 2], vec![1.0, 3.0, 2.5, -4.0]));
    assert_eq!(good("a.parquet", &bytes, &["y", "x"]).2, [3.0, 1.0, -4.0, 2.5]);
    assert_eq!(bad("a.parquet", &bytes, None, &["z"]), "a.parquet: has no column \"z\"; it has x, day, y");
    assert!(
        bad("a.parquet", &bytes, None, &["day"])
            .starts_with("a.parquet: row 1, column \"day\": expected a number, got ")
    );
    assert!(bad("a.parquet", &bytes[..50], None, &[]).starts_with("a.parquet: not a readable parquet file"));
}

#[test]
fn parquet_null_is_not_a_number() {
    let bytes =
        parquet_file("message m { optional float x; }", |w| columns!(w, FloatType: &[1.0], Some(&[1, 0]), None));
    assert_eq!(bad("a.parquet", &bytes, None, &[]), "a.parquet: row 2, column \"x\": expected a number, got null");
}

#[test]
fn parquet_lists_of_one_length() {
    let schema = "message m { required int64 id (TIMESTAMP(MILLIS, true)); \
                  optional group e (LIST) { repeated group list { optional float element; } } }";
    let lists = |repetition: &[i16]| {
        parquet_file(schema, |w| {
            columns!(w, Int64Type: &[7, 8], None, None;
                FloatType: &[1.0, 2.0, 3.0, 4.0], Some(&[3; 4]), Some(repetition));
        })
    };
    assert_eq!(good("a.parquet", &lists(&[0, 1, 0, 1]), &[]), (DType::F32, vec![2, 2], vec![1.0, 2.0, 3.0, 4.0]));
    assert_eq!(bad("a.parquet", &lists(&[0, 0, 1, 1]), None, &[]), "a.parquet: row 2 has 3 values, but row 1 has 1");
}

/// Files of the fixtures, written by numpy.
#[test]
fn the_fixtures_are_read() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/points");
    let mut read = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let matrices = read_points(&path, None, &[], &mut Vec::new()).unwrap();
        assert!(matrices[0].1.rows() >= 300, "{}", path.display());
        read += 1;
    }
    assert!(read >= 3);
}

/// Returns the shape of a file's points, and the notes on it.
fn noted(name: &str, bytes: &[u8], columns: &[&str]) -> (Vec<usize>, Vec<String>) {
    let (_folder, path) = file(name, bytes);
    let mut notes = Vec::new();
    let matrices = read_points(&path, None, &names(columns), &mut notes).unwrap();
    (matrices[0].1.shape().to_vec(), notes)
}

#[test]
fn lists_are_the_points_if_there_are_numbers_too() {
    let beside = "message m { required double score; \
                  required group e (LIST) { repeated group list { required float element; } } \
                  required int64 __index_level_0__; }";
    let bytes = parquet_file(beside, |w| {
        columns!(w, DoubleType: &[0.5, 0.25], None, None;
            FloatType: &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], Some(&[1; 6]), Some(&[0, 1, 1, 0, 1, 1]);
            Int64Type: &[0, 1], None, None);
    });
    let (shape, notes) = noted("a.parquet", &bytes, &[]);
    assert_eq!(shape, [2, 3]);
    assert_eq!(
        notes,
        ["the points are the lists in e; not in them: score, __index_level_0__ (--columns takes others)"]
    );
    assert_eq!(noted("a.parquet", &bytes, &["score"]), (vec![2, 1], vec![]));

    let two = beside.replace(
        "required double score;",
        "required group f (LIST) { repeated group list { required double element; } }",
    );
    let bytes = parquet_file(&two, |w| {
        columns!(w, DoubleType: &[0.5, 0.25], Some(&[1; 2]), Some(&[0, 0]);
            FloatType: &[1.0, 2.0], Some(&[1; 2]), Some(&[0, 0]); Int64Type: &[0, 1], None, None);
    });
    let message = bad("a.parquet", &bytes, None, &[]);
    assert_eq!(message, "a.parquet: has several columns of lists, choose one with --columns: f, e, __index_level_0__");
}

#[test]
fn row_numbers_are_reported() {
    let csv = |text: &str| noted("a.csv", text.as_bytes(), &[]);
    let (shape, notes) = csv("Unnamed: 0,x,y\n5,1,2\n9,3,4\n");
    assert_eq!((shape, notes.len()), (vec![2, 2], 1));
    assert_eq!(notes[0], "not in the points: the row number \"Unnamed: 0\" (--columns takes it)");
    assert_eq!(csv(",x,y\n5,1,2\n9,3,4\n").0, [2, 2]);
    let (shape, notes) = csv("n,x\n0,5\n1,1\n2,4\n3,4\n");
    assert_eq!(shape, [4, 2]);
    assert_eq!(notes, ["column 1 \"n\" only counts the rows; --columns selects the columns of the points"]);
    assert_eq!(csv("1,5\n2,1\n3,4\n4,4\n").1.len(), 1);
    assert!(csv("n,x\n0,5\n1,1\n2,4\n4,4\n").1.is_empty());
    assert_eq!(noted("a.csv", b"Unnamed: 0,x\n5,1\n9,3\n", &["Unnamed: 0"]), (vec![2, 1], vec![]));
    let bytes = parquet_file("message m { required double x; required int64 __index_level_0__; }", |w| {
        columns!(w, DoubleType: &[1.0, 2.5], None, None; Int64Type: &[7, 8], None, None);
    });
    let (shape, notes) = noted("a.parquet", &bytes, &[]);
    assert_eq!((shape, notes.len()), (vec![2, 1], 1));
}
