//! Keys and hosts.

use millrace_server::{ApiKey, ServerConfig};
use serde_json::json;

use crate::server::{Options, Server};

fn locked() -> Server {
    let mut options = Options::default();
    options.config.api_keys = ApiKey::parse_file("first-key\nsecond-key").unwrap();
    Server::with(options)
}

const ROUTES: [(&str, &str); 12] = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/bytes"),
    ("GET", "/version"),
    ("GET", "/metrics"),
    ("GET", "/nothing"),
    ("DELETE", "/v1/models"),
    ("GET", "/page/nothing.js"),
    ("GET", "/v1/chat/completions"),
];

#[test]
fn without_a_key_only_probes_and_the_page_answer() {
    let server = locked();
    for (method, path) in ROUTES {
        for header in [
            None,
            Some("Bearer wrong-key"),
            Some("Bearer first-ke"),
            Some("Bearer first-keyy"),
            Some("Basic first-key"),
            Some("first-key"),
        ] {
            let headers: Vec<_> = header.iter().map(|value| ("authorization", *value)).collect();
            let reply = server.connect().send(method, path, &headers, b"{}");
            assert_eq!(reply.error(401)["type"], "authentication_error", "{method} {path}");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        }
        for key in ["Bearer first-key", "bearer second-key"] {
            let reply = server.connect().send(method, path, &[("authorization", key)], b"{}");
            assert_ne!(reply.status, 401, "{method} {path}");
        }
    }
    for path in ["/health", "/ping", "/", "/page/app.js"] {
        assert_eq!(server.get(path).status, 200);
    }
}

/// Other spellings of a path, and other hosts, never open it.
#[test]
fn no_spelling_of_a_path_goes_around_the_key() {
    let mut options = Options::default();
    options.config.api_keys = vec![ApiKey::new("k").unwrap()];
    options.config.loopback_hosts_only = false;
    let server = Server::with(options);
    let hosts = [
        "localhost",
        "a/v1?",
        "health",
        "localhost/health",
        "localhost?/health",
        "[::1]",
        "x@y",
        "localhost:99999",
        "",
    ];
    for (_, path) in ROUTES {
        let spellings = [
            path.to_owned(),
            format!("/{path}"),
            format!("{path}/"),
            format!("{path};/health"),
            format!("{path}?/health"),
            format!("{path}%2f..%2fhealth"),
            format!("/health/..{path}"),
            format!("/health/{path}"),
            path.replace('/', "/./"),
            path.to_uppercase(),
            format!("http://localhost{path}"),
            format!("http://health{path}"),
        ];
        for spelling in &spellings {
            for host in hosts {
                let Some(reply) = ({
                    let mut connection = server.connect();
                    connection.write("GET", spelling, &[("host", host)], b"");
                    connection.try_read("GET")
                }) else {
                    continue;
                };
                assert!(matches!(reply.status, 400 | 401), "{spelling} at {host}: {}", reply.status);
            }
        }
    }
}

#[test]
fn tenants_do_not_share_the_cache() {
    let server = locked();
    let cached = |key: &str| {
        let body = json!({ "prompt": "x".repeat(99), "max_tokens": 1 }).to_string();
        let reply =
            server.connect().send("POST", "/v1/completions", &[("authorization", key)], body.as_bytes());
        reply.ok()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached("Bearer first-key"), 0);
    assert_eq!(cached("Bearer second-key"), 0);
    assert_eq!(cached("Bearer first-key"), 96);
}

#[test]
fn on_loopback_only_its_own_names_are_served() {
    let server = Server::start();
    for host in ["localhost:8000", "127.0.0.1", "[::1]:1"] {
        assert_eq!(server.connect().send("GET", "/version", &[("host", host)], b"").status, 200);
    }
    let reply = server.connect().send("GET", "/version", &[("host", "rebound.example")], b"");
    assert_eq!(reply.error(403)["code"], "host_not_allowed");
    let config = ServerConfig { loopback_hosts_only: false, ..Options::default().config };
    let server = Server::with(Options { config, ..Default::default() });
    assert_eq!(server.connect().send("GET", "/version", &[("host", "my.service")], b"").status, 200);
}
