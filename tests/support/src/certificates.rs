//! Certificates made on the spot: an authority, and what it signs for servers and clients.
//!
//! Everything is PEM text, as PostgreSQL's files want it.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams,
    SerialNumber, date_time_ymd,
};
use std::path::{Path, PathBuf};

/// A certificate and its private key.
#[derive(Debug, Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// An authority with a key of its own.
pub struct Authority {
    pub pair: Pair,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate is to say, beyond the usual.
#[derive(Debug, Clone, Default)]
pub struct Leaf<'a> {
    /// The subject's common name.
    pub subject: &'a str,
    /// Host names and addresses.
    pub names: &'a [&'a str],
    /// Ended years ago.
    pub expired: bool,
    /// For clients, not servers.
    pub client: bool,
    /// A serial number, to be revoked by.
    pub serial: Option<u64>,
}

fn subject(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

impl Authority {
    pub fn create(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("an authority's certificate");
        let pair = Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        };
        Authority {
            pair,
            issuer: Issuer::new(params, key),
        }
    }

    pub fn sign(&self, leaf: &Leaf) -> Pair {
        let names: Vec<String> = leaf.names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name = subject(leaf.subject);
        params.extended_key_usages = vec![match leaf.client {
            true => ExtendedKeyUsagePurpose::ClientAuth,
            false => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        params.serial_number = leaf.serial.map(SerialNumber::from);
        if leaf.expired {
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        Pair {
            certificate: params.signed_by(&key, &self.issuer).expect("a certificate").pem(),
            key: key.serialize_pem(),
        }
    }

    /// A list of what is revoked.
    pub fn revoke(&self, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2200, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).and_then(|l| l.pem()).expect("a list")
    }
}

/// As `openssl req -new -x509` makes it, and PostgreSQL's manual shows: signed by itself, an authority by its own word,
/// the host only in the subject.
pub fn self_signed(host: &str) -> Pair {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(host);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    Pair {
        certificate: params.self_signed(&key).expect("a certificate").pem(),
        key: key.serialize_pem(),
    }
}

/// Writes a file that only its owner reads.
pub fn write(dir: &Path, name: &str, contents: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join(name);
    std::fs::write(&path, contents).expect("writing a file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("permissions");
    path
}
