//! A server of a script, for the tests and the fuzzer of the tap.
#![allow(clippy::expect_used, clippy::indexing_slicing)]

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

/// Has said all it has to say, and is heard in pieces of given sizes; at size 0 it keeps one waiting once.
pub(super) struct Server {
    bytes: Vec<u8>,
    at: usize,
    pieces: Vec<usize>,
    asked: Arc<AtomicUsize>,
}

impl Server {
    /// One of the sizes at least is more than 0.
    pub fn new(bytes: Vec<u8>, pieces: Vec<usize>) -> Server {
        assert!(pieces.iter().any(|p| *p > 0), "nothing would ever come");
        Server {
            bytes,
            at: 0,
            pieces,
            asked: Arc::default(),
        }
    }

    /// How often it was asked so far.
    pub fn asked(&self) -> Arc<AtomicUsize> {
        self.asked.clone()
    }
}

impl AsyncRead for Server {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        let size = self.pieces[asked % self.pieces.len()];
        let left = self.bytes.len() - self.at;
        if size == 0 && left > 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let now = size.max(1).min(out.remaining()).min(left);
        out.put_slice(&self.bytes[self.at..self.at + now]);
        self.at += now;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Server {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl TlsStream for Server {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

/// A message of the protocol.
pub(super) fn message(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = u32::try_from(contents.len() + 4).expect("messages of tests are short");
    [&[tag], &length.to_be_bytes()[..], contents].concat()
}
