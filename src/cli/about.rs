//! What each option of the ipvsadm personality is for, in a line; and the table of options as a
//! command, to make completions and man pages from (`pages`). Which options there are is said by
//! `config::options` alone, and only there are they read.

use clap::{Arg, ArgAction, Command};

use crate::config::options::{OPTIONS, Opt, Row, Takes};
use crate::sched;

/// What each option is for, and what its value is called.
const ABOUT: [(Opt, &str, &str); 59] = [
    (Opt::AddService, "Add a virtual service", ""),
    (Opt::EditService, "Change a virtual service", ""),
    (
        Opt::DeleteService,
        "Delete a virtual service with its real servers",
        "",
    ),
    (Opt::Clear, "Delete all virtual services", ""),
    (Opt::AddServer, "Add a real server to a virtual service", ""),
    (Opt::EditServer, "Change a real server", ""),
    (
        Opt::DeleteServer,
        "Delete a real server from its virtual service",
        "",
    ),
    (Opt::List, "List services and real servers", ""),
    (Opt::Zero, "Zero the counters of a service, or of all", ""),
    (
        Opt::Set,
        "Set the timeouts TCP TCPFIN UDP in seconds; 0 leaves one as it is",
        "",
    ),
    (
        Opt::StartDaemon,
        "Start a daemon of connection synchronisation",
        "ROLE",
    ),
    (
        Opt::StopDaemon,
        "Stop a daemon of connection synchronisation",
        "ROLE",
    ),
    (Opt::Restore, "Do the rules on standard input", ""),
    (Opt::Save, "Print everything as rules", ""),
    (Opt::Help, "Print the usage", ""),
    (
        Opt::Version,
        "Print the version of ipvsadm that this follows",
        "",
    ),
    (
        Opt::Tcp,
        "The virtual service is TCP at this address and port",
        "HOST:PORT",
    ),
    (
        Opt::Udp,
        "The virtual service is UDP at this address and port",
        "HOST:PORT",
    ),
    (
        Opt::Sctp,
        "The virtual service is SCTP at this address and port",
        "HOST:PORT",
    ),
    (
        Opt::Mark,
        "The virtual service is all packets with this firewall mark",
        "MARK",
    ),
    (Opt::Ipv6, "The firewall mark is of IPv6", ""),
    (Opt::Scheduler, "How real servers are chosen", "NAME"),
    (
        Opt::Persistent,
        "Keep a client at its real server for so long (360)",
        "SECONDS",
    ),
    (
        Opt::Netmask,
        "Which clients count as one: IPv4 mask or IPv6 prefix length",
        "MASK",
    ),
    (Opt::Engine, "Persistence engine", "NAME"),
    (
        Opt::SchedFlags,
        "Flags of the scheduler, with commas between them",
        "FLAGS",
    ),
    (Opt::Ops, "Schedule every datagram anew (UDP)", ""),
    (Opt::RealServer, "The real server", "HOST[:PORT]"),
    (
        Opt::Gatewaying,
        "Forward by direct routing (the default)",
        "",
    ),
    (Opt::Ipip, "Forward by tunnelling", ""),
    (
        Opt::Masquerading,
        "Forward by network address translation",
        "",
    ),
    (
        Opt::FullNat,
        "Translate both ends, from [fullnat]; not in ipvsadm",
        "",
    ),
    (Opt::TunType, "What the tunnel wraps packets in", "TYPE"),
    (Opt::TunPort, "UDP port of the tunnel (gue)", "PORT"),
    (Opt::TunNocsum, "The tunnel has no checksums", ""),
    (Opt::TunCsum, "The tunnel has checksums", ""),
    (Opt::TunRemcsum, "The tunnel has remote checksums (gue)", ""),
    (
        Opt::Weight,
        "Share of new connections (1); 0 gives no new ones",
        "N",
    ),
    (
        Opt::Upper,
        "At so many connections the server gets no more; 0: no limit",
        "N",
    ),
    (Opt::Lower, "Below so many it gets connections again", "N"),
    (Opt::Numeric, "No names of hosts and services", ""),
    (Opt::Connection, "List connections", ""),
    (
        Opt::Masqueraded,
        "List connections of masqueraded hosts; not in ipvsadm",
        "",
    ),
    (Opt::Timeout, "Show the timeouts", ""),
    (
        Opt::Daemon,
        "Show the daemons of connection synchronisation",
        "",
    ),
    (Opt::Stats, "Connections, packets and bytes so far", ""),
    (Opt::Rate, "Connections, packets and bytes per second", ""),
    (Opt::Thresholds, "Show the thresholds", ""),
    (Opt::PersistentConn, "Show the persistent connections", ""),
    (Opt::TunInfo, "Show the tunnels", ""),
    (Opt::Sort, "In order of address and port (the default)", ""),
    (Opt::Nosort, "In the engine's order", ""),
    (Opt::Exact, "Whole numbers", ""),
    (
        Opt::McastInterface,
        "Interface of connection synchronisation",
        "NAME",
    ),
    (Opt::SyncId, "Identity of the daemon, 0 to 255", "ID"),
    (Opt::SyncMaxlen, "Longest message of the daemon", "BYTES"),
    (Opt::McastGroup, "Multicast group of the daemon", "ADDRESS"),
    (Opt::McastPort, "UDP port of the daemon", "PORT"),
    (Opt::McastTtl, "TTL of the daemon's messages", "TTL"),
];

fn about(option: Opt) -> (&'static str, &'static str) {
    let row = ABOUT.iter().find(|row| row.0 == option);
    let (_, help, value) = row.expect("every option has a line; a test of `pages` looks at all");
    (help, value)
}

/// What a value can be, where there are few.
fn values(option: Opt) -> &'static [&'static str] {
    match option {
        Opt::Scheduler => &sched::NAMES,
        Opt::StartDaemon | Opt::StopDaemon => &["master", "backup"],
        Opt::TunType => &["ipip", "gue", "gre"],
        Opt::Engine => &["sip"],
        _ => &[],
    }
}

/// The table of options as a command called `name`, to be described and not to be parsed by.
/// `ours`: with the additions that only `ulvs adm` has.
pub(super) fn command(name: &'static str, ours: bool) -> Command {
    let mut command = Command::new(name)
        .about("Speak to a running director in the words of ipvsadm")
        .disable_help_flag(true)
        .disable_version_flag(true);
    let rows = OPTIONS.into_iter().enumerate();
    for (place, row) in rows.filter(|(_, row)| ours || !row.3.is_ours()) {
        // A second letter of the same option is described beside it, without the long name.
        let first = OPTIONS.iter().position(|other| other.3 == row.3) == Some(place);
        command = command.arg(arg(row, first));
    }
    if !ours {
        return command;
    }
    let extra = |name: &'static str, help: &'static str| {
        let arg = Arg::new(name).long(name).help(help);
        arg.action(ArgAction::SetTrue)
    };
    command
        .arg(extra("json", "A listing as JSON; not in ipvsadm"))
        .arg(extra(
            "dry-run",
            "Only print what would be changed; not in ipvsadm",
        ))
}

fn arg((long, letter, takes, option): Row, first: bool) -> Arg {
    let (help, value) = about(option);
    let arg = match first {
        true => Arg::new(long).long(long),
        // There is one such letter, -l.
        false => Arg::new("another letter"),
    };
    let arg = match letter {
        '\0' => arg,
        letter => arg.short(letter),
    };
    let arg = match takes {
        Takes::Nothing => arg.action(ArgAction::SetTrue),
        Takes::Value => arg.action(ArgAction::Set).value_name(value),
        Takes::Maybe => arg.action(ArgAction::Set).value_name(value).num_args(0..=1),
    };
    match values(option) {
        [] => arg.help(help),
        some => arg.help(help).value_parser(some.to_vec()),
    }
}
