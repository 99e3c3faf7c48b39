//! What a fragment of SQL from outside would call, and whether that does more than it may.
//!
//! For queries, row filters and `run-sql` alike. The server's plan of a query does not name everything: rows of VALUES,
//! LIMIT and OFFSET, the offsets of a window's frame are left out of it, casts are shown by their type. So the text
//! itself is read, by the server's own rules for tokens, and every function, operator, type and view it names is looked
//! up. With an empty search_path a name without a schema is the server's own; whatever else is called must be written
//! out. Views are followed into the definitions the server stores of them, and so are casts, domains and aggregates.
//!
//! What it relies on is that a function is as volatile as its owner declared it: a STABLE function that has effects is
//! the fault of the database. Nothing of the fragment is run or even prepared here.

use crate::connection::Session;
use crate::error::{Error, Result};
use crate::sqltext::{Kind, Tokens};
use std::collections::HashSet;
use tokio::sync::OnceCell;

/// Volatile functions of the server that only look, or whose effect ends with the query.
const HARMLESS: &[&str] = &[
    "random",
    "random_normal",
    "clock_timestamp",
    "timeofday",
    "gen_random_uuid",
    "uuidv4",
    "uuidv7",
    "statement_timestamp",
    "pg_is_in_recovery",
    "pg_relation_size",
    "pg_table_size",
    "pg_indexes_size",
    "pg_total_relation_size",
    "pg_database_size",
    "pg_tablespace_size",
    "pg_sequence_last_value",
    "pg_control_system",
    "pg_stat_get_activity",
];

/// What changes a database and nothing else.
const MENDING: &[&str] = &["setval", "nextval", "currval", "lastval"];

/// C functions of extensions that reach other servers or files, or run SQL that is handed to them as text; some of them
/// are declared STABLE.
const REACHING: &str = "^(dblink|pg_file_|crosstab|connectby|xpath_table)";

/// Where the server keeps passwords, and what reads a table whose name is given as text. A role that may read all data
/// may read these, and no component needs them.
const PASSWORDS: &[&str] = &[
    "pg_authid",
    "pg_shadow",
    "pg_user_mapping",
    "pg_user_mappings",
    "pg_subscription",
    "table_to_xml",
    "table_to_xml_and_xmlschema",
    "schema_to_xml",
    "schema_to_xml_and_xmlschema",
    "database_to_xml",
    "database_to_xml_and_xmlschema",
];

/// What a fragment may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum May {
    /// Read, and nothing else.
    Look,
    /// Change the database it runs in, by that database's own functions too, but not call what reaches beyond it.
    Mend,
}

/// Names in a fragment.
#[derive(Debug, Default, PartialEq, Eq)]
struct Names {
    /// Functions it may call, as (schema, name).
    functions: Vec<(String, String)>,
    /// Operators written as `OPERATOR(schema.name)`, as (schema, name); any other is the server's own.
    operators: Vec<(String, String)>,
    /// Every name and keyword, for types and views.
    words: Vec<String>,
}

/// What of a database makes it necessary to look closer at a fragment that names it: a suite has next to none of it, and
/// looking costs more than most queries. Read once for all queries on a database; what is defined in it later than that
/// was not defined by a guest.
#[derive(Debug, Default)]
pub(super) struct Remarkable {
    /// Functions of the server that may not be called, and what may lead to one without naming it: views, domains,
    /// aggregates over volatile functions, functions somebody put among the server's own.
    names: HashSet<String>,
    /// Some cast calls a volatile function.
    casts: bool,
}

/// A cell to remember it in.
pub(super) type Known = OnceCell<Remarkable>;

impl Remarkable {
    async fn of(session: &Session) -> Result<Remarkable> {
        let row = session
            .query_one(REMARKABLE, &[&HARMLESS, &REACHING])
            .await
            .map_err(|e| session.error("look up what a fragment of SQL may lead to", &e))?;
        let names: Vec<String> = row.get(0);
        Ok(Remarkable {
            names: names.into_iter().collect(),
            casts: row.get(1),
        })
    }

    /// Nothing the names lead to can be refused. `false` says nothing yet.
    fn is_nothing_to(&self, names: &Names) -> bool {
        let own = |(schema, name): &(String, String)| schema == "pg_catalog" && !self.names.contains(name);
        !self.casts
            && names.operators.is_empty()
            && names.functions.iter().all(own)
            && !names.words.iter().any(|word| self.names.contains(word))
    }
}

/// $1 functions of the server that are allowed, $2 C functions that never are.
const REMARKABLE: &str = "\
SELECT ARRAY(SELECT p.proname::text FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
    WHERE n.nspname = 'pg_catalog' AND (p.oid >= 16384 \
      OR (p.provolatile = 'v' AND p.prorettype <> 'pg_catalog.tsm_handler'::pg_catalog.regtype \
        AND p.proname <> ALL ($1::text[]::name[])) \
      OR (p.prosrc ~ $2 AND p.prolang = (SELECT l.oid FROM pg_catalog.pg_language l WHERE l.lanname = 'c'))) \
  UNION SELECT p.proname::text FROM pg_catalog.pg_aggregate a JOIN pg_catalog.pg_proc p ON p.oid = a.aggfnoid \
    JOIN pg_catalog.pg_proc s ON s.oid IN (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, \
      a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn) AND s.provolatile = 'v' \
  UNION SELECT c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind = 'v' AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
  UNION SELECT t.typname::text FROM pg_catalog.pg_type t WHERE t.typtype = 'd'), \
  EXISTS (SELECT FROM pg_catalog.pg_cast k JOIN pg_catalog.pg_proc p ON p.oid = k.castfunc AND p.provolatile = 'v')";

/// Refuses a guest's query that calls what it may not.
pub(super) async fn refuse_query(session: &Session, known: &Known, sql: &str) -> Result<()> {
    let names = names(sql).map_err(|why| Error::Invalid(format!("the query cannot be read: {why}")))?;
    look_up_unless(session, known, names).await
}

/// And by the server's plan of it: what functions of SQL and views become in it is seen there.
pub(super) async fn refuse_query_plan(session: &Session, known: &Known, plan: &str) -> Result<()> {
    look_up_unless(session, known, names_of_plan("the query", plan)?).await
}

async fn look_up_unless(session: &Session, known: &Known, names: Names) -> Result<()> {
    refuse_passwords("the query", &names)?;
    match known
        .get_or_try_init(|| Remarkable::of(session))
        .await?
        .is_nothing_to(&names)
    {
        true => Ok(()),
        false => look_up(session, "the query", names, May::Look).await,
    }
}

/// Refuses a fragment that calls what it may not. `what` names it in the error.
pub(crate) async fn refuse(session: &Session, what: &str, sql: &str, may: May) -> Result<()> {
    let names = names(sql).map_err(|why| Error::Invalid(format!("{what} cannot be read: {why}")))?;
    look_up(session, what, names, may).await
}

/// Refuses by the server's plan of a query.
pub(super) async fn refuse_plan(session: &Session, what: &str, plan: &str) -> Result<()> {
    look_up(session, what, names_of_plan(what, plan)?, May::Look).await
}

fn names_of_plan(what: &str, plan: &str) -> Result<Names> {
    let mut names =
        names(plan).map_err(|why| Error::Invalid(format!("the server's plan of {what} cannot be read: {why}")))?;
    // What stands there besides functions was in the text, or was followed from it.
    names.words.retain(|word| PASSWORDS.contains(&word.as_str()));
    Ok(names)
}

fn refuse_passwords(what: &str, names: &Names) -> Result<()> {
    match names.words.iter().find(|word| PASSWORDS.contains(&word.as_str())) {
        None => Ok(()),
        Some(name) => Err(Error::Invalid(format!(
            "{what} was refused: it names {name}, through which passwords can be read"
        ))),
    }
}

async fn look_up(session: &Session, what: &str, names: Names, may: May) -> Result<()> {
    refuse_passwords(what, &names)?;
    let (schemas, functions): (Vec<String>, Vec<String>) = names.functions.into_iter().unzip();
    let (operator_schemas, operators): (Vec<String>, Vec<String>) = names.operators.into_iter().unzip();
    let mut allowed = HARMLESS.to_vec();
    if may == May::Mend {
        allowed.extend(MENDING);
    }
    let found = session
        .query_opt(
            CALLED,
            &[
                &schemas,
                &functions,
                &operator_schemas,
                &operators,
                &names.words,
                &allowed,
                &(may == May::Look),
                &REACHING,
            ],
        )
        .await
        .map_err(|e| session.error("look up what a fragment of SQL calls", &e))?;
    let Some(row) = found else { return Ok(()) };
    let (schema, name): (&str, &str) = (row.get(0), row.get(1));
    let name = match schema {
        "pg_catalog" => name.to_owned(),
        _ => format!("{schema}.{name}"),
    };
    Err(Error::Invalid(match may {
        May::Look => format!("{what} calls {name}(), which may have effects beyond reading, and guests may only read"),
        May::Mend => format!("{what} was refused: it calls {name}(), which reaches beyond the restored database"),
    }))
}

/// Of all that the names lead to, one function that is not allowed: $1 and $2 functions, $3 and $4 operators, $5 words,
/// $6 functions of the server that are allowed, $7 whether volatile functions of others are refused too, $8 C functions
/// that always are. The numbers in stored definitions are those of functions that calls, operators, aggregates and
/// window functions lead to. A cast counts where the types that are not the server's own are present: named, of a
/// column of a named relation, or of a named function.
const CALLED: &str = "\
WITH RECURSIVE view (oid) AS ( \
  SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind = 'v' AND c.relname = ANY ($5::text[]::name[]) AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
  UNION SELECT c.oid FROM view v JOIN pg_catalog.pg_rewrite r ON r.ev_class = v.oid \
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid \
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
    JOIN pg_catalog.pg_class c ON c.oid = d.refobjid AND c.relkind = 'v' \
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname NOT IN ('pg_catalog', 'information_schema')), \
 domain (oid) AS ( \
  SELECT t.oid FROM pg_catalog.pg_type t WHERE t.typtype = 'd' AND t.typname = ANY ($5::text[]::name[]) \
  UNION SELECT t.typbasetype FROM domain d JOIN pg_catalog.pg_type t ON t.oid = d.oid WHERE t.typbasetype <> 0), \
 stored (definition) AS ( \
  SELECT r.ev_action::text FROM view v JOIN pg_catalog.pg_rewrite r ON r.ev_class = v.oid \
  UNION ALL SELECT k.conbin::text FROM domain d JOIN pg_catalog.pg_constraint k ON k.contypid = d.oid WHERE k.conbin IS NOT NULL), \
 named (oid) AS ( \
  SELECT p.oid FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS f (s, n) \
    JOIN pg_catalog.pg_proc p ON p.proname = f.n::name \
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace AND n.nspname = f.s::name), \
 present (oid) AS ( \
  SELECT t.oid FROM pg_catalog.pg_type t WHERE t.typname = ANY ($5::text[]::name[]) \
    OR pg_catalog.split_part(pg_catalog.format_type(t.oid, NULL), ' ', 1) = ANY ($5::text[]) \
  UNION SELECT a.atttypid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 \
    WHERE c.relname = ANY ($5::text[]::name[]) \
  UNION SELECT y.oid FROM named f JOIN pg_catalog.pg_proc p ON p.oid = f.oid, \
    pg_catalog.unnest(p.prorettype || COALESCE(p.proallargtypes, p.proargtypes::oid[])) AS y (oid) \
  UNION SELECT y.oid FROM present p JOIN pg_catalog.pg_type t ON t.oid = p.oid, \
    LATERAL (SELECT t.typelem UNION ALL SELECT t.typbasetype UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a \
      WHERE a.attrelid = t.typrelid AND a.attnum > 0) AS y (oid) WHERE y.oid <> 0), \
 called (oid) AS ( \
  SELECT oid FROM named \
  UNION SELECT o.oprcode::oid FROM ROWS FROM (pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::text[])) AS f (s, n) \
    JOIN pg_catalog.pg_operator o ON o.oprname = f.n::name \
    JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace AND n.nspname = f.s::name \
  UNION SELECT m.found[1]::oid FROM stored s, \
    pg_catalog.regexp_matches(s.definition, ':(?:funcid|opfuncid|aggfnoid|winfnoid) ([0-9]+)', 'g') AS m (found) \
  UNION SELECT k.castfunc FROM pg_catalog.pg_cast k JOIN pg_catalog.pg_proc p ON p.oid = k.castfunc AND p.provolatile = 'v' WHERE CASE \
      WHEN k.castsource < 16384 AND k.casttarget < 16384 THEN k.castsource IN (SELECT oid FROM present) OR k.casttarget IN (SELECT oid FROM present) \
      ELSE (k.castsource < 16384 OR k.castsource IN (SELECT oid FROM present)) \
        AND (k.casttarget < 16384 OR k.casttarget IN (SELECT oid FROM present)) END), \
 reached (oid) AS ( \
  SELECT c.oid FROM called c \
  UNION SELECT s.oid FROM called c JOIN pg_catalog.pg_aggregate a ON a.aggfnoid = c.oid, \
    pg_catalog.unnest(ARRAY[a.aggtransfn::oid, a.aggfinalfn::oid, a.aggcombinefn::oid, a.aggserialfn::oid, \
      a.aggdeserialfn::oid, a.aggmtransfn::oid, a.aggminvtransfn::oid, a.aggmfinalfn::oid]) AS s (oid)) \
SELECT n.nspname::text, p.proname::text FROM reached r JOIN pg_catalog.pg_proc p ON p.oid = r.oid \
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
 WHERE p.prorettype <> 'pg_catalog.tsm_handler'::pg_catalog.regtype AND ( \
   (p.provolatile = 'v' AND ($7 OR n.nspname = 'pg_catalog') \
     AND NOT (n.nspname = 'pg_catalog' AND p.proname = ANY ($6::text[]::name[]))) \
   OR (l.lanname = 'c' AND p.prosrc ~ $8)) \
 ORDER BY 1, 2 LIMIT 1";

/// A name as the server understands it.
fn spelled(kind: Kind, text: &str) -> Option<String> {
    match kind {
        Kind::Word => Some(text.to_ascii_lowercase()),
        Kind::Quoted => Some(text.strip_prefix('"')?.strip_suffix('"')?.replace("\"\"", "\"")),
        _ => None,
    }
}

/// The catalog's name of a type that SQL has a word of its own for.
fn catalog_type(word: &str) -> Option<&'static str> {
    Some(match word {
        "int" => "int4",
        "float" => "float8",
        "dec" | "decimal" => "numeric",
        "char" | "nchar" => "bpchar",
        _ => return None,
    })
}

fn names(sql: &str) -> Result<Names, &'static str> {
    let tokens: Vec<_> = Tokens::new(sql).collect::<Result<_, _>>()?;
    // White space and comments may stand between a name and its parenthesis, and around a dot.
    let pieces: Vec<(Kind, &str)> = tokens
        .into_iter()
        .filter(|t| t.kind != Kind::Gap)
        .map(|t| (t.kind, sql.get(t.at).unwrap_or("")))
        .collect();
    let name = |at: usize| pieces.get(at).and_then(|(kind, text)| spelled(*kind, text));
    let is = |at: Option<usize>, c: u8| at.and_then(|at| pieces.get(at)).is_some_and(|p| p.0 == Kind::Char(c));
    let own = || "pg_catalog".to_owned();
    let mut out = Names::default();
    for at in 0..pieces.len() {
        let Some(word) = name(at) else { continue };
        let schema = match is(at.checked_sub(1), b'.') {
            true => Some(at.checked_sub(2).and_then(name)),
            false => None,
        };
        if is(Some(at + 1), b'(') {
            out.functions
                .push((schema.clone().flatten().unwrap_or_else(own), word.clone()));
            if schema.is_none() && word == "operator" {
                let inside = pieces.get(at + 2..).unwrap_or_default();
                let end = inside.iter().position(|p| p.0 == Kind::Char(b')'));
                let inside = inside.get(..end.unwrap_or(inside.len())).unwrap_or_default();
                let dot = inside.iter().rposition(|p| p.0 == Kind::Char(b'.'));
                let of = dot
                    .and_then(|dot| inside.get(dot.checked_sub(1)?))
                    .and_then(|(kind, text)| spelled(*kind, text));
                let symbol = inside.get(dot.map_or(0, |dot| dot + 1)..).unwrap_or_default();
                out.operators
                    .push((of.unwrap_or_else(own), symbol.iter().map(|p| p.1).collect()));
            }
        }
        // `(row).f` and `t.f` call f where there is no such column.
        if schema.is_some() {
            out.functions.push((own(), word.clone()));
        }
        out.words.extend(catalog_type(&word).map(str::to_owned));
        out.words.push(word);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn functions(sql: &str) -> Vec<String> {
        let all = names(sql).unwrap().functions;
        all.into_iter()
            .map(|(schema, name)| format!("{schema}|{name}"))
            .collect()
    }

    #[test]
    fn calls_are_found_however_they_are_written() {
        assert_eq!(
            functions("  Output: (pg_sleep('1'::double precision))::text, public.\"F o\"(x), count(*), 'x(\n' || a"),
            [
                "pg_catalog|pg_sleep",
                "public|F o",
                "pg_catalog|F o",
                "pg_catalog|count"
            ]
        );
        for sql in [
            "pg_sleep(1)",
            "PG_Sleep  (1)",
            "pg_sleep/* a /* b */ */(1)",
            "pg_sleep -- (\n (1)",
            "\"pg_sleep\"(1)",
            "pg_catalog . pg_sleep (1)",
            "db.pg_catalog.\"pg_sleep\" (1)",
            "(x).pg_sleep",
            "t.pg_sleep",
            "E'a'\n'\\'', pg_sleep(1), ''",
            "E'a' -- c\n 'b\\'', pg_sleep(1)",
        ] {
            assert!(functions(sql).contains(&"pg_catalog|pg_sleep".to_owned()), "{sql}");
        }
        for sql in ["'pg_sleep(1)'", "$$pg_sleep(1)$$", "-- pg_sleep(1)", "pg_sleep + (1)"] {
            assert!(!functions(sql).contains(&"pg_catalog|pg_sleep".to_owned()), "{sql}");
        }
    }

    #[test]
    fn operators_and_types_are_found() {
        let got = names("a OPERATOR ( \"s\" . <-> ) b::int, c OPERATOR(=) d").unwrap();
        let want = [("s", "<->"), ("pg_catalog", "=")];
        assert_eq!(got.operators, want.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert!(got.words.contains(&"int4".to_owned()));
    }
}
