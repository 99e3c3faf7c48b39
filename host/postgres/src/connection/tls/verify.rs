//! Whether a server is who it should be, as libpq asks it; and what to say when it is not.
//!
//! The chain is webpki's business. What is added is what PostgreSQL's own manual makes its readers do and webpki will not
//! have: a certificate signed by itself that stands in the root file; and a host's name in the subject of a certificate
//! that has no names of that kind elsewhere.

use crate::error::chain;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{AlertDescription, CertificateError, DigitallySignedStruct, Error as TlsError, SignatureScheme};
use std::error::Error as StdError;
use std::sync::Arc;
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// `2.5.4.3`, commonName.
const COMMON_NAME: &str = "2.5.4.3";

pub(super) struct Verifier {
    /// Absent: any server is taken.
    trust: Option<(Arc<WebPkiServerVerifier>, Vec<CertificateDer<'static>>)>,
    /// Whether the host's name must be the certificate's.
    name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub fn new(
        trust: Option<(Arc<WebPkiServerVerifier>, Vec<CertificateDer<'static>>)>,
        name: bool,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Verifier {
            trust,
            name,
            algorithms,
        }
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifier(chain: {}, name: {})", self.trust.is_some(), self.name)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let Some((webpki, own)) = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        // webpki looks at the name last: an error about it says that the chain is good.
        let verdict = if own.iter().any(|root| root.as_ref() == end_entity.as_ref()) {
            in_time(end_entity, now)?;
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)
        } else {
            webpki
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
                .map(|_| ())
        };
        match verdict {
            Err(TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name || subject_is(end_entity, server_name) => {}
            other => other?,
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        match verify_tls13_signature(message, cert, dss, &self.algorithms) {
            // A certificate webpki cannot read (X.509 version 1, as older instructions make them) still has a key, and
            // where nobody is verified no more than the key is asked for.
            Err(e) if self.trust.is_none() => match public_key(cert) {
                Some(key) => verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms),
                None => Err(e),
            },
            other => other,
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

pub(super) fn public_key(cert: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let cert = Certificate::from_der(cert).ok()?;
    let key = cert.tbs_certificate.subject_public_key_info.to_der().ok()?;
    Some(SubjectPublicKeyInfoDer::from(key))
}

pub(super) fn in_time(cert: &CertificateDer<'_>, now: UnixTime) -> Result<(), TlsError> {
    let parsed = Certificate::from_der(cert).map_err(|_| CertificateError::BadEncoding)?;
    let validity = parsed.tbs_certificate.validity;
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// Whether the subject's common name is the host, which counts only where no alternative name of the host's kind is.
pub(super) fn subject_is(cert: &CertificateDer<'_>, host: &ServerName<'_>) -> bool {
    let Ok(cert) = Certificate::from_der(cert) else {
        return false;
    };
    let address = matches!(host, ServerName::IpAddress(_));
    match cert.tbs_certificate.get::<SubjectAltName>() {
        Ok(None) => {}
        Ok(Some((_, names))) => {
            let same_kind = names.0.iter().any(|name| match name {
                GeneralName::DnsName(_) => !address,
                GeneralName::IpAddress(_) => address,
                _ => false,
            });
            if same_kind {
                return false;
            }
        }
        Err(_) => return false,
    }
    let host = host.to_str();
    cert.tbs_certificate
        .subject
        .0
        .iter()
        .flat_map(|rdn| rdn.0.iter())
        .find(|attribute| attribute.oid.to_string() == COMMON_NAME)
        .and_then(|attribute| std::str::from_utf8(attribute.value.value()).ok())
        .is_some_and(|name| fits(name, &host, address))
}

/// Equal but for case; a leading `*.` stands for exactly one label.
fn fits(name: &str, host: &str, address: bool) -> bool {
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    match (name.strip_prefix("*."), host.split_once('.')) {
        (Some(rest), Some((label, parent))) if !address => {
            !label.is_empty() && !rest.is_empty() && rest.eq_ignore_ascii_case(parent)
        }
        _ => false,
    }
}

/// Why a connection failed, and what to do, when it failed for TLS; `None` when for something else.
pub(in crate::connection) fn explain(error: &(dyn StdError + 'static)) -> Option<(String, String)> {
    let text = chain(error);
    if text.contains("server does not support TLS") {
        return Some((
            "the server offers no TLS, and `sslmode` asks for it".to_owned(),
            "set ssl = on in its postgresql.conf with a certificate and key, or choose another sslmode where the way \
             to it is safe"
                .to_owned(),
        ));
    }
    // Two of webpki's reasons have no words of their own.
    if text.contains("CaUsedAsEndEntity") {
        return Some((
            "the server's certificate is an authority's own, and not one of those trusted".to_owned(),
            "if it is the right server, put this very certificate into `sslrootcert`, or have one made for the server"
                .to_owned(),
        ));
    }
    if text.contains("UnsupportedCertVersion") {
        return Some((
            "the server's certificate is of X.509 version 1, which cannot be verified".to_owned(),
            "have it made anew as X.509 version 3, with the server's name as subjectAltName".to_owned(),
        ));
    }
    let hint = match tls_cause(error) {
        Some(TlsError::InvalidCertificate(bad)) => match bad {
            CertificateError::UnknownIssuer => {
                "`sslrootcert` must hold the authority that signed the server's certificate; if it does, this is another server"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "connect by a name the certificate has, or have one made with this name as subjectAltName; \
                 `sslmode=verify-ca` does not look at the name"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "renew the server's certificate, and check this machine's clock"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "check this machine's clock",
            CertificateError::Revoked => "the server's certificate was revoked: have a new one made",
            CertificateError::UnknownRevocationStatus | CertificateError::ExpiredRevocationList => {
                "`sslcrl` must hold a current list of every authority of the chain"
            }
            _ => {
                "have the server's certificate made anew: X.509 version 3, for a server, with its name as subjectAltName"
            }
        },
        Some(TlsError::AlertReceived(alert)) => match alert {
            AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::DecryptError => {
                "the server refused our certificate: `sslcert` and `sslkey` must name one that its ssl_ca_file signed"
            }
            _ => "the server's log says why; TLS 1.2 or 1.3 is needed",
        },
        Some(_) => "the server's log may say more; TLS 1.2 or 1.3 is needed",
        None if text.starts_with("error performing TLS handshake") => {
            "check that the host is a name or an address, and that a PostgreSQL server with TLS answers there"
        }
        None => return None,
    };
    Some((text, hint.to_owned()))
}

/// The TLS library's error among the causes.
fn tls_cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a TlsError> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<TlsError>() {
            return Some(found);
        }
        // An io::Error shows the error it carries by get_ref alone; its source is that one's source.
        if let Some(io) = cause.downcast_ref::<std::io::Error>()
            && let Some(inner) = io.get_ref()
        {
            let inner: &(dyn StdError + 'static) = inner;
            if let Some(found) = tls_cause(inner) {
                return Some(found);
            }
        }
        next = cause.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_names() {
        for (name, host, address, good) in [
            ("db.example.org", "DB.example.org", false, true),
            ("*.example.org", "db.example.org", false, true),
            ("*.example.org", "a.b.example.org", false, false),
            ("*.example.org", "example.org", false, false),
            ("*.0.0.1", "127.0.0.1", true, false),
            ("127.0.0.1", "127.0.0.1", true, true),
            ("*", "localhost", false, false),
            ("*.", "localhost.", false, false),
            ("db.example.org", "db.example.org.evil", false, false),
        ] {
            assert_eq!(fits(name, host, address), good, "{name} for {host}");
        }
    }
}
