//! Teller: a probe that writes the story of each packet, in words and numbers.

use super::probe::{Probe, Step};
use super::verdict::Verdict;
use crate::conn::{Conn, Direction, State};
use crate::lvs::{Endpoint, Flow, Protocol};
use crate::sched::About;
use crate::time::{Duration, Instant};
use crate::wire::Packet;

/// Lines after which the story of one connection ends: some forty packets.
const CONNECTION_LINES_MAX: usize = 200;

/// Packets listened to for the story of the first connection: telling costs a microsecond or two each,
/// which must not last.
const PACKETS_HEARD_MAX: u32 = 10_000;

/// Collects the stories of packets as lines of text.
#[derive(Debug, Default)]
pub struct Teller {
    lines: Vec<String>,
    /// The packet that is being told.
    packet: Vec<String>,
    packets: u64,
    heard: u32,
    start: Option<Instant>,
    now: Instant,
    subject: Subject,
}

/// Whose packets are kept.
#[derive(Debug, Default)]
enum Subject {
    /// Everybody's.
    #[default]
    All,
    /// Those of the first connection, once there is one.
    First(Option<Chosen>),
}

#[derive(Debug)]
struct Chosen {
    ends: (Endpoint, Endpoint),
    /// The packet being told is one of its.
    here: bool,
    /// Packets since it began to close.
    closing: u32,
}

impl Teller {
    /// A teller of every packet.
    pub fn new() -> Teller {
        Teller::default()
    }

    /// A teller of the first connection only.
    pub fn of_first_connection() -> Teller {
        Teller {
            subject: Subject::First(None),
            ..Teller::default()
        }
    }

    /// Is the first connection's story at its end?
    pub fn is_done(&self) -> bool {
        let Subject::First(first) = &self.subject else {
            return false;
        };
        first.as_ref().is_some_and(|chosen| chosen.closing > 1)
            || self.lines.len() >= CONNECTION_LINES_MAX
            || self.heard >= PACKETS_HEARD_MAX
    }

    /// A connection was found: is it the one?
    fn meet(&mut self, conn: &Conn) {
        let Subject::First(first) = &mut self.subject else {
            return;
        };
        let ends = (conn.client(), conn.virt());
        let chosen = first.get_or_insert(Chosen {
            ends,
            here: false,
            closing: 0,
        });
        chosen.here = chosen.ends == ends;
    }

    /// Its state moved.
    fn watch(&mut self, to: State) {
        if let Subject::First(Some(chosen)) = &mut self.subject
            && chosen.here
            && matches!(to.name(), "TIME_WAIT" | "CLOSE")
        {
            chosen.closing += 1;
        }
    }

    /// The packet's story is whole: keep it, or forget it.
    fn keep(&mut self) {
        self.heard = self.heard.saturating_add(1);
        let wanted = match &mut self.subject {
            Subject::All => true,
            Subject::First(None) => false,
            Subject::First(Some(chosen)) => std::mem::take(&mut chosen.here),
        };
        if wanted {
            self.packets += 1;
            if let Some(first) = self.packet.first_mut() {
                *first = format!("#{}{first}", self.packets);
            }
            self.lines.append(&mut self.packet);
        }
        self.packet.clear();
    }

    /// The next packets come at this time; times are told from the first one on.
    pub fn at(&mut self, now: Instant) {
        self.start.get_or_insert(now);
        self.now = now;
    }

    /// Takes the lines told so far.
    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }

    /// Lines told and not yet taken.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    fn since_start(&self) -> Duration {
        self.now - self.start.unwrap_or(self.now)
    }

    fn say(&mut self, topic: &str, text: String) {
        self.packet.push(format!("    {topic:<9} {text}"));
    }

    fn pick(&mut self, step: &Step<'_>) {
        let Step::Pick {
            scheduler,
            reals,
            notes,
            chosen,
        } = step
        else {
            return;
        };
        self.say("pick", format!("{scheduler} ({})", rule_of(scheduler)));
        let name = |index: usize| reals.get(index).map(|real| real.key.to_string());
        let chosen = chosen.and_then(name);
        let mut choice = format!("-> {}", chosen.as_deref().unwrap_or("nobody"));
        for note in *notes {
            let text = &note.text;
            match note.about {
                About::Search => self.say("", format!("  {text}")),
                About::Server(index) => {
                    let server = name(index).unwrap_or_default();
                    self.say("", format!("  {server}  {text}"));
                }
                About::Choice => {
                    let comma = if choice.contains(',') { ";" } else { "," };
                    choice += &format!("{comma} {text}");
                }
            }
        }
        self.say("", choice);
    }
}

impl Probe for Teller {
    const ON: bool = true;

    fn step(&mut self, step: Step<'_>) {
        match step {
            Step::Arrived { port, text } => {
                self.packet.clear();
                let time = self.since_start().as_secs_f64();
                let name = &port.name;
                self.packet.push(format!("  {time:.6}  in {name}  {text}"));
            }
            Step::Found { conn, direction } => {
                self.meet(conn);
                let who = match direction {
                    Direction::Out => "the real server",
                    _ => "the client",
                };
                let (client, virt, real) = (conn.client(), conn.virt(), conn.real());
                let text = format!("{client} > {virt} > {real}, {who} speaks");
                self.say("entry", text);
            }
            Step::Service { service } => {
                let spec = &service.spec;
                self.say("service", format!("{} {}", spec.key, spec.scheduler));
            }
            Step::Pick { .. } => self.pick(&step),
            Step::State {
                from,
                to,
                expires_s,
            } => {
                self.watch(to);
                let moved = if from == to {
                    format!("{} stays", to.name())
                } else {
                    format!("{} -> {}", from.name(), to.name())
                };
                self.say("state", format!("{moved}, expires in {expires_s} s"));
            }
            Step::Rewritten { .. } => self.rewritten(&step),
            Step::Sent {
                port,
                next_hop,
                mac,
            } => {
                self.say("send", format!("{} via {next_hop} ({mac})", port.name));
            }
            Step::Said(text) => self.say("note", text),
            Step::Ended(verdict) => {
                self.ended(verdict);
                self.keep();
            }
        }
    }
}

impl Teller {
    /// What a packet's ends were and are.
    fn rewritten(&mut self, step: &Step<'_>) {
        let Step::Rewritten {
            conn,
            direction,
            before,
            after,
            ttl,
            checksum,
        } = step
        else {
            return;
        };
        let method = conn.method().name();
        if before == after {
            let text = format!("{method}: only the MAC addresses change, ttl {ttl}");
            return self.say("forward", text);
        }
        let (source, target) = (
            ("source", before.source, after.source),
            ("target", before.target, after.target),
        );
        let ((end, old, new), (other, from, to)) = match direction {
            Direction::Out => (source, target),
            _ => (target, source),
        };
        let other = match from == to {
            true => String::new(),
            false => format!(", {other} {from} -> {to}"),
        };
        let text = format!("{method}: {end} {old} -> {new}{other}, ttl {ttl}, {checksum}");
        self.say("forward", text);
    }

    fn ended(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Forward { .. } => {}
            Verdict::Answered => self.say("answered", "by the director itself".to_string()),
            Verdict::Pass => self.say("pass", "not ours; left to the kernel".to_string()),
            Verdict::Held => self.say(
                "hold",
                "waits, or leaves in copies at the end of the breath".to_string(),
            ),
            Verdict::Drop(reason) => {
                let text = format!("{}: {}", reason.word(), reason.sentence());
                self.say("drop", text);
            }
        }
    }
}

/// Who talks to whom in an IP packet. What has no ports is told with port 0.
pub fn flow_of(packet: &Packet<'_>) -> Flow {
    let protocol = Protocol(packet.layout.protocol);
    let ported = protocol.is_balanced();
    let port = |port: u16| if ported { port } else { 0 };
    Flow {
        protocol,
        source: Endpoint::new(packet.source(), port(packet.source_port())),
        target: Endpoint::new(packet.target(), port(packet.target_port())),
    }
}

/// By what each scheduler decides, for who does not know it by heart.
fn rule_of(scheduler: &str) -> &'static str {
    match scheduler {
        "rr" => "each in turn",
        "wrr" => "in turn, the heavier ones more often",
        "lc" => "the least active*256 + inactive",
        "wlc" => "the least (active*256 + inactive)/weight",
        "sed" => "the least (active + 1)/weight",
        "nq" => "an idle one, else the least (active + 1)/weight",
        "lblc" => "who had this target before, else the least loaded",
        "lblcr" => "the least loaded of a set for this target",
        "dh" => "by a hash of the target; slots are dealt out in turn",
        "sh" => "by a hash of the client; slots are dealt out by weight",
        "mh" => "by a hash of the client; slots are claimed by weight, as Maglev does",
        "fo" => "the heaviest",
        "ovf" => "the heaviest that is not full",
        "twos" => "the less loaded of two drawn by chance",
        _ => "by its own rule",
    }
}

/// What NAT did about the transport checksum of this packet.
pub fn checksum_word(packet: &Packet<'_>) -> &'static str {
    match (packet.offload.is_partial(), packet.offload.is_gso()) {
        (true, true) => "partial checksum adjusted, segments still to be cut",
        (true, false) => "partial checksum adjusted",
        (false, _) => "checksum adjusted",
    }
}
