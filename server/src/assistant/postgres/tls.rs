//! Encryption of connections, as libpq's options `sslmode` and `sslrootcert` ask for it.
//!
//! | `sslmode` | encrypted | the server is |
//! | --- | --- | --- |
//! | `disable` | never | anybody |
//! | `prefer`, `allow` | where the server can | anybody |
//! | `require` | always | anybody; with `sslrootcert` as in `verify-ca` |
//! | `verify-ca` | always | one that has a certificate of an authority that is trusted |
//! | `verify-full` | always | one that has such a certificate for the host in the address |

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

/// Who is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    Anybody,
    Authority,
    Host,
}

/// What an address asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) mode: SslMode,
    trust: Trust,
    /// Certificates of authorities in PEM; those of browsers unless given.
    roots: Option<String>,
}

/// Takes the options of this module out of an address. Gives what is left of it.
///
/// # Errors
/// What is wrong with them.
pub(super) fn options(place: &str) -> Result<(String, Asked), String> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (mut mode, mut roots) = (set("PGSSLMODE"), set("PGSSLROOTCERT"));
    let (start, query) = place.split_once('?').unwrap_or((place, ""));
    let mut rest = Vec::new();
    for option in query.split('&').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("sslmode", value)) => mode = Some(value.to_owned()),
            Some(("sslrootcert", value)) => roots = Some(value.replace("%2F", "/").replace("%2f", "/")),
            _ => rest.push(option),
        }
    }
    let roots = roots.filter(|path| path != "system");
    let (mode, trust) = match mode.as_deref() {
        Some("disable") => (SslMode::Disable, Trust::Anybody),
        None | Some("prefer" | "allow") => (SslMode::Prefer, Trust::Anybody),
        Some("require") if roots.is_none() => (SslMode::Require, Trust::Anybody),
        Some("require" | "verify-ca") => (SslMode::Require, Trust::Authority),
        Some("verify-full") => (SslMode::Require, Trust::Host),
        Some(_) => {
            return Err("sslmode: it is disable, allow, prefer, require, verify-ca or verify-full".to_owned());
        }
    };
    let left = if rest.is_empty() { start.to_owned() } else { format!("{start}?{}", rest.join("&")) };
    Ok((left, Asked { mode, trust, roots }))
}

/// What encrypts connections.
///
/// # Errors
/// Where the certificates of authorities cannot be read.
pub(super) fn connector(asked: &Asked) -> Result<MakeRustlsConnect, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let roots = || -> Result<Arc<RootCertStore>, String> {
        let mut store = RootCertStore::empty();
        match &asked.roots {
            Some(path) => {
                read(&mut store, Path::new(path)).map_err(|why| format!("sslrootcert: {path}: {why}"))?
            }
            None => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        }
        Ok(Arc::new(store))
    };
    let config = match asked.trust {
        Trust::Host => builder.with_root_certificates(roots()?).with_no_client_auth(),
        trust => {
            let chain = match trust {
                Trust::Authority => {
                    let verifier =
                        WebPkiServerVerifier::builder_with_provider(roots()?, provider.clone()).build();
                    Some(verifier.map_err(|error| format!("sslrootcert: {error}"))?)
                }
                _ => None,
            };
            let verifier = Arc::new(AnyName { chain, provider });
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

fn read(store: &mut RootCertStore, path: &Path) -> Result<(), String> {
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())? {
        let certificate = certificate.map_err(|error| error.to_string())?;
        store.add(certificate).map_err(|error| error.to_string())?;
    }
    if store.is_empty() {
        return Err("there is no certificate in it".to_owned());
    }
    Ok(())
}

/// Takes a certificate for whatever host, where there is `chain` only one of an authority that it trusts.
#[derive(Debug)]
struct AnyName {
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        // The chain is looked at before the name.
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_mean_what_they_mean_in_libpq() {
        let asked = |query: &str| {
            options(&format!("postgres://db/shop{query}")).map(|(left, asked)| {
                assert!(!left.contains("ssl"), "{left}");
                (asked.mode, asked.trust)
            })
        };
        assert_eq!(asked("?sslmode=disable"), Ok((SslMode::Disable, Trust::Anybody)));
        assert_eq!(asked("?sslmode=require"), Ok((SslMode::Require, Trust::Anybody)));
        assert_eq!(asked("?sslmode=require&sslrootcert=/x"), Ok((SslMode::Require, Trust::Authority)));
        assert_eq!(asked("?sslrootcert=/x&sslmode=verify-ca"), Ok((SslMode::Require, Trust::Authority)));
        assert_eq!(asked("?sslmode=verify-full&sslrootcert=system"), Ok((SslMode::Require, Trust::Host)));
        assert!(asked("?sslmode=verify").is_err());
        let (left, asked) =
            options("postgres://u@h/db?connect_timeout=3&sslmode=prefer&sslrootcert=%2Fa&x=y").unwrap();
        assert_eq!(left, "postgres://u@h/db?connect_timeout=3&x=y");
        assert_eq!((asked.mode, asked.roots.as_deref()), (SslMode::Prefer, Some("/a")));
    }

    #[test]
    fn a_file_without_certificates_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display().to_string();
        for roots in [path.clone(), "/nowhere/ca.pem".to_owned()] {
            let asked = Asked { mode: SslMode::Require, trust: Trust::Host, roots: Some(roots.clone()) };
            let why = connector(&asked).map(drop).unwrap_err();
            assert!(why.starts_with(&format!("sslrootcert: {roots}: ")), "{why}");
        }
    }
}
