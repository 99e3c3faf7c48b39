//! One database out of a backup by hand: `essrun extract` and `psql`, as docs/FORMAT.md promises to whoever has no server to
//! restore to, and wants the rows in another.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::site::Site;
use std::path::Path;

/// Names that are words of SQL or of mixed case, columns in an order of their own, a generated one, a sequence of no
/// table, rows with all that COPY escapes.
const SHOP: &str = r#"
CREATE TABLE "user" (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "order" text NOT NULL, "Group" text,
  twice bigint GENERATED ALWAYS AS (id * 2) STORED);
INSERT INTO "user" ("order", "Group") VALUES ('plain', NULL), (E'tab\there\\N', 'a\b'), ('', E'two\nlines');
CREATE TABLE "Odd ""Name" (item int, "user" bigint REFERENCES "user");
INSERT INTO "Odd ""Name" SELECT n, 1 + n % 3 FROM generate_series(1, 500) n;
CREATE INDEX "by Item" ON "Odd ""Name" (item);
CREATE VIEW names AS SELECT "order" FROM "user";
CREATE SEQUENCE tickets START 40; SELECT nextval('tickets');
"#;

fn dumped(site: &Site, database: &str) -> Vec<String> {
    let dump = site
        .cluster
        .client("pg_dump")
        .args(["-d", database])
        .output()
        .expect("pg_dump");
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let text = String::from_utf8(dump.stdout).expect("a dump is UTF-8");
    let mut lines: Vec<String> = text
        .lines()
        // pg_dump puts a random word into these two lines.
        .filter(|l| !l.starts_with("\\restrict") && !l.starts_with("\\unrestrict"))
        .map(str::to_owned)
        .collect();
    lines.sort_unstable();
    lines
}

/// Extracts one artifact to a file; gives what was said of it.
fn extract(site: &Site, artifact: &str, file: &Path) -> String {
    let output = file.to_str().unwrap();
    let args = [
        "extract",
        "pipeline.toml",
        artifact,
        "--identity",
        "elsewhere/identity.txt",
        "--output",
        output,
    ];
    site.essrun().run(&args).expect_success().stderr
}

#[test]
fn psql_makes_a_database_of_what_extract_writes() {
    let mut site = Site::create();
    site.database("shop");
    site.fill("shop", SHOP);
    site.prepare("[components.shop]\nuse = \"generic\"\ndatabases.main = { url-env = \"SHOP_DB\" }\n");
    site.back_up().expect_success();
    let shown = site.essrun().run_json(&["show", "pipeline.toml", "--artifacts"]);
    let artifacts = shown.events[0]["artifacts"].as_array().unwrap();
    let tables: Vec<&str> = artifacts
        .iter()
        .filter(|a| a["kind"] == "postgres-table")
        .map(|a| a["name"].as_str().unwrap())
        .collect();
    assert_eq!(tables.len(), 2, "{shown}");

    site.sql(
        "postgres",
        "CREATE DATABASE again OWNER shop_user ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0",
    );
    let folder = site.folder("out");
    let run = |name: &str| {
        let file = folder.join(name);
        extract(&site, &format!("shop/main/{name}"), &file);
        let sql = std::fs::read_to_string(&file).unwrap();
        site.cluster
            .psql_script("again", &sql)
            .unwrap_or_else(|e| panic!("{name}: {e}\n{sql}"));
    };
    run("ddl-pre-data");
    for (n, table) in tables.iter().enumerate() {
        let file = folder.join(format!("rows-{n}"));
        let said = extract(&site, table, &file);
        // What it tells a person to do is done, to the letter.
        let (_, hint) = said.split_once("load with: ").unwrap_or_else(|| panic!("{said}"));
        let hint = hint.trim_end().replace("'FILE'", &format!("'{}'", file.display()));
        site.cluster
            .psql_script("again", &format!("{hint}\n"))
            .unwrap_or_else(|e| panic!("{hint}: {e}"));
    }
    run("sequences");
    run("ddl-post-data");
    assert_eq!(dumped(&site, "again"), dumped(&site, "shop"));
    assert_eq!(site.sql("again", "SELECT nextval('tickets')"), "41");
}
