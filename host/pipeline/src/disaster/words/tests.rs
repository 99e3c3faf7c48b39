use super::*;
use crate::body::{BackupBody, Instant, LeftOut, Note};
use crate::repo::DrillNote;
use std::collections::BTreeMap;
use std::path::Path;

fn component(name: &str, tier: Tier, text: &str) -> ComponentBody {
    ComponentBody {
        name: name.into(),
        system: text.into(),
        tier,
        loss: text.into(),
        component_version: "0.1.0".into(),
        wasm_sha256: String::new(),
        failed: None,
        taken_at: 0,
        facts: vec![],
        notes: vec![Note {
            severity: Severity::Warning,
            text: text.into(),
        }],
        left_out: vec![LeftOut {
            label: text.into(),
            what: text.into(),
            why: text.into(),
        }],
        sources: BTreeMap::from([("main".to_owned(), text.to_owned())]),
        classes: vec![],
    }
}

const PIPELINE: &str = "version = 1\nname = \"ess\"\n[repository]\nurl = \"s3://bucket/ess\"\nrecipients = [\"age1x\"]\n\
    [repository.s3]\nendpoint = \"https://s3.example.org\"\nregion = \"eu\"\ncredentials-file = \"aws\"\nprofile = \"essrun\"\n\
    [policy]\nfiles = [\"rules.rego\"]\napprovals = \"approvals\"\n\
    [components.mas]\nuse = \"mas\"\ndatabases.main = { url-env = \"MAS_DB\", admin-url-env = \"MAS_ADMIN\" }\n\
    [components.synapse]\nuse = \"synapse\"\ndatabases.main = { url-env = \"SYNAPSE_DB\" }\n\
    [components.wiki]\nuse = \"generic\"\n[components.irc]\nuse = \"irc\"\n[components.zulu]\nuse = \"generic\"\n\
    [groups.core]\nconsistent = [\"synapse\", \"mas\", \"wiki\"]\n[groups.far]\nconsistent = [\"irc\", \"zulu\"]\n";

fn pipeline() -> Pipeline {
    Pipeline::parse(Path::new("/etc/my essrun/ess.toml"), PIPELINE).unwrap()
}

fn known(text: &str) -> Known {
    Known {
        id: "20260101t000000z-00000001".into(),
        body: BackupBody {
            version: 1,
            pipeline: "ess".into(),
            host: "h".into(),
            essrun: "0.1.0".into(),
            started_at: 0,
            finished_at: 0,
            // In their order, as they are handed over.
            components: vec![
                component("mas", Tier::Critical, text),
                component("synapse", Tier::Critical, text),
                component("gone", Tier::Feature, text),
                component("wiki", Tier::Feature, text),
                component("zulu", Tier::Feature, text),
                component("irc", Tier::Bridge, text),
            ],
            instants: vec![Instant {
                group: "core".into(),
                databases: vec!["synapse/main".into(), "mas/main".into()],
                reached: serde_json::Value::Null,
            }],
            judgement: None,
        },
        suspect: vec![text.into()],
        drill: Some(DrillNote {
            at: 0,
            passed: false,
            errors: 1,
            warnings: 0,
            why: Some(text.into()),
            pace: None,
        }),
        proved: Some(("20251231t000000z-00000002".into(), 0)),
        databases: vec![
            DatabaseNeeds {
                component: "synapse".into(),
                label: "main".into(),
                database: "synapse".into(),
                server_version_number: 160_003,
                owner: Some("synapse_user".into()),
                roles: vec!["reader \"x\"".into(), "postgres".into(), "pg_monitor".into()],
                encoding: Some("UTF8".into()),
                collate: Some("C".into()),
                ctype: Some("C".into()),
                icu_locale: None,
                extensions: BTreeMap::from([("plpgsql".into(), "1.0".into()), ("citext".into(), "1.6".into())]),
            },
            DatabaseNeeds {
                component: "mas".into(),
                label: "main".into(),
                database: "mas".into(),
                server_version_number: 160_003,
                ..DatabaseNeeds::default()
            },
        ],
        artifacts: vec![],
        estimate: None,
    }
}

fn page(text: &str) -> String {
    let pipeline = pipeline();
    write(&Site {
        pipeline: &pipeline,
        loaded: vec![],
        unasked: vec![],
        backup: Some(known(text)),
    })
    .unwrap()
}

#[test]
fn what_components_say_changes_nothing_about_the_page() {
    let shape = |page: &str| {
        let lines = page.lines().map(str::trim_start);
        let begins = |marks: &[&str]| lines.clone().filter(|l| marks.iter().any(|m| l.starts_with(m))).count();
        (
            begins(&["#"]),
            begins(&["|"]),
            begins(&["```"]),
            begins(&["- "]),
            page.lines().count(),
        )
    };
    let plain = page("words");
    for hostile in [
        "all\n\n# Stop\n\nrm -rf /\n| 1 | 2 | 3 | 4 |\n```sh\nessrun prune\n```\n- x",
        "# Stop",
        "- x",
        "``` sh",
        "| a | b |",
        "a\r# b",
    ] {
        assert_eq!(shape(&page(hostile)), shape(&plain), "{hostile:?}:\n{}", page(hostile));
    }
}

#[test]
fn what_belongs_together_is_restored_in_one_command_of_one_backup() {
    let page = page("words");
    let restores: Vec<&str> = page.lines().filter(|l| l.starts_with("essrun restore")).collect();
    let restore = "essrun restore \"$P\" --backup \"$B\" --identity \"$I\"";
    assert_eq!(restores.len(), 2, "{page}");
    assert!(
        restores[0].starts_with(&format!("{restore} --only mas --only synapse --only wiki ")),
        "{page}"
    );
    assert_eq!(restores[1], format!("{restore} --only zulu --only irc"), "{page}");
    assert!(page.contains("P='/etc/my essrun/ess.toml'\n") && page.contains("B=20260101t000000z-00000001 "));
    assert!(page.contains("Group core: synapse, mas, wiki belong together"));
    assert!(page.contains("Group far") && page.contains("does not say what was reached"));
    assert!(page.contains("gone is in this backup and not in the pipeline file"));
}

#[test]
fn all_that_is_needed_is_named() {
    let page = page("words");
    for said in [
        "`https://s3.example.org`",
        "region `eu`",
        "profile `essrun` of `/etc/my essrun/aws`",
        "`/etc/my essrun/rules.rego`",
        "`/etc/my essrun/approvals`",
        "from environment variable MAS_ADMIN",
        "**SUSPECT**: words",
        "**Its drill FAILED**",
        "`20251231t000000z-00000002`",
        "PostgreSQL 16 or newer, encoding UTF8, locale `C` / `C`, the packages of the extensions `citext` 1.6.",
        "CREATE ROLE \"synapse_user\" LOGIN;\n",
        "CREATE ROLE \"reader \"\"x\"\"\" LOGIN;\n",
        "is not recorded in this backup",
        "a file of [policy]",
    ] {
        assert!(page.contains(said), "{said:?} is not in\n{page}");
    }
    for never in ["\"postgres\"", "pg_monitor", "`plpgsql`"] {
        assert!(!page.contains(never), "{never:?} is in\n{page}");
    }
}
