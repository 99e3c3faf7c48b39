//! The media repository: which directories are taken, and whether every row has its file.
//!
//! Files are joined with `local_media_repository`. A row must have its file when it was uploaded to the end
//! (media_length is set) and is not quarantined nor the picture of a URL preview. Ids come from a database and become
//! paths, so only characters Synapse uses in them are let through.

use crate::settings::Settings;
use essrun_guest::{db::TableInfo, prelude::*, volume::EntryKind};

/// Rows looked at together; also what one call may name.
const BATCH: usize = volume::PATHS_A_CALL;

/// Takes the volume by Synapse's own rules.
pub fn plan(mut plan: BackupPlan, tables: &[TableInfo], settings: &Settings) -> Result<BackupPlan, Error> {
    if !volume::granted("media")? {
        return Ok(plan.warn(
            "no `media` is granted: files users uploaded are not in this backup, and may have no other copy. Grant \
             media_store_path as `media`. With an S3 storage provider the bucket must be kept as well",
        ));
    }
    let mut archive = ArchiveVolume::all("media")
        .leave_out("url_cache", "pictures of URL previews are fetched again")
        .leave_out("url_cache_thumbnails", "pictures of URL previews are fetched again");
    if !settings.remote_media {
        for directory in ["remote_content", "remote_thumbnail", "remote_thumbnails"] {
            archive = archive.leave_out(directory, "other servers' media are fetched again");
        }
    }
    if !settings.thumbnails {
        archive = archive.leave_out(
            "local_thumbnails",
            "the site says `dynamic_thumbnails: true` makes them again",
        );
    }
    plan = plan.archive(archive);

    let owner = volume::look("media", "local_content")?.map(|e| (e.uid, e.gid));
    let faults = survey(tables, None, owner)?;
    plan = plan
        .fact("media/rows", faults.rows)
        .fact("media/missing", faults.missing.count);
    if let Some((uid, gid)) = owner {
        plan = plan
            .fact("media/owner", format!("{uid}:{gid}"))
            .fact("media/of-others", faults.of_others.count);
    }
    if faults.missing.count > 0 {
        plan = plan.warn(format!(
            "{} of {} media have no file below `media` already: {}. With an S3 storage provider that prunes local \
             copies this is normal, and the bucket must be backed up as well",
            faults.missing.count,
            faults.rows,
            faults.missing.said()
        ));
    }
    Ok(plan)
}

/// Every medium has its file, with the right length and, for a sample, the right contents.
pub fn verify(
    findings: &mut Findings,
    backup: &BackupView,
    tables: &[TableInfo],
    settings: &Settings,
) -> Result<(), Error> {
    if !backup.holds("media") || !volume::granted("media")? {
        findings.push(check("synapse-media-files").warn(
            "no media are restored",
            "put media_store_path back by other means where it is not there, or users' files are lost",
        ));
        return Ok(());
    }
    let total = db::count("main", COUNT, &[])?;
    let step = match settings.digest_media_files {
        0 => None,
        most => Some(u64::try_from(total).unwrap_or(0).div_ceil(u64::from(most)).max(1)),
    };
    let expected = backup.fact("media/owner").and_then(|owner| {
        let (uid, gid) = owner.split_once(':')?;
        Some((uid.parse().ok()?, gid.parse().ok()?))
    });
    let found = survey(tables, step, expected)?;

    let known = backup
        .fact_integer("media/missing")
        .and_then(|n| u64::try_from(n).ok())
        .unwrap_or(0);
    // A live database knows media that were uploaded since.
    let tolerated = match backup.holds("main") {
        true => known.saturating_add(u64::from(settings.tolerated_media_faults)),
        false => u64::MAX,
    };
    let judge = |name: &str, faults: &Faults, tolerated: u64, passed: String, remedy: &str| match faults.count {
        0 => check(name).pass(passed),
        n if n <= tolerated => check(name).warn(format!("{n} of {}: {}", found.rows, faults.said()), remedy),
        n => check(name).fail(format!("{n} of {}: {}", found.rows, faults.said()), remedy),
    };
    findings.push(judge(
        "synapse-media-files",
        &found.missing,
        tolerated,
        format!("all {} media have their file", found.rows),
        &format!(
            "{known} were missing when the backup was taken, and what was uploaded since cannot be there; look for the others in an older backup (`essrun extract`) \
             or in the bucket of an S3 storage provider. tolerated-media-faults sets how many may be missing"
        ),
    ));
    findings.push(judge(
        "synapse-media-contents",
        &found.different,
        u64::from(settings.tolerated_media_faults),
        format!("{} media compared by SHA-256, all by length", found.digested),
        "these files were damaged before the backup or by the restore: compare with `essrun check`, take them from an \
         older backup",
    ));
    findings.push(match found.malformed.count {
        0 => check("synapse-media-ids").pass("every media id can be a path"),
        _ => check("synapse-media-ids").warn(
            format!(
                "ids that cannot be paths were not looked for: {}",
                found.malformed.said()
            ),
            "somebody wrote to local_media_repository by hand; look at these rows",
        ),
    });
    orphans(findings, &found)?;
    case(findings, &found)?;
    owner(findings, backup, expected, &found)
}

const COUNT: &str = "SELECT count(*) FROM public.local_media_repository WHERE url_cache IS NULL";

/// Some of what is wrong, and how much there is of it.
#[derive(Default)]
struct Faults {
    count: u64,
    examples: Vec<String>,
}

impl Faults {
    fn add(&mut self, example: String) {
        self.count += 1;
        if self.examples.len() < 5 {
            self.examples.push(example);
        }
    }

    fn said(&self) -> String {
        let more = self.count.saturating_sub(self.examples.len() as u64);
        let mut text = self.examples.join("; ");
        if more > 0 {
            text.push_str(&format!("; and {more} more"));
        }
        text
    }
}

#[derive(Default)]
struct Survey {
    /// Rows that must have a file.
    rows: u64,
    /// Files that belong to a row, also one that need not have a file.
    present: u64,
    digested: u64,
    missing: Faults,
    different: Faults,
    malformed: Faults,
    /// Files that belong to somebody else than they should.
    of_others: Faults,
    /// A path that exists, for the test of the file system.
    example: Option<String>,
}

struct Row {
    path: String,
    length: Option<i64>,
    sha256: Option<String>,
    needed: bool,
}

/// Goes through all rows; with `digest_every` each such row is digested, with `owner` (user and group) files of others
/// are noted.
fn survey(tables: &[TableInfo], digest_every: Option<u64>, owner: Option<(u32, u32)>) -> Result<Survey, Error> {
    let table = tables.iter().find(|t| t.full_name() == "public.local_media_repository");
    let sha256 = if table.is_some_and(|t| t.has_column("sha256")) {
        "sha256"
    } else {
        "NULL::text"
    };
    let sql = format!(
        "SELECT media_id, media_length::bigint AS length, {sha256} AS sha256, quarantined_by IS NULL AS free \
         FROM public.local_media_repository WHERE url_cache IS NULL"
    );
    let mut survey = Survey::default();
    let mut batch = Vec::with_capacity(BATCH);
    for row in db::pages("main", &sql, &["media_id"]) {
        let row = row?;
        let (id, length) = (row.get::<String>(0)?, row.get::<Option<i64>>(1)?);
        let Some(path) = path_of(&id) else {
            survey.malformed.add(format!("{id:?}"));
            continue;
        };
        batch.push(Row {
            path,
            length,
            sha256: row.get(2)?,
            needed: row.get::<bool>(3)? && length.is_some(),
        });
        if batch.len() == BATCH {
            survey.take(std::mem::take(&mut batch), digest_every, owner)?;
        }
    }
    survey.take(batch, digest_every, owner)?;
    Ok(survey)
}

impl Survey {
    fn take(&mut self, rows: Vec<Row>, digest_every: Option<u64>, owner: Option<(u32, u32)>) -> Result<(), Error> {
        let paths: Vec<String> = rows.iter().map(|r| r.path.clone()).collect();
        let mut chosen = Vec::new();
        for (row, entry) in rows.into_iter().zip(volume::look_all("media", &paths)?) {
            self.rows += u64::from(row.needed);
            match entry {
                Some(entry) if entry.kind == EntryKind::File => {
                    self.present += 1;
                    self.example.get_or_insert_with(|| row.path.clone());
                    if owner.is_some_and(|owner| owner != (entry.uid, entry.gid)) {
                        self.of_others.add(format!("{} {}:{}", row.path, entry.uid, entry.gid));
                    }
                    if !row.needed {
                        continue;
                    }
                    if row.length.and_then(|l| u64::try_from(l).ok()) != Some(entry.size_bytes) {
                        let expected = row.length.unwrap_or_default();
                        self.different
                            .add(format!("{}: {} bytes, expected {expected}", row.path, entry.size_bytes));
                    } else if let (Some(every), Some(sha256)) = (digest_every, row.sha256)
                        && self.rows.is_multiple_of(every)
                    {
                        chosen.push((row.path, sha256));
                    }
                }
                Some(_) if row.needed => self.missing.add(format!("{} is no regular file", row.path)),
                None if row.needed => self.missing.add(row.path),
                _ => {}
            }
        }
        let paths: Vec<String> = chosen.iter().map(|(p, _)| p.clone()).collect();
        for ((path, expected), digest) in chosen.into_iter().zip(volume::digest_all("media", &paths)?) {
            self.digested += 1;
            match digest {
                Some(d) if d.sha256.eq_ignore_ascii_case(&expected) => {}
                Some(d) => self
                    .different
                    .add(format!("{path}: SHA-256 {}, expected {expected}", d.sha256)),
                None => self.missing.add(path),
            }
        }
        Ok(())
    }
}

/// `local_content/AB/CD/rest`, for ids made of the characters Synapse uses.
fn path_of(media_id: &str) -> Option<String> {
    let usual = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !media_id.chars().all(usual) {
        return None;
    }
    match (media_id.get(..2), media_id.get(2..4), media_id.get(4..)) {
        (Some(a), Some(b), Some(rest)) if !rest.is_empty() => Some(format!("local_content/{a}/{b}/{rest}")),
        _ => None,
    }
}

/// How many orphans are named.
const NAMED: usize = 5;

/// Files no row knows.
fn orphans(findings: &mut Findings, found: &Survey) -> Result<(), Error> {
    let mut files = 0u64;
    if let Some(listing) = volume::walk_if_there("media", "local_content", true)? {
        for entry in listing {
            files += u64::from(entry?.kind == EntryKind::File);
        }
    }
    let mut said = format!("{files} files, ");
    // More files than rows is normal: they were uploaded between the snapshot and the walk.
    match files.saturating_sub(found.present) {
        0 => said.push_str("none of them unknown to the database"),
        orphans => {
            said.push_str(&format!("{orphans} of them not known to the database"));
            let (named, all) = named_orphans()?;
            if !named.is_empty() {
                said.push_str(&format!(": {}", named.join("; ")));
            }
            if !all {
                said.push_str("; and more");
            }
        }
    }
    findings.push(check("synapse-media-orphans").pass(said));
    Ok(())
}

/// The first few orphans, and whether these are all. The rows are asked for the files' ids, many at a time.
fn named_orphans() -> Result<(Vec<String>, bool), Error> {
    let mut named = Vec::new();
    let mut batch = Vec::new();
    let Some(listing) = volume::walk_if_there("media", "local_content", true)? else {
        return Ok((named, true));
    };
    let ask = |batch: &mut Vec<String>, named: &mut Vec<String>| -> Result<(), Error> {
        let ids = std::mem::take(batch).join(",");
        let unknown = db::query(
            "main",
            "SELECT f.id FROM unnest(string_to_array($1::text, ',')) AS f (id) \
             WHERE NOT EXISTS (SELECT 1 FROM public.local_media_repository m WHERE m.media_id = f.id)",
            &[ids.into()],
        )?;
        for row in unknown {
            let id: String = row?.get(0)?;
            named.push(path_of(&id).unwrap_or(id));
        }
        Ok(())
    };
    for entry in listing {
        let entry = entry?;
        if entry.kind != EntryKind::File {
            continue;
        }
        match id_of(&entry.path) {
            Some(id) => batch.push(id),
            None => named.push(entry.path),
        }
        if batch.len() == BATCH {
            ask(&mut batch, &mut named)?;
        }
        if named.len() > NAMED {
            break;
        }
    }
    if !batch.is_empty() && named.len() <= NAMED {
        ask(&mut batch, &mut named)?;
    }
    let all = named.len() <= NAMED;
    named.truncate(NAMED);
    Ok((named, all))
}

/// The id whose file this is; `None` for what Synapse would not have put there.
fn id_of(path: &str) -> Option<String> {
    let id: String = path.strip_prefix("local_content/")?.split('/').collect();
    (path_of(&id).as_deref() == Some(path)).then_some(id)
}

/// Ids differ in case only: a file system that does not see the difference mixes files up.
fn case(findings: &mut Findings, found: &Survey) -> Result<(), Error> {
    let Some(path) = &found.example else { return Ok(()) };
    let Some(id_part) = path.strip_prefix("local_content/") else {
        return Ok(());
    };
    let swapped: String = id_part
        .chars()
        .map(|c| {
            if c.is_ascii_lowercase() {
                c.to_ascii_uppercase()
            } else {
                c.to_ascii_lowercase()
            }
        })
        .collect();
    if swapped == *id_part {
        return Ok(());
    }
    let there = volume::look("media", &format!("local_content/{swapped}"))?.is_some();
    findings.push(if there {
        check("synapse-media-case").fail(
            format!("{path} is also found as local_content/{swapped}"),
            "the file system does not tell upper from lower case, so media overwrite each other: restore to another one",
        )
    } else {
        check("synapse-media-case").pass("the file system tells upper from lower case")
    });
    Ok(())
}

/// Synapse must be able to read what was put back: the directory, and the file of every medium.
fn owner(
    findings: &mut Findings,
    backup: &BackupView,
    expected: Option<(u32, u32)>,
    found: &Survey,
) -> Result<(), Error> {
    let (Some(expected), Some(entry)) = (expected, volume::look("media", "local_content")?) else {
        return Ok(());
    };
    let said = |(uid, gid): (u32, u32)| format!("{uid}:{gid}");
    let (expected_said, of_others) = (said(expected), &found.of_others);
    let before = backup.fact_integer("media/of-others").unwrap_or(0);
    let remedy = "restore as root so that numeric owners are kept, or chown -R the volume; else Synapse cannot read it";
    let check = check("synapse-media-owner");
    findings.push(if (entry.uid, entry.gid) != expected {
        let now = said((entry.uid, entry.gid));
        check.warn(
            format!("local_content belongs to {now}, it was {expected_said}"),
            remedy,
        )
    } else if i64::try_from(of_others.count) != Ok(before) {
        check.warn(
            format!(
                "{} of {} media do not belong to {expected_said}, there were {before} such: {}",
                of_others.count,
                found.present,
                of_others.said()
            ),
            remedy,
        )
    } else if before > 0 {
        check.pass(format!(
            "local_content belongs to {expected_said}, but for {before} of its media, as in the backup"
        ))
    } else {
        check.pass(format!(
            "local_content and its {} media belong to {expected_said}",
            found.present
        ))
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{id_of, path_of};

    #[test]
    fn ids_become_paths_only_when_they_are_harmless() {
        assert_eq!(path_of("LRYGrUpMxyz").as_deref(), Some("local_content/LR/YG/rUpMxyz"));
        for bad in [
            "",
            "abcd",
            "../../etc/passwd",
            "ab/cd/ef",
            "abcd\u{0}e",
            "äbcdefg",
            "ab..cd/..",
        ] {
            assert_eq!(path_of(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn paths_become_ids_only_where_synapse_would_have_put_them() {
        assert_eq!(id_of("local_content/LR/YG/rUpMxyz").as_deref(), Some("LRYGrUpMxyz"));
        for bad in [
            "local_content/lost+found",
            "local_content/L/RYG/rUpMxyz",
            "local_content/LR/YG/a,b",
            "local_content/LR/YG/x/y",
            "other/LR/YG/rUpMxyz",
        ] {
            assert_eq!(id_of(bad), None, "{bad:?}");
        }
    }
}
