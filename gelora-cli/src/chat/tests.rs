use super::*;

/// As ChatML's, over several lines.
const LINES: &str = "{% for m in messages %}\n    {% if loop.first and m['role'] != 'system' %}\n<|s|>system\nBe kind.<|e|>\n    {% endif %}\n<|s|>{{ m['role'] }}\n{{ m['content'].strip() }}<|e|>\n{% endfor %}\n{% if add_generation_prompt %}\n<|s|>assistant\n{% endif %}";

fn turns(all: &[(&str, &str)]) -> Vec<Message> {
    all.iter().map(|(role, content)| Message::new(role, content)).collect()
}

#[test]
fn what_the_assistant_says_is_learnt() {
    let template = Template::new(
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}\n{% endfor %}\
         {% if add_generation_prompt %}[assistant]{% endif %}",
        [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
    )
    .unwrap();
    let all = turns(&[("user", "one "), ("assistant", "two"), ("user", "three"), ("assistant", " four")]);
    let written = template.write(&all).unwrap();
    assert_eq!(written.text, "<s>[user]one</s>\n[assistant]two</s>\n[user]three</s>\n[assistant]four</s>\n");
    let answers: Vec<&str> = written.answers.iter().map(|at| &written.text[at.clone()]).collect();
    assert_eq!(answers, ["two</s>", "four</s>"]);
    assert_eq!(template.prompt(&all[..1]).unwrap(), "<s>[user]one</s>\n[assistant]");
}

#[test]
fn blocks_are_trimmed_and_strings_have_the_methods_of_python() {
    let template = Template::new(LINES, BTreeMap::new()).unwrap();
    let said = template.prompt(&turns(&[("user", " hello ")])).unwrap();
    assert_eq!(said, "<|s|>system\nBe kind.<|e|>\n<|s|>user\nhello<|e|>\n<|s|>assistant\n");
}

#[test]
fn an_earlier_answer_that_is_written_otherwise_is_not_learnt() {
    let source = "{% for m in messages %}({{ m.content }}{% if loop.last and m.role == 'assistant' %}!{% endif %})\
                  {% endfor %}{% if add_generation_prompt %}({% endif %}";
    let template = Template::new(source, BTreeMap::new()).unwrap();
    let written = template.write(&turns(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]));
    let written = written.unwrap();
    assert_eq!((written.text.as_str(), written.answers.len(), &written.answers[0]), ("(a)(b)(c)(d!)", 1, &(10..13)));
}

#[test]
fn a_template_that_refuses_or_is_broken_says_so() {
    let refuses = Template::new("{{ raise_exception('roles must alternate') }}", BTreeMap::new()).unwrap();
    let said = refuses.prompt(&turns(&[("user", "a")])).unwrap_err().to_string();
    assert!(said.starts_with("chat template: ") && said.contains("roles must alternate"), "{said}");
    let broken = Template::new("{% for %}", BTreeMap::new()).unwrap_err().to_string();
    assert!(broken.starts_with("chat template: "), "{broken}");
    let moves = Template::new("{{ messages | length }}{{ add_generation_prompt }}", BTreeMap::new()).unwrap();
    assert!(moves.write(&turns(&[("user", "a"), ("assistant", "b")])).is_err());
}

#[test]
fn endless_templates_end_in_an_error() {
    let fails = |source: &str| {
        let template = Template::new(source, BTreeMap::new()).unwrap();
        template.prompt(&turns(&[("user", "a")])).unwrap_err().to_string()
    };
    let steps = "chat template: takes more than 5000000 steps for a conversation; does it end?";
    let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    assert_eq!(fails(nested), steps);
    assert_eq!(fails("{% set x = 'a' * 999999999999 %}"), steps);
    assert!(fails("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").starts_with("chat template: "));
    let long = "{% set x = 'abcdefghij' * 10000 %}{% for i in range(9999) %}{{ x }}{% endfor %}";
    assert_eq!(fails(long), "chat template: writes more than 16 MB for a conversation; does it end?");
}

#[test]
fn dates_are_those_of_the_machine() {
    let template = Template::new("{{ strftime_now('%Y-%m-%d %H') }}", BTreeMap::new()).unwrap();
    let now = || jiff::Zoned::now().strftime("%Y-%m-%d %H").to_string();
    let (before, said, after) = (now(), template.prompt(&turns(&[("user", "a")])).unwrap(), now());
    assert!(said == before || said == after, "{said}");
    let broken = Template::new("{{ strftime_now('%!') }}", BTreeMap::new()).unwrap();
    let said = broken.prompt(&turns(&[("user", "a")])).unwrap_err().to_string();
    assert!(said.contains("strftime_now: \"%!\": "), "{said}");
}

/// `fixtures/chat_templates.py`.
#[test]
fn templates_write_what_transformers_writes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/chat_templates.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    // An error where transformers writes a text: what minijinja does not know is not written otherwise.
    const UNKNOWN: [&str; 1] = ["{{ '%s' % 'b' }}"];
    let mut differ = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let conversation = golden["conversations"][text(&case["conversation"])].as_array().unwrap();
        let turns: Vec<_> =
            conversation.iter().map(|turn| Message::new(&text(&turn["role"]), &text(&turn["content"]))).collect();
        let source = text(&case["source"]);
        let said = Template::new(&source, BTreeMap::new())
            .and_then(|template| template.render(&turns, case["asked"] == true))
            .map_err(|e| e.to_string());
        let want = if UNKNOWN.contains(&source.as_str()) { None } else { case["text"].as_str() };
        if said.as_deref().ok() != want {
            differ.push(format!("{source}\n  want {want:?}\n  got  {said:?}"));
        }
    }
    assert!(differ.is_empty(), "{} differ:\n{}", differ.len(), differ.join("\n"));
}

#[test]
fn marks_of_what_is_learnt_are_no_obstacle() {
    let source = "{% for m in messages %}{%- generation -%} {{ m.content }} {% endgeneration %}{% endfor %}";
    let template = Template::new(source, BTreeMap::new()).unwrap();
    assert_eq!(template.prompt(&turns(&[("user", "a"), ("user", "b")])).unwrap(), "a b ");
}

#[test]
fn an_answer_begins_where_a_prompt_opens_a_thought() {
    let source = "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}\
                  {% if add_generation_prompt %}<s>assistant <think>\n{% endif %}";
    let template = Template::new(source, BTreeMap::new()).unwrap();
    let learnt = |said: &str| {
        let all = turns(&[("user", "a"), ("assistant", "no"), ("user", "b"), ("assistant", said)]);
        let written = template.write(&all).unwrap();
        written.answers.iter().map(|at| written.text[at.clone()].to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(learnt("so good"), ["no</s>", "so good</s>"]);
    assert_eq!(learnt("<think>\nhm</think>so"), ["no</s>", "hm</think>so</s>"]);
    assert_eq!(learnt("<thin"), ["no</s>", "<thin</s>"]);
    assert_eq!(template.prompt(&turns(&[("user", "a")])).unwrap(), "<s>user a</s><s>assistant <think>\n");
}

#[test]
fn turns_that_are_more_than_text_and_empty_answers() {
    let template = Template::new("{% for m in messages %}{{ m.content }}\n{% endfor %}", BTreeMap::new()).unwrap();
    let mut all = turns(&[("user", "a"), ("assistant", "")]);
    assert!(template.write(&all).unwrap().answers.is_empty());
    all[1].other = Some("tool_calls");
    let said = template.write(&all).unwrap_err().to_string();
    assert_eq!(said, "message 2 has tool_calls; expected a text alone");
    assert!(template.write(&all[..1]).is_err());
}

#[test]
fn a_folder_has_it_in_either_file() {
    let folder = tempfile::tempdir().unwrap();
    let asked = turns(&[("user", "a")]);
    assert!(Template::of_folder(folder.path()).unwrap().is_none());
    let config = serde_json::json!({"eos_token": {"content": "</s>"}, "chat_template": [
        {"name": "tools", "template": "no"}, {"name": "default", "template": "{{ messages[0].content }}{{ eos_token }}"}]});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let written = |folder: &Path| Template::of_folder(folder).unwrap().unwrap().prompt(&asked).unwrap();
    assert_eq!(written(folder.path()), "a</s>");
    let others =
        serde_json::json!({"chat_template": [{"name": "tools", "template": ""}, {"name": "rag", "template": ""}]});
    std::fs::write(folder.path().join("tokenizer_config.json"), others.to_string()).unwrap();
    let said = format!("{:#}", Template::of_folder(folder.path()).unwrap_err());
    assert!(said.contains("tokenizer_config.json") && said.ends_with("it has tools, rag"), "{said}");
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), "{{ bos_token }}{{ eos_token }}").unwrap();
    assert_eq!(written(folder.path()), "</s>");
    let map = r#"{"bos_token": "<s>", "eos_token": "<other>"}"#;
    std::fs::write(folder.path().join("special_tokens_map.json"), map).unwrap();
    assert_eq!(written(folder.path()), "<s></s>");
}
