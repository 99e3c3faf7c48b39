//! What the definitions in a backup become: what runs before the rows, what each table gets after its rows, and the
//! rest, in `pg_dump`'s own order.
//!
//! The scripts are cut by [`crate::sqltext`] rather than by `pg_dump`'s comments (a comment on an index can hold lines
//! that look like them) and kept as plain SQL rather than `pg_dump`'s custom format, so that anybody can read a backup
//! with `psql`.

use crate::error::{Error, Result};
use crate::names::TableName;
use crate::sqltext::{Kind, Statement, Tokens, statements};
use std::collections::{HashMap, HashSet};

/// One index to build, in any session, beside others of the same table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Build {
    pub sql: String,
    /// `SET default_tablespace …` as it stood there.
    pub tablespace: Option<String>,
}

/// What a table gets once its rows are in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct After {
    pub builds: Vec<Build>,
    /// What needs the table alone: constraints, the finished indexes made theirs.
    pub finish: Vec<Build>,
}

/// One statement of what comes after all rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Later {
    /// In its place.
    One(String),
    /// Foreign keys in a row: in any order, beside each other as long as they share no table.
    ForeignKeys(Vec<(String, HashSet<TableName>)>),
}

#[derive(Debug, Default)]
pub(super) struct PostData {
    /// Settings at the head of the script, for every session that runs parts of it.
    pub settings: Vec<String>,
    pub after: HashMap<TableName, After>,
    pub later: Vec<Later>,
}

/// What to leave out of a script.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filter<'a> {
    pub owners: bool,
    pub privileges: bool,
    /// Names of settings the target knows, lower case.
    pub settings: &'a HashSet<String>,
}

impl Filter<'_> {
    fn keeps(&self, s: &Statement) -> bool {
        let word = |i: usize| s.words.get(i).map_or("", String::as_str);
        match word(0) {
            "SET" => self.settings.contains(&word(1).to_lowercase()),
            "GRANT" | "REVOKE" => self.privileges,
            "ALTER" if word(1) == "DEFAULT" && word(2) == "PRIVILEGES" => self.privileges,
            "ALTER" => {
                self.owners
                    || !s
                        .words
                        .windows(2)
                        .any(|w| matches!(w, [a, b] if a == "OWNER" && b == "TO"))
            }
            _ => true,
        }
    }
}

/// The script as statements, without what the filter leaves out. Nothing in it may move data.
pub(super) fn script(what: &str, bytes: &[u8], filter: &Filter<'_>) -> Result<Vec<Statement>> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::damaged(what, "it is not UTF-8"))?;
    let all = statements(text).map_err(|why| Error::damaged(what, why))?;
    if all.iter().any(|s| s.starts(&["COPY"])) {
        return Err(Error::damaged(what, "it holds COPY, which definitions never do"));
    }
    Ok(all.into_iter().filter(|s| filter.keeps(s)).collect())
}

/// Sorts the statements after the rows. `tables` are those whose rows come from the backup.
pub(super) fn post_data(all: Vec<Statement>, tables: &HashSet<TableName>) -> PostData {
    let mut out = PostData::default();
    let mut head = true;
    let mut tablespace = None::<String>;
    for s in all {
        let setting = s.starts(&["SET"]) || (s.starts(&["SELECT"]) && s.sql.contains("pg_catalog.set_config("));
        if setting && s.sql.to_lowercase().contains("default_tablespace") {
            tablespace = Some(s.sql.clone());
            out.later.push(Later::One(s.sql));
            continue;
        }
        if setting && head {
            out.settings.push(s.sql);
            continue;
        }
        head = false;
        let of = subject(&s);
        match of {
            Some((table, What::Index)) if tables.contains(&table) => {
                out.after.entry(table).or_default().builds.push(Build {
                    sql: s.sql,
                    tablespace: tablespace.clone(),
                });
            }
            Some((table, What::Constraint)) if tables.contains(&table) => {
                let after = out.after.entry(table.clone()).or_default();
                match using_index(&s.sql, &table) {
                    Some((build, finish)) => {
                        after.builds.push(Build {
                            sql: build,
                            tablespace: tablespace.clone(),
                        });
                        after.finish.push(Build {
                            sql: finish,
                            tablespace: None,
                        });
                    }
                    None => after.finish.push(Build {
                        sql: s.sql,
                        tablespace: tablespace.clone(),
                    }),
                }
            }
            Some((table, What::ForeignKey(other))) => {
                let key = (s.sql, HashSet::from([table, other]));
                match out.later.last_mut() {
                    Some(Later::ForeignKeys(keys)) => keys.push(key),
                    _ => out.later.push(Later::ForeignKeys(vec![key])),
                }
            }
            _ => out.later.push(Later::One(s.sql)),
        }
    }
    out
}

/// A script sorted as a restore sorts it, for fuzzers: nothing of it may get lost.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_definitions(bytes: &[u8]) {
    let settings = HashSet::from(["default_tablespace".to_owned()]);
    let filter = Filter {
        owners: true,
        privileges: true,
        settings: &settings,
    };
    let Ok(kept) = script("x", bytes, &filter) else { return };
    let tables: HashSet<TableName> = kept.iter().filter_map(subject).map(|(table, _)| table).collect();
    let count = kept.len();
    let sorted = post_data(kept, &tables);
    let later = sorted.later.iter().map(|l| match l {
        Later::One(_) => 1,
        Later::ForeignKeys(keys) => keys.len(),
    });
    // A constraint may become two: an index, and what takes it over.
    let after = sorted.after.values().map(|a| a.builds.len() + a.finish.len());
    let all = sorted.settings.len() + later.sum::<usize>() + after.sum::<usize>();
    assert!(all >= count, "a statement got lost: {all} of {count}");
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Index,
    /// PRIMARY KEY, UNIQUE or EXCLUDE.
    Constraint,
    ForeignKey(TableName),
}

/// Words and names of a statement in order, gaps left out: (kind, text).
fn pieces(sql: &str) -> Vec<(Kind, &str)> {
    Tokens::new(sql)
        .map_while(|t| t.ok())
        .filter(|t| t.kind != Kind::Gap)
        .map(|t| (t.kind, sql.get(t.at).unwrap_or("")))
        .collect()
}

fn name(piece: Option<&(Kind, &str)>) -> Option<String> {
    match piece? {
        (Kind::Quoted, text) => Some(text.strip_prefix('"')?.strip_suffix('"')?.replace("\"\"", "\"")),
        (Kind::Word, text) => Some(text.to_lowercase()),
        _ => None,
    }
}

/// `schema.table` beginning at piece `at`, and where it ends.
fn table_at(pieces: &[(Kind, &str)], at: usize) -> Option<(TableName, usize)> {
    let schema = name(pieces.get(at))?;
    if pieces.get(at + 1)?.0 != Kind::Char(b'.') {
        return None;
    }
    Some((TableName::new(schema, name(pieces.get(at + 2))?), at + 3))
}

fn is(piece: Option<&(Kind, &str)>, word: &str) -> bool {
    matches!(piece, Some((Kind::Word, text)) if text.eq_ignore_ascii_case(word))
}

/// What a statement makes, and on which table.
fn subject(s: &Statement) -> Option<(TableName, What)> {
    let p = pieces(&s.sql);
    if s.starts(&["CREATE", "INDEX"]) || s.starts(&["CREATE", "UNIQUE", "INDEX"]) {
        let on = p.iter().position(|piece| is(Some(piece), "ON"))?;
        if is(p.get(on + 1), "ONLY") {
            // A partitioned table's own index has no rows to read.
            return None;
        }
        return Some((table_at(&p, on + 1)?.0, What::Index));
    }
    if !s.starts(&["ALTER", "TABLE"]) {
        return None;
    }
    let from = if is(p.get(2), "ONLY") { 3 } else { 2 };
    let (table, at) = table_at(&p, from)?;
    if !(is(p.get(at), "ADD") && is(p.get(at + 1), "CONSTRAINT")) {
        return None;
    }
    let kind = at + 3;
    if is(p.get(kind), "FOREIGN") {
        let references = p.iter().skip(kind).position(|piece| is(Some(piece), "REFERENCES"))? + kind;
        let (other, _) = table_at(&p, references + 1)?;
        Some((table, What::ForeignKey(other)))
    } else if is(p.get(kind), "PRIMARY") || is(p.get(kind), "UNIQUE") || is(p.get(kind), "EXCLUDE") {
        Some((table, What::Constraint))
    } else {
        None
    }
}

/// `ALTER TABLE ONLY t ADD CONSTRAINT c PRIMARY KEY (…)` as an index that can be built beside others, and the constraint
/// that takes it over. `None` where the shape is any other; then it runs as it stands.
fn using_index(sql: &str, table: &TableName) -> Option<(String, String)> {
    let p = pieces(sql);
    let add = p.iter().position(|piece| is(Some(piece), "ADD"))?;
    let constraint = p.get(add + 2).filter(|(kind, _)| *kind == Kind::Quoted)?.1;
    let (word, mut at) = if is(p.get(add + 3), "PRIMARY") && is(p.get(add + 4), "KEY") {
        ("PRIMARY KEY", add + 5)
    } else if is(p.get(add + 3), "UNIQUE") {
        ("UNIQUE", add + 4)
    } else {
        return None;
    };
    if p.get(at)?.0 != Kind::Char(b'(') {
        return None;
    }
    let mut columns = Vec::new();
    loop {
        let (kind, text) = p.get(at + 1)?;
        if *kind != Kind::Quoted {
            return None;
        }
        columns.push(*text);
        at += 2;
        match p.get(at)?.0 {
            Kind::Char(b',') => {}
            Kind::Char(b')') => break,
            _ => return None,
        }
    }
    // Only what is known to stand after USING INDEX as well.
    let rest: Vec<String> = p
        .iter()
        .skip(at + 1)
        .map(|(_, text)| text.to_ascii_uppercase())
        .collect();
    let rest = rest.join(" ");
    if !matches!(rest.as_str(), "" | "DEFERRABLE" | "DEFERRABLE INITIALLY DEFERRED") {
        return None;
    }
    let build = format!(
        "CREATE UNIQUE INDEX {constraint} ON {} USING btree ({})",
        table.quoted(),
        columns.join(", ")
    );
    let finish = format!(
        "ALTER TABLE ONLY {} ADD CONSTRAINT {constraint} {word} USING INDEX {constraint} {rest}",
        table.quoted()
    );
    Some((build, finish))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_find_their_place() {
        let sql = r#"
SET statement_timeout = 0;
SET transaction_timeout = 0;
SELECT pg_catalog.set_config('search_path', '', false);
SET default_tablespace = '';
CREATE INDEX "a_i" ON "public"."a" USING "btree" ("x") WHERE ("x" > 0);
CREATE UNIQUE INDEX "c_i" ON "public"."other" USING "btree" ("x");
ALTER TABLE ONLY "public"."a"
    ADD CONSTRAINT "a_pkey" PRIMARY KEY ("x", "y,"")");
ALTER TABLE ONLY "public"."a" ADD CONSTRAINT "a_u" UNIQUE ("x") INCLUDE ("y");
ALTER TABLE ONLY "public"."a" ADD CONSTRAINT "a_d" UNIQUE ("x") DEFERRABLE INITIALLY DEFERRED;
CREATE INDEX "p_i" ON ONLY "public"."p" USING "btree" ("x");
CREATE TRIGGER "t" AFTER INSERT ON "public"."a" FOR EACH ROW EXECUTE FUNCTION "public"."f"();
ALTER TABLE ONLY "public"."a" ADD CONSTRAINT "f1" FOREIGN KEY ("x") REFERENCES "public"."b"("y") ON DELETE CASCADE;
ALTER TABLE ONLY "public"."b" ADD CONSTRAINT "f2" FOREIGN KEY ("x") REFERENCES "public"."b"("y");
ALTER TABLE "public"."a" OWNER TO "me";
GRANT SELECT ON TABLE "public"."a" TO "you";
"#;
        let known = ["statement_timeout", "default_tablespace"]
            .map(str::to_owned)
            .into_iter()
            .collect();
        let filter = Filter {
            owners: false,
            privileges: false,
            settings: &known,
        };
        let a = TableName::new("public", "a");
        let post = post_data(
            script("x", sql.as_bytes(), &filter).unwrap(),
            &HashSet::from([a.clone()]),
        );
        assert_eq!(post.settings.len(), 2);
        let after = &post.after[&a];
        assert_eq!(after.builds.len(), 3, "{after:#?}");
        assert_eq!(after.finish.len(), 3);
        assert!(after.finish[0].sql.ends_with("PRIMARY KEY USING INDEX \"a_pkey\" "));
        assert!(after.finish[1].sql.contains("INCLUDE"));
        assert!(
            after.finish[2]
                .sql
                .ends_with("UNIQUE USING INDEX \"a_d\" DEFERRABLE INITIALLY DEFERRED")
        );
        // default_tablespace, other's index, the partitioned index, the trigger, the keys
        assert_eq!(post.later.len(), 5, "{:#?}", post.later);
        assert!(matches!(&post.later[4], Later::ForeignKeys(keys) if keys.len() == 2 && keys[0].1.len() == 2));
        assert!(script("x", b"COPY x FROM stdin;\n", &filter).is_err());
    }
}
