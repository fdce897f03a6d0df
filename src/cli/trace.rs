//! `ulvs trace`: plays a capture to a whole director in memory and prints the story of every packet.
//! Nothing runs, nothing is sent: the capture is the wire, its times are the clock.

mod scene;
mod stage;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::cli::list;
use crate::cli::names::SystemNames;
use crate::cli::options::RunArgs;
use crate::cli::run;
use crate::config::command::{ConnRow, ServiceRow};
use crate::config::ipvsadm::{Columns, List, What};
use crate::config::words::NumbersOnly;
use crate::config::{Config, Listing, Query};
use crate::control::TABLE_SIZE;
use crate::director::{Account, DropReason, Port, Side, Verdict};
use crate::nic::pcap::{CaptureInterface, CaptureReader, CaptureWriter, Captured};
use crate::time::Instant;
use crate::wire::memory::MemoryFrame;
use crate::wire::text;

use scene::Scene;
pub use scene::{Hints, Net};
use stage::{Stage, Told, offload_of};

/// A packet that the capture has cut is filled up to its length, up to this many bytes.
const FRAME_LEN_MAX: usize = 256 << 10;

/// What to trace, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct TraceArgs {
    /// The capture: pcap or pcapng
    #[arg(value_name = "FILE")]
    pub capture: PathBuf,
    /// Rules of the director, as ipvsadm-save prints them
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    pub rules: Option<PathBuf>,
    /// Configuration file of the director (docs/configuration.md)
    #[arg(long, value_name = "FILE", conflicts_with = "rules")]
    pub config: Option<PathBuf>,
    /// One JSON document instead of text
    #[arg(long)]
    pub json: bool,
    /// Write the capture once more, each packet with its story as a comment (pcapng)
    #[arg(long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// When a real server answers that was not chosen here, take it for the one that was
    #[arg(long)]
    pub what_if: bool,
    /// What the capture does not say itself
    #[command(flatten)]
    pub hints: Hints,
}

/// Runs `ulvs trace` and gives its exit status: 0 only if every packet could be read.
pub fn run(args: &TraceArgs) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let done = trace(args, &mut out);
    // What was told before a capture broke off comes before what is wrong with it.
    let flushed = out.flush().map_err(|error| Failure::of_output(&error));
    match done.and(flushed) {
        // A reader that has gone away is no error of ours.
        Ok(()) | Err(Failure::NobodyReads) => ExitCode::SUCCESS,
        Err(Failure::Said(message)) => {
            eprintln!("ulvs trace: {}", message.trim_end());
            ExitCode::FAILURE
        }
    }
}

/// Why a trace ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A message for people.
    Said(String),
    /// Nobody reads what is told.
    NobodyReads,
}

impl Failure {
    fn of_output(error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::NobodyReads,
            _ => Failure::Said(format!("cannot write: {error}")),
        }
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Failure {
        Failure::Said(message)
    }
}

type Outcome<T> = Result<T, Failure>;

/// Looks at the capture twice: first to learn where the director stands, then to tell.
///
/// # Errors
/// What is wrong with the configuration or with the capture. One that breaks off is told up to there
/// first.
pub fn trace(args: &TraceArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let config = load(args)?;
    let mut scene = Scene::new(&config, &args.hints);
    let first = look(&args.capture, &mut scene)?;
    let name = args.capture.display();
    scene.settle().map_err(|error| format!("{name}: {error}"))?;
    let stage = Stage::new(&config, &scene.ports, first.start);
    let rules = args.rules.as_ref().or(args.config.as_ref());
    let rules = rules.map(|path| path.display().to_string());
    let mut stage =
        stage.map_err(|error| format!("{}: {error}", rules.as_deref().unwrap_or_default()))?;
    let copy = args.write.as_ref();
    let mut copy = copy
        .map(|path| begin_copy(path, &args.capture, &first))
        .transpose()?;
    let mut printer = Printer::new(args.json, &scene.ports, first.start, out);
    printer.head(&args.capture, &scene, &first)?;
    let mut reader = open(&args.capture)?;
    let problem = loop {
        let packet = match reader.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => break None,
            Err(error) => break Some(format!("{name}: {error}")),
        };
        let (port, told) = tell(packet.clone(), args, &scene, &mut stage);
        printer.packet(port, &packet, &told)?;
        if let Some(copy) = &mut copy {
            let written = copy.write(&packet, &told.lines.join("\n"));
            written.map_err(|error| error.to_string())?;
        }
    };
    if let Some(copy) = copy {
        copy.finish().map_err(|error| error.to_string())?;
    }
    printer.end(&mut stage, problem.as_deref())?;
    problem.map_or(Ok(()), |problem| Err(Failure::Said(problem)))
}

/// The configuration: the file itself, or rules between two interfaces.
fn load(args: &TraceArgs) -> Outcome<Config> {
    let name = |hint: &Option<String>, usual: &str| {
        let name = hint.clone().unwrap_or_else(|| usual.to_string());
        args.rules.as_ref().map(|_| name)
    };
    let words = RunArgs {
        config: args.config.clone(),
        rules: args.rules.clone(),
        public: name(&args.hints.public, "public"),
        private: name(&args.hints.private, "private"),
        ..RunArgs::default()
    };
    Ok(run::load(&words, &SystemNames::load())?)
}

fn open(path: &Path) -> Outcome<CaptureReader<File>> {
    CaptureReader::open(path).map_err(|error| Failure::Said(error.to_string()))
}

/// What the first look at a capture shows beside the scene.
struct FirstLook {
    start: Instant,
    end: Instant,
    interfaces: Vec<CaptureInterface>,
}

fn look(path: &Path, scene: &mut Scene) -> Outcome<FirstLook> {
    let mut reader = open(path)?;
    let mut found = FirstLook {
        start: Instant::ZERO,
        end: Instant::ZERO,
        interfaces: Vec::new(),
    };
    // What is wrong with it is said when it has been told up to there.
    while let Ok(Some(mut packet)) = reader.next_packet() {
        if scene.packets == 0 {
            found.start = packet.time;
        }
        found.end = found.end.max(packet.time);
        let name = reader.interface_name(packet.interface);
        while found.interfaces.len() <= packet.interface {
            let number = found.interfaces.len();
            let name = reader.interface_name(number).map(str::to_string);
            found.interfaces.push(CaptureInterface {
                name: name.unwrap_or_else(|| format!("interface {number}")),
                raw_ip: packet.raw_ip,
            });
        }
        found.interfaces[packet.interface].raw_ip = packet.raw_ip;
        scene.learn(&mut packet, name);
    }
    Ok(found)
}

type Copy = CaptureWriter<BufWriter<File>>;

fn begin_copy(path: &Path, capture: &Path, first: &FirstLook) -> Outcome<Copy> {
    let failed = |error: io::Error| format!("cannot write {}: {error}", path.display());
    let same =
        |one: &Path, other: &Path| Some(one.canonicalize().ok()? == other.canonicalize().ok()?);
    if same(path, capture) == Some(true) {
        return Err(Failure::Said(format!(
            "{} is the capture itself; write the copy to another file",
            path.display()
        )));
    }
    let file = BufWriter::new(File::create(path).map_err(failed)?);
    let writer = CaptureWriter::new(file, &first.interfaces);
    Ok(writer.map_err(|error| format!("{}: {error}", path.display()))?)
}

/// Plays one packet.
fn tell(mut packet: Captured, args: &TraceArgs, scene: &Scene, stage: &mut Stage) -> (usize, Told) {
    let mut notes = Vec::new();
    let have = packet.bytes.len();
    if have < packet.original_len && packet.original_len <= FRAME_LEN_MAX {
        packet.bytes.resize(packet.original_len, 0);
        let len = packet.original_len;
        notes.push(format!(
            "the capture has {have} of its {len} bytes; the rest is taken for 0"
        ));
    }
    let port = scene.port(&mut packet);
    let client_side = scene.ports[port].side == Side::Public;
    let mut frame = MemoryFrame {
        offload: offload_of(&mut packet.bytes, packet.raw_ip),
        mark: if client_side { args.hints.mark } else { 0 },
        bytes: packet.bytes,
    };
    if let Some((speaker, chosen)) = stage.chosen_instead(&frame.bytes) {
        notes.push(if args.what_if {
            stage.recast(&mut frame, chosen);
            format!("{speaker} said this when it was captured; here {chosen} does")
        } else {
            format!("{speaker} speaks, but {chosen} was chosen here; see --what-if")
        });
    }
    let mut told = stage.play(port, frame, packet.time);
    let notes = notes.iter().map(|note| format!("    {:<9} {note}", "note"));
    told.lines
        .splice(1.min(told.lines.len())..1.min(told.lines.len()), notes);
    (port, told)
}

/// Prints what is told, as text or as one JSON document.
struct Printer<'a> {
    json: bool,
    ports: &'a [Port],
    start: Instant,
    number: u64,
    out: &'a mut dyn Write,
}

impl<'a> Printer<'a> {
    fn new(json: bool, ports: &'a [Port], start: Instant, out: &'a mut dyn Write) -> Printer<'a> {
        Printer {
            json,
            ports,
            start,
            number: 0,
            out,
        }
    }

    fn print(&mut self, text: &str) -> Outcome<()> {
        let written = self.out.write_all(text.as_bytes());
        written.map_err(|error| Failure::of_output(&error))
    }

    fn head(&mut self, capture: &Path, scene: &Scene, first: &FirstLook) -> Outcome<()> {
        let name = capture.display().to_string();
        if self.json {
            let ports: Vec<Value> = self.ports.iter().map(port_json).collect();
            let (ports, notes) = (json!(ports), json!(scene.notes));
            let name = json!(name);
            let head = format!("\"capture\":{name},\"ports\":{ports},\"notes\":{notes}");
            return self.print(&format!("{{{head},\"packets\":["));
        }
        let span = first.end - first.start;
        let mut text = format!("{name}: {} packets in {span}\n", scene.packets);
        for note in &scene.notes {
            text += &format!("  {note}\n");
        }
        self.print(&(text + "\n"))
    }

    fn packet(&mut self, port: usize, packet: &Captured, told: &Told) -> Outcome<()> {
        self.number += 1;
        if !self.json {
            let mut text = told.lines.join("\n") + "\n";
            for (out, frame) in self.made(told) {
                let line = text::describe(&frame.bytes, self.ports[*out].raw_ip);
                text += &format!("    {:<9} {} {line}\n", "reply", self.ports[*out].name);
            }
            return self.print(&text);
        }
        let value = self.packet_json(port, packet, told);
        let comma = if self.number == 1 { "\n" } else { ",\n" };
        self.print(&format!("{comma}{value}"))
    }

    /// Frames that the director made itself because of this packet.
    fn made<'t>(&self, told: &'t Told) -> impl Iterator<Item = &'t (usize, MemoryFrame)> {
        // A packet that is sent on is told by its own story.
        let forwarded = usize::from(matches!(told.verdict, Verdict::Forward { .. }));
        told.out.iter().skip(forwarded)
    }

    fn packet_json(&self, port: usize, packet: &Captured, told: &Told) -> Value {
        let port = &self.ports[port];
        let (verdict, reason) = words(told.verdict);
        let frame_json = |(out, frame): &(usize, MemoryFrame)| {
            let out = &self.ports[*out];
            let what = text::describe(&frame.bytes, out.raw_ip);
            json!({ "port": out.name, "what": what, "frame": hex(&frame.bytes) })
        };
        json!({
            "number": self.number,
            "time_ns": packet.time.as_nanos(),
            "time": (packet.time - self.start).as_secs_f64(),
            "port": port.name,
            "side": port.side,
            "what": text::describe(&packet.bytes, packet.raw_ip),
            "verdict": verdict,
            "reason": reason,
            "story": told.lines,
            "frame": hex(&packet.bytes),
            "out": told.out.iter().map(frame_json).collect::<Vec<Value>>(),
        })
    }

    fn end(&mut self, stage: &mut Stage, problem: Option<&str>) -> Outcome<()> {
        let services = match stage.ask(Query::Services(None)) {
            Some(Listing::Services { services, .. }) => services,
            _ => Vec::new(),
        };
        let conns = match stage.ask(Query::Connections) {
            Some(Listing::Connections(conns)) => conns,
            _ => Vec::new(),
        };
        let account = stage.account();
        if self.json {
            let account_json = account_json(account);
            let (services, conns) = (json!(services), json!(conns));
            let problem = json!(problem);
            let tail = format!("\"account\":{account_json},\"services\":{services}");
            let tail = format!("{tail},\"connections\":{conns},\"error\":{problem}");
            return self.print(&format!("\n],{tail}}}\n"));
        }
        let text = account_text(account) + &tables_text(&services, &conns);
        self.print(&text)
    }
}

fn port_json(port: &Port) -> Value {
    let addresses = port.addresses.iter();
    let addresses: Vec<String> = addresses
        .map(|(address, prefix)| format!("{address}/{prefix}"))
        .collect();
    let mac = (!port.raw_ip).then(|| port.mac.to_string());
    json!({ "name": port.name, "side": port.side, "mac": mac, "mtu": port.mtu,
            "addresses": addresses })
}

/// A verdict and the reason of a drop, for JSON.
fn words(verdict: Verdict) -> (&'static str, Option<&'static str>) {
    match verdict {
        Verdict::Forward { .. } => ("forwarded", None),
        Verdict::Answered => ("answered", None),
        Verdict::Pass => ("passed", None),
        Verdict::Held => ("held", None),
        Verdict::Drop(reason) => ("dropped", Some(reason.word())),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn drops(account: &Account) -> Vec<(&'static str, u64)> {
    let all = DropReason::ALL.map(|reason| (reason.word(), account.dropped_for(reason)));
    all.into_iter().filter(|(_, count)| *count > 0).collect()
}

fn account_json(account: &Account) -> Value {
    let drops: serde_json::Map<String, Value> = drops(account)
        .into_iter()
        .map(|(word, count)| (word.to_string(), json!(count)))
        .collect();
    json!({
        "received": account.received,
        "forwarded": account.forwarded,
        "answered": account.answered,
        "passed": account.passed,
        "held": account.held,
        "dropped": account.dropped_total(),
        "drops": drops,
        "originated": account.originated,
        "balances": account.balances(),
    })
}

fn account_text(account: &Account) -> String {
    let Account {
        received,
        forwarded,
        answered,
        passed,
        held,
        ..
    } = account;
    let dropped = account.dropped_total();
    let mut text = format!(
        "\n{received} packets: {forwarded} forwarded, {answered} answered, {passed} passed, \
         {held} held, {dropped} dropped"
    );
    for (word, count) in drops(account) {
        text += &format!(" ({count} {word})");
    }
    text + "\n\n"
}

/// Services and connections as they stand at the end.
fn tables_text(services: &[ServiceRow], conns: &[ConnRow]) -> String {
    let listing = |what, columns| List {
        what,
        numeric: true,
        exact: true,
        sorted: true,
        columns,
    };
    let plain = listing(What::Services(None), Columns::Plain);
    let mut text = "The services in the end, as ipvsadm -L -n prints them\n".to_string();
    text += &list::services(TABLE_SIZE, services, &plain, &NumbersOnly);
    text += "\nThe connections in the end, as ipvsadm -L -n -c prints them\n";
    let plain = listing(What::Connections, Columns::Plain);
    text + &list::connections(conns, &plain, &NumbersOnly)
}
