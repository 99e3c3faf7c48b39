//! Where the keys to a bucket come from. They are read at the last moment and nothing here can print them.

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey as Key};
use std::path::{Path, PathBuf};

/// Where to look for keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    /// `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`; else a web identity or container role that the environment
    /// names; else the profile `AWS_PROFILE` (or `default`) of the shared file.
    #[default]
    Usual,
    /// A profile of a file in the form of `~/.aws/credentials`.
    File { path: PathBuf, profile: Option<String> },
    /// A profile of the shared file (`AWS_SHARED_CREDENTIALS_FILE`, else `~/.aws/credentials`).
    Profile(String),
    /// The machine's own role, from the metadata service of EC2.
    Instance,
}

/// What is wrong, and what to do.
type Refusal = (String, &'static str);

/// One access key. It has no `Debug`.
struct Keys {
    id: String,
    secret: String,
    token: Option<String>,
}

const HINT: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name credentials-file or profile";

impl Credentials {
    pub(super) fn apply(&self, builder: AmazonS3Builder) -> Result<AmazonS3Builder, Refusal> {
        let keys = match self {
            Credentials::Instance => return Ok(builder),
            Credentials::File { path, profile } => from_file(path, profile.as_deref().unwrap_or("default"))?,
            Credentials::Profile(profile) => from_file(&shared_file()?, profile)?,
            Credentials::Usual => match (env("AWS_ACCESS_KEY_ID"), env("AWS_SECRET_ACCESS_KEY")) {
                (Some(id), Some(secret)) => Keys {
                    id,
                    secret,
                    token: env("AWS_SESSION_TOKEN"),
                },
                (None, None) => match role(builder.clone()) {
                    Some(with_role) => return Ok(with_role),
                    None => {
                        let profile = env("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
                        let path = shared_file()?;
                        if !path.exists() {
                            return Err(("there are no keys for it".to_owned(), HINT));
                        }
                        from_file(&path, &profile)?
                    }
                },
                (id, _) => {
                    let missing = match id {
                        Some(_) => "AWS_SECRET_ACCESS_KEY",
                        None => "AWS_ACCESS_KEY_ID",
                    };
                    return Err((format!("{missing} is not set, and its counterpart is"), HINT));
                }
            },
        };
        let builder = builder.with_access_key_id(keys.id).with_secret_access_key(keys.secret);
        Ok(match keys.token {
            Some(token) => builder.with_token(token),
            None => builder,
        })
    }
}

fn env(name: &str) -> Option<String> {
    super::env(name)
}

/// A role that Kubernetes or ECS hands out, as they say it in the environment.
fn role(builder: AmazonS3Builder) -> Option<AmazonS3Builder> {
    let set = |builder: AmazonS3Builder, pairs: &[(Key, &str)]| {
        pairs.iter().fold(builder, |b, (key, name)| match env(name) {
            Some(value) => b.with_config(*key, value),
            None => b,
        })
    };
    if env("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() && env("AWS_ROLE_ARN").is_some() {
        return Some(set(
            builder,
            &[
                (Key::WebIdentityTokenFile, "AWS_WEB_IDENTITY_TOKEN_FILE"),
                (Key::RoleArn, "AWS_ROLE_ARN"),
                (Key::RoleSessionName, "AWS_ROLE_SESSION_NAME"),
                (Key::StsEndpoint, "AWS_ENDPOINT_URL_STS"),
            ],
        ));
    }
    let full =
        env("AWS_CONTAINER_CREDENTIALS_FULL_URI").is_some() && env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").is_some();
    if full || env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").is_some() {
        return Some(set(
            builder,
            &[
                (
                    Key::ContainerCredentialsRelativeUri,
                    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                ),
                (Key::ContainerCredentialsFullUri, "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
                (
                    Key::ContainerAuthorizationTokenFile,
                    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
                ),
            ],
        ));
    }
    None
}

fn shared_file() -> Result<PathBuf, Refusal> {
    if let Some(path) = env("AWS_SHARED_CREDENTIALS_FILE") {
        return Ok(path.into());
    }
    match env("HOME") {
        Some(home) => Ok(Path::new(&home).join(".aws/credentials")),
        None => Err((
            "there are no keys for it, and no HOME to look for a file in".to_owned(),
            HINT,
        )),
    }
}

fn from_file(path: &Path, profile: &str) -> Result<Keys, Refusal> {
    let text = std::fs::read_to_string(path).map_err(|e| (format!("{} cannot be read: {e}", path.display()), HINT))?;
    parse(&text, profile).map_err(|why| {
        (
            format!("{}: {why}", path.display()),
            "write [profile] and below it aws_access_key_id = … and aws_secret_access_key = …",
        )
    })
}

/// A file of credentials, for fuzzers.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_credentials(text: &str, profile: &str) -> Result<(), String> {
    parse(text, profile).map(drop)
}

/// The profile's keys out of the file's text. What is wrong is said without quoting any of it.
fn parse(text: &str, profile: &str) -> Result<Keys, String> {
    let (mut here, mut seen) = (false, false);
    let (mut id, mut secret, mut token) = (None, None, None);
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            let name = name.trim();
            here = name.strip_prefix("profile ").map_or(name, str::trim) == profile;
            seen |= here;
            continue;
        }
        if let (true, Some((key, value))) = (here, line.split_once('=')) {
            let value = Some(value.trim().to_owned()).filter(|v| !v.is_empty());
            match key.trim() {
                "aws_access_key_id" => id = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    match (id, secret) {
        _ if !seen => Err(format!("it has no profile [{profile}]")),
        (Some(id), Some(secret)) => Ok(Keys { id, secret, token }),
        (None, _) => Err(format!("its profile [{profile}] has no aws_access_key_id")),
        (_, None) => Err(format!("its profile [{profile}] has no aws_secret_access_key")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_read() {
        let text = "# a comment\n[default]\naws_access_key_id = A\naws_secret_access_key=s=1/+\n\n\
                    [profile other]\nregion = x\naws_access_key_id=B\naws_secret_access_key = t\naws_session_token = u\n\
                    [half]\naws_access_key_id = C\n";
        let keys = parse(text, "default").map(|k| (k.id, k.secret, k.token));
        assert_eq!(keys, Ok(("A".into(), "s=1/+".into(), None)));
        let keys = parse(text, "other").map(|k| (k.id, k.secret, k.token));
        assert_eq!(keys, Ok(("B".into(), "t".into(), Some("u".into()))));
        for (profile, why) in [("half", "no aws_secret_access_key"), ("none", "no profile [none]")] {
            let said = parse(text, profile).map(|k| k.id).unwrap_err();
            assert!(said.contains(why) && !said.contains('C'), "{said}");
        }
    }
}
