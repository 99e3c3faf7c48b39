//! A database out of a snapshot into artifacts.
//!
//! First a [`plan`]: which tables, how many rows about, in which format, split how, and what is left out and why; it
//! reads the catalog and changes nothing. Then [`execute`] carries exactly that out: the definitions come from
//! `pg_dump` at the same snapshot, the rows from our own COPY on as many sessions as the plan says.
//!
//! It promises: what it reports as done was seen to its end (COPY's end mark, the row count, the child's exit status,
//! the holder still alive), and the definitions did not change meanwhile. It never waits in a migration's way: locks
//! are asked for with a timeout.

mod copy;
mod ddl;
mod execute;
mod facts;
mod plan;
mod report;

pub use execute::artifact_name;
pub use plan::{DumpPlan, DumpRequest, FormatPolicy, LeftOut, PlannedPart, PlannedTable, RowFilter, TableRule, plan};
pub use report::{DatabaseFacts, DumpReport, Format, TableMeta, TablePart, TableReport, table_contents};

use crate::error::Result;
use crate::snapshot::Snapshot;
use essrun_artifact::{ArtifactName, BackupWriter, Progress, Sensitivity};
use std::sync::Arc;

/// Kind of the artifacts that hold definitions.
pub const KIND_DDL: &str = "postgres-ddl";
/// Kind of the artifacts that hold a table's rows.
pub const KIND_TABLE: &str = "postgres-table";
/// Kind of the artifact that holds sequence positions, as SQL.
pub const KIND_SEQUENCES: &str = "postgres-sequences";
/// Kind of the artifact that holds facts about the database, as JSON.
pub const KIND_FACTS: &str = "postgres-facts";
/// Kind of the artifact that holds large objects, as COPY text of (oid, offset, bytes); an empty one is a piece without bytes.
pub const KIND_LARGE_OBJECTS: &str = "postgres-large-objects";

/// The last part of the name of the artifact with their owners and rights, definitions in SQL. A backup without it is of
/// a time when empty large objects gave no piece.
pub(crate) const LARGE_OBJECT_RIGHTS: &str = "ddl-large-objects";

/// Says how sensitive an artifact is, by its full name.
pub type Classify = Arc<dyn Fn(&ArtifactName) -> Sensitivity + Send + Sync>;

/// Carries out a plan. Artifacts are recorded under `prefix`, which is `component/label`.
pub async fn execute(
    snapshot: &Snapshot,
    plan: DumpPlan,
    prefix: &str,
    writer: Arc<dyn BackupWriter>,
    sensitivity: Classify,
    progress: Arc<dyn Progress>,
) -> Result<DumpReport> {
    execute::execute(snapshot, plan, prefix, writer, sensitivity, progress).await
}

/// Locks the plan's tables for reading until the snapshot ends, and reads their definitions. [`execute`] does it too; doing
/// it right after [`plan`] finds a table that is already gone, or somebody who is about to alter one
/// ([`crate::Error::Changed`]), while the snapshot can still be taken again.
pub async fn hold(snapshot: &Snapshot, plan: &mut DumpPlan) -> Result<()> {
    execute::lock(snapshot, plan).await?;
    let definitions = ddl::definitions(snapshot, &plan.database, plan.lock_timeout_ms).await?;
    plan.definitions = Some(std::sync::Arc::new(definitions));
    Ok(())
}
