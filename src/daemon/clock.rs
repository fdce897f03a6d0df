//! The only place that reads the clock.

use std::sync::OnceLock;

use crate::time::Instant;

static START: OnceLock<std::time::Instant> = OnceLock::new();

/// Nanoseconds since this process first asked, by the system's monotonic clock.
pub fn now() -> Instant {
    let start = START.get_or_init(std::time::Instant::now);
    Instant::from_nanos(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_never_goes_back() {
        let readings: Vec<_> = (0..1000).map(|_| super::now()).collect();
        assert!(readings.is_sorted());
    }
}
