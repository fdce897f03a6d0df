//! Floor A: the director itself.

pub mod message;
pub mod snapshot;
pub mod verdict;
