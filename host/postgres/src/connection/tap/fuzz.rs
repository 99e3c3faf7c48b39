//! What a tap makes of whatever a server says, held against what the messages are when they are read one by one.
//!
//! The first byte says which COPY it is and how what follows is read, the second in how many sizes of pieces it comes;
//! then come the sizes, then the server's bytes, or orders to make long messages of.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::server::{Server, message};
use super::{BINARY_END, BINARY_HEADER, Form, Tap, Tapped};
use futures_util::StreamExt;
use futures_util::task::noop_waker_ref;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};

/// No more is made of orders than this.
const MOST: usize = 6 << 20;

/// Messages made by orders of four bytes.
fn made(orders: &[u8]) -> Vec<u8> {
    let mut said = Vec::new();
    for order in orders.chunks_exact(4) {
        let length = match order[1] {
            long @ 0xf0.. => usize::from(long - 0xef) * (128 << 10) + usize::from(order[2]),
            short => usize::from(short % 16) * 256 + usize::from(order[2]),
        };
        if said.len() + length > MOST {
            break;
        }
        let mut contents = vec![order[3]; length];
        match order[0] % 8 {
            0 | 1 => {
                contents.push(b'\n');
                said.extend(message(b'd', &contents));
            }
            2 => said.extend(message(b'd', &contents)),
            3 => said.extend(message(b'd', BINARY_HEADER)),
            4 => said.extend(message(b'd', BINARY_END)),
            5 => said.extend(message(b'd', &[BINARY_HEADER, &contents].concat())),
            6 => said.extend(message(b'c', b"")),
            _ => said.extend(message(b'N', &contents)),
        }
    }
    said
}

/// What must come of it.
#[derive(Default)]
struct Expected {
    driver: Vec<u8>,
    rows: Vec<u8>,
    count: u64,
    /// Of a message that is cut off or wrong: these may have been handed on too.
    more: Vec<u8>,
    /// Once the driver has heard more than so many bytes, so many bytes of rows are on their way.
    before: Vec<(usize, usize)>,
    ended: bool,
    wrong: bool,
    /// A length that cannot be.
    impossible: bool,
    /// The last that was said is a whole message for the driver.
    settled: bool,
}

fn expected(mut said: &[u8], form: Form) -> Expected {
    let text = matches!(form, Form::Text);
    let mut e = Expected {
        ended: text,
        ..Expected::default()
    };
    let mut begun = text;
    while let Some((head, rest)) = said.split_first_chunk::<5>() {
        let length = i32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let Some(length) = length.checked_sub(4).and_then(|l| usize::try_from(l).ok()) else {
            e.impossible = true;
            break;
        };
        let whole = rest.len() >= length;
        let contents = &rest[..length.min(rest.len())];
        said = &rest[contents.len()..];
        e.settled = false;
        if head[0] != b'd' {
            e.before.push((e.driver.len(), e.rows.len()));
            e.driver.extend_from_slice(head);
            e.driver.extend_from_slice(contents);
            e.settled = whole;
            continue;
        }
        if e.wrong {
            continue;
        }
        let mut row = contents;
        if !begun {
            match contents.strip_prefix(BINARY_HEADER) {
                Some(after) => {
                    begun = true;
                    row = after;
                    if let Form::Binary { first: true, .. } = form {
                        e.rows.extend_from_slice(BINARY_HEADER);
                    }
                }
                None => {
                    e.wrong = whole || contents.len() >= BINARY_HEADER.len();
                    continue;
                }
            }
        }
        if !whole {
            e.more = row.to_vec();
            continue;
        }
        match form {
            Form::Text if row.last() == Some(&b'\n') => {
                e.count += 1;
                e.rows.extend_from_slice(row);
            }
            Form::Binary { .. } if row.is_empty() => {}
            Form::Binary { last, .. } if !e.ended && row == BINARY_END => {
                e.ended = true;
                if last {
                    e.rows.extend_from_slice(row);
                }
            }
            Form::Binary { .. } if !e.ended => {
                e.count += 1;
                e.rows.extend_from_slice(row);
            }
            _ => {
                e.wrong = true;
                e.more = row.to_vec();
            }
        }
    }
    e
}

/// What the reader of the rows has heard.
#[derive(Default)]
struct Heard {
    rows: Vec<u8>,
    count: u64,
    failed: bool,
}

pub(crate) fn fuzz_tap(data: &[u8]) {
    let Some((&[how, pieces], rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let (pieces, rest) = rest.split_at(rest.len().min(1 + usize::from(pieces % 8)));
    let mut pieces: Vec<usize> = pieces
        .iter()
        .map(|p| match p {
            0 => 0,
            p => (1 << (p % 18)) + usize::from(p / 18),
        })
        .collect();
    pieces.push(1 << 17);
    let form = match how % 5 {
        0 => Form::Text,
        n => Form::Binary {
            first: n % 2 == 1,
            last: n > 2,
        },
    };
    let said = match how & 0x80 {
        0 => rest.to_vec(),
        _ => made(rest),
    };
    // A reader that dawdles takes a batch only when the server is kept waiting.
    let dawdles = how & 0x40 != 0;
    let e = expected(&said, form);
    let server = Server::new(said, pieces);
    let asked = server.asked();
    let tap = Tap::default();
    let mut batches = tap.open(form).expect("a new tap opens");
    let mut stream = Tapped::new(Box::new(server), tap.clone());
    let mut cx = Context::from_waker(noop_waker_ref());
    let (mut driver, mut heard) = (Vec::new(), Heard::default());
    let mut take = |heard: &mut Heard, cx: &mut Context<'_>| match batches.poll_next_unpin(cx) {
        Poll::Ready(Some(Ok(batch))) => {
            heard.rows.extend_from_slice(&batch.bytes);
            heard.count += batch.rows;
            true
        }
        Poll::Ready(Some(Err(_))) => {
            heard.failed = true;
            true
        }
        Poll::Ready(None) | Poll::Pending => false,
    };
    let (mut buffer, mut turn, mut waited_at) = (vec![0; 9 << 10], 0, usize::MAX);
    let impossible = loop {
        turn += 1;
        let room = [1, 9 << 10, 64, 300][turn % 4];
        let mut out = ReadBuf::new(&mut buffer[..room]);
        match Pin::new(&mut stream).poll_read(&mut cx, &mut out) {
            Poll::Ready(Ok(())) if out.filled().is_empty() => break false,
            Poll::Ready(Ok(())) => {
                driver.extend_from_slice(out.filled());
                while !dawdles && take(&mut heard, &mut cx) {}
                let known = e.before.iter().rev().find(|(at, _)| driver.len() > *at);
                if let Some((_, rows)) = known.filter(|_| !e.wrong) {
                    // All of it is in the channel, so no more polling of the stream is needed.
                    while heard.rows.len() < *rows && take(&mut heard, &mut cx) {}
                    assert!(heard.rows.len() >= *rows, "the driver is ahead of its rows");
                }
            }
            Poll::Ready(Err(_)) => break true,
            Poll::Pending => {
                let now = asked.load(Ordering::Relaxed);
                assert!(take(&mut heard, &mut cx) || now != waited_at, "everybody waits");
                waited_at = now;
            }
        }
    };
    let settled = e.settled && !e.wrong && !impossible;
    let ended = tap.close();
    while take(&mut heard, &mut cx) {}
    assert_eq!(impossible, e.impossible);
    assert!(
        driver == e.driver,
        "the driver hears {} bytes, not {}",
        driver.len(),
        e.driver.len()
    );
    let all = [e.rows.as_slice(), &e.more].concat();
    assert!(all.starts_with(&heard.rows), "the rows are others");
    assert!(heard.count <= e.count);
    assert!(e.wrong || !heard.failed, "what is right is called wrong");
    if settled {
        assert_eq!((heard.rows.len(), heard.count, ended), (e.rows.len(), e.count, e.ended));
    } else if e.wrong && e.settled && !impossible {
        assert!(heard.failed, "what is wrong is not said");
    }
}
