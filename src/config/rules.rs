//! Rules: the lines of ipvsadm-save, both ways. A rules file describes the whole table from nothing, so
//! lines that contradict each other are found here, before anything is applied.

use std::collections::BTreeMap;
use std::ops::Range;

use super::command::{Command, RealSpec, Refusal};
use super::ipvsadm::{Call, Complaint, Fault, parse as parse_words};
use super::options::OPTIONS;
use super::problem::{Problems, nearest};
use super::words::{NumbersOnly, Resolver, can_serve, endpoint_text, flags_text, netmask_text};
use crate::lvs::{
    Endpoint, Family, ForwardMethod, Protocol, RealKey, ServiceFlags, ServiceKey, ServiceSpec,
    SyncRole, Thresholds, Timeouts, Tunnel, TunnelChecksum,
};

/// Reads a rules file. Blank lines and lines that begin with `#` are skipped, leading words `ipvsadm`
/// are dropped. `name` is what problems call the file.
///
/// # Errors
/// All that is wrong, each at its place.
pub fn parse(name: &str, text: &str, names: &dyn Resolver) -> Result<Vec<Command>, Problems> {
    let mut problems = Problems::new(name, text);
    let mut commands = Vec::new();
    let mut known = Known::default();
    for line in lines(text) {
        let words: Vec<&str> = line.words.iter().map(|span| &text[span.clone()]).collect();
        match parse_words(&words, names) {
            Ok(Call::Change(command)) if !is_about_sync(&command) => {
                match known.apply(&command, line.number) {
                    Ok(()) => {}
                    // Its own line is wrong, and that has been said.
                    Err((Refusal::ServiceNotDefined | Refusal::NoSuchService, _))
                        if known.incomplete => {}
                    Err((refusal, label)) => {
                        problems.add(line.whole(), refusal.sentence(), label);
                    }
                }
                commands.push(command);
            }
            Ok(_) => {
                let what = "this line changes nothing; only changes belong into a rules file";
                problems.add(line.words[0].clone(), what, "");
            }
            Err(complaint) => {
                known.incomplete |= ["-A", "--add-service"].contains(&words[0]);
                note(&mut problems, &line, &words, &complaint);
            }
        }
    }
    problems.or(commands)
}

/// Who synchronises connections is no part of the table.
fn is_about_sync(command: &Command) -> bool {
    matches!(command, Command::StartSync(_) | Command::StopSync(_))
}

/// A line that has words.
struct Line {
    /// Counted from 1.
    number: usize,
    /// Where its words are, in bytes of the text; at least one.
    words: Vec<Range<usize>>,
}

impl Line {
    fn whole(&self) -> Range<usize> {
        self.words[0].start..self.words[self.words.len() - 1].end
    }
}

/// The lines that say something.
fn lines(text: &str) -> Vec<Line> {
    let mut found = Vec::new();
    let mut start = 0;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let words = line.split_ascii_whitespace();
        let words: Vec<&str> = words.skip_while(|word| *word == "ipvsadm").collect();
        if words.first().is_some_and(|word| !word.starts_with('#')) {
            let span = |word: &str| {
                let at = start + (word.as_ptr() as usize - line.as_ptr() as usize);
                at..at + word.len()
            };
            let words = words.into_iter().map(span).collect();
            found.push(Line { number, words });
        }
        start += line.len();
    }
    found
}

fn note(problems: &mut Problems, line: &Line, words: &[&str], complaint: &Complaint) {
    let span = complaint.word.map(|word| line.words[word].clone());
    let span = span.unwrap_or(line.whole());
    match &complaint.fault {
        Fault::NoCommand => {
            problems.add(span, "a rule begins with a command", "no command");
            problems.hint("-A adds a service, -a adds a real server to it");
        }
        Fault::BadOption { text, why } => {
            problems.add(span, format!("{text}: {why}"), "");
            let long: Vec<&str> = OPTIONS.iter().map(|row| row.0).collect();
            let near = text
                .strip_prefix("--")
                .and_then(|text| nearest(text, &long));
            if let Some(near) = near {
                problems.hint(format!("did you mean --{near}?"));
            }
        }
        Fault::Wrong(text) => {
            problems.add(span, text.trim_end(), "");
            if complaint
                .word
                .is_some_and(|word| words[word].starts_with('#'))
            {
                problems.hint("a comment stands on a line of its own");
            } else if text.contains("address[:port]") {
                problems.hint("write ADDRESS:PORT, and [ADDRESS]:PORT for IPv6");
            }
        }
    }
}

/// The services and servers that the lines so far have made, and the line that made each.
#[derive(Default)]
struct Known {
    /// A line that adds a service could not be read, so that one is missing here.
    incomplete: bool,
    services: BTreeMap<ServiceKey, (usize, BTreeMap<RealKey, usize>)>,
}

type Refused = Result<(), (Refusal, String)>;

impl Known {
    /// What the engine would say to this command after all those before it.
    fn apply(&mut self, command: &Command, line: usize) -> Refused {
        match command {
            Command::AddService(spec) => match self.services.get(&spec.key) {
                Some((first, _)) => Err((Refusal::ServiceExists, format!("first in line {first}"))),
                None => {
                    self.services.insert(spec.key, (line, BTreeMap::new()));
                    Ok(())
                }
            },
            Command::EditService(ServiceSpec { key, .. }) | Command::Zero(Some(key)) => {
                self.service(key, Refusal::NoSuchService).map(|_| ())
            }
            Command::DeleteService(key) => {
                self.service(key, Refusal::NoSuchService)?;
                self.services.remove(key);
                Ok(())
            }
            Command::Flush => {
                self.services.clear();
                Ok(())
            }
            Command::AddReal { service, real } => self.add_real(service, real, line),
            Command::EditReal { service, real } => {
                fits(real)?;
                self.real(service, &real.key).map(|_| ())
            }
            Command::DeleteReal { service, real } => {
                self.real(service, real)?.remove(real);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn add_real(&mut self, service: &ServiceKey, real: &RealSpec, line: usize) -> Refused {
        let reals = self.service(service, Refusal::ServiceNotDefined)?;
        if let Some(first) = reals.get(&real.key) {
            return Err((Refusal::DestinationExists, format!("first in line {first}")));
        }
        fits(real)?;
        reals.insert(real.key, line);
        Ok(())
    }

    fn service(
        &mut self,
        key: &ServiceKey,
        refusal: Refusal,
    ) -> Result<&mut BTreeMap<RealKey, usize>, (Refusal, String)> {
        let found = self.services.get_mut(key).map(|(_, reals)| reals);
        found.ok_or_else(|| (refusal, format!("no line before adds {key}")))
    }

    fn real(
        &mut self,
        service: &ServiceKey,
        real: &RealKey,
    ) -> Result<&mut BTreeMap<RealKey, usize>, (Refusal, String)> {
        let reals = self.service(service, Refusal::ServiceNotDefined)?;
        if reals.contains_key(real) {
            return Ok(reals);
        }
        let label = format!("no line before adds {real}");
        Err((Refusal::NoSuchDestination, label))
    }
}

fn fits(real: &RealSpec) -> Refused {
    if !can_serve(real.key.0.address) {
        return Err((Refusal::Invalid, "no unicast address".to_string()));
    }
    if real.thresholds.lower > real.thresholds.upper {
        let label = "the lower threshold is above the upper one";
        return Err((Refusal::OutOfRange, label.to_string()));
    }
    Ok(())
}

/// The `-A` line of a service, as `ipvsadm -S` prints it.
pub fn service_line(spec: &ServiceSpec, names: &dyn Resolver) -> String {
    let mut line = format!("-A {} -s {}", key_words(&spec.key, names), spec.scheduler);
    if let Some(persistence) = spec.persistence {
        line += &format!(" -p {}", persistence.timeout_s);
        if let Some(mask) = netmask_text(spec.netmask) {
            line += &format!(" -M {mask}");
        }
    }
    if let Some(engine) = &spec.engine {
        line += &format!(" --pe {engine}");
    }
    if spec.flags.has(ServiceFlags::ONE_PACKET) {
        line += " -o";
    }
    if let Some(flags) = flags_text(spec.flags, &spec.scheduler) {
        line += &format!(" -b {flags}");
    }
    line
}

/// The `-a` line of a real server, as `ipvsadm -S` prints it: thresholds are left out, a server on the
/// director itself is written as `-g`.
pub fn real_line(service: &ServiceKey, real: &RealSpec, names: &dyn Resolver) -> String {
    let method = match real.method {
        ForwardMethod::Masq => "-m",
        ForwardMethod::Tunnel => "-i",
        ForwardMethod::FullNat => "-F",
        ForwardMethod::Local | ForwardMethod::Route => "-g",
        ForwardMethod::Bypass | ForwardMethod::Masquerade => "-g",
    };
    let endpoint = real.key.0;
    let server = endpoint_text(endpoint.address, endpoint.port, protocol_of(service), names);
    let service = key_words(service, names);
    let mut line = format!("-a {service} -r {server} {method} -w {}", real.weight.0);
    if real.method == ForwardMethod::Tunnel {
        line += &tunnel_words(real.tunnel);
    }
    line
}

/// A change in words that do the same when they are typed: ipvsadm's where it has some. `numbers` for
/// addresses and ports. A batch is as many lines.
pub fn words_of(command: &Command) -> String {
    let names = &NumbersOnly;
    let key = |key: &ServiceKey| key_words(key, names);
    let server = |service: &ServiceKey, real: &RealKey| {
        let Endpoint { address, port } = real.0;
        endpoint_text(address, port, protocol_of(service), names)
    };
    match command {
        Command::AddService(spec) => service_line(spec, names),
        Command::EditService(spec) => service_line(spec, names).replacen("-A", "-E", 1),
        Command::DeleteService(service) => format!("-D {}", key(service)),
        Command::Flush => "-C".to_string(),
        Command::AddReal { service, real } => whole_real_line(service, real),
        Command::EditReal { service, real } => {
            whole_real_line(service, real).replacen("-a", "-e", 1)
        }
        Command::DeleteReal { service, real } => {
            format!("-d {} -r {}", key(service), server(service, real))
        }
        Command::Zero(None) => "-Z".to_string(),
        Command::Zero(Some(service)) => format!("-Z {}", key(service)),
        Command::SetTimeouts(timeouts) => {
            let Timeouts {
                tcp_s,
                tcp_fin_s,
                udp_s,
            } = timeouts;
            format!("--set {tcp_s} {tcp_fin_s} {udp_s}")
        }
        Command::SetTunable { name, value } => format!("ulvs tune {name}={value}"),
        Command::SetPools {
            masquerading,
            full_nat,
        } => format!(
            "[masquerade] prefixes: {}; [fullnat] addresses: {}",
            masquerading.prefixes.len(),
            full_nat.addresses.len()
        ),
        Command::SetMarks(rules) => format!("[[mark]] rules: {}", rules.len()),
        Command::SetFtpPorts(ports) => format!("[ftp] ports: {ports:?}"),
        Command::StartSync(daemon) => {
            let word = match daemon.role {
                SyncRole::Master => "master",
                SyncRole::Backup => "backup",
            };
            let interface = daemon.interface();
            format!("--start-daemon {word} --mcast-interface {interface}")
        }
        Command::StopSync(SyncRole::Master) => "--stop-daemon master".to_string(),
        Command::StopSync(SyncRole::Backup) => "--stop-daemon backup".to_string(),
        Command::Batch(commands) => {
            let lines: Vec<String> = commands.iter().map(words_of).collect();
            lines.join("\n")
        }
    }
}

/// The `-a` line of a real server with its thresholds, which `ipvsadm -S` leaves out.
fn whole_real_line(service: &ServiceKey, real: &RealSpec) -> String {
    let mut line = real_line(service, real, &NumbersOnly);
    if real.thresholds != Thresholds::default() {
        let Thresholds { upper, lower } = real.thresholds;
        line += &format!(" -x {upper} -y {lower}");
    }
    line
}

/// The protocol in which names of ports are looked up; a mark has none.
pub fn protocol_of(service: &ServiceKey) -> Protocol {
    match service {
        ServiceKey::Address { protocol, .. } => *protocol,
        ServiceKey::Mark { .. } => Protocol::IP,
    }
}

/// ipvsadm prints a mark as a signed number.
fn key_words(key: &ServiceKey, names: &dyn Resolver) -> String {
    match *key {
        ServiceKey::Address { protocol, virt } => {
            let option = match protocol {
                Protocol::UDP => "-u",
                Protocol::SCTP => "--sctp-service",
                _ => "-t",
            };
            let endpoint = endpoint_text(virt.address, virt.port, protocol, names);
            format!("{option} {endpoint}")
        }
        ServiceKey::Mark { mark, family } => match family {
            Family::V4 => format!("-f {}", mark.cast_signed()),
            Family::V6 => format!("-f {} -6", mark.cast_signed()),
        },
    }
}

fn tunnel_words(tunnel: Tunnel) -> String {
    let checksum_word = |checksum| match checksum {
        TunnelChecksum::No => "--tun-nocsum",
        TunnelChecksum::Full => "--tun-csum",
        TunnelChecksum::Remote => "--tun-remcsum",
    };
    match tunnel {
        Tunnel::Ipip => " --tun-type ipip".to_string(),
        Tunnel::Gue { port, checksum } => {
            let word = checksum_word(checksum);
            format!(" --tun-type gue --tun-port {port} {word}")
        }
        Tunnel::Gre { checksum } => format!(" --tun-type gre {}", checksum_word(checksum)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(commands: &[Command]) -> String {
        let line = |command: &Command| match command {
            Command::AddService(spec) => service_line(spec, &NumbersOnly),
            Command::AddReal { service, real } => real_line(service, real, &NumbersOnly),
            other => panic!("{other:?} is not saved"),
        };
        commands
            .iter()
            .map(|command| line(command) + "\n")
            .collect()
    }

    // Recorded from ipvsadm -S -n.
    const SAVED: &str = "\
-A -t 66.199.240.50:0 -s wlc -p 300 -M 255.255.255.0
-a -t 66.199.240.50:0 -r 10.0.0.100:0 -i -w 1 --tun-type ipip
-a -t 66.199.240.50:0 -r 10.0.0.101:0 -i -w 1 --tun-type gue --tun-port 5555 --tun-nocsum
-a -t 66.199.240.50:0 -r 10.0.0.102:0 -i -w 1 --tun-type gre --tun-csum
-A -t 66.199.240.50:80 -s wlc
-a -t 66.199.240.50:80 -r 10.0.0.100:80 -m -w 1
-a -t 66.199.240.50:80 -r 10.0.0.101:80 -m -w 2
-A -u 66.199.240.50:5060 -s rr -p 60 --pe sip -o
-a -u 66.199.240.50:5060 -r 10.0.0.100:5060 -m -w 1
-A --sctp-service 66.199.240.50:9999 -s mh -b mh-port
-A -t [2001:db8::1]:80 -s sh -p 600 -M 64 -b sh-fallback,sh-port
-a -t [2001:db8::1]:80 -r [2001:db8::11]:8080 -m -w 4
-A -f 80 -s wrr -p 360
-a -f 80 -r 10.0.0.100:0 -g -w 3
-A -f 80 -6 -s rr
";

    #[test]
    fn saved_rules_come_back_as_they_were() {
        let commands = parse("rules", SAVED, &NumbersOnly).unwrap();
        assert_eq!(print(&commands), SAVED);
    }

    #[test]
    fn comments_blanks_and_the_word_ipvsadm_are_skipped() {
        let text = "# ipvsadm.rules\n\n  ipvsadm -A\t-t 1.2.3.4:80 \r\n   # x\nipvsadm\n-C";
        let commands = parse("rules", text, &NumbersOnly).unwrap();
        assert_eq!(commands.len(), 2);
        assert_eq!(commands[1], Command::Flush);
    }

    #[test]
    fn all_errors_are_found_each_at_its_word() {
        let text = "-A -t 1.2.3.4:80 -s wlc\n-a -t 1.2.3.4:80 -r 1.1.1.1 -w x\nQ\n-L\n\
                    -A -t 1.2.3.4:80\n-a -t 1.2.3.5:80 -r 1.1.1.1\n-A -t 1.1.1.1:8 --shed rr\n\
                    -a -t 1.2.3.4:80 -r 224.0.0.1 -m\n";
        let problems = parse("r", text, &NumbersOnly).unwrap_err();
        let found: Vec<(usize, usize, &str)> = problems
            .list()
            .iter()
            .map(|problem| {
                let (line, column) = problems.line_and_column(problem.span.start);
                (line, column, &text[problem.span.clone()])
            })
            .collect();
        let expected = [
            (2, 32, "x"),
            (3, 1, "Q"),
            (4, 1, "-L"),
            (5, 1, "-A -t 1.2.3.4:80"),
            (6, 1, "-a -t 1.2.3.5:80 -r 1.1.1.1"),
            (7, 17, "--shed"),
            (8, 1, "-a -t 1.2.3.4:80 -r 224.0.0.1 -m"),
        ];
        assert_eq!(found, expected);
        assert!(problems.to_string().contains("first in line 1"));
    }
}
