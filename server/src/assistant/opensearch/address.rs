//! Where a cluster is, and who asks: `opensearch://user@host:9200/shop?ca=/etc/ca.pem`.

use std::fmt;
use std::path::PathBuf;

/// What an address says. Shown without credentials.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// `https://host:port`, and a proxy's path where there is one.
    pub(super) base: String,
    /// Of the alias that points to the version in force.
    pub(super) name: String,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    /// Certificates in PEM that are trusted instead of the usual authorities.
    pub(super) ca: Option<PathBuf>,
    /// Of a version that is built; the cluster's default unless given.
    pub(super) shards: Option<u32>,
    pub(super) replicas: Option<u32>,
    shown: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Begins addresses whose connections are encrypted.
const TLS: &str = "opensearch://";
/// Begins those whose are not.
const PLAIN: &str = "opensearch+http://";
const PORT: u16 = 9200;
/// What follows a name in that of a version must fit into OpenSearch's 255 bytes.
const MOST_NAME: usize = 200;

/// Whether a place is an address of OpenSearch.
pub(crate) fn is_opensearch(place: &str) -> bool {
    place.starts_with(TLS) || place.starts_with(PLAIN)
}

impl Address {
    /// # Errors
    /// What is wrong with it, without what may be a secret.
    pub(super) fn parse(text: &str) -> Result<Address, String> {
        let (scheme, http, rest) = match (text.strip_prefix(TLS), text.strip_prefix(PLAIN)) {
            (Some(rest), _) => (TLS, "https://", rest),
            (_, Some(rest)) => (PLAIN, "http://", rest),
            _ => return Err(format!("an address of OpenSearch begins with {TLS} or {PLAIN}")),
        };
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, path) = rest
            .split_once('/')
            .ok_or(format!("{scheme}…: a name must follow the host: {scheme}host/NAME"))?;
        let (user, host) = match host.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, host),
        };
        let (user, password) = match user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
            None => (None, None),
            Some((user, password)) => {
                let bad = || {
                    format!("{scheme}…@{host}: % must precede two hexadecimal digits in user and password")
                };
                let decode =
                    |text: &str| (!text.is_empty()).then(|| unescape(text).ok_or_else(bad)).transpose();
                (decode(user)?, decode(password)?)
            }
        };
        let with_port =
            with_port(host).ok_or_else(|| format!("{scheme}{host}: that is no host, nor host:port"))?;
        let (prefix, name) = path.rsplit_once('/').map_or(("", path), |(prefix, name)| (prefix, name));
        let base = match prefix {
            "" => format!("{http}{with_port}"),
            prefix => format!("{http}{with_port}/{prefix}"),
        };
        let shown = format!("{scheme}{with_port}/{path}");
        let first = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        let rest = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c));
        if !first || !rest || name.len() > MOST_NAME {
            return Err(format!(
                "{scheme}{with_port}/…: the name has 1 to {MOST_NAME} of a-z, 0-9, - _ . and begins with a letter or digit"
            ));
        }
        if !prefix.chars().all(|c| c.is_ascii_alphanumeric() || "-_./~".contains(c)) {
            return Err(format!(
                "{scheme}{with_port}/…/{name}: the path has a character that does not belong there"
            ));
        }
        let mut address = Address {
            base,
            name: name.to_owned(),
            user,
            password,
            ca: None,
            shards: None,
            replicas: None,
            shown,
        };
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let number = |least: u32| match value.parse() {
                Ok(number) if (least..=1024).contains(&number) => Ok(Some(number)),
                _ => Err(format!("{}?{key}=: a number from {least} to 1024 belongs there", address.shown)),
            };
            match key {
                "ca" if !value.is_empty() => {
                    let path =
                        unescape(value).ok_or_else(|| format!("{}?ca=: % is not escaped", address.shown))?;
                    address.ca = Some(path.into());
                }
                "shards" => address.shards = number(1)?,
                "replicas" => address.replicas = number(0)?,
                _ => return Err(format!("{}: of options there are ca, shards and replicas", address.shown)),
            }
        }
        Ok(address)
    }
}

/// A host with its port, where it is one.
fn with_port(host: &str) -> Option<String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (name, after) = rest.split_once(']')?;
            name.parse::<std::net::Ipv6Addr>().ok()?;
            (format!("[{name}]"), after.strip_prefix(':').or((after.is_empty()).then_some(""))?)
        }
        None => {
            let (name, port) = host.split_once(':').unwrap_or((host, ""));
            let fits = name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
            (fits && !name.is_empty()).then(|| (name.to_owned(), port))?
        }
    };
    let port: u16 = if port.is_empty() { PORT } else { port.parse().ok().filter(|port| *port > 0)? };
    Some(format!("{name}:{port}"))
}

/// `%41` is `A`.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                (digit(rest.next()?)? * 16 + digit(rest.next()?)?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_without_secrets() {
        let address = Address::parse(
            "opensearch://me:se%3Acr%40et@search.example/shop?ca=/etc/ca.pem&shards=3&replicas=0",
        );
        let address = address.unwrap();
        assert_eq!((address.base.as_str(), address.name.as_str()), ("https://search.example:9200", "shop"));
        assert_eq!((address.user.as_deref(), address.password.as_deref()), (Some("me"), Some("se:cr@et")));
        assert_eq!((address.shards, address.replicas), (Some(3), Some(0)));
        assert_eq!(address.ca, Some(PathBuf::from("/etc/ca.pem")));
        assert_eq!(address.to_string(), "opensearch://search.example:9200/shop");
        let plain = Address::parse("opensearch+http://[::1]:443/proxy/x/shop-1").unwrap();
        assert_eq!((plain.base.as_str(), plain.name.as_str()), ("http://[::1]:443/proxy/x", "shop-1"));
        assert_eq!(plain.user, None);
    }

    #[test]
    fn what_is_no_address_is_refused_without_its_secret() {
        for bad in [
            "opensearch://host",
            "opensearch://me:geheim@host/",
            "opensearch://me:geheim@host/Shop",
            "opensearch://me:geheim@host/_all",
            "opensearch://me:geheim@host/a,b",
            "opensearch://me:geheim@host/*",
            "opensearch://me:geheim@ho st/shop",
            "opensearch://me:geheim@host:0/shop",
            "opensearch://me:geheim@host:99999/shop",
            "opensearch://me:geheim@/shop",
            "opensearch://me:geheim%@host/shop",
            "opensearch://me:geheim@host/shop?shards=0",
            "opensearch://me:geheim@host/shop?geheim=1",
            "opensearch://me:geheim@[::x]/shop",
            "https://host/shop",
        ] {
            let error = Address::parse(bad).map(|address| address.to_string()).unwrap_err();
            assert!(!error.contains("geheim"), "{error}");
        }
    }
}
