//! Single values out of configuration files, by line.
//!
//! This is no YAML parser and must not become one: it finds `key: value` in block mappings by their indentation, and
//! where a file is written otherwise it finds nothing. A component must treat nothing found as not known.

/// The value at a path of keys (`["secrets", "encryption"]`), without quotes and comment. `None` when it is not there
/// as a plain scalar on one line.
pub fn yaml_scalar(text: &str, path: &[&str]) -> Option<String> {
    // Every key matched so far: its indentation, and that of the lines directly below it.
    let mut open: Vec<(usize, Option<usize>)> = Vec::new();
    for line in text.lines() {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let indent = line.len() - content.len();
        while open.last().is_some_and(|(depth, _)| indent <= *depth) {
            open.pop();
        }
        // Direct children only: what is deeper than the first line below a matched key belongs to somebody else.
        let direct = match open.last_mut() {
            Some((_, children)) => *children.get_or_insert(indent) == indent,
            None => indent == 0,
        };
        if !direct {
            continue;
        }
        let Some(wanted) = path.get(open.len()) else { continue };
        let Some(rest) = after_key(content, wanted) else {
            continue;
        };
        if open.len() + 1 == path.len() {
            let value = scalar(rest);
            if value.is_some() {
                return value;
            }
        } else if scalar(rest).is_none() {
            open.push((indent, None));
        }
    }
    None
}

/// What follows `key:`, `"key":` or `'key':`.
fn after_key<'a>(content: &'a str, key: &str) -> Option<&'a str> {
    let quote = content.chars().next().filter(|c| matches!(c, '"' | '\''));
    let rest = match quote {
        Some(q) => content.strip_prefix(q)?.strip_prefix(key)?.strip_prefix(q)?,
        None => content.strip_prefix(key)?,
    };
    let rest = rest.strip_prefix(':')?;
    (rest.is_empty() || rest.starts_with(char::is_whitespace)).then_some(rest)
}

fn scalar(rest: &str) -> Option<String> {
    let value = rest.trim();
    let quoted = |q: char| {
        let inner = value.strip_prefix(q)?;
        inner.find(q).and_then(|end| inner.get(..end)).map(str::to_owned)
    };
    match value.chars().next()? {
        '"' => quoted('"'),
        '\'' => quoted('\''),
        '#' | '|' | '>' | '{' | '[' | '&' | '*' | '!' => None,
        _ => Some(value.split(" #").next().unwrap_or(value).trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::yaml_scalar;

    const TEXT: &str = "
# secrets: none
http:
  secrets:
    encryption: wrong
secrets:
  # a comment
  inner:
    encryption: wrong
  encryption: \"00ff\" # ours
  keys:
    - kid: a
      encryption: no
other: 'x # y'
block: |
  encryption: no
flow: {encryption: no}
'quoted': plain # c
";

    #[test]
    fn values_are_found_by_path_only() {
        let get = |path: &[&str]| yaml_scalar(TEXT, path);
        assert_eq!(get(&["secrets", "encryption"]).as_deref(), Some("00ff"));
        assert_eq!(get(&["http", "secrets", "encryption"]).as_deref(), Some("wrong"));
        assert_eq!(get(&["other"]).as_deref(), Some("x # y"));
        assert_eq!(get(&["quoted"]).as_deref(), Some("plain"));
        for path in [
            &["encryption"][..],
            &["secrets"],
            &["block"],
            &["flow"],
            &["flow", "encryption"],
            &["secrets", "kid"],
        ] {
            assert_eq!(get(path), None, "{path:?}");
        }
    }

    #[test]
    fn hostile_text_does_no_harm() {
        for text in [
            "",
            ":",
            "secrets",
            "secrets:\n\tencryption:",
            "\u{feff}secrets:",
            "secrets: \"",
            "'",
            "\"\":\n :",
        ] {
            assert_eq!(yaml_scalar(text, &["secrets", "encryption"]), None);
        }
        assert_eq!(yaml_scalar("a: 1", &[]), None);
    }
}
