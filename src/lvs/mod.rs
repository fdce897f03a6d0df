//! The nouns of Linux Virtual Server as plain data: services, real servers, flows, tunables. Nothing
//! in here decides anything. The words follow ipvsadm(8) and the kernel's `include/net/ip_vs.h`.

pub mod flow;
pub mod json;
pub mod mark;
pub mod method;
pub mod path;
pub mod pool;
pub mod real;
pub mod service;
pub mod sync;
pub mod sysctl;
pub mod tunables;
pub mod tuple;

pub use flow::{Endpoint, Family, Flow, Protocol, Segment, TcpFlags};
pub use mark::MarkRule;
pub use method::{ForwardMethod, Tunnel, TunnelChecksum};
pub use path::PathMtu;
pub use pool::{Masquerading, SourcePool};
pub use real::{RealKey, RealLive, RealServer, Stats, Thresholds, Weight};
pub use service::{Netmask, Persistence, ServiceFlags, ServiceKey, ServiceSpec};
pub use sync::{Link, SyncDaemon, SyncRole, SyncRow};
pub use sysctl::{Accepts, Tunables};
pub use tunables::{Limits, Timeouts};
pub use tuple::Tuple;
