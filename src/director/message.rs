//! Order and Report: all that passes between the two planes.

use std::sync::Arc;

use super::snapshot::{Snapshot, SnapshotId};
use super::verdict::Account;
use crate::wire::NicCounters;

/// Control plane to worker.
#[derive(Clone, Debug)]
pub enum Order {
    /// Here is the next snapshot; report when it is in force.
    Adopt(Arc<Snapshot>),
    /// Report the frame account under this number.
    Audit(u64),
    /// Finish the breath and end.
    Stop,
}

/// Worker to control plane.
#[derive(Clone, Debug)]
pub enum Report {
    /// The snapshot is in force in this worker.
    Adopted(SnapshotId),
    /// The worker's frame account, exact at the end of a breath, and its ports' counters.
    Account {
        /// Number of the audit.
        audit: u64,
        /// The account.
        account: Account,
        /// One per port.
        ports: Vec<NicCounters>,
        /// The story told so far, if one is told.
        story: Vec<String>,
    },
    /// A port stopped giving frames, or works again.
    Port {
        /// Index of the port.
        port: usize,
        /// What is wrong; `None` when it works again.
        error: Option<crate::wire::NicError>,
    },
    /// Memory that the worker has no use for; the control plane frees it.
    Spent(crate::conn::Spent),
}
