//! Floor C: the words people type. The ipvsadm personality, and what `ulvs` itself takes.

mod about;
pub mod adm;
pub mod apply;
pub mod bench;
pub mod client;
pub mod exec;
mod help;
pub mod lab;
pub mod list;
pub mod names;
pub mod options;
mod order;
pub mod pages;
pub mod proc;
pub mod run;
pub mod sim;
pub mod trace;
pub mod tune;
