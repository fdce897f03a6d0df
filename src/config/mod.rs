//! Floor B: the language of the desired state. Commands and replies, the rules of ipvsadm-save, the
//! configuration file, and JSON for all of it.

pub mod codec;
pub mod command;
mod complete;
mod counts;
pub mod diff;
mod draft;
pub mod file;
mod helpers;
pub mod ipvsadm;
mod marks;
pub mod options;
pub mod plan;
mod pools;
pub mod problem;
pub mod proc;
mod routes;
pub mod rules;
mod section;
mod services;
pub mod words;

pub use command::{Command, Listing, Query, RealSpec, Refusal, Reply, Request};
pub use file::Config;
pub use problem::Problems;

#[cfg(test)]
mod tests;
