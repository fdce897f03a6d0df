//! Floor B: the language of the desired state. Commands and replies, the rules of ipvsadm-save, the
//! configuration file, and JSON for all of it.

pub mod command;

pub use command::{Command, Listing, Query, RealSpec, Refusal, Reply, Request};
