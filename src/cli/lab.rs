//! `ulvs lab`: makes a network, runs a director in it, sends requests, and shows what happened. The
//! machinery is the room `lab`; in here are the words people type and what they get to read.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::config::command::{AccountRow, Listing, Query};
use crate::lab::host::{Load, LoadReport};
use crate::lab::topology::{Path, Topology};
use crate::lab::{self, Director, Lab, cleanup, exec, keeper};

/// Requests in flight at once: enough to keep two processors busy, few enough for honest latencies.
const REQUESTS_AT_ONCE: u16 = 16;
/// Most requests of one run.
const REQUESTS_MAX: u64 = 10_000_000;
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
    /// The same hosts, but the director's kernel routes and ulvs is not there: the baseline
    Route(Run),
    /// Run a command in a host of a lab that is up
    Exec {
        /// Which lab, if several are up
        #[arg(long, value_name = "NAME")]
        lab: Option<String>,
        /// client, director, rs1, rs2 or rs3
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
    #[command(hide = true)]
    Keeper {
        socket: i32,
        lock: i32,
        machine: u64,
    },
}

#[derive(clap::Args)]
struct Run {
    /// How many requests the client sends, each on a connection of its own
    #[arg(long, default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=REQUESTS_MAX))]
    requests: u64,
    /// Leave it up and say how to go on
    #[arg(long)]
    keep: bool,
    /// One JSON document instead of text
    #[arg(long)]
    json: bool,
    /// Name of the lab; else nat, nat-2 and so on
    #[arg(long)]
    name: Option<String>,
}

#[derive(clap::Args)]
struct Nat {
    #[command(flatten)]
    run: Run,
    /// How frames come in: AF_PACKET with a ring, AF_PACKET with recvmmsg, or a TUN device
    #[arg(long, value_enum, default_value_t = Nic::Packet)]
    nic: Nic,
    /// Threads of the director that carry frames
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// Scheduler of the virtual service
    #[arg(long, default_value = "wrr")]
    scheduler: String,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Nic {
    Packet,
    Mmsg,
    Tun,
}

impl Nic {
    const fn name(self) -> &'static str {
        match self {
            Nic::Packet => "packet",
            Nic::Mmsg => "mmsg",
            Nic::Tun => "tun",
        }
    }
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
        What::Nat(words) => nat(&words),
        What::Route(words) => route(&words),
        What::Exec { lab, host, command } => exec::run(lab.as_deref(), &host, &command)
            .map(|status| ExitCode::from(u8::try_from(status).unwrap_or(1))),
        What::List { json } => list(json),
        What::Down { name } => down(name.as_deref()),
        What::Fetch { target, path } => {
            exec::fetch(target, &path, &mut io::stdout().lock()).map(|()| ExitCode::SUCCESS)
        }
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

fn nat(words: &Nat) -> io::Result<ExitCode> {
    let path = match words.nic {
        Nic::Tun => Path::Tun,
        Nic::Packet | Nic::Mmsg => Path::Frames,
    };
    let topology = Topology::nat(path);
    lab::check_machine(&topology)?;
    let mut lab = Lab::start(topology.clone(), words.run.name.as_deref())?;
    if !words.run.json {
        print_network(&lab);
    }
    lab.start_director(&Director {
        nic: words.nic.name().to_string(),
        workers: words.workers,
        scheduler: words.scheduler.clone(),
    })?;
    let vip = SocketAddr::new(topology.vip, topology.port);
    let report = lab.load(&load(&words.run, vec![vip]))?;
    let seen = Seen::ask(&lab)?;
    let fine = report.failed == 0 && seen.account.balances && seen.account.silent.is_empty();
    if words.run.json {
        let mut document = document(&lab, &report);
        document["scheduler"] = json!(words.scheduler);
        document["nic"] = json!(words.nic.name());
        document["workers"] = json!(words.workers);
        document["story"] = json!(seen.story);
        document["account"] = json!(seen.account);
        println!("{document:#}");
    } else {
        let what = format!(
            "{} requests to http://{vip}/ by {}, nic {}, {} worker(s)",
            words.run.requests,
            words.scheduler,
            words.nic.name(),
            words.workers,
        );
        print_report(&what, &topology, &report);
        print_lines("The first connection, packet by packet", &seen.story);
        print_account(&seen.account);
    }
    finish(lab, &words.run, fine)
}

fn route(words: &Run) -> io::Result<ExitCode> {
    let topology = Topology::nat(Path::Kernel);
    let mut lab = Lab::start(topology.clone(), words.name.as_deref())?;
    if !words.json {
        print_network(&lab);
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
        println!("{:#}", document(&lab, &report));
    } else {
        let what = format!(
            "{} requests to the real servers by their weights, routed by the kernel",
            words.requests
        );
        print_report(&what, &topology, &report);
    }
    finish(lab, words, report.failed == 0)
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
        let control = lab.control();
        let director = lab.topology().path != Path::Kernel;
        let name = lab.keep()?;
        if !words.json {
            let program = std::env::current_exe().unwrap_or_else(|_| "ulvs".into());
            let program = program.display();
            println!("The lab {name} stays up. Go on with:");
            if director {
                println!("  {program} adm --control {} -L -n", control.display());
            }
            println!("  {program} lab exec --lab {name} client -- {program} lab fetch 1.2.3.1:80");
            println!("  {program} lab exec --lab {name} rs1 -- sh");
            println!("  {program} lab down {name}");
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

/// What the director says when the requests are done.
struct Seen {
    account: AccountRow,
    story: Vec<String>,
}

impl Seen {
    fn ask(lab: &Lab) -> io::Result<Seen> {
        let strange = |what| io::Error::other(format!("the director does not tell its {what}"));
        let Listing::Account(mut account) = lab.query(Query::Account)? else {
            return Err(strange("account"));
        };
        let story = std::mem::take(&mut account.story);
        Ok(Seen { account, story })
    }
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

fn print_network(lab: &Lab) {
    let users = if lab.own_users() {
        "network and user namespaces of its own"
    } else {
        "network namespaces of its own"
    };
    println!("The lab {}, in {users}\n", lab.name());
    for line in lab.topology().drawing() {
        println!("  {line}");
    }
    println!();
}

fn print_report(what: &str, topology: &Topology, report: &LoadReport) {
    let seconds = micros_as_s(report.took_us);
    println!("{what}: {} failed, {seconds:.2} s\n", report.failed);
    for (reason, count) in &report.errors {
        println!("  {count} x {reason}");
    }
    let reals = topology.real_servers();
    let weights: u32 = reals.iter().map(|(_, _, weight)| weight).sum();
    println!("  server   address           weight     of all    served");
    for (name, address, weight) in reals {
        let served = report.served.get(name).copied().unwrap_or(0);
        let share = f64::from(weight) * 100.0 / f64::from(weights.max(1));
        println!("  {name:<8} {address:<16} {weight:>7}   {share:>6.1} %   {served:>7}");
    }
    println!(
        "\nLatency: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms\n",
        micros_as_s(report.p50_us) * 1e3,
        micros_as_s(report.p99_us) * 1e3,
        micros_as_s(report.max_us) * 1e3,
    );
}

#[expect(
    clippy::cast_precision_loss,
    reason = "for reading; 52 bits of microseconds are 142 years"
)]
fn micros_as_s(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn print_lines(heading: &str, lines: &[String]) {
    println!("{heading}");
    for line in lines {
        println!("  {line}");
    }
    println!();
}

fn print_account(account: &AccountRow) {
    let balances = if account.balances {
        "it balances"
    } else {
        "IT DOES NOT BALANCE"
    };
    println!("The frame account: {balances}");
    println!(
        "  received {} = forwarded {} + answered {} + passed {} + held {} + dropped {}",
        account.received,
        account.forwarded,
        account.answered,
        account.passed,
        account.held,
        account.dropped,
    );
    for (reason, count) in &account.drops {
        println!("  dropped: {count} {reason}");
    }
    println!("  made by the director itself: {}", account.originated);
    println!("  port       received    overrun  truncated       sent    refused");
    for (name, [received, overrun, truncated, sent, refused]) in &account.ports {
        println!(
            "  {name:<8} {received:>10} {overrun:>10} {truncated:>10} {sent:>10} {refused:>10}"
        );
    }
    println!();
}

fn list(as_json: bool) -> io::Result<ExitCode> {
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
        println!("{:#}", labs.iter().map(entry).collect::<Value>());
        return Ok(ExitCode::SUCCESS);
    }
    for lab in &labs {
        let state = if lab.alive {
            "up"
        } else {
            "dead; `ulvs lab down` removes what is left"
        };
        println!("{:<12} {state}", lab.name());
        if lab.alive {
            println!("  hosts   {}", hosts(lab).join(" "));
            println!("  folder  {}", lab.folder.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn down(name: Option<&str>) -> io::Result<ExitCode> {
    for name in cleanup::down(name)? {
        println!("{name} is gone");
    }
    Ok(ExitCode::SUCCESS)
}
