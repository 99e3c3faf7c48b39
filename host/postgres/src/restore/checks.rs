//! The preconditions of a restore, one by one. They look, they never change anything.

use super::leftovers::list_leftovers;
use super::plan::{Finding, RestoreOptions, Severity};
use super::scratch::{Purpose, relations};
use crate::connection::{Connection, Session, our_name};
use crate::dump::DatabaseFacts;
use crate::error::Result;
use std::io::Read;
use std::path::PathBuf;

fn finding(check: &str, severity: Severity, message: String, remedy: &str) -> Finding {
    Finding {
        check: check.to_owned(),
        severity,
        message,
        remedy: remedy.to_owned(),
    }
}

/// Whether two names mean the same system locale: `en_US.UTF-8` is `en_US.utf8`.
fn same_locale(a: &str, b: &str) -> bool {
    let plain = |s: &str| s.to_lowercase().replace('-', "");
    plain(a) == plain(b)
}

/// Whether a locale sorts as another version here; where either is not known nothing can be said. A warning, whatever is
/// allowed: what such a difference ruins is indexes, and a restore builds them anew. Partitions by ranges of text and
/// checks that compare texts are held against every row while it is loaded, so what does not fit there fails, and is not
/// put in service.
fn drifted(locale: &str, here: Option<String>, facts: &DatabaseFacts) -> Option<Finding> {
    let (here, there) = (here?, facts.collation_version.as_ref()?);
    (&here != there).then(|| {
        finding(
            "collation-drift",
            Severity::Warning,
            format!("locale `{locale}` sorts as version {here} here, {there} where the backup was taken"),
            "indexes are built anew, and rows that no longer fit a partition or a check fail the restore; look at what \
             relies on the order of texts outside the database",
        )
    })
}

/// What the server must have: version, locale, extensions, roles, the right to create databases.
pub(super) async fn server(admin: &Session, facts: &DatabaseFacts, options: &RestoreOptions) -> Result<Vec<Finding>> {
    let fail = |e: tokio_postgres::Error| admin.error("preconditions", &e);
    let mut out = Vec::new();
    let drift = if options.allow_drift {
        Severity::Warning
    } else {
        Severity::Error
    };

    let version = admin.version().await?;
    if version / 10_000 < facts.server_version_number / 10_000 {
        out.push(finding(
            "server-older",
            Severity::Error,
            format!(
                "the target server is version {}, the backup was taken from {}",
                version / 10_000,
                facts.server_version_number / 10_000
            ),
            "restore on a server at least as new as the one backed up",
        ));
    }

    let row = admin
        .query_one(
            "SELECT rolcreatedb OR rolsuper, rolname::text, rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user",
            &[],
        )
        .await
        .map_err(fail)?;
    let role: String = row.get(1);
    if !row.get::<_, bool>(0) {
        out.push(finding(
            "cannot-create-database",
            Severity::Error,
            format!("role `{role}` may not create databases"),
            "name a role that may in the pipeline (`admin-url-env` or `admin-url-file` of the database), or ALTER ROLE … CREATEDB",
        ));
    }

    let locales = admin
        .query(
            "SELECT DISTINCT collcollate::text, pg_catalog.pg_collation_actual_version(oid) \
             FROM pg_catalog.pg_collation WHERE collprovider = 'c' AND collcollate IS NOT NULL",
            &[],
        )
        .await
        .map_err(fail)?;
    let mut locales_wanted = vec![&facts.collate, &facts.ctype];
    locales_wanted.dedup();
    for wanted in locales_wanted {
        if matches!(wanted.as_str(), "C" | "POSIX") {
            continue;
        }
        let known = locales.iter().find(|r| same_locale(r.get(0), wanted));
        match known {
            None => out.push(finding(
                "locale-missing",
                Severity::Error,
                format!("the target server has no locale `{wanted}`"),
                "install the locale on the server, restart it, and run pg_import_system_collations",
            )),
            Some(row) => {
                if facts.locale_provider == "c" {
                    out.extend(drifted(wanted, row.get(1), facts));
                }
            }
        }
    }
    if facts.locale_provider == "i" {
        // Through JSON, because the column's name depends on the server's version.
        let icu = admin
            .query(
                "SELECT COALESCE(pg_catalog.to_jsonb(c) ->> 'colllocale', pg_catalog.to_jsonb(c) ->> 'colliculocale'), \
                   pg_catalog.pg_collation_actual_version(c.oid) \
                 FROM pg_catalog.pg_collation c WHERE c.collprovider = 'i'",
                &[],
            )
            .await
            .map_err(fail)?;
        // Before 15 a database could not use them at all; such a server is older than the backup's.
        if icu.is_empty() {
            out.push(finding(
                "locale-missing",
                Severity::Error,
                "the backed-up database uses ICU, which the target server does not offer".to_owned(),
                "use a server built with ICU",
            ));
        }
        let here = icu
            .iter()
            .find(|r| r.get::<_, Option<String>>(0) == facts.icu_locale)
            .and_then(|r| r.get::<_, Option<String>>(1));
        if let Some(wanted) = &facts.icu_locale {
            out.extend(drifted(wanted, here, facts));
        }
    }

    for (name, wanted) in &facts.extensions {
        let row = admin
            .query_opt(
                "SELECT default_version FROM pg_catalog.pg_available_extensions WHERE name = $1::text::name",
                &[name],
            )
            .await
            .map_err(fail)?;
        match row.map(|r| r.get::<_, Option<String>>(0)) {
            None => out.push(finding(
                "extension-missing",
                Severity::Error,
                format!("extension `{name}` is not installed on the target server"),
                "install the extension's package on the server",
            )),
            Some(Some(here)) if &here != wanted => out.push(finding(
                "extension-drift",
                drift,
                format!("extension `{name}` is version {here} here, {wanted} in the backup"),
                "install the same version, or allow drift",
            )),
            Some(_) => {}
        }
    }

    let needed: Vec<String> = match &options.owner {
        Some(owner) => vec![owner.clone()],
        None => facts.roles.iter().chain([&facts.owner]).cloned().collect(),
    };
    // Since 16 a member need not be let act as the role, which is what giving something to it takes.
    let may_give = if version >= 160_000 { "SET" } else { "MEMBER" };
    let present = admin
        .query(
            "SELECT rolname::text, pg_catalog.pg_has_role(current_user, oid, $2) FROM pg_catalog.pg_roles \
             WHERE rolname = ANY ($1::text[]::name[])",
            &[&needed, &may_give],
        )
        .await
        .map_err(fail)?;
    let mut seen = std::collections::BTreeSet::new();
    for name in needed.iter().filter(|n| seen.insert(n.as_str())) {
        match present.iter().find(|r| r.get::<_, &str>(0) == name) {
            None => out.push(finding(
                "role-missing",
                Severity::Error,
                format!("role `{name}` does not exist on the target server"),
                "create the role, or name one owner for everything",
            )),
            Some(row) if !row.get::<_, bool>(1) && (Some(name) == options.owner.as_ref() || name == &facts.owner) => {
                out.push(finding(
                    "role-not-granted",
                    Severity::Error,
                    format!("role `{role}` may not act as `{name}` and cannot give it what is restored"),
                    "GRANT the role (since PostgreSQL 16 WITH SET TRUE), connect as a superuser, or name an owner that can be given",
                ));
            }
            Some(_) => {}
        }
    }
    Ok(out)
}

/// That nothing is to be done: a restore that was stopped had done all of it.
pub(super) fn in_service(database: &str, since: &str) -> Finding {
    let message =
        format!("database `{database}` was restored and put in service at {since}, before the rest was stopped");
    finding("in-service", Severity::Info, message, "")
}

/// What the place of the database must be: absent, empty, or allowed to be replaced.
pub(super) async fn target(
    admin: &Session,
    target: &Connection,
    options: &RestoreOptions,
    (prefix, scratch): (&str, &str),
) -> Result<Vec<Finding>> {
    let mut out = Vec::new();
    let exists = |name: String| async move {
        let row = admin
            .query_one(
                "SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = $1::text::name)",
                &[&name],
            )
            .await
            .map_err(|e| admin.error("preconditions", &e))?;
        Ok::<bool, crate::Error>(row.get(0))
    };
    let stopped = match options.resume || options.clears {
        true => list_leftovers(target, &options.maintenance_database).await?,
        false => Vec::new(),
    };
    // One killed between making and marking has no purpose yet.
    let stopped = || {
        stopped
            .iter()
            .filter(|l| l.purpose.is_none_or(|p| p == options.purpose))
    };
    let leftover = stopped().any(|l| l.database == scratch);
    if leftover && !options.resume {
        out.push(finding(
            "leftover",
            Severity::Info,
            format!("`{scratch}`, left by a restore that was stopped, is dropped first"),
            "--resume goes on with it instead",
        ));
    } else if leftover {
        out.push(finding(
            "resumed",
            Severity::Info,
            format!("the restore into `{scratch}` was stopped and is gone on with"),
            "",
        ));
    } else if exists(scratch.to_owned()).await? {
        out.push(finding(
            "scratch-exists",
            Severity::Error,
            format!("database `{scratch}` exists already"),
            "another restore of the same backup is running, or one was killed: drop leftovers, then try again",
        ));
    }
    for other in stopped().filter(|l| options.resume && l.database != scratch && l.what.as_deref() == Some(prefix)) {
        let (run, of) = (other.run.as_deref().unwrap_or("?"), other.of.as_deref().unwrap_or("?"));
        if run == options.run {
            out.push(finding(
                "resume-other-target",
                Severity::Error,
                format!(
                    "the restore of this backup that was stopped went to `{of}`, not to `{}`",
                    options.database
                ),
                "go on with the target of then, or start again without --resume, which removes it",
            ));
        } else if of == options.database {
            out.push(finding(
                "resume-other-backup",
                Severity::Error,
                format!("the restore into `{of}` that was stopped was of backup {run}"),
                "go on with that backup, or start again without --resume, which removes it",
            ));
        }
    }
    if options.purpose == Purpose::Restore && exists(options.database.clone()).await? {
        let live = target.with_database(&options.database);
        let (severity, remedy) = match options.replace {
            true => (Severity::Info, "it is kept under a dated name"),
            false => (
                Severity::Error,
                "restore under another name, or say that the database is to be replaced; it is kept under a dated name",
            ),
        };
        let count = relations(&live).await?;
        if count > 0 {
            out.push(finding(
                "target-not-empty",
                severity,
                format!("database `{}` exists and holds {count} relations", options.database),
                remedy,
            ));
        }
        let row = admin
            .query_one(
                "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity \
                 WHERE datname = $1::text::name AND pid <> pg_catalog.pg_backend_pid() \
                   AND application_name <> $2",
                &[&options.database, &our_name()],
            )
            .await
            .map_err(|e| admin.error("preconditions", &e))?;
        let others: i64 = row.get(0);
        if others > 0 {
            out.push(finding(
                "target-in-use",
                Severity::Warning,
                format!("{others} other sessions are connected to `{}`", options.database),
                "stop the services that use it before the swap",
            ));
        }
    }
    Ok(out)
}

/// The server's data directory, where it is this machine's and can be looked at: what is free there is known then. A
/// server elsewhere may name a path that is there here as well, so the cluster's identifier is compared.
pub(super) async fn data_directory(admin: &Session) -> Option<PathBuf> {
    // Only some roles may be told where it is.
    let asked = admin
        .query_one(
            "SELECT (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'data_directory'), system_identifier \
             FROM pg_catalog.pg_control_system()",
            &[],
        )
        .await;
    let (directory, identifier) = match asked {
        Ok(row) => (row.get::<_, Option<String>>(0)?, row.get::<_, i64>(1)),
        Err(e) => {
            tracing::debug!("where the server keeps its databases is not told: {e}");
            return None;
        }
    };
    let directory = PathBuf::from(directory);
    let control = directory.join("global/pg_control");
    // Its first eight bytes are the identifier.
    let mut first = [0; 8];
    let read = control
        .metadata()
        .ok()
        .filter(std::fs::Metadata::is_file)
        .and_then(|_| std::fs::File::open(&control).ok()?.read_exact(&mut first).ok());
    (read.is_some() && i64::from_ne_bytes(first) == identifier).then_some(directory)
}

/// That nobody here knows how much room there is.
pub(super) fn space_unknown(facts: &DatabaseFacts) -> Finding {
    let message = format!(
        "about {} MiB will be needed beside the live databases, and how much is free on the server is not known here",
        facts.size_bytes.div_ceil(1 << 20)
    );
    finding(
        "space-unknown",
        Severity::Warning,
        message,
        "look at the file system of the server's data directory: a server whose disk is full stops",
    )
}
