//! Input and Output: everything that can reach or leave the control plane. Nothing in here decides
//! anything.

use crate::config::{Reply, Request};
use crate::director::message::{Order, Report};
use crate::director::snapshot::Port;
use crate::lvs::Link;

/// Who asked. Numbers are given out by whoever owns the connections to the clients and are never
/// used twice in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// Something happened.
#[derive(Debug)]
pub enum Input {
    /// A client wants something; exactly one `Output::Reply` follows, unless the client goes first.
    Request {
        /// Who.
        from: ClientId,
        /// What.
        request: Request,
    },
    /// A worker says something.
    Reported {
        /// Number of the worker.
        worker: usize,
        /// What it says.
        report: Report,
    },
    /// This client will not read its answer.
    ClientGone(ClientId),
    /// The interfaces as they now are: the same ones in the same order as before.
    PortsChanged(Vec<Port>),
    /// All interfaces of the host as they now are.
    LinksChanged(Vec<Link>),
    /// Stop in order: a signal, or a worker that died.
    Stop,
}

/// What the control plane wants done.
#[derive(Debug)]
pub enum Output {
    /// For one worker.
    Order {
        /// Number of the worker.
        worker: usize,
        /// What it shall do.
        order: Order,
    },
    /// For one client.
    Reply {
        /// Who asked.
        to: ClientId,
        /// What comes back.
        reply: Reply,
    },
    /// Services, real servers or ports came or went: whoever keeps the kernel's own stack off our
    /// frames must look again. It comes before the orders that bring the change into force.
    Changed,
    /// Every worker was told to stop; there will be no more output.
    Stopped,
}
