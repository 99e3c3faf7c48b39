//! Which files changed between two archives of a volume: one pass over both listings, which have the same order.

use super::{Backups, PipelineError};
use essrun_artifact::ArtifactRecord;
use essrun_repository::OpenBackup;
use essrun_volume::listing::{Entries, Kind, ListedEntry};
use serde::Serialize;
use std::cmp::Ordering;

/// Files, folders and links of a volume that differ. All are counted; the first of each kind are named.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Files {
    pub added: Named,
    pub removed: Named,
    /// What it is, or what is in it.
    pub changed: Named,
    /// Only owner, mode, time or extended attributes.
    pub attributes: Named,
    /// Length of the files that were added or changed.
    #[serde(skip)]
    pub new_bytes: u64,
}

impl Files {
    /// Whether nothing differs.
    pub fn none(&self) -> bool {
        [&self.added, &self.removed, &self.changed, &self.attributes]
            .iter()
            .all(|named| named.count == 0)
    }
}

#[derive(Debug, Default, Serialize)]
pub struct Named {
    pub count: u64,
    pub first: Vec<String>,
}

impl Named {
    fn add(&mut self, entry: &ListedEntry, most: usize) {
        self.count += 1;
        if self.first.len() < most {
            let end = if entry.kind == Kind::Directory { "/" } else { "" };
            self.first.push(format!("{}{end}", entry.path.to_text()));
        }
    }
}

/// One side's listing; of a backup that has none, no entries.
struct Side(Option<Entries>);

impl Side {
    async fn open(backup: &OpenBackup, record: Option<&ArtifactRecord>) -> Result<Side, PipelineError> {
        match record {
            None => Ok(Side(None)),
            Some(record) => {
                let entries = Entries::open(backup, record).await;
                Ok(Side(Some(entries.map_err(PipelineError::repository)?)))
            }
        }
    }

    async fn next(&mut self) -> Result<Option<ListedEntry>, PipelineError> {
        match &mut self.0 {
            None => Ok(None),
            Some(entries) => entries.next().await.map_err(PipelineError::repository),
        }
    }
}

/// What differs in contents, of a file its bytes.
fn differs(a: &Kind, b: &Kind) -> bool {
    match (a, b) {
        (
            Kind::File {
                size, content, extents, ..
            },
            Kind::File {
                size: size2,
                content: content2,
                extents: extents2,
                ..
            },
        ) => (size, content, extents) != (size2, content2, extents2),
        _ => a != b,
    }
}

fn length(entry: &ListedEntry) -> u64 {
    match &entry.kind {
        // Its bytes are counted where the file's first name is.
        Kind::File { hardlink: Some(_), .. } => 0,
        Kind::File { size, .. } => *size,
        _ => 0,
    }
}

/// Compares two listings.
pub async fn compare(
    backups: &Backups<'_>,
    from: Option<&ArtifactRecord>,
    to: Option<&ArtifactRecord>,
) -> Result<Files, PipelineError> {
    let most = backups.named_files;
    let mut files = Files::default();
    let mut old = Side::open(backups.from, from).await?;
    let mut new = Side::open(backups.to, to).await?;
    let (mut a, mut b) = (old.next().await?, new.next().await?);
    loop {
        let order = match (&a, &b) {
            (None, None) => return Ok(files),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => a.path.cmp(&b.path),
        };
        if let (Ordering::Less, Some(gone)) = (order, &a) {
            files.removed.add(gone, most);
        }
        if let (Ordering::Greater, Some(fresh)) = (order, &b) {
            files.added.add(fresh, most);
            files.new_bytes += length(fresh);
        }
        if let (Ordering::Equal, Some(a), Some(b)) = (order, &a, &b) {
            // A directory's time tells only that something in it came or went, which is told by itself.
            let time = |e: &ListedEntry| (e.kind != Kind::Directory).then_some(e.mtime);
            let attributes = |e: &ListedEntry| (e.mode, e.uid, e.gid, time(e));
            if differs(&a.kind, &b.kind) {
                files.changed.add(b, most);
                files.new_bytes += length(b);
            } else if attributes(a) != attributes(b) || a.xattrs != b.xattrs {
                files.attributes.add(b, most);
            }
        }
        if order != Ordering::Greater {
            a = old.next().await?;
        }
        if order != Ordering::Less {
            b = new.next().await?;
        }
    }
}
