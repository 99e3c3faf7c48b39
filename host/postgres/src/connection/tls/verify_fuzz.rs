//! Certificates as a server shows them.
//!
//! A stranger's certificate must be refused: none is taken whose chain does not end at the authority, or that is not
//! itself among those trusted; and where the host's name is asked for, none in which that name does not stand. What
//! stands in a certificate is looked for without understanding it, so that both ways of understanding it are tried.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::verify::{Verifier, in_time, public_key, subject_is};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Its key signed those of the corpus whose names begin with `chain`, and is gone.
const AUTHORITY: &[u8] = include_bytes!("../../../../../tests/fuzz/corpus/certificate/authority");
/// The beginning of 2027.
const NOW: u64 = 1_798_761_600;
const HOSTS: &[&str] = &["db.example.org", "localhost", "127.0.0.1", "::1"];

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|w| w.eq_ignore_ascii_case(what))
}

/// Whether a host's name stands somewhere in a certificate, in one of the ways it may be written.
fn names(cert: &[u8], host: &str) -> bool {
    let parent = host.split_once('.').map(|(_, parent)| format!("*.{parent}"));
    let octets = match host.parse() {
        Ok(std::net::IpAddr::V4(address)) => address.octets().to_vec(),
        Ok(std::net::IpAddr::V6(address)) => address.octets().to_vec(),
        Err(_) => Vec::new(),
    };
    let written = contains(cert, host.as_bytes()) || (!octets.is_empty() && contains(cert, &octets));
    written || parent.is_some_and(|parent| contains(cert, parent.as_bytes()))
}

fn webpki() -> Arc<WebPkiServerVerifier> {
    static VERIFIER: OnceLock<Arc<WebPkiServerVerifier>> = OnceLock::new();
    let made = VERIFIER.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(AUTHORITY)).unwrap();
        let provider = Arc::new(ring::default_provider());
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap()
    });
    made.clone()
}

pub(crate) fn run(data: &[u8]) {
    let cert = CertificateDer::from(data);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    let algorithms = ring::default_provider().signature_verification_algorithms;
    let verified = |own: &[u8], name: bool, host: &ServerName<'_>| {
        let own = vec![CertificateDer::from(own.to_vec())];
        let verifier = Verifier::new(Some((webpki(), own)), name, algorithms);
        verifier.verify_server_cert(&cert, &[], host, &[], now).is_ok()
    };
    for host in HOSTS {
        let server = ServerName::try_from(*host).unwrap();
        let subject = subject_is(&cert, &server);
        assert!(!subject || names(data, host), "{host} is not in it");
        // By the chain; and with the very certificate among those trusted.
        for own in [AUTHORITY, data] {
            let (named, any) = (verified(own, true, &server), verified(own, false, &server));
            assert!(!named || any, "asking for more takes more");
            assert!(!named || names(data, host), "it is no certificate of {host}");
            assert!(
                !any || own == data || signed_by_the_authority(data),
                "a stranger's is taken"
            );
            assert!(own != data || !any || in_time(&cert, now).is_ok());
        }
    }
    if let Some(key) = public_key(&cert) {
        assert!(contains(data, &key), "the key is not the one that is in it");
    }
    // Where nobody is verified anybody is taken.
    let open = Verifier::new(None, false, algorithms);
    let server = ServerName::try_from("localhost").unwrap();
    assert!(open.verify_server_cert(&cert, &[], &server, &[], now).is_ok());
}

/// No mutation of one can be: what is signed must be as it was when its key was there. What stands around that is
/// written in one way only.
fn signed_by_the_authority(cert: &[u8]) -> bool {
    static SIGNED: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let signed = SIGNED.get_or_init(|| {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fuzz/corpus/certificate");
        let files = std::fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path());
        files
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("chain-"))
            .map(|path| std::fs::read(path).unwrap())
            .collect()
    });
    signed.iter().any(|one| one == cert)
}
