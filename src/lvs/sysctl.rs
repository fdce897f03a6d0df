//! Tunables by the kernel's names (`/proc/sys/net/ipv4/vs`, `Documentation/networking/ipvs-sysctl.rst`):
//! defaults and accepted values are the kernel's. All are numbers; a switch is on if it is not 0.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// CONFIG_HZ of the recorded kernel.
const TICKS_PER_SECOND: i64 = 100;

/// Which values a tunable takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// Any 32-bit number.
    Number,
    /// Any number from 0 on.
    Natural,
    /// 0..=max.
    UpTo(i64),
    /// A power of two.
    PowerOfTwo,
    /// Seconds whose ticks, of which a second has 100, are a 32-bit number.
    Seconds,
    /// It can only be read.
    Nothing,
}

impl Accepts {
    /// Does it take this value?
    pub const fn takes(self, value: i64) -> bool {
        match self {
            Accepts::Number => value >= i32::MIN as i64 && value <= i32::MAX as i64,
            Accepts::Natural => value >= 0,
            Accepts::UpTo(max) => value >= 0 && value <= max,
            Accepts::PowerOfTwo => {
                value > 0 && value <= i32::MAX as i64 && value & (value - 1) == 0
            }
            Accepts::Seconds => {
                value >= i32::MIN as i64 / TICKS_PER_SECOND
                    && value <= i32::MAX as i64 / TICKS_PER_SECOND
            }
            Accepts::Nothing => false,
        }
    }
}

macro_rules! sysctls {
    ($($(#[$doc:meta])* $name:ident = $default:literal, $accepts:expr;)+) => {
        /// Every tunable with its value.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct Tunables {
            $($(#[$doc])* #[serde(deserialize_with = "number_or_switch")] pub $name: i64,)+
        }

        impl Default for Tunables {
            fn default() -> Tunables {
                Tunables { $($name: $default,)+ }
            }
        }

        impl Tunables {
            /// Every name, as in `/proc/sys/net/ipv4/vs`.
            pub const NAMES: &[&str] = &[$(stringify!($name),)+];

            /// Which values the tunable of this name takes; `None` for a name nobody knows.
            pub fn accepts(name: &str) -> Option<Accepts> {
                match name {
                    $(stringify!($name) => Some($accepts),)+
                    _ => None,
                }
            }

            /// The value of the tunable of this name.
            pub fn get(&self, name: &str) -> Option<i64> {
                match name {
                    $(stringify!($name) => Some(self.$name),)+
                    _ => None,
                }
            }

            /// The place of the tunable of this name, to be written.
            pub fn get_mut(&mut self, name: &str) -> Option<&mut i64> {
                match name {
                    $(stringify!($name) => Some(&mut self.$name),)+
                    _ => None,
                }
            }
        }
    };
}

sysctls! {
    /// Of how many new connections `drop_packet` = 3 drops one.
    am_droprate = 10, Accepts::Number;
    /// Free memory in pages below which the defences begin; a page is 16 entries of the table.
    amemthresh = 1024, Accepts::Number;
    /// As a sync backup, leave all packets alone.
    backup_only = 0, Accepts::Number;
    /// A packet for a mark's service without servers goes to its own target.
    cache_bypass = 0, Accepts::Number;
    /// Bit 0: a SYN over TIME_WAIT or CLOSE is scheduled anew; bit 1: also over FIN_WAIT without
    /// output. 0 keeps the old entry.
    conn_reuse_mode = 1, Accepts::Number;
    /// Keep netfilter's connection tracking: there is none in user space.
    conntrack = 0, Accepts::Number;
    /// Debug level: told by stories instead.
    debug_level = 0, Accepts::Nothing;
    /// Drop half-open and idle entries: 0 never, 1 and 2 by memory, 3 always.
    drop_entry = 0, Accepts::UpTo(3);
    /// Drop one of several new connections: 0 never, 1 and 2 by memory, 3 always.
    drop_packet = 0, Accepts::UpTo(3);
    /// A packet whose real server was deleted ends the entry instead of being dropped.
    expire_nodest_conn = 0, Accepts::Number;
    /// Templates of quiesced servers are not used.
    expire_quiescent_template = 0, Accepts::Number;
    /// Leave tunnelled packets alone.
    ignore_tunneled = 0, Accepts::Number;
    /// Seconds after which lblc forgets a target that nobody asked for.
    lblc_expiration = 86_400, Accepts::Seconds;
    /// Seconds after which lblcr forgets a target that nobody asked for, and after which a set of
    /// several servers that has not changed loses one.
    lblcr_expiration = 86_400, Accepts::Seconds;
    /// Answer real servers whose packets match no connection.
    nat_icmp_send = 0, Accepts::Number;
    /// Path MTU discovery for tunnels.
    pmtu_disc = 1, Accepts::Number;
    /// Rates are estimated.
    run_estimation = 1, Accepts::Number;
    /// ICMP errors may open connections.
    schedule_icmp = 0, Accepts::Number;
    /// The wary TCP table: 0 never, 1 and 2 by memory, 3 always.
    secure_tcp = 0, Accepts::UpTo(3);
    /// Any SCTP packet but ABORT may open a connection.
    sloppy_sctp = 0, Accepts::Number;
    /// Any TCP packet but RST may open a connection.
    sloppy_tcp = 0, Accepts::Number;
    /// Replies are routed by the VIP, not by the real server.
    snat_reroute = 1, Accepts::Number;
    /// Connections of a template are not synchronised.
    sync_persist_mode = 0, Accepts::Number;
    /// Sync threads.
    sync_ports = 1, Accepts::PowerOfTwo;
    /// Sync messages that may wait.
    sync_qlen_max = 7861, Accepts::Natural;
    /// Seconds after which a connection is synchronised again.
    sync_refresh_period = 0, Accepts::Natural;
    /// How often a sync message is repeated.
    sync_retries = 0, Accepts::UpTo(3);
    /// Buffer of the sync socket in bytes; 0 is the system's.
    sync_sock_size = 0, Accepts::Number;
    /// Format of sync messages.
    sync_version = 1, Accepts::UpTo(1);
}

/// A number, or a switch for one: `true` is 1.
fn number_or_switch<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Switch(bool),
        Number(i64),
    }
    Ok(match Either::deserialize(from)? {
        Either::Switch(on) => i64::from(on),
        Either::Number(number) => number,
    })
}
