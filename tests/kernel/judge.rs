//! Compares what the director did with what was recorded: frames, connection entries, counts and
//! listings. What the recordings themselves leave open is left open here, each with its reason.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use ulvs::conn::Conn;
use ulvs::director::snapshot::Service;
use ulvs::lvs::{Family, Netmask, Protocol, ServiceFlags, ServiceKey};

use super::case::{EntriesOf, Entry, FrameOut, Listed, Side, Volatile, VolatilePart};
use super::house::{House, Sent};
use super::packet::{Seen, describe};

/// Why a case did not play to its end.
#[derive(Debug)]
pub enum Trouble {
    /// The director did something else.
    Differs { expected: String, got: String },
    /// A step that cannot be played here.
    Cannot(String),
}

/// What was expected and what was got, both for people.
pub fn differs(expected: impl Into<String>, got: impl Into<String>) -> Trouble {
    Trouble::Differs {
        expected: expected.into(),
        got: got.into(),
    }
}

/// The two texts are the same.
///
/// # Errors
/// `Differs` if not.
pub fn same<T: PartialEq + std::fmt::Debug>(expected: &T, got: &T) -> Result<(), Trouble> {
    if expected == got {
        Ok(())
    } else {
        Err(differs(format!("{expected:?}"), format!("{got:?}")))
    }
}

/// The frames are those that came out, in the same order on each side.
///
/// # Errors
/// `Differs` with the first frame that does.
pub fn frames(expected: &[FrameOut], got: &[Sent], unstable: bool) -> Result<(), Trouble> {
    for side in Side::BOTH {
        let expected: Vec<&FrameOut> = expected.iter().filter(|out| out.side == side).collect();
        let got: Vec<&Sent> = got.iter().filter(|sent| sent.side == side).collect();
        if expected.len() != got.len() && !unstable {
            let texts = expected.iter().map(|out| describe(&out.frame));
            let ours = got.iter().map(|sent| describe(&sent.frame));
            return Err(differs(list(side, texts), list(side, ours)));
        }
        for (expected, got) in expected.iter().zip(&got) {
            frame(expected, &got.frame)?;
        }
    }
    Ok(())
}

fn list(side: Side, frames: impl Iterator<Item = String>) -> String {
    let frames: Vec<String> = frames.collect();
    if frames.is_empty() {
        format!("nothing on the {side:?} side")
    } else {
        format!("on the {side:?} side: {}", frames.join("; "))
    }
}

fn frame(expected: &FrameOut, got: &[u8]) -> Result<(), Trouble> {
    let parts: &[VolatilePart] = match &expected.volatile {
        Volatile::Parts(parts) => parts,
        Volatile::Length(()) => &[VolatilePart::Length(())],
    };
    let any_length = parts
        .iter()
        .any(|part| matches!(part, VolatilePart::Length(())));
    let mut ranges: Vec<(usize, usize)> = parts
        .iter()
        .filter_map(|part| match part {
            VolatilePart::Range(start, end) => Some((*start, *end)),
            VolatilePart::Length(()) => None,
        })
        .collect();
    ranges.extend(times_of_day(&expected.frame));
    let open = |at: usize| {
        ranges
            .iter()
            .any(|(start, end)| (*start..*end).contains(&at))
    };
    let pairs = expected.frame.iter().zip(got).enumerate();
    let mut differing = pairs.filter(|(at, (expected, got))| expected != got && !open(*at));
    let at = differing.next().map(|(at, _)| at);
    if at.is_none() && (any_length || expected.frame.len() == got.len()) {
        return Ok(());
    }
    let at = at.unwrap_or(expected.frame.len().min(got.len()));
    let text = |frame: &[u8]| format!("{}; from byte {at}: {}", describe(frame), hex(frame, at));
    Err(differs(text(&expected.frame), text(got)))
}

fn hex(frame: &[u8], from: usize) -> String {
    let bytes = frame.iter().skip(from).take(24);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

/// Where the director wrote the time of day. Two recordings of one boot share its upper bytes, so
/// that those are not among the recorded volatile ranges although they are just as arbitrary.
fn times_of_day(frame: &[u8]) -> Vec<(usize, usize)> {
    let Some(seen) = Seen::of(frame) else {
        return Vec::new();
    };
    let l3 = 14;
    if seen.protocol == Protocol::ICMP && seen.icmp() == Some((14, 0)) {
        // Timestamp reply: checksum, receive and transmit timestamp (RFC 792).
        return vec![(seen.l4 + 2, seen.l4 + 4), (seen.l4 + 12, seen.l4 + 20)];
    }
    let (mut at, mut ranges) = (l3 + 20, Vec::new());
    while seen.source.is_ipv4() && at + 4 < seen.l4 {
        let len = if frame[at] <= 1 {
            1
        } else {
            usize::from(frame[at + 1]).max(2)
        };
        if frame[at] == 68 {
            // Timestamp option: what was written by now, and the header's sum (RFC 791).
            let written = usize::from(frame[at + 2]).saturating_sub(1).min(len);
            ranges.extend([(l3 + 10, l3 + 12), (at + 4, at + written)]);
        }
        at += len;
    }
    ranges
}

/// An entry of the director's as the kernel would list it.
#[derive(Debug)]
pub struct Row {
    protocol: Protocol,
    client: String,
    virt: String,
    dest: String,
    state: &'static str,
    expires: i64,
    call: Option<String>,
}

impl Row {
    fn of(conn: &Arc<Conn>, house: &House) -> Row {
        Row {
            protocol: conn.protocol(),
            client: conn.client().to_string(),
            virt: conn.virt().to_string(),
            dest: conn.real().to_string(),
            state: conn.state_name(),
            expires: conn.expires_in(house.now()).as_secs() as i64,
            call: house
                .table()
                .engine_data(conn)
                .map(|data| String::from_utf8_lossy(data.bytes()).into_owned()),
        }
    }

    /// Is it this entry? Seconds are truncated, and the recording took its time: one is allowed.
    fn is(&self, entry: &Entry) -> bool {
        let protocol = entry.proto.as_deref();
        protocol.is_none_or(|name| Some(name) == self.protocol.name())
            && self.client == entry.client
            && entry.virt.as_ref().is_none_or(|virt| *virt == self.virt)
            && self.dest == entry.dest
            && self.state == entry.state
            && self.call.as_deref() == entry.pe.as_ref().map(|(_, call)| call.as_str())
            && (self.expires - entry.expires).abs() <= 1
    }
}

/// Entries that the kernel had already given up, each as server and whether it counted as active.
pub type Lingering = Vec<(String, bool)>;

/// The table holds exactly these entries. The kernel's table is hashed with a random key, so their
/// order means nothing. Returns the entries that only linger in the kernel.
///
/// # Errors
/// `Differs` if an entry is missing, or there is one too many.
pub fn entries(expected: &[Entry], house: &House) -> Result<Lingering, Trouble> {
    compare_entries(expected, rows(house, |_| true), house)
}

/// The same for the entries of one client's port.
///
/// # Errors
/// As for all entries.
pub fn entries_of(expected: &EntriesOf, house: &House) -> Result<Lingering, Trouble> {
    let rows = rows_of(&expected.client, house);
    // An entry that was just replaced or given up lingers, due, until the kernel's next tick.
    let (due, rest): (Vec<Entry>, Vec<Entry>) = expected
        .rows
        .iter()
        .cloned()
        .partition(|entry| entry.expires == 0 && !rows.iter().any(|row| row.is(entry)));
    let mut lingering = compare_entries(&rest, rows, house)?;
    let gone = due.into_iter();
    lingering.extend(gone.map(|entry| (entry.dest, counts_active(&entry.state))));
    Ok(lingering)
}

/// The entries of one client's port.
pub fn rows_of(client: &str, house: &House) -> Vec<Row> {
    rows(house, |conn| conn.client().to_string() == client)
}

fn rows(house: &House, wanted: impl Fn(&Conn) -> bool) -> Vec<Row> {
    let mut rows = Vec::new();
    house.table().for_each(|conn| {
        if !conn.is_due(house.now()) && wanted(conn) {
            rows.push(Row::of(conn, house));
        }
    });
    rows
}

fn compare_entries(
    expected: &[Entry],
    mut rows: Vec<Row>,
    house: &House,
) -> Result<Lingering, Trouble> {
    let got = format!("{rows:?}");
    let mut lingering = Lingering::new();
    for entry in expected {
        let nearest = (0..rows.len())
            .filter(|at| rows[*at].is(entry))
            .min_by_key(|at| (rows[*at].expires - entry.expires).abs());
        match nearest {
            Some(at) => drop(rows.swap_remove(at)),
            None if is_replaced(entry, expected) || is_swept(entry, house) => {
                lingering.push((entry.dest.clone(), counts_active(&entry.state)));
            }
            None => return Err(differs(format!("{entry:?}"), got)),
        }
    }
    if rows.is_empty() {
        Ok(lingering)
    } else {
        Err(differs(format!("no {rows:?}"), got))
    }
}

/// An entry whose client port was used anew stays in the kernel's table, due, until the timer comes
/// round (a tick, seen or not seen by whoever looks); the director lets go of it at once.
fn is_replaced(entry: &Entry, all: &[Entry]) -> bool {
    let twin = |other: &&Entry| other.client == entry.client && other.virt == entry.virt;
    entry.expires == 0 && all.iter().filter(twin).count() > 1
}

/// With `expire_nodest_conn` the kernel sweeps the entries of a deleted server a moment after the
/// deletion; the director does it before the deletion is answered.
fn is_swept(entry: &Entry, house: &House) -> bool {
    let snapshot = house.snapshot();
    let mut reals = snapshot.services.iter().flat_map(|service| &service.reals);
    let dest: Result<SocketAddr, _> = entry.dest.parse();
    snapshot.tunables.expire_nodest_conn != 0
        && dest.is_ok_and(|dest| !reals.any(|real| real.key.0.address == dest.ip()))
}

fn counts_active(state: &str) -> bool {
    ["ESTABLISHED", "SYN_SENT", "SYN_RECV", "SYNACK"].contains(&state)
}

/// Weight, active and inactive of every server, by its name.
///
/// # Errors
/// `Differs` if one has others.
pub fn counts(
    expected: &BTreeMap<String, (i64, i64, i64)>,
    house: &House,
    lingering: &Lingering,
) -> Result<(), Trouble> {
    let snapshot = house.snapshot();
    let mut got = BTreeMap::new();
    let listed = snapshot.services.iter().map(|service| listed(service));
    for (name, weight, active, inactive) in listed.flat_map(|(_, reals)| reals) {
        let wanted = expected.get(&name);
        let own = (weight, active, inactive);
        let row = match wanted {
            Some(wanted) if with_lingering(&name, own, lingering) == *wanted => *wanted,
            _ => own,
        };
        // A server of two services is listed under one name; whichever fits is meant.
        if !got.contains_key(&name) || wanted == Some(&row) {
            got.insert(name, row);
        }
    }
    same(expected, &got)
}

/// The counts of a server if what only lingers in the kernel were still counted. (Whether it was
/// depends on when the recording looked.)
fn with_lingering(name: &str, counts: (i64, i64, i64), lingering: &Lingering) -> (i64, i64, i64) {
    let here = lingering.iter().filter(|(server, _)| server == name);
    let (on, off): (Vec<_>, Vec<_>) = here.partition(|(_, active)| *active);
    let (weight, active, inactive) = counts;
    (
        weight,
        active + on.len() as i64,
        inactive + off.len() as i64,
    )
}

/// The services are these, in any order (the kernel's is that of a hash), each with its servers in
/// the kernel's order.
///
/// # Errors
/// `Differs` if one is missing or differs.
pub fn services(expected: &[Listed], house: &House, lingering: &Lingering) -> Result<(), Trouble> {
    let snapshot = house.snapshot();
    let mut got: Vec<Listed> = snapshot
        .services
        .iter()
        .map(|service| listed(service))
        .collect();
    let wanted: Vec<_> = expected.iter().flat_map(|(_, reals)| reals).collect();
    for (name, weight, active, inactive) in got.iter_mut().flat_map(|(_, reals)| reals) {
        let counts = with_lingering(name, (*weight, *active, *inactive), lingering);
        let late = (name.clone(), counts.0, counts.1, counts.2);
        if wanted.contains(&&late) {
            (*weight, *active, *inactive) = counts;
        }
    }
    let mut expected: Vec<Listed> = expected
        .iter()
        .map(|(line, reals)| (in_seconds(line, &got), reals.clone()))
        .collect();
    expected.sort();
    got.sort();
    same(&expected, &got)
}

/// A service as the kernel lists it.
pub fn listed(service: &Service) -> Listed {
    let reals = service.reals.iter().map(|real| {
        let live = &real.live;
        (
            real.key.to_string(),
            i64::from(real.weight.0),
            i64::from(live.active.load(Relaxed)),
            i64::from(live.inactive.load(Relaxed)),
        )
    });
    (line_of(service), reals.collect())
}

/// The line of `/proc/net/ip_vs`, with the timeout of persistence in seconds.
fn line_of(service: &Service) -> String {
    let spec = &service.spec;
    let key = match spec.key {
        ServiceKey::Mark { mark, .. } => format!("FWM {mark:08X}"),
        ServiceKey::Address { protocol, virt } => match virt.address {
            IpAddr::V4(address) => {
                format!("{protocol} {:08X}:{:04X}", u32::from(address), virt.port)
            }
            IpAddr::V6(address) => {
                let groups = address.segments().map(|group| format!("{group:04x}"));
                format!("{protocol} [{}]:{:04X}", groups.join(":"), virt.port)
            }
        },
    };
    let mut line = format!("{key} {}", spec.scheduler);
    // The kernel's line of an IPv6 service does not tell (`ip_vs_info_seq_show`).
    let told = !line.contains('[');
    if told && spec.flags.has(ServiceFlags::ONE_PACKET) {
        line.push_str(" ops");
    }
    if let Some(persistence) = spec.persistence {
        let mask = match (spec.netmask, spec.key.family()) {
            (Netmask::V4(mask), _) => mask,
            // The kernel prints a prefix length with its bytes turned round.
            (Netmask::V6(len), Family::V6 | Family::V4) => u32::from(len).swap_bytes(),
        };
        line.push_str(&format!(" persistent {} {mask:08X}", persistence.timeout_s));
    }
    line
}

/// A recorded line with the timeout of persistence in seconds: the kernel prints ticks, and how many
/// make a second (CONFIG_HZ) is not in the recording; so it is the rate, of those there are, that
/// makes the line one of ours.
fn in_seconds(line: &str, ours: &[Listed]) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let ticks = words.windows(2).find(|pair| pair[0] == "persistent");
    let Some(ticks) = ticks.and_then(|pair| pair[1].parse::<u32>().ok()) else {
        return line.into();
    };
    let in_rate = |rate: &u32| {
        let seconds = format!("persistent {}", ticks / rate);
        line.replace(&format!("persistent {ticks}"), &seconds)
    };
    let rates = [100, 250, 300, 1000];
    let exact = rates.iter().filter(|rate| ticks % **rate == 0).map(in_rate);
    let fits = |line: &String| ours.iter().any(|(ours, _)| ours == line);
    exact.clone().find(fits).unwrap_or_else(|| line.into())
}
