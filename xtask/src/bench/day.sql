-- A day on the server `synapse.sql` made: one event in a hundred is new, one row in five hundred was written again,
-- anywhere in the table, as redactions and background updates do. The setting bench.day makes each day differ.
SET session_replication_role = replica;
SET jit = off;
CREATE SCHEMA bench;
CREATE FUNCTION bench.random(seed text, length int) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (SELECT substr(string_agg(translate(encode(sha512((seed || '/' || i)::bytea), 'base64'), E'+/=\n', '-_'), ''), 1, length)
            FROM generate_series(1, 1 + length / 85) i);
-- The same event with other hashes, signatures and ciphertext: whatever was random is random again.
CREATE FUNCTION bench.fresh(seed text, json text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (SELECT string_agg(CASE WHEN length(part) >= 43 AND part ~ '^[$A-Za-z0-9_-]+$'
                                   THEN bench.random(seed || n, length(part)) ELSE part END, '"' ORDER BY n)
            FROM regexp_split_to_table(json, '"') WITH ORDINALITY p (part, n));

CREATE TEMP TABLE new AS
    SELECT event_id AS was, '$' || bench.random(current_setting('bench.day') || event_id, 43) AS is,
           row_number() OVER (ORDER BY event_id) AS n
    FROM event_json WHERE hashtext(event_id || current_setting('bench.day')) % 100 = 0;
INSERT INTO events (topological_ordering, event_id, type, room_id, processed, outlier, depth, origin_server_ts, received_ts, sender, contains_url, instance_name, stream_ordering, state_key)
    SELECT topological_ordering, new.is, type, room_id, processed, outlier, depth, origin_server_ts + 86400000, received_ts + 86400000, sender, contains_url, instance_name,
           (SELECT max(stream_ordering) FROM events) + n, state_key
    FROM events JOIN new ON event_id = was ORDER BY n;
INSERT INTO event_json (event_id, room_id, internal_metadata, json, format_version)
    SELECT new.is, room_id, internal_metadata, bench.fresh(new.is, json), format_version
    FROM event_json JOIN new ON event_id = was ORDER BY n;
INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
    SELECT m.most + 1 + row_number() OVER () / 40, room_id, type, state_key, '$' || bench.random(event_id || state_group, 43)
    FROM state_groups_state, (SELECT max(state_group) AS most FROM state_groups_state) m
    WHERE hashtext(event_id || state_group || current_setting('bench.day')) % 100 = 0;

UPDATE event_json SET internal_metadata = replace(internal_metadata, '"historical":false', '"historical":false,"redacted":true')
    WHERE hashtext('again' || event_id || current_setting('bench.day')) % 500 = 0;
UPDATE state_groups_state SET event_id = '$' || bench.random('again' || event_id || state_group, 43)
    WHERE hashtext('again' || event_id || state_group || current_setting('bench.day')) % 500 = 0;
DROP SCHEMA bench CASCADE;
