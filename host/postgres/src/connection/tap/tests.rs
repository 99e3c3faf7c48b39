//! Rows come whole and at once, and all the rest stays the driver's, in whatever pieces it is heard.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::server::{Server, message};
use super::*;
use futures_util::StreamExt;
use tokio::io::AsyncReadExt;

fn row(contents: &[u8]) -> Vec<u8> {
    message(COPY_DATA, contents)
}

struct Heard {
    driver: io::Result<Vec<u8>>,
    bytes: Vec<u8>,
    rows: u64,
    batches: usize,
    why: Option<&'static str>,
    ended: bool,
}

/// What comes of it when a tap is open; the reader dawdles.
async fn hear(said: &[Vec<u8>], pieces: &[usize], form: Form) -> Heard {
    let tap = Tap::default();
    let mut batches = tap.open(form).unwrap();
    let said = Server::new(said.concat(), pieces.to_vec());
    let mut stream = Tapped::new(Box::new(said), tap.clone());
    let driver = async {
        let mut all = Vec::new();
        let read = stream.read_to_end(&mut all).await;
        let ended = tap.close();
        (read.map(|_| all), ended)
    };
    let reader = async {
        let (mut bytes, mut rows, mut count, mut why) = (Vec::new(), 0, 0, None);
        while let Some(batch) = batches.next().await {
            tokio::task::yield_now().await;
            match batch {
                Ok(batch) => {
                    assert!(batch.bytes.len() <= LONG + BATCH + 2 * READ, "{}", batch.bytes.len());
                    bytes.extend_from_slice(&batch.bytes);
                    rows += batch.rows;
                    count += 1;
                }
                Err(e) => why = Some(e),
            }
        }
        (bytes, rows, count, why)
    };
    let ((driver, ended), (bytes, rows, batches, why)) = tokio::join!(driver, reader);
    Heard {
        driver,
        bytes,
        rows,
        batches,
        why,
        ended,
    }
}

const PIECES: [&[usize]; 5] = [
    &[1 << 20],
    &[1, 0, 2],
    &[3, 7, 0, 65_536],
    &[4096],
    &[5, 131_072, 0, 0, 1],
];

#[tokio::test]
async fn rows_come_whole_and_the_rest_is_the_drivers() {
    let rows: Vec<Vec<u8>> = (0..3000u32)
        .map(|n| [vec![b'a' + (n % 26) as u8; (n * 37 % 500) as usize], b"\n".to_vec()].concat())
        .collect();
    let notice = message(b'N', b"between");
    let mut said = vec![message(b'1', b""), message(b'H', &[0; 7])];
    for (n, contents) in rows.iter().enumerate() {
        said.push(row(contents));
        if n == 1500 {
            said.push(notice.clone());
        }
    }
    let after = [message(b'c', b""), message(b'C', b"COPY 3000\0"), message(b'Z', b"I")];
    said.extend(after.clone());
    let others = [message(b'1', b""), message(b'H', &[0; 7]), notice, after.concat()].concat();
    for pieces in PIECES {
        let heard = hear(&said, pieces, Form::Text).await;
        assert_eq!(heard.driver.unwrap(), others);
        assert!(heard.bytes == rows.concat() && heard.rows == 3000 && heard.ended);
        assert_eq!(heard.why, None);
        assert!(heard.batches > 2, "{}", heard.batches);
    }
}

#[tokio::test]
async fn a_long_row_comes_in_pieces() {
    let long = [vec![b'x'; 6 << 20], b"\n".to_vec()].concat();
    let said = [row(b"a\n"), row(&long), row(b"b\n"), message(b'c', b"")];
    for pieces in [&[1 << 20][..], &[70_000, 0]] {
        let heard = hear(&said, pieces, Form::Text).await;
        assert!(heard.bytes == [b"a\n".to_vec(), long.clone(), b"b\n".to_vec()].concat());
        assert!(heard.rows == 3 && heard.batches > 3 && heard.ended);
    }
}

/// A batch that a slow reader lets grow long is handed on when the next message begins, which may be the end mark.
#[tokio::test]
async fn an_end_mark_is_seen_behind_a_batch_that_had_to_wait() {
    let long = vec![7u8; LONG];
    let both = Form::Binary {
        first: true,
        last: false,
    };
    for rows in 1..9 {
        let mut said = vec![row(BINARY_HEADER)];
        said.extend((0..rows).map(|_| row(&long)));
        said.extend([row(BINARY_END), message(b'c', b"")]);
        let heard = hear(&said, &[1 << 20], both).await;
        assert_eq!((heard.rows, heard.why, heard.ended), (rows, None, true));
        assert!(heard.bytes == [BINARY_HEADER.to_vec(), long.repeat(rows as usize)].concat());
    }
}

#[tokio::test]
async fn parts_in_binary_join_to_one() {
    let first_row = b"\0\x01\0\0\0\x02hi".to_vec();
    let with_row = [BINARY_HEADER, &first_row].concat();
    let end = row(BINARY_END);
    let whole = [BINARY_HEADER, &first_row, BINARY_END].concat();
    for said in [
        vec![row(BINARY_HEADER), row(&first_row), end.clone(), message(b'c', b"")],
        vec![row(&with_row), end.clone(), message(b'c', b"")],
    ] {
        for pieces in PIECES {
            for (first, last, wanted) in [
                (true, true, &whole[..]),
                (true, false, &whole[..whole.len() - 2]),
                (false, true, &whole[BINARY_HEADER.len()..]),
                (false, false, &first_row),
            ] {
                let heard = hear(&said, pieces, Form::Binary { first, last }).await;
                assert_eq!((heard.bytes.as_slice(), heard.rows, heard.why), (wanted, 1, None));
                assert!(heard.ended);
            }
        }
    }
    // No rows at all: header and mark may share a message.
    let empty = [row(&[BINARY_HEADER, BINARY_END].concat()), message(b'c', b"")];
    let heard = hear(
        &empty,
        &[3],
        Form::Binary {
            first: false,
            last: false,
        },
    )
    .await;
    assert!(heard.bytes.is_empty() && heard.rows == 0 && heard.ended);
}

#[tokio::test]
async fn what_is_wrong_is_said_and_the_driver_goes_on() {
    let both = Form::Binary {
        first: true,
        last: true,
    };
    let head = row(BINARY_HEADER);
    for (said, form, wanted) in [
        (vec![row(b"no end")], Form::Text, "COPY sent a row without its end"),
        (vec![row(b"")], Form::Text, "COPY sent a row without its end"),
        (vec![row(&[7; 40])], both, "COPY began with an unknown header"),
        (vec![row(b"PGCOPY\n")], both, "COPY began with an unknown header"),
        (
            vec![head.clone(), row(BINARY_END), row(b"more")],
            both,
            "COPY went on after its end mark",
        ),
    ] {
        let all = [said, vec![row(b"x\n"), message(b'c', b"")]].concat();
        let heard = hear(&all, &[1, 0, 9], form).await;
        assert_eq!(heard.why, Some(wanted));
        assert_eq!(heard.driver.unwrap(), message(b'c', b""));
    }
    let heard = hear(&[head, row(b"\0\0"), message(b'c', b"")], &[6], both).await;
    assert!(!heard.ended, "binary rows without their end mark");
    for length in [0, 3, u32::MAX] {
        let impossible = [&b"d"[..], &length.to_be_bytes(), b"123456"].concat();
        let heard = hear(&[impossible], &[2], Form::Text).await;
        assert!(heard.driver.unwrap_err().to_string().contains("impossible length"));
    }
}

#[tokio::test]
async fn a_tap_that_was_left_stays_shut_and_its_rows_are_the_drivers() {
    let tap = Tap::default();
    drop(tap.open(Form::Text).unwrap());
    assert!(tap.open(Form::Text).is_none(), "it is open");
    tap.leave();
    assert!(tap.open(Form::Text).is_none(), "it was left");
    let said = [row(b"a\n"), message(b'Z', b"I")].concat();
    let stream = Server::new(said.clone(), vec![4]);
    let (mut stream, mut heard) = (Tapped::new(Box::new(stream), tap), Vec::new());
    stream.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, said);
}
