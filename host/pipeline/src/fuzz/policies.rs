//! What a policy is given beside the questions: approvals that people write, data, and the answers its tests expect.

use super::parts;
use crate::plugin::trial;
use crate::policy::test::difference;
use crate::policy::{approvals, ids, scripts};
use serde_json::Value;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// An approval: its mode and eight bytes of time, its name up to a line's end, its text.
pub fn approval(data: &[u8]) {
    let Some((head, rest)) = data.split_at_checked(9) else {
        return;
    };
    let at = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
    let (name, text) = (&rest[..at], rest.get(at + 1..).unwrap_or_default());
    if name.is_empty()
        || name.len() > 200
        || name.contains(&b'/')
        || name.contains(&0)
        || [&b"."[..], b".."].contains(&name)
    {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(std::ffi::OsStr::from_bytes(name));
    std::fs::write(&path, text).unwrap();
    let seconds = i64::from_le_bytes(head[1..].try_into().unwrap());
    let ago = Duration::from_secs(seconds.unsigned_abs());
    let time = match seconds < 0 {
        true => SystemTime::UNIX_EPOCH.checked_sub(ago),
        false => SystemTime::UNIX_EPOCH.checked_add(ago),
    };
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    // What no file system can hold is kept as another time.
    let kept = time.is_some_and(|t| file.set_modified(t).is_ok());
    let mode = u32::from(head[0]) | 0o400;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    let good = mode & 0o022 == 0 && text.len() as u64 <= approvals::MOST_BYTES && std::str::from_utf8(text).is_ok();
    match approvals::one(&path) {
        Ok(found) => {
            let approval = found.unwrap();
            assert!(good, "mode {mode:o}");
            assert_eq!(approval.text.as_bytes(), text);
            assert_eq!(approval.name, String::from_utf8_lossy(name));
            // Within what every file system can hold.
            if kept && (0..1 << 31).contains(&seconds) {
                assert_eq!(approval.modified_unix_seconds, seconds);
            }
            // As the policy is told.
            let told = serde_json::to_string(&approval).unwrap();
            let told: Value = serde_json::from_str(&told).unwrap();
            assert_eq!(told["text"].as_str().unwrap().as_bytes(), text);
        }
        Err(why) => assert!(!good, "{why}"),
    }
}

/// Data of a policy and inputs to it; after a line of `%%` another, which it is held against.
pub fn told(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parts = parts(text, "%%");
    let values: Vec<Option<Value>> = parts.iter().map(|p| serde_json::from_str(p).ok()).collect();
    for (part, value) in parts.iter().zip(&values) {
        let checked = scripts::is_data(Path::new("d.json"), part);
        assert_eq!(checked.is_ok(), value.as_ref().is_some_and(Value::is_object));
        if let Err(e) = checked {
            assert!(e.to_string().contains("d.json"), "it does not say where: {e}");
        }
        let backups = value.as_ref().and_then(|v| v.get("backups")?.as_array());
        let known = ids(part);
        let listed = |id: &String| backups.is_none_or(|all| all.iter().any(|b| b["id"] == id.as_str() || b.is_array()));
        assert!(known.iter().all(listed));
    }
    let [Some(one), Some(other)] = values.as_slice() else {
        return;
    };
    for value in [one, other] {
        assert_eq!(difference("", value, value), None);
        assert_eq!(differences(value, value), Vec::<String>::new());
    }
    // What differs is told.
    assert_eq!(differences(one, other).is_empty(), one == other);
    if let (None, false) = (difference("", one, other), one == other) {
        // An answer may hold more than is expected, and lists are sets.
        let more = other.as_object().zip(one.as_object());
        let more = more.is_some_and(|(answer, expected)| expected.keys().all(|k| answer.contains_key(k)));
        assert!(more || one.is_array() && one.as_array().map(Vec::len) == other.as_array().map(Vec::len));
    }
}

fn differences(kept: &Value, now: &Value) -> Vec<String> {
    let mut told = Vec::new();
    trial::differences("", kept, now, &mut told);
    told
}
