//! A library that `ulvs exec` loads into a program before all others (`LD_PRELOAD`), so that a program
//! that drives the kernel's IPVS drives ulvs: Debian's `ipvsadm` and `keepalived`, unchanged.
//!
//! Such programs speak generic netlink. Of all their calls this library takes over those that carry
//! the family `IPVS`, those that open `/proc/net/ip_vs*`, and the older way by socket options, which
//! it says is not there. All else goes to the kernel as it came.
//!
//! `hooks` and `opens` are the C functions that are taken over, `next` those behind them. `relay` finds our messages in what is sent and
//! puts the answers into what is received. `family` answers them, with `read` and `write` for what
//! they say; `message` knows how netlink writes things down. `files` are the texts of
//! `/proc/net`, `director` is the control socket.

#![deny(unused)]

mod director;
mod family;
mod files;
mod hooks;
mod message;
mod next;
mod opens;
mod read;
mod relay;
#[cfg(test)]
mod tests;
mod write;
