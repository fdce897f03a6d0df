//! The other machines: clients, real servers, routers and people who send rubbish. `make` reads from
//! the tape who sends what; most of it is nearly right, so that it gets past the first checks.

use std::collections::VecDeque;
use std::net::IpAddr;

use ulvs::wire::Offload;
use ulvs::wire::offload::VNET_HEADER_LEN;

use super::frames::{self, End};
use super::tape::Tape;
use super::world::{self, DIRECTOR_MACS, PRIVATE, PUBLIC};

/// A frame on its way to the director.
pub struct Made {
    pub port: usize,
    pub frame: Vec<u8>,
    pub offload: Offload,
    pub mark: u32,
    /// The worker whose interface gets it.
    pub worker: usize,
    /// Nothing about it is wrong.
    pub by_the_book: bool,
}

/// The next frame, and where it goes. `recent` is what the director sent lately.
pub fn make(tape: &mut Tape<'_>, recent: &VecDeque<(usize, Vec<u8>)>) -> Made {
    let (port, packet, mut by_the_book) = match tape.below(16) {
        0..=5 => request(tape),
        6 => outward(tape),
        7..=10 => answer(tape, recent),
        11..=12 => complaint(tape, recent),
        13 => ping(tape),
        14 => return question(tape),
        _ => {
            let port = tape.below(2);
            let len = usize::from(tape.byte());
            let frame = tape.bytes(len).to_vec();
            return finish(tape, port, frame, Offload::default(), false);
        }
    };
    let (mut packet, mut offload) = (packet, Offload::default());
    if tape.once_in(8)
        && let Some((header, at)) = frames::make_partial(&mut packet)
    {
        offload = Offload::partial(14 + header, at);
    }
    if tape.once_in(16) {
        spoil(tape, &mut packet);
        by_the_book = false;
    }
    let mut frame = frame_of(port, &packet);
    match tape.below(32) {
        0 => {
            // A priority tag that a back end put back before the Ethernet type.
            frame.splice(12..12, [0x81, 0, 0x20, 5]);
            offload.shift(4);
            by_the_book = false;
        }
        1 => frame.extend([0; 7]),
        2 => frame[..6].copy_from_slice(&[0xff; 6]),
        3 => {
            let mut header = [0; VNET_HEADER_LEN];
            header.fill_with(|| tape.byte());
            offload = Offload::decode(&header);
            by_the_book = false;
        }
        4 => {
            let at = tape.below(frame.len().min(64));
            frame[at] ^= 1 << tape.below(8);
            by_the_book = false;
        }
        _ => {}
    }
    finish(tape, port, frame, offload, by_the_book)
}

/// Now and then a whole frame comes in fragments: in any order, one twice, or one not at all.
pub fn fragments(tape: &mut Tape<'_>, made: &Made, ident: u16) -> Vec<Vec<u8>> {
    if made.offload != Offload::default() || !tape.once_in(12) {
        return Vec::new();
    }
    let Some((l3, packet)) = packet_of(&made.frame) else {
        return Vec::new();
    };
    let size = 8 * (1 + tape.below(8));
    let mut pieces = frames::fragments(packet, size, ident);
    for at in (1..pieces.len().min(16)).rev() {
        pieces.swap(at, tape.below(at + 1));
    }
    match tape.below(8) {
        0 => drop(pieces.pop()),
        1 => pieces.extend(pieces.first().cloned()),
        _ => {}
    }
    for piece in &mut pieces {
        piece.splice(..0, made.frame[..l3].iter().copied());
    }
    pieces
}

/// The frame in which a neighbour on `port` sends an IP packet to the director.
pub fn frame_of(port: usize, packet: &[u8]) -> Vec<u8> {
    let sender = match port {
        PUBLIC => world::GATEWAY_MAC,
        _ => world::mac_of(world::reals()[0]),
    };
    frames::ethernet(
        DIRECTOR_MACS[port],
        sender,
        frames::ethertype(packet),
        packet,
    )
}

fn finish(
    tape: &mut Tape<'_>,
    port: usize,
    frame: Vec<u8>,
    offload: Offload,
    by_the_book: bool,
) -> Made {
    let word = tape.byte();
    Made {
        port,
        frame,
        offload,
        mark: u32::from(word & 7 == 7),
        worker: usize::from(word >> 3) % 2,
        by_the_book,
    }
}

const TCP_FLAGS: [u8; 8] = [0x02, 0x02, 0x10, 0x18, 0x11, 0x04, 0x12, 0x00];

/// A client sends to a VIP, or to what it takes for one.
fn request(tape: &mut Tape<'_>) -> (usize, Vec<u8>, bool) {
    // Mostly what is served from the start.
    let served = if tape.once_in(4) { 9 } else { 4 };
    let target = tape.pick(&world::targets()[..served]);
    let source = (
        tape.pick(&world::clients()),
        1024 + u16::from(tape.byte() % 4),
    );
    let port = if tape.once_in(16) { PRIVATE } else { PUBLIC };
    let same_family = source.0.is_ipv4() == target.0.is_ipv4();
    let source = if same_family {
        source
    } else {
        (client_of_family(target.0), source.1)
    };
    (port, transport(tape, source, target), true)
}

/// A machine inside opens a connection outwards, asks somebody there whether it lives, or something in
/// the same family that is no way out.
fn outward(tape: &mut Tape<'_>) -> (usize, Vec<u8>, bool) {
    let source = tape.pick(&world::reals());
    let everybody = [&world::clients()[..], &world::vips(), &world::own()].concat();
    let there = everybody.into_iter();
    let there: Vec<IpAddr> = there
        .filter(|target| target.is_ipv4() == source.is_ipv4())
        .collect();
    let target = tape.pick(&there);
    let ident = 1024 + u16::from(tape.byte() % 4);
    let port = if tape.once_in(16) { PUBLIC } else { PRIVATE };
    if tape.once_in(4) {
        let kind = if source.is_ipv4() { 8 } else { 128 };
        let rest = [&ident.to_be_bytes()[..], &[0, 1], b"ping"].concat();
        return (port, frames::icmp(source, target, kind, 0, &rest), true);
    }
    let other = tape.pick(&[80, 53, 1234]);
    (
        port,
        transport(tape, (source, ident), (target, other)),
        true,
    )
}

fn client_of_family(address: IpAddr) -> IpAddr {
    let mut clients = world::clients().into_iter();
    let found = clients.find(|client| client.is_ipv4() == address.is_ipv4());
    found.expect("there are clients of both families")
}

fn transport(tape: &mut Tape<'_>, source: End, target: End) -> Vec<u8> {
    let len = usize::from(tape.byte() % 40);
    let mut payload = vec![tape.byte(); len];
    if tape.once_in(4) {
        payload = ftp(tape);
    }
    let protocol = match target.1 {
        53 | 1234 => frames::UDP,
        _ => frames::TCP,
    };
    match tape.below(16) {
        0 => frames::sctp(source, target, tape.byte() % 16),
        1 => frames::udp(source, target, &payload),
        2 => frames::tcp(source, target, tape.byte(), &payload),
        _ if protocol == frames::UDP => frames::udp(source, target, &payload),
        _ => frames::tcp(source, target, tape.pick(&TCP_FLAGS), &payload),
    }
}

/// What FTP says of addresses, mostly right.
fn ftp(tape: &mut Tape<'_>) -> Vec<u8> {
    let port = 1024 + u16::from(tape.byte() % 4);
    let address = match tape.pick(&world::reals()) {
        IpAddr::V4(address) => address.to_string().replace('.', ","),
        IpAddr::V6(_) => tape
            .pick(&["9,9,9,9", "1,1,1,1", "255,255,255,255"])
            .to_string(),
    };
    let plain = format!("{address},{},{}", port >> 8, port & 0xff);
    let client = tape.pick(&world::clients());
    let family = if client.is_ipv4() { 1 } else { 2 };
    let mut text = match tape.below(8) {
        0 | 1 => "PASV\r\n".to_string(),
        2 => "EPSV\r\n".to_string(),
        3 | 4 => format!("227 ({plain})\r\n"),
        5 => format!("229 (|||{port}|)\r\n"),
        6 => format!("PORT {plain}\r\n"),
        _ => format!("EPRT |{family}|{client}|{port}|\r\n"),
    };
    if tape.once_in(8) {
        text.truncate(tape.below(text.len()));
    }
    text.into_bytes()
}

/// Somebody answers a packet that the director sent: a real server its client, or a client the VIP.
fn answer(tape: &mut Tape<'_>, recent: &VecDeque<(usize, Vec<u8>)>) -> (usize, Vec<u8>, bool) {
    let Some((port, packet)) = choose(tape, recent) else {
        return request(tape);
    };
    let Some((header, protocol, source, target)) = frames::read_ip(packet) else {
        return request(tape);
    };
    if packet.len() < header + 4 {
        return request(tape);
    }
    let word = |at: usize| u16::from_be_bytes([packet[header + at], packet[header + at + 1]]);
    let (from, to) = ((target, word(2)), (source, word(0)));
    let len = usize::from(tape.byte() % 40);
    let payload = vec![tape.byte(); len];
    let reply = match protocol {
        frames::TCP => {
            let flags = tape.pick(&[0x12, 0x12, 0x10, 0x18, 0x11, 0x04]);
            frames::tcp(from, to, flags, &payload)
        }
        frames::UDP => frames::udp(from, to, &payload),
        frames::SCTP => frames::sctp(from, to, tape.byte() % 16),
        frames::ICMP | frames::ICMPV6 if matches!(packet[header], 8 | 128) => {
            // An echo's reply is the same but for its type.
            let kind = if packet[header] == 8 { 0 } else { 129 };
            frames::icmp(target, source, kind, 0, &packet[header + 4..])
        }
        _ => return request(tape),
    };
    (*port, reply, true)
}

fn choose<'r>(
    tape: &mut Tape<'_>,
    recent: &'r VecDeque<(usize, Vec<u8>)>,
) -> Option<&'r (usize, Vec<u8>)> {
    let back = tape.below(recent.len().max(1));
    recent.iter().rev().nth(back)
}

/// Somebody complains about a packet that the director sent.
fn complaint(tape: &mut Tape<'_>, recent: &VecDeque<(usize, Vec<u8>)>) -> (usize, Vec<u8>, bool) {
    let Some((port, packet)) = choose(tape, recent) else {
        return request(tape);
    };
    let Some((header, _, source, target)) = frames::read_ip(packet) else {
        return request(tape);
    };
    let quote = match tape.below(4) {
        0 => &packet[..packet.len().min(header + 8)],
        1 => &packet[..tape.below(packet.len().min(255)) + 1],
        _ => &packet[..],
    };
    // From the machine itself, or from a router before it.
    let sender = match (tape.below(4), source.is_ipv4()) {
        (0, true) => "203.0.113.7".parse().expect("an address"),
        (0, false) => "2001:db8:7::1".parse().expect("an address"),
        _ => target,
    };
    let kinds4: [(u8, u8); 6] = [(3, 3), (3, 4), (3, 1), (11, 0), (4, 0), (5, 1)];
    let kinds6: [(u8, u8); 4] = [(1, 4), (2, 0), (3, 0), (4, 1)];
    let (kind, code) = if source.is_ipv4() {
        tape.pick(&kinds4)
    } else {
        tape.pick(&kinds6)
    };
    (
        *port,
        frames::icmp_error(sender, source, kind, code, quote),
        true,
    )
}

/// Echo requests and other questions to any address.
fn ping(tape: &mut Tape<'_>) -> (usize, Vec<u8>, bool) {
    let target = match tape.below(3) {
        0 => tape.pick(&world::vips()),
        1 => tape.pick(&world::own()),
        _ => tape.pick(&world::reals()),
    };
    let kind = match (tape.below(4), target.is_ipv4()) {
        (0, _) => tape.byte(),
        (_, true) => 8,
        (_, false) => 128,
    };
    let rest = tape.bytes(4 + usize::from(kind % 8)).to_vec();
    let packet = frames::icmp(client_of_family(target), target, kind, 0, &rest);
    // Rubbish of the neighbour-discovery types is no packet by the book.
    (
        tape.below(2),
        packet,
        matches!(kind, 8 | 128) && rest.len() >= 4,
    )
}

/// ARP, and neighbour discovery: questions, answers, announcements, lies.
fn question(tape: &mut Tape<'_>) -> Made {
    let port = tape.below(2);
    let everybody: Vec<IpAddr> = world::clients()
        .into_iter()
        .chain(world::reals())
        .chain(world::vips())
        .chain(world::own())
        .collect();
    let (sender, target) = (tape.pick(&everybody), tape.pick(&everybody));
    let mac = if tape.once_in(8) {
        [0x33; 6]
    } else {
        world::mac_of(sender)
    };
    let frame = match (sender, target) {
        (IpAddr::V4(sender), IpAddr::V4(target)) => {
            let op = 1 + u16::from(tape.byte() % 3);
            let asked = if op == 1 { [0; 6] } else { DIRECTOR_MACS[port] };
            let bytes = frames::arp(op, (mac, sender.octets()), (asked, target.octets()));
            let to = if op == 1 {
                [0xff; 6]
            } else {
                DIRECTOR_MACS[port]
            };
            frames::ethernet(to, mac, frames::ETHERTYPE_ARP, &bytes)
        }
        _ => {
            let (sender, target) = (to_v6(sender), to_v6(target));
            let kind = 135 + tape.byte() % 2;
            discovery(kind, (mac, sender), target, port)
        }
    };
    // What it teaches about MAC addresses may be a lie, but no sum is wrong for it.
    finish(tape, port, frame, Offload::default(), true)
}

fn to_v6(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => world::clients()[3],
        v6 => v6,
    }
}

/// A neighbour solicitation or advertisement (RFC 4861 section 4.3, 4.4) with the link-layer option.
fn discovery(kind: u8, sender: ([u8; 6], IpAddr), target: IpAddr, port: usize) -> Vec<u8> {
    let (mac, source) = sender;
    let mut rest = if kind == 136 {
        vec![0x60, 0, 0, 0]
    } else {
        vec![0; 4]
    };
    let about = if kind == 136 { source } else { target };
    rest.extend(frames::octets(about));
    rest.extend([if kind == 136 { 2 } else { 1 }, 1]);
    rest.extend(mac);
    let packet = frames::icmp(source, target, kind, 0, &rest);
    frames::ethernet(DIRECTOR_MACS[port], mac, frames::ETHERTYPE_IPV6, &packet)
}

/// The answer of the neighbour that this frame asks for, if it asks for one.
pub fn answer_question(frame: &[u8]) -> Option<Vec<u8>> {
    let port = usize::from(frame[6..12] == DIRECTOR_MACS[PRIVATE]);
    let ethertype = u16::from_be_bytes([frame[12], frame[13]]);
    if ethertype == frames::ETHERTYPE_ARP && frame.len() >= 42 && frame[20..22] == [0, 1] {
        let asked: [u8; 4] = frame[38..42].try_into().ok()?;
        let asker: [u8; 4] = frame[28..32].try_into().ok()?;
        let mac = world::mac_of(asked.into());
        let bytes = frames::arp(2, (mac, asked), (DIRECTOR_MACS[port], asker));
        return Some(frames::ethernet(
            DIRECTOR_MACS[port],
            mac,
            ethertype,
            &bytes,
        ));
    }
    let (_, packet) = packet_of(frame)?;
    let (header, protocol, source, _) = frames::read_ip(packet)?;
    if protocol != frames::ICMPV6 || packet.get(header) != Some(&135) || packet.len() < header + 24
    {
        return None;
    }
    let asked: [u8; 16] = packet[header + 8..header + 24].try_into().ok()?;
    let asked = IpAddr::from(asked);
    Some(discovery(136, (world::mac_of(asked), asked), source, port))
}

/// The IP packet in a frame, without padding, and where it begins.
pub fn packet_of(frame: &[u8]) -> Option<(usize, &[u8])> {
    let tagged = frame.get(12..14)? == frames::ETHERTYPE_VLAN.to_be_bytes();
    let at = if tagged { 18 } else { 14 };
    let packet = frame.get(at..)?;
    let word = |bytes: &[u8]| bytes.try_into().map(u16::from_be_bytes).ok();
    let len = match word(&frame[at - 2..at])? {
        frames::ETHERTYPE_IPV4 => usize::from(word(packet.get(2..4)?)?),
        frames::ETHERTYPE_IPV6 => 40 + usize::from(word(packet.get(4..6)?)?),
        _ => return None,
    };
    Some((at, packet.get(..len)?))
}

/// Is it an ICMP error, which quotes a packet?
pub fn is_error(packet: &[u8]) -> bool {
    match frames::read_ip(packet) {
        Some((header, frames::ICMP, ..)) => {
            matches!(packet.get(header), Some(3..=5 | 11 | 12))
        }
        Some((header, frames::ICMPV6, ..)) => matches!(packet.get(header), Some(0..=127)),
        _ => false,
    }
}

/// The addresses of a quoted packet.
pub fn quoted_ends(quote: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match quote.first()? >> 4 {
        4 => {
            let source: [u8; 4] = quote.get(12..16)?.try_into().ok()?;
            let target: [u8; 4] = quote.get(16..20)?.try_into().ok()?;
            Some((source.into(), target.into()))
        }
        6 => {
            let source: [u8; 16] = quote.get(8..24)?.try_into().ok()?;
            let target: [u8; 16] = quote.get(24..40)?.try_into().ok()?;
            Some((source.into(), target.into()))
        }
        _ => None,
    }
}

/// Damages a packet: cut, stretched, options, fragments, no TTL, other bytes.
fn spoil(tape: &mut Tape<'_>, packet: &mut Vec<u8>) {
    match tape.below(6) {
        0 => packet.truncate(tape.below(packet.len().min(255)) + 1),
        1 => {
            let len = usize::from(tape.byte());
            packet.extend(tape.bytes(len));
        }
        2 if packet[0] >> 4 == 4 => {
            // A fragment, first or later.
            packet[6..8].copy_from_slice(&tape.pick(&[0x2000u16, 0x2001, 0x0001]).to_be_bytes());
            repair_header(packet);
        }
        3 => {
            let at = if packet[0] >> 4 == 4 { 8 } else { 7 };
            packet[at] = tape.byte() % 3;
            repair_header(packet);
        }
        4 => {
            // Extension headers or options that nobody asked for.
            let at = if packet[0] >> 4 == 4 { 9 } else { 6 };
            packet[at] = tape.pick(&[0, 43, 44, 51, 60, 4, 47, 50, 1, 58]);
            repair_header(packet);
        }
        _ => {
            for _ in 0..1 + tape.below(4) {
                let at = usize::from(tape.word()) % packet.len();
                packet[at] = tape.byte();
            }
            if tape.once_in(2) {
                repair_header(packet);
            }
        }
    }
}

/// Makes the length field say how long the packet is.
pub fn set_length(packet: &mut [u8]) {
    let len = packet.len() as u16;
    match packet[0] >> 4 {
        4 if packet.len() >= 20 => packet[2..4].copy_from_slice(&len.to_be_bytes()),
        6 if packet.len() >= 40 => packet[4..6].copy_from_slice(&(len - 40).to_be_bytes()),
        _ => {}
    }
    repair_header(packet);
}

/// Makes the IPv4 header checksum right again.
pub fn repair_header(packet: &mut [u8]) {
    let len = usize::from(packet[0] & 15) * 4;
    if packet[0] >> 4 == 4 && len >= 20 && packet.len() >= len {
        packet[10..12].fill(0);
        let sum = frames::checksum(&[&packet[..len]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}
