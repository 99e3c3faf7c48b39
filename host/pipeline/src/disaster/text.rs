//! Words from elsewhere in a Markdown file: component's texts, names of databases, paths. None of them may begin a heading,
//! a row, a list or a block of code, and what stands in a command is one word of the shell's.

/// One line, whatever it was, that begins nothing of Markdown's.
pub(crate) fn flat(text: &str) -> String {
    let one_line = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    let digits = one_line.chars().take_while(char::is_ascii_digit).count();
    match (one_line.chars().next(), one_line.split_at_checked(digits)) {
        // `[` may be where an address that is not shown begins, `<` HTML.
        (Some('#' | '>' | '-' | '+' | '*' | '=' | '`' | '~' | '|' | '_' | '[' | '<'), _) => format!("\\{one_line}"),
        // A list with numbers.
        (_, Some((number, rest))) if digits > 0 && ends_number(rest) => format!("{number}\\{rest}"),
        _ => one_line,
    }
}

/// Whether a number before this begins an item of a list.
fn ends_number(rest: &str) -> bool {
    let after = rest.strip_prefix(['.', ')']);
    after.is_some_and(|after| after.is_empty() || after.starts_with(' '))
}

/// The same in a cell of a table.
pub(crate) fn cell(text: &str) -> String {
    flat(text).replace('|', "/")
}

/// The same as code.
pub(crate) fn code(text: &str) -> String {
    let line: String = text
        .chars()
        .map(|c| match c {
            '`' => '\'',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect();
    format!("`{line}`")
}

/// One word for a POSIX shell.
pub(crate) fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@".contains(c);
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    match !line.is_empty() && line.chars().all(plain) {
        true => line,
        false => format!("'{}'", line.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_elsewhere_begins_anything() {
        assert_eq!(
            flat("all rooms\n# Stop\n\n| a | b |\r\n```"),
            "all rooms # Stop | a | b | ```"
        );
        assert_eq!(flat("# Stop"), "\\# Stop");
        assert_eq!(flat("\u{1b}[1m- x"), "\\[1m- x");
        assert_eq!(flat("  - x"), "\\- x");
        assert_eq!(flat("1. x"), "1\\. x");
        assert_eq!(flat("12) x"), "12\\) x");
        assert_eq!(flat("12 x"), "12 x");
        assert_eq!(flat("1.6"), "1.6");
        assert_eq!(flat("[a]: b"), "\\[a]: b");
        assert_eq!(flat("<!-- x"), "\\<!-- x");
        assert_eq!(cell("a | b\nc"), "a / b c");
        assert_eq!(cell("|a"), "\\/a");
        assert_eq!(code("a`b\nc"), "`a'b\u{fffd}c`");
    }

    #[test]
    fn what_stands_in_a_command_is_one_word() {
        assert_eq!(word("/etc/essrun/ess.toml"), "/etc/essrun/ess.toml");
        assert_eq!(word("/srv/my files/it's.toml"), "'/srv/my files/it'\\''s.toml'");
        assert_eq!(word(""), "''");
        assert_eq!(word("$(x)"), "'$(x)'");
        for text in ["/a b/it's", "$(x) `y`", "a\"b\\c*"] {
            let printed = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", word(text))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(printed.stdout).unwrap(), text);
        }
    }
}
