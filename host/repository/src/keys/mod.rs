//! Keys: who may write, who may read, and how the two never meet on the backup host.
//!
//! A [`WriterKey`] lives on the backup host: it signs, names chunks, and opens indexes and listings — never contents.
//! [`Recipients`] are public; contents are encrypted to them. An [`Identity`] opens what was encrypted to its
//! recipient and belongs on another machine. `keygen` makes the two separately.
//!
//! Promises: no secret appears in `Debug`, errors or logs; secrets are wiped from memory when dropped; key files are
//! made with mode 0600 and never overwrite one. Must never: accept a key file that others can read;
//! root and, for a file of root's, one group of ours are no others.

mod file;
mod identity;
mod recipients;
mod writer;

pub use identity::{Identity, NewIdentity};
pub use recipients::Recipients;
pub use writer::{WriterId, WriterKey, WriterPublic};

pub(crate) use recipients::StanzaKind;
pub(crate) use writer::ChunkKey;
