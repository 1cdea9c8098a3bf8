//! Who may use the server. Decided on the router's own answer, never on a path put together again.

use std::fmt;

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HOST};
use sha2::{Digest, Sha256};

use crate::config::ServerConfig;
use crate::error::ApiError;

/// A key that opens the API. Only its SHA-256 is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey([u8; 32]);

impl ApiKey {
    /// The key itself; `None` where it is empty or could not be sent in a header.
    pub fn new(key: &str) -> Option<Self> {
        let sendable = !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic());
        sendable.then(|| ApiKey(Sha256::digest(key.as_bytes()).into()))
    }

    /// Keys from a file: one a line, blank lines and lines that start with `#` left out.
    ///
    /// # Errors
    /// The number of the first line that is no key, or 0 where there is none at all.
    pub fn parse_file(text: &str) -> Result<Vec<Self>, usize> {
        let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.trim()));
        let keys = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let keys: Vec<_> =
            keys.map(|(number, line)| ApiKey::new(line).ok_or(number)).collect::<Result<_, _>>()?;
        if keys.is_empty() { Err(0) } else { Ok(keys) }
    }

    /// Whether a key from a client is this one. Both are digests of equal length, and every byte is looked at, so the
    /// time tells nothing.
    fn matches(&self, digest: &[u8; 32]) -> bool {
        let difference = self.0.iter().zip(digest).fold(0, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
        difference == 0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Whoever sent a request, as far as the cache is concerned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tenant(Option<String>);

impl Tenant {
    /// Requests share cached prefixes only where this is equal: within a tenant, and within the client's own salt.
    pub(crate) fn salt(&self, own: Option<String>) -> Option<String> {
        match (&self.0, own) {
            (None, own) => own,
            (Some(tenant), own) => Some(format!("{tenant}/{}", own.unwrap_or_default())),
        }
    }
}

/// Checks the key.
///
/// # Errors
/// 401.
pub(crate) fn check(config: &ServerConfig, headers: &HeaderMap) -> Result<Tenant, ApiError> {
    if config.api_keys.is_empty() {
        return Ok(Tenant::default());
    }
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(ApiError::unauthorized("one header is needed: Authorization: Bearer KEY"));
    };
    let key = value.to_str().ok().and_then(|v| v.split_once(' '));
    let Some((_, key)) = key.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
        return Err(ApiError::unauthorized("the header must be Authorization: Bearer KEY"));
    };
    let digest: [u8; 32] = Sha256::digest(key.trim().as_bytes()).into();
    let mut found = false;
    for known in &config.api_keys {
        found |= known.matches(&digest);
    }
    if !found {
        return Err(ApiError::unauthorized("this API key is not valid"));
    }
    // With a single key there is a single tenant, whose prefixes may be shared with everybody: there is nobody else.
    let name = || digest[..8].iter().map(|b| format!("{b:02x}")).collect();
    Ok(Tenant((config.api_keys.len() > 1).then(name)))
}

/// Checks that the request was meant for this server (see [`ServerConfig::loopback_hosts_only`]).
///
/// # Errors
/// 403; 400 where there are two hosts or none that can be read.
pub(crate) fn check_host(config: &ServerConfig, headers: &HeaderMap) -> Result<(), ApiError> {
    let mut values = headers.get_all(HOST).iter();
    let (value, None) = (values.next(), values.next()) else {
        return Err(ApiError::invalid("two Host headers"));
    };
    // HTTP/1.0 knows no Host, and no browser speaks it.
    let Some(value) = value else { return Ok(()) };
    let authority: Option<hyper::http::uri::Authority> = value.to_str().ok().and_then(|v| v.parse().ok());
    let Some(authority) = authority.filter(|a| !a.as_str().contains('@')) else {
        return Err(ApiError::invalid("the Host header is not a host"));
    };
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let known = host.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok();
    if known || !config.loopback_hosts_only { Ok(()) } else { Err(ApiError::host(host)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for value in values {
            map.append(name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn keys() {
        let keys = ApiKey::parse_file("# staff\nsecret-1\n\n  secret-2 \n").unwrap();
        let config = ServerConfig { api_keys: keys, ..Default::default() };
        let salt = |value: &[&str]| check(&config, &headers("authorization", value)).map(|t| t.salt(None));
        assert_ne!(salt(&["Bearer secret-1"]).unwrap(), salt(&["bearer secret-2"]).unwrap());
        for wrong in [
            &[][..],
            &["Bearer secret-3"],
            &["Bearer "],
            &["Bearer"],
            &["secret-1"],
            &["Basic secret-1"],
            &["Bearer secret-1", "Bearer secret-1"],
        ] {
            assert!(salt(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(ApiKey::parse_file("a\nb c\n"), Err(2));
        assert_eq!(ApiKey::parse_file("# none\n"), Err(0));
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn hosts() {
        let config = ServerConfig::default();
        let ok = |hosts: &[&str]| check_host(&config, &headers("host", hosts)).is_ok();
        for host in ["localhost", "localhost:8000", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "10.1.2.3"]
        {
            assert!(ok(&[host]), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:80",
            "127.0.0.1.evil.example",
            "a/v1?",
            "u@localhost",
            "",
        ] {
            assert!(!ok(&[host]), "{host}");
        }
        assert!(!ok(&["localhost", "localhost"]));
        assert!(ok(&[]));
    }
}
