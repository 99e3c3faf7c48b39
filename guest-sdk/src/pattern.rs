//! The contract's simple patterns: `*` stands for any run of characters, also none; all else for itself.

/// Whether `text` matches `pattern`. Linear in practice: on a mismatch only the last `*` is tried again.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (p, t) = (pattern.as_bytes(), text.as_bytes());
    let (mut i, mut j) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while j < t.len() {
        match p.get(i) {
            Some(b'*') => {
                star = Some((i + 1, j));
                i += 1;
            }
            Some(c) if Some(c) == t.get(j) => {
                i += 1;
                j += 1;
            }
            _ => match star {
                Some((after, from)) => {
                    i = after;
                    j = from + 1;
                    star = Some((after, from + 1));
                }
                None => return false,
            },
        }
    }
    p.get(i..).is_some_and(|rest| rest.iter().all(|c| *c == b'*'))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars() {
        for (p, t) in [
            ("*", ""),
            ("*", "x"),
            ("a*c", "abbc"),
            ("main/*", "main/public.users"),
            ("*.users", "public.users"),
            ("a", "a"),
            ("**", "ä"),
            ("*b*b", "abab"),
        ] {
            assert!(matches(p, t), "{p} {t}");
        }
        for (p, t) in [
            ("", "x"),
            ("a*c", "ab"),
            ("main/*", "main"),
            ("public.users", "public.users2"),
            ("*b", "abc"),
        ] {
            assert!(!matches(p, t), "{p} {t}");
        }
    }
}
