//! Patterns of file names in the form that datasets on the hub declare: `data/train-*.parquet`, `**/*.csv`.

/// Returns true if a path matches a pattern. `?` matches one character and `*` any number of characters, both within
/// one part of the path. `**` matches any number of parts. `[abc]`, `[0-9]` and `[!abc]` match one character of a set.
pub fn fits(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.trim_start_matches("./").split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    // matches_first[n] is true if the patterns so far match the first n parts. The time is bounded by the product of
    // the lengths, for any pattern.
    let mut matches_first = vec![false; path.len() + 1];
    matches_first[0] = true;
    for part in pattern {
        let mut next = vec![false; path.len() + 1];
        for n in 0..=path.len() {
            next[n] = match part {
                "**" => matches_first[n] || (n > 0 && next[n - 1]),
                part => n > 0 && matches_first[n - 1] && fits_part(part, path[n - 1]),
            };
        }
        matches_first = next;
    }
    matches_first[path.len()]
}

/// One element of a pattern.
enum Piece {
    Any,
    One,
    Set { chars: Vec<(char, char)>, is_negated: bool },
    Literal(char),
}

fn fits_part(pattern: &str, name: &str) -> bool {
    let pieces = pieces(pattern);
    let name: Vec<char> = name.chars().collect();
    let mut matches_first = vec![false; name.len() + 1];
    matches_first[0] = true;
    for piece in &pieces {
        let mut next = vec![false; name.len() + 1];
        for n in 0..=name.len() {
            next[n] = match piece {
                Piece::Any => matches_first[n] || (n > 0 && next[n - 1]),
                piece => n > 0 && matches_first[n - 1] && fits_char(piece, name[n - 1]),
            };
        }
        matches_first = next;
    }
    matches_first[name.len()]
}

fn fits_char(piece: &Piece, c: char) -> bool {
    match piece {
        Piece::Any | Piece::One => true,
        Piece::Set { chars, is_negated } => chars.iter().any(|&(low, high)| (low..=high).contains(&c)) != *is_negated,
        Piece::Literal(literal) => *literal == c,
    }
}

fn pieces(pattern: &str) -> Vec<Piece> {
    let chars: Vec<char> = pattern.chars().collect();
    let (mut pieces, mut i) = (Vec::new(), 0);
    while i < chars.len() {
        let end = match chars[i] {
            // A leading ] belongs to the set.
            '[' => (i + 2..chars.len()).find(|&end| chars[end] == ']'),
            _ => None,
        };
        pieces.push(match (chars[i], end) {
            ('*', _) => Piece::Any,
            ('?', _) => Piece::One,
            ('[', Some(end)) => {
                let inside = &chars[i + 1..end];
                let is_negated = matches!(inside[0], '!' | '^') && inside.len() > 1;
                i = end;
                Piece::Set { chars: ranges(&inside[usize::from(is_negated)..]), is_negated }
            }
            (literal, _) => Piece::Literal(literal),
        });
        i += 1;
    }
    pieces
}

fn ranges(inside: &[char]) -> Vec<(char, char)> {
    let (mut ranges, mut i) = (Vec::new(), 0);
    while i < inside.len() {
        match inside.get(i + 1..i + 3) {
            Some(['-', high]) => {
                ranges.push((inside[i], *high));
                i += 3;
            }
            _ => {
                ranges.push((inside[i], inside[i]));
                i += 1;
            }
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_in_a_shell() {
        let yes = [
            ("cola/train-*", "cola/train-00000-of-00001.parquet"),
            ("data/train-*", "data/train-00000-of-00002-3f2a.parquet"),
            ("*.csv", "train.csv"),
            ("./train.csv", "train.csv"),
            ("**/*.csv", "train.csv"),
            ("**/*.csv", "a/b/train.csv"),
            ("data/**", "data/a/b.json"),
            ("data/train-[0-9][0-9]-of-?.json", "data/train-07-of-9.json"),
            ("[!t]*.csv", "data.csv"),
            ("[]]a", "]a"),
            ("a[b", "a[b"),
            ("**", "a/b"),
        ];
        for (pattern, path) in yes {
            assert!(fits(pattern, path), "{pattern} fits {path}");
        }
        let no = [
            ("*.csv", "a/train.csv"),
            ("data/train-*", "data/sub/train-0.csv"),
            ("train.csv", "train.csv.gz"),
            ("[!t]*.csv", "train.csv"),
            ("data/?", "data/"),
            ("**/*.csv", "a/b.json"),
            ("", "a"),
        ];
        for (pattern, path) in no {
            assert!(!fits(pattern, path), "{pattern} does not fit {path}");
        }
        // A pattern that takes exponential time in a matcher with backtracking.
        assert!(!fits(&"*a".repeat(200), &"a".repeat(150)));
    }
}
