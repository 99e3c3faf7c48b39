//! From a place to a stream the driver can talk over: unix socket or TCP, then TLS where it is wanted.
//!
//! The driver can do this too, but shows its stream to nobody, and rows are to be taken out of it (see `tap`). So it is
//! given a finished stream, and [`Through`] where it wants something that makes TLS of one.
//!
//! The order is libpq's: ask for TLS with one message, read exactly one byte of answer (more could only be somebody's
//! between us and the server, and is left to the handshake to choke on), then the handshake.

use super::tap::{Tap, Tapped};
use socket2::{SockRef, TcpKeepalive};
use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::{Ready, ready};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Length 8, and the number that stands for the wish: PostgreSQL's "SSLRequest".
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Socket(PathBuf),
    Host {
        /// What a certificate must be for.
        name: String,
        /// Where it is, if the name is not to be looked up.
        address: Option<IpAddr>,
        port: u16,
    },
}

/// How connections are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// For reaching one address, and again for what the server then asks.
    pub connect: Duration,
    pub keepalive_idle: Duration,
    pub keepalive_interval: Duration,
}

/// Whether TLS is made.
#[derive(Clone, Copy)]
pub(super) enum Way<'a> {
    Plain,
    /// With a server that offers none, go on without.
    MayTls(&'a MakeRustlsConnect),
    Tls(&'a MakeRustlsConnect),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error("error connecting to server")]
    Connect(#[source] io::Error),
    #[error("server does not support TLS")]
    NoTls,
    #[error("error performing TLS handshake")]
    Tls(#[source] Box<dyn StdError + Send + Sync>),
    #[error(transparent)]
    Driver(#[from] tokio_postgres::Error),
    #[error("the database does not allow what `target_session_attrs` asks for")]
    Unwanted,
}

impl Failed {
    pub fn driver(&self) -> Option<&tokio_postgres::Error> {
        match self {
            Failed::Driver(e) => Some(e),
            _ => None,
        }
    }
}

/// A stream to the server; rows can be taken out of it by the tap.
pub(super) async fn reach(place: &Place, way: Way<'_>, timing: Timing, tap: &Tap) -> Result<Tapped, Failed> {
    let (name, address, port) = match place {
        Place::Socket(path) => {
            let stream = in_time(timing, async {
                UnixStream::connect(path).await.map_err(Failed::Connect)
            })
            .await?;
            return Ok(Tapped::new(Box::new(Plain(stream)), tap.clone()));
        }
        Place::Host { name, address, port } => (name, address, *port),
    };
    let addresses: Vec<SocketAddr> = match address {
        Some(address) => vec![SocketAddr::new(*address, port)],
        None => lookup_host((name.as_str(), port))
            .await
            .map_err(Failed::Connect)?
            .collect(),
    };
    let mut last = Failed::Connect(io::Error::new(io::ErrorKind::NotFound, "the host has no address"));
    for address in addresses {
        match in_time(timing, reach_one(name, address, way, timing, tap)).await {
            Ok(stream) => return Ok(stream),
            // The name's other addresses are for when this one is not there, not for when it refuses.
            Err(e @ Failed::Connect(_)) => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

/// No longer than connecting may take.
pub(super) async fn in_time<T>(timing: Timing, what: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    match tokio::time::timeout(timing.connect, what).await {
        Ok(done) => done,
        Err(_) => Err(Failed::Connect(io::Error::new(
            io::ErrorKind::TimedOut,
            "connection timed out",
        ))),
    }
}

async fn reach_one(name: &str, address: SocketAddr, way: Way<'_>, timing: Timing, tap: &Tap) -> Result<Tapped, Failed> {
    let mut stream = TcpStream::connect(address).await.map_err(Failed::Connect)?;
    stream.set_nodelay(true).map_err(Failed::Connect)?;
    let keepalive = TcpKeepalive::new()
        .with_time(timing.keepalive_idle)
        .with_interval(timing.keepalive_interval);
    SockRef::from(&stream)
        .set_tcp_keepalive(&keepalive)
        .map_err(Failed::Connect)?;
    let (make, must) = match way {
        Way::Plain => return Ok(Tapped::new(Box::new(Plain(stream)), tap.clone())),
        Way::MayTls(make) => (make, false),
        Way::Tls(make) => (make, true),
    };
    stream.write_all(&TLS_REQUEST).await.map_err(Failed::Connect)?;
    let mut answer = [0];
    stream.read_exact(&mut answer).await.map_err(Failed::Connect)?;
    match (&answer, must) {
        (b"S", _) => {}
        (_, true) => return Err(Failed::NoTls),
        (_, false) => return Ok(Tapped::new(Box::new(Plain(stream)), tap.clone())),
    }
    let connect = match MakeTlsConnect::<TcpStream>::make_tls_connect(&mut make.clone(), name) {
        Ok(connect) => connect,
        Err(never) => match never {},
    };
    let stream = TlsConnect::connect(connect, stream)
        .await
        .map_err(|e: io::Error| Failed::Tls(e.into()))?;
    Ok(Tapped::new(Box::new(stream), tap.clone()))
}

/// What the driver takes for a maker of TLS, and makes nothing: the stream is as it should be already.
#[derive(Debug, Clone, Copy)]
pub(super) struct Through;

impl TlsConnect<Tapped> for Through {
    type Stream = Tapped;
    type Error = Infallible;
    type Future = Ready<Result<Tapped, Infallible>>;

    fn connect(self, stream: Tapped) -> Self::Future {
        ready(Ok(stream))
    }
}

/// A stream without TLS, which has nothing a password could be bound to.
struct Plain<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for Plain<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, out)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Plain<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Plain<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}
