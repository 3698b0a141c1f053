//! Rust source as tokens: enough of the syntax to find modules, imports and paths.

/// The index after the closing bracket of the group that opens at `start`.
pub fn group_end(tokens: &[String], start: usize) -> usize {
    let mut depth = 0_usize;
    for (i, token) in tokens.iter().enumerate().skip(start) {
        match token.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return i + 1;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

/// Removes attributes, and items that are compiled for tests alone.
pub fn without_tests(tokens: Vec<String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        let opens = tokens[i] == "#" && tokens.get(i + 1).is_some_and(|t| t == "[" || t == "!");
        if !opens {
            kept.push(tokens[i].clone());
            i += 1;
            continue;
        }
        let bracket = if tokens[i + 1] == "!" { i + 2 } else { i + 1 };
        let end = group_end(&tokens, bracket);
        let attribute = tokens[bracket..end].concat();
        let is_test = ["[cfg(test)", "[cfg(all(test,", "[test]"].iter().any(|test| attribute.starts_with(test));
        i = end;
        if is_test {
            i = item_end(&tokens, i);
        }
    }
    kept
}

/// The index after the item that begins at `start`.
fn item_end(tokens: &[String], start: usize) -> usize {
    let mut i = start;
    let mut is_use = false;
    while i < tokens.len() {
        match tokens[i].as_str() {
            "use" => is_use = true,
            ";" => return i + 1,
            "{" if !is_use => return group_end(tokens, i),
            "(" | "[" | "{" => {
                i = group_end(tokens, i);
                continue;
            }
            _ => {}
        }
        i += 1;
    }
    i
}

pub fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Words, `::` and single signs. Comments, literals in quotes and lifetimes are left out.
pub fn tokens(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let text: Vec<char> = text.chars().collect();
    let char_at = |i: usize| text.get(i).copied().unwrap_or('\0');
    let mut i = 0;
    while i < text.len() {
        match text[i] {
            '/' if char_at(i + 1) == '/' => i = (i..text.len()).find(|&k| text[k] == '\n').unwrap_or(text.len()),
            '/' if char_at(i + 1) == '*' => {
                i = (i + 2..text.len())
                    .find(|&k| text[k] == '*' && char_at(k + 1) == '/')
                    .map_or(text.len(), |k| k + 2);
            }
            '"' => i = string_end(&text, i),
            'r' if char_at(i + 1) == '"'
                || (char_at(i + 1) == '#' && (char_at(i + 2) == '"' || char_at(i + 2) == '#')) =>
            {
                let hashes = (i + 1..text.len()).take_while(|&k| text[k] == '#').count();
                let closes = |k: usize| text[k] == '"' && (1..=hashes).all(|h| char_at(k + h) == '#');
                i = (i + hashes + 2..text.len()).find(|&k| closes(k)).map_or(text.len(), |k| k + 1 + hashes);
            }
            '\'' => {
                let is_lifetime = char_at(i + 1) != '\\' && char_at(i + 2) != '\'';
                i = match is_lifetime {
                    true => {
                        i + 1 + (i + 1..text.len()).take_while(|&k| text[k].is_alphanumeric() || text[k] == '_').count()
                    }
                    false => (i + 2..text.len()).find(|&k| text[k] == '\'').map_or(text.len(), |k| k + 1),
                };
            }
            c if c.is_alphanumeric() || c == '_' => {
                let length = (i..text.len()).take_while(|&k| text[k].is_alphanumeric() || text[k] == '_').count();
                found.push(text[i..i + length].iter().collect());
                i += length;
            }
            ':' if char_at(i + 1) == ':' => {
                found.push("::".into());
                i += 2;
            }
            c if c.is_whitespace() => i += 1,
            c => {
                found.push(c.to_string());
                i += 1;
            }
        }
    }
    found
}

/// The index after the string that opens at `start`.
fn string_end(text: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < text.len() {
        match text[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    i
}
