//! Files in other layouts, encodings and separators, and folders.

use std::io::Write;

use super::*;
use crate::data::folder::Split;

fn good_with(name: &str, contents: impl AsRef<[u8]>, options: &ReadOptions) -> Dataset {
    let (_folder, path) = file(name, contents);
    read(&path, None, options).unwrap()
}

/// Returns the texts and classes of a file of three rows.
fn rows(name: &str, contents: impl AsRef<[u8]>) -> Vec<(String, String)> {
    let of = |e: Example| match e.label {
        Some(Label::Class(class)) => (e.text, class.to_string()),
        other => panic!("{other:?}"),
    };
    good(name, contents).examples.into_iter().map(of).collect()
}

#[test]
fn json_in_every_layout() {
    let want: Vec<(String, String)> =
        [("a [b]", "0"), ("c \"}{\" d", "1"), ("e\\", "2")].map(|(a, b)| (a.into(), b.into())).into();
    let objects =
        [r#"{"text": "a [b]", "label": 0}"#, r#"{"text": "c \"}{\" d", "label": 1}"#, r#"{"label": 2, "text": "e\\"}"#];
    let pretty: Vec<String> = objects.iter().map(|o| o.replace("{\"", "{\n  \"").replace(", \"", ",\n  \"")).collect();
    let list = format!("[{}]", objects.join(", "));
    let layouts = [
        objects.join("\n"),
        objects.join(" \r\n\n"),
        list.clone(),
        format!(" [\n{}\n]\n", pretty.join(",\n")),
        pretty.join("\n"),
        objects.join(""),
        format!("{{\"version\": \"1\", \"data\": {list}}}"),
        format!("{{\n \"about\": {{\"data\": [1]}},\n \"rows\":\n [\n{}\n],\n \"n\": 3}}\n", pretty.join(",\n")),
    ];
    for layout in &layouts {
        for name in ["a.json", "a.jsonl"] {
            assert_eq!(rows(name, layout), want, "{name}: {layout}");
        }
    }
    // An object per line may hold lists of objects.
    let chat = r#"{"messages": [{"role": "user", "content": "a"}]}"#;
    assert_eq!(good("a.json", chat).examples.len(), 1);
    // Line numbers of a list read in pieces are those of the file.
    let message = bad("a.json", "[\n {\n  \"text\": \"a\"\n },\n {\n  \"text\": 3\n }\n]");
    assert_eq!(message, "a.json: row 2 (line 5): \"text\" holds an integer, expected a string");
    assert!(bad("a.json", "{\"text\": \"a\"").starts_with("a.json: line 1 is not valid JSON: EOF"));
    assert!(bad("a.json", "{\n \"text\": \"a\"\n}\n}").contains("line 4 is not valid JSON"));
}

#[test]
fn the_header_determines_the_delimiter() {
    let want = vec![("good, she said".to_owned(), "1".to_owned()), ("bad".to_owned(), "0".to_owned())];
    for (name, text, noted) in [
        ("a.csv", "text;label\ngood, she said;1\nbad;0\n", true),
        ("a.csv", "id;\"text\";label\n1;\"good, she said\";1\n2;bad;0\n", true),
        ("a.csv", "text\tlabel\ngood, she said\t1\n\"bad\"\t0\n", true),
        ("a.tsv", "text|label\ngood, she said|1\nbad|0\n", true),
        ("a.csv", "sep=;\r\ntext;label\r\ngood, she said;1\r\nbad;0\r\n", true),
        ("a.csv", "text,label\n\"good, she said\",1\nbad,0\n", false),
        ("a.csv", "\"a;b\",text,label\n1,\"good, she said\",1\n2,bad,0\n", false),
    ] {
        assert_eq!(rows(name, text), want, "{text}");
        assert_eq!(good(name, text).notes.len(), usize::from(noted), "{text}");
    }
    let note = good("a.csv", "text;label\na;1\n").notes.remove(0);
    assert!(note.ends_with("a.csv: cells are separated by \";\""), "{note}");
    let options = ReadOptions { delimiter: Some(b'~'), ..ReadOptions::default() };
    assert_eq!(good_with("a.csv", "text~label\na,b;c~1\n", &options).examples[0].text, "a,b;c");
    // A single column needs no separator.
    assert_eq!(good("a.csv", "text\na;b|c\n").examples[0].text, "a;b|c");
}

#[test]
fn text_files_may_be_packed_or_utf_16() {
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let utf16 = |text: &str| [b"\xff\xfe".to_vec(), text.encode_utf16().flat_map(u16::to_le_bytes).collect()].concat();
    let want = vec![("naïve".to_owned(), "1".to_owned())];
    let csv = "text\tlabel\r\nnaïve\t1\r\n";
    assert_eq!(rows("a.csv", utf16(csv)), want);
    assert_eq!(rows("a.tsv.gz", gzip(csv)), want);
    let json = "{\"text\": \"naïve\", \"label\": 1}\n";
    assert_eq!(rows("a.jsonl", utf16(json)), want);
    assert_eq!(rows("a.jsonl.gz", gzip(json)), want);
    assert_eq!(rows("a.json", gzip(&format!("[{json}]"))), want);
    assert_eq!(good("a.txt.gz", gzip("one\n\ntwo\n")).examples.len(), 2);
}

#[test]
fn folders_have_splits() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str| std::fs::write(folder.path().join(name), format!("text,label\n{name},1\n")).unwrap();
    let read = |split| read(folder.path(), split, &ReadOptions::default()).map_err(|e| short(&e));
    let name = folder.path().file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(
        read(None).unwrap_err(),
        format!(
            "{name}: no file named train, validation or test that ends in .jsonl, .json, .csv, .tsv, .parquet or .txt"
        )
    );
    write("notes.csv");
    write("train.doc");
    write("train-notes.csv");
    assert!(read(None).is_err());
    write("dev.csv");
    assert_eq!(read(None).unwrap().path, folder.path().join("dev.csv"));
    write("Train-00000-of-00001.csv");
    assert_eq!(read(None).unwrap().examples[0].text, "Train-00000-of-00001.csv");
    assert_eq!(read(Some(Split::Validation)).unwrap().examples[0].text, "dev.csv");
    let found: Vec<Split> = splits(folder.path()).unwrap().into_iter().map(|part| part.split).collect();
    assert_eq!(found, [Split::Train, Split::Validation]);
    assert_eq!(
        read(Some(Split::Test)).unwrap_err(),
        format!("{name}: no test file; there is Train-00000-of-00001.csv and dev.csv")
    );
    // Of two names for one split the preferred one is read, and the other is reported.
    write("val.csv");
    let data = read(Some(Split::Validation)).unwrap();
    assert_eq!(data.examples[0].text, "val.csv");
    assert!(data.notes[0].ends_with("the validation split is val.csv; dev.csv is not read (give its path to read it)"));
    write("train.csv");
    assert_eq!(
        read(None).unwrap_err(),
        format!(
            "{name}: Train-00000-of-00001.csv and train.csv are both a train split; keep one, or give the path of \
             the file"
        )
    );
    assert_eq!(splits(&folder.path().join("dev.csv")).unwrap(), []);
}

#[test]
fn files_of_one_split_are_read_in_the_order_of_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let read = |split| read(folder.path(), split, &ReadOptions::default()).map_err(|e| short(&e));
    write("data/train-00001-of-00002-9f8e.csv", "text,label\nc,1\n\nd,\n");
    write("data/train-00000-of-00002-9f8e.csv", "text,label\na,1\nb,0\n");
    write("data/validation_matched-00000-of-00001.jsonl", "{\"text\": \"m\"}");
    write("data/validation_mismatched-00000-of-00001.jsonl", "{\"text\": \"mm\"}");
    write("test/0000.tsv", "text\tlabel\nt\t1\n");
    write("test/0001.tsv", "text\tlabel\nu\t1\n");
    let train = read(None).unwrap();
    let texts: Vec<&str> = train.examples.iter().map(|e| e.text.as_str()).collect();
    assert_eq!((texts, train.read, train.row(3)), (vec!["a", "b", "c", "d"], 4, 4));
    assert_eq!((&train.path, train.files().count()), (&folder.path().to_owned(), 2));
    assert!(train.place(3).ends_with("train-00001-of-00002-9f8e.csv: row 2 (line 4)"), "{}", train.place(3));
    assert!(train.place(1).ends_with("train-00000-of-00002-9f8e.csv: row 2 (line 3)"), "{}", train.place(1));
    assert_eq!(
        short(&labels(&[&train], None).unwrap_err()).split(':').next().unwrap(),
        "train-00001-of-00002-9f8e.csv"
    );
    let validation = read(Some(Split::Validation)).unwrap();
    assert_eq!((validation.examples[0].text.as_str(), validation.notes.len()), ("m", 1));
    assert_eq!(read(Some(Split::Test)).unwrap().examples.len(), 2);

    write("data/train-00001-of-00002-9f8e.csv", "text,stars\nc,1\n");
    let message = read(None).unwrap_err();
    assert!(message.contains("its columns are text, but those of"), "{message}");
    std::fs::remove_file(folder.path().join("data/train-00001-of-00002-9f8e.csv")).unwrap();
    let note = read(None).unwrap().notes.remove(0);
    assert!(note.ends_with("1 of 2 files of the train split are there"), "{note}");

    let several = tempfile::tempdir().unwrap();
    for config in ["de", "en"] {
        std::fs::create_dir(several.path().join(config)).unwrap();
        std::fs::write(several.path().join(config).join("train.csv"), "text,label\na,1\n").unwrap();
    }
    let message = short(&super::read(several.path(), None, &ReadOptions::default()).unwrap_err());
    assert!(message.ends_with("several folders have splits; give the path of one: de, en"), "{message}");
}

#[test]
fn texts_are_split_after_blank_lines_and_join_to_the_whole() {
    let text = "\nA first\nparagraph.\n\n \nA second.\n\nA third";
    let rows = good("a.txt", text);
    assert!(rows.running);
    assert_eq!(rows.examples.iter().map(|e| e.text.as_str()).collect::<String>(), text);
    assert_eq!(rows.examples.len(), 3);
    assert_eq!(rows.examples[0].text, "\nA first\nparagraph.\n\n \n");
    // Blank lines count.
    let places: Vec<String> = (0..3).map(|i| rows.place(i)).collect();
    assert!(["row 1 (line 2)", "row 2 (line 6)", "row 3 (line 8)"].iter().zip(&places).all(|(a, b)| b.ends_with(a)));
    assert_eq!(bad("a.txt", "\n \n"), "a.txt: the file has no text");
}
