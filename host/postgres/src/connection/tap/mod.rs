//! Rows past the driver.
//!
//! The server sends a COPY as one message a row, and the driver hands each on as a value of its own: at a hundred bytes
//! a row that costs more than reading the socket. So every connection runs over a [`Tapped`] stream. It passes on what
//! the server says as it is, byte for byte, except while a [`Tap`] is open: then the contents of `CopyData` messages
//! are taken out, counted, checked and gathered into batches, and the driver sees a COPY that sends nothing.
//!
//! Promised: batches hold every byte of every row, in order; the last one is handed on before the driver learns of the
//! COPY's end; a reader that is slow slows the server. A tap that was left in the middle of a COPY is never opened again.

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzz;
#[cfg(any(test, feature = "fuzzing"))]
mod server;
#[cfg(test)]
mod tests;

use bytes::{Buf, BytesMut};
use futures_channel::mpsc;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

/// Rows are handed on in batches of about this size, in bytes.
pub(crate) const BATCH: usize = 256 << 10;
/// A row longer than this is handed on in pieces.
const LONG: usize = 4 * BATCH;
/// Batches on their way; one more is in the making.
const UNDER_WAY: usize = 1;
/// Bytes asked of the socket at a time while a tap is open.
const READ: usize = 128 << 10;
const COPY_DATA: u8 = b'd';
/// Tag and length.
const HEADER: usize = 5;
pub(super) const BINARY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
pub(super) const BINARY_END: &[u8] = b"\xff\xff";

/// What a COPY's messages are, and what of it is wanted. In binary format each COPY has a header and an end mark of
/// its own; of all parts of a table only the first keeps the header and only the last the mark, so that the parts in
/// order are one stream that `COPY … FROM` takes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    Text,
    Binary { first: bool, last: bool },
}

/// Some rows.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub bytes: BytesMut,
    /// Rows that end in it.
    pub rows: u64,
}

type Sent = Result<Batch, &'static str>;

/// The session's end of a tapped stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Tap(Arc<Mutex<State>>);

#[derive(Debug, Default)]
enum State {
    #[default]
    Closed,
    Open(Gather),
    /// Closed before its COPY was at its end: rows of it may still come.
    Left,
}

impl Tap {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on rows come out of what is returned. `None`: it is open, or was left in the middle of a COPY.
    pub fn open(&self, form: Form) -> Option<mpsc::Receiver<Sent>> {
        let mut state = self.state();
        match *state {
            State::Closed => {
                let (sender, receiver) = mpsc::channel(UNDER_WAY);
                *state = State::Open(Gather::new(sender, form));
                Some(receiver)
            }
            State::Open(_) | State::Left => None,
        }
    }

    /// The COPY is at its end. Whether its rows were, too.
    pub fn close(&self) -> bool {
        match std::mem::take(&mut *self.state()) {
            State::Open(gather) => gather.ended && gather.batch.bytes.is_empty(),
            State::Closed | State::Left => false,
        }
    }

    /// The COPY is left in its middle.
    pub fn leave(&self) {
        *self.state() = State::Left;
    }
}

/// Rows on their way into batches.
#[derive(Debug)]
struct Gather {
    sender: mpsc::Sender<Sent>,
    form: Form,
    batch: Batch,
    /// Where in the batch the message begins that is being read; `None` once a piece of it was handed on.
    from: Option<usize>,
    header: bool,
    ended: bool,
    broken: bool,
}

impl Gather {
    fn new(sender: mpsc::Sender<Sent>, form: Form) -> Self {
        let plain = matches!(form, Form::Text);
        Gather {
            sender,
            form,
            batch: Batch::default(),
            from: Some(0),
            header: plain,
            ended: plain,
            broken: false,
        }
    }

    fn begin(&mut self) {
        self.from = Some(self.batch.bytes.len());
    }

    fn payload(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        if self.batch.bytes.capacity() == 0 {
            self.batch.bytes.reserve(BATCH + READ);
        }
        self.batch.bytes.extend_from_slice(bytes);
        if let (Form::Binary { first, .. }, false) = (self.form, self.header)
            && let Some((head, _)) = self.batch.bytes.split_at_checked(BINARY_HEADER.len())
        {
            if head != BINARY_HEADER {
                return Err("COPY began with an unknown header");
            }
            self.header = true;
            match first {
                true => self.from = Some(BINARY_HEADER.len()),
                false => self.batch.bytes.advance(BINARY_HEADER.len()),
            }
        }
        Ok(())
    }

    /// A message is whole.
    fn end(&mut self) -> Result<(), &'static str> {
        if !self.header {
            return Err("COPY began with an unknown header");
        }
        // Of a message that was handed on in part the rest is no end mark and not nothing.
        let message = self.from.map(|from| self.batch.bytes.get(from..).unwrap_or_default());
        match self.form {
            Form::Text => match message.unwrap_or(&self.batch.bytes).last() {
                Some(b'\n') => self.batch.rows += 1,
                _ => return Err("COPY sent a row without its end"),
            },
            // The header may come alone, or with the first row.
            Form::Binary { .. } if message.is_some_and(<[u8]>::is_empty) => {}
            Form::Binary { .. } if self.ended => return Err("COPY went on after its end mark"),
            Form::Binary { last, .. } if message == Some(BINARY_END) => {
                self.ended = true;
                if let (false, Some(from)) = (last, self.from) {
                    self.batch.bytes.truncate(from);
                }
            }
            Form::Binary { .. } => self.batch.rows += 1,
        }
        Ok(())
    }

    fn is_full(&self, whole: bool) -> bool {
        let enough = match whole {
            true => BATCH,
            false => LONG,
        };
        self.batch.bytes.len() >= enough
    }

    /// Hands on what was gathered.
    fn poll_hand_on(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.batch.bytes.is_empty() && self.batch.rows == 0 {
            return Poll::Ready(());
        }
        if ready!(self.sender.poll_ready(cx)).is_err() || self.broken {
            // Nobody reads any more.
            self.broken = true;
            self.batch = Batch::default();
            return Poll::Ready(());
        }
        // A message of which nothing was gathered yet begins the next batch.
        self.from = self.from.filter(|from| *from == self.batch.bytes.len()).map(|_| 0);
        let full = std::mem::take(&mut self.batch);
        if self.sender.start_send(Ok(full)).is_err() {
            self.broken = true;
        }
        Poll::Ready(())
    }

    fn poll_fail(&mut self, why: &'static str, cx: &mut Context<'_>) -> Poll<()> {
        if !self.broken && ready!(self.sender.poll_ready(cx)).is_ok() {
            let _ = self.sender.start_send(Err(why));
        }
        self.broken = true;
        self.batch = Batch::default();
        Poll::Ready(())
    }
}

/// Where in the server's messages the stream is.
#[derive(Debug, Clone, Copy)]
enum At {
    /// Between messages.
    Header,
    /// So many bytes are the driver's.
    Driver(usize),
    /// So many bytes are a row's.
    Row(usize),
    /// A row's message is whole and not yet looked at.
    RowEnd,
    /// A row is wrong, which is to be said; so many bytes of it are left.
    Broken(&'static str, usize),
}

/// See the module's page.
pub(super) struct Tapped {
    inner: Box<dyn TlsStream + Send + Unpin>,
    tap: Tap,
    at: At,
    /// Read and not yet passed on.
    buffer: BytesMut,
}

impl Tapped {
    pub fn new(inner: Box<dyn TlsStream + Send + Unpin>, tap: Tap) -> Self {
        Tapped {
            inner,
            tap,
            at: At::Header,
            buffer: BytesMut::new(),
        }
    }

    /// Works through what is in the buffer. Ready: something was passed on, or more must be read.
    fn poll_work(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.tap.state();
        loop {
            let open = match &mut *state {
                State::Open(gather) => Some(gather),
                // Rows of a COPY that was left are passed on: the driver drops them.
                State::Closed | State::Left => None,
            };
            match (self.at, open) {
                (At::Header, open) => {
                    let Some((tag, length)) = header(&self.buffer)? else {
                        break;
                    };
                    match open {
                        Some(gather) if tag == COPY_DATA => {
                            self.buffer.advance(HEADER);
                            gather.begin();
                            self.at = At::Row(length);
                        }
                        Some(gather) => {
                            // The driver must not learn of the end before all rows are on their way.
                            ready!(gather.poll_hand_on(cx));
                            self.at = At::Driver(HEADER + length);
                        }
                        None => self.at = At::Driver(HEADER + length),
                    }
                }
                (At::Driver(0), _) => self.at = At::Header,
                (At::Driver(left), _) => {
                    let now = left.min(out.remaining()).min(self.buffer.len());
                    if now == 0 {
                        break;
                    }
                    out.put_slice(self.buffer.get(..now).unwrap_or_default());
                    self.buffer.advance(now);
                    self.at = At::Driver(left - now);
                }
                (At::Row(0), _) => self.at = At::RowEnd,
                (At::Row(left), open) => {
                    let now = left.min(self.buffer.len());
                    if now == 0 {
                        break;
                    }
                    let mut taken = Ok(());
                    if let Some(gather) = open.filter(|gather| !gather.broken) {
                        if gather.is_full(false) {
                            ready!(gather.poll_hand_on(cx));
                        }
                        taken = gather.payload(self.buffer.get(..now).unwrap_or_default());
                    }
                    self.buffer.advance(now);
                    self.at = match taken {
                        Ok(()) => At::Row(left - now),
                        Err(why) => At::Broken(why, left - now),
                    };
                }
                (At::RowEnd, Some(gather)) => match gather.broken {
                    true => self.at = At::Header,
                    false => match gather.end() {
                        Ok(()) => {
                            self.at = At::Header;
                            if gather.is_full(true) {
                                ready!(gather.poll_hand_on(cx));
                            }
                        }
                        Err(why) => self.at = At::Broken(why, 0),
                    },
                },
                (At::Broken(why, left), Some(gather)) => {
                    ready!(gather.poll_fail(why, cx));
                    self.at = At::Row(left);
                }
                (At::Broken(_, left), None) => self.at = At::Row(left),
                (At::RowEnd, None) => self.at = At::Header,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Tag and length of contents of the message the bytes begin with, once they hold its header.
fn header(bytes: &[u8]) -> io::Result<Option<(u8, usize)>> {
    let Some(&[tag, a, b, c, d]) = bytes.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    // The length counts itself.
    match i32::from_be_bytes([a, b, c, d]).checked_sub(4).map(usize::try_from) {
        Some(Ok(length)) => Ok(Some((tag, length))),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the server sent a message of an impossible length",
        )),
    }
}

impl AsyncRead for Tapped {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        loop {
            let worked = this.poll_work(cx, out);
            // What was passed on counts, even if what comes after it has to wait.
            if out.filled().len() > before || out.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            ready!(worked)?;
            let open = matches!(*this.tap.state(), State::Open(_));
            let wanted = match open {
                true => READ,
                false => 8 << 10,
            };
            this.buffer.reserve(wanted);
            let inner = Pin::new(&mut this.inner);
            let read = ready!(tokio_util::io::poll_read_buf(inner, cx, &mut this.buffer))?;
            if read == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl TlsStream for Tapped {
    fn channel_binding(&self) -> ChannelBinding {
        self.inner.channel_binding()
    }
}
