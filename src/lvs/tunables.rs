//! The timeouts that `ipvsadm --set` changes, and every limit of ours. The kernel's sysctls are in
//! `sysctl`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Timeouts of the protocol states in seconds; `ipvsadm --set` changes three of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// TCP ESTABLISHED.
    pub tcp_s: u32,
    /// TCP FIN_WAIT.
    pub tcp_fin_s: u32,
    /// UDP.
    pub udp_s: u32,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            tcp_s: 900,
            tcp_fin_s: 120,
            udp_s: 300,
        }
    }
}

/// Named bounds of everything that can run out. Each is a promise: beyond it something is refused
/// and counted, never lost silently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Entries of the connection table, all workers together. 4 Mi entries need about 1 GiB.
    pub conn_entries_max: u32,
    /// Slots of each worker's own index in front of the table, two for each connection it sees in both
    /// directions, 16 bytes each; 0 asks the table alone for every packet.
    pub index_slots_max: u32,
    /// Frames that wait for a neighbour's MAC address, per worker.
    pub neigh_held_frames_max: u32,
    /// Neighbours known at once.
    pub neigh_entries_max: u32,
    /// Timer-wheel entries looked at in one breath, so that a burst of expiries cannot stall it.
    pub wheel_pops_per_breath_max: u32,
    /// Frames that a worker makes itself (answers) in one breath.
    pub answers_per_breath_max: u32,
    /// Connections of masqueraded hosts, all workers together; they are not among `conn_entries_max`.
    pub masquerade_entries_max: u32,
    /// Bytes of fragments that wait for the others, per worker, what the bookkeeping needs included
    /// (`ipfrag_high_thresh`). Beyond it the datagram that is due first is given up.
    pub frag_bytes_max: u32,
    /// How long the fragments of an IPv4 datagram wait, in seconds (`ipfrag_time`).
    pub frag_wait_s: u32,
    /// The same for IPv6 (`nf_conntrack_frag6_timeout`).
    pub frag_wait_v6_s: u32,
    /// Fragments that a worker cuts packets into in one breath. One datagram of the longest kind in the
    /// shortest fragments needs 8190.
    pub frag_cuts_per_breath_max: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            conn_entries_max: 4 << 20,
            index_slots_max: 16 << 20,
            neigh_held_frames_max: 64,
            neigh_entries_max: 4096,
            wheel_pops_per_breath_max: 512,
            answers_per_breath_max: 256,
            masquerade_entries_max: 256 << 10,
            frag_bytes_max: 4 << 20,
            frag_wait_s: 30,
            frag_wait_v6_s: 60,
            frag_cuts_per_breath_max: 8192,
        }
    }
}

/// Frames taken from one interface in one breath. 64 keeps a batch's headers inside the first-level
/// cache and was within noise of larger batches (docs/performance.md).
pub const BATCH_FRAMES_MAX: usize = 64;

/// Ports tried for one new connection whose source the director chooses. With three quarters of a pool
/// in use one in 10^15 finds none; with all but one in a hundred, a quarter (Linux tries 128, too).
pub const SOURCE_PROBES_MAX: u32 = 128;

/// Most workers one daemon runs.
pub const WORKERS_MAX: usize = 64;
