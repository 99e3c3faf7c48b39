//! Instants as people read them: UTC, to the second.

/// `2026-11-23 12:00:00` for seconds since 1970-01-01 UTC; the bare number where it is out of any calendar.
pub fn utc(unix_seconds: i64) -> String {
    jiff::Timestamp::from_second(unix_seconds).map_or_else(
        |_| unix_seconds.to_string(),
        |t| t.strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// Now, in seconds since 1970-01-01 UTC.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_utc() {
        assert_eq!(super::utc(0), "1970-01-01 00:00:00");
        assert_eq!(super::utc(i64::MAX), i64::MAX.to_string());
    }
}
