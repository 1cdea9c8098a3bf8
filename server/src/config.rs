//! What an operator decides about the front: names, keys, limits.

use std::net::SocketAddr;
use std::time::Duration;

use crate::auth::ApiKey;

/// What an operator decides; `Default` is meant for a server on the loopback interface.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Names under which the model is served: the first is the canonical one, the others are aliases. At least one.
    pub model_names: Vec<String>,
    /// Where the model came from, as `/v1/models` shows it in `root`; the canonical name if absent.
    pub model_root: Option<String>,
    /// Shown by `/version` and in `system_fingerprint`.
    pub version: String,
    /// Keys that open the API. Empty: everybody may use it.
    pub api_keys: Vec<ApiKey>,
    /// Refuse requests whose `Host` is a name other than `localhost`. On a loopback address this is what keeps a web page
    /// with a rebound DNS name from talking to the server; elsewhere the operator's own names must work.
    pub loopback_hosts_only: bool,
    /// Sizes, counts and times that protect the process.
    pub limits: Limits,
    /// How long running requests may go on after [`Service::drain`](crate::Service::drain).
    pub shutdown_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            model_names: vec!["model".into()],
            model_root: None,
            version: env!("CARGO_PKG_VERSION").into(),
            api_keys: Vec::new(),
            loopback_hosts_only: true,
            limits: Limits::default(),
            shutdown_timeout: Duration::from_secs(30),
        }
    }
}

/// Sizes, counts and times that protect the process from its clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; further ones wait in the listener's backlog.
    pub connections: usize,
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// From the start of a connection, or the end of a response, to the end of the next head.
    pub header_timeout: Duration,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of all bodies that are in memory at a time; further ones are read later. At least `body_bytes`.
    pub total_body_bytes: usize,
    /// A body may be slower than `body_rate` for so long.
    pub body_grace: Duration,
    /// Bytes per second below which a body is given up.
    pub body_rate: usize,
    /// Silence on a stream before a comment is sent, so that proxies keep it open.
    pub keep_alive: Duration,
    /// A peer that acknowledges nothing for so long is gone.
    pub peer_timeout: Duration,
    /// Sequences that one HTTP request may ask for: prompts × `n`.
    pub choices: usize,
    /// Stop strings in one request.
    pub stop_strings: usize,
    /// Alternatives per token in `logprobs`, `top_logprobs` and `prompt_logprobs`.
    pub logprobs: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 1024,
            header_bytes: 16 << 10,
            header_timeout: Duration::from_secs(10),
            body_bytes: 4 << 20,
            total_body_bytes: 256 << 20,
            body_grace: Duration::from_secs(5),
            body_rate: 1 << 10,
            keep_alive: Duration::from_secs(10),
            peer_timeout: Duration::from_secs(20),
            choices: 256,
            stop_strings: 16,
            logprobs: 20,
        }
    }
}

/// Why the server does not listen on an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0} can be reached from other machines and there is no API key: give one, listen on 127.0.0.1, \
     or say explicitly that everybody may use this server"
)]
pub struct BindRefused(pub SocketAddr);

/// Refuses an address that other machines can reach, unless requests need a key or the operator insists.
///
/// # Errors
/// [`BindRefused`] with the address.
pub fn check_bind(address: SocketAddr, has_key: bool, allow_insecure: bool) -> Result<(), BindRefused> {
    if address.ip().to_canonical().is_loopback() || has_key || allow_insecure {
        Ok(())
    } else {
        Err(BindRefused(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_open_without_a_key() {
        for (address, loopback) in [
            ("127.0.0.1:80", true),
            ("127.8.9.1:80", true),
            ("[::1]:80", true),
            ("[::ffff:127.0.0.1]:80", true),
            ("0.0.0.0:80", false),
            ("[::]:80", false),
            ("10.0.0.1:80", false),
            ("[::ffff:10.0.0.1]:80", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(check_bind(address, false, false).is_ok(), loopback, "{address}");
            assert_eq!(check_bind(address, true, false), Ok(()));
            assert_eq!(check_bind(address, false, true), Ok(()));
        }
    }
}
