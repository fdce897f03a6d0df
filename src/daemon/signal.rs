//! Signals become Inputs: SIGTERM and SIGINT stop the daemon in order, SIGHUP has it read its files
//! again.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals the daemon listens to.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// That the daemon stops; the signal's name.
    Stop(&'static str),
    /// That the configuration is read again.
    Reload,
}

impl Signals {
    /// From now on these signals no longer kill the process.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal; says what it wants.
    pub async fn wish(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Wish::Stop("SIGINT"),
            _ = self.hangup.recv() => Wish::Reload,
        }
    }
}
