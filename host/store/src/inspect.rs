//! What a store can do, found out by doing it: for a person who is about to trust it with backups.
//!
//! One small object is created, created again, listed, read in part, and deleted; and one that is not there is deleted,
//! which tells what the keys may do elsewhere. Settings that only a bucket has are
//! asked for, and not being allowed to ask is no fault: a key should be able to do little.

use crate::open::{directory, s3};
use crate::{Cause, Location, ObjectName, OpenOptions, Outcome, Store, StoreError};
use bytes::Bytes;

/// How good or bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    Good,
    /// Works, and is worth knowing.
    Note,
    /// Backups cannot be trusted to it.
    Bad,
}

/// One thing a store can or cannot do.
#[derive(Clone, Debug)]
pub struct Ability {
    pub grade: Grade,
    pub text: String,
}

#[derive(Default)]
struct Findings(Vec<Ability>);

impl Findings {
    fn add(&mut self, grade: Grade, text: impl Into<String>) {
        self.0.push(Ability {
            grade,
            text: text.into(),
        });
    }
}

/// Looks at a store, writing below `scratch`. An error means that the store could not be looked at to the end.
pub async fn inspect(url_or_path: &str, options: &OpenOptions, scratch: &str) -> Result<Vec<Ability>, StoreError> {
    let mut findings = Findings::default();
    match url_or_path.parse()? {
        Location::Directory(path) => {
            let store = directory(url_or_path, &path)?;
            operations(&store, scratch, "creates without overwriting", &mut findings).await?;
        }
        Location::S3 { bucket, prefix } => {
            let (store, bucket) = s3(&bucket, &prefix, options)?;
            let how = match store.creation().await? {
                crate::Creation::Conditional => "creates without overwriting (If-None-Match), tried",
                crate::Creation::Elected => {
                    findings.add(
                        Grade::Note,
                        "it cannot create conditionally: writers elect who may, which is safe and slower",
                    );
                    "creates without overwriting, by election"
                }
            };
            operations(&store, scratch, how, &mut findings).await?;
            settings(&bucket, options, &mut findings).await?;
        }
    }
    Ok(findings.0)
}

async fn operations(store: &dyn Store, scratch: &str, how: &str, f: &mut Findings) -> Result<(), StoreError> {
    let text = format!("{scratch}/probe-{}", hex::encode(rand::random::<[u8; 8]>()));
    let wrong =
        |e: crate::NameError| StoreError::new("write", text.as_str(), store.describe(), Cause::Other, e.to_string());
    let name = ObjectName::new(text.as_str()).map_err(wrong)?;
    store.put_new(&name, Bytes::from_static(b"first")).await?;
    let second = store.put_new(&name, Bytes::from_static(b"second")).await?;
    match (second, &store.get(&name).await?[..]) {
        (Outcome::AlreadyThere, b"first") => f.add(Grade::Good, how),
        _ => f.add(
            Grade::Bad,
            "it overwrites: several writers could lose each other's backups",
        ),
    }
    match store.list(scratch).await?.iter().any(|info| info.name == name) {
        true => f.add(Grade::Good, "its listing shows at once what was written"),
        false => f.add(Grade::Bad, "its listing does not show what was written a moment ago"),
    }
    if store.get_range(&name, 1..3).await? != b"ir"[..] {
        f.add(Grade::Bad, "it reads other bytes than were asked for");
    }
    match store.delete(&name).await {
        Ok(()) => {
            if store.list(scratch).await?.iter().any(|info| info.name == name) {
                f.add(Grade::Note, "its listing still shows what was deleted a moment ago");
            }
        }
        Err(e) if e.cause == Cause::Denied => f.add(
            Grade::Note,
            format!("these keys cannot delete below {scratch}/: what is short-lived stays as litter"),
        ),
        Err(e) => return Err(e),
    }
    // Of a name that nobody has: the store says whether it would, and nothing is lost.
    let absent = ObjectName::new(format!("probe-{}", hex::encode(rand::random::<[u8; 8]>()))).map_err(wrong)?;
    match store.delete(&absent).await {
        Ok(()) => f.add(Grade::Good, "it deletes: prune can free space with these keys"),
        Err(e) if e.cause == Cause::Denied => f.add(
            Grade::Good,
            "these keys cannot delete: backups are safe from this host, and prune must run with other keys",
        ),
        Err(e) => return Err(e),
    }
    Ok(())
}

async fn settings(bucket: &crate::s3::Bucket, options: &OpenOptions, f: &mut Findings) -> Result<(), StoreError> {
    use crate::s3::BucketState as B;
    match bucket.versioning().await? {
        B::Said(s) if s.contains("Enabled") => f.add(
            Grade::Note,
            "versioning is on: what is deleted or overwritten stays as an old version; a lifecycle rule for noncurrent \
             versions frees its space",
        ),
        B::Said(s) => f.add(Grade::Note, format!("versioning: {s}")),
        B::Unset => f.add(Grade::Note, "versioning is off: what is deleted is gone"),
        B::Untold(why) => f.add(Grade::Note, format!("versioning: not known, {why}")),
    }
    let locked = bucket.object_lock().await?;
    match (&locked, options.s3.object_lock) {
        (B::Said(s), _) => f.add(Grade::Note, format!("Object Lock: {s}")),
        (B::Unset, None) => f.add(
            Grade::Note,
            "Object Lock is off: who has keys that delete can delete backups",
        ),
        (B::Unset, Some(_)) => f.add(
            Grade::Bad,
            "object-lock is set in the pipeline, and the bucket was made without Object Lock",
        ),
        (B::Untold(why), _) => f.add(Grade::Note, format!("Object Lock: not known, {why}")),
    }
    Ok(())
}
