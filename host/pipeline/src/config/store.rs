//! How the repository's store is reached: rates, and `[repository.s3]`.

use super::{Checker, raw};
use crate::error::{At, PipelineError};
use essrun_store::OpenOptions;
use essrun_store::s3::{Credentials, S3Options};
use std::time::Duration;
use toml::Spanned;

impl Checker<'_> {
    pub(super) fn store(&self, at: &At, raw: &raw::Repository) -> Result<OpenOptions, PipelineError> {
        let s3 = match &raw.s3 {
            None => S3Options::default(),
            Some(given) if !raw.url.get_ref().starts_with("s3://") => {
                return Err(self.places.error(
                    self.places.of(given),
                    "[repository.s3] is given, and url is no s3:// address",
                    "write url = \"s3://bucket/prefix\", or leave the table out",
                ));
            }
            Some(given) => self.s3(at, given.get_ref())?,
        };
        Ok(OpenOptions {
            s3: S3Options {
                unlocked: essrun_repository::SHORT_LIVED.map(str::to_owned).to_vec(),
                ..s3
            },
            limit_upload: self.rate(raw.limit_upload.as_ref())?,
            limit_download: self.rate(raw.limit_download.as_ref())?,
        })
    }

    fn s3(&self, at: &At, raw: &raw::S3) -> Result<S3Options, PipelineError> {
        let credentials = match (&raw.credentials_file, &raw.profile, raw.instance_credentials) {
            (None, None, false) => Credentials::Usual,
            (None, None, true) => Credentials::Instance,
            (Some(file), profile, false) => Credentials::File {
                path: self.path(file.get_ref()),
                profile: profile.clone(),
            },
            (None, Some(profile), false) => Credentials::Profile(profile.clone()),
            (_, _, true) => {
                return Err(self.places.error(
                    at.clone(),
                    "instance-credentials stands beside other credentials",
                    "name one source of keys: credentials-file and profile, or instance-credentials",
                ));
            }
        };
        let object_lock = match &raw.object_lock {
            None => None,
            Some(given) => {
                let length = self.seconds(given)?;
                if length < 86_400 {
                    return Err(self.places.error(
                        self.places.of(given),
                        "object-lock is shorter than a day",
                        "write 30d or the like; nobody can shorten it afterwards",
                    ));
                }
                Some(Duration::from_secs(length))
            }
        };
        Ok(S3Options {
            endpoint: raw.endpoint.as_ref().map(|e| e.get_ref().clone()),
            region: raw.region.clone(),
            path_style: raw.path_style,
            allow_http: raw.allow_http,
            credentials,
            object_lock,
            unlocked: Vec::new(),
        })
    }

    /// Bytes per second.
    fn rate(&self, given: Option<&Spanned<String>>) -> Result<Option<u64>, PipelineError> {
        let Some(given) = given else { return Ok(None) };
        match given.get_ref().parse::<bytesize::ByteSize>() {
            Ok(size) if size.as_u64() >= 1024 => Ok(Some(size.as_u64())),
            _ => Err(self.places.error(
                self.places.of(given),
                format!("{:?} is no rate in bytes per second", given.get_ref()),
                "write 10MiB, 500KiB or the like",
            )),
        }
    }
}
