//! What takes a key to see: whether manifests and indexes open, and to whom packs are sealed.
//!
//! A header is compared with whom its writer says it sealed to, so a recipient nobody named is found: a pack's with its
//! signed index, an index's, a manifest's and a revision's with what they hold themselves. And the index is compared with
//! the recipients of today, so it is known who reads what was written before.
//!
//! What a header tells is number and kind of its recipients, not who they are: see docs/THREATS.md for what is not seen.

use super::{Check, kind_of, why};
use crate::envelope::Header;
use crate::index_object::PackIndex;
use crate::keys::{Recipients, StanzaKind};
use crate::manifest::Manifest;
use crate::names::{IndexName, PackName};
use crate::{BackupId, Finding, FindingKind, RepositoryError, sync};
use essrun_store::ObjectName;
use std::collections::{BTreeMap, BTreeSet};

impl Check {
    /// The sealed parts of manifests.
    pub(super) async fn open_manifests(&mut self, manifests: &[Manifest]) {
        for manifest in manifests {
            match manifest.open(&self.core) {
                Ok(sealed) => {
                    let mut expected = kinds(&sealed.recipients);
                    expected.push(WRITERS_OWN);
                    self.fits(manifest.sealed_in(), Header::parse(manifest.payload()), &expected);
                }
                // Another writer's manifests are sealed to the recipients and to that writer only.
                Err(RepositoryError::Key { .. }) if !self.core.reads_contents => {}
                Err(e) => self.found(manifest.sealed_in(), FindingKind::Undecodable, why(&e)),
            }
        }
    }

    fn fits(&mut self, object: impl ToString, header: Result<Header, String>, expected: &[StanzaKind]) {
        match header {
            Ok(header) => {
                if let Err(e) = header.fits(expected) {
                    self.found(object, FindingKind::ForeignRecipient, e);
                }
            }
            Err(e) => self.found(object, FindingKind::Undecodable, e),
        }
    }

    /// Every index: opens, is signed, and fits its pack's header, recipients included.
    pub(super) async fn indexes(&mut self) -> Result<(), RepositoryError> {
        let own = self.core.own_writers();
        let names: Vec<IndexName> = self.needed.keys().filter_map(|n| IndexName::parse(n)).collect();
        let packs: BTreeMap<[u8; 32], PackName> = self
            .needed
            .keys()
            .filter_map(|n| PackName::parse(n))
            .map(|p| (p.sum.hash, p))
            .collect();
        let mut sealed = SealedTo::default();
        for name in names {
            if !self.core.reads_contents && !own.contains(&name.writer) {
                continue;
            }
            let object = name.object()?;
            if self.bad.contains(object.as_str()) {
                continue;
            }
            let (index, header) = match sync::read_index_sealed(&self.core, &name).await {
                Ok(read) => read,
                Err(e) => {
                    let kind = kind_of(&e);
                    self.found(&object, kind, why(&e));
                    continue;
                }
            };
            let expected = header.as_ref().map(|h| sealed_with(&index, h)).unwrap_or_default();
            self.fits(&object, header, &expected);
            let Some(pack) = packs.get(&name.pack) else {
                self.found(&object, FindingKind::Undecodable, "a list names it without its pack");
                continue;
            };
            let pack_object = pack.object()?;
            if index.pack != *pack {
                self.found(&object, FindingKind::Undecodable, "it says another name for its pack");
            } else if !self.bad.contains(pack_object.as_str()) {
                self.header(&pack_object, &index.recipients, index.payload_offset).await;
            }
            if !pack.meta {
                let backups = self.needed.get(pack_object.as_str()).cloned().unwrap_or_default();
                sealed.compare(&index.recipients, &self.core.recipients, &backups);
            }
        }
        for (recipient, (packs, backups)) in sealed.others {
            let detail = format!("reads {packs} packs of contents and is not named as a recipient; `rekey` ends that");
            self.note(&recipient, detail, backups);
        }
        for (recipient, (packs, backups)) in sealed.lacking {
            let detail =
                format!("is named as a recipient and cannot read {packs} packs of contents; `rekey` mends that");
            self.note(&recipient, detail, backups);
        }
        Ok(())
    }

    fn note(&mut self, recipient: &str, detail: String, backups: BTreeSet<BackupId>) {
        self.report.findings.push(Finding {
            object: format!("recipient {recipient}"),
            kind: FindingKind::OtherRecipients,
            detail,
            affects: backups.into_iter().collect(),
        });
    }

    async fn header(&mut self, pack: &ObjectName, recipients: &[String], payload_offset: u64) {
        let header = match self.core.store.get_range(pack, 0..payload_offset).await {
            Ok(bytes) => Header::parse(&bytes),
            Err(e) => return self.found(pack, FindingKind::Unreadable, e.to_string()),
        };
        self.fits(pack, header, &kinds(recipients));
    }
}

/// What the writer's own native recipient leaves in a header.
const WRITERS_OWN: StanzaKind = StanzaKind::Tag("X25519");

fn kinds(recipients: &[String]) -> Vec<StanzaKind> {
    match Recipients::parse(recipients) {
        Ok(recipients) => recipients.kinds(),
        // A plugin that is not installed here: only the number can be compared.
        Err(_) => recipients.iter().map(|r| kind_by_text(r)).collect(),
    }
}

/// Whom an index is sealed to: those its pack is sealed to, and its writer.
fn sealed_with(index: &PackIndex, header: &Header) -> Vec<StanzaKind> {
    let mut expected = kinds(&index.recipients);
    // A pack of listings is sealed to its writer already; and one of contents, where there was no recipient.
    let to_writer_alone = expected.len() == 1 && header.tags.len() == 1;
    if !index.pack.meta && !to_writer_alone {
        expected.push(WRITERS_OWN);
    }
    expected
}

/// Who reads contents today and should not, and who should and does not: packs and backups of each.
#[derive(Default)]
struct SealedTo {
    others: BTreeMap<String, (u64, BTreeSet<BackupId>)>,
    lacking: BTreeMap<String, (u64, BTreeSet<BackupId>)>,
}

impl SealedTo {
    /// Without recipients there is nothing to compare with: whoever only reads names none.
    fn compare(&mut self, sealed_to: &[String], wanted: &Recipients, backups: &[BackupId]) {
        if wanted.is_empty() {
            return;
        }
        let wanted: BTreeSet<&str> = wanted.texts().collect();
        let found: BTreeSet<&str> = sealed_to.iter().map(String::as_str).collect();
        let count = |into: &mut BTreeMap<String, (u64, BTreeSet<BackupId>)>, who: &str| {
            let entry = into.entry(who.to_owned()).or_default();
            entry.0 += 1;
            entry.1.extend(backups.iter().cloned());
        };
        found.difference(&wanted).for_each(|r| count(&mut self.others, r));
        wanted.difference(&found).for_each(|r| count(&mut self.lacking, r));
    }
}

fn kind_by_text(recipient: &str) -> StanzaKind {
    match recipient.split(' ').next().unwrap_or_default() {
        "ssh-rsa" => StanzaKind::Tag("ssh-rsa"),
        "ssh-ed25519" => StanzaKind::Tag("ssh-ed25519"),
        word if word.parse::<age::x25519::Recipient>().is_ok() => StanzaKind::Tag("X25519"),
        _ => StanzaKind::Plugin,
    }
}
