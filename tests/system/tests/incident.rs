//! A backup leaked: on a real Synapse, `incident --apply` makes the tokens in it worthless, and nothing else does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::Outcome;
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
