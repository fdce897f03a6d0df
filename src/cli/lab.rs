//! `ulvs lab`: makes a network, runs a director in it, sends requests, and shows what happened. The
//! machinery is the room `lab`; in here are the words people type and what they get to read.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::{Value, json};

mod ftp;
mod outward;
mod seen;
mod siege;
mod words;

use outward::Outward;
use seen::Seen;
use words::{Nat, Past, Run, Tun};

use crate::cli::client::Client;
use crate::config::command::{AccountRow, Command, Listing, Query, RealSpec, Reply, Request};
use crate::lab::host::{Load, LoadReport};
use crate::lab::topology::{Path, Topology};
use crate::lab::{self, Director, Lab, cleanup, exec, keeper};
use crate::lvs::Tunnel;

/// Requests in flight at once: enough to keep two processors busy, few enough for honest latencies.
const REQUESTS_AT_ONCE: u16 = 16;
/// Rows of the connection table that are shown; `--keep` and `ulvs adm -L -c` show all.
const CONNECTIONS_SHOWN: usize = 10;
/// Exit status after Ctrl-C, as shells give it.
const INTERRUPTED: u8 = 130;

#[derive(Parser)]
#[command(
    name = "ulvs lab",
    about = "Real networks in namespaces of their own, with or without root"
)]
struct Words {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// LVS-NAT: a client, a director running ulvs, three real servers
    Nat(Nat),
    /// Full NAT: real servers that do not know the way back answer to the director itself
    Fnat(Nat),
    /// LVS-DR: all on one wire, the real servers answer the client themselves
    Dr(Past),
    /// LVS-TUN: real servers behind a router, which unwrap with a decapsulator of ours
    Tun(Tun),
    /// FTP through LVS-NAT, active and passive, by Debian's vsftpd and curl
    Ftp(ftp::Ftp),
    /// LVS-NAT over IPv6: the same hosts, and neighbour discovery
    V6(Past),
    /// The same hosts, but the director's kernel routes and ulvs is not there: the baseline
    Route(Run),
    /// Run a command in a host of a lab that is up
    Exec {
        /// Which lab, if several are up
        #[arg(long, value_name = "NAME")]
        lab: Option<String>,
        /// client, director, rs1, rs2, rs3, or what else the drawing shows
        host: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// List the labs that are up
    List {
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
    /// End a lab, or all of them, and remove what is left
    Down {
        /// Which one; all if left out
        name: Option<String>,
    },
    /// Fetch a page from inside a lab: lab exec client -- ulvs lab fetch 1.2.3.1:80
    Fetch {
        /// Address and port of the server
        target: SocketAddr,
        /// Path of the page: /, /health or /bytes/N
        #[arg(default_value = "/")]
        path: String,
    },
    #[command(flatten)]
    Guest(siege::Guest),
    #[command(hide = true)]
    Keeper {
        socket: i32,
        lock: i32,
        machine: u64,
    },
}

/// Runs `ulvs lab` with the words behind it and gives its exit status.
pub fn run(words: Vec<OsString>) -> ExitCode {
    let words = std::iter::once(OsString::from("ulvs lab")).chain(words);
    let words = match Words::try_parse_from(words) {
        Ok(words) => words,
        Err(error) => {
            // When nobody reads it any more, nobody misses it.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let done = match words.what {
        What::Nat(words) => balance(&words, &Topology::nat(words.path()), None),
        What::Fnat(words) => balance(&words, &Topology::full_nat(words.path()), None),
        What::Dr(words) => balance(&words.nat(), &Topology::direct(Path::Frames), None),
        What::Ftp(words) => ftp::run(&words),
        What::V6(words) => balance(&words.nat(), &Topology::six(), None),
        What::Tun(words) => {
            let topology = Topology::tunnel(Path::Frames);
            balance(&words.past.nat(), &topology, Some(words.tunnel()))
        }
        What::Route(words) => route(&words),
        What::Exec { lab, host, command } => exec::run(lab.as_deref(), &host, &command)
            .map(|status| ExitCode::from(u8::try_from(status).unwrap_or(1))),
        What::List { json } => list_labs(json),
        What::Down { name } => down(name.as_deref()),
        What::Fetch { target, path } => {
            exec::fetch(target, &path, &mut io::stdout().lock()).map(|()| ExitCode::SUCCESS)
        }
        What::Guest(guest) => guest.run().map(|()| ExitCode::SUCCESS),
        What::Keeper {
            socket,
            lock,
            machine,
        } => keeper::run(socket, lock, machine).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("ulvs lab: {error}");
        match error.kind() {
            ErrorKind::Interrupted => ExitCode::from(INTERRUPTED),
            _ => ExitCode::FAILURE,
        }
    })
}

/// A lab with a director: requests from the client, calls of the real servers where there are any.
fn balance(words: &Nat, topology: &Topology, tunnel: Option<Tunnel>) -> io::Result<ExitCode> {
    lab::check_machine(topology)?;
    let mut lab = Lab::start(topology.clone(), words.run.name.as_deref())?;
    if !words.run.json {
        show(&network(&lab));
    }
    lab.start_director(&Director {
        nic: words.nic.name().to_string(),
        workers: words.workers,
        scheduler: words.scheduler.clone(),
        limits: words.limits.clone(),
        local_node: words.local_node,
    })?;
    if let Some(tunnel) = tunnel {
        wrap_in(&lab, tunnel)?;
    }
    let vip = SocketAddr::new(topology.vip, topology.port);
    let report = lab.load(&load(&words.run, vec![vip]))?;
    let outward = Outward::try_all(&mut lab)?;
    let seen = Seen::ask(&lab)?;
    let kept_out = outward.as_ref().is_none_or(|outward| outward.failed() == 0);
    let past = answers_pass_by(topology);
    let passed_by = !past || seen.totals[2] == 0;
    let fine = report.failed == 0 && seen.balances() && kept_out && passed_by;
    if words.run.json {
        let mut document = document(&lab, &report);
        document["scheduler"] = json!(words.scheduler);
        document["nic"] = json!(words.nic.name());
        document["workers"] = json!(words.workers);
        document["story"] = json!(seen.story);
        document["account"] = json!(seen.account);
        document["services"] = json!(seen.services);
        document["connections"] = json!(seen.connections.len());
        document["masqueraded"] = json!(seen.masqueraded.len());
        document["method"] = json!(topology.method);
        document["passed"] = json!({ "in": seen.totals[1], "out": seen.totals[2] });
        document["outward"] = json!(outward.as_ref().map(Outward::document));
        show(&format!("{document:#}\n"));
    } else {
        let what = format!(
            "{} requests to http://{vip}/ by {}, nic {}, {} worker(s)",
            words.run.requests,
            words.scheduler,
            words.nic.name(),
            words.workers,
        );
        show(&outcome(&what, topology, &report));
        if past {
            show(&past_the_director(seen.totals));
        }
        if let Some(outward) = &outward {
            let heading = format!("Calls from inside: {} failed", outward.failed());
            show(&section(&heading, &outward.lines()));
        }
        show(&seen.text());
    }
    finish(lab, &words.run, fine)
}

fn route(words: &Run) -> io::Result<ExitCode> {
    let topology = Topology::nat(Path::Kernel);
    let mut lab = Lab::start(topology.clone(), words.name.as_deref())?;
    if !words.json {
        show(&network(&lab));
    }
    // The client plays the scheduler: a server of weight 2 is asked twice.
    let turns = |(_, address, weight): (&str, _, u32)| {
        (0..weight).map(move |_| SocketAddr::new(address, topology.port))
    };
    let targets = topology
        .real_servers()
        .into_iter()
        .flat_map(turns)
        .collect();
    let report = lab.load(&load(words, targets))?;
    if words.json {
        show(&format!("{:#}\n", document(&lab, &report)));
    } else {
        let what = format!(
            "{} requests to the real servers by their weights, routed by the kernel",
            words.requests
        );
        show(&outcome(&what, &topology, &report));
    }
    finish(lab, words, report.failed == 0)
}

/// Do answers go past the director in this network?
fn answers_pass_by(topology: &Topology) -> bool {
    ["route", "tunnel"].contains(&topology.method.as_str())
}

/// What the director has seen of connections whose answers go past it.
fn past_the_director([connections, inward, outward, ..]: [u64; 5]) -> String {
    section(
        "What passed the director",
        &[
            format!("{connections} connections"),
            format!("{inward} packets of the client, to the real servers"),
            format!("{outward} packets of the real servers: they answer the client themselves"),
        ],
    )
}

/// Tells the director how to wrap what goes to each real server.
fn wrap_in(lab: &Lab, tunnel: Tunnel) -> io::Result<()> {
    let mut client = Client::connect(&lab.control().to_string_lossy())?;
    let mut ask = |request| client.ask(&request).map_err(io::Error::other);
    let Reply::Listing(Listing::Services { services, .. }) =
        ask(Request::Ask(Query::Services(None)))?
    else {
        return Err(io::Error::other("the director does not tell its services"));
    };
    for service in services {
        for real in service.reals {
            let change = Command::EditReal {
                service: service.spec.key,
                real: RealSpec {
                    tunnel,
                    ..real.spec
                },
            };
            match ask(Request::Do(change))? {
                Reply::Done => {}
                other => return Err(io::Error::other(format!("the director said {other:?}"))),
            }
        }
    }
    Ok(())
}

fn load(words: &Run, targets: Vec<SocketAddr>) -> Load {
    Load {
        requests: words.requests,
        at_once: REQUESTS_AT_ONCE,
        targets,
        path: "/".to_string(),
    }
}

/// Leaves the lab up or takes it down, and gives the exit status.
fn finish(lab: Lab, words: &Run, fine: bool) -> io::Result<ExitCode> {
    if words.keep {
        let topology = lab.topology().clone();
        let name = lab.keep()?;
        if !words.json {
            show(&how_to_go_on(&name, &topology));
        }
    } else {
        lab.stop()?;
    }
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn how_to_go_on(name: &str, topology: &Topology) -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "ulvs".into());
    let program = program.display();
    let director = topology.path != Path::Kernel;
    let server = topology
        .real_servers()
        .first()
        .map(|(_, address, _)| *address);
    let target = if director { Some(topology.vip) } else { server };
    let target = SocketAddr::new(target.unwrap_or(topology.vip), topology.port);
    let mut lines = vec![
        format!("{program} lab exec --lab {name} client -- {program} lab fetch {target}"),
        format!("{program} lab exec --lab {name} rs1 -- sh"),
        format!("{program} lab down {name}"),
    ];
    if director {
        let listing = format!("{program} lab exec --lab {name} director -- {program} adm -L -n");
        lines.insert(0, listing);
    }
    section(&format!("The lab {name} stays up. Go on with:"), &lines)
}

fn document(lab: &Lab, report: &LoadReport) -> Value {
    let topology = lab.topology();
    let reals = topology.real_servers();
    let served = |name: &str| report.served.get(name).copied().unwrap_or(0);
    let each = |value: &dyn Fn(&str, u32) -> Value| -> Value {
        let pairs = reals.iter();
        pairs
            .map(|(name, _, weight)| (name.to_string(), value(name, *weight)))
            .collect()
    };
    json!({
        "lab": lab.name(),
        "requests": report.requests,
        "failed": report.failed,
        "errors": report.errors,
        "served": each(&|name, _| json!(served(name))),
        "weights": each(&|_, weight| json!(weight)),
        "took_us": report.took_us,
        "latency_us": { "p50": report.p50_us, "p99": report.p99_us, "max": report.max_us },
    })
}

fn network(lab: &Lab) -> String {
    let users = if lab.own_users() {
        "network and user namespaces of its own"
    } else {
        "network namespaces of its own"
    };
    let heading = format!("The lab {}, in {users}\n", lab.name());
    section(&heading, &lab.topology().drawing())
}

/// A heading, lines under it, and an empty line.
fn section(heading: &str, lines: &[String]) -> String {
    let lines: String = lines.iter().map(|line| format!("  {line}\n")).collect();
    format!("{heading}\n{lines}\n")
}

fn outcome(what: &str, topology: &Topology, report: &LoadReport) -> String {
    let seconds = micros_as_s(report.took_us);
    let heading = format!("{what}: {} failed, {seconds:.2} s\n", report.failed);
    let errors = report.errors.iter();
    let mut lines: Vec<String> = errors
        .map(|(reason, n)| format!("{n} x {reason}"))
        .collect();
    let reals = topology.real_servers();
    let weights: u32 = reals.iter().map(|(_, _, weight)| weight).sum();
    lines.push("server   address           weight     of all    served".to_string());
    for (name, address, weight) in reals {
        let served = report.served.get(name).copied().unwrap_or(0);
        let share = f64::from(weight) * 100.0 / f64::from(weights.max(1));
        lines.push(format!(
            "{name:<8} {address:<16} {weight:>7}   {share:>6.1} %   {served:>7}"
        ));
    }
    let latency = format!(
        "Latency: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms\n",
        micros_as_s(report.p50_us) * 1e3,
        micros_as_s(report.p99_us) * 1e3,
        micros_as_s(report.max_us) * 1e3,
    );
    format!("{}{latency}\n", section(&heading, &lines))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "for reading; 52 bits of microseconds are 142 years"
)]
fn micros_as_s(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn frames(account: &AccountRow) -> String {
    let balances = if account.balances {
        "it balances"
    } else {
        "IT DOES NOT BALANCE"
    };
    let mut lines = vec![format!(
        "received {} = forwarded {} + answered {} + passed {} + held {} + dropped {}",
        account.received,
        account.forwarded,
        account.answered,
        account.passed,
        account.held,
        account.dropped,
    )];
    let drops = account.drops.iter();
    lines.extend(drops.map(|(reason, count)| format!("dropped: {count} {reason}")));
    let silent = account.silent.iter();
    lines.extend(silent.map(|worker| format!("worker {worker} did not answer: not counted")));
    lines.push(format!(
        "made by the director itself: {}",
        account.originated
    ));
    let row = |cells: [&str; 7]| {
        let [name, numbers @ ..] = cells;
        let numbers = numbers.map(|cell| format!(" {cell:>10}"));
        format!("{name:<8}{}", numbers.concat())
    };
    lines.push(row([
        "port",
        "received",
        "overrun",
        "truncated",
        "sent",
        "refused",
        "cut",
    ]));
    for (name, counts) in &account.ports {
        let [a, b, c, d, e, f] = counts.map(|count| count.to_string());
        lines.push(row([name, &a, &b, &c, &d, &e, &f]));
    }
    section(&format!("The frame account: {balances}"), &lines)
}

/// Shows a text. A reader who has gone away (`| head`) is no reason to end otherwise.
fn show(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn list_labs(as_json: bool) -> io::Result<ExitCode> {
    let labs = cleanup::list()?;
    let hosts = |lab: &cleanup::Found| -> Vec<String> {
        let hosts = lab.record.iter().flat_map(|record| &record.hosts);
        hosts.map(|host| host.name.clone()).collect()
    };
    if as_json {
        let entry = |lab: &cleanup::Found| {
            json!({ "name": lab.name(), "alive": lab.alive, "hosts": hosts(lab),
                    "folder": lab.folder })
        };
        let document = labs.iter().map(entry).collect::<Value>();
        show(&format!("{document:#}\n"));
        return Ok(ExitCode::SUCCESS);
    }
    for lab in &labs {
        if lab.alive {
            show(&section(
                &format!("{} is up", lab.name()),
                &[
                    format!("hosts   {}", hosts(lab).join(" ")),
                    format!("folder  {}", lab.folder.display()),
                ],
            ));
        } else {
            let name = lab.name();
            show(&format!(
                "{name} is dead; `ulvs lab down` removes what is left\n"
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn down(name: Option<&str>) -> io::Result<ExitCode> {
    for name in cleanup::down(name)? {
        show(&format!("{name} is gone\n"));
    }
    Ok(ExitCode::SUCCESS)
}
