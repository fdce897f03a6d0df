//! Differences that are deliberate (docs/differences.md) and that a comparison passes over: counted, so that
//! it can say how often.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

static COUNTS: Mutex<BTreeMap<&'static str, usize>> = Mutex::new(BTreeMap::new());

/// A step differed for this reason alone.
pub fn count(reason: &'static str) {
    let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    *counts.entry(reason).or_default() += 1;
}

/// A line for each reason, as the comparison reads it.
pub fn lines() -> Vec<String> {
    let counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let lines = counts.iter();
    lines
        .map(|(reason, count)| format!("explained {count}: {reason}"))
        .collect()
}
