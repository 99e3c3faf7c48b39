-- A Synapse-shaped database: as many events as the setting bench.events says, in rooms of very different sizes, with the
-- tables that are large on real servers in about their real proportions. Ids, hashes and ciphertexts are as random as
-- real ones (SHA-2 of a counter), plain text is made of words, members repeat: so it compresses as such a database does.
-- Runs in a database whose tables a real Synapse has made.
SET session_replication_role = replica;
SET synchronous_commit = off;
SET work_mem = '256MB';
-- Words and sentences are looked up one by one, through their keys.
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET enable_seqscan = off;
SET jit = off;

CREATE SCHEMA bench;
CREATE FUNCTION bench.b64(bytes bytea) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN translate(encode(bytes, 'base64'), E'+/=\n', '-_');
CREATE FUNCTION bench.hash(kind text, n bigint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN bench.b64(sha256((kind || n)::bytea));
CREATE FUNCTION bench.event(n bigint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN '$' || bench.hash('event', n);
-- 0 ≤ share < 1, the same for the same n
CREATE FUNCTION bench.share(kind int, n bigint) RETURNS float8 LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (hashint8extended(n, kind) & 2147483647)::float8 / 2147483648;
CREATE FUNCTION bench.name(n int) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN '@' || (ARRAY['anna','bruno','chiara','dmitri','elif','farid','greta','hugo'])[1 + n % 8] || '.' || n || ':example.org';

CREATE TABLE bench.room AS
    SELECT n, '!' || substr(translate(bench.hash('room', n), '-_', 'xy'), 1, 18) || ':example.org' AS room_id
    FROM generate_series(0, 399) n;
ALTER TABLE bench.room ADD PRIMARY KEY (n);
CREATE TABLE bench.word AS
    SELECT n, (SELECT string_agg((ARRAY['ka','lo','mi','ser','ta','un','der','ver','ste','ring','an','be','zu','ge','heit','ent','port','al','or','is'])
                  [1 + floor(20 * bench.share(100 + s, n))::int], '' ORDER BY s) FROM generate_series(1, 1 + n % 4) s) AS word
    FROM generate_series(0, 2999) n;
ALTER TABLE bench.word ADD PRIMARY KEY (n);
ANALYZE bench.word;
-- Common words are common.
CREATE TABLE bench.sentence AS
    SELECT m.n, (SELECT string_agg(word, ' ' ORDER BY s)
                 FROM generate_series(1, 4 + floor(12 * bench.share(4, m.n))::int) s
                 JOIN bench.word w ON w.n = floor(3000 * power(bench.share(1000 + s, m.n), 3))::int) AS text
    FROM generate_series(0, 39999) m (n);
ALTER TABLE bench.sentence ADD PRIMARY KEY (n);
ANALYZE bench.room;
ANALYZE bench.sentence;

-- One row per event, with what all tables need of it.
CREATE UNLOGGED TABLE bench.plan AS
    SELECT e.n, bench.event(e.n) AS event_id, r.room_id, r.n AS room, u.n AS who, bench.name(u.n) AS sender,
           1600000000000 + e.n * 211 + floor(200 * bench.share(3, e.n))::bigint AS ts,
           CASE WHEN k.k < 0.08 THEN 'm.room.member' WHEN k.k < 0.50 THEN 'm.room.message' WHEN k.k < 0.90 THEN 'm.room.encrypted' ELSE 'm.reaction' END AS type
    FROM generate_series(1::bigint, current_setting('bench.events')::bigint) e (n)
    CROSS JOIN LATERAL (SELECT bench.share(5, e.n) AS k) k
    JOIN bench.room r ON r.n = floor(400 * power(bench.share(1, e.n), 3))::int
    CROSS JOIN LATERAL (SELECT floor((20 + (400 - r.n) * 5) * power(bench.share(2, e.n), 2))::int AS n) u
    ORDER BY e.n;
ANALYZE bench.plan;

INSERT INTO rooms (room_id, is_public, creator, room_version, has_auth_chain_index)
    SELECT room_id, n % 5 = 0, bench.name(n), '10', true FROM bench.room;

INSERT INTO events (topological_ordering, event_id, type, room_id, processed, outlier, depth, origin_server_ts, received_ts, sender, contains_url, instance_name, stream_ordering, state_key)
    SELECT n, event_id, type, room_id, true, false, n, ts, ts + 40 + n % 100, sender, n % 50 = 0, 'master', n + 100,
           CASE WHEN type = 'm.room.member' THEN sender END
    FROM bench.plan ORDER BY n;

INSERT INTO event_json (event_id, room_id, internal_metadata, json, format_version)
    SELECT p.event_id, p.room_id, '{"token_id":' || (p.who % 4000) || ',"txn_id":"m' || p.ts || '.' || p.n % 9 || '","historical":false,"device_id":"' || upper(substr(md5(p.sender), 1, 10)) || '"}',
           '{"auth_events":["$' || bench.hash('create', p.room) || '","$' || bench.hash('power', p.room) || '","$' || bench.hash('join' || p.room, p.who)
           || '"],"prev_events":["' || bench.event(p.n - 1) || CASE WHEN p.n % 7 = 0 THEN '","' || bench.event(p.n - 2) ELSE '' END
           || '"],"type":"' || p.type || '","room_id":"' || p.room_id || '","sender":"' || p.sender || '","content":'
           || CASE p.type
                WHEN 'm.room.member' THEN '{"displayname":"' || (SELECT text FROM bench.sentence s WHERE s.n = p.who) || '","avatar_url":"mxc://example.org/' || substr(translate(bench.hash('avatar', p.who), '-_', 'xy'), 1, 24) || '","membership":"join"}'
                WHEN 'm.reaction' THEN '{"m.relates_to":{"rel_type":"m.annotation","event_id":"' || bench.event(greatest(1, p.n - 1 - p.n % 900)) || '","key":"👍️"}}'
                WHEN 'm.room.message' THEN '{"msgtype":"m.text","body":"'
                    || (SELECT string_agg(text, '. ' ORDER BY i) FROM generate_series(0, floor(12 * power(bench.share(7, p.n), 2))::int) i
                        JOIN bench.sentence s ON s.n = floor(40000 * bench.share(20 + i, p.n))::int)
                    || '","m.mentions":{}}'
                ELSE '{"algorithm":"m.megolm.v1.aes-sha2","sender_key":"' || bench.hash('curve', p.who) || '","device_id":"' || upper(substr(md5(p.sender), 1, 10))
                    || '","session_id":"' || bench.hash('session' || p.who, p.n / 3000) || '","ciphertext":"'
                    || (SELECT substr(string_agg(bench.b64(sha512(('c' || p.n || '/' || i)::bytea)), ''), 1, 260 + floor(700 * power(bench.share(6, p.n), 2))::int)
                        FROM generate_series(1, 12) i) || '"}'
              END
           || ',"depth":' || p.n || ',"origin":"example.org","origin_server_ts":' || p.ts || ',"hashes":{"sha256":"' || bench.hash('content', p.n)
           || '"},"signatures":{"example.org":{"ed25519:a_bEnC":"' || bench.hash('sign1', p.n) || bench.hash('sign2', p.n)
           || '"}},"unsigned":{"age_ts":' || p.ts || '}}',
           3
    FROM bench.plan p ORDER BY p.n;

INSERT INTO event_edges (event_id, prev_event_id, room_id, is_state)
    SELECT event_id, bench.event(n - 1), NULL, false FROM bench.plan
    UNION ALL SELECT event_id, bench.event(n - 2), NULL, false FROM bench.plan WHERE n % 7 = 0;
INSERT INTO event_auth (event_id, auth_id, room_id)
    SELECT p.event_id, '$' || a.id, p.room_id FROM bench.plan p
    CROSS JOIN LATERAL (VALUES (1, bench.hash('create', room)), (2, bench.hash('power', room)), (3, bench.hash('join' || room, who))) a (i, id)
    ORDER BY p.n, a.i;
INSERT INTO stream_ordering_to_exterm (stream_ordering, room_id, event_id)
    SELECT n + 100, room_id, event_id FROM bench.plan ORDER BY n;

-- A state group for every twelfth event: mostly a short delta, every hundredth whole.
CREATE UNLOGGED TABLE bench.state_group AS
    SELECT n / 12 AS id, n, event_id, room_id, room, n / 12 % 100 = 0 AS whole FROM bench.plan WHERE n % 12 = 0;
INSERT INTO state_groups (id, room_id, event_id) SELECT id, room_id, event_id FROM bench.state_group ORDER BY id;
INSERT INTO state_group_edges (state_group, prev_state_group)
    SELECT id, id - 1 FROM bench.state_group WHERE NOT whole AND id > 1;
INSERT INTO event_to_state_groups (event_id, state_group)
    SELECT event_id, greatest(1, n / 12) FROM bench.plan WHERE n >= 12 ORDER BY n;
INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
    SELECT g.id, g.room_id, 'm.room.member', bench.name(m), '$' || bench.hash('join' || g.room, m)
    FROM bench.state_group g
    CROSS JOIN LATERAL generate_series(1, CASE WHEN g.whole THEN 1500 + (400 - g.room) * 6 ELSE 40 END) i
    CROSS JOIN LATERAL (SELECT CASE WHEN g.whole THEN i ELSE floor((20 + (400 - g.room) * 5) * bench.share(50 + i, g.id))::int END AS m) m
    ORDER BY g.id, i;

INSERT INTO users (name, password_hash, creation_ts, admin, is_guest, deactivated, approved)
    SELECT bench.name(n), '$2b$12$' || substr(bench.hash('p', n) || bench.hash('q', n), 1, 53), 1600000000 + n, 0, 0, 0, true FROM generate_series(0, 3999) n;
INSERT INTO devices (user_id, device_id, display_name, last_seen, ip, user_agent, hidden)
    SELECT bench.name(n % 4000), upper(substr(md5(n::text), 1, 10)), 'Element on Linux', 1700000000000 + n, '10.0.' || n % 250 || '.' || n % 199, 'Mozilla/5.0 (X11; Linux x86_64)', false
    FROM generate_series(0, 11999) n;
INSERT INTO access_tokens (id, user_id, device_id, token, last_validated, used)
    SELECT n + 10, bench.name(n % 4000), upper(substr(md5(n::text), 1, 10)), 'syt_' || bench.hash('token', n), 1700000000000 + n, true FROM generate_series(0, 11999) n;
INSERT INTO room_memberships (event_id, user_id, sender, room_id, membership, forgotten, display_name, event_stream_ordering, participant)
    SELECT event_id, sender, sender, room_id, 'join', 0, (SELECT text FROM bench.sentence s WHERE s.n = p.who), n + 100, true
    FROM bench.plan p WHERE type = 'm.room.member' ORDER BY n;
INSERT INTO state_events (event_id, room_id, type, state_key)
    SELECT event_id, room_id, type, sender FROM bench.plan WHERE type = 'm.room.member' ORDER BY n;
INSERT INTO current_state_events (event_id, room_id, type, state_key, membership, event_stream_ordering)
    SELECT DISTINCT ON (room_id, sender) event_id, room_id, type, sender, 'join', n + 100 FROM bench.plan WHERE type = 'm.room.member' ORDER BY room_id, sender, n DESC;
INSERT INTO local_current_membership (room_id, user_id, event_id, membership, event_stream_ordering)
    SELECT room_id, state_key, event_id, 'join', event_stream_ordering FROM current_state_events;
INSERT INTO event_relations (event_id, relates_to_id, relation_type, aggregation_key)
    SELECT event_id, bench.event(greatest(1, n - 1 - n % 900)), 'm.annotation', '👍️' FROM bench.plan WHERE type = 'm.reaction';
INSERT INTO event_search (event_id, room_id, sender, key, vector, origin_server_ts, stream_ordering)
    SELECT event_id, room_id, sender, 'content.body', to_tsvector('simple', (SELECT text FROM bench.sentence s WHERE s.n = p.n % 40000)), ts, n + 100
    FROM bench.plan p WHERE type = 'm.room.message' AND n % 4 = 0;
INSERT INTO device_inbox (user_id, device_id, stream_id, message_json, instance_name)
    SELECT bench.name(n % 4000), upper(substr(md5(n::text), 1, 10)), n + 10,
           '{"type":"m.room.encrypted","sender":"' || bench.name(n % 3000) || '","content":{"algorithm":"m.olm.v1.curve25519-aes-sha2","ciphertext":{"' || bench.hash('k', n) || '":{"type":0,"body":"'
           || (SELECT string_agg(bench.b64(sha512(('d' || n || '/' || i)::bytea)), '') FROM generate_series(1, 8) i) || '"}}}}', 'master'
    FROM generate_series(1, current_setting('bench.events')::int / 15) n;
INSERT INTO e2e_room_keys (user_id, room_id, session_id, version, first_message_index, forwarded_count, is_verified, session_data)
    SELECT bench.name(k.i % 4000), r.room_id, bench.hash('session', k.i), 1, 0, 0, true,
           '{"ciphertext":"' || (SELECT string_agg(bench.b64(sha512(('e' || k.i || '/' || i)::bytea)), '') FROM generate_series(1, 6) i) || '","ephemeral":"' || bench.hash('eph', k.i) || '","mac":"bWFjbWFjbWFj"}'
    FROM generate_series(1, current_setting('bench.events')::int / 15) k (i) JOIN bench.room r ON r.n = k.i % 400;
INSERT INTO receipts_linearized (stream_id, room_id, receipt_type, user_id, event_id, data, instance_name, event_stream_ordering)
    SELECT k.i + 10, r.room_id, 'm.read', bench.name(k.i / 400), bench.event(1 + k.i % current_setting('bench.events')::int), '{"ts":' || 1700000000000 + k.i || '}', 'master', 101 + k.i % current_setting('bench.events')::int
    FROM generate_series(0, 99999) k (i) JOIN bench.room r ON r.n = k.i % 400;
INSERT INTO event_push_actions (room_id, event_id, user_id, actions, topological_ordering, stream_ordering, notif, highlight, unread, thread_id)
    SELECT room_id, event_id, bench.name((who + 1) % 3000), '', n, n + 100, 1, 0, 1, 'main' FROM bench.plan WHERE n % 5 = 0;

-- Sequences and positions stand where a server that wrote all this would have them.
SELECT setval('events_stream_seq', (SELECT max(stream_ordering) FROM events));
SELECT setval('state_group_id_seq', (SELECT max(id) FROM state_groups));
SELECT setval('device_inbox_sequence', (SELECT max(stream_id) FROM device_inbox));
SELECT setval('receipts_sequence', (SELECT max(stream_id) FROM receipts_linearized));
DROP SCHEMA bench CASCADE;
