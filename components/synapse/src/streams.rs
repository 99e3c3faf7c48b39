//! Streams: the sequences that number them, the tables that hold them, and the positions workers have reached.
//!
//! Synapse refuses to start when a position is ahead of its sequence, and hands out numbers twice when a table is. The
//! map below says which tables each sequence numbers; tables and sequences a version does not have are skipped, and what
//! a version has beyond the map is said, because nothing is known of it. What is wrong already when a backup is taken is recorded and put right by the restore, by raising the sequence, which is
//! always safe; what is wrong only afterwards is a fault of the restore.

use essrun_guest::{db::TableInfo, db::TableKind, prelude::*};

/// A sequence and what it numbers.
struct Map {
    sequence: &'static str,
    /// Its name in stream_positions, where it has one.
    stream: Option<&'static str>,
    /// (table, column)
    numbers: &'static [(&'static str, &'static str)],
    /// Counts downwards in the tables: -1, -2, …
    negative: bool,
    /// Numbers that are not a column's as they stand.
    within: Option<Within>,
}

/// Numbers to be found in something else.
struct Within {
    table: &'static str,
    columns: &'static [&'static str],
    /// The highest one, as a query.
    highest: &'static str,
    place: &'static str,
}

const fn map(
    sequence: &'static str,
    stream: Option<&'static str>,
    numbers: &'static [(&'static str, &'static str)],
) -> Map {
    Map {
        sequence,
        stream,
        numbers,
        negative: false,
        within: None,
    }
}

const STREAMS: &[Map] = &[
    map(
        "events_stream_seq",
        Some("events"),
        &[
            ("events", "stream_ordering"),
            ("current_state_delta_stream", "stream_id"),
            ("ex_outlier_stream", "event_stream_ordering"),
        ],
    ),
    Map {
        sequence: "events_backfill_stream_seq",
        stream: Some("backfill"),
        numbers: &[
            ("events", "stream_ordering"),
            ("ex_outlier_stream", "event_stream_ordering"),
        ],
        negative: true,
        within: None,
    },
    map(
        "cache_invalidation_stream_seq",
        Some("caches"),
        &[("cache_invalidation_stream_by_instance", "stream_id")],
    ),
    map(
        "device_inbox_sequence",
        Some("to_device"),
        &[("device_inbox", "stream_id"), ("device_federation_outbox", "stream_id")],
    ),
    map(
        "account_data_sequence",
        Some("account_data"),
        &[
            ("room_account_data", "stream_id"),
            ("room_tags_revisions", "stream_id"),
            ("account_data", "stream_id"),
        ],
    ),
    map(
        "receipts_sequence",
        Some("receipts"),
        &[("receipts_linearized", "stream_id")],
    ),
    map(
        "presence_stream_sequence",
        Some("presence_stream"),
        &[("presence_stream", "stream_id")],
    ),
    map(
        "device_lists_sequence",
        Some("device_lists_stream"),
        &[
            ("device_lists_stream", "stream_id"),
            ("user_signature_stream", "stream_id"),
            ("device_lists_outbound_pokes", "stream_id"),
            ("device_lists_changes_in_room", "stream_id"),
            ("device_lists_remote_pending", "stream_id"),
            ("device_lists_changes_converted_stream_position", "stream_id"),
        ],
    ),
    map(
        "e2e_cross_signing_keys_sequence",
        Some("e2e_cross_signing_keys"),
        &[("e2e_cross_signing_keys", "stream_id")],
    ),
    map(
        "push_rules_stream_sequence",
        Some("push_rules_stream"),
        &[("push_rules_stream", "stream_id")],
    ),
    map(
        "pushers_sequence",
        Some("pushers"),
        &[("pushers", "id"), ("deleted_pushers", "stream_id")],
    ),
    map(
        "un_partial_stated_event_stream_sequence",
        Some("un_partial_stated_event_stream"),
        &[("un_partial_stated_event_stream", "stream_id")],
    ),
    map(
        "un_partial_stated_room_stream_sequence",
        Some("un_partial_stated_room_stream"),
        &[("un_partial_stated_room_stream", "stream_id")],
    ),
    map(
        "thread_subscriptions_sequence",
        Some("thread_subscriptions"),
        &[("thread_subscriptions", "stream_id")],
    ),
    map(
        "sticky_events_sequence",
        Some("sticky_events"),
        &[("sticky_events", "stream_id")],
    ),
    map(
        "profile_updates_sequence",
        Some("profile_updates"),
        &[("profile_updates", "stream_id")],
    ),
    map(
        "quarantined_media_id_seq",
        Some("quarantined_media"),
        &[("quarantined_media_changes", "stream_id")],
    ),
    map(
        "application_services_txn_id_seq",
        None,
        &[("application_services_txns", "txn_id")],
    ),
    // Guests are called by numbers.
    Map {
        sequence: "user_id_seq",
        stream: None,
        numbers: &[],
        negative: false,
        within: Some(Within {
            table: "users",
            columns: &["name", "is_guest"],
            highest: "SELECT max(substring(name FROM '^@([0-9]{1,18}):')::bigint) FROM public.users \
                      WHERE is_guest = 1 AND name >= '@1' AND name < '@a'",
            place: "public.users.name of guests",
        }),
    },
    map("event_auth_chain_id", None, &[("event_auth_chains", "chain_id")]),
    map("state_group_id_seq", None, &[("state_groups", "id")]),
    map("instance_map_instance_id_seq", None, &[("instance_map", "instance_id")]),
    map(
        "sliding_sync_connections_connection_key_seq",
        None,
        &[("sliding_sync_connections", "connection_key")],
    ),
    map(
        "sliding_sync_connection_positions_connection_position_seq",
        None,
        &[("sliding_sync_connection_positions", "connection_position")],
    ),
    map(
        "sliding_sync_connection_required_state_required_state_id_seq",
        None,
        &[("sliding_sync_connection_required_state", "required_state_id")],
    ),
    map(
        "state_groups_pending_deletion_sequence_number_seq",
        None,
        &[("state_groups_pending_deletion", "sequence_number")],
    ),
];

/// What one sequence has reached, and what its tables and positions have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    pub sequence: &'static str,
    /// The last number given out; 0 before the first.
    pub last: i64,
    /// The highest number in a table or position, and where.
    pub highest: i64,
    pub highest_at: String,
}

impl Reached {
    pub fn behind(&self) -> bool {
        self.highest > self.last
    }

    /// A position ahead by what a server writes of a sequence in advance.
    fn by_a_failover(&self) -> bool {
        self.highest.checked_sub(self.last) == Some(32) && self.highest_at.starts_with("stream_positions")
    }
}

/// What is asked of one stream.
struct Asked {
    sequence: &'static str,
    /// The last number given out, then the highest at each place.
    numbers: Vec<String>,
    places: Vec<String>,
}

/// Looks at every stream the database has, in one query: a restore is not in service before all are looked at.
pub fn look(label: &str, tables: &[TableInfo]) -> Result<Vec<Reached>, Error> {
    let asked: Vec<Asked> = STREAMS.iter().filter_map(|map| ask(map, tables)).collect();
    let width = asked.iter().map(|a| a.numbers.len()).max().unwrap_or(0);
    // All have as many columns as the widest.
    let columns = |a: &Asked| {
        let number = |n| a.numbers.get(n).map_or("0", String::as_str);
        let each: Vec<String> = (0..width).map(|n| format!("{}::bigint AS c{n}", number(n))).collect();
        each.join(", ")
    };
    let rows = db::together(label, &asked.iter().map(columns).collect::<Vec<_>>())?;
    let mut all = Vec::with_capacity(asked.len());
    for (asked, row) in asked.into_iter().zip(rows) {
        let missing = || Error::Inspect(format!("{label}: nothing came back about {}", asked.sequence));
        let row = row.ok_or_else(missing)?;
        let mut reached = Reached {
            sequence: asked.sequence,
            last: row.get(1)?,
            highest: 0,
            highest_at: String::new(),
        };
        for (i, place) in asked.places.into_iter().enumerate() {
            let value = row.get::<i64>(i + 2)?;
            if value > reached.highest {
                reached.highest = value;
                reached.highest_at = place;
            }
        }
        all.push(reached);
    }
    Ok(all)
}

/// `None` for a sequence that this version of Synapse does not have.
fn ask(map: &Map, tables: &[TableInfo]) -> Option<Asked> {
    let relation = |name: &str| tables.iter().find(|t| t.schema == "public" && t.name == name);
    relation(map.sequence).filter(|t| t.kind == TableKind::Sequence)?;
    let mut asked = Asked {
        sequence: map.sequence,
        numbers: vec![format!(
            "(SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM public.{})",
            map.sequence
        )],
        places: Vec::new(),
    };
    let mut add = |number: String, place: String| {
        asked.numbers.push(number);
        asked.places.push(place);
    };
    let highest = |column: &str| match map.negative {
        true => format!("GREATEST(-min({column}), 0)"),
        false => format!("COALESCE(max({column}), 0)"),
    };
    for (table, column) in map.numbers {
        if relation(table).is_some_and(|t| t.has_column(column)) {
            add(
                format!("COALESCE((SELECT {} FROM public.{table}), 0)", highest(column)),
                format!("public.{table}.{column}"),
            );
        }
    }
    if let Some(within) = &map.within
        && relation(within.table).is_some_and(|t| within.columns.iter().all(|c| t.has_column(c)))
    {
        add(format!("COALESCE(({}), 0)", within.highest), within.place.to_owned());
    }
    if let (Some(stream), Some(_)) = (map.stream, relation("stream_positions")) {
        add(
            format!(
                "COALESCE((SELECT {} FROM public.stream_positions WHERE stream_name = {}), 0)",
                highest("stream_id"),
                db::literal(stream)
            ),
            format!("stream_positions of `{stream}`"),
        );
    }
    Some(asked)
}

/// Sequences and streams the map does not have: (sequences, streams).
fn unknown(label: &str, tables: &[TableInfo]) -> Result<(Vec<String>, Vec<String>), Error> {
    let sequences = tables
        .iter()
        .filter(|t| t.schema == "public" && t.kind == TableKind::Sequence)
        .filter(|t| !STREAMS.iter().any(|m| m.sequence == t.name))
        .map(|t| t.name.clone())
        .collect();
    let mut streams = Vec::new();
    if db::has(tables, "public.stream_positions") {
        let sql = "SELECT DISTINCT stream_name FROM public.stream_positions ORDER BY 1";
        for row in db::query(label, sql, &[])? {
            let name: String = row?.get(0)?;
            if !STREAMS.iter().any(|m| m.stream == Some(name.as_str())) {
                streams.push(name);
            }
        }
    }
    Ok((sequences, streams))
}

/// What is unknown in words; `None` where nothing is.
fn unknown_said(label: &str, tables: &[TableInfo]) -> Result<Option<String>, Error> {
    let (sequences, streams) = unknown(label, tables)?;
    let said: Vec<String> = [("sequences", sequences), ("streams", streams)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{what} not known here: {}", essrun_guest::listed(&names, 10)))
        .collect();
    Ok((!said.is_empty()).then(|| said.join(", ")))
}

/// Facts and a warning about streams that are wrong already.
pub fn record(mut plan: BackupPlan, label: &str, tables: &[TableInfo]) -> Result<BackupPlan, Error> {
    for reached in look(label, tables)? {
        plan = plan.fact(format!("sequence/{label}/{}", reached.sequence), reached.last);
        if reached.behind() {
            plan = plan
                .fact(format!("sequence-behind/{label}/{}", reached.sequence), reached.highest)
                .warn(format!(
                    "{} stands at {} but {} is at {}: Synapse will refuse to start, now as after a restore; a restore \
                     raises the sequence. To repair the live database: SELECT setval('public.{}', {})",
                    reached.sequence,
                    reached.last,
                    reached.highest_at,
                    reached.highest,
                    reached.sequence,
                    reached.highest
                ));
        }
    }
    if let Some(said) = unknown_said(label, tables)? {
        plan = plan.note(format!(
            "{label}: {said}; they are taken like all others, but whether they fit their tables is not checked"
        ));
    }
    Ok(plan)
}

/// Raises the sequences that were behind when the backup was taken.
pub fn heal(mut plan: RestorePlan, backup: &BackupView) -> RestorePlan {
    for (key, _) in backup.facts_below("sequence-behind/") {
        let Some((label, sequence)) = key.split_once('/') else {
            continue;
        };
        let known = STREAMS.iter().any(|m| m.sequence == sequence) && matches!(label, "main" | "state");
        if let (true, Some(to)) = (known, backup.fact_integer(&format!("sequence-behind/{key}"))) {
            plan = plan.run_sql(
                label,
                format!("SELECT setval('public.{sequence}', GREATEST({to}, (SELECT last_value FROM public.{sequence})))"),
                "the sequence was behind its table or position when the backup was taken, and Synapse refuses to start so",
            );
        }
    }
    plan
}

/// Every stream's rows and positions are at or below its sequence.
pub fn verify(findings: &mut Findings, label: &str, tables: &[TableInfo]) -> Result<(), Error> {
    let all = look(label, tables)?;
    let wrong: Vec<&Reached> = all.iter().filter(|r| r.behind()).collect();
    let check = check(format!("synapse-streams-{label}"));
    findings.push(if wrong.is_empty() {
        check.pass(format!(
            "all {} sequences are at or beyond their tables and positions",
            all.len()
        ))
    } else {
        let mut remedy = String::from("Synapse would refuse to start or give numbers twice; raise them: ");
        let said: Vec<String> = wrong
            .iter()
            .map(|r| format!("{} stands at {}, {} at {}", r.sequence, r.last, r.highest_at, r.highest))
            .collect();
        let repair: Vec<String> = wrong
            .iter()
            .map(|r| format!("SELECT setval('public.{}', {})", r.sequence, r.highest))
            .collect();
        remedy.push_str(&repair.join("; "));
        // What else an administrator may read about it, and be misled by.
        remedy.push_str(
            ". A sequence behind its table Synapse raises by itself, but its first start then fails all the same, with \
             \"inconsistent with associated stream position\"; the second works",
        );
        if wrong.iter().any(|r| r.by_a_failover()) {
            remedy.push_str(
                ". A position that is exactly 32 ahead comes of a failover of PostgreSQL, which writes sequences ahead by as \
                 many (SEQ_LOG_VALS) and can lose them: no number is missing, raising is all there is to do",
            );
        }
        check.fail(essrun_guest::listed(&said, 10), remedy)
    });
    if let Some(said) = unknown_said(label, tables)? {
        findings.push(essrun_guest::check(format!("synapse-streams-unknown-{label}")).warn(
            said,
            "a Synapse newer than this essrun, or somebody else's in its database: whether they fit their tables was not \
             checked; should Synapse refuse to start, raise the sequence it names with setval, and take a newer essrun",
        ));
    }
    Ok(())
}
