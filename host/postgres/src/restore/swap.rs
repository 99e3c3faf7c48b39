//! The new database in, the old one kept under a dated name.
//!
//! PostgreSQL renames databases within transactions, so both renames happen or neither does: a process that dies in
//! between leaves the live database live, and there is nothing to recover. Renaming needs a database nobody is
//! connected to; sessions of others are a reason to refuse unless their end was asked for.

use super::plan::limited;
use super::restored::Restored;
use super::scratch::relations;
use crate::connection::{Connection, Session, our_name};
use crate::dump::DatabaseFacts;
use crate::error::{Error, Result};
use crate::names::{quote_ident, quote_literal};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How a swap is to go.
#[derive(Debug, Clone)]
pub struct SwapOptions {
    /// Let a live database with tables in it be renamed away.
    pub replace: bool,
    /// End other sessions of the live database instead of refusing because of them.
    pub terminate: bool,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swapped {
    pub database: String,
    /// The name the old database has now; `None` when there was none.
    pub old_kept_as: Option<String>,
}

/// Renames the live database away and the restored one in. On an error nothing was renamed, and the scratch database
/// stays to be looked at: it is found as a leftover.
pub async fn swap(target: &Connection, restored: &mut Restored, options: &SwapOptions) -> Result<Swapped> {
    restored.settle().await?;
    let restored = &*restored;
    let keeper = restored.keeper();
    let live = restored.report().database.clone();
    let scratch = restored.scratch().to_owned();
    let there = keeper
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = $1::text::name)",
            &[&live],
        )
        .await
        .map_err(|e| keeper.error("look for the live database", &e))?;
    let there: bool = there.get(0);
    let mut rename = String::from("BEGIN; ");
    let mut kept = None;
    if there {
        may_replace(&live, relations(&target.with_database(&live)).await?, options)?;
        let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ").to_string();
        let old = limited(&live, &format!("_before_{stamp}"));
        rename.push_str(&format!(
            "ALTER DATABASE {} RENAME TO {}; COMMENT ON DATABASE {} IS {}; ",
            quote_ident(&live),
            quote_ident(&old),
            quote_ident(&old),
            quote_literal(&format!(
                "essrun: replaced by a restore at {stamp}; drop it when it is not needed any more"
            ))
        ));
        kept = Some(old);
    }
    rename.push_str(&format!(
        "ALTER DATABASE {} RENAME TO {}; COMMENT ON DATABASE {} IS {}; COMMIT",
        quote_ident(&scratch),
        quote_ident(&live),
        quote_ident(&live),
        quote_literal(&restored.mark_in_service().comment())
    ));
    rights(restored, &scratch).await?;
    for again in [true, true, true, true, false] {
        if there {
            others(keeper, &live, options.terminate).await?;
        }
        match keeper.run("rename", &rename).await {
            Ok(()) => {
                return Ok(Swapped {
                    database: live,
                    old_kept_as: kept,
                });
            }
            // Somebody connected again between our look and the rename.
            Err(e) if e.code() == Some("55006") => {
                keeper.run("rename", "ROLLBACK").await?;
                if !(again && options.terminate) {
                    return Err(in_use(&live, "somebody is connected to it or to the scratch database"));
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(e) => {
                let _ = keeper.run("rename", "ROLLBACK").await;
                return Err(e);
            }
        }
    }
    Err(in_use(&live, "sessions keep coming back"))
}

fn in_use(live: &str, why: &str) -> Error {
    Error::refused(
        format!("database `{live}`"),
        why,
        "stop the services that use it, or let their sessions be ended",
    )
}

/// Refuses what [`swap`] would refuse because of the live database's sessions or contents. To be asked for all
/// databases before the first of anything is put in service.
pub async fn swap_ready(target: &Connection, restored: &Restored, options: &SwapOptions) -> Result<()> {
    let live = &restored.report().database;
    let there = restored
        .keeper()
        .query_opt(
            "SELECT FROM pg_catalog.pg_database WHERE datname = $1::text::name",
            &[live],
        )
        .await
        .map_err(|e| restored.keeper().error("look for the live database", &e))?;
    if there.is_none() {
        return Ok(());
    }
    may_replace(live, relations(&target.with_database(live)).await?, options)?;
    match options.terminate {
        // They end at the swap itself.
        true => Ok(()),
        false => others(restored.keeper(), live, false).await,
    }
}

fn may_replace(live: &str, relations: i64, options: &SwapOptions) -> Result<()> {
    if relations > 0 && !options.replace {
        return Err(Error::refused(
            format!("database `{live}`"),
            format!("it holds {relations} relations"),
            "say that it is to be replaced; it is kept under a dated name",
        ));
    }
    Ok(())
}

/// Ends the others' sessions, or refuses because of them.
async fn others(keeper: &Session, live: &str, terminate: bool) -> Result<()> {
    // Of another role's session the server hides the kind; autovacuum and the like have no user.
    let rows = keeper
        .query(
            "SELECT pid, COALESCE(NULLIF(application_name, ''), usename::text, 'unknown') \
             FROM pg_catalog.pg_stat_activity WHERE datname = $1::text::name AND usesysid IS NOT NULL \
               AND COALESCE(backend_type, 'client backend') = 'client backend'",
            &[&live],
        )
        .await
        .map_err(|e| keeper.error("look for sessions", &e))?;
    // This process's own sessions end by themselves; the rename waits for them. Another's may be a backup under way.
    let theirs: Vec<(i32, String)> = rows
        .iter()
        .map(|r| (r.get(0), r.get(1)))
        .filter(|(_, name): &(i32, String)| name != our_name())
        .collect();
    if theirs.is_empty() {
        return Ok(());
    }
    if !terminate {
        let mut names: Vec<String> = theirs
            .iter()
            .map(|(_, name)| name.chars().filter(|c| !c.is_control()).take(40).collect())
            .collect();
        names.sort();
        names.dedup();
        return Err(in_use(
            live,
            &format!("{} other sessions are connected ({})", theirs.len(), names.join(", ")),
        ));
    }
    let pids: Vec<i32> = theirs.iter().map(|(pid, _)| *pid).collect();
    keeper
        .query(
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.unnest($1::int4[]) AS p(pid)",
            &[&pids],
        )
        .await
        .map_err(|e| keeper.error("end other sessions", &e))?;
    Ok(())
}

/// Gives the scratch database the rights and settings recorded for the database as a whole. Roles and settings this
/// server does not have are left out, with a warning.
async fn rights(restored: &Restored, scratch: &str) -> Result<()> {
    let keeper = restored.keeper();
    let facts = restored.facts();
    let roles: Vec<String> = keeper
        .query("SELECT rolname::text FROM pg_catalog.pg_roles", &[])
        .await
        .map_err(|e| keeper.error("list of roles", &e))?
        .iter()
        .map(|r| r.get(0))
        .collect();
    let wanted = rights_statements(facts, &roles, scratch)?;
    for grant in wanted.grants {
        keeper.run("rights on the database", &grant).await?;
    }
    for (name, set) in wanted.settings {
        if let Err(e) = keeper.run("settings of the database", &set).await {
            tracing::warn!(error = %e, setting = %name, "a setting of the database is left out");
        }
    }
    Ok(())
}

/// What gives a database its rights and settings.
#[derive(Debug, Default)]
pub(super) struct Rights {
    pub grants: Vec<String>,
    /// Each with the setting's name.
    pub settings: Vec<(String, String)>,
}

/// Settings that are lists of names: they are stored as they were written, quotes and all. The same that pg_dump knows.
const LISTS: &[&str] = &[
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// The statements that give them, for roles that are there. All of it comes from a backup: it is refused where it is more
/// than a right, a name, a value.
pub(super) fn rights_statements(facts: &DatabaseFacts, roles: &[String], database: &str) -> Result<Rights> {
    let mut rights = Rights::default();
    for (role, privilege) in &facts.grants {
        let to = match role.as_str() {
            "" => "PUBLIC".to_owned(),
            role if roles.iter().any(|r| r == role) => quote_ident(role),
            role => {
                tracing::warn!(
                    role,
                    privilege,
                    "a right on the database is left out: there is no such role"
                );
                continue;
            }
        };
        let privilege = match privilege.as_str() {
            p @ ("CONNECT" | "CREATE" | "TEMPORARY") => p,
            other => return Err(Error::damaged("database facts", format!("unknown right `{other}`"))),
        };
        let grant = format!("GRANT {privilege} ON DATABASE {} TO {to}", quote_ident(database));
        rights.grants.push(grant);
    }
    for (role, setting) in &facts.settings {
        let Some((name, value)) = setting.split_once('=') else {
            continue;
        };
        let list = LISTS.iter().any(|list| name.eq_ignore_ascii_case(list));
        let name = name.split('.').map(quote_ident).collect::<Vec<_>>().join(".");
        let value = match list {
            true => value.to_owned(),
            false => quote_literal(value),
        };
        if crate::sqltext::closed(&value).is_err() {
            return Err(Error::damaged(
                "database facts",
                "a setting's value is not closed in itself",
            ));
        }
        let subject = match role.as_str() {
            "" => format!("DATABASE {}", quote_ident(database)),
            role => format!("ROLE {} IN DATABASE {}", quote_ident(role), quote_ident(database)),
        };
        let set = format!("ALTER {subject} SET {name} TO {value}");
        rights.settings.push((name, set));
    }
    Ok(rights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_given_back_as_they_were_stored() {
        let settings = [
            ("", "search_path=\"$user\", public"),
            ("", "temp_tablespaces=\"a\", b"),
            ("r", "statement_timeout=5s"),
            ("", "x.search_path=a, b"),
        ];
        let facts = serde_json::json!({
            "database": "d", "server_version_number": 150000, "owner": "o", "encoding": "UTF8", "collate": "C",
            "ctype": "C", "locale_provider": "c", "icu_locale": null, "collation_version": null, "extensions": {},
            "roles": [], "settings": settings, "grants": [["gone", "CREATE"], ["", "CONNECT"]], "block_size": 8192,
            "large_objects": 0, "size_bytes": 0, "schema_digest": "", "schema_digest_after": "", "snapshot": "",
            "pg_dump_version": "",
        });
        let facts: DatabaseFacts = serde_json::from_value(facts).unwrap();
        let rights = rights_statements(&facts, &[], "d").unwrap();
        assert_eq!(rights.grants, ["GRANT CONNECT ON DATABASE \"d\" TO PUBLIC"]);
        let set: Vec<&str> = rights.settings.iter().map(|(_, sql)| sql.as_str()).collect();
        assert_eq!(
            set,
            [
                "ALTER DATABASE \"d\" SET \"search_path\" TO \"$user\", public",
                "ALTER DATABASE \"d\" SET \"temp_tablespaces\" TO \"a\", b",
                "ALTER ROLE \"r\" IN DATABASE \"d\" SET \"statement_timeout\" TO '5s'",
                "ALTER DATABASE \"d\" SET \"x\".\"search_path\" TO 'a, b'",
            ]
        );
    }
}
