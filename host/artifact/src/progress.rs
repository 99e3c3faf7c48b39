//! How long work tells whoever watches; a terminal, a JSON stream, or nobody.

/// Told of progress from any thread. Implementations must be quick and must not fail.
pub trait Progress: Send + Sync {
    /// Work on `what` (an artifact's name) begins; `total_bytes` is an estimate where one is known.
    fn started(&self, what: &str, total_bytes: Option<u64>);
    /// `bytes` of plain data and `items` (rows or files) more are done.
    fn advanced(&self, what: &str, bytes: u64, items: u64);
    /// No more will come for `what`.
    fn finished(&self, what: &str);
    /// `what` was done before and is not done again, for this reason.
    fn kept(&self, what: &str, why: &str) {
        let _ = (what, why);
    }
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn started(&self, _: &str, _: Option<u64>) {}
    fn advanced(&self, _: &str, _: u64, _: u64) {}
    fn finished(&self, _: &str) {}
}
