//! The host's side of ess:inspect: every call of a guest comes through here and is counted before it is answered.
//!
//! One [`State`] belongs to one call into a guest and dies with it. Limits that the contract can express come back to
//! the guest as `error.limit`, so that a component can cope (ask for fewer rows, close a handle); limits that only an
//! attacker reaches end the call with a trap. Whoever ends a call notes why in `stop` first: traps carry no reason.

use crate::contract::bindings::ess::inspect::{database, log as guest_log, settings, types, volume};
use crate::contract::inspect::{Cell, DatabaseInfo, Entry, FileDigest, Level, TableInfo};
use crate::error::Stop;
use crate::log::{Budget, Verdict};
use crate::stderr::Tail;
use crate::world::{ListingSource, LookError, RowSource, World};
use crate::{Limits, wasi};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wasmtime::component::{Resource, ResourceTable, ResourceTableError};
use wasmtime::{ResourceLimiter, Result, UpdateDeadline, format_err};
use wasmtime_wasi::WasiCtx;

/// How often the guest is interrupted to look at the clock, and to let other work of the host run.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// Paths in one `look` or `digest`; the contract says so.
const PATHS: usize = 1000;

/// The host's part of a `rows` handle.
pub struct Rows {
    source: Box<dyn RowSource>,
}

/// The host's part of a `listing` handle.
pub struct Listing {
    source: Box<dyn ListingSource>,
}

/// What the host keeps for one call into a guest.
pub struct State {
    pub(crate) wasi: WasiCtx,
    pub(crate) table: ResourceTable,
    world: Arc<dyn World>,
    limits: Limits,
    stderr: Tail,
    log: Budget,
    host_calls: u64,
    rows: u64,
    looked_at: u64,
    memory: u64,
    table_elements: u64,
    /// The guest was refused memory; if it gives up next, that is why.
    memory_refused: bool,
    computed: Duration,
    running_since: Instant,
    stop: Option<Stop>,
}

impl State {
    pub(crate) fn new(world: Arc<dyn World>, limits: &Limits) -> Self {
        let stderr = Tail::default();
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles as usize);
        State {
            wasi: wasi::context(stderr.clone()),
            table,
            world,
            stderr,
            log: Budget::new(limits),
            host_calls: 0,
            rows: 0,
            looked_at: 0,
            memory: 0,
            table_elements: 0,
            memory_refused: false,
            computed: Duration::ZERO,
            running_since: Instant::now(),
            stop: None,
            limits: limits.clone(),
        }
    }

    /// Why the call was ended by the host, if it was.
    pub(crate) fn stopped(&self) -> Option<Stop> {
        self.stop.clone()
    }

    pub(crate) fn memory_refused(&self) -> bool {
        self.memory_refused
    }

    pub(crate) fn last_words(&self) -> Option<String> {
        self.stderr.words()
    }

    fn end(&mut self, why: Stop) -> wasmtime::Error {
        let error = format_err!("{why}");
        self.stop.get_or_insert(why);
        error
    }

    /// Counts what the guest computed since it last got the processor. A single span counts at most two ticks: the
    /// guest is looked at every tick, so a longer span was the host's other work.
    fn count_computing(&mut self) -> Result<()> {
        let now = Instant::now();
        self.computed += (now - self.running_since).min(2 * TICK);
        self.running_since = now;
        if self.computed > self.limits.cpu {
            return Err(self.end(Stop::Cpu { limit: self.limits.cpu }));
        }
        Ok(())
    }

    /// Called at every tick in which the guest computes.
    pub(crate) fn tick(&mut self) -> Result<UpdateDeadline> {
        self.count_computing()?;
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    }

    /// Every host function begins with this …
    fn enter(&mut self) -> Result<()> {
        self.count_computing()?;
        self.host_calls += 1;
        if self.host_calls > self.limits.host_calls {
            return Err(self.end(Stop::HostCalls {
                limit: self.limits.host_calls,
            }));
        }
        Ok(())
    }

    /// … and ends with this.
    fn leave<T>(&mut self, answer: T) -> Result<T> {
        self.running_since = Instant::now();
        Ok(answer)
    }

    /// Charges bytes that pass between guest and host in looks.
    fn charge(&mut self, bytes: u64) -> Result<(), LookError> {
        self.looked_at = self.looked_at.saturating_add(bytes);
        if self.looked_at > self.limits.looked_at {
            return Err(limit(
                format!("{} looked at in one call", bytesize::ByteSize(self.limits.looked_at)),
                "looked-at",
            ));
        }
        Ok(())
    }

    fn charge_rows(&mut self, rows: usize) -> Result<(), LookError> {
        self.rows = self.rows.saturating_add(rows as u64);
        if self.rows > self.limits.rows {
            return Err(limit(
                format!("{} rows and entries in one call", self.limits.rows),
                "rows",
            ));
        }
        Ok(())
    }

    /// Bytes held for all open handles.
    fn held(&mut self) -> u64 {
        self.table
            .iter_mut()
            .map(|entry| {
                if let Some(rows) = entry.downcast_ref::<Rows>() {
                    rows.source.held_bytes()
                } else if let Some(listing) = entry.downcast_ref::<Listing>() {
                    listing.source.held_bytes()
                } else {
                    0
                }
            })
            .fold(0, u64::saturating_add)
    }

    /// That what is held, and so much more, is allowed.
    fn check_held(&mut self, more: u64) -> Result<(), LookError> {
        if self.held().saturating_add(more) > self.limits.held {
            let most = bytesize::ByteSize(self.limits.held);
            return Err(limit(format!("{most} held for open handles"), "held"));
        }
        Ok(())
    }

    fn too_many_handles(&self) -> LookError {
        limit(format!("{} open handles", self.limits.handles), "handles")
    }

    fn hold<T: Send + 'static>(&mut self, bytes: u64, thing: T) -> Result<Resource<T>, LookError> {
        self.check_held(bytes)?;
        self.table.push(thing).map_err(|e| match e {
            ResourceTableError::Full => self.too_many_handles(),
            other => LookError::Failed(other.to_string()),
        })
    }

    /// How much a page may still be: what the guest asks, the page limit, and what is left of the call's budget.
    fn page(&self, asked: u32) -> (u32, u64) {
        let rows = asked.min(self.limits.page_rows).max(1);
        // One more than is left, so that running into the limit is seen rather than taken for the end.
        let left = self.limits.rows.saturating_sub(self.rows).saturating_add(1);
        let rows = rows.min(u32::try_from(left).unwrap_or(u32::MAX));
        (rows, self.limits.page)
    }
}

/// What was reached, and the key under `limits` in pipeline.toml that raises it.
fn limit(what: String, key: &str) -> LookError {
    LookError::Limit(format!(
        "limit reached: {what}; raise `{key}` of its limits if it has reason to"
    ))
}

/// What the host allocates for a cell, about.
fn cell_bytes(cell: &Cell) -> u64 {
    32 + match cell {
        Cell::Text(t) => t.len() as u64,
        Cell::Bytes(b) => b.len() as u64,
        Cell::Null | Cell::Boolean(_) | Cell::Integer(_) | Cell::Real(_) => 0,
    }
}

/// What a row counts in pages and against limits, in bytes.
pub fn row_bytes(row: &[Cell]) -> u64 {
    24 + row.iter().map(cell_bytes).sum::<u64>()
}

fn rows_bytes(rows: &[Vec<Cell>]) -> u64 {
    rows.iter().map(|r| row_bytes(r)).sum()
}

fn entry_bytes(entry: &Entry) -> u64 {
    64 + entry.path.len() as u64
}

fn texts_bytes(texts: &[String]) -> u64 {
    texts.iter().map(|t| 24 + t.len() as u64).sum()
}

/// A page as a source gave it, if it kept its promise. A source that does not is a fault of the host, said as such.
fn checked_page<T>(items: Vec<T>, most: u32, bytes: u64, most_bytes: u64) -> Result<Vec<T>, LookError> {
    if items.len() > most as usize {
        return Err(LookError::Failed(
            "the host's source gave more rows than asked for".to_owned(),
        ));
    }
    // A page ends with the row that passes the limit, so one row may be larger than the page; two pages never.
    if items.len() > 1 && bytes > most_bytes.saturating_mul(2) || bytes > most_bytes.saturating_mul(16) {
        return Err(limit(format!("a page of {}", bytesize::ByteSize(most_bytes)), "page"));
    }
    Ok(items)
}

impl types::Host for State {}

impl database::Host for State {
    async fn info(&mut self, label: String) -> Result<Result<DatabaseInfo, LookError>> {
        self.enter()?;
        let world = self.world.clone();
        let answer = match self.charge(label.len() as u64) {
            Ok(()) => world.info(&label).await,
            Err(e) => Err(e),
        };
        self.leave(answer)
    }

    async fn tables(&mut self, label: String) -> Result<Result<Vec<TableInfo>, LookError>> {
        self.enter()?;
        let answer = self.look_at_tables(&label).await;
        self.leave(answer)
    }

    async fn query(
        &mut self,
        label: String,
        sql: String,
        params: Vec<Cell>,
    ) -> Result<Result<Resource<Rows>, LookError>> {
        self.enter()?;
        let answer = self.begin_query(&label, &sql, params).await;
        self.leave(answer)
    }
}

impl State {
    async fn look_at_tables(&mut self, label: &str) -> Result<Vec<TableInfo>, LookError> {
        self.charge(label.len() as u64)?;
        let tables = self.world.clone().tables(label).await?;
        self.charge_rows(tables.len())?;
        let bytes = tables
            .iter()
            .map(|t| 128 + (t.schema.len() + t.name.len()) as u64 + texts_bytes(&t.columns));
        self.charge(bytes.sum())?;
        Ok(tables)
    }

    async fn begin_query(&mut self, label: &str, sql: &str, params: Vec<Cell>) -> Result<Resource<Rows>, LookError> {
        self.charge((label.len() + sql.len()) as u64 + params.iter().map(cell_bytes).sum::<u64>())?;
        // Before asking the server: a guest at its limits must not make it work.
        let open = self.table.iter_mut().count();
        if open >= self.limits.handles as usize {
            return Err(self.too_many_handles());
        }
        let source = self.world.clone().query(label, sql, params).await?;
        let held = source.held_bytes();
        self.hold(held, Rows { source })
    }

    async fn next_rows(&mut self, rows: &Resource<Rows>, asked: u32) -> Result<Vec<Vec<Cell>>, LookError> {
        let (most, bytes) = self.page(asked);
        let handle = self.table.get_mut(rows).map_err(|e| LookError::Failed(e.to_string()))?;
        let page = handle.source.next(most, bytes).await?;
        let page_bytes = rows_bytes(&page);
        let page = checked_page(page, most, page_bytes, bytes)?;
        self.charge_rows(page.len())?;
        self.charge(page_bytes)?;
        self.check_held(0)?;
        Ok(page)
    }

    async fn next_entries(&mut self, listing: &Resource<Listing>, asked: u32) -> Result<Vec<Entry>, LookError> {
        let (most, bytes) = self.page(asked);
        let handle = self
            .table
            .get_mut(listing)
            .map_err(|e| LookError::Failed(e.to_string()))?;
        let page = handle.source.next(most, bytes).await?;
        let page_bytes = page.iter().map(entry_bytes).sum();
        let page = checked_page(page, most, page_bytes, bytes)?;
        self.charge_rows(page.len())?;
        self.charge(page_bytes)?;
        self.check_held(0)?;
        Ok(page)
    }

    async fn begin_walk(
        &mut self,
        label: &str,
        directory: &str,
        recursive: bool,
    ) -> Result<Resource<Listing>, LookError> {
        self.charge((label.len() + directory.len()) as u64)?;
        let open = self.table.iter_mut().count();
        if open >= self.limits.handles as usize {
            return Err(self.too_many_handles());
        }
        let source = self.world.clone().walk(label, directory, recursive).await?;
        let held = source.held_bytes();
        self.hold(held, Listing { source })
    }

    fn check_paths(&mut self, label: &str, paths: &[String]) -> Result<(), LookError> {
        if paths.len() > PATHS {
            // The contract's number, not a setting's.
            return Err(LookError::Limit(format!("limit reached: {PATHS} paths in one call")));
        }
        self.charge_rows(paths.len())?;
        self.charge(label.len() as u64 + texts_bytes(paths))
    }

    async fn look_at_paths(&mut self, label: &str, paths: Vec<String>) -> Result<Vec<Option<Entry>>, LookError> {
        self.check_paths(label, &paths)?;
        let asked = paths.len();
        let answers = self.world.clone().look(label, paths).await?;
        if answers.len() != asked {
            return Err(LookError::Failed(
                "the host gave another number of answers than asked for".to_owned(),
            ));
        }
        self.charge(answers.iter().flatten().map(entry_bytes).sum())?;
        Ok(answers)
    }

    async fn read_file(&mut self, label: &str, path: &str, max_bytes: u32) -> Result<Vec<u8>, LookError> {
        self.charge((label.len() + path.len()) as u64)?;
        let most = u64::from(max_bytes).min(self.limits.file);
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        let bytes = match self.world.clone().read(label, path, most).await {
            Err(LookError::Limit(what)) if max_bytes > most => return Err(limit(what, "file")),
            read => read?,
        };
        if bytes.len() as u64 > u64::from(most) {
            return Err(LookError::Failed(
                "the host's source read more than asked for".to_owned(),
            ));
        }
        self.charge(bytes.len() as u64)?;
        Ok(bytes)
    }

    async fn digest_files(&mut self, label: &str, paths: Vec<String>) -> Result<Vec<Option<FileDigest>>, LookError> {
        self.check_paths(label, &paths)?;
        let asked = paths.len();
        let answers = self.world.clone().digest(label, paths).await?;
        if answers.len() != asked {
            return Err(LookError::Failed(
                "the host gave another number of answers than asked for".to_owned(),
            ));
        }
        self.charge(96 * answers.len() as u64)?;
        Ok(answers)
    }
}

impl database::HostRows for State {
    async fn columns(&mut self, rows: Resource<Rows>) -> Result<Vec<String>> {
        self.enter()?;
        let columns = self.table.get(&rows)?.source.columns();
        if let Err(e) = self.charge(texts_bytes(&columns)) {
            // `columns` has no error of its own: a guest that asks for them millions of times is ended.
            tracing::debug!(%e, "columns asked for beyond the limit");
            let limit = self.limits.looked_at;
            return Err(self.end(Stop::HandedOver { limit }));
        }
        self.leave(columns)
    }

    async fn next(&mut self, rows: Resource<Rows>, max_rows: u32) -> Result<Result<Vec<Vec<Cell>>, LookError>> {
        self.enter()?;
        let answer = self.next_rows(&rows, max_rows).await;
        self.leave(answer)
    }

    async fn drop(&mut self, rows: Resource<Rows>) -> Result<()> {
        self.enter()?;
        self.table.delete(rows)?;
        self.leave(())
    }
}

impl volume::Host for State {
    async fn walk(
        &mut self,
        label: String,
        directory: String,
        recursive: bool,
    ) -> Result<Result<Resource<Listing>, LookError>> {
        self.enter()?;
        let answer = self.begin_walk(&label, &directory, recursive).await;
        self.leave(answer)
    }

    async fn look(&mut self, label: String, paths: Vec<String>) -> Result<Result<Vec<Option<Entry>>, LookError>> {
        self.enter()?;
        let answer = self.look_at_paths(&label, paths).await;
        self.leave(answer)
    }

    async fn read(&mut self, label: String, path: String, max_bytes: u32) -> Result<Result<Vec<u8>, LookError>> {
        self.enter()?;
        let answer = self.read_file(&label, &path, max_bytes).await;
        self.leave(answer)
    }

    async fn digest(
        &mut self,
        label: String,
        paths: Vec<String>,
    ) -> Result<Result<Vec<Option<FileDigest>>, LookError>> {
        self.enter()?;
        let answer = self.digest_files(&label, paths).await;
        self.leave(answer)
    }
}

impl volume::HostListing for State {
    async fn next(&mut self, listing: Resource<Listing>, max_entries: u32) -> Result<Result<Vec<Entry>, LookError>> {
        self.enter()?;
        let answer = self.next_entries(&listing, max_entries).await;
        self.leave(answer)
    }

    async fn drop(&mut self, listing: Resource<Listing>) -> Result<()> {
        self.enter()?;
        self.table.delete(listing)?;
        self.leave(())
    }
}

impl settings::Host for State {
    async fn get(&mut self) -> Result<String> {
        self.enter()?;
        let settings = self.world.settings();
        self.leave(settings)
    }
}

impl guest_log::Host for State {
    async fn write(&mut self, level: Level, message: String) -> Result<()> {
        self.enter()?;
        match self.log.take(&message) {
            Verdict::Write(line) => self.world.log(level, &line),
            Verdict::Last => self
                .world
                .log(Level::Warn, "(its log budget is used up; further lines are dropped)"),
            Verdict::Drop => {}
            Verdict::Flood => return Err(self.end(Stop::LogFlood)),
        }
        self.leave(())
    }
}

// Interfaces of types only; they have no functions, but a component may import them.
impl crate::contract::bindings::ess::backup::types::Host for State {}
impl crate::contract::bindings::ess::backup::backup::Host for State {}
impl crate::contract::bindings::ess::backup::restore::Host for State {}
impl crate::contract::bindings::ess::backup::incident::Host for State {}

impl ResourceLimiter for State {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let after = self.memory.saturating_add((desired.saturating_sub(current)) as u64);
        if after > self.limits.memory {
            // The guest sees a failed `memory.grow`, which it may handle; most give up, and then this is why.
            self.memory_refused = true;
            return Ok(false);
        }
        self.memory = after;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let after = self
            .table_elements
            .saturating_add((desired.saturating_sub(current)) as u64);
        if after > self.limits.table_elements {
            let limit = self.limits.table_elements;
            return Err(self.end(Stop::Tables { limit }));
        }
        self.table_elements = after;
        Ok(true)
    }

    fn instances(&self) -> usize {
        1_000
    }
    fn tables(&self) -> usize {
        1_000
    }
    fn memories(&self) -> usize {
        100
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NoWorld, Overrides};

    #[test]
    fn each_limit_names_a_key_that_raises_it() {
        let limits = Limits {
            looked_at: 1,
            rows: 1,
            held: 1,
            ..Limits::default()
        };
        let mut state = State::new(Arc::new(NoWorld), &limits);
        let reached = [
            (state.charge(2), "looked-at = \"2 B\""),
            (state.charge_rows(2), "rows = 2"),
            (state.check_held(2), "held = \"2 B\""),
            (Err(state.too_many_handles()), "handles = 2"),
            (checked_page(vec![1, 2], 2, 5, 2).map(|_| ()), "page = \"9 B\""),
        ];
        for (answer, raised) in reached {
            let told = answer.unwrap_err().to_string();
            let key = raised.split(' ').next().unwrap();
            assert!(told.contains(&format!("raise `{key}` of its limits")), "{told}");
            assert!(toml::from_str::<Overrides>(raised).is_ok(), "{raised}");
        }
        assert!(state.check_held(1).is_ok());
    }
}
