//! Keeps writing to a Synapse while something else happens, and remembers what the server acknowledged, and when.
//!
//! The promise a backup makes: what was acknowledged before it began is in it. What came later may be in it or not,
//! but then in order: a message never without those the same sender sent before, a medium never half.

use super::client::SynapseClient;
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

/// One message, and the medium uploaded just before it if any, as acknowledged by the server.
#[derive(Clone, Debug)]
pub struct Entry {
    pub acknowledged: Instant,
    pub event_id: String,
    pub body: String,
    /// (media id, sha256)
    pub medium: Option<(String, String)>,
}

/// A running writer; stops when dropped.
pub struct Writer {
    room: String,
    token: String,
    stop: Arc<AtomicBool>,
    entries: Arc<Mutex<Vec<Entry>>>,
    thread: Option<JoinHandle<()>>,
}

/// What a writer wrote.
#[derive(Clone, Debug)]
pub struct Written {
    pub room: String,
    pub token: String,
    pub entries: Vec<Entry>,
}

impl Writer {
    /// Writes to `room` as the owner of `token`: messages without a pause, every fifth with a medium.
    pub fn start(client: SynapseClient, token: &str, room: &str) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let entries = Arc::new(Mutex::new(Vec::new()));
        let thread = std::thread::spawn({
            let (stop, entries, token, room) = (stop.clone(), entries.clone(), token.to_owned(), room.to_owned());
            move || {
                for number in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // The server may be stopped under the writer on purpose; what is not acknowledged is not promised.
                    let Ok(entry) = write_one(&client, &token, &room, number) else {
                        return;
                    };
                    entries.lock().expect("the writer's list").push(entry);
                }
            }
        });
        Writer {
            room: room.to_owned(),
            token: token.to_owned(),
            stop,
            entries,
            thread: Some(thread),
        }
    }

    /// Waits until at least `count` messages are acknowledged.
    pub fn wait_for(&self, count: usize) {
        while self.entries.lock().expect("the writer's list").len() < count {
            let alive = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
            assert!(
                alive,
                "the background writer ended before it had written {count} messages"
            );
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    pub fn entries_so_far(&self) -> usize {
        self.entries.lock().expect("the writer's list").len()
    }

    pub fn stop(mut self) -> Written {
        self.end();
        let entries = self.entries.lock().expect("the writer's list").clone();
        Written {
            room: self.room.clone(),
            token: self.token.clone(),
            entries,
        }
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "the background writer panicked"
            );
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

fn write_one(client: &SynapseClient, token: &str, room: &str, number: u64) -> Result<Entry, super::ApiError> {
    let medium = if number % 5 == 4 {
        let bytes: Vec<u8> = number
            .to_le_bytes()
            .iter()
            .copied()
            .cycle()
            .take(20_000 + (number as usize % 50_000))
            .collect();
        let sha256 = crate::sha256_hex(&bytes);
        Some((
            client.upload(token, "background", "application/octet-stream", bytes)?,
            sha256,
        ))
    } else {
        None
    };
    let body = format!(
        "background {number} \\N\t✓ {}",
        "lorem ipsum ".repeat(number as usize % 40)
    );
    let event_id = client.send(
        token,
        room,
        "m.room.message",
        &json!({"msgtype": "m.text", "body": body}),
    )?;
    Ok(Entry {
        acknowledged: Instant::now(),
        event_id,
        body,
        medium,
    })
}

impl Written {
    /// How many were acknowledged before `instant`.
    pub fn before(&self, instant: Instant) -> usize {
        self.entries
            .iter()
            .take_while(|entry| entry.acknowledged < instant)
            .count()
    }

    /// Checks a restored server against a backup that began at `begun`: everything acknowledged before is there, what
    /// came later is there without gaps, and no medium is damaged. Gives how many messages came back.
    #[track_caller]
    pub fn assert_consistent(&self, client: &SynapseClient, begun: Instant) -> usize {
        let promised = self.before(begun);
        let mut there = 0;
        let mut ended = false;
        for (index, entry) in self.entries.iter().enumerate() {
            match client.event(&self.token, &self.room, &entry.event_id) {
                Ok(event) => {
                    assert!(
                        !ended,
                        "message {index} came back although one before it did not: the snapshot has a gap"
                    );
                    assert_eq!(event["content"]["body"], json!(entry.body), "message {index} changed");
                    there += 1;
                    if let Some((id, sha256)) = &entry.medium {
                        let found = client.download(&self.token, id).unwrap_or_else(|e| {
                            panic!("medium of message {index} is in the database but not in the media store: {e}")
                        });
                        assert_eq!(
                            crate::sha256_hex(&found.bytes),
                            *sha256,
                            "medium of message {index} is damaged"
                        );
                    }
                }
                Err(e) if e.status == 404 => ended = true,
                Err(e) => panic!("message {index}: {e}"),
            }
        }
        assert!(
            there >= promised,
            "{promised} messages were acknowledged before the backup began, only {there} came back"
        );
        there
    }
}
