//! Floor C: the words people type.

pub mod lab;
