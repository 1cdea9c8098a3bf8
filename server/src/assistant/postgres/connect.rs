//! Connections: made when they are needed, kept while they work, never shared between two statements at a time.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::sync::Semaphore;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::types::ToSql;
use tokio_postgres::{CancelToken, Client, Config, NoTls, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::tls;
use crate::assistant::index::IndexError;
use crate::assistant::source::RetrieveError;

/// Connections at a time.
const CONNECTIONS: usize = 8;
/// Prepared statements that a connection keeps: there are as many as there are combinations of filters.
const STATEMENTS: usize = 128;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// No question waits for longer, so none keeps the server busy for longer.
const SETUP: &str = "SET statement_timeout = '10s'; SET search_path = millrace, public";

/// Where the database is, and who asks.
pub(super) struct Server {
    config: Config,
    shown: String,
    /// `None` where connections are not to be encrypted, or need not be: on a socket of this machine.
    tls: Option<MakeRustlsConnect>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Server {
    pub(super) fn parse(place: &str) -> Result<Server, IndexError> {
        let unreadable = |reason| IndexError::Server { server: "postgres://…".to_owned(), reason };
        let (place, encryption) = tls::options(place).map_err(unreadable)?;
        let mut config: Config = place.parse().map_err(|error| unreadable(reason(&error)))?;
        let shown = shown(&config);
        let wrong = |reason| IndexError::Server { server: shown.clone(), reason };
        if config.get_password().is_none()
            && let Some(password) = password(&config).map_err(wrong)?
        {
            config.password(password);
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_application_name().is_none() {
            config.application_name("millrace");
        }
        let remote = config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(_)));
        let tls = match remote && encryption.mode != SslMode::Disable {
            true => Some(tls::connector(&encryption).map_err(wrong)?),
            false => None,
        };
        config.ssl_mode(if tls.is_some() { encryption.mode } else { SslMode::Disable });
        Ok(Server { config, shown, tls })
    }

    pub(super) fn error(&self, reason: String) -> IndexError {
        IndexError::Server { server: self.shown.clone(), reason }
    }

    /// A connection, driven by the runtime until it is dropped.
    pub(super) async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        match &self.tls {
            None => self.config.connect(NoTls).await.map(driven),
            Some(tls) => self.config.connect(tls.clone()).await.map(driven),
        }
    }

    /// Ends a statement under way.
    async fn cancel(token: CancelToken, tls: Option<MakeRustlsConnect>) -> Result<(), tokio_postgres::Error> {
        match tls {
            None => token.cancel_query(NoTls).await,
            Some(tls) => token.cancel_query(tls).await,
        }
    }
}

/// The client of a connection, which the runtime drives.
fn driven<S, T>((client, connection): (Client, tokio_postgres::Connection<S, T>)) -> Client
where
    tokio_postgres::Connection<S, T>: Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static,
{
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = reason(&error), "a connection to PostgreSQL ended");
        }
    });
    client
}

/// An address without credentials.
pub(super) fn shown(config: &Config) -> String {
    let ports = config.get_ports();
    let hosts = config.get_hosts().iter().enumerate().map(|(i, host)| {
        let port = ports.get(i).or(ports.first()).filter(|port| **port != 5432);
        let port = port.map_or(String::new(), |port| format!(":{port}"));
        match host {
            Host::Tcp(host) => format!("{host}{port}"),
            Host::Unix(path) => format!("{}{port}", path.display()),
        }
    });
    let hosts: Vec<String> = hosts.collect();
    format!("postgres://{}/{}", hosts.join(","), config.get_dbname().unwrap_or_default())
}

/// What libpq takes where the address has no password.
fn password(config: &Config) -> Result<Option<String>, String> {
    if let Ok(password) = std::env::var("PGPASSWORD") {
        return Ok(Some(password));
    }
    let Ok(path) = std::env::var("PGPASSFILE") else { return Ok(None) };
    let text = std::fs::read_to_string(&path).map_err(|error| format!("PGPASSFILE: {path}: {error}"))?;
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        _ => "localhost".to_owned(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432).to_string();
    let user = config.get_user().unwrap_or_default();
    Ok(find(&text, &[&host, &port, config.get_dbname().unwrap_or(user), user]))
}

/// The password of the first line `host:port:database:user:password` that fits; `*` fits all, `\` escapes.
fn find(text: &str, wanted: &[&str; 4]) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut fields = vec![String::new()];
        let mut chars = line.chars();
        while let Some(c) = chars.next() {
            match c {
                ':' if fields.len() < 5 => fields.push(String::new()),
                '\\' => fields.last_mut()?.extend(chars.next()),
                c => fields.last_mut()?.push(c),
            }
        }
        let password = fields.get(4)?.clone();
        let fits = fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
        fits.then_some(password)
    })
}

/// What went wrong, with the server's own words where it has any.
pub(super) fn reason(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("{} ({})", error.message(), error.code().code());
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    if text.contains("UnknownIssuer") {
        text += "; name the authority that signed its certificate with sslrootcert=FILE";
    }
    text
}

/// Whether the connection ends with this error: the server shuts down, or somebody ended it.
fn ends(error: &tokio_postgres::Error) -> bool {
    error.is_closed()
        || error.code().is_some_and(|code| ["57P", "08"].iter().any(|class| code.code().starts_with(class)))
}

pub(super) fn unavailable(reason: String) -> RetrieveError {
    RetrieveError::Unavailable { backend: "postgres", reason }
}

/// Connections to one server.
pub(super) struct Pool {
    server: Server,
    permits: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

struct Connection {
    client: Client,
    statements: FxHashMap<String, Statement>,
}

impl Connection {
    async fn query(
        &mut self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let statement = match self.statements.get(sql) {
            Some(statement) => statement.clone(),
            None => {
                let statement = self.client.prepare(sql).await?;
                if self.statements.len() == STATEMENTS {
                    self.statements.clear();
                }
                self.statements.insert(sql.to_owned(), statement.clone());
                statement
            }
        };
        self.client.query(&statement, parameters).await
    }
}

/// A connection with a statement under way. Dropped before its end, the statement is cancelled and the connection
/// closed.
struct Busy<'a>(Option<Connection>, &'a Server);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(Server::cancel(connection.client.cancel_token(), self.1.tls.clone()));
        }
    }
}

impl Pool {
    pub(super) fn new(server: Server) -> Self {
        Pool { server, permits: Semaphore::new(CONNECTIONS), idle: Mutex::default() }
    }

    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> Result<Connection, tokio_postgres::Error> {
        let client = self.server.connect().await?;
        client.batch_execute(SETUP).await?;
        Ok(Connection { client, statements: FxHashMap::default() })
    }

    /// Runs a statement that only reads.
    pub(super) async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, RetrieveError> {
        let _permit = self.permits.acquire().await.map_err(|error| unavailable(error.to_string()))?;
        loop {
            let kept = self.idle().pop();
            let old = kept.is_some();
            let connection = match kept {
                Some(connection) => connection,
                None => self.connect().await.map_err(|error| unavailable(reason(&error)))?,
            };
            let mut busy = Busy(Some(connection), &self.server);
            let Some(connection) = busy.0.as_mut() else { unreachable!("it was put there") };
            let result = connection.query(sql, parameters).await;
            let connection = busy.0.take();
            let broken = match &result {
                Ok(_) => false,
                Err(error) => ends(error) || connection.as_ref().is_none_or(|c| c.client.is_closed()),
            };
            if !broken {
                self.idle().extend(connection);
            }
            match result {
                Ok(rows) => return Ok(rows),
                // The server was restarted since: what was kept is of no use, a new connection may be.
                Err(_) if old && broken => {}
                Err(error) => return Err(unavailable(reason(&error))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_file_is_read_as_libpq_does() {
        let text = "# a comment\nother:5432:shop:me:no\ndb:*:sh\\:op:me:se\\:cr\\\\et:x\n*:*:*:*:last\n";
        assert_eq!(find(text, &["db", "5432", "sh:op", "me"]).as_deref(), Some("se:cr\\et:x"));
        assert_eq!(find(text, &["x", "1", "y", "z"]).as_deref(), Some("last"));
        assert_eq!(find("db:5432:shop:me", &["db", "5432", "shop", "me"]), None);
        assert_eq!(find("", &["db", "5432", "shop", "me"]), None);
    }
}
