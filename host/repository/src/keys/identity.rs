//! Identities: the secret halves that open contents. Read from age identity files or SSH private keys.

use super::file;
use crate::RepositoryError;
use age::secrecy::ExposeSecret;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

/// An identity that can open what was encrypted to its recipient. Clones share the secret.
#[derive(Clone)]
pub struct Identity {
    what: String,
    inner: Arc<dyn age::Identity + Send + Sync>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.what)
    }
}

/// A freshly made identity and its recipient.
pub struct NewIdentity {
    key: age::x25519::Identity,
}

impl fmt::Debug for NewIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewIdentity({})", self.recipient())
    }
}

impl NewIdentity {
    pub fn generate() -> Self {
        NewIdentity {
            key: age::x25519::Identity::generate(),
        }
    }

    /// The public half, for pipeline.toml.
    pub fn recipient(&self) -> String {
        self.key.to_public().to_string()
    }

    /// The text of an age identity file, as `age-keygen` writes it.
    pub fn to_text(&self) -> Zeroizing<String> {
        let secret = self.key.to_string();
        Zeroizing::new(format!(
            "# essrun: this identity opens the backups. Keep it off the backup host, and keep a copy.\n\
             # public key: {}\n{}\n",
            self.recipient(),
            secret.expose_secret()
        ))
    }

    /// Writes the identity to a new file with mode 0600.
    pub fn save(&self, path: &Path) -> Result<(), RepositoryError> {
        file::write_secret(path, &self.to_text())
    }

    pub fn identity(&self) -> Identity {
        Identity {
            what: self.recipient(),
            inner: Arc::new(self.key.clone()),
        }
    }
}

impl Identity {
    /// Reads an identity file: one or more age identities (native or plugin), or one SSH private key.
    pub fn load(path: &Path) -> Result<Vec<Identity>, RepositoryError> {
        let text = file::read_secret(path)?;
        Self::from_text(&text, &path.display().to_string())
    }

    /// Reads identities from text; `what` names where it came from, for messages.
    pub fn from_text(text: &str, what: &str) -> Result<Vec<Identity>, RepositoryError> {
        let refuse = |why: String| {
            RepositoryError::key(
                format!("identity {what}"),
                why,
                "name an age identity file or an unencrypted SSH private key (decrypt a protected one to a file first)",
            )
        };
        if text.trim_start().starts_with("-----BEGIN ") {
            use age::ssh::Identity as Ssh;
            let key = Ssh::from_buffer(text.as_bytes(), Some(what.to_owned())).map_err(|e| refuse(e.to_string()))?;
            return match key {
                Ssh::Unencrypted(_) => Ok(vec![Identity {
                    what: what.to_owned(),
                    inner: Arc::new(key),
                }]),
                Ssh::Encrypted(_) => Err(refuse("this SSH key is protected by a passphrase".into())),
                Ssh::Unsupported(_) => Err(refuse("this kind of SSH key cannot decrypt".into())),
            };
        }
        if text.starts_with("age-encryption.org/") {
            return Err(refuse("the identity file is itself encrypted".into()));
        }
        let file = age::IdentityFile::from_buffer(text.as_bytes()).map_err(|e| refuse(e.to_string()))?;
        let all = file.into_identities().map_err(|e| refuse(e.to_string()))?;
        if all.is_empty() {
            return Err(refuse("the file holds no identity".into()));
        }
        Ok(all
            .into_iter()
            .map(|inner| Identity {
                what: what.to_owned(),
                inner: Arc::from(inner),
            })
            .collect())
    }

    pub(crate) fn as_age(&self) -> &dyn age::Identity {
        self.inner.as_ref()
    }

    /// What opens the listings of a writer and of those it was rotated from.
    pub(crate) fn of_writer(key: &super::WriterKey) -> Vec<Self> {
        key.index_identities()
            .map(|index| Identity {
                what: format!("writer {}", key.id()),
                inner: Arc::new(index.clone()),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_and_hidden() {
        let made = NewIdentity::generate();
        let text = made.to_text();
        let read = Identity::from_text(&text, "test").unwrap();
        assert_eq!(read.len(), 1);
        let secret = text.lines().last().unwrap().to_owned();
        assert!(!format!("{read:?} {made:?}").contains(&secret));
        for bad in ["", "# only a comment\n", "nonsense\n", "age-encryption.org/v1\n"] {
            assert!(Identity::from_text(bad, "test").is_err(), "{bad:?}");
        }
    }
}
