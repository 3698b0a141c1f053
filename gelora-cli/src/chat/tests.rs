use super::*;

/// A template of the ChatML form that spans several lines.
const LINES: &str = concat!(
    "{% for m in messages %}\n",
    "    {% if loop.first and m['role'] != 'system' %}\n",
    "<|s|>system\nBe kind.<|e|>\n    {% endif %}\n",
    "<|s|>{{ m['role'] }}\n{{ m['content'].strip() }}<|e|>\n{% endfor %}\n",
    "{% if add_generation_prompt %}\n",
    "<|s|>assistant\n{% endif %}",
);

fn turns(all: &[(&str, &str)]) -> Vec<Message> {
    all.iter().map(|(role, content)| Message::new(role, content)).collect()
}

#[test]
fn answers_of_the_assistant_are_targets() {
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
    let output = template.prompt(&turns(&[("user", " hello ")])).unwrap();
    assert_eq!(output, "<|s|>system\nBe kind.<|e|>\n<|s|>user\nhello<|e|>\n<|s|>assistant\n");
}

#[test]
fn earlier_answers_that_change_are_not_targets() {
    let source = "{% for m in messages %}({{ m.content }}{% if loop.last and m.role == 'assistant' %}!{% endif %})\
                  {% endfor %}{% if add_generation_prompt %}({% endif %}";
    let template = Template::new(source, BTreeMap::new()).unwrap();
    let written = template.write(&turns(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]));
    let written = written.unwrap();
    assert_eq!((written.text.as_str(), written.answers.len(), &written.answers[0]), ("(a)(b)(c)(d!)", 1, &(10..13)));
}

#[test]
fn errors_of_templates_are_reported() {
    let refuses = Template::new("{{ raise_exception('roles must alternate') }}", BTreeMap::new()).unwrap();
    let output = refuses.prompt(&turns(&[("user", "a")])).unwrap_err().to_string();
    assert!(output.starts_with("chat template: ") && output.contains("roles must alternate"), "{output}");
    let broken = Template::new("{% for %}", BTreeMap::new()).unwrap_err().to_string();
    assert!(broken.starts_with("chat template: "), "{broken}");
    let moves = Template::new("{{ messages | length }}{{ add_generation_prompt }}", BTreeMap::new()).unwrap();
    assert!(moves.write(&turns(&[("user", "a"), ("assistant", "b")])).is_err());
}

#[test]
fn endless_templates_are_errors() {
    let fails = |source: &str| {
        let template = Template::new(source, BTreeMap::new()).unwrap();
        template.prompt(&turns(&[("user", "a")])).unwrap_err().to_string()
    };
    let steps = "chat template: takes more than 5000000 steps for a conversation; does it end?";
    let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}\
                  {% endfor %}{% endfor %}{% endfor %}";
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
    let (before, output, after) = (now(), template.prompt(&turns(&[("user", "a")])).unwrap(), now());
    assert!(output == before || output == after, "{output}");
    let broken = Template::new("{{ strftime_now('%!') }}", BTreeMap::new()).unwrap();
    let output = broken.prompt(&turns(&[("user", "a")])).unwrap_err().to_string();
    assert!(output.contains("strftime_now: \"%!\": "), "{output}");
}

/// The cases come from `fixtures/chat_templates.py`.
#[test]
fn templates_write_what_transformers_writes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/chat_templates.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    // Cases in which transformers writes a text and minijinja returns an error for an unsupported feature.
    const UNKNOWN: [&str; 1] = ["{{ '%s' % 'b' }}"];
    let mut differ = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let conversation = golden["conversations"][text(&case["conversation"])].as_array().unwrap();
        let turns: Vec<_> =
            conversation.iter().map(|turn| Message::new(&text(&turn["role"]), &text(&turn["content"]))).collect();
        let source = text(&case["source"]);
        let output = Template::new(&source, BTreeMap::new())
            .and_then(|template| template.render(&turns, case["asked"] == true))
            .map_err(|e| e.to_string());
        let want = if UNKNOWN.contains(&source.as_str()) { None } else { case["text"].as_str() };
        if output.as_deref().ok() != want {
            differ.push(format!("{source}\n  want {want:?}\n  got  {output:?}"));
        }
    }
    assert!(differ.is_empty(), "{} differ:\n{}", differ.len(), differ.join("\n"));
}

#[test]
fn generation_tags_are_ignored() {
    let source = "{% for m in messages %}{%- generation -%} {{ m.content }} {% endgeneration %}{% endfor %}";
    let template = Template::new(source, BTreeMap::new()).unwrap();
    assert_eq!(template.prompt(&turns(&[("user", "a"), ("user", "b")])).unwrap(), "a b ");
}

#[test]
fn answers_begin_after_the_thought_that_a_prompt_opens() {
    let source = "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}\
                  {% if add_generation_prompt %}<s>assistant <think>\n{% endif %}";
    let template = Template::new(source, BTreeMap::new()).unwrap();
    let targets = |output: &str| {
        let all = turns(&[("user", "a"), ("assistant", "no"), ("user", "b"), ("assistant", output)]);
        let written = template.write(&all).unwrap();
        written.answers.iter().map(|at| written.text[at.clone()].to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(targets("so good"), ["no</s>", "so good</s>"]);
    assert_eq!(targets("<think>\nhm</think>so"), ["no</s>", "hm</think>so</s>"]);
    assert_eq!(targets("<thin"), ["no</s>", "<thin</s>"]);
    assert_eq!(template.prompt(&turns(&[("user", "a")])).unwrap(), "<s>user a</s><s>assistant <think>\n");
}

#[test]
fn turns_with_other_content_and_empty_answers() {
    let template = Template::new("{% for m in messages %}{{ m.content }}\n{% endfor %}", BTreeMap::new()).unwrap();
    let mut all = turns(&[("user", "a"), ("assistant", "")]);
    assert!(template.write(&all).unwrap().answers.is_empty());
    all[1].other = Some("tool_calls");
    let output = template.write(&all).unwrap_err().to_string();
    assert_eq!(output, "message 2 has tool_calls; expected a text alone");
    assert!(template.write(&all[..1]).is_err());
}

#[test]
fn templates_are_found_in_either_file() {
    let folder = tempfile::tempdir().unwrap();
    let asked = turns(&[("user", "a")]);
    assert!(Template::of_folder(folder.path()).unwrap().is_none());
    let config = serde_json::json!({"eos_token": {"content": "</s>"}, "chat_template": [
        {"name": "tools", "template": "no"},
        {"name": "default", "template": "{{ messages[0].content }}{{ eos_token }}"}]});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let written = |folder: &Path| Template::of_folder(folder).unwrap().unwrap().prompt(&asked).unwrap();
    assert_eq!(written(folder.path()), "a</s>");
    let others =
        serde_json::json!({"chat_template": [{"name": "tools", "template": ""}, {"name": "rag", "template": ""}]});
    std::fs::write(folder.path().join("tokenizer_config.json"), others.to_string()).unwrap();
    let output = format!("{:#}", Template::of_folder(folder.path()).unwrap_err());
    assert!(output.contains("tokenizer_config.json") && output.ends_with("it has tools, rag"), "{output}");
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), "{{ bos_token }}{{ eos_token }}").unwrap();
    assert_eq!(written(folder.path()), "</s>");
    let map = r#"{"bos_token": "<s>", "eos_token": "<other>"}"#;
    std::fs::write(folder.path().join("special_tokens_map.json"), map).unwrap();
    assert_eq!(written(folder.path()), "<s></s>");
}
