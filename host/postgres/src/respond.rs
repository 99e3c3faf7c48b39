//! Statements in a live database, on a person's request: the answer to a leak.
//!
//! The only place in this room that writes to a live database. One statement, one transaction; what it is was shown
//! before, with the number of rows it will touch. Only statements that change rows are taken.

use crate::connection::{Connection, Session};
use crate::error::{Error, Result};

/// The first words a statement may have.
const CHANGES_ROWS: &[&str] = &["delete", "update", "insert", "with", "truncate"];

/// Runs one statement in a transaction of its own and answers how many rows it touched. On an error nothing was changed.
pub async fn apply(connection: &Connection, statement: &str) -> Result<u64> {
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
    let session = Session::open(connection).await?;
    session
        .run(
            "begin",
            "BEGIN; SET LOCAL lock_timeout = '10s'; SET LOCAL statement_timeout = '10min'",
        )
        .await?;
    // Prepared by the server: a second statement in the text is an error.
    let rows = session
        .execute(statement, &[])
        .await
        .map_err(|e| session.error("the statement", &e))?;
    session.run("commit", "COMMIT").await?;
    Ok(rows)
}
