//! Encrypted connections to a real PostgreSQL: `sslmode` and `sslrootcert` mean what they mean in libpq.
//!
//! The PostgreSQL of the package has no TLS, so a relay stands in front that speaks PostgreSQL's start of it and passes
//! on the rest. Needs `MILLRACE_TEST_POSTGRES` (scripts/with-postgres sets it) and openssl; skipped without.
#![cfg(feature = "postgres")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millrace_server::assistant::index::IndexError;
use millrace_server::assistant::postgres::PostgresIndex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;

/// An authority, a certificate of its for `localhost`, and another authority.
fn certificates(folder: &Path) -> Option<()> {
    let openssl = |arguments: &str| -> Option<()> {
        let done = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().ok()?;
        assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
        Some(())
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    for name in ["ca", "other"] {
        openssl(&format!("req -x509 {key} -subj /CN={name} -keyout {name}.key -out {name}.pem"))?;
    }
    openssl(&format!("req {key} -subj /CN=localhost -keyout server.key -out server.csr"))?;
    std::fs::write(folder.join("san"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n").unwrap();
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out server.pem",
    )
}

/// The socket of the server, and the rest of its address.
fn server(address: &str) -> (PathBuf, String) {
    let rest = address.strip_prefix("postgres://").expect("an address");
    let (user, rest) = rest.split_once('@').expect("a user");
    let (host, database) = rest.split_once('/').expect("a database");
    let socket = Path::new(&host.replace("%2F", "/")).join(".s.PGSQL.5432");
    (socket, format!("postgres://{user}@HOST/{database}"))
}

/// Passes a connection on; encrypted, where it asks for that and the relay can.
async fn relay(mut client: TcpStream, socket: PathBuf, tls: Option<TlsAcceptor>, seen: Arc<AtomicBool>) {
    /// The code of PostgreSQL's `SSLRequest`, a message of 8 bytes.
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let mut server = UnixStream::connect(socket).await.unwrap();
    let mut start = [0; 8];
    if client.read_exact(&mut start).await.is_err() {
        return;
    }
    if start != SSL_REQUEST {
        server.write_all(&start).await.unwrap();
        let _ = copy_bidirectional(&mut client, &mut server).await;
        return;
    }
    let Some(tls) = tls else {
        client.write_all(b"N").await.unwrap();
        let _ = copy_bidirectional(&mut client, &mut server).await;
        return;
    };
    client.write_all(b"S").await.unwrap();
    if let Ok(mut client) = tls.accept(client).await {
        seen.store(true, Ordering::SeqCst);
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}

#[test]
fn connections_are_encrypted_as_asked() {
    let Ok(address) = std::env::var("MILLRACE_TEST_POSTGRES") else {
        println!("skipped: MILLRACE_TEST_POSTGRES is not set (scripts/with-postgres sets it)");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    if certificates(folder.path()).is_none() {
        println!("skipped: there is no openssl to make certificates with");
        return;
    }
    let file = |name: &str| folder.path().join(name);
    let chain = CertificateDer::pem_file_iter(file("server.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));

    let (socket, template) = server(&address);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let seen = Arc::new(AtomicBool::new(false));
    let port = |tls: Option<TlsAcceptor>| {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (socket, seen) = (socket.clone(), seen.clone());
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, socket.clone(), tls.clone(), seen.clone()));
            }
        });
        port
    };
    let (with, without) = (port(Some(acceptor)), port(None));

    let (ca, other) = (file("ca.pem"), file("other.pem"));
    let ca = |mode: &str| format!("sslmode={mode}&sslrootcert={}", ca.display());
    let other = |mode: &str| format!("sslmode={mode}&sslrootcert={}", other.display());
    // The address, whether it comes to an answer, encrypted; else what is said.
    let cases: Vec<(&str, u16, String, Result<bool, &str>)> = vec![
        ("localhost", with, String::new(), Ok(true)),
        ("localhost", with, "sslmode=disable".into(), Ok(false)),
        ("localhost", with, "sslmode=prefer".into(), Ok(true)),
        ("localhost", with, "sslmode=require".into(), Ok(true)),
        ("localhost", with, ca("require"), Ok(true)),
        ("localhost", with, other("require"), Err("sslrootcert=FILE")),
        ("127.0.0.1", with, ca("verify-ca"), Ok(true)),
        ("localhost", with, other("verify-ca"), Err("sslrootcert=FILE")),
        ("localhost", with, ca("verify-full"), Ok(true)),
        ("127.0.0.1", with, ca("verify-full"), Err("not valid for name")),
        ("localhost", with, "sslmode=verify-full".into(), Err("sslrootcert=FILE")),
        ("localhost", without, "sslmode=prefer".into(), Ok(false)),
        ("localhost", without, "sslmode=require".into(), Err("does not support TLS")),
        ("localhost", without, ca("verify-full"), Err("does not support TLS")),
    ];
    for (host, port, options, want) in cases {
        seen.store(false, Ordering::SeqCst);
        let address = template.replace("HOST", &format!("{host}:{port}"));
        // The database holds no index, which only the server can know.
        let opened =
            runtime.block_on(PostgresIndex::open(&format!("{address}?{options}"), None)).unwrap_err();
        match want {
            Ok(encrypted) => {
                assert!(matches!(opened, IndexError::Missing { .. }), "{host} {options}: {opened}");
                assert_eq!(seen.load(Ordering::SeqCst), encrypted, "{host} {options}");
            }
            Err(why) => {
                let error = opened.to_string();
                assert!(error.contains(why) && error.contains(host), "{host} {options}: {error}");
            }
        }
    }
}
