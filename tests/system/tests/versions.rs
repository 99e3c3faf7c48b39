//! Every major of PostgreSQL: backed up by its own pg_dump, restored into itself and every later one, never an earlier.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::Essrun;
use essrun_testkit::postgres::Cluster;
use essrun_testkit::release::Release;
use std::path::Path;

/// Everything awkward a database can have; `host/postgres` tests it against Debian's server.
const AWKWARD: &str = include_str!("../../../host/postgres/tests/data/awkward.sql");

/// What the packaged servers are built without.
const WITHOUT: &[(&str, &str)] = &[
    ("CREATE EXTENSION btree_gist;", ""),
    (", CONSTRAINT e1 EXCLUDE USING gist (a WITH =, during WITH &&)", ""),
    ("x xml", "x text"),
];

/// What a major brought, filled.
const SINCE: &[(u32, &str)] = &[
    (
        16,
        "CREATE TABLE later16 (a text STORAGE EXTERNAL, b text COLLATE \"C\"); INSERT INTO later16 VALUES (repeat('x', 9000), 'b');",
    ),
    (
        17,
        "CREATE TABLE later17 (id bigint GENERATED ALWAYS AS IDENTITY, k int) PARTITION BY LIST (k);
         CREATE TABLE later17_1 PARTITION OF later17 FOR VALUES IN (1); INSERT INTO later17 (k) VALUES (1), (1);
         CREATE TABLE later17_path AS SELECT '{\"a\": 1}'::jsonb AS j; CREATE INDEX ON later17_path (jsonb_path_query_first(j, '$.a'));",
    ),
    (
        18,
        "CREATE TABLE later18 (id int CONSTRAINT id_is_there NOT NULL, v int GENERATED ALWAYS AS (id * 2) VIRTUAL,
           s int GENERATED ALWAYS AS (id + 1) STORED, loose text, forgiven text, w int, CONSTRAINT w_kept CHECK (w > 0) NOT ENFORCED);
         INSERT INTO later18 (id, w) VALUES (1, -1), (2, 2);
         ALTER TABLE later18 ADD CONSTRAINT forgiven_is_there NOT NULL forgiven NOT VALID;
         CREATE TABLE parent18 (id int CONSTRAINT only_here NOT NULL NO INHERIT); CREATE TABLE child18 () INHERITS (parent18);
         INSERT INTO child18 VALUES (NULL);
         CREATE TABLE one18 (id uuid PRIMARY KEY DEFAULT uuidv7()); INSERT INTO one18 DEFAULT VALUES;
         CREATE TABLE many18 (one uuid, CONSTRAINT many_one FOREIGN KEY (one) REFERENCES one18 NOT ENFORCED);
         INSERT INTO many18 VALUES ('00000000-0000-0000-0000-000000000000');
         CREATE EXTENSION btree_gist; CREATE TABLE stay (room int, at daterange, PRIMARY KEY (room, at WITHOUT OVERLAPS));
         INSERT INTO stay VALUES (1, '[2026-01-01,2026-01-05)'), (1, '[2026-01-05,2026-01-09)');
         CREATE TABLE guest (room int, at daterange, CONSTRAINT in_time FOREIGN KEY (room, PERIOD at) REFERENCES stay (room, PERIOD at));
         INSERT INTO guest VALUES (1, '[2026-01-02,2026-01-07)');",
    ),
];

/// A server of each major, Debian's first; together with where its clients are.
fn clusters() -> Vec<(u32, Cluster)> {
    let start = |builder: essrun_testkit::postgres::Builder| {
        let cluster = builder.start().expect("a server");
        let major = cluster.psql("postgres", "SHOW server_version_num").unwrap();
        cluster
            .psql("postgres", "CREATE ROLE app LOGIN; CREATE ROLE reader")
            .unwrap();
        (major.parse::<u32>().unwrap() / 10_000, cluster)
    };
    let mut all = vec![start(Cluster::builder())];
    let debian = all[0].0;
    for release in Release::ALL.into_iter().filter(|r| r.major > debian) {
        all.push(start(Cluster::builder().release(release)));
        assert_eq!(
            all[all.len() - 1].0,
            release.major,
            "the package's name says another major"
        );
    }
    all
}

/// essrun with these programs before the system's, and a pipeline about the database `$DB`.
fn essrun(dir: &Path, clients: &[&Path]) -> Essrun {
    let mut path: Vec<std::path::PathBuf> = clients.iter().map(|c| (*c).to_owned()).collect();
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
    let path = std::env::join_paths(path).unwrap().into_string().unwrap();
    let essrun = Essrun::in_dir(dir).env("PATH", path);
    if !dir.join("pipeline.toml").exists() {
        let said = essrun
            .run(&["keygen", "identity", "--output", "identity.txt"])
            .expect_success();
        let recipient = said.stdout.split_whitespace().find(|w| w.starts_with("age1")).unwrap();
        essrun
            .run(&["keygen", "writer", "--output", "writer.key"])
            .expect_success();
        let pipeline = format!(
            "version = 1\nname = \"x\"\n[repository]\nurl = \"repository\"\nrecipients = [\"{recipient}\"]\n\
             writer-key = \"writer.key\"\ncache = \"cache\"\n\
             [components.any]\nuse = \"generic\"\ndatabases = {{ main = {{ url-env = \"DB\" }} }}\n"
        );
        std::fs::write(dir.join("pipeline.toml"), pipeline).unwrap();
        essrun.run(&["init", "pipeline.toml"]).expect_success();
    }
    essrun
}

/// Definitions as the newest pg_dump sees them, and every row, sequence and large object.
/// Since 16 the server leaves needless table names out of the columns in a view's definition: `"t"."c"` is `"c"`.
fn unqualified(line: &str) -> String {
    let parts: Vec<&str> = line.split('"').collect();
    if !line.starts_with(' ') || parts.len() < 5 {
        return line.to_owned();
    }
    let mut out = parts[0].to_owned();
    for name in (1..parts.len()).step_by(2) {
        match parts.get(name + 1) {
            Some(&".") => {}
            Some(behind) => out.push_str(&format!("\"{}\"{behind}", parts[name])),
            None => out.push_str(parts[name]),
        }
    }
    out
}

fn everything(cluster: &Cluster, database: &str, newest: &Path) -> Vec<String> {
    let mut pg_dump = cluster.client_of(newest, "pg_dump");
    let output = pg_dump
        .args(["--schema-only", "--quote-all-identifiers"])
        .env("PGDATABASE", database)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut all: Vec<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter(|l| !l.starts_with('\\') && !l.starts_with("-- Dumped from"))
        .map(str::to_owned)
        .collect();
    let names = cluster
        .psql(
            database,
            "SELECT string_agg(format(CASE c.relkind WHEN 'S' THEN 'SELECT %L, last_value, is_called::text FROM %I.%I'
                 ELSE 'SELECT %L, count(*), md5(COALESCE(string_agg(md5(t::text), '''' ORDER BY md5(t::text)), '''')) FROM ONLY %I.%I AS t' END,
                 c.relkind::text || ' ' || n.nspname || '.' || c.relname, n.nspname, c.relname), ' UNION ALL ' ORDER BY n.nspname, c.relname)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'S', 'm') AND c.relispopulated AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'",
        )
        .unwrap();
    let rows = cluster
        .psql_script(database, &format!("SET extra_float_digits = 3;\n{names};"))
        .unwrap();
    assert!(rows.lines().count() > 30, "{rows}");
    // The parts of the union come in no promised order.
    let mut rows: Vec<String> = rows.lines().map(str::to_owned).collect();
    rows.sort();
    all.extend(rows);
    let large = "SELECT oid, length(lo_get(oid)), md5(lo_get(oid)), lomowner::regrole, obj_description(oid, 'pg_largeobject'),
           ARRAY(SELECT concat_ws(' ', CASE WHEN a.grantee > 0 THEN pg_get_userbyid(a.grantee) END, a.privilege_type, a.is_grantable)
             FROM aclexplode(lomacl) a ORDER BY 1) FROM pg_largeobject_metadata ORDER BY oid";
    let large = cluster.psql(database, large).unwrap();
    assert_eq!(large.lines().count(), 3, "{large}");
    all.extend(large.lines().map(str::to_owned));
    all
}

#[test]
fn each_major_into_itself_and_every_later_one() {
    let clusters = clusters();
    let newest = clusters[clusters.len() - 1].1.bin_dir().to_owned();
    for (n, (major, source)) in clusters.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let essrun = essrun(dir.path(), &[source.bin_dir()]);
        let provider = match major {
            17.. => "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LC_COLLATE 'C' LC_CTYPE 'C'",
            _ => "LOCALE 'C'",
        };
        let create = format!("CREATE DATABASE awkward TEMPLATE template0 ENCODING 'UTF8' {provider}");
        source.psql("postgres", &create).unwrap();
        let mut sql = AWKWARD.replace("CREATE ROLE app LOGIN; CREATE ROLE reader;", "");
        for (what, instead) in WITHOUT {
            assert!(sql.contains(what), "{what}");
            sql = sql.replace(what, instead);
        }
        for (_, more) in SINCE.iter().filter(|(since, _)| since <= major) {
            sql.push_str(more);
        }
        source.psql_script("awkward", &sql).unwrap();
        let backed_up = essrun
            .clone()
            .env("DB", source.uri("awkward"))
            .run(&["pipeline.toml"])
            .expect_success();
        let before = everything(source, "awkward", &newest);
        for (target_major, target) in &clusters[n..] {
            let name = format!("from{major}");
            let restored = essrun.clone().env("DB", target.uri(&name)).run(&[
                "restore",
                "pipeline.toml",
                "--yes",
                "--identity",
                "identity.txt",
            ]);
            assert_eq!(
                restored.code(),
                Some(0),
                "{major} into {target_major}: {restored}\n{backed_up}"
            );
            let after = everything(target, &name, &newest);
            for (before, after) in before.iter().zip(&after) {
                assert_eq!(unqualified(before), unqualified(after), "{major} into {target_major}");
            }
            assert_eq!(before.len(), after.len());
            if *major >= 17 {
                let provider = format!("SELECT datlocprovider, datlocale FROM pg_database WHERE datname = '{name}'");
                assert_eq!(target.psql("postgres", &provider).unwrap(), "b|C.UTF-8");
            }
        }
    }
}

/// A newer pg_dump writes what an older server does not know, and reads the older server all the same.
#[test]
fn a_pg_dump_newer_than_both_servers() {
    let (old, new) = (Release::of(16), Release::of(18));
    let cluster = Cluster::builder().release(old).start().unwrap();
    cluster.psql("postgres", "CREATE DATABASE small").unwrap();
    let fill = "CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g";
    cluster.psql("small", fill).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let essrun = essrun(dir.path(), &[&new.bin()]);
    essrun
        .clone()
        .env("DB", cluster.uri("small"))
        .run(&["pipeline.toml"])
        .expect_success();
    let restore = ["restore", "pipeline.toml", "--yes", "--identity", "identity.txt"];
    essrun
        .clone()
        .env("DB", cluster.uri("again"))
        .run(&restore)
        .expect_success();
    assert_eq!(
        cluster.psql("again", "SELECT count(*), sum(id) FROM t").unwrap(),
        "100|5050"
    );
}

/// An older one is no help, and what to do is said before anything is taken.
#[test]
fn a_pg_dump_older_than_the_server() {
    let newest = Release::of(18);
    let cluster = Cluster::builder().release(newest).start().unwrap();
    cluster.psql("postgres", "CREATE DATABASE small").unwrap();
    cluster
        .psql("small", "CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let essrun = essrun(dir.path(), &[&Release::of(17).bin()]).env("DB", cluster.uri("small"));
    for args in [&["pipeline.toml"][..], &["validate", "pipeline.toml"]] {
        let outcome = essrun.run(args);
        assert_ne!(outcome.code(), Some(0), "{outcome}");
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        for part in [
            "pg_dump",
            "the newest here is 17.10",
            "the server is version 18",
            "postgresql-client-18",
        ] {
            assert!(said.contains(part), "{part:?} is not in {outcome}");
        }
    }
    let listed = essrun.run(&["list", "pipeline.toml"]);
    assert!(!listed.stdout.contains("any"), "nothing was taken: {listed}");
}

/// Down is no way: refused before the first step, in the plan and when it is tried.
#[test]
fn an_earlier_server_is_refused() {
    let source = Cluster::builder().release(Release::of(16)).start().unwrap();
    source.psql("postgres", "CREATE DATABASE small").unwrap();
    source
        .psql("small", "CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
        .unwrap();
    let target = Cluster::builder().release(Release::of(16)).start().unwrap();
    let older = Cluster::builder().start().unwrap();
    let major: u32 = older
        .psql("postgres", "SHOW server_version_num")
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        major < 160_000,
        "Debian's server is {major}: take a later release for the source of this test"
    );
    let dir = tempfile::tempdir().unwrap();
    let essrun = essrun(dir.path(), &[source.bin_dir()]);
    essrun
        .clone()
        .env("DB", source.uri("small"))
        .run(&["pipeline.toml"])
        .expect_success();

    let restore = ["restore", "pipeline.toml", "--yes", "--identity", "identity.txt"];
    let below = essrun.clone().env("DB", older.uri("small"));
    let planned = below.run_json(&[&restore[..], &["--dry-run"]].concat());
    let plan = planned
        .events_of("restore-plan")
        .next()
        .unwrap_or_else(|| panic!("{planned}"));
    let found = plan["components"][0]["preconditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|p| p["check"] == "server-older");
    assert_eq!(
        found.unwrap_or_else(|| panic!("{planned}"))["severity"],
        "error",
        "{planned}"
    );
    below.run(&restore).expect_code(4).expect_stderr(&[
        "server-older",
        &format!(
            "the target server is version {}, the backup was taken from 16",
            major / 10_000
        ),
        "at least as new",
        "nothing was changed",
    ]);
    let databases = older.psql("postgres", "SELECT datname FROM pg_database").unwrap();
    assert!(!databases.contains("small"), "{databases}");
    essrun.env("DB", target.uri("small")).run(&restore).expect_success();
}

/// Since 16 to be a member is not enough to give somebody something: refused before the first step, not in the middle of it.
#[test]
fn a_member_who_may_not_act_as_the_owner() {
    let cluster = Cluster::builder().release(Release::of(16)).start().unwrap();
    for sql in [
        "CREATE ROLE keeper LOGIN; CREATE ROLE restorer LOGIN CREATEDB; GRANT keeper TO restorer WITH SET FALSE",
        "CREATE DATABASE small OWNER keeper",
    ] {
        cluster.psql_script("postgres", sql).unwrap();
    }
    let fill = "CREATE TABLE t (a int); INSERT INTO t VALUES (1); ALTER TABLE t OWNER TO keeper; ALTER SCHEMA public OWNER TO keeper";
    cluster.psql("small", fill).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let essrun = essrun(dir.path(), &[cluster.bin_dir()]);
    let as_role = |role: &str, database: &str| essrun.clone().env("DB", cluster.uri_as(role, database));
    as_role("keeper", "small").run(&["pipeline.toml"]).expect_success();
    let restore = ["restore", "pipeline.toml", "--yes", "--identity", "identity.txt"];
    as_role("restorer", "again")
        .run(&restore)
        .expect_code(4)
        .expect_stderr(&[
            "role-not-granted",
            "role `restorer` may not act as `keeper`",
            "WITH SET TRUE",
            "nothing was changed",
        ]);
    cluster
        .psql("postgres", "GRANT keeper TO restorer WITH SET TRUE")
        .unwrap();
    as_role("restorer", "again").run(&restore).expect_success();
    let owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'again'";
    assert_eq!(cluster.psql("postgres", owner).unwrap(), "keeper");
}
