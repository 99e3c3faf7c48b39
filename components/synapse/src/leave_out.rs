//! Which tables' data may be left out, and which must be.
//!
//! A site chooses groups by name (or single tables of a group). What is not known to be safe is refused, with the
//! reason where one is known, because an emptied table is often noticed only weeks later. Foreign keys are read from
//! the snapshot: no kept table may point at an emptied one.

use crate::{ONE_TIME_KEYS, settings::Settings};
use essrun_guest::{db::TableInfo, prelude::*};
use std::collections::{BTreeMap, BTreeSet};

/// Tables that are left out together.
struct Group {
    name: &'static str,
    tables: &'static [&'static str],
    /// What is lost, or why nothing is.
    why: &'static str,
}

/// What may be left out.
const GROUPS: &[Group] = &[
    Group {
        name: "cache-invalidation",
        tables: &["cache_invalidation_stream_by_instance"],
        why: "tells running workers to forget cached rows; after a start caches are empty",
    },
    Group {
        name: "locks",
        tables: &[
            "worker_locks",
            "worker_read_write_locks",
            "worker_read_write_locks_mode",
        ],
        why: "locks of processes that no longer run",
    },
    Group {
        name: "push-staging",
        tables: &["event_push_actions_staging"],
        why: "notifications of events being written at this very moment",
    },
    Group {
        name: "url-previews",
        tables: &["local_media_repository_url_cache"],
        why: "previews are fetched again; their files are not taken either, so rows would point at nothing",
    },
    Group {
        name: "sliding-sync",
        tables: &[
            "sliding_sync_connections",
            "sliding_sync_connection_positions",
            "sliding_sync_connection_required_state",
            "sliding_sync_connection_room_configs",
            "sliding_sync_connection_streams",
            "sliding_sync_connection_lazy_members",
        ],
        why: "clients begin a new sliding sync: one slow first sync each",
    },
    Group {
        name: "sessions",
        tables: &[
            "sessions",
            "open_id_tokens",
            "login_tokens",
            "ui_auth_sessions",
            "ui_auth_sessions_credentials",
            "ui_auth_sessions_ips",
        ],
        why: "logins and confirmations under way start over",
    },
    Group {
        name: "presence",
        tables: &["presence_stream"],
        why: "who is online starts from nothing",
    },
    Group {
        name: "federation-dedupe",
        tables: &["received_transactions", "device_federation_inbox"],
        why: "transactions other servers repeat within a day could be taken twice",
    },
    Group {
        name: "statistics",
        tables: &["user_ips", "user_daily_visits"],
        why: "last-seen addresses and daily statistics are lost",
    },
    Group {
        name: "sync-gaps",
        tables: &["stream_ordering_to_exterm"],
        why: "only needed to answer clients that were away for long",
    },
    Group {
        name: "search-index",
        tables: &["event_search"],
        why: "message search finds nothing older than the restore; no job rebuilds it",
    },
    Group {
        name: "user-directory",
        tables: &[
            "user_directory",
            "user_directory_search",
            "users_who_share_private_rooms",
            "users_in_public_rooms",
        ],
        why: "stays empty until the job regenerate_directory was run by hand",
    },
];

/// What is left out without being asked: groups whose loss costs nothing.
pub const DEFAULT: &[&str] = &["cache-invalidation", "locks", "push-staging", "url-previews"];

/// Known to do harm when emptied, although it may look otherwise.
const HARMFUL: &[(&str, &str)] = &[
    (
        "federation_inbound_events_staging",
        "holds events already acknowledged to other servers and not yet processed",
    ),
    ("device_inbox", "holds room keys not yet delivered to devices"),
    (
        "device_federation_outbox",
        "holds room keys not yet delivered to other servers",
    ),
    ("ratelimit_override", "is a setting made by the administrator"),
    ("event_auth_chains", "can only be made again by long background work"),
    (
        "event_auth_chain_links",
        "can only be made again by long background work",
    ),
    ("event_auth_chain_to_calculate", "is the list of that background work"),
    ("state_groups_state", "cannot be made again by any tool"),
    ("state_groups", "cannot be made again by any tool"),
    ("state_group_edges", "cannot be made again by any tool"),
    (
        "e2e_fallback_keys_json",
        "is what keeps encryption working while the one-time keys are empty",
    ),
    ("instance_map", "gives meaning to the sync tokens clients hold"),
    ("stream_positions", "gives meaning to the sync tokens clients hold"),
    ("background_updates", "is the list of schema changes still under way"),
    (
        "federation_stream_position",
        "says what was already sent to other servers",
    ),
];

/// The default as JSON, for `describe`.
pub fn default_json() -> String {
    format!(
        "[{}]",
        DEFAULT
            .iter()
            .map(|g| format!("\"{g}\""))
            .collect::<Vec<_>>()
            .join(", ")
    )
}

/// What the setting does, with every group.
pub fn purpose() -> String {
    let mut text = String::from("groups (or single tables of them) whose data is left out:");
    for group in GROUPS {
        text.push_str(&format!(" {} ({});", group.name, group.why));
    }
    text.push_str(" the data of e2e_one_time_keys_json is always left out");
    text
}

/// The dump of a database, and what must be said about it.
pub fn dump(label: &str, tables: &[TableInfo], settings: &Settings) -> Result<(DumpDatabase, Vec<String>), Error> {
    let mut chosen = choose(tables, settings)?;
    let keys = foreign_keys(label)?;
    let asked = settings.leave_out.is_some();
    let mut notes = Vec::new();

    // A kept table must not point at an emptied one. Members of a group follow; else the emptied one is kept, or, if
    // somebody asked for it by name, refused.
    loop {
        let broken = keys
            .iter()
            .find(|(child, parent)| chosen.contains_key(parent) && !chosen.contains_key(child) && child != parent);
        let Some((child, parent)) = broken else { break };
        let why = chosen.get(parent).cloned().unwrap_or_default();
        if group_of(child).is_some() && group_of(child).map(|g| g.name) == group_of(parent).map(|g| g.name) {
            chosen.insert(child.clone(), format!("points at {parent}, which is left out: {why}"));
        } else if asked {
            return Err(Error::invalid_setting(
                "leave-out",
                format!("{parent} cannot be left out, because {child} points at it and would be broken; leave it in"),
            ));
        } else {
            chosen.remove(parent);
            notes.push(format!(
                "{parent} is kept: in this version of Synapse {child} points at it"
            ));
        }
    }
    if let Some((child, _)) = keys
        .iter()
        .find(|(child, parent)| parent == ONE_TIME_KEYS && child != parent)
    {
        return Err(Error::Unsupported(format!(
            "{child} points at {ONE_TIME_KEYS}, which must never be restored: this version of Synapse is not known"
        )));
    }

    let mut dump = DumpDatabase::all(label).leave_out(
        ONE_TIME_KEYS,
        "each key may be handed out once only: after a rollback claimed keys would be handed out again and messages \
         could not be decrypted; clients upload new ones, fallback keys serve until then",
    );
    for (table, why) in chosen {
        dump = dump.leave_out(table, why);
    }
    Ok((dump, notes))
}

/// The groups of which at least one table with data is left out, for facts.
pub fn groups_in(dump: &DumpDatabase) -> BTreeSet<&'static str> {
    dump.leave_out_data
        .iter()
        .filter_map(|r| group_of(&r.table))
        .map(|g| g.name)
        .collect()
}

/// What was asked for: table → why.
fn choose(tables: &[TableInfo], settings: &Settings) -> Result<BTreeMap<String, String>, Error> {
    let asked: Vec<&str> = match &settings.leave_out {
        Some(list) => list.iter().map(String::as_str).collect(),
        None => DEFAULT.to_vec(),
    };
    let mut chosen = BTreeMap::new();
    for item in asked {
        let short = item.strip_prefix("public.").unwrap_or(item);
        let full = format!("public.{short}");
        if full == ONE_TIME_KEYS {
            continue; // always left out
        }
        let (group, members): (&Group, Vec<&str>) = if let Some(g) = GROUPS.iter().find(|g| g.name == item) {
            (g, g.tables.to_vec())
        } else if let Some(g) = group_of(&full) {
            (g, vec![short])
        } else {
            return Err(refusal(item, short, &full, tables));
        };
        for table in members {
            let full = format!("public.{table}");
            // Older and newer versions of Synapse have fewer or more tables; a rule for an absent one would be a lie.
            if db::has(tables, &full) {
                chosen.insert(full, group.why.to_owned());
            }
        }
    }
    Ok(chosen)
}

fn group_of(full_name: &str) -> Option<&'static Group> {
    let short = full_name.strip_prefix("public.")?;
    GROUPS.iter().find(|g| g.tables.contains(&short))
}

fn refusal(item: &str, short: &str, full: &str, tables: &[TableInfo]) -> Error {
    let table = tables.iter().find(|t| t.full_name() == full);
    let reason = if let Some((_, why)) = HARMFUL.iter().find(|(name, _)| *name == short) {
        format!("`{item}` must not be left out: it {why}")
    } else if table.is_some_and(|t| t.has_column("lock")) {
        format!("`{item}` must not be left out: it has exactly one row, and without it Synapse starts and then fails")
    } else if table.is_some() {
        format!("`{item}` is not known to be safe to leave out")
    } else {
        format!("`{item}` is no group, and no table of this database")
    };
    let groups = GROUPS.iter().map(|g| g.name).collect::<Vec<_>>().join(", ");
    Error::invalid_setting("leave-out", format!("{reason}; choose among {groups}"))
}

/// (child, parent) of every foreign key, as `schema.name`.
fn foreign_keys(label: &str) -> Result<Vec<(String, String)>, Error> {
    db::query(
        label,
        "SELECT cn.nspname || '.' || c.relname AS child, pn.nspname || '.' || p.relname AS parent \
         FROM pg_catalog.pg_constraint f \
         JOIN pg_catalog.pg_class c ON c.oid = f.conrelid JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace \
         JOIN pg_catalog.pg_class p ON p.oid = f.confrelid JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace \
         WHERE f.contype = 'f' GROUP BY 1, 2 ORDER BY 1, 2",
        &[],
    )?
    .map(|row| {
        let row = row?;
        Ok((row.get(0)?, row.get(1)?))
    })
    .collect()
}
