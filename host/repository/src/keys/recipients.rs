//! Recipients: the public halves that contents are encrypted to.
//!
//! Three kinds, as the age tools know them: native (`age1…`), SSH public keys, and plugins (`age1name1…`), for which
//! the plugin's program must be on the path. Each leaves stanzas of a known kind in a file's header; after every
//! encryption the header is compared with what was asked for.

use crate::RepositoryError;
use std::fmt;
use std::sync::Arc;

/// The kinds of stanzas a recipient leaves in an age header.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StanzaKind {
    /// Exactly one stanza of this tag.
    Tag(&'static str),
    /// A plugin's: at least one stanza, its tag is the plugin's affair.
    Plugin,
}

trait Wrap: age::Recipient + Send + Sync {}
impl<T: age::Recipient + Send + Sync> Wrap for T {}

#[derive(Clone)]
struct One {
    text: String,
    kind: StanzaKind,
    recipient: Arc<dyn Wrap>,
}

/// Whom contents are encrypted to. May be empty; then nothing sensitive can be backed up.
#[derive(Clone, Default)]
pub struct Recipients(Vec<One>);

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.texts()).finish()
    }
}

impl Recipients {
    /// Nobody.
    pub fn none() -> Self {
        Recipients(Vec::new())
    }

    /// Reads recipients, one a string; comments (`#`) and empty strings are skipped, doubles taken once.
    pub fn parse<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Result<Self, RepositoryError> {
        let mut all: Vec<One> = Vec::new();
        for text in texts {
            let text = text.as_ref().trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let one = parse_one(text)?;
            if all.iter().all(|o| o.text != one.text) {
                all.push(one);
            }
        }
        if all.len() > 20 {
            let why = format!("{} were named, and age files are read by at most 20 here", all.len());
            return Err(RepositoryError::key("recipients", why, "name fewer recipients"));
        }
        Ok(Recipients(all))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The recipients as text.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|o| o.text.as_str())
    }

    pub(crate) fn kinds(&self) -> Vec<StanzaKind> {
        self.0.iter().map(|o| o.kind.clone()).collect()
    }

    pub(crate) fn as_age(&self) -> impl Iterator<Item = &dyn age::Recipient> {
        self.0.iter().map(|o| o.recipient.as_ref() as &dyn age::Recipient)
    }

    /// These and one more native one.
    pub(crate) fn with_native(&self, recipient: age::x25519::Recipient) -> Self {
        let mut all = self.0.clone();
        let text = recipient.to_string();
        if all.iter().all(|o| o.text != text) {
            all.push(One {
                text,
                kind: StanzaKind::Tag("X25519"),
                recipient: Arc::new(recipient),
            });
        }
        Recipients(all)
    }
}

fn parse_one(text: &str) -> Result<One, RepositoryError> {
    let refuse = |why: String| {
        RepositoryError::key(
            format!("recipient {text:?}"),
            why,
            "use an age1… recipient, an ssh-ed25519 or ssh-rsa public key, or a plugin's recipient",
        )
    };
    if text.starts_with("AGE-SECRET-KEY-") || text.starts_with("AGE-PLUGIN-") {
        return Err(RepositoryError::key(
            "recipients",
            "a secret identity stands where a public recipient belongs",
            "replace it with its public half, and take the identity off this machine",
        ));
    }
    let made = |kind, recipient: Arc<dyn Wrap>| One {
        text: text.to_owned(),
        kind,
        recipient,
    };
    if text.starts_with("ssh-") {
        use age::ssh::Recipient as Ssh;
        let key: Ssh = text.parse().map_err(|e| refuse(format!("{e:?}")))?;
        let tag = match key {
            Ssh::SshRsa(..) => "ssh-rsa",
            Ssh::SshEd25519(..) => "ssh-ed25519",
        };
        return Ok(made(StanzaKind::Tag(tag), Arc::new(key)));
    }
    if let Ok(key) = text.parse::<age::x25519::Recipient>() {
        return Ok(made(StanzaKind::Tag("X25519"), Arc::new(key)));
    }
    if let Ok(plugin) = text.parse::<age::plugin::Recipient>() {
        let name = plugin.plugin().to_owned();
        let made_by = age::plugin::RecipientPluginV1::new(&name, &[plugin], &[], age::NoCallbacks).map_err(|e| {
            RepositoryError::key(
                format!("recipient {text:?}"),
                e.to_string(),
                format!("install age-plugin-{name} on this machine, or use another recipient"),
            )
        })?;
        return Ok(made(StanzaKind::Plugin, Arc::new(made_by)));
    }
    Err(refuse("is none that is known".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipients_are_read_once_each() {
        let key = age::x25519::Identity::generate().to_public().to_string();
        let ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN me@host";
        let read = Recipients::parse([key.as_str(), "# note", "", ssh, &key]).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(
            read.kinds(),
            [StanzaKind::Tag("X25519"), StanzaKind::Tag("ssh-ed25519")]
        );
    }

    #[test]
    fn what_is_no_recipient_is_refused_without_being_repeated_when_secret() {
        use age::secrecy::ExposeSecret;
        assert!(Recipients::parse(["age1nonsense"]).is_err());
        assert!(Recipients::parse(["ssh-dss AAAA"]).is_err());
        let secret = age::x25519::Identity::generate().to_string();
        let said = Recipients::parse([secret.expose_secret()]).unwrap_err().to_string();
        assert!(!said.contains(secret.expose_secret()), "{said}");
    }
}
