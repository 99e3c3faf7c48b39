//! Statements in a live database, on a person's request: the answer to a leak.
//!
//! The only place in this room that writes to a live database. One statement, one transaction; what it is was shown
//! before, with the number of rows it will touch. Only statements that change rows are taken, and one that touches
//! another number of rows than its count says, both seen at one instant, changes nothing.

use crate::connection::{Connection, Session};
use crate::error::{Error, Result};
use crate::inspect::{QueryLimits, counted};
use crate::names::quote_ident;
use crate::sqltext::{self, Kind, Tokens};

/// The first words a statement may have.
const CHANGES_ROWS: &[&str] = &["delete", "update", "insert", "with", "truncate"];
/// Somebody else changed the same rows meanwhile.
const SERIALIZATION: &str = "40001";
/// As often it is tried again then.
const TRIES: u32 = 5;

/// Runs one statement in a transaction of its own and answers how many rows it touched, which is what `count_sql` counts
/// at the same instant. On an error nothing was changed.
pub async fn apply(connection: &Connection, statement: &str, count_sql: &str) -> Result<u64> {
    let first: String = statement
        .trim_start()
        .chars()
        .take_while(char::is_ascii_alphabetic)
        .collect::<String>()
        .to_ascii_lowercase();
    if !CHANGES_ROWS.contains(&first.as_str()) {
        return Err(Error::Invalid(format!(
            "a statement that begins with {first:?} is not run; it must begin with one of {}",
            CHANGES_ROWS.join(", ")
        )));
    }
    sqltext::closed(count_sql).map_err(|why| Error::Invalid(format!("the count is not one closed SELECT: {why}")))?;
    let mut tried = 1;
    loop {
        match once(connection, statement, count_sql, first == "truncate").await {
            Err(e) if e.code() == Some(SERIALIZATION) && tried < TRIES => tried += 1,
            other => return other,
        }
    }
}

async fn once(connection: &Connection, statement: &str, count_sql: &str, says_nothing: bool) -> Result<u64> {
    let session = Session::open(connection).await?;
    // Whatever fails from here on ends the session, and with it the transaction.
    session
        .run(
            "begin",
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL lock_timeout = '10s'; SET LOCAL statement_timeout = '10min'; \
             SAVEPOINT look; SET TRANSACTION READ ONLY",
        )
        .await?;
    let counted = counted(&session, count_sql, &QueryLimits::default()).await?;
    // The savepoint's end is the end of read-only as well.
    session.run("count", "ROLLBACK TO SAVEPOINT look").await?;
    // Prepared by the server: a second statement in the text is an error.
    let touched = session
        .execute(statement, &[])
        .await
        .map_err(|e| session.error("the statement", &e))?;
    let touched = if says_nothing { counted } else { touched };
    if touched != counted {
        return Err(Error::refused(
            "the statement",
            format!("it touches {touched} rows, and its own count says {counted}; nothing was changed"),
            "do not trust the component: report it, and do by hand what is right",
        ));
    }
    session.run("commit", "COMMIT").await?;
    Ok(touched)
}

/// What a plain DELETE or UPDATE touches: `condition` in `table`. For telling whether two touch the same rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub table: String,
    pub condition: String,
}

impl Target {
    /// Of `DELETE FROM table WHERE …` and `UPDATE table SET … WHERE …`; `None` for anything less plain.
    pub fn of(statement: &str) -> Option<Target> {
        let tokens: Vec<_> = Tokens::new(statement)
            .collect::<std::result::Result<Vec<_>, _>>()
            .ok()?;
        let text = |at: usize| tokens.get(at).and_then(|t| statement.get(t.at.clone())).unwrap_or("");
        let kind = |at: usize| tokens.get(at).map(|t| t.kind);
        let is = |at: usize, word: &str| kind(at) == Some(Kind::Word) && text(at).eq_ignore_ascii_case(word);
        let mut at = 0;
        let gap = |at: &mut usize| {
            while kind(*at) == Some(Kind::Gap) {
                *at += 1;
            }
        };
        gap(&mut at);
        let delete = is(at, "DELETE");
        if !delete && !is(at, "UPDATE") {
            return None;
        }
        at += 1;
        gap(&mut at);
        if delete {
            if !is(at, "FROM") {
                return None;
            }
            at += 1;
            gap(&mut at);
        }
        if is(at, "ONLY") {
            return None;
        }
        let mut path = Vec::new();
        loop {
            path.push(match kind(at)? {
                Kind::Word => text(at).to_ascii_lowercase(),
                Kind::Quoted => text(at).strip_prefix('"')?.strip_suffix('"')?.replace("\"\"", "\""),
                _ => return None,
            });
            at += 1;
            if kind(at) != Some(Kind::Char(b'.')) {
                break;
            }
            at += 1;
        }
        gap(&mut at);
        // Straight on: an alias, a second table or what is given back would need more than this understands.
        if !is(at, if delete { "WHERE" } else { "SET" }) {
            return None;
        }
        let mut depth = 0i32;
        let mut begins = None;
        for at in at..tokens.len() {
            match kind(at)? {
                Kind::Char(b'(' | b'[') => depth += 1,
                Kind::Char(b')' | b']') => depth -= 1,
                Kind::Word if depth == 0 => match text(at).to_ascii_uppercase().as_str() {
                    "WHERE" if begins.is_none() => begins = tokens.get(at).map(|t| t.at.end),
                    "FROM" if begins.is_none() => return None,
                    "WHERE" | "RETURNING" | "USING" => return None,
                    _ => {}
                },
                _ => {}
            }
        }
        let condition = statement.get(begins?..)?.trim();
        sqltext::closed(condition).ok()?;
        let quoted: Vec<String> = path.iter().map(|name| quote_ident(name)).collect();
        Some(Target {
            table: quoted.join("."),
            condition: condition.to_owned(),
        })
    }

    /// A query of how many of its rows are also among those of the others, which are of the same table.
    pub fn shared(&self, others: &[Target]) -> String {
        let others: Vec<String> = others.iter().map(|o| format!("({}\n)", o.condition)).collect();
        // The line ends close comments the conditions may end in.
        format!(
            "SELECT count(*) FROM {} WHERE ({}\n) AND ({})",
            self.table,
            self.condition,
            others.join(" OR ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let target = |sql: &str| Target::of(sql).map(|t| (t.table, t.condition));
        for (sql, table, condition) in [
            ("DELETE FROM public.t WHERE 1 = 1", "\"public\".\"t\"", "1 = 1"),
            (
                "delete from Public.\"T\" where a = 'x WHERE y' OR (b IN (SELECT c FROM d WHERE e))",
                "\"public\".\"T\"",
                "a = 'x WHERE y' OR (b IN (SELECT c FROM d WHERE e))",
            ),
            (
                "UPDATE public.t SET a = (SELECT 1 FROM x WHERE y), b = now() WHERE b IS NULL",
                "\"public\".\"t\"",
                "b IS NULL",
            ),
        ] {
            assert_eq!(target(sql), Some((table.to_owned(), condition.to_owned())), "{sql}");
        }
        for sql in [
            "DELETE FROM public.t",
            "DELETE FROM ONLY public.t WHERE a",
            "DELETE FROM public.t AS x WHERE a",
            "DELETE FROM public.t USING u WHERE a",
            "DELETE FROM public.t WHERE a RETURNING b",
            "UPDATE public.t SET a = 1",
            "UPDATE public.t SET a = u.a FROM u WHERE true",
            "WITH x AS (SELECT 1) DELETE FROM public.t WHERE a",
            "TRUNCATE public.t",
            "DELETE FROM public.t WHERE a) OR (b",
            "DELETE FROM public.t WHERE 'a",
            "DELETE FROM",
            "",
        ] {
            assert_eq!(target(sql), None, "{sql}");
        }
    }
}
