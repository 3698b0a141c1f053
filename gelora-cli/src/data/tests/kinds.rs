//! Columns, roles, labels and rows in the forms that users have.

use super::*;

fn with(name: &str, contents: &str, options: &ReadOptions) -> Result<Dataset> {
    let (_folder, path) = file(name, contents);
    read(&path, None, options)
}

fn aimed(name: &str, contents: &str, aim: Aim) -> Dataset {
    let columns = ColumnFlags { aim, ..ColumnFlags::default() };
    with(name, contents, &ReadOptions { columns, ..ReadOptions::default() }).unwrap()
}

fn used(data: &Dataset) -> String {
    let used: Vec<String> = data.columns.used().iter().map(|(role, name)| format!("{role} {name}")).collect();
    format!("{}; {}", used.join(", "), data.columns.ignored().join(", "))
}

#[test]
fn questions_with_answers_are_pairs_or_prompts() {
    let rows = "{\"question\": \"why so\", \"answer\": \"it is\"}\n{\"question\": \"how\", \"answer\": \" \"}";
    let mut data = good("a.jsonl", rows);
    assert_eq!(data.examples[0], example("why so", Some("it is"), None));
    assert!(data.has_answers());
    data.take_answers().unwrap();
    assert_eq!((used(&data).as_str(), data.examples.len()), ("text question, answer answer; ", 1));
    assert_eq!((data.examples[0].pair.as_deref(), data.examples[0].answer.as_deref()), (None, Some("it is")));
    assert_eq!(data.left_out[0], LeftOut { rows: 1, why: "the answer in \"answer\" is empty".into() });
    let with_label = aimed("a.jsonl", &rows.replace("}", ", \"label\": 1}"), Aim::Answers);
    assert_eq!(used(&with_label), "text question, answer answer; label");
    let labeled = good("a.jsonl", rows.replace("}", ", \"label\": 1}"));
    assert_eq!(used(&labeled), "text question, pair answer, label label; ");

    // Other column names in other formats. A truth value is no answer.
    for (name, rows, want) in [
        ("a.csv", "input,output\nthe one,two\n", "text input, answer output; "),
        ("a.jsonl", "{\"query\": \"a\", \"response\": \"b\"}", "text query, answer response; "),
        (
            "a.jsonl",
            "{\"question\": \"a\", \"passage\": \"b\", \"answer\": true}",
            "text question, pair passage; answer",
        ),
    ] {
        assert_eq!(used(&good(name, rows)), want);
    }
}

#[test]
fn unused_text_columns_are_reported() {
    let unused = |rows: &str| good("a.jsonl", rows).columns.unused_texts;
    let prompt = r#"{"context": "a long story", "prompt": "a", "completion": "b", "id": "x7", "n": 3}"#;
    assert_eq!(unused(prompt), ["context"]);
    assert_eq!(used(&good("a.jsonl", prompt)), "text prompt, answer completion; context, id, n");
    assert_eq!(unused(r#"{"instruction": "a", "output": "b", "history": [["a b", "c"]]}"#), ["history"]);
    assert_eq!(unused(r#"{"text": "a", "title": "The Title", "label": 1}"#), ["title"]);
    assert!(unused("{\"text\": \"a\", \"tools\": [], \"title\": \"one\"}").is_empty());
    assert_eq!(good("a.csv", "text,title,score\na,b,1\nc,two words,2\n").columns.unused_texts, ["title"]);

    let mut pair = good("a.jsonl", r#"{"premise": "a", "hypothesis": "b", "id": 3}"#);
    let message = short(&pair.take_answers().unwrap_err());
    assert!(
        message.contains("\"premise\" and \"hypothesis\" are a pair") && message.contains("premise, hypothesis, id"),
        "{message}"
    );
    let flags = ColumnFlags { text: Some("a".into()), answer: Some("b".into()), ..ColumnFlags::default() };
    let named = read_with("a.jsonl", "{\"a\": \"x\", \"b\": \"y\", \"text\": \"z\"}", &flags).unwrap();
    assert_eq!((named.examples[0].text.as_str(), named.examples[0].answer.as_deref()), ("x", Some("y")));
    let labels = ColumnFlags { label: Some("b".into()), ..flags };
    let message = short(&read_with("a.jsonl", "{\"a\": \"x\", \"b\": \"y\"}", &labels).unwrap_err());
    assert!(message.starts_with("--answer-column: is of a language model"), "{message}");
    let for_lm = ColumnFlags { label: Some("b".into()), aim: Aim::Answers, ..ColumnFlags::default() };
    let message = short(&read_with("a.jsonl", "{\"text\": \"x\", \"b\": \"y\"}", &for_lm).unwrap_err());
    assert_eq!(message, "--label-column: a language model learns no labels");
    // A requested label column takes precedence over an answer column.
    let flags = ColumnFlags { label: Some("kind".into()), ..ColumnFlags::default() };
    let rows = read_with("a.jsonl", "{\"instruction\": \"x\", \"output\": \"y\", \"kind\": \"z\"}", &flags).unwrap();
    assert_eq!(used(&rows), "text instruction, label kind; output");
}

#[test]
fn missing_and_empty_answers_name_their_column() {
    let rows =
        |second: &str| format!("{{\"instruction\": \"a\", \"output\": \"b\"}}\n{{\"instruction\": \"c\"{second}}}");
    let message = bad("a.jsonl", rows(", \"output\": null"));
    assert_eq!(message, "a.jsonl: row 2 (line 2): no \"output\", but every row needs its text");
    let data = good("a.jsonl", rows(", \"output\": \" \\n\""));
    assert_eq!((data.examples.len(), data.read), (1, 2));
    assert_eq!(data.left_out, [LeftOut { rows: 1, why: "the answer in \"output\" is empty".into() }]);
    let message = bad("a.jsonl", "{\"instruction\": \"a\", \"output\": \"\"}");
    assert_eq!(message, "a.jsonl: no row is left: the answer in \"output\" is empty");
    let message = bad("a.jsonl", "{\"instruction\": \"a\", \"input\": 3, \"output\": \"b\"}\n{\"input\": \"c\"}");
    assert!(message.starts_with("a.jsonl: row 2 (line 2): no \"instruction\""), "{message}");
}

#[test]
fn roles_have_many_names_and_unknown_roles_are_errors() {
    let turns = |user: &str, assistant: &str| {
        let row = format!(
            r#"{{"conversations": [{{"from": "{user}", "value": "a"}}, {{"from": "{assistant}", "value": "b"}}]}}"#
        );
        good("a.jsonl", row).examples[0].chat.clone()
    };
    let want = vec![Message::new("user", "a"), Message::new("assistant", "b")];
    for (user, assistant) in [("user", "chatgpt"), ("human", "gpt"), ("User", "Assistant"), ("prompter", "model")] {
        assert_eq!(turns(user, assistant), want, "{user} {assistant}");
    }
    let message =
        bad("a.jsonl", r#"{"messages": [{"role": "user", "content": "a"}, {"role": "narrator", "content": "b"}]}"#);
    assert!(
        message
            .starts_with("a.jsonl: row 1 (line 1): message 2 in \"messages\" has the role \"narrator\"; expected user")
    );

    // An empty list counts as missing.
    let row = r#"{"messages": [{"role": "user", "content": "a", "tool_calls": [], "name": "Ann"}, "#.to_owned()
        + r#"{"role": "assistant", "content": "b", "weight": 0, "name": null}], "tools": []}"#;
    let data = good("a.jsonl", row);
    let others: Vec<_> = data.examples[0].chat.iter().map(|turn| turn.other).collect();
    assert_eq!(others, [None, Some("weight of 0, which excludes it from training")]);
    assert_eq!(data.notes, ["not used in the messages of \"messages\": name"]);
    let mut unanswered = good("a.jsonl", r#"{"messages": [{"role": "user", "content": "a"}]}"#);
    let message = short(&unanswered.take_answers().unwrap_err());
    assert_eq!(message, "a.jsonl: no conversation in \"messages\" has an answer of the assistant");
}

#[test]
fn a_system_column_begins_the_conversation() {
    let row = |system: &str, first: &str| {
        let turns = r#"{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}"#;
        format!(r#"{{"system": {system}, "conversations": [{first}{turns}]}}"#)
    };
    let data = good("a.jsonl", format!("{}\n{}", row("\"calm\"", ""), row("\"\"", "")));
    assert_eq!(data.examples[0].chat[0], Message::new("system", "calm"));
    assert_eq!((data.examples[0].chat.len(), data.examples[1].chat.len()), (3, 2));
    assert_eq!(used(&data), "conversation conversations, system system; ");
    let same = row("\"calm\"", r#"{"from": "system", "value": "calm"}, "#);
    assert_eq!(good("a.jsonl", &same).examples[0].chat.len(), 3);
    let message = bad("a.jsonl", same.replace("\"value\": \"calm\"", "\"value\": \"loud\""));
    assert!(message.ends_with("\"system\" and the first message are two different system messages"), "{message}");
}

#[test]
fn truth_values_of_any_spelling_are_two_classes() {
    let json = good("a.jsonl", "{\"text\": \"a\", \"label\": true}\n{\"text\": \"b\", \"label\": false}");
    let set = labels(&[&json], None).unwrap();
    assert_eq!(set, LabelSet::Classes(vec!["false".into(), "true".into()]));
    for (name, rows) in [
        ("a.csv", "text,label\na,True\nb,False\n"),
        ("a.tsv", "text\tlabel\na\tTRUE\nb\tfalse \n"),
        ("a.jsonl", "{\"text\": \"a\", \"label\": \"True\"}\n{\"text\": \"b\", \"label\": \"FALSE\"}"),
    ] {
        assert_eq!(set.targets(&good(name, rows)).unwrap(), Targets::Classes(vec![1, 0]), "{rows}");
    }
    let elsewhere = LabelSet::Classes(vec!["False".into(), "True".into()]);
    assert_eq!(elsewhere.targets(&json).unwrap(), Targets::Classes(vec![1, 0]));
    assert_eq!(counts(&json, &set).unwrap(), [("false".to_owned(), 1), ("true".to_owned(), 1)]);
}

#[test]
fn several_labels_in_a_row_are_an_error_where_labels_are_needed() {
    let data = good("a.jsonl", "{\"text\": \"a\", \"label\": [1, 0, 1]}\n{\"text\": \"b\", \"label\": []}");
    assert_eq!(data.labeled(), 2);
    let want = "a.jsonl: row 1 (line 1): \"label\" holds a list of 3 labels, expected one label; a model for rows of \
                several classes is trained with --task multi-label";
    assert_eq!(short(&labels(&[&data], Some(Task::Classification)).unwrap_err()), want);
    let set = LabelSet::Classes(vec!["0".into(), "1".into()]);
    assert_eq!(short(&set.targets(&data).unwrap_err()), want);
}

fn named(names: &[&str]) -> LabelSet {
    LabelSet::Sets(Sets { names: names.iter().map(|name| (*name).to_owned()).collect(), form: Some(Form::Names) })
}

#[test]
fn lists_of_labels_are_sets_of_classes() {
    let sets = |data: &Dataset| {
        let set = labels(&[data], None).unwrap();
        let Targets::Sets(sets) = set.targets(data).unwrap() else { panic!("{set:?}") };
        (set.names().join(" "), sets)
    };
    let row = |label: &str| format!("{{\"text\": \"a\", \"label\": {label}}}\n");
    let lists = |labels: &[&str]| good("a.jsonl", labels.iter().map(|label| row(label)).collect::<String>());
    // Names and numbers; a name twice is one; a list of one is a class too.
    let found = sets(&lists(&["[\"b\", \"a\", \"b\"]", "[]", "[\"c\"]"]));
    assert_eq!(found, ("a b c".into(), vec![vec![0, 1], vec![], vec![2]]));
    let found = sets(&lists(&["[10, 2]", "[2, 10, 3]", "2"]));
    assert_eq!(found, ("2 3 10".into(), vec![vec![0, 2], vec![0, 1, 2], vec![0]]));
    // One value for each class, in the forms that transformers and others take.
    for flags in
        [["[0, 1, 1]", "[0, 0, 0]"], ["[0.0, 1.0, 1.0]", "[0.0, 0.0, 0.0]"], ["[false, true, true]", "[0, 0, 0]"]]
    {
        assert_eq!(sets(&lists(&flags)), ("0 1 2".into(), vec![vec![1, 2], vec![]]), "{flags:?}");
    }
    // Lists of different lengths are of numbers.
    assert_eq!(sets(&lists(&["[0, 1]", "[1]"])), ("0 1".into(), vec![vec![0, 1], vec![1]]));

    // A list in a table of texts.
    let csv = "text,label\na,\"[3, 17]\"\nb,[]\nc,[3]\n";
    assert_eq!(sets(&good("a.csv", csv)), ("3 17".into(), vec![vec![0, 1], vec![], vec![0]]));

    let fails = |labels: &[&str], task: Option<Task>| short(&super::labels(&[&lists(labels)], task).unwrap_err());
    let message = fails(&["[\"a\", null]"], None);
    assert_eq!(
        message,
        "a.jsonl: row 1 (line 1): the list in \"label\" holds null, expected names or numbers of \
         classes, or 0 and 1 for each class"
    );
    assert!(fails(&["[\"a\", \"a\"]", "[]"], None).contains("one class, \"a\", but multi-label"));
    assert!(fails(&["[]", "[]"], None).contains("no class, but multi-label"));
    assert_eq!(fails(&["[1, 2]", "null"], None), "a.jsonl: row 2 (line 2): no label in \"label\"");
    let known = named(&["a", "b"]);
    let message = short(&known.targets(&lists(&["[\"a\", \"z\"]"])).unwrap_err());
    assert!(message.ends_with("the label \"z\" is not among those trained on: a, b"), "{message}");
    // Asked for, one label a row is a set of one.
    let single = lists(&["\"x\"", "\"y\""]);
    assert_eq!(labels(&[&single], Some(Task::MultiLabel)).unwrap(), named(&["x", "y"]));
}

#[test]
fn vectors_have_a_value_for_each_class() {
    let lists = |labels: &[&str]| {
        let row = |label: &&str| format!("{{\"text\": \"a\", \"label\": {label}}}\n");
        good("a.jsonl", labels.iter().map(row).collect::<String>())
    };
    let targets = |labels: &[&str], set: &LabelSet| set.targets(&lists(labels)).map_err(|error| short(&error));
    let vectors = ["[0, 1, 1]", "[1, 0, 0]"];
    let set = labels(&[&lists(&vectors)], None).unwrap();
    assert_eq!((set.names(), set.form()), (&["0", "1", "2"].map(str::to_owned)[..], Some(Form::Vectors)));
    // They serve classes of any names, by their order.
    assert_eq!(targets(&vectors, &named(&["a", "b", "c"])), Ok(Targets::Sets(vec![vec![1, 2], vec![0]])));
    // A vector of another length, and another value, are no numbers of classes.
    let wrong = |row: usize, found: &str| {
        format!(
            "a.jsonl: row {row} (line {row}): \"label\" holds {found}, but other rows have vectors; expected 3 \
             values, 0 or 1 for each class"
        )
    };
    assert_eq!(targets(&["[0, 1, 1, 0]", "[1, 0, 0, 1]"], &set), Err(wrong(1, "a list of 4")));
    assert_eq!(targets(&["[0, 1]", "[1, 1]"], &set), Err(wrong(1, "a list of 2")));
    for (labels, message) in [
        (["[0, 1, 1]", "[0, 1]"], wrong(2, "a list of 2")),
        (["[0, 1, 1]", "[2, 0, 1]"], wrong(2, "2")),
        (["[0, 1, 1]", "1"], wrong(2, "1")),
        (["[0, 1, 1]", "[-1, -1, -1]"], wrong(2, "-1")),
    ] {
        let data = lists(&labels);
        let found = super::labels(&[&data], None).and_then(|set| set.targets(&data));
        assert_eq!(found.map_err(|error| short(&error)), Err(message), "{labels:?}");
    }
    // Soft targets are no names.
    let message = short(&labels(&[&lists(&["[0.5, 1.0]", "[]"])], None).unwrap_err());
    assert!(
        message.starts_with("a.jsonl: row 1 (line 1): the list in \"label\" holds 0.5, expected names"),
        "{message}"
    );
    // Two values a row may be a vector or two numbers: the training decides.
    let two = ["[0, 1]", "[1, 0]"];
    let numbers = labels(&[&lists(&["[0, 1]", "[0]", "[]"])], None).unwrap();
    assert_eq!(targets(&two, &numbers), Ok(Targets::Sets(vec![vec![0, 1], vec![0, 1]])));
    let flags = labels(&[&lists(&["[1, 1]", "[0, 1]"])], None).unwrap();
    assert_eq!(targets(&two, &flags), Ok(Targets::Sets(vec![vec![1], vec![0]])));
}

#[test]
fn cells_and_columns_can_hold_several_labels() {
    let separated = |separator: &str| ReadOptions {
        columns: ColumnFlags { separator: Some(separator.into()), ..ColumnFlags::default() },
        ..ReadOptions::default()
    };
    let data = with("a.csv", "text,label\na,x | y\nb,\nc,y\n", &separated("|")).unwrap();
    let set = labels(&[&data], None).unwrap();
    assert_eq!(set, named(&["x", "y"]));
    assert_eq!(set.targets(&data).unwrap(), Targets::Sets(vec![vec![0, 1], vec![], vec![1]]));

    // Cells of 0 and 1 are vectors, and a file of empty cells has no labels.
    let flags = with("a.csv", "text,label\na,1|0|1\nb,0|0|0\n", &separated("|")).unwrap();
    let set = labels(&[&flags], None).unwrap();
    assert_eq!((set.names().len(), set.targets(&flags).unwrap()), (3, Targets::Sets(vec![vec![0, 2], vec![]])));
    let empty = with("a.csv", "text,label\na,\nb,\n", &separated("|")).unwrap();
    assert_eq!(empty.labeled(), 0);
    assert!(empty.notes[0].ends_with("every \"label\" is empty, which stands for no label"), "{:?}", empty.notes);

    let columns = |names: &[&str]| ReadOptions {
        columns: ColumnFlags {
            classes: names.iter().map(|name| (*name).to_owned()).collect(),
            ..ColumnFlags::default()
        },
        ..ReadOptions::default()
    };
    let csv = "text,label,toxic,rude,never\na,7,0,1,0\nb,7,1,1,0\nc,7,0.0,false,0\n";
    let data = with("a.csv", csv, &columns(&["toxic", "rude", "never"])).unwrap();
    let set = labels(&[&data], None).unwrap();
    // The order is that of the option, and a class may be of no row.
    assert_eq!(set, named(&["toxic", "rude", "never"]));
    assert_eq!(set.targets(&data).unwrap(), Targets::Sets(vec![vec![1], vec![0, 1], vec![]]));
    assert_eq!(counts(&data, &set).unwrap()[1], ("rude".to_owned(), 2));
    assert_eq!(data.columns.ignored(), ["label"]);

    let fails = |csv: &str, names: &[&str]| short(&with("a.csv", csv, &columns(names)).unwrap_err());
    let message = fails("text,toxic,rude\na,0,1\nb,-1,-1\n", &["toxic", "rude"]);
    assert!(
        message.starts_with("a.csv: row 2 (line 3): \"toxic\" holds -1, which is no answer; expected 0 or 1"),
        "{message}"
    );
    let twice = fails("text,toxic\na,0\n", &["toxic", "toxic"]);
    assert_eq!(twice, "--label-columns: \"toxic\" is given twice");
    let two = with("a.csv", "text,toxic,rude\na,0,1\n", &columns(&["toxic", "rude"])).unwrap();
    let message = short(&named(&["toxic", "rude", "never"]).targets(&two).unwrap_err());
    assert_eq!(message, "a.csv: the class \"never\" has no column; expected --label-columns toxic,rude,never");
    let message = fails("text,toxic,rude\na,0,\n", &["toxic", "rude"]);
    assert_eq!(message, "a.csv: row 1 (line 2): no \"rude\", expected 0 or 1");
    let message = fails("text,toxic\na,0\n", &["toxic", "rude"]);
    assert_eq!(message, "a.csv: no column \"rude\" (--label-columns); the columns are text, toxic");
    let unlabeled = with("a.csv", "text,toxic,rude\na,,\n", &columns(&["toxic", "rude"])).unwrap();
    assert_eq!(unlabeled.labeled(), 0);
}

#[test]
fn labels_that_are_all_minus_one_are_placeholders() {
    let test = good("a.jsonl", "{\"text\": \"a\", \"label\": -1}\n{\"text\": \"b\", \"label\": -1}");
    assert_eq!((test.labeled(), test.notes.len()), (0, 1));
    assert!(test.notes[0].ends_with("every \"label\" is -1, which stands for no label"), "{}", test.notes[0]);
    assert_eq!(good("a.csv", "text,score\na,-1.0\n").labeled(), 0);
    assert_eq!(good("a.csv", "text,label\na,-1\nb,1\n").labeled(), 2);
}

#[test]
fn bad_and_repeated_rows_are_left_out_on_request() {
    let skip = ReadOptions { skip_bad_rows: true, ..ReadOptions::default() };
    let data = with("a.csv", "text,label\na,1\nb,1,2\n ,0\nc,0\n", &skip).unwrap();
    assert_eq!((data.examples.len(), data.read, data.row(1)), (2, 4, 4));
    assert!(data.place(1).ends_with("a.csv: row 4 (line 5)"), "{}", data.place(1));
    assert_eq!(data.left_out[0].rows, 2);
    assert!(data.left_out[0].why.contains("row 2 (line 3) has 3 cells"), "{}", data.left_out[0].why);
    let data = with("a.jsonl", "{\"text\": \"a\"}\n{\"text\": \n{\"text\": 3}\n[1]\n{\"text\": \"b\"}", &skip).unwrap();
    assert_eq!((data.examples.len(), data.left_out[0].rows, data.row(1)), (2, 3, 5));
    let message = short(&with("a.jsonl", "{\"text\": 3}", &skip).unwrap_err());
    assert!(message.starts_with("a.jsonl: no row is left: bad"), "{message}");

    let rows = "text,label\na,1\nb,1\na,0\na,1\n";
    let dedup = ReadOptions { dedup: true, ..ReadOptions::default() };
    let data = with("a.csv", rows, &dedup).unwrap();
    assert_eq!((data.examples.len(), data.left_out[0].rows, data.row(2)), (3, 1, 3));
    let of_texts = ReadOptions { labels_do_not_matter: true, ..dedup };
    let data = with("a.csv", rows, &of_texts).unwrap();
    assert_eq!((data.examples.len(), data.left_out[0].why.as_str()), (2, "the same as an earlier row (--dedup)"));
    assert_eq!(good("a.csv", rows).examples.len(), 4);

    // An option that does not apply to a file is an error.
    let dedup = ReadOptions { dedup: true, ..ReadOptions::default() };
    let message = short(&with("a.txt", "one", &dedup).unwrap_err());
    assert_eq!(message, "--dedup: a.txt is one running text, without columns or rows");
    let semicolons = ReadOptions { delimiter: Some(b';'), ..ReadOptions::default() };
    let message = short(&with("a.jsonl", "{}", &semicolons).unwrap_err());
    assert!(message.starts_with("--delimiter: a.jsonl has no separated cells"), "{message}");
}
