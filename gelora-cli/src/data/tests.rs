//! Valid files yield the same rows in every format, and every kind of broken file yields an error that names the place.

mod kinds;
mod layouts;

use std::path::PathBuf;
use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;

use super::*;

fn file(name: &str, contents: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, contents).unwrap();
    (folder, path)
}

fn read_with(name: &str, contents: impl AsRef<[u8]>, flags: &ColumnFlags) -> Result<Dataset> {
    let (_folder, path) = file(name, contents);
    read(&path, None, &ReadOptions { columns: flags.clone(), ..ReadOptions::default() })
}

fn good(name: &str, contents: impl AsRef<[u8]>) -> Dataset {
    read_with(name, contents, &ColumnFlags::default()).unwrap()
}

/// Returns the error of a broken file, without the folder of the test.
fn bad(name: &str, contents: impl AsRef<[u8]>) -> String {
    short(&read_with(name, contents, &ColumnFlags::default()).unwrap_err())
}

fn short(error: &anyhow::Error) -> String {
    let message = format!("{error:#}");
    let words: Vec<&str> = message.split(' ').collect();
    let cut = |word: &&str| word.rsplit('/').next().unwrap_or(word).to_owned();
    words.iter().map(|w| if w.starts_with('/') { cut(w) } else { (*w).to_owned() }).collect::<Vec<_>>().join(" ")
}

fn example(text: &str, pair: Option<&str>, label: Option<Label>) -> Example {
    Example { text: text.into(), pair: pair.map(str::to_owned), label, ..Example::default() }
}

fn class(name: &str) -> Option<Label> {
    Some(Label::Class(name.into()))
}

/// Returns a parquet file with the columns `sentence` and `label`, of strings and integers.
fn parquet_file(sentences: &[&[u8]], labels: &[i64], annotation: &str) -> Vec<u8> {
    parquet_in(Compression::UNCOMPRESSED, sentences, labels, annotation)
}

fn parquet_in(codec: Compression, sentences: &[&[u8]], labels: &[i64], annotation: &str) -> Vec<u8> {
    let schema = format!("message m {{ required binary sentence {annotation}; required int64 label; }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut bytes = Vec::new();
    let properties = Arc::new(WriterProperties::builder().set_compression(codec).build());
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let texts: Vec<ByteArray> = sentences.iter().map(|s| ByteArray::from(s.to_vec())).collect();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(labels, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn every_format_gives_the_same_rows_in_file_order() {
    let wanted = vec![
        example("good, she said", None, class("1")),
        example("bad\ttaste", None, class("0")),
        example("naïve", None, class("1")),
    ];
    let rows: [(&str, Vec<u8>); 7] = [
        (
            "a.jsonl",
            "{\"sentence\":\"good, she said\",\"label\":1}\n\n\
             {\"label\":0,\"sentence\":\"bad\\ttaste\"}\r\n{\"sentence\":\"naïve\",\"label\":1}"
                .into(),
        ),
        (
            "a.json",
            "[ {\"sentence\":\"good, she said\",\"label\":1},\n\
             {\"label\":0,\"sentence\":\"bad\\ttaste\"} , {\"sentence\":\"naïve\",\"label\":1}\n]\n"
                .into(),
        ),
        (
            "lines.json",
            "{\"sentence\":\"good, she said\",\"label\":1}\n\
             {\"label\":0,\"sentence\":\"bad\\ttaste\"}\n{\"sentence\":\"naïve\",\"label\":1}\n"
                .into(),
        ),
        ("a.csv", "id,sentence,label\n7,\"good, she said\",1\n8,bad\ttaste,0\n\n9,naïve,1\n".into()),
        ("bom.CSV", "\u{feff}sentence,label\r\n\"good, she said\",1\r\nbad\ttaste,0\r\nnaïve,1".into()),
        ("a.parquet", parquet_file(&[b"good, she said", b"bad\ttaste", "naïve".as_bytes()], &[1, 0, 1], "(UTF8)")),
        ("bytes.parquet", parquet_file(&[b"good, she said", b"bad\ttaste", "naïve".as_bytes()], &[1, 0, 1], "")),
    ];
    for (name, contents) in rows {
        assert_eq!(good(name, contents).examples, wanted, "{name}");
    }
}

#[test]
fn tsv_keeps_quotes_and_csv_reads_them() {
    let tsv = good("a.tsv", "sentence\tlabel\n\"Well\" he said, \"no\tyes\n");
    assert_eq!(tsv.examples, [example("\"Well\" he said, \"no", None, class("yes"))]);
    let csv = good("a.csv", "text,label\n\"\"\"Well\"\", he said\",yes\n\"two\nlines\",no\nlast,no\n");
    assert_eq!(csv.examples[0].text, "\"Well\", he said");
    assert_eq!(csv.examples[1].text, "two\nlines");
    assert_eq!(csv.place(2), format!("{}: row 3 (line 5)", csv.path.display()));
}

#[test]
fn pairs_scores_and_chats_are_recognized() {
    let stsb = good("a.jsonl", r#"{"sentence1":"a","sentence2":"b","label":5.0}"#);
    assert_eq!(stsb.examples, [example("a", Some("b"), Some(Label::Score(5.0)))]);
    let nli = good("a.tsv", "idx\tPremise\tHypothesis\tclass\n0\ta\tb\tneutral\n");
    assert_eq!(nli.examples, [example("a", Some("b"), class("neutral"))]);
    let qnli = good("a.csv", "question,sentence,label\nwhy,so,0\nhow,,1\n");
    assert_eq!(qnli.examples, [example("why", Some("so"), class("0")), example("how", None, class("1"))]);
    let mixed = good("a.jsonl", "{\"sentence1\":\"a\",\"sentence2\":\"\"}\n{\"sentence1\":\"b\"}");
    assert_eq!(mixed.examples, [example("a", Some(""), None), example("b", None, None)]);
    let sick = good("a.csv", "sentence_A,sentence_B,score\na,b,4\nc,d,3.5\n");
    assert_eq!(sick.examples[0].label, Some(Label::Score(4.0)));
    let chat = r#"{"input":[{"role":"system","content":"s"},{"role":"user","content":"u"}],"ideal":["1"]}"#;
    let turns = vec![Message::new("system", "s"), Message::new("user", "u")];
    assert_eq!(good("a.jsonl", chat).examples, [Example { chat: turns, ..example("u", None, class("1")) }]);
    let unlabeled = good("a.jsonl", "{\"review\":\"r\"}\n{\"review\":\"s\",\"label\":null}");
    assert_eq!(unlabeled.labeled(), 0);
    assert_eq!(unlabeled.columns.label.as_deref(), Some("label"));
    let numbers = good("a.csv", "text,label\na,1\nb,2.50\nc,true\nd,1e5\n");
    let found: Vec<_> = numbers.examples.into_iter().filter_map(|e| e.label).collect();
    let class = |name: &str| Label::Class(name.into());
    assert_eq!(found, [class("1"), Label::Score(2.5), class("true"), class("1e5")]);
}

#[test]
fn flags_override() {
    let contents = "text,title,body,label,stars\na,b,c,d,e\n";
    let flags = |text: Option<&str>, pair: Option<&str>, label: Option<&str>| ColumnFlags {
        text: text.map(Into::into),
        pair: pair.map(Into::into),
        label: label.map(Into::into),
        ..ColumnFlags::default()
    };
    let read = |flags| read_with("a.csv", contents, &flags).map(|d| d.examples[0].clone()).map_err(|e| short(&e));
    assert_eq!(read(flags(Some("title"), None, None)), Ok(example("b", None, class("d"))));
    assert_eq!(read(flags(None, Some("body"), Some("stars"))), Ok(example("a", Some("c"), class("e"))));
    assert_eq!(
        read(flags(None, None, Some("nope"))),
        Err("a.csv: no column \"nope\" (--label-column); the columns are text, title, body, label, stars".into())
    );
    assert_eq!(
        read(flags(None, Some("text"), None)),
        Err("a.csv: no text column recognized; the columns are text, title, body, label, stars: name one with \
             --text-column (and a second text with --pair-column, or an answer with --answer-column)"
            .into())
    );
    assert!(read(flags(Some("label"), None, None)).unwrap_err().contains("one column (\"label\") cannot be two of"));
}

#[test]
fn errors_of_text_files_name_the_line() {
    assert_eq!(
        bad("a.doc", "x"),
        "a.doc: not a data file: its name must end in .jsonl, .json, .csv, .tsv, .parquet or .txt"
    );
    assert_eq!(
        bad("data", "x"),
        "data: not a data file: its name must end in .jsonl, .json, .csv, .tsv, .parquet or .txt"
    );
    for name in ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"] {
        assert_eq!(bad(name, ""), format!("{name}: the file is empty"));
    }
    assert_eq!(bad("a.jsonl", " \n\n"), "a.jsonl: the file is empty");
    assert_eq!(bad("a.json", "[ ]"), "a.json: the file has no rows");
    assert_eq!(bad("a.csv", "text,label\n"), "a.csv: the file has no rows");
    for (name, bytes) in [
        ("a.jsonl", &b"{\"text\":\"a\"}\n{\"text\":\"b\xffc\"}\n"[..]),
        ("a.csv", b"text\nb\xffc\n"),
        ("a.tsv", b"text\nb\xffc\n"),
    ] {
        let message = bad(name, bytes);
        assert_eq!(message, format!("{name}: line 2 is not valid UTF-8; save the file in the encoding UTF-8"));
    }
    let missing = read(Path::new("/nowhere/a.csv"), None, &ReadOptions::default()).unwrap_err();
    assert_eq!(missing.to_string(), "/nowhere/a.csv: no such file or folder");
}

#[test]
fn errors_of_json_name_the_place() {
    let two = "{\"text\":\"a\"}\n{\"text\":\"b\",}\n";
    assert_eq!(bad("a.jsonl", two), "a.jsonl: line 2 is not valid JSON: trailing comma (column 13)");
    assert_eq!(
        bad("a.jsonl", "\n[1]"),
        "a.jsonl: row 1 (line 2) is not an object like {\"text\": \"...\", \"label\": ...}"
    );
    assert_eq!(
        bad("a.json", "[{\"text\":\"a\"},\n\n3]"),
        "a.json: row 2 (line 3) is not an object like {\"text\": \"...\", \"label\": ...}"
    );
    assert_eq!(
        bad("a.json", "[\n{\"text\":\"a\"}\n{\"text\""),
        "a.json: line 3 is not valid JSON: expected `,` or `]` after an object"
    );
    assert_eq!(
        bad("a.json", "[\n{\"text\":\"a\"},\n{\"text\"\n:}]"),
        "a.json: line 4 is not valid JSON: expected value (column 2)"
    );
    assert_eq!(bad("a.json", "[\n{\"text\":\"a\"},\n"), "a.json: line 3 ends a list that has no closing bracket");
    assert_eq!(
        bad("a.json", "[\n{\"text\":\"a\"}]\n x"),
        "a.json: line 3 is not valid JSON: text after the end of the list"
    );
    assert!(bad("a.json", "[{\"text\":\"a\"},]").starts_with("a.json: line 1 is not valid JSON"));
    assert!(bad("a.jsonl", "{\"text\":\"a\",\"label\":NaN}").starts_with("a.jsonl: line 1 is not valid JSON"));
    assert!(bad("a.jsonl", "[".repeat(100_000)).starts_with("a.jsonl: line 1 is not valid JSON: recursion limit"));
}

#[test]
fn errors_of_rows_name_the_row() {
    assert_eq!(
        bad("a.jsonl", "{\"text\":\"a\"}\n\n{\"label\":1}"),
        "a.jsonl: row 2 (line 3): no \"text\", but every row needs its text"
    );
    assert_eq!(bad("a.jsonl", "{\"text\":3}"), "a.jsonl: row 1 (line 1): \"text\" holds an integer, expected a string");
    assert_eq!(bad("a.csv", "text,label\n x ,1\n ,0\n"), "a.csv: row 2 (line 3): the text in \"text\" is empty");
    assert_eq!(
        bad("a.jsonl", "{\"premise\":\"a\",\"hypothesis\":\"b\"}\n{\"premise\":null,\"hypothesis\":\"b\"}"),
        "a.jsonl: row 2 (line 2): no \"premise\", but every row needs its text"
    );
    assert_eq!(
        bad("a.jsonl", "{\"text\":\"a\",\"label\":{\"a\":1}}"),
        "a.jsonl: row 1 (line 1): \"label\" holds an object, expected a string or a number"
    );
    assert_eq!(
        bad("a.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}\n{\"messages\":[]}"),
        "a.jsonl: row 2 (line 2): \"messages\" has no message of the user like \
         {\"role\": \"user\", \"content\": \"...\"}"
    );
    assert_eq!(
        bad("a.json", "[{\"command\":\"a\",\"output\":\"b\"}]"),
        "a.json: no text column recognized; the columns are command, output: name one with --text-column (and a \
         second text with --pair-column, or an answer with --answer-column)"
    );
    assert_eq!(
        bad("a.csv", "text,label\na,1\n\nb,1,2\n"),
        "a.csv: row 2 (line 4) has 3 cells, but the header has 2 (separated by \",\")"
    );
    assert_eq!(
        bad("a.tsv", "text\tlabel\na\n"),
        "a.tsv: row 1 (line 2) has 1 cells, but the header has 2 (separated by tabs)"
    );
    assert_eq!(
        bad("a.csv", "text,label\na,1\n\"b,1\nc,0\n"),
        "a.csv: a quote in the row that starts on line 3 is never closed"
    );
    assert_eq!(bad("a.csv", "text,text\na,b\n"), "a.csv: two columns are named \"text\"");
}

#[test]
fn bad_parquet_is_an_error() {
    assert_eq!(bad("a.parquet", parquet_file(&[], &[], "(UTF8)")), "a.parquet: the file has no rows");
    let message = bad("a.parquet", "text,label\na,1\n");
    assert!(message.starts_with("a.parquet: not a readable parquet file"), "{message}");
    let message = bad("a.parquet", parquet_file(&[b"ok", b"\xff"], &[1, 0], ""));
    assert_eq!(message, "a.parquet: row 2: \"sentence\" is not valid UTF-8");
    let message = bad("a.parquet", parquet_file(&[b"ok", b"\xff"], &[1, 0], "(UTF8)"));
    assert!(message.starts_with("a.parquet: row 2: "), "{message}");
    let whole = parquet_file(&[b"a", b"b", b"c"], &[0, 1, 0], "(UTF8)");
    for length in 1..whole.len() {
        assert!(bad("a.parquet", &whole[..length]).starts_with("a.parquet: "));
    }
    // Wrong bytes cause errors or stay unnoticed (there is no checksum), but never a panic.
    for index in 0..whole.len() {
        for flip in [1, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[index] ^= flip;
            if let Err(error) = read_with("a.parquet", damaged, &ColumnFlags::default()) {
                assert!(short(&error).starts_with("a.parquet: "), "{error:#}");
            }
        }
    }
}

#[test]
fn parquet_in_every_codec_gives_the_same_rows() {
    let texts: Vec<Vec<u8>> = (0..300).map(|i| format!("the film was good {}", i % 7).into_bytes()).collect();
    let (texts, labels): (Vec<&[u8]>, Vec<i64>) = (texts.iter().map(Vec::as_slice).collect(), (0..300).collect());
    let rows = |codec| good("a.parquet", parquet_in(codec, &texts, &labels, "(UTF8)")).examples;
    let plain = rows(Compression::UNCOMPRESSED);
    assert_eq!((plain.len(), plain[299].text.as_str()), (300, "the film was good 5"));
    let codecs = [
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::BROTLI(Default::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(Default::default()),
    ];
    for codec in codecs {
        assert!(rows(codec) == plain, "{codec:?}");
    }
}

#[test]
fn parquet_floats_are_scores_and_nan_is_missing() {
    let schema =
        Arc::new(parse_message_type("message m { required double score; required binary text (UTF8); }").unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<DoubleType>().write_batch(&[2.0, f64::NAN], None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&[ByteArray::from("a"), ByteArray::from("b")], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    let data = good("a.parquet", bytes);
    assert_eq!(data.examples, [example("a", None, Some(Label::Score(2.0))), example("b", None, None)]);
    assert_eq!(short(&labels(&[&data], None).unwrap_err()), "a.parquet: row 2: no label in \"score\"");
}

#[test]
fn labels_become_targets() {
    let classes = |names: &[&str]| LabelSet::Classes(names.iter().map(|n| (*n).to_owned()).collect());
    let data = good("a.csv", "text,label\na,10\nb,9\nc,-1\nd,9\n");
    assert_eq!(labels(&[&data], None).unwrap(), classes(&["-1", "9", "10"]));
    assert_eq!(labels(&[&data], None).unwrap().targets(&data).unwrap(), Targets::Classes(vec![2, 1, 0, 1]));
    assert_eq!(labels(&[&data], Some(Task::Regression)).unwrap(), LabelSet::Scores);
    assert_eq!(LabelSet::Scores.targets(&data).unwrap(), Targets::Scores(vec![10.0, 9.0, -1.0, 9.0]));
    let named = good("a.csv", "text,label\na,rotten\nb,fresh\nc,10\n");
    assert_eq!(labels(&[&named], None).unwrap(), classes(&["10", "fresh", "rotten"]));
    let mixed =
        good("a.jsonl", "{\"text\":\"a\",\"label\":1}\n{\"text\":\"b\",\"label\":2.5}\n{\"text\":\"c\",\"label\":2.0}");
    assert_eq!(labels(&[&mixed], None).unwrap(), LabelSet::Scores);
    assert_eq!(labels(&[&mixed], Some(Task::Classification)).unwrap(), classes(&["1", "2", "2.5"]).clone());
}

#[test]
fn errors_of_labels_name_the_row() {
    let fail = |contents: &str, task| short(&labels(&[&good("a.csv", contents)], task).unwrap_err());
    assert_eq!(
        fail("text,label\na,1\nb,1\n", None),
        "a.csv: every row has the label \"1\", but classification needs two classes"
    );
    assert_eq!(fail("text,label\na,1\nb,\n", None), "a.csv: row 2 (line 3): no label in \"label\"");
    assert_eq!(
        fail("text,gold\na,1\n", None),
        "a.csv: no label column recognized; the columns are text, gold: name one with --label-column, or one for each \
         class with --label-columns"
    );
    assert!(
        fail("text,label\na,1.5\nb,good\n", None)
            .starts_with("a.csv: row 2 (line 3): the label \"good\" is not a number")
    );
    assert_eq!(
        fail("text,label\na,bad\nb,good\n", Some(Task::Regression)),
        "a.csv: row 1 (line 2): the label \"bad\" is not a number, as regression needs"
    );
    let trained = LabelSet::Classes(vec!["0".into(), "1".into()]);
    assert_eq!(
        short(&trained.targets(&good("test.csv", "text,label\na,1\nb,2\n")).unwrap_err()),
        "test.csv: row 2 (line 3): the label \"2\" is not among those trained on: 0, 1"
    );
}

#[test]
fn instructions_and_prompts_have_answers() {
    let rows = good(
        "a.jsonl",
        "{\"instruction\": \"Add\", \"input\": \"1 2\", \"output\": \"3\"}\n{\"instruction\": \"Go\", \"input\": \
         \"\", \"output\": \"ok\"}\n",
    );
    let texts: Vec<&str> = rows.examples.iter().map(|e| e.text.as_str()).collect();
    assert_eq!(texts[0], "### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:\n");
    assert_eq!(texts[1], "### Instruction:\nGo\n\n### Response:\n");
    assert_eq!(rows.examples[0].answer.as_deref(), Some("3"));
    let rows = good("a.csv", "prompt,completion\nsay,it\n");
    assert_eq!((rows.examples[0].text.as_str(), rows.examples[0].answer.as_deref()), ("say", Some("it")));
    assert!(rows.has_answers() && !rows.running);
    // A column named by the user is a text, whatever the other columns are.
    let flags = ColumnFlags { text: Some("prompt".into()), ..Default::default() };
    let rows = read_with("a.csv", "prompt,completion,label\nsay,it,1\n", &flags).unwrap();
    assert_eq!((rows.examples[0].answer.as_deref(), rows.labeled()), (None, 1));
}

#[test]
fn conversations_keep_their_turns_and_name_other_content() {
    let mut rows = good(
        "chats.jsonl",
        concat!(
            r#"{"messages": [{"role": "user", "content": "a"}, "#,
            r#"{"role": "assistant", "content": null, "tool_calls": [1]}], "label": 1}"#,
            "\n",
            r#"{"messages": [{"from": "human", "content": null, "value": "b"}, "#,
            r#"{"from": "gpt", "value": [{"type": "text", "text": "c"}]}], "label": 0}"#,
        ),
    );
    let others: Vec<_> = rows.examples.iter().map(|e| e.chat[1].other).collect();
    assert_eq!((others, rows.labeled(), rows.has_answers()), (vec![Some("tool_calls"), None], 2, true));
    assert_eq!(rows.examples[1].chat, [Message::new("user", "b"), Message::new("assistant", "c")]);
    assert_eq!([rows.examples[0].text.as_str(), &rows.examples[1].text], ["a", "b"]);
    rows.take_texts();
    assert!(!rows.has_answers());
    let message = bad("chats.jsonl", r#"{"messages": [{"content": "a"}]}"#);
    assert!(message.starts_with("chats.jsonl: row 1 (line 1): message 1 in \"messages\" is not like"), "{message}");
}
