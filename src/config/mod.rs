//! Floor B: the language of the desired state. Commands and replies, the rules of ipvsadm-save, the
//! configuration file, and JSON for all of it.

pub mod codec;
pub mod command;
mod complete;
mod draft;
pub mod ipvsadm;
pub mod options;
pub mod problem;
pub mod rules;
pub mod words;

pub use command::{Command, Listing, Query, RealSpec, Refusal, Reply, Request};
pub use problem::Problems;
