//! ulvs: a Linux Virtual Server director that lives entirely in user space.
//!
//! Two pure hearts and one body. Floor A (`wire` `lvs` `sched` `conn` `forward` `director`) decides
//! where each frame goes; floor B (`config` `control`) decides what the services are; floor C (`nic`
//! `daemon` `web` `cli` `lab` `bench`) moves bytes and time into the hearts and carries their answers out. Which
//! room may use which is written in `docs/architecture.md`, section 4, and checked by `tests/tidy.rs`.
//!
//! Start reading at [`director`]: `Director::handle_frame` tells the life of a packet on one screen.

#![warn(missing_docs)]
#![deny(unused, unsafe_op_in_unsafe_fn)]

pub mod bench;
pub mod cli;
pub mod config;
pub mod conn;
pub mod control;
pub mod daemon;
pub mod director;
pub mod forward;
pub mod lab;
pub mod lvs;
pub mod nic;
pub mod rng;
pub mod sched;
pub mod sim;
pub mod stats;
pub mod time;
pub mod web;
pub mod wire;

/// Blocks of 128 bytes that begin at multiples of 128: an entry of the connection table then fills two
/// cache lines instead of touching three, and no header stands before each (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
