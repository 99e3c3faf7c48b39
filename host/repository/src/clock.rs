//! This host's clock, in one place: so that tests can let days go by.

/// This host's clock.
pub(crate) fn time() -> jiff::Timestamp {
    let time = jiff::Timestamp::now();
    #[cfg(test)]
    let time = time + jiff::SignedDuration::from_secs(made_up::ahead());
    time
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    time().as_second()
}

/// Makes time go by, for tests that run in one thread.
#[cfg(test)]
pub(crate) mod made_up {
    use std::cell::Cell;

    thread_local!(static AHEAD: Cell<i64> = const { Cell::new(0) });

    pub fn ahead() -> i64 {
        AHEAD.get()
    }

    pub fn advance(seconds: i64) {
        AHEAD.set(AHEAD.get() + seconds);
    }
}
