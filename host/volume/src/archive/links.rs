//! Files with several names whose other names are still to come.
//!
//! A file is forgotten when all its names have been met. One that has names outside the volume never comes to that, so
//! what is remembered is bounded: beyond the bound the file first met goes. A name of it that comes later is archived as
//! a file of its own, whole, only not linked.

use crate::ListedEntry;
use std::collections::{BTreeMap, HashMap};

/// Device and inode.
pub(super) type Inode = ((u32, u32), u64);

/// Files remembered at once. With its path, content and attributes one takes about half a KiB.
pub(super) const MOST: usize = 100_000;

pub(super) struct Links {
    most: usize,
    met: u64,
    files: HashMap<Inode, File>,
    /// By when they were first met.
    ages: BTreeMap<u64, Inode>,
    /// Files that were forgotten before all their names had come.
    pub forgotten: u64,
}

struct File {
    entry: ListedEntry,
    names_to_come: u32,
    age: u64,
}

impl Links {
    pub fn new(most: usize) -> Links {
        Links {
            most,
            met: 0,
            files: HashMap::new(),
            ages: BTreeMap::new(),
            forgotten: 0,
        }
    }

    /// One more name of a file: its entry by the name first met, if it is remembered.
    pub fn meet(&mut self, inode: Inode) -> Option<ListedEntry> {
        let file = self.files.get_mut(&inode)?;
        file.names_to_come = file.names_to_come.saturating_sub(1);
        if file.names_to_come > 0 {
            return Some(file.entry.clone());
        }
        let file = self.files.remove(&inode)?;
        self.ages.remove(&file.age);
        Some(file.entry)
    }

    /// Remembers a file by its first name.
    pub fn remember(&mut self, inode: Inode, entry: ListedEntry, names_to_come: u32) {
        if names_to_come == 0 {
            return;
        }
        let age = self.met;
        self.met += 1;
        let file = File {
            entry,
            names_to_come,
            age,
        };
        // An inode can be another file's by now.
        if let Some(earlier) = self.files.insert(inode, file) {
            self.ages.remove(&earlier.age);
        }
        self.ages.insert(age, inode);
        if self.files.len() > self.most
            && let Some((_, oldest)) = self.ages.pop_first()
        {
            self.files.remove(&oldest);
            self.forgotten += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, Stamp, TreePath};

    fn entry(path: &str) -> ListedEntry {
        ListedEntry {
            path: TreePath::new(path).unwrap(),
            kind: Kind::Directory,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Stamp {
                seconds: 0,
                nanoseconds: 0,
            },
            ctime: Stamp {
                seconds: 0,
                nanoseconds: 0,
            },
            ino: 0,
            fresh: false,
            xattrs: Vec::new(),
        }
    }

    fn inode(n: u64) -> Inode {
        ((8, 1), n)
    }

    #[test]
    fn a_file_is_forgotten_with_its_last_name_or_when_there_are_too_many() {
        let mut links = Links::new(3);
        links.remember(inode(1), entry("a"), 2);
        assert_eq!(links.meet(inode(1)).unwrap().path.to_text(), "a");
        assert_eq!(links.meet(inode(1)).unwrap().path.to_text(), "a");
        assert!(links.meet(inode(1)).is_none(), "all its names have come");
        links.remember(inode(1), entry("a"), 0);
        assert!(links.meet(inode(1)).is_none());

        // Files with names elsewhere: however many there are, three are remembered, the last ones.
        for n in 0..1000 {
            links.remember(inode(n), entry(&format!("f{n}")), 1);
            assert!(links.files.len() <= 3 && links.ages.len() == links.files.len());
        }
        assert_eq!(links.forgotten, 997);
        assert!(links.meet(inode(996)).is_none());
        assert_eq!(links.meet(inode(997)).unwrap().path.to_text(), "f997");
        // An inode that was used again.
        links.remember(inode(998), entry("again"), 1);
        assert_eq!(links.meet(inode(998)).unwrap().path.to_text(), "again");
        assert!(links.meet(inode(999)).is_some());
        assert!(links.files.is_empty() && links.ages.is_empty());
    }
}
