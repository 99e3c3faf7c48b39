//! Identity providers: those the configuration names and those the database knows are told apart by their ids.
//!
//! MAS makes a provider that only the configuration has anew when it starts. Then users who logged in through the former
//! one are not known to it: their links hang on the id. Ids are ULIDs in config.yaml and UUIDs in the database, two ways
//! of writing the same 128 bits.

use crate::secret::FILE_BYTES;
use crate::settings::Settings;
use essrun_guest::{listed, prelude::*};
use std::collections::BTreeSet;

const TABLE: &str = "public.upstream_oauth_providers";
const ID: &str = "upstream_oauth_provider_id";

/// Every provider of the restored configuration is in the restored database.
pub fn verify(findings: &mut Findings, settings: &Settings) -> Result<(), Error> {
    if !volume::granted("config")? {
        return Ok(()); // said by the secret's check
    }
    let tables = db::tables("main")?;
    let mut configured = Vec::new();
    for file in volume::find("config", &settings.config_file)? {
        // A large or foreign file among the configuration is not the one looked for.
        if let Ok(text) = volume::read_text("config", &file, FILE_BYTES) {
            configured.extend(providers(&text));
        }
    }
    let mut known = BTreeSet::new();
    if tables.iter().any(|t| t.full_name() == TABLE && t.has_column(ID)) {
        for row in db::query("main", &format!("SELECT {ID}::text AS id FROM {TABLE}"), &[])? {
            known.extend(uuid(&row?.get::<String>(0)?));
        }
    }
    let lost: Vec<String> = configured
        .iter()
        .filter(|id| ulid(id).is_none_or(|id| !known.contains(&id)))
        .map(|id| format!("{id:?}"))
        .collect();
    let check = check("mas-upstream-providers");
    findings.push(if lost.is_empty() {
        check.pass(format!(
            "{} identity providers in the configuration, all of them known to the database",
            configured.len()
        ))
    } else {
        check.warn(
            format!(
                "the configuration names identity providers the database does not know: {}",
                listed(&lost, 5)
            ),
            "MAS makes them anew when it starts, and users who logged in through a provider with another id are not linked \
             to it: put the ids back that config.yaml had (upstream_oauth2.providers) before the start; a provider that was \
             added since the backup is fine",
        )
    });
    Ok(())
}

/// The ids below `upstream_oauth2: providers:`, by line: a list of mappings in block style, as the documentation has it.
fn providers(text: &str) -> Vec<String> {
    let mut ids = Vec::new();
    // Indentation of `providers:`, of the list's dashes, of an item's keys.
    let (mut inside, mut list, mut dash, mut keys) = (false, None, None, None);
    for line in text.lines() {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let indent = line.len() - content.len();
        if indent == 0 && !content.starts_with('-') {
            inside = content.starts_with("upstream_oauth2:");
            (list, dash, keys) = (None, None, None);
            continue;
        }
        if !inside {
            continue;
        }
        if list.is_none_or(|list| indent <= list && !content.starts_with('-')) {
            list = content.starts_with("providers:").then_some(indent);
            (dash, keys) = (None, None);
            continue;
        }
        let item = content
            .strip_prefix('-')
            .filter(|rest| rest.is_empty() || rest.starts_with(' '));
        let key = match item {
            Some(rest) if *dash.get_or_insert(indent) == indent => {
                let key = rest.trim_start();
                keys = (!key.is_empty()).then(|| line.len() - key.len());
                key
            }
            None if dash.is_some() && *keys.get_or_insert(indent) == indent => content,
            _ => continue,
        };
        if let Some(id) = essrun_guest::config::yaml_scalar(key, &["id"]) {
            ids.push(id);
        }
    }
    ids
}

fn uuid(text: &str) -> Option<u128> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok())?
}

fn ulid(text: &str) -> Option<u128> {
    const DIGITS: &[u8] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    // 26 digits are 130 bits: the first may use three of its five.
    if text.len() != 26 || !text.starts_with(|c: char| ('0'..='7').contains(&c)) {
        return None;
    }
    text.bytes().try_fold(0u128, |number, c| {
        let digit = DIGITS.iter().position(|d| *d == c.to_ascii_uppercase())?;
        Some((number << 5) | u128::try_from(digit).ok()?)
    })
}

#[cfg(test)]
mod tests {
    use super::{providers, ulid, uuid};

    #[test]
    fn a_ulid_and_a_uuid_are_the_same_bits() {
        // Of the ULID specification's own implementations.
        let id = ulid("01ARZ3NDEKTSV4RRFFQ69G5FAV");
        assert!(id.is_some());
        assert_eq!(id, uuid("01563e3a-b5d3-d676-4c61-efb99302bd5b"));
        assert_eq!(ulid("01arz3ndektsv4rrffq69g5fav"), id);
        assert_eq!(ulid("7ZZZZZZZZZZZZZZZZZZZZZZZZZ"), Some(u128::MAX));
        for bad in ["", "8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "01ARZ3NDEKTSV4RRFFQ69G5FAU", "ä"] {
            assert_eq!(ulid(bad), None, "{bad}");
        }
        assert_eq!(uuid("01563e3a"), None);
    }

    #[test]
    fn ids_of_providers_only() {
        let text = "
http:
  listeners:
    - id: WRONG
upstream_oauth2:
  # ours
  providers:
    - id: 01AAA # first
      human_name: x
      scope: openid
      claims_imports:
        localpart:
          id: WRONG
      additional:
        - id: WRONG
    -
      human_name: y
      id: \"01BBB\"
  other:
    - id: WRONG
clients:
  - id: WRONG
";
        assert_eq!(providers(text), ["01AAA", "01BBB"]);
        let flat = "upstream_oauth2:\n  providers:\n  - id: 01CCC\n    name: x\n  - name: y\n    id: 01DDD\n";
        assert_eq!(providers(flat), ["01CCC", "01DDD"]);
        for none in [
            "",
            "upstream_oauth2:",
            "upstream_oauth2:\n  providers: []\n",
            "- id: x",
            "providers:\n - id: x",
        ] {
            assert!(providers(none).is_empty(), "{none:?}");
        }
    }
}
