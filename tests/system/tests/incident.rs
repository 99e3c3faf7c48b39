//! A backup leaked: on a real Synapse, `incident --apply` makes the tokens in it worthless, and nothing else does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::Outcome;
use essrun_testkit::mas::Mas;
use essrun_testkit::site::Site;
use essrun_testkit::synapse::{Home, Session, SynapseClient};
use serde_json::{Value, json};

const BOT: &str = "@adminbot:example.org";
const TABLES: [&str; 4] = ["access_tokens", "refresh_tokens", "login_tokens", "open_id_tokens"];

/// Database, statement and rows of every statement of a shown plan.
fn statements(outcome: &Outcome) -> Vec<(String, String, i64)> {
    let plan = outcome.events_of("incident").next().expect("a plan");
    let components = plan["components"].as_array().unwrap();
    let steps = components.iter().flat_map(|c| c["steps"].as_array().unwrap());
    steps
        .filter(|s| s["kind"] == "statement")
        .map(|s| {
            let rows = s["rows"].as_i64().unwrap_or_else(|| panic!("rows unknown: {s}"));
            (text(&s["database"]), text(&s["sql"]), rows)
        })
        .collect()
}

fn applied(outcome: &Outcome) -> Vec<(String, String, i64)> {
    outcome
        .events_of("applied")
        .map(|a| (text(&a["database"]), text(&a["sql"]), a["rows"].as_i64().unwrap()))
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

fn refresh(client: &SynapseClient, token: &str) -> Result<Value, essrun_testkit::synapse::ApiError> {
    client.call(
        "POST",
        "/_matrix/client/v3/refresh",
        None,
        Some(&json!({"refresh_token": token})),
    )
}

#[test]
fn tokens_of_a_leaked_backup_stop_working() {
    let mut site = Site::create();
    let database = site.database("synapse");
    let home = Home::create(&site.path().join("synapse"), "example.org", &database);
    let server = home.start();
    let client = server.client();
    let bot = client.register("adminbot", "bot's password", true).unwrap();
    let people: Vec<Session> = ["alice", "bob"]
        .iter()
        .flat_map(|name| {
            let first = client.register(name, "a long password", false).unwrap();
            [first, client.login(name, "a long password").unwrap()]
        })
        .collect();
    let refreshing = client
        .call(
            "POST",
            "/_matrix/client/v3/login",
            None,
            Some(
                &json!({"type": "m.login.password", "password": "a long password", "refresh_token": true,
                         "identifier": {"type": "m.id.user", "user": "alice"}}),
            ),
        )
        .unwrap();
    let refresh_token = text(&refreshing["refresh_token"]);
    client
        .post(
            "/_matrix/client/v3/user/@alice:example.org/openid/request_token",
            &people[0].token,
            &json!({}),
        )
        .unwrap();
    let room = client
        .create_room(&people[0].token, &json!({"name": "before"}))
        .unwrap();

    // The bot's volume as it stands beside Synapse.
    let data = site.folder("adminbot");
    std::fs::write(data.join("login.json"), json!({"access_token": bot.token}).to_string()).unwrap();
    let (media, config) = (home.media_store(), home.config());
    site.prepare(&format!(
        "[components.synapse]\nuse = \"synapse\"\ndatabases = {{ main = {{ url-env = \"SYNAPSE_DB\" }} }}\n\
         volumes = {{ media = {{ path = \"{}\" }}, config = {{ path = \"{}\" }} }}\n\n\
         [components.adminbot]\nuse = \"adminbot\"\ndatabases = {{ synapse = {{ url-env = \"SYNAPSE_DB\" }} }}\n\
         volumes = {{ data = {{ path = \"{}\" }} }}\nsettings = {{ user-id = \"{BOT}\" }}\n",
        media.display(),
        config.display(),
        data.display()
    ));
    site.back_up().expect_success();

    // Shown in words and as data; nothing changes.
    let count = |table: &str| {
        site.sql(
            "synapse",
            &format!("SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {table} t"),
        )
    };
    let before: Vec<String> = TABLES.iter().map(|t| count(t)).collect();
    let words = site
        .essrun()
        .run(&["incident", "pipeline.toml", "latest"])
        .expect_success();
    for said in [
        "SECRET: PLAINTEXT tokens",
        "with --apply, in main",
        "restart Synapse",
        BOT,
    ] {
        assert!(words.stdout.contains(said), "{said:?} is not in\n{words}");
    }
    assert!(
        !words.stdout.contains("not classed by the component"),
        "every artifact has its class:\n{words}"
    );
    let shown = site
        .essrun()
        .run_json(&["incident", "pipeline.toml", "latest"])
        .expect_success();
    assert_eq!(applied(&shown), []);
    assert_eq!(
        TABLES.iter().map(|t| count(t)).collect::<Vec<_>>(),
        before,
        "only shown"
    );
    server.stop();
    let server = home.start();
    for session in people.iter().chain([&bot]) {
        client.whoami(&session.token).expect("a token nobody ended");
    }

    // The bots first.
    let run = |only: &str| {
        let args = [
            "incident",
            "pipeline.toml",
            "latest",
            "--only",
            only,
            "--apply",
            "--yes",
        ];
        let outcome = site.essrun().run_json(&args).expect_success();
        assert_eq!(
            applied(&outcome),
            statements(&outcome),
            "rows touched are the rows shown"
        );
        statements(&outcome)
    };
    let steps = run("adminbot");
    assert_eq!(steps.len(), 1, "{steps:?}");
    assert_eq!((steps[0].0.as_str(), steps[0].2), ("synapse", 1));
    server.stop();
    let server = home.start();
    assert_eq!(client.whoami(&bot.token).expect_err("the bot's old token").status, 401);
    for session in &people {
        client.whoami(&session.token).expect("only the bot was logged out");
    }

    // Then everybody.
    let steps = run("synapse");
    let rows = |part: &str| steps.iter().find(|(_, sql, _)| sql.contains(part)).map(|s| s.2);
    assert_eq!(
        rows("public.access_tokens"),
        Some(5),
        "four, and the refreshing one: {steps:?}"
    );
    assert_eq!(rows("public.refresh_tokens"), Some(1), "{steps:?}");
    assert_eq!(rows("public.open_id_tokens"), Some(1), "{steps:?}");
    server.stop();
    let server = home.start();
    for session in &people {
        let error = client.whoami(&session.token).expect_err("an old token");
        assert_eq!(error.status, 401);
        assert!(
            error.body.contains("\"soft_logout\":true"),
            "clients must keep their keys: {}",
            error.body
        );
    }
    let error = refresh(&client, &refresh_token).expect_err("an old refresh token");
    assert!(matches!(error.status, 401 | 403), "{error}");

    // Again: nothing is left to do. And everybody comes back, the bot too, as the devices they were.
    assert!(run("synapse").iter().all(|(_, _, rows)| *rows == 0));
    let alice = client.login("alice", "a long password").unwrap();
    client.send_text(&alice.token, &room, "after the leak").unwrap();
    client.login("adminbot", "bot's password").unwrap();
    server.stop();
}

/// MAS holds the tokens of everybody, of bots too: three components would touch the same rows, and say so.
#[test]
fn tokens_in_mas_end_once() {
    let site = Site::create();
    let mas = Mas::create(&site.cluster, &site.folder("mas"));
    site.sql(
        "mas",
        "INSERT INTO users (user_id, username, created_at) SELECT gen_random_uuid(), u, now() FROM unnest(ARRAY['alice', 'bob', 'adminbot']) u;
         INSERT INTO user_sessions (user_session_id, user_id, created_at) SELECT gen_random_uuid(), user_id, now() FROM users;
         INSERT INTO compat_sessions (compat_session_id, user_id, device_id, created_at) SELECT gen_random_uuid(), user_id, upper(username), now() FROM users;
         -- Of each session: one without an end, one that will end, one that has.
         INSERT INTO compat_access_tokens (compat_access_token_id, compat_session_id, access_token, created_at, expires_at)
           SELECT gen_random_uuid(), compat_session_id, 'mct_' || device_id || n, now() - interval '1 day', e
             FROM compat_sessions, (VALUES (1, NULL), (2, now() + interval '1 hour'), (3, now() - interval '1 hour')) v(n, e);
         INSERT INTO compat_refresh_tokens (compat_refresh_token_id, compat_session_id, compat_access_token_id, refresh_token, created_at, consumed_at)
           SELECT gen_random_uuid(), compat_session_id, compat_access_token_id, 'mcr_' || access_token, now(), CASE WHEN access_token ~ '3$' THEN now() END
             FROM compat_access_tokens WHERE access_token ~ '[23]$';
         INSERT INTO oauth2_sessions (oauth2_session_id, user_id, oauth2_client_id, scope_list, created_at)
           SELECT gen_random_uuid(), user_id, oauth2_client_id, '{openid}', now() FROM users, oauth2_clients WHERE username <> 'adminbot';
         INSERT INTO oauth2_access_tokens (oauth2_access_token_id, oauth2_session_id, access_token, created_at, revoked_at)
           SELECT gen_random_uuid(), oauth2_session_id, 'mat_' || gen_random_uuid(), now(), r FROM oauth2_sessions, (VALUES (NULL::timestamptz), (now())) v(r);
         INSERT INTO oauth2_refresh_tokens (oauth2_refresh_token_id, oauth2_session_id, refresh_token, created_at, consumed_at)
           SELECT gen_random_uuid(), oauth2_session_id, 'mar_' || gen_random_uuid(), now(), c FROM oauth2_sessions, (VALUES (NULL::timestamptz), (now())) v(c);
         INSERT INTO user_emails (user_email_id, user_id, email, created_at) SELECT gen_random_uuid(), user_id, username || '@example.org', now() FROM users;
         INSERT INTO user_recovery_sessions (user_recovery_session_id, email, user_agent, locale, created_at) VALUES (gen_random_uuid(), 'bob@example.org', 'x', 'en', now());
         INSERT INTO user_recovery_tickets (user_recovery_ticket_id, user_recovery_session_id, user_email_id, ticket, created_at, expires_at)
           SELECT gen_random_uuid(), user_recovery_session_id, user_email_id, 'ticket', now(), now() + interval '1 hour' FROM user_recovery_sessions, user_emails WHERE user_emails.email ~ 'bob'",
    );
    let (url, config) = (mas.database.url(), mas.config.display());
    let bot = |name: &str| {
        let data = site.folder(name);
        std::fs::write(data.join("login.json"), "{}").unwrap();
        format!(
            "[components.{name}]\nuse = \"{name}\"\ndatabases = {{ mas = {{ url = \"{url}\" }} }}\n\
             volumes = {{ data = {{ path = \"{}\" }} }}\nsettings = {{ user-id = \"{BOT}\" }}\n\n",
            data.display()
        )
    };
    // Both bots under one account.
    site.prepare(&format!(
        "[components.mas]\nuse = \"mas\"\ndatabases = {{ main = {{ url = \"{url}\" }} }}\nvolumes = {{ config = {{ path = \"{config}\" }} }}\n\n{}{}",
        bot("adminbot"),
        bot("auditbot")
    ));
    site.back_up().expect_success();

    let shown = site
        .essrun()
        .run_json(&["incident", "pipeline.toml", "latest"])
        .expect_success();
    let step = |component: &str, table: &str| -> Value {
        let plan = shown.events_of("incident").next().expect("a plan");
        let components = plan["components"].as_array().unwrap();
        let one = components.iter().find(|c| c["component"] == component).unwrap();
        let steps = one["steps"].as_array().unwrap();
        let found = steps
            .iter()
            .position(|s| s["kind"] == "statement" && text(&s["sql"]).starts_with(&format!("UPDATE public.{table} ")));
        let at = found.unwrap_or_else(|| panic!("{component} does not touch {table}: {steps:?}"));
        json!({"name": format!("{component} {}", at + 1), "rows": steps[at]["rows"], "shared": steps[at]["shared"]})
    };
    for (table, everybody, bots) in [("compat_access_tokens", 6, 2), ("compat_refresh_tokens", 3, 1)] {
        let all = step("mas", table);
        assert_eq!(
            (&all["rows"], &all["shared"]),
            (&json!(everybody), &Value::Null),
            "{all}"
        );
        let first = step("adminbot", table);
        let also = json!({"rows": bots, "with": [all["name"]]});
        assert_eq!((&first["rows"], &first["shared"]), (&json!(bots), &also), "{first}");
        let second = step("auditbot", table);
        let also = json!({"rows": bots, "with": [all["name"], first["name"]]});
        assert_eq!((&second["rows"], &second["shared"]), (&json!(bots), &also), "{second}");
    }
    for (table, rows) in [
        ("oauth2_access_tokens", 2),
        ("oauth2_refresh_tokens", 2),
        ("user_recovery_tickets", 1),
    ] {
        assert_eq!(step("mas", table)["rows"], json!(rows), "{table}");
    }
    let words = site
        .essrun()
        .run(&["incident", "pipeline.toml", "latest"])
        .expect_success();
    assert!(
        words.stdout.contains("2 of these rows are also in step mas "),
        "{words}"
    );

    // Together they touch each row once.
    let live = "SELECT (SELECT count(*) FROM compat_access_tokens WHERE expires_at IS NULL OR expires_at > now()), \
                (SELECT count(*) FROM compat_refresh_tokens WHERE consumed_at IS NULL), \
                (SELECT count(*) FROM oauth2_access_tokens WHERE revoked_at IS NULL), \
                (SELECT count(*) FROM oauth2_refresh_tokens WHERE revoked_at IS NULL AND consumed_at IS NULL), \
                (SELECT count(*) FROM user_recovery_tickets WHERE expires_at > now())";
    assert_eq!(site.sql("mas", live), "6|3|2|2|1");
    let apply = ["incident", "pipeline.toml", "latest", "--apply", "--yes"];
    let sum = |outcome: &Outcome| applied(outcome).iter().map(|(_, _, rows)| rows).sum::<i64>();
    let bots_first = site
        .essrun()
        .run_json(&[&apply[..], &["--only", "adminbot"]].concat())
        .expect_success();
    assert_eq!(sum(&bots_first), 3, "{bots_first}");
    assert_eq!(site.sql("mas", live), "4|2|2|2|1", "only the bot's");
    let rest = site.essrun().run_json(&apply).expect_success();
    assert_eq!(sum(&rest), 4 + 2 + 2 + 2 + 1, "{rest}");
    assert_eq!(site.sql("mas", live), "0|0|0|0|0");
    // Nobody's session ended: MAS would have Synapse delete its device.
    let ended = "SELECT count(*) FROM compat_sessions WHERE finished_at IS NOT NULL";
    assert_eq!(site.sql("mas", ended), "0");
    assert_eq!(sum(&site.essrun().run_json(&apply).expect_success()), 0);
}
