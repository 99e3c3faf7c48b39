//! Fills a Synapse through its API with one of everything a backup could lose, and checks that all of it is there.
//!
//! `Filled` is the memory of what the server acknowledged; `assert_all_there` asks a server for each piece and compares
//! contents, not counts. It changes nothing on the server except that it logs in, so it can be called before a backup
//! (to prove the check itself) and after a restore.

use super::client::{Session, SynapseClient};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One user and a device of theirs.
#[derive(Clone, Debug)]
pub struct Account {
    pub localpart: String,
    pub password: String,
    pub session: Session,
    pub display_name: String,
    /// What /keys/query said of the device.
    pub device_keys: Value,
    /// The fallback key uploaded for the device.
    pub fallback_key: (String, Value),
    /// One-time keys on the server when filling was over; must be gone after a restore.
    pub one_time_keys: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Room {
    pub id: String,
    pub name: String,
    pub topic: String,
    /// Index of the account that made it.
    pub creator: usize,
    /// Indexes of all members, the creator too.
    pub members: Vec<usize>,
}

/// What became of a message after it was sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    Kept,
    Redacted,
    /// Edited: the event id and new body of the edit.
    Edited(String, Value),
}

#[derive(Clone, Debug)]
pub struct Message {
    pub room: usize,
    pub sender: usize,
    pub event_id: String,
    pub kind: String,
    pub content: Value,
    pub fate: Fate,
}

#[derive(Clone, Debug)]
pub struct Medium {
    pub media_id: String,
    pub owner: usize,
    pub content_type: String,
    pub sha256: String,
    pub has_thumbnail: bool,
}

#[derive(Clone, Debug)]
pub struct KeyBackup {
    pub owner: usize,
    pub version: String,
    pub auth_data: Value,
    pub keys: Value,
}

/// A to-device message nobody has fetched yet: a room key lost for ever if the backup loses it.
#[derive(Clone, Debug)]
pub struct ToDevice {
    pub recipient: usize,
    pub content: Value,
}

/// All that `fill` made.
#[derive(Clone, Debug, Default)]
pub struct Filled {
    pub accounts: Vec<Account>,
    pub rooms: Vec<Room>,
    pub messages: Vec<Message>,
    pub media: Vec<Medium>,
    pub key_backups: Vec<KeyBackup>,
    /// (account, type, content)
    pub account_data: Vec<(usize, String, Value)>,
    pub to_device: Vec<ToDevice>,
    /// Tokens of sessions ended before the backup: must be refused ever after.
    pub dead_tokens: Vec<String>,
    /// A word that is in exactly one message.
    pub search_word: String,
}

/// Text that breaks careless dumps: COPY's escapes, CSV, JSON in JSON, every width of UTF-8, both directions, sizes.
pub fn awkward_texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "plain",
        "",
        " leading and trailing ",
        "tab\there, newline\nthere, return\rand all\r\n\t\n",
        r"backslashes \ \\ \\\ \n \t \x41 \101 \b \f \v",
        r"\N",
        r"\.",
        "\\.\n\\.\n\\N\n",
        "quote ' double \" backtick ` dollar $$ $tag$ semicolon ; -- comment /* */",
        r#"{"body":"json in json","nested":{"quote":"\"","slash":"\\","null":null,"u":"\u0041"}}"#,
        "comma,\"quoted, csv\",'single',\ttab",
        "Grüße, naïve café, Ångström, Dvořák, İstanbul ß ẞ",
        "العربية مع English داخل النص ١٢٣",
        "עִבְרִית \u{202e}reversed\u{202c} \u{200f}mark",
        "中文 日本語 한국어 ภาษาไทย हिन्दी தமிழ்",
        "👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 \u{1F9D1}\u{200D}\u{1F680} ❤️‍🔥",
        "e\u{301} combining \u{0}".trim_end_matches('\u{0}'),
        "zero\u{200b}width\u{feff}bom\u{2060}joiner",
        "line\u{2028}separator paragraph\u{2029}separator next\u{85}line",
        "control \u{1} \u{7} \u{8} \u{b} \u{c} \u{1b}[31mred\u{1b}[0m \u{7f}",
        "highest \u{10ffff} \u{fffd} \u{ffff} \u{e000}",
        "<b>html</b> &amp; <script>alert(1)</script> %s %d %00 ${HOME} $(id) `id`",
        "z\u{334}\u{321}\u{353}a\u{335}\u{35d}\u{31d}l\u{336}\u{344}g\u{338}\u{357}o\u{334}\u{33f}",
    ]
    .into_iter()
    .map(str::to_owned)
    .collect();
    // Events may have 65,536 bytes as canonical JSON, all told.
    texts.push("x".repeat(63_000));
    texts.push("\\\t\"".repeat(10_000));
    texts.push("語".repeat(20_500));
    texts
}

/// Fills an empty server.
pub fn fill(client: &SynapseClient) -> Filled {
    let mut filled = Filled {
        search_word: "Quittenschnaps".to_owned(),
        ..Filled::default()
    };
    add_accounts(client, &mut filled);
    add_rooms(client, &mut filled);
    add_messages(client, &mut filled);
    add_media(client, &mut filled);
    add_keys(client, &mut filled);
    add_personal(client, &mut filled);
    filled
}

fn add_accounts(client: &SynapseClient, filled: &mut Filled) {
    let people = [
        ("alice", "correct horse battery staple", "Alice 🐇"),
        ("bob", "p'a\"s\\s wörd ✓", "Bob \\N \t tab"),
        ("carol", "карол-пароль", "كارول"),
        ("dave.o=b_c-1", "simple", "Dave <dave@example.org>"),
    ];
    for (index, (localpart, password, display_name)) in people.into_iter().enumerate() {
        let session = client.register(localpart, password, index == 0).expect("registering");
        client
            .set_display_name(&session.token, &session.user_id, display_name)
            .expect("setting a display name");
        filled.accounts.push(Account {
            localpart: localpart.to_owned(),
            password: password.to_owned(),
            session,
            display_name: display_name.to_owned(),
            device_keys: Value::Null,
            fallback_key: (String::new(), Value::Null),
            one_time_keys: Vec::new(),
        });
    }
    let over = client
        .login("bob", &filled.accounts[1].password)
        .expect("a second login");
    client.logout(&over.token).expect("logging out");
    filled.dead_tokens.push(over.token);
}

fn add_rooms(client: &SynapseClient, filled: &mut Filled) {
    let everyone: Vec<usize> = (0..filled.accounts.len()).collect();
    let plans = [
        ("Everyone \u{1F389}", "All of us\nin two lines", 0, everyone),
        ("Two of us", "tab\there", 1, vec![1, 2]),
        ("Alone \\N", "\\.", 2, vec![2]),
    ];
    for (name, topic, creator, members) in plans {
        let token = &filled.accounts[creator].session.token;
        let id = client
            .create_room(
                token,
                &json!({"name": name, "topic": topic, "preset": "public_chat", "visibility": "public"}),
            )
            .expect("creating a room");
        for member in &members {
            if *member != creator {
                client
                    .join(&filled.accounts[*member].session.token, &id)
                    .expect("joining");
            }
        }
        filled.rooms.push(Room {
            id,
            name: name.to_owned(),
            topic: topic.to_owned(),
            creator,
            members,
        });
    }
}

fn add_messages(client: &SynapseClient, filled: &mut Filled) {
    let mut contents: Vec<(String, Value)> = awkward_texts()
        .into_iter()
        .map(|body| ("m.room.message".to_owned(), json!({"msgtype": "m.text", "body": body})))
        .collect();
    contents.push((
        "m.room.message".to_owned(),
        json!({"msgtype": "m.text", "body": format!("only here: {}", filled.search_word)}),
    ));
    contents.push(("m.room.encrypted".to_owned(), json!({"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgA".repeat(300), "session_id": "s", "sender_key": "k", "device_id": "d"})));
    contents.push((
        "org.example.odd\"kind".to_owned(),
        json!({"deep": {"a": [1, -1, 9_007_199_254_740_991_i64, null, true, "\u{7f}"]}}),
    ));
    for (index, (kind, content)) in contents.into_iter().enumerate() {
        let room = index % filled.rooms.len();
        let members = &filled.rooms[room].members;
        let sender = members[index % members.len()];
        send(client, filled, room, sender, &kind, content);
    }
    // Edited and redacted ones.
    for body in ["to be edited", "to be edited, \\N and back"] {
        let message = send(
            client,
            filled,
            0,
            1,
            "m.room.message",
            json!({"msgtype": "m.text", "body": body}),
        );
        let new = json!({"msgtype": "m.text", "body": format!("edited: {body} ✏️")});
        let edit = json!({
            "msgtype": "m.text", "body": format!("* edited: {body}"), "m.new_content": new,
            "m.relates_to": {"rel_type": "m.replace", "event_id": filled.messages[message].event_id},
        });
        let id = client
            .send(
                &filled.accounts[1].session.token,
                &filled.rooms[0].id,
                "m.room.message",
                &edit,
            )
            .expect("editing");
        filled.messages[message].fate = Fate::Edited(id, edit);
    }
    for body in ["to be redacted: a secret", "and this too"] {
        let message = send(
            client,
            filled,
            0,
            2,
            "m.room.message",
            json!({"msgtype": "m.text", "body": body}),
        );
        client
            .redact(
                &filled.accounts[2].session.token,
                &filled.rooms[0].id,
                &filled.messages[message].event_id,
            )
            .expect("redacting");
        filled.messages[message].fate = Fate::Redacted;
    }
}

fn send(client: &SynapseClient, filled: &mut Filled, room: usize, sender: usize, kind: &str, content: Value) -> usize {
    let event_id = client
        .send(
            &filled.accounts[sender].session.token,
            &filled.rooms[room].id,
            kind,
            &content,
        )
        .unwrap_or_else(|e| panic!("sending {kind}: {e}"));
    filled.messages.push(Message {
        room,
        sender,
        event_id,
        kind: kind.to_owned(),
        content,
        fate: Fate::Kept,
    });
    filled.messages.len() - 1
}

fn add_media(client: &SynapseClient, filled: &mut Filled) {
    let mut noise = vec![0_u8; 3 << 20];
    for chunk in noise.chunks_mut(32) {
        chunk.copy_from_slice(&rand::random::<[u8; 32]>()[..chunk.len()]);
    }
    let picture = include_bytes!("picture.png").to_vec();
    let files: [(&str, &str, Vec<u8>, bool); 6] = [
        ("picture.png", "image/png", picture, true),
        ("noise.bin", "application/octet-stream", noise, false),
        ("one byte", "application/octet-stream", vec![0], false),
        ("zeros", "application/octet-stream", vec![0; 1 << 20], false),
        (
            "ünïcode 🎉 name.txt",
            "text/plain",
            "text with \0 inside\r\n".repeat(100).into_bytes(),
            false,
        ),
        ("all bytes", "application/octet-stream", (0..=255).collect(), false),
    ];
    for (index, (name, content_type, bytes, has_thumbnail)) in files.into_iter().enumerate() {
        let owner = index % filled.accounts.len();
        let sha256 = crate::sha256_hex(&bytes);
        let token = &filled.accounts[owner].session.token;
        let media_id = client.upload(token, name, content_type, bytes).expect("uploading");
        if has_thumbnail {
            client.thumbnail(token, &media_id).expect("a thumbnail of the picture");
        }
        filled.media.push(Medium {
            media_id,
            owner,
            content_type: content_type.to_owned(),
            sha256,
            has_thumbnail,
        });
    }
}

fn add_keys(client: &SynapseClient, filled: &mut Filled) {
    for index in 0..filled.accounts.len() {
        let Session {
            user_id,
            token,
            device_id,
        } = filled.accounts[index].session.clone();
        let signatures = json!({&user_id: {format!("ed25519:{device_id}"): "c2lnbmF0dXJl"}});
        let one_time: BTreeMap<String, Value> = (0..10)
            .map(|n| {
                (
                    format!("signed_curve25519:AAA{n}"),
                    json!({"key": format!("oneTimeKey{index}x{n}"), "signatures": signatures}),
                )
            })
            .collect();
        let fallback = json!({"key": format!("fallbackKey{index}"), "fallback": true, "signatures": signatures});
        let body = json!({
            "device_keys": {
                "user_id": user_id, "device_id": device_id,
                "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
                "keys": {
                    format!("curve25519:{device_id}"): format!("curve{index}"),
                    format!("ed25519:{device_id}"): format!("ed{index}"),
                },
                "signatures": signatures,
            },
            "one_time_keys": one_time,
            "fallback_keys": {"signed_curve25519:FALL": fallback},
        });
        client.upload_keys(&token, &body).expect("uploading keys");
        let account = &mut filled.accounts[index];
        account.fallback_key = ("signed_curve25519:FALL".to_owned(), fallback);
        account.one_time_keys = one_time.into_keys().collect();
        account.device_keys =
            client.query_keys(&token, &user_id).expect("asking for keys")["device_keys"][&user_id][&device_id].clone();
        let auth_data = json!({"public_key": format!("backupPublicKey{index}"), "signatures": signatures});
        let version = client
            .create_key_backup(&token, &auth_data)
            .expect("creating a key backup");
        let keys = key_backup_content(filled, index);
        client
            .put_key_backup(&token, &version, &keys)
            .expect("filling a key backup");
        filled.key_backups.push(KeyBackup {
            owner: index,
            version,
            auth_data,
            keys,
        });
    }
    // One key of Alice's is taken before the backup: were the table restored, the next claim would give it again.
    let alice = filled.accounts[0].session.clone();
    let claimed = client
        .claim_key(&filled.accounts[1].session.token, &alice.user_id, &alice.device_id)
        .expect("claiming a key")
        .expect("Alice has one-time keys");
    filled.accounts[0].one_time_keys.retain(|key| *key != claimed.0);
}

fn key_backup_content(filled: &Filled, index: usize) -> Value {
    let mut rooms = serde_json::Map::new();
    for room in &filled.rooms {
        let sessions: serde_json::Map<String, Value> = (0..8)
            .map(|n| {
                let data = json!({"ciphertext": format!("{index}/{n}/").repeat(40), "mac": "bWFj", "ephemeral": "ZXBo"});
                let key = json!({"first_message_index": n, "forwarded_count": 0, "is_verified": n % 2 == 0, "session_data": data});
                (format!("session{index}+{n}/="), key)
            })
            .collect();
        rooms.insert(room.id.clone(), json!({"sessions": sessions}));
    }
    json!({"rooms": rooms})
}

fn add_personal(client: &SynapseClient, filled: &mut Filled) {
    for index in 0..filled.accounts.len() {
        let Session { user_id, token, .. } = filled.accounts[index].session.clone();
        for (kind, content) in [
            ("m.secret_storage.default_key", json!({"key": format!("ssss{index}")})),
            (
                "m.secret_storage.key.k",
                json!({"algorithm": "m.secret_storage.v1.aes-hmac-sha2", "iv": "aXY", "mac": "bWFj"}),
            ),
            (
                "org.example.\"odd\\",
                json!({"body": "\\N\t\n", "list": [1, 2, {"a": null}]}),
            ),
        ] {
            client
                .set_account_data(&token, &user_id, kind, &content)
                .expect("setting account data");
            filled.account_data.push((index, kind.to_owned(), content));
        }
    }
    for index in [1, 2] {
        let to = filled.accounts[index].session.clone();
        let content =
            json!({"algorithm": "m.olm.v1.curve25519-aes-sha2", "ciphertext": format!("room key for {index} \\N")});
        client
            .send_to_device(
                &filled.accounts[0].session.token,
                "m.room.encrypted",
                &to.user_id,
                &to.device_id,
                &content,
            )
            .expect("sending to a device");
        filled.to_device.push(ToDevice {
            recipient: index,
            content,
        });
    }
}

impl Filled {
    pub fn token(&self, account: usize) -> &str {
        &self.accounts[account].session.token
    }

    /// Asks the server for everything; panics with all that is missing or different. Leaves no trace but logins.
    #[track_caller]
    pub fn assert_all_there(&self, client: &SynapseClient) {
        let problems = self.missing(client);
        assert!(
            problems.is_empty(),
            "{} thing(s) are missing or different:\n{}",
            problems.len(),
            problems.join("\n")
        );
    }

    /// All that is missing or different.
    pub fn missing(&self, client: &SynapseClient) -> Vec<String> {
        let mut check = Check {
            client,
            filled: self,
            problems: Vec::new(),
        };
        check.accounts();
        check.rooms();
        check.messages();
        check.media();
        check.keys();
        check.personal();
        check.problems
    }

    /// What must be so after a restore, and only then: no one-time key is left, claims give the fallback key.
    /// Marks fallback keys as used.
    #[track_caller]
    pub fn assert_one_time_keys_gone(&self, client: &SynapseClient) {
        for account in &self.accounts {
            let Session {
                user_id,
                token,
                device_id,
            } = &account.session;
            let sync = client.sync(token, None).expect("sync");
            let left = sync["device_one_time_keys_count"]["signed_curve25519"]
                .as_u64()
                .unwrap_or(0);
            assert_eq!(left, 0, "{user_id} still has one-time keys after the restore");
            let claimed = client
                .claim_key(self.token(0), user_id, device_id)
                .expect("claiming a key");
            assert_eq!(
                claimed,
                Some(account.fallback_key.clone()),
                "a claim from {user_id} must give the fallback key"
            );
        }
    }

    /// New work is possible: a new user, a new room, messages in old rooms, media, key uploads, and messages arrive in
    /// the incremental sync of an old user.
    #[track_caller]
    pub fn assert_usable(&self, client: &SynapseClient) {
        let name = format!("new{}", hex::encode(rand::random::<[u8; 4]>()));
        let newcomer = client
            .register(&name, "new password", false)
            .expect("a new user can register");
        let token = &newcomer.token;
        for room in &self.rooms {
            // On a device of its own: an incremental sync takes the to-device messages of the old one for delivered.
            let old = &self.accounts[room.creator];
            let watcher = client
                .login(&old.localpart, &old.password)
                .expect("an old user can log in")
                .token;
            let before = client.sync(&watcher, None).expect("sync");
            let since = before["next_batch"].as_str().expect("sync gives a next_batch");
            client.join(token, &room.id).expect("a new user can join an old room");
            let body = format!("after the restore, by {name} \\N");
            let event = client.send_text(token, &room.id, &body).expect("a new message");
            let seen = client.sync(&watcher, Some(since)).expect("incremental sync");
            let timeline = &seen["rooms"]["join"][&room.id]["timeline"]["events"];
            let arrived = timeline
                .as_array()
                .is_some_and(|list| list.iter().any(|e| e["event_id"] == event.as_str()));
            assert!(arrived, "the new message did not arrive in {}: {timeline}", room.name);
        }
        let own = client
            .create_room(token, &json!({"name": "a new room"}))
            .expect("a new room");
        client.send_text(token, &own, "first").expect("a message in a new room");
        let bytes = name.clone().into_bytes();
        let medium = client
            .upload(token, "new.txt", "text/plain", bytes.clone())
            .expect("a new upload");
        assert_eq!(client.download(token, &medium).expect("downloading it").bytes, bytes);
        let keys = json!({"one_time_keys": {"signed_curve25519:NEW0": {"key": "new", "signatures": {}}}});
        let counts = client
            .upload_keys(self.token(0), &keys)
            .expect("uploading one-time keys again");
        assert!(
            counts["one_time_key_counts"]["signed_curve25519"].as_u64().unwrap_or(0) >= 1,
            "{counts}"
        );
    }
}

struct Check<'a> {
    client: &'a SynapseClient,
    filled: &'a Filled,
    problems: Vec<String>,
}

impl Check<'_> {
    fn same(&mut self, what: impl std::fmt::Display, found: Result<Value, super::ApiError>, expected: &Value) {
        match found {
            Ok(found) if found == *expected => {}
            Ok(found) => self
                .problems
                .push(format!("- {what}: {} instead of {}", short(&found), short(expected))),
            Err(e) => self.problems.push(format!("- {what}: {e}")),
        }
    }

    fn accounts(&mut self) {
        for account in &self.filled.accounts {
            let Session {
                user_id,
                token,
                device_id,
            } = &account.session;
            match self.client.whoami(token) {
                Ok(found) if found == account.session => {}
                Ok(found) => self.problems.push(format!(
                    "- token of {user_id}: is now {found:?}, was device {device_id}"
                )),
                Err(e) => self.problems.push(format!("- old token of {user_id}: {e}")),
            }
            if let Err(e) = self.client.login(&account.localpart, &account.password) {
                self.problems.push(format!("- login of {user_id}: {e}"));
            }
            if let Ok(session) = self.client.login(&account.localpart, "a wrong password") {
                self.problems
                    .push(format!("- {user_id} can log in with a wrong password: {session:?}"));
            }
            let profile = self.client.profile(token, user_id).map(|v| v["displayname"].clone());
            self.same(
                format!("display name of {user_id}"),
                profile,
                &json!(account.display_name),
            );
            let sync = self.client.sync(token, None);
            if let Err(e) = sync {
                self.problems.push(format!("- /sync of {user_id}: {e}"));
            }
        }
        for token in &self.filled.dead_tokens {
            match self.client.whoami(token) {
                Err(e) if e.status == 401 => {}
                other => self
                    .problems
                    .push(format!("- a token that had been logged out: {other:?}")),
            }
        }
    }

    fn rooms(&mut self) {
        for room in &self.filled.rooms {
            let token = self.filled.token(room.creator);
            self.same(
                format!("name of {}", room.id),
                self.client
                    .state(token, &room.id, "m.room.name")
                    .map(|v| v["name"].clone()),
                &json!(room.name),
            );
            self.same(
                format!("topic of {}", room.id),
                self.client
                    .state(token, &room.id, "m.room.topic")
                    .map(|v| v["topic"].clone()),
                &json!(room.topic),
            );
            for member in &room.members {
                let joined = self
                    .client
                    .get("/_matrix/client/v3/joined_rooms", self.filled.token(*member))
                    .map(|v| {
                        json!(
                            v["joined_rooms"]
                                .as_array()
                                .is_some_and(|rooms| rooms.iter().any(|r| *r == json!(room.id)))
                        )
                    });
                self.same(
                    format!("membership of account {member} in {}", room.name),
                    joined,
                    &json!(true),
                );
            }
        }
    }

    fn messages(&mut self) {
        for message in &self.filled.messages {
            let room = &self.filled.rooms[message.room];
            let token = self.filled.token(room.creator);
            let what = format!("message {} in {}", message.event_id, room.name);
            let event = match self.client.event(token, &room.id, &message.event_id) {
                Ok(event) => event,
                Err(e) => {
                    self.problems.push(format!("- {what}: {e}"));
                    continue;
                }
            };
            let sender = &self.filled.accounts[message.sender].session.user_id;
            if event["sender"] != json!(sender) || event["type"] != json!(message.kind) {
                self.problems
                    .push(format!("- {what}: sender or type changed: {}", short(&event)));
            }
            match &message.fate {
                Fate::Kept => self.same(&what, Ok(event["content"].clone()), &message.content),
                Fate::Redacted => self.same(format!("redacted {what}"), Ok(event["content"].clone()), &json!({})),
                Fate::Edited(edit, content) => {
                    let found = self.client.event(token, &room.id, edit).map(|v| v["content"].clone());
                    self.same(format!("edit of {what}"), found, content);
                    let latest = event["unsigned"]["m.relations"]["m.replace"]["event_id"].clone();
                    self.same(format!("latest edit of {what}"), Ok(latest), &json!(edit));
                }
            }
        }
        let word = &self.filled.search_word;
        let message = self
            .filled
            .messages
            .iter()
            .find(|m| m.content["body"].as_str().is_some_and(|body| body.contains(word)));
        let room = message.expect("fill says the word once").room;
        let found = self
            .client
            .search(self.filled.token(self.filled.rooms[room].creator), word);
        let count = found.map(|v| v["search_categories"]["room_events"]["count"].clone());
        self.same("search for the word said once", count, &json!(1));
    }

    fn media(&mut self) {
        for medium in &self.filled.media {
            let token = self.filled.token(medium.owner);
            let what = format!("medium {} ({})", medium.media_id, medium.content_type);
            match self.client.download(token, &medium.media_id) {
                Ok(found) => {
                    self.same(
                        format!("hash of {what}"),
                        Ok(json!(crate::sha256_hex(&found.bytes))),
                        &json!(medium.sha256),
                    );
                    if !found.content_type.starts_with(&medium.content_type) {
                        self.problems
                            .push(format!("- {what}: content type is {}", found.content_type));
                    }
                }
                Err(e) => self.problems.push(format!("- {what}: {e}")),
            }
            if medium.has_thumbnail
                && let Err(e) = self.client.thumbnail(token, &medium.media_id)
            {
                self.problems.push(format!("- thumbnail of {what}: {e}"));
            }
        }
    }

    fn keys(&mut self) {
        for account in &self.filled.accounts {
            let Session {
                user_id,
                token,
                device_id,
            } = &account.session;
            let found = self
                .client
                .query_keys(token, user_id)
                .map(|v| v["device_keys"][user_id][device_id].clone());
            self.same(format!("device keys of {user_id}"), found, &account.device_keys);
        }
        for backup in &self.filled.key_backups {
            let token = self.filled.token(backup.owner);
            let version = self.client.key_backup_version(token);
            self.same(
                format!("key backup version of account {}", backup.owner),
                version.map(|v| json!([v["version"], v["auth_data"]])),
                &json!([backup.version, backup.auth_data]),
            );
            let keys = self.client.key_backup(token, &backup.version);
            self.same(format!("key backup of account {}", backup.owner), keys, &backup.keys);
        }
    }

    fn personal(&mut self) {
        for (owner, kind, content) in &self.filled.account_data {
            let account = &self.filled.accounts[*owner].session;
            let found = self.client.account_data(&account.token, &account.user_id, kind);
            self.same(format!("account data {kind} of {}", account.user_id), found, content);
        }
        for message in &self.filled.to_device {
            let account = &self.filled.accounts[message.recipient].session;
            let found = self.client.sync(&account.token, None).map(|v| {
                let events = v["to_device"]["events"].as_array().cloned().unwrap_or_default();
                json!(events.iter().any(|e| e["content"] == message.content))
            });
            self.same(
                format!("undelivered to-device message for {}", account.user_id),
                found,
                &json!(true),
            );
        }
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 200 {
        text
    } else {
        format!("{}… ({} bytes)", text.chars().take(200).collect::<String>(), text.len())
    }
}
