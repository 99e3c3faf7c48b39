//! TLS to the server, with the meaning libpq gives to its settings.
//!
//! `pg_dump` reads the definitions of the same database through libpq, so what `sslmode` and the files mean here is what
//! they mean there: the modes, the files looked for below `~/.postgresql` when none is named, `require` that verifies
//! once there is a root certificate, the permissions a private key may have. Two things are stricter: a file that is
//! there and cannot be used is an error in every mode, also where libpq would go on without TLS; and TLS is 1.2 or
//! newer. The cryptography is ring's.
//!
//! Never in a message: what a file holds.

mod verify;
#[cfg(any(test, feature = "fuzzing"))]
mod verify_fuzz;

use super::{Connection, Params};
use crate::error::{Error, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, version};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::NamedTempFile;
use tokio_postgres_rustls::MakeRustlsConnect;
use verify::Verifier;

pub(super) use verify::explain;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use verify_fuzz::run as fuzz_certificate;

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Mode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

const MODES: &[(&str, Mode)] = &[
    ("disable", Mode::Disable),
    ("allow", Mode::Allow),
    ("prefer", Mode::Prefer),
    ("require", Mode::Require),
    ("verify-ca", Mode::VerifyCa),
    ("verify-full", Mode::VerifyFull),
];

const BOTH: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];
const ONLY_12: &[&SupportedProtocolVersion] = &[&version::TLS12];
const ONLY_13: &[&SupportedProtocolVersion] = &[&version::TLS13];

/// Where the trusted roots come from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Roots {
    /// The certificates of a file.
    File(PathBuf),
    /// Those the operating system trusts.
    System,
    /// None: the server is not verified.
    Nobody,
}

/// The settings as written and checked; no file of theirs is read yet.
#[derive(Debug)]
pub(super) struct Settings<'a> {
    params: &'a Params,
    pub mode: Mode,
    versions: &'static [&'static SupportedProtocolVersion],
    sni: bool,
}

impl<'a> Settings<'a> {
    pub fn of(params: &'a Params) -> Result<Self> {
        let get = |name: &str| params.get(name).map(String::as_str);
        let system = get("sslrootcert") == Some("system");
        let mode = match get("sslmode") {
            None if system => Mode::VerifyFull,
            None => Mode::Prefer,
            Some(word) => match MODES.iter().find(|(name, _)| *name == word) {
                Some((_, mode)) => *mode,
                None => {
                    return Err(Connection::bad(
                        "sslmode",
                        "disable, allow, prefer, require, verify-ca or verify-full",
                    ));
                }
            },
        };
        if system && !matches!(mode, Mode::VerifyFull | Mode::Disable) {
            return Err(Error::Spec {
                why: "`sslrootcert=system` trusts every public authority, which says nothing unless the name is checked too"
                    .to_owned(),
                hint: "set `sslmode=verify-full`, or name the file of your own authority in `sslrootcert`".to_owned(),
            });
        }
        if get("gssencmode") == Some("require") {
            return Err(Error::Spec {
                why: "`gssencmode=require` asks for GSSAPI encryption, which is not spoken here".to_owned(),
                hint: "use TLS: `sslmode=verify-full`".to_owned(),
            });
        }
        let versions = match (
            get("ssl_min_protocol_version").unwrap_or("TLSv1.2"),
            get("ssl_max_protocol_version"),
        ) {
            ("TLSv1" | "TLSv1.1" | "TLSv1.2", None | Some("TLSv1.3")) => BOTH,
            ("TLSv1" | "TLSv1.1" | "TLSv1.2", Some("TLSv1.2")) => ONLY_12,
            ("TLSv1.3", None | Some("TLSv1.3")) => ONLY_13,
            _ => {
                return Err(Connection::bad(
                    "ssl_min_protocol_version and ssl_max_protocol_version",
                    "a range that holds TLSv1.2 or TLSv1.3",
                ));
            }
        };
        let sni = match get("sslsni") {
            None | Some("1") => true,
            Some("0") => false,
            Some(_) => return Err(Connection::bad("sslsni", "0 or 1")),
        };
        Ok(Settings {
            params,
            mode,
            versions,
            sni,
        })
    }

    /// The file of a parameter, or libpq's default for it where that exists.
    fn file(&self, name: &str, default: &str) -> Option<PathBuf> {
        match self.params.get(name) {
            Some(path) => Some(PathBuf::from(path)),
            None => {
                let home = std::env::var_os("HOME").filter(|h| !h.is_empty())?;
                let path = Path::new(&home).join(".postgresql").join(default);
                path.exists().then_some(path)
            }
        }
    }

    fn roots(&self) -> Result<Roots> {
        let found = match self.params.get("sslrootcert").map(String::as_str) {
            Some("system") => return Ok(Roots::System),
            _ => self.file("sslrootcert", "root.crt").filter(|path| path.exists()),
        };
        match found {
            Some(path) => Ok(Roots::File(path)),
            None if self.mode >= Mode::VerifyCa => {
                let named = self
                    .params
                    .get("sslrootcert")
                    .map_or("~/.postgresql/root.crt", String::as_str);
                Err(Error::Spec {
                    why: format!("the server's certificate is to be verified, and there is no file {named}"),
                    hint: "put the certificate of the authority that signed the server's there, or name its file in \
                           `sslrootcert`; `sslrootcert=system` takes what the operating system trusts"
                        .to_owned(),
                })
            }
            None => Ok(Roots::Nobody),
        }
    }

    /// What makes TLS of a connection, every file read and checked.
    pub fn connector(&self) -> Result<MakeRustlsConnect> {
        let provider = Arc::new(ring::default_provider());
        let roots = self.roots()?;
        let verifier = Verifier::new(
            self.trust(&roots, &provider)?,
            self.mode == Mode::VerifyFull,
            provider.signature_verification_algorithms,
        );
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions)
            .map_err(|e| unusable("the TLS versions", &e))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match self.client_certificate()? {
            None => builder.with_no_client_auth(),
            Some((chain, key, names)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| unusable(&names, &e))?,
        };
        config.enable_sni = self.sni;
        Ok(MakeRustlsConnect::new(config))
    }

    /// The roots, and what verifies a chain up to them; none when nobody is to be verified.
    fn trust(
        &self,
        roots: &Roots,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Option<(Arc<WebPkiServerVerifier>, Vec<CertificateDer<'static>>)>> {
        let (certificates, from) = match roots {
            Roots::Nobody => return Ok(None),
            Roots::System => (system()?, "the system's trusted roots".to_owned()),
            Roots::File(path) => (certificates(path, "sslrootcert")?, path.display().to_string()),
        };
        let mut store = RootCertStore::empty();
        match roots {
            // Among hundreds, one that nobody understands is no reason to do without the others.
            Roots::System => {
                store.add_parsable_certificates(certificates.iter().cloned());
            }
            _ => {
                for certificate in &certificates {
                    store.add(certificate.clone()).map_err(|e| unusable(&from, &e))?;
                }
            }
        }
        let mut builder = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone());
        let mut own = certificates;
        if let Some(path) = self.file("sslcrl", "root.crl") {
            let lists: Vec<CertificateRevocationListDer<'static>> = pem(&path, "sslcrl")?;
            builder = builder.with_crls(lists);
            // A certificate that stands among the roots itself is in nobody's list: only chains are good then.
            own.clear();
        }
        if *roots == Roots::System {
            own.clear();
        }
        let verifier = builder.build().map_err(|e| unusable(&from, &e))?;
        Ok(Some((verifier, own)))
    }

    /// Our own certificate and key, and what they are called in a message.
    #[allow(clippy::type_complexity)]
    fn client_certificate(&self) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, String)>> {
        // As with libpq, one that is named and not there is none: the server says whether it wants one.
        let Some(certificate) = self.file("sslcert", "postgresql.crt").filter(|path| path.exists()) else {
            return Ok(None);
        };
        let chain = certificates(&certificate, "sslcert")?;
        let Some(key) = self.file("sslkey", "postgresql.key").filter(|path| path.exists()) else {
            return Err(Error::Spec {
                why: format!("the client certificate {} has no private key", certificate.display()),
                hint: "name the key's file in `sslkey`".to_owned(),
            });
        };
        private(&key)?;
        let parsed = PrivateKeyDer::from_pem_file(&key).map_err(|e| Error::Spec {
            why: format!("sslkey {}: {}", key.display(), said(&e)),
            hint: "it must hold one private key in PEM; one with a passphrase is opened first: `openssl pkey -in OLD -out NEW`"
                .to_owned(),
        })?;
        let names = format!("sslcert {} with sslkey {}", certificate.display(), key.display());
        Ok(Some((chain, parsed, names)))
    }

    /// For a child that speaks libpq: what `sslrootcert` must be there. libpq before 16 does not know the word `system`,
    /// so the child gets the very roots we trust, as a file that lasts as long as what is returned.
    pub fn system_roots_file(&self) -> Result<Option<NamedTempFile>> {
        if self.mode == Mode::Disable || self.roots()? != Roots::System {
            return Ok(None);
        }
        let failed = |e: std::io::Error| unusable("a temporary file for the system's roots", &e);
        let mut file = NamedTempFile::with_prefix("essrun-roots-").map_err(failed)?;
        for certificate in system()? {
            let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &certificate);
            let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
            for (at, character) in text.chars().enumerate() {
                if at > 0 && at % 64 == 0 {
                    pem.push('\n');
                }
                pem.push(character);
            }
            pem.push_str("\n-----END CERTIFICATE-----\n");
            file.write_all(pem.as_bytes()).map_err(failed)?;
        }
        file.flush().map_err(failed)?;
        Ok(Some(file))
    }
}

/// What the operating system trusts.
fn system() -> Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(Error::Spec {
            why: format!("the operating system has no trusted roots {}", errors.join("; ")),
            hint: "install the package ca-certificates, or name a file in `sslrootcert`".to_owned(),
        });
    }
    Ok(found.certs)
}

fn certificates(path: &Path, parameter: &str) -> Result<Vec<CertificateDer<'static>>> {
    pem(path, parameter)
}

/// Every item of one kind in a PEM file; at least one.
fn pem<T: PemObject>(path: &Path, parameter: &str) -> Result<Vec<T>> {
    let bad = |why: String| Error::Spec {
        why: format!("{parameter} {}: {why}", path.display()),
        hint: format!("`{parameter}` must name a readable file in PEM"),
    };
    let items = T::pem_file_iter(path)
        .and_then(|items| items.collect::<Result<Vec<T>, PemError>>())
        .map_err(|e| bad(said(&e)))?;
    match items.is_empty() {
        true => Err(bad("it holds nothing of the kind".to_owned())),
        false => Ok(items),
    }
}

/// The parser's error, without the bytes it met.
fn said(error: &PemError) -> String {
    match error {
        PemError::Io(e) => e.to_string(),
        PemError::NoItemsFound => "it holds nothing of the kind".to_owned(),
        _ => "it is not well-formed PEM".to_owned(),
    }
}

/// libpq's rule: a key of root's may be read by its group, any other by its owner alone.
fn private(path: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).map_err(|e| unusable(&format!("sslkey {}", path.display()), &e))?;
    let forbidden = if meta.uid() == 0 { 0o037 } else { 0o077 };
    let why = if !meta.is_file() {
        "it is no regular file"
    } else if meta.mode() & forbidden != 0 {
        "others may read or change it"
    } else {
        return Ok(());
    };
    Err(Error::Spec {
        why: format!("sslkey {}: {why}", path.display()),
        hint: "chmod 0600, or 0640 where root owns it".to_owned(),
    })
}

fn unusable(what: &str, why: &dyn std::fmt::Display) -> Error {
    Error::Spec {
        why: format!("{what} cannot be used: {why}"),
        hint: "check the ssl… parameters of the connection".to_owned(),
    }
}
