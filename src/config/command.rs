//! Command: everything that can be changed; Query: everything that can be asked; Reply: what comes
//! back. One JSON line each on the control socket.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::counts::{self, Counts, PortCounts};
use crate::lvs::{
    Endpoint, ForwardMethod, MarkRule, Masquerading, Protocol, RealKey, ServiceKey, ServiceSpec,
    SourcePool, SyncDaemon, SyncRole, SyncRow, Thresholds, Timeouts, Tunables, Tunnel, Weight,
};

/// A change of what is configured. Whoever wants one (a person, a file, a health check) sends this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// `ipvsadm -A`
    AddService(ServiceSpec),
    /// `ipvsadm -E`: scheduler, persistence and flags are replaced; servers and connections stay.
    EditService(ServiceSpec),
    /// `ipvsadm -D`
    DeleteService(ServiceKey),
    /// `ipvsadm -C`
    Flush,
    /// `ipvsadm -a`
    AddReal {
        /// Which service.
        service: ServiceKey,
        /// The new server.
        real: RealSpec,
    },
    /// `ipvsadm -e`
    EditReal {
        /// Which service.
        service: ServiceKey,
        /// The server as it shall be.
        real: RealSpec,
    },
    /// `ipvsadm -d`
    DeleteReal {
        /// Which service.
        service: ServiceKey,
        /// Which server.
        real: RealKey,
    },
    /// `ipvsadm -Z`: one service, or all.
    Zero(Option<ServiceKey>),
    /// `ipvsadm --set`: what is left out, or 0, stays as it is.
    #[serde(deserialize_with = "timeouts_said")]
    #[schemars(with = "TimeoutsSaid")]
    SetTimeouts(Timeouts),
    /// A tunable by the kernel's name.
    SetTunable {
        /// Name of the sysctl, e.g. `conn_reuse_mode`.
        name: String,
        /// Its value as text; in JSON it may be a number or a switch, too.
        #[serde(deserialize_with = "value_said")]
        #[schemars(with = "ValueSaid")]
        value: String,
    },
    /// The rules that give packets their firewall marks: these and no others.
    SetMarks(Vec<MarkRule>),
    /// `ipvsadm --start-daemon`
    StartSync(SyncDaemon),
    /// `ipvsadm --stop-daemon`
    StopSync(SyncRole),
    /// Virtual ports whose connections have a helper for FTP: these and no others.
    SetFtpPorts(Vec<u16>),
    /// The addresses that the director speaks from for others: these and no others.
    SetPools {
        /// Who may open connections outwards, and how they look there.
        masquerading: Masquerading,
        /// Local ends of full NAT.
        full_nat: SourcePool,
    },
    /// Several changes: all or none, in one snapshot.
    Batch(Vec<Command>),
}

/// The timeouts of `--set` in seconds; a zero stands for what is not said.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct TimeoutsSaid {
    /// TCP, established.
    tcp_s: u32,
    /// TCP, after a FIN.
    tcp_fin_s: u32,
    /// UDP.
    udp_s: u32,
}

fn timeouts_said<'de, D: Deserializer<'de>>(from: D) -> Result<Timeouts, D::Error> {
    let said = TimeoutsSaid::deserialize(from)?;
    Ok(Timeouts {
        tcp_s: said.tcp_s,
        tcp_fin_s: said.tcp_fin_s,
        udp_s: said.udp_s,
    })
}

/// The value of a tunable as it may be written.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum ValueSaid {
    Text(String),
    Number(i64),
    Switch(bool),
}

fn value_said<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(match ValueSaid::deserialize(from)? {
        ValueSaid::Text(text) => text,
        ValueSaid::Number(number) => number.to_string(),
        ValueSaid::Switch(on) => u8::from(on).to_string(),
    })
}

/// Most ports of the FTP helper (`IP_VS_APP_MAX_PORTS`).
pub const FTP_PORTS_MAX: usize = 8;

/// A real server as configured; everything `ipvsadm -a` can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RealSpec {
    /// Address and port.
    pub key: RealKey,
    /// Share of new connections; 1 if left out, as with `ipvsadm -a`.
    #[serde(default = "one")]
    pub weight: Weight,
    /// How packets get there; `route` if left out, as with `ipvsadm -a`.
    #[serde(default)]
    pub method: ForwardMethod,
    /// Connection limits.
    #[serde(default)]
    pub thresholds: Thresholds,
    /// What the tunnel method wraps packets in; meaningless for the other methods.
    #[serde(default)]
    pub tunnel: Tunnel,
}

const fn one() -> Weight {
    Weight(1)
}

/// A question. Asking changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Query {
    /// All services, or one, with servers, counts, statistics and rates.
    Services(Option<ServiceKey>),
    /// All connection entries.
    Connections,
    /// The connections that masqueraded hosts opened.
    Masqueraded,
    /// The counters over all services, in total and of each worker.
    Totals,
    /// The sysctls.
    Tunables,
    /// The three timeouts of `--set`.
    Timeouts,
    /// The daemons of connection synchronisation.
    SyncDaemons,
    /// All that commands have configured, at one moment.
    State,
    /// The frame account and the counters of every port.
    Account,
    /// What the daemon is: version, process id, ports, workers.
    Status,
}

/// What goes over the control socket, one JSON line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Change something.
    Do(Command),
    /// Change several things, each on its own: what is refused does not keep the others from being
    /// done. All come into force in one snapshot. The lines of `ipvsadm -R` are such.
    Each {
        /// The changes, in order.
        commands: Vec<Command>,
        /// Nothing is changed; only what would become of each is told.
        dry_run: bool,
    },
    /// Ask something.
    Ask(Query),
    /// Stop the daemon in order.
    Stop,
}

/// What comes back: one JSON line for one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It is in force in every worker.
    Done,
    /// Nothing was changed.
    Refused(Refusal),
    /// What became of each change, in order; those that were not refused are in force.
    Each(Vec<Option<Refusal>>),
    /// The answer to a question.
    Listing(Listing),
    /// The request itself could not be read.
    BadRequest(String),
    /// It was taken, but not every worker has answered in time; the sentence says which.
    Late(String),
}

/// Why a Command was refused. The sentences are ipvsadm's (`ipvs_strerror` of libipvs).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// -A of a service that exists.
    ServiceExists,
    /// -E, -D, -Z, -L of a service that does not.
    NoSuchService,
    /// -a, -e, -d: the service is absent.
    ServiceNotDefined,
    /// -a of a server that exists.
    DestinationExists,
    /// -e, -d of a server that does not.
    NoSuchDestination,
    /// Unknown scheduler or engine.
    SchedulerNotFound,
    /// EINVAL.
    Invalid,
    /// ERANGE: thresholds reversed, weight negative.
    OutOfRange,
    /// A tunable nobody knows.
    UnknownTunable,
    /// --start-daemon of one that runs.
    SyncRunning,
    /// --stop-daemon of one that does not.
    SyncNotRunning,
    /// ENODEV: no such interface.
    NoSuchDevice,
    /// ENETUNREACH: nothing can be sent by the interface.
    NetworkUnreachable,
    /// The table is full or a limit was reached.
    OutOfMemory,
    /// Full NAT without an address of the service's family to speak from.
    NoLocalAddress,
}

impl Refusal {
    /// The line ipvsadm prints.
    pub const fn sentence(self) -> &'static str {
        match self {
            Refusal::ServiceExists => "Service already exists",
            Refusal::NoSuchService => "No such service",
            Refusal::ServiceNotDefined => "Service not defined",
            Refusal::DestinationExists => "Destination already exists",
            Refusal::NoSuchDestination => "No such destination",
            Refusal::SchedulerNotFound => "Scheduler or persistence engine not found",
            Refusal::Invalid => {
                "Invalid operation.  Possibly wrong module version, address not unicast, ..."
            }
            Refusal::OutOfRange => "Numerical result out of range",
            Refusal::UnknownTunable => "No such tunable",
            Refusal::SyncRunning => "Daemon has already run",
            Refusal::SyncNotRunning => "No daemon is running",
            Refusal::NoSuchDevice => "No such device",
            Refusal::NetworkUnreachable => "Network is unreachable",
            Refusal::OutOfMemory => "Memory allocation problem",
            Refusal::NoLocalAddress => {
                "Full NAT needs addresses of the director of this family: [fullnat] in ulvs.toml"
            }
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.sentence())
    }
}

/// The answer to a Query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Listing {
    /// Services in the engine's own order (newest first within a service's servers).
    Services {
        /// Rows of the table: what ipvsadm prints as `size=`.
        table_size: u32,
        /// The services.
        services: Vec<ServiceRow>,
    },
    /// Connection entries in table order.
    Connections(Vec<ConnRow>),
    /// Connections that masqueraded hosts opened, in table order.
    Masqueraded(Vec<MasqueradedRow>),
    /// The counters over everything.
    Totals {
        /// As the estimator saw them last, since the last zero.
        total: StatsRow,
        /// What each worker has counted by now, since it started.
        #[serde(with = "counts::each")]
        #[schemars(with = "Vec<Counts>")]
        workers: Vec<[u64; 5]>,
    },
    /// Sysctls in force.
    Tunables(Box<Tunables>),
    /// Timeouts in force.
    Timeouts(Timeouts),
    /// The daemons of connection synchronisation, the master first.
    SyncDaemons(Vec<SyncRow>),
    /// All that commands have configured.
    State(Box<State>),
    /// The frame account.
    Account(AccountRow),
    /// About the daemon.
    Status(StatusRow),
}

/// All that commands have configured: with the same state, two directors take new connections alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct State {
    /// The services in the order of their keys, each with its servers, the oldest first.
    pub services: Vec<(ServiceSpec, Vec<RealSpec>)>,
    /// The rules for marks.
    pub marks: Vec<MarkRule>,
    /// Who is masqueraded, and the local ends of full NAT.
    pub pools: (Masquerading, SourcePool),
    /// Virtual ports whose connections have a helper for FTP.
    #[serde(default)]
    pub ftp_ports: Vec<u16>,
    /// The three timeouts of `--set`.
    pub timeouts: Timeouts,
    /// The sysctls.
    pub tunables: Tunables,
}

/// Five counters and five rates of a service or server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatsRow {
    /// conns, in packets, out packets, in bytes, out bytes since the last zero.
    #[serde(with = "counts::five")]
    #[schemars(with = "Counts")]
    pub counters: [u64; 5],
    /// The same per second, by the kernel's estimator.
    #[serde(with = "counts::five")]
    #[schemars(with = "Counts")]
    pub rates: [u64; 5],
}

/// One service as listed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceRow {
    /// As configured.
    pub spec: ServiceSpec,
    /// Its counters.
    pub stats: StatsRow,
    /// Its servers, newest first.
    pub reals: Vec<RealRow>,
}

/// One real server as listed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RealRow {
    /// As configured.
    pub spec: RealSpec,
    /// Active connections.
    pub active: u32,
    /// Inactive connections.
    pub inactive: u32,
    /// Persistent connections (templates).
    pub persistent: u32,
    /// Its counters.
    pub stats: StatsRow,
}

/// One connection entry as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConnRow {
    /// TCP, UDP, SCTP, or IP for a mark's template.
    pub protocol: Protocol,
    /// Who asked.
    pub client: Endpoint,
    /// What was asked for.
    pub virt: Endpoint,
    /// Who serves.
    pub real: Endpoint,
    /// State as ipvsadm prints it.
    pub state: String,
    /// Whole seconds until it expires, rounded down.
    pub expires_s: u64,
    /// Of a template with a persistence engine: the engine, and what it goes by (the Call-ID).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<(String, String)>,
    /// Under full NAT: the director's own end, which the real server takes for its client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Endpoint>,
}

/// A connection that a masqueraded host opened, for listing. Where others have a port, an echo has its
/// identifier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MasqueradedRow {
    /// TCP, UDP, SCTP, ICMP or ICMPv6.
    pub protocol: Protocol,
    /// The host behind the director.
    pub host: Endpoint,
    /// How it looks outside.
    pub public: Endpoint,
    /// Whom it speaks to.
    pub target: Endpoint,
    /// State as ipvsadm prints it.
    pub state: String,
    /// Whole seconds until it expires, rounded down.
    pub expires_s: u64,
}

/// The frame account, for listing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AccountRow {
    /// Frames taken from interfaces.
    pub received: u64,
    /// Sent on.
    pub forwarded: u64,
    /// For us.
    pub answered: u64,
    /// Left to the kernel.
    pub passed: u64,
    /// Waiting for a MAC address.
    pub held: u64,
    /// All drops.
    pub dropped: u64,
    /// Drops by reason; reasons with zero are left out.
    #[serde(with = "counts::named")]
    #[schemars(with = "BTreeMap<String, u64>")]
    pub drops: Vec<(String, u64)>,
    /// Frames of our own making.
    pub originated: u64,
    /// Does received = forwarded + answered + passed + held + dropped hold?
    pub balances: bool,
    /// Per port: name, received, overrun, truncated, sent, refused, cut.
    #[serde(with = "counts::ports")]
    #[schemars(with = "Vec<PortCounts>")]
    pub ports: Vec<(String, [u64; 6])>,
    /// Workers that did not answer in time: their frames are missing above.
    #[serde(default)]
    pub silent: Vec<u32>,
    /// The story of the first connection, packet by packet, if the daemon was told to tell it.
    #[serde(default)]
    pub story: Vec<String>,
}

/// What the daemon is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StatusRow {
    /// Version of ulvs.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// How many workers run.
    pub workers: u32,
    /// Name of the back-end.
    pub nic: String,
    /// Interfaces, public ones first.
    pub ports: Vec<String>,
    /// Rows of the table: what ipvsadm prints as `size=`.
    #[serde(default)]
    pub table_size: u32,
    /// Connection entries right now.
    pub connections: u64,
    /// Most there may be.
    pub connections_max: u64,
    /// What came to the control socket; it counts for itself.
    #[serde(default)]
    pub control: ControlRow,
}

/// What came to the control socket since the daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ControlRow {
    /// Connections.
    pub connections: u64,
    /// Those of them that spoke HTTP.
    pub http: u64,
    /// Those that were turned away: there was no room, or the peer had no right.
    pub turned_away: u64,
    /// Requests that could not be read, were too long, or asked for what there is not.
    pub bad_requests: u64,
    /// Connections cut off because nothing was sent or taken for too long.
    pub hung: u64,
    /// Idle connections that made room for others.
    #[serde(default)]
    pub yielded: u64,
    /// Answers that a worker was too late for.
    #[serde(default)]
    pub late: u64,
    /// Requests refused because a bound of the director was reached.
    #[serde(default)]
    pub no_memory: u64,
    /// Answers that were too long to be sent.
    #[serde(default)]
    pub too_long: u64,
}
