//! Sockets: accept, one task per connection, and the end of them all.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::config::Limits;
use crate::route;
use crate::service::{Phase, Service};

/// How long connections may take to flush what has been answered, once no request runs.
const FLUSH: Duration = Duration::from_secs(1);

/// Serves until the service has drained: see [`Service::drain`] and [`Service::abort`]. Afterwards every request
/// that was accepted has had its answer or an error.
///
/// # Errors
/// Where the listener has no address.
pub async fn serve(listener: TcpListener, service: Arc<Service>) -> io::Result<()> {
    tracing::info!(address = %listener.local_addr()?, "listening");
    let graceful = GracefulShutdown::new();
    tokio::select! {
        never = accept(&listener, &service, &graceful) => match never {},
        () = drain(&service) => {}
    }
    drop(listener);
    if timeout(FLUSH, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections are cut that did not take their answers");
    }
    Ok(())
}

/// Waits for the end to begin, and then until no request runs. Meanwhile connections are still accepted: their new
/// requests get 503, and probes learn that the server goes away.
async fn drain(service: &Service) {
    service.reached(Phase::Draining).await;
    let patience = service.config.shutdown_timeout;
    tracing::info!(?patience, "draining");
    tokio::select! {
        () = service.idle() => {}
        () = sleep(patience) => tracing::warn!("requests still run; they are aborted"),
        () = service.reached(Phase::Aborting) => tracing::warn!("aborting"),
    }
    service.end_running();
    let _ = timeout(FLUSH, service.idle()).await;
}

/// Accepts for ever. An error here is the process's or the peer's trouble, and passes: the loop waits and goes on.
async fn accept(listener: &TcpListener, service: &Arc<Service>, graceful: &GracefulShutdown) -> Infallible {
    const WAIT: Duration = Duration::from_millis(10);
    const MAX_WAIT: Duration = Duration::from_secs(1);
    let limits = service.config.limits;
    let connections = Arc::new(Semaphore::new(limits.connections));
    let builder = connection_builder(&limits);
    let mut wait = WAIT;
    loop {
        // Before accepting, so that what is beyond the limit costs no file descriptor.
        let Ok(permit) = connections.clone().acquire_owned().await else {
            unreachable!("the semaphore is never closed")
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => {
                wait = WAIT;
                stream
            }
            Err(error) if is_of_peer(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, ?wait, "cannot accept a connection");
                sleep(wait).await;
                wait = (wait * 2).min(MAX_WAIT);
                continue;
            }
        };
        if let Err(error) = prepare(&stream, &limits) {
            tracing::debug!(%error, "a connection was gone before it began");
            continue;
        }
        let service = service.clone();
        let handler = service_fn(move |request| {
            let service = service.clone();
            async move { Ok::<_, Infallible>(route::handle(service, request).await) }
        });
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), handler));
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection");
            }
        });
    }
}

/// HTTP/1.1 only: behind a gateway nothing more is needed, and a whole class of attacks does not exist.
fn connection_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size(limits.header_bytes)
        // A read buffer of one head, and as much of a stream that its client does not read.
        .max_buf_size((limits.header_bytes * 2).max(64 << 10))
        // A client that closes its half is gone: that is how a disconnect is seen while a request waits or streams.
        .half_close(false);
    builder
}

/// Whether an error of `accept` belongs to the one connection that would have been accepted.
fn is_of_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | ConnectionRefused | Interrupted)
}

fn prepare(stream: &TcpStream, limits: &Limits) -> io::Result<()> {
    // A token is small and must not wait for the next one.
    stream.set_nodelay(true)?;
    // Else the kernel would buffer megabytes for each client that does not read.
    SockRef::from(stream).set_send_buffer_size(128 << 10)?;
    // Finds peers that vanished without a word, and those that no longer read: both stop acknowledging.
    #[cfg(target_os = "linux")]
    SockRef::from(stream).set_tcp_user_timeout(Some(limits.peer_timeout))?;
    let keep_alive = socket2::TcpKeepalive::new().with_time(limits.peer_timeout);
    SockRef::from(stream).set_tcp_keepalive(&keep_alive)
}
