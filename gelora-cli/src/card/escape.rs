//! Quotes text for the languages of a model card: Markdown, YAML, Python and the shell. Names and texts come from data
//! that anyone may have made.

use std::path::Path;

/// Returns a text as one line of Markdown that is shown as it is: no character begins a construct of Markdown or HTML.
pub fn markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in one_line(text).chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            // A backslash before ASCII punctuation makes it literal (CommonMark 2.4); before `|` in tables too (GFM).
            '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '|' | '~' | '$' | '@' => escaped.extend(['\\', c]),
            c => escaped.push(c),
        }
    }
    // GFM makes links of addresses.
    escaped.replace("://", "&#58;//").replace("www.", "www&#46;")
}

/// Returns a text as a string of YAML, JSON and Python: in double quotes, with escapes that the three share.
pub fn quoted(text: &str) -> String {
    // DEL and C1 controls are not allowed in YAML, and JSON leaves them as they are.
    serde_json::Value::from(text.replace(|c: char| c.is_control() && c != '\n' && c != '\t', " ")).to_string()
}

/// Returns an argument for a POSIX shell, in quotes if it needs them.
pub fn shell(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    match !argument.is_empty() && argument.chars().all(is_plain) {
        true => argument.to_owned(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    }
}

/// Returns a path for a POSIX shell. A path that begins with a dash would be an option.
pub fn shell_path(path: &Path) -> String {
    let text = path.display().to_string();
    shell(&if text.starts_with('-') { format!("./{text}") } else { text })
}

/// Returns a block of code, with a fence that no line of the code can close.
pub fn code(language: &str, code: &str) -> String {
    let longest = code.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat((longest + 1).max(3));
    format!("{fence}{language}\n{}\n{fence}\n", code.trim_end_matches('\n'))
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_is_literal() {
        let hostile = "[a](http://b) | <img src=x> *b* `c`\n# d & ~~e~~ $f$ @g";
        assert_eq!(
            markdown(hostile),
            r"\[a\](http&#58;//b) \| &lt;img src=x&gt; \*b\* \`c\` \# d &amp; \~\~e\~\~ \$f\$ \@g"
        );
        assert_eq!(markdown("SST-2, yes (1.5)"), "SST-2, yes (1.5)");
        assert_eq!(markdown("www.a.b"), "www&#46;a.b");
    }

    #[test]
    fn strings_are_quoted_for_yaml_and_python() {
        assert_eq!(quoted("a \"b\" \\ ä\n\u{7f}"), r#""a \"b\" \\ ä\n ""#);
    }

    #[test]
    fn arguments_are_quoted_for_a_shell() {
        assert_eq!(
            ["a/b-c.d", "", "a b", "it's", "$(x)"].map(shell),
            ["a/b-c.d", "''", "'a b'", r"'it'\''s'", "'$(x)'"]
        );
        assert_eq!(shell_path(Path::new("-rf")), "./-rf");
    }

    #[test]
    fn fences_are_longer_than_any_in_the_code() {
        assert_eq!(code("sh", "a\n"), "```sh\na\n```\n");
        assert_eq!(code("", "a ```` b"), "`````\na ```` b\n`````\n");
    }
}
