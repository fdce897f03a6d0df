//! Laws that hold for all inputs, tried on many: sums stay right, LVS-NAT there and back is the
//! identity, the short parser agrees with etherparse, what is printed can be read again; and a whole
//! director survives whatever a tape of bytes makes happen (`tools/fuzz` has the driver).

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use ulvs::config::words::NumbersOnly;
use ulvs::config::{Command, Request, codec, rules};
use ulvs::conn::{Awaits, Conn, Direction, Shift, entry::Opening};
use ulvs::director::DropReason;
use ulvs::director::ftp::Ftp;
use ulvs::director::helper::{AppHelper, Ends};
use ulvs::forward;
use ulvs::forward::tunnel::Ends as TunnelEnds;
use ulvs::lvs::tuple::{PackedAddress, Tuple, pack};
use ulvs::lvs::{Endpoint, Family, ForwardMethod, Protocol, RealLive, Tunnel, TunnelChecksum};
use ulvs::rng::Rng;
use ulvs::time::Instant;
use ulvs::wire::checksum::Delta;
use ulvs::wire::encap::{self, Outer};
use ulvs::wire::packet::{Fragment, Kind};
use ulvs::wire::{Frame, FrameMeta, Layout, Offload, Packet};

#[path = "../tools/fuzz/src/lib.rs"]
mod fuzz;
#[path = "props/matrix.rs"]
mod matrix;

use fuzz::drive::{Outcome, Run};
use fuzz::tape::Tape;
use fuzz::world::{PRIVATE, PUBLIC};
use fuzz::{drive, frames, guests, texts, world};

const ETHERNET: usize = 14;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// An address of the wanted family.
fn address(v4: bool) -> impl Strategy<Value = IpAddr> {
    any::<[u8; 16]>().prop_map(move |bytes| match v4 {
        true => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
        false => IpAddr::from(bytes),
    })
}

fn ends(v4: bool) -> impl Strategy<Value = [(IpAddr, u16); 3]> {
    let end = || (address(v4), any::<u16>());
    [end(), end(), end()]
}

/// Four endpoints of one family.
fn four_ends() -> impl Strategy<Value = [(IpAddr, u16); 4]> {
    let of = |v4: bool| {
        let end = move || (address(v4), any::<u16>());
        [end(), end(), end(), end()]
    };
    prop_oneof![of(true), of(false)]
}

/// Three endpoints of one family.
fn any_ends() -> impl Strategy<Value = [(IpAddr, u16); 3]> {
    prop_oneof![ends(true), ends(false)]
}

/// A transport packet between two ends, and whether its checksum is left to the device.
#[derive(Clone, Debug)]
struct Cargo {
    protocol: u8,
    flags: u8,
    payload: Vec<u8>,
    partial: bool,
    tagged: bool,
}

fn cargo() -> impl Strategy<Value = Cargo> {
    let protocol = prop_oneof![Just(frames::TCP), Just(frames::UDP), Just(frames::SCTP)];
    let payload = prop::collection::vec(any::<u8>(), 0..80);
    (protocol, any::<u8>(), payload, any::<bool>(), any::<bool>()).prop_map(
        |(protocol, flags, payload, partial, tagged)| Cargo {
            protocol,
            flags,
            payload,
            partial,
            tagged,
        },
    )
}

impl Cargo {
    /// The frame, and its offload.
    fn frame(&self, source: (IpAddr, u16), target: (IpAddr, u16)) -> (Vec<u8>, Offload) {
        let mut packet = match self.protocol {
            frames::TCP => frames::tcp(source, target, self.flags, &self.payload),
            frames::SCTP => frames::sctp(source, target, self.flags),
            _ => frames::udp(source, target, &self.payload),
        };
        let mut offload = Offload::default();
        if self.partial
            && let Some((start, at)) = frames::make_partial(&mut packet)
        {
            offload = Offload::partial(ETHERNET as u16 + start, at);
        }
        let mut frame = guests::frame_of(PUBLIC, &packet);
        if self.tagged {
            frame.splice(12..12, [0x81, 0, 0, 7]);
            offload.shift(4);
        }
        (frame, offload)
    }
}

fn sums_are_right(frame: &[u8], offload: Offload) -> bool {
    let (l3, packet) = guests::packet_of(frame).expect("a whole packet");
    match offload.is_partial() {
        true => frames::partial_sum_is_right(packet, l3, offload) && header_sum_is_right(packet),
        false => frames::sums_are_right(packet),
    }
}

fn header_sum_is_right(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6 || frames::checksum(&[&packet[..20]]) == 0
}

fn edit(frame: &mut [u8], offload: Offload, change: impl FnOnce(&mut Packet<'_>)) {
    let layout = Layout::parse(frame, false).expect("a good frame");
    change(&mut Packet::over(frame, layout, offload));
}

/// Swaps source and target in place. No sum changes by that, but SCTP's, which knows the order.
fn mirror(frame: &mut [u8]) {
    let layout = Layout::parse(frame, false).expect("a good frame");
    let (l3, l4) = (usize::from(layout.l3), usize::from(layout.l4));
    let (at, len) = match layout.kind {
        Kind::V4 => (l3 + 12, 4),
        _ => (l3 + 8, 16),
    };
    let (source, target) = frame[at..at + 2 * len].split_at_mut(len);
    source.swap_with_slice(target);
    let (source, target) = frame[l4..l4 + 4].split_at_mut(2);
    source.swap_with_slice(target);
    if layout.protocol == frames::SCTP {
        let sum = frames::crc32c(&frame[l4..layout.end as usize]);
        frame[l4 + 8..l4 + 12].copy_from_slice(&sum.to_le_bytes());
    }
}

fn connection(client: (IpAddr, u16), vip: (IpAddr, u16), rip: (IpAddr, u16)) -> Conn {
    Conn::open(
        opening(client, vip, rip, ForwardMethod::Masq),
        Instant::ZERO,
    )
}

fn packed(end: (IpAddr, u16)) -> (PackedAddress, u16) {
    (pack(end.0), end.1)
}

fn opening(
    client: (IpAddr, u16),
    vip: (IpAddr, u16),
    rip: (IpAddr, u16),
    method: ForwardMethod,
) -> Opening {
    Opening {
        tuple: Tuple::new(
            Family::of(vip.0),
            Protocol::TCP,
            packed(client),
            packed(vip),
        ),
        real: packed(rip),
        method,
        server: Some(Arc::new(RealLive::new(1, Endpoint::new(rip.0, rip.1), 1))),
        control: None,
        mark: 0,
        template: false,
    }
}

/// Every tunnel that ipvsadm makes.
fn tunnel() -> impl Strategy<Value = Tunnel> {
    use TunnelChecksum::{Full, No, Remote};
    let gue = (
        1..=u16::MAX,
        prop_oneof![Just(No), Just(Full), Just(Remote)],
    );
    prop_oneof![
        Just(Tunnel::Ipip),
        gue.prop_map(|(port, checksum)| Tunnel::Gue { port, checksum }),
        prop_oneof![Just(No), Just(Full)].prop_map(|checksum| Tunnel::Gre { checksum }),
    ]
}

/// A frame in an envelope, and the envelope's length.
fn wrapped(
    bytes: Vec<u8>,
    offload: Offload,
    outer: impl FnOnce(&Packet<'_>) -> Outer,
) -> (Vec<u8>, usize) {
    let mut buffer = vec![0xee; encap::OUTER_LEN_MAX];
    buffer.extend_from_slice(&bytes);
    let mut meta = FrameMeta {
        start: encap::OUTER_LEN_MAX as u32,
        end: buffer.len() as u32,
        offload,
        ..FrameMeta::default()
    };
    let mut frame = Frame {
        buffer: &mut buffer,
        meta: &mut meta,
    };
    let layout = Layout::parse(frame.bytes(), false).expect("a good frame");
    let mut packet = Packet::new(&mut frame, layout);
    let outer = outer(&packet);
    assert!(packet.wrap(&outer), "there is room");
    let place = packet.place();
    assert_eq!(place.offload, Offload::default());
    frame.moved(place);
    (frame.bytes().to_vec(), outer.len())
}

/// Ready for this address.
fn ready(address: IpAddr) -> forward::Outcome {
    forward::Outcome::Ready(address)
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn incremental_sum_is_the_full_sum(
        [old, new, _] in any_ends(),
        mut rest in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        if rest.len() % 2 == 1 {
            rest.push(0);
        }
        let sum = |end: (IpAddr, u16)| {
            frames::checksum(&[&frames::octets(end.0), &end.1.to_be_bytes(), &rest])
        };
        let delta = Delta::address(old.0, new.0).word(old.1, new.1);
        let after = delta.apply(sum(old));
        // In ones' complement the two zeros are one number; a receiver cannot tell them apart.
        prop_assert!(after == sum(new) || after ^ sum(new) == 0xffff && [0, 0xffff].contains(&after));
        prop_assert_eq!(delta.apply_partial(!sum(old)), !after);
    }

    #[test]
    fn every_rewrite_keeps_the_sums_right(
        [source, target, other] in any_ends(),
        cargo in cargo(),
        ttl in any::<bool>(),
    ) {
        let (mut frame, offload) = cargo.frame(source, target);
        prop_assert!(sums_are_right(&frame, offload));
        edit(&mut frame, offload, |packet| {
            packet.set_target(other.0, other.1);
            if ttl {
                packet.decrement_ttl();
            }
        });
        prop_assert!(sums_are_right(&frame, offload), "{frame:02x?}");
        edit(&mut frame, offload, |packet| packet.set_source(target.0, target.1));
        prop_assert!(sums_are_right(&frame, offload), "{frame:02x?}");
        let (_, packet) = guests::packet_of(&frame).expect("whole");
        let (header, _, from, to) = frames::read_ip(packet).expect("whole");
        let ports = &packet[header..header + 4];
        prop_assert_eq!((from, to), (target.0, other.0));
        prop_assert_eq!(ports, &[target.1.to_be_bytes(), other.1.to_be_bytes()].concat()[..]);
    }

    #[test]
    fn nat_there_and_back_is_the_identity(
        [client, vip, rip] in any_ends(),
        cargo in cargo(),
    ) {
        let conn = connection(client, vip, rip);
        let (mut frame, offload) = cargo.frame(client, vip);
        let before = frame.clone();
        edit(&mut frame, offload, |packet| {
            let outcome = forward::apply(&conn, Direction::In, packet);
            assert_eq!(outcome, forward::Outcome::Ready(rip.0));
        });
        mirror(&mut frame);
        edit(&mut frame, offload, |packet| {
            let outcome = forward::apply(&conn, Direction::Out, packet);
            assert_eq!(outcome, forward::Outcome::Ready(client.0));
        });
        mirror(&mut frame);
        prop_assert_eq!(before, frame);
    }

    #[test]
    fn a_tunnel_there_and_back_is_the_identity(
        [client, vip, _] in any_ends(),
        [source, target, _] in any_ends(),
        cargo in cargo(),
        tunnel in tunnel(),
        hash in any::<u64>(),
        keep_whole in any::<bool>(),
    ) {
        let (frame, offload) = cargo.frame(client, vip);
        // A real server has no device before it that would finish a sum.
        let (finished, _) = Cargo { partial: false, ..cargo.clone() }.frame(client, vip);
        let (wrapped, len) = wrapped(frame, offload, |packet| {
            let ends = TunnelEnds { source: source.0, target: target.0, ident: 7, hash, keep_whole };
            forward::tunnel::outer(packet, tunnel, ends)
        });
        prop_assert_eq!(wrapped.len(), finished.len() + len);
        let (_, inner) = guests::packet_of(&finished).expect("whole");
        let (_, outer) = guests::packet_of(&wrapped).expect("whole");
        prop_assert!(header_sum_is_right(outer), "{outer:02x?}");
        let (header, protocol, from, to) = frames::read_ip(outer).expect("whole");
        prop_assert_eq!((from, to), (source.0, target.0));
        let between = match tunnel {
            Tunnel::Ipip => 0,
            Tunnel::Gue { .. } => 12,
            Tunnel::Gre { checksum: TunnelChecksum::No } => 4,
            Tunnel::Gre { .. } => 8,
        };
        prop_assert_eq!(header + between, len);
        prop_assert_eq!(&outer[len..], inner);
        prop_assert_eq!(encap::unwrap(outer), Some(inner));
        match tunnel {
            Tunnel::Gue { checksum: TunnelChecksum::No, .. } => prop_assert_eq!(&outer[header + 6..][..2], [0, 0]),
            Tunnel::Gue { .. } => prop_assert!(frames::sums_are_right(outer), "{outer:02x?}"),
            Tunnel::Gre { checksum: TunnelChecksum::Full } => {
                prop_assert_eq!(frames::checksum(&[&outer[header..]]), 0);
            }
            _ => prop_assert!(protocol != frames::UDP),
        }
    }

    #[test]
    fn full_nat_there_and_back_is_the_identity(
        [client, vip, rip, local] in four_ends(),
        cargo in cargo(),
    ) {
        let opening = opening(client, vip, rip, ForwardMethod::FullNat);
        let conn = Conn::open_full_nat(opening, packed(local), Instant::ZERO);
        let (mut frame, offload) = cargo.frame(client, vip);
        let before = frame.clone();
        edit(&mut frame, offload, |packet| {
            assert_eq!(forward::apply(&conn, Direction::In, packet), ready(rip.0));
            assert_eq!((packet.source(), packet.target()), (local.0, rip.0));
            assert_eq!((packet.source_port(), packet.target_port()), (local.1, rip.1));
        });
        prop_assert!(sums_are_right(&frame, offload), "{frame:02x?}");
        mirror(&mut frame);
        edit(&mut frame, offload, |packet| {
            assert_eq!(forward::apply(&conn, Direction::Out, packet), ready(client.0));
        });
        prop_assert!(sums_are_right(&frame, offload), "{frame:02x?}");
        mirror(&mut frame);
        prop_assert_eq!(before, frame);
    }

    #[test]
    fn masquerading_there_and_back_is_the_identity(
        [far, public, host] in any_ends(),
        cargo in cargo(),
    ) {
        let opening = opening(far, public, host, ForwardMethod::Masquerade);
        let conn = Conn::open(opening, Instant::ZERO);
        let (mut frame, offload) = cargo.frame(host, far);
        let before = frame.clone();
        edit(&mut frame, offload, |packet| {
            assert_eq!(forward::apply(&conn, Direction::Out, packet), ready(far.0));
            assert_eq!((packet.source(), packet.source_port()), public);
        });
        prop_assert!(sums_are_right(&frame, offload), "{frame:02x?}");
        mirror(&mut frame);
        edit(&mut frame, offload, |packet| {
            assert_eq!(forward::apply(&conn, Direction::In, packet), ready(host.0));
        });
        mirror(&mut frame);
        prop_assert_eq!(before, frame);
    }

    /// An echo, and the error that a router makes of it.
    #[test]
    fn masqueraded_echoes_there_and_back_are_the_identity(
        [far, public, host] in any_ends(),
        payload in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let v4 = far.0.is_ipv4();
        let (kind, protocol) = if v4 { (8, Protocol::ICMP) } else { (128, Protocol::ICMPV6) };
        let mut opening = opening((far.0, 0), public, host, ForwardMethod::Masquerade);
        let family = Family::of(far.0);
        opening.tuple = Tuple::new(family, protocol, packed((far.0, 0)), packed(public));
        let conn = Conn::open(opening, Instant::ZERO);
        let rest = [&host.1.to_be_bytes()[..], &[0, 7], &payload].concat();
        let asked = frames::icmp(host.0, far.0, kind, 0, &rest);
        let mut frame = guests::frame_of(PRIVATE, &asked);
        edit(&mut frame, Offload::default(), |packet| {
            assert_eq!(forward::apply(&conn, Direction::Out, packet), ready(far.0));
            assert_eq!(packet.echo().map(|echo| echo.ident), Some(public.1));
        });
        prop_assert!(sums_are_right(&frame, Offload::default()), "{frame:02x?}");
        let (_, left) = guests::packet_of(&frame).expect("a whole packet");
        let (kind, code) = if v4 { (11, 0) } else { (3, 0) };
        let error = frames::icmp_error(far.0, public.0, kind, code, left);
        let mut heard = guests::frame_of(PUBLIC, &error);
        edit(&mut heard, Offload::default(), |packet| {
            let quote = packet.quote().expect("it quotes the echo");
            let outcome = forward::icmp::apply(&conn, Direction::In, &quote, packet);
            assert_eq!(outcome, ready(host.0));
            let quote = packet.quote().expect("still");
            let echo = packet.quoted_echo(&quote).expect("an echo");
            assert_eq!((quote.source, quote.target, echo.ident), (host.0, far.0, host.1));
        });
        prop_assert!(sums_are_right(&heard, Offload::default()), "{heard:02x?}");
        edit(&mut frame, Offload::default(), |packet| {
            packet.set_icmp_source(host.0);
            packet.set_echo_ident(host.1);
        });
        prop_assert_eq!(guests::packet_of(&frame).expect("whole").1, &asked[..]);
    }

    #[test]
    fn the_parser_agrees_with_etherparse(tape in prop::collection::vec(any::<u8>(), 0..300)) {
        let made = guests::make(&mut Tape::new(&tape), &Default::default());
        agree(&made.frame)?;
    }

    #[test]
    fn the_parser_survives_anything(
        bytes in prop::collection::vec(any::<u8>(), 0..120),
        version in any::<bool>(),
    ) {
        agree(&bytes)?;
        let _ = Layout::parse(&bytes, true);
        let _ = Layout::parse_quoted(&bytes, Kind::V4);
        let _ = Layout::parse_quoted(&bytes, Kind::V6);
        // The same bytes as a packet, so that more than the Ethernet header is read.
        let mut packet = bytes;
        if let Some(first) = packet.first_mut() {
            *first = if version { 0x45 } else { 0x60 };
        }
        agree(&guests::frame_of(PUBLIC, &packet))?;
        let _ = Layout::parse_quoted(&packet, Kind::V4);
        let _ = Layout::parse_quoted(&packet, Kind::V6);
    }
}

/// Where both parsers have an opinion it must be the same.
fn agree(frame: &[u8]) -> Result<(), TestCaseError> {
    use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
    let Ok(layout) = Layout::parse(frame, false) else {
        return Ok(());
    };
    let Ok(theirs) = LaxSlicedPacket::from_ethernet(frame) else {
        return Ok(());
    };
    let mut copy = frame.to_vec();
    let ours = Packet::over(&mut copy, layout, Offload::default());
    match &theirs.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            prop_assert_eq!(layout.kind, Kind::V4);
            prop_assert_eq!(ours.source(), IpAddr::from(ip.header().source()));
            prop_assert_eq!(ours.target(), IpAddr::from(ip.header().destination()));
            prop_assert_eq!(ours.ttl(), ip.header().ttl());
            prop_assert_eq!(ours.dont_fragment(), ip.header().dont_fragment());
            let fragment = ip.header().is_fragmenting_payload();
            prop_assert_eq!(layout.fragment != Fragment::Whole, fragment);
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            prop_assert_eq!(layout.kind, Kind::V6);
            prop_assert_eq!(ours.source(), IpAddr::from(ip.header().source()));
            prop_assert_eq!(ours.target(), IpAddr::from(ip.header().destination()));
            prop_assert_eq!(ours.ttl(), ip.header().hop_limit());
        }
        _ => return Ok(()),
    }
    if !layout.transport || layout.fragment != Fragment::Whole {
        return Ok(());
    }
    match theirs.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            prop_assert_eq!(layout.protocol, frames::TCP);
            prop_assert_eq!(ours.source_port(), tcp.source_port());
            prop_assert_eq!(ours.target_port(), tcp.destination_port());
            prop_assert_eq!(ours.tcp_flags() & 0x02 != 0, tcp.syn());
        }
        Some(TransportSlice::Udp(udp)) => {
            prop_assert_eq!(layout.protocol, frames::UDP);
            prop_assert_eq!(ours.source_port(), udp.source_port());
            prop_assert_eq!(ours.target_port(), udp.destination_port());
        }
        _ => {}
    }
    Ok(())
}

/// Prints how to play a failed tape again.
struct Replay<'a>(&'a str);

impl Drop for Replay<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to play this again: {}", self.0);
        }
    }
}

fn tape_of(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let len = 32 + rng.below(1500) as usize;
    (0..len).map(|_| rng.next_u64() as u8).collect()
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text}: not a number")),
    )
}

/// `ULVS_FUZZ_SECONDS` says how long (2), `ULVS_FUZZ_SEED` which single seed to play.
#[test]
fn a_director_survives_every_tape() {
    let began = std::time::Instant::now();
    let seconds = number_from("ULVS_FUZZ_SECONDS").unwrap_or(2);
    let single = number_from("ULVS_FUZZ_SEED");
    // Each run goes on with seeds that no run before it has tried.
    let first = single.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("after 1970").as_nanos() as u64
    });
    let mut all = Outcome::default();
    let mut runs = 0;
    while runs == 0 || single.is_none() && began.elapsed().as_secs() < seconds {
        let seed = first.wrapping_add(runs);
        let _replay = Replay(&format!("ULVS_FUZZ_SEED={seed}"));
        all.add(&drive::run(&tape_of(seed)));
        runs += 1;
    }
    println!("{runs} tapes from seed {first}: {all}");
    if runs >= 100 {
        assert_reached(&all);
    }
}

/// A driver that no longer gets anywhere finds nothing: what tapes are meant to reach is reached.
fn assert_reached(all: &Outcome) {
    use DropReason::*;
    assert!(all.account.forwarded > 0 && all.account.answered > 0 && all.account.passed > 0);
    assert!(all.sent.iter().all(|sent| *sent > 0), "both ways: {all}");
    assert!(
        all.errors.iter().all(|errors| *errors > 0),
        "errors both ways: {all}"
    );
    assert!(all.fragments > 0, "whole again and cut again: {all}");
    for reason in [
        Malformed,
        IpChecksum,
        TtlExceeded,
        TableFull,
        NoNeighbour,
        TxRefused,
        Fragment,
    ] {
        assert!(
            all.account.dropped_for(reason) > 0,
            "no {}: {all}",
            reason.word()
        );
    }
}

/// Tapes that once found something, and those that a fuzzer found worth keeping.
#[test]
fn the_corpus_still_passes() {
    let folder = "tools/fuzz/corpus/handle_frame";
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{folder}: {error}"))
        .map(|entry| entry.expect("entry").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{folder} is empty");
    for path in paths {
        let name = path.display().to_string();
        let _replay = Replay(&name);
        drive::run(&fs::read(&path).expect("readable corpus"));
    }
}

/// The same for what is written to a director by hand and by programs.
#[test]
fn the_corpora_of_texts_still_pass() {
    type Play = fn(&[u8]);
    let targets: [(&str, Play); 4] = [
        ("command_lines", texts::command_lines),
        ("rules", texts::rules),
        ("configuration", texts::configuration),
        ("socket", texts::socket),
    ];
    for (target, play) in targets {
        let paths = fs::read_dir(format!("tools/fuzz/corpus/{target}"));
        let mut played = 0;
        for entry in paths.unwrap_or_else(|error| panic!("{target}: {error}")) {
            let path = entry.expect("entry").path();
            let name = path.display().to_string();
            let _replay = Replay(&name);
            play(&fs::read(&path).expect("readable corpus"));
            played += 1;
        }
        assert!(played > 0, "{target} has no corpus");
    }
}

fn quiet_run() -> Run {
    Run::new(&mut Tape::new(&[0, 0, 1]))
}

/// One good packet of every kind that a client or a real server might send.
fn one_of_each() -> Vec<Vec<u8>> {
    let [vip, _, vip6] = world::vips();
    let [client, _, _, client6, ..] = world::clients();
    let mut packets = Vec::new();
    for (from, to) in [
        ((client, 1025), (vip, 80)),
        ((client, 1025), (world::own()[0], 80)),
        ((client6, 1025), (vip6, 80)),
        ((client6, 1025), (world::own()[2], 80)),
    ] {
        let inner = frames::tcp(to, from, 0x12, b"quoted");
        let (error, echo) = if from.0.is_ipv4() { (3, 8) } else { (1, 128) };
        packets.push(frames::tcp(from, to, 0x02, b"hello"));
        packets.push(frames::udp(from, (to.0, 53), b"hello"));
        packets.push(frames::sctp(from, to, 1));
        packets.push(frames::icmp_error(from.0, to.0, error, 0, &inner));
        packets.push(frames::icmp(from.0, to.0, echo, 0, b"12345678"));
        packets.push(frames::icmp(from.0, to.0, 135, 0, &[0; 28]));
    }
    packets
}

/// Every packet cut at every byte, with lengths that agree with the cut and with lengths that lie.
#[test]
fn every_cut_is_survived() {
    let mut run = quiet_run();
    run.expect_rubbish();
    for packet in one_of_each() {
        for len in 1..packet.len() {
            let mut cut = packet[..len].to_vec();
            run.exchange(PUBLIC, &cut);
            guests::set_length(&mut cut);
            run.exchange(PUBLIC, &cut);
            run.exchange(PRIVATE, &cut);
            frames::make_sum_hold(&mut cut);
            run.exchange(PUBLIC, &cut);
        }
    }
    run.finish();
}

/// Every byte of every packet set to what is most likely to hurt.
#[test]
fn every_odd_byte_is_survived() {
    let mut run = quiet_run();
    run.expect_rubbish();
    for packet in one_of_each() {
        for at in 0..packet.len() {
            for byte in [0, 1, 0x0f, 0x40, 0x7f, 0x80, 0xff] {
                let mut odd = packet.clone();
                odd[at] = byte;
                guests::repair_header(&mut odd);
                run.exchange(PUBLIC, &odd);
            }
        }
    }
    run.finish();
}

/// A real server complains about the packet it got: the client reads about the packet it sent, from
/// the VIP. The client complains about the answer: the real server reads about the answer it sent.
#[test]
fn an_error_quotes_what_its_reader_sent() {
    for (client, vip, code) in [
        (world::clients()[0], world::vips()[0], (3, 3)),
        (world::clients()[3], world::vips()[2], (1, 4)),
    ] {
        let mut run = quiet_run();
        let request = frames::tcp((client, 1025), (vip, 80), 0x02, b"");
        let [(PRIVATE, inside)] = &run.exchange(PUBLIC, &request)[..] else {
            panic!("the request did not reach a real server");
        };
        let (header, _, _, rip) = frames::read_ip(inside).expect("whole");
        let port = u16::from_be_bytes([inside[header + 2], inside[header + 3]]);

        let error = frames::icmp_error(rip, client, code.0, code.1, inside);
        let [(PUBLIC, told)] = &run.exchange(PRIVATE, &error)[..] else {
            panic!("the error did not reach the client");
        };
        assert_eq!(quote_of(told), (vip, hopped(&request)));

        let answer = frames::tcp((rip, port), (client, 1025), 0x12, b"");
        let [(PUBLIC, outside)] = &run.exchange(PRIVATE, &answer)[..] else {
            panic!("the answer did not reach the client");
        };
        let error = frames::icmp_error(client, vip, code.0, code.1, outside);
        let [(PRIVATE, told)] = &run.exchange(PUBLIC, &error)[..] else {
            panic!("the error did not reach the real server");
        };
        assert_eq!(quote_of(told), (client, hopped(&answer)));
        run.finish();
    }
}

/// Who sends an ICMP error, and the packet it quotes but for the TCP checksum, which stays as it was on
/// the other side (`ip_vs_nat_icmp`).
fn quote_of(error: &[u8]) -> (IpAddr, Vec<u8>) {
    let (header, _, source, _) = frames::read_ip(error).expect("whole");
    (source, without_tcp_sum(&error[header + 8..]))
}

fn without_tcp_sum(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let (header, ..) = frames::read_ip(&packet).expect("whole");
    packet[header + 16..header + 18].fill(0);
    packet
}

/// The packet after one hop.
fn hopped(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let at = if packet[0] >> 4 == 4 { 8 } else { 7 };
    packet[at] -= 1;
    guests::repair_header(&mut packet);
    without_tcp_sum(&packet)
}

proptest! {
    #![proptest_config(config(2000))]

    /// A helper makes texts of a stream longer and shorter: behind a change every number comes back as
    /// the one it was, and so does every one before it.
    #[test]
    fn sequence_numbers_that_were_moved_come_back(
        start: u32,
        changes in prop::collection::vec((1u32..3000, -60i32..60), 1..6),
        asked in prop::collection::vec(0u32..5000, 20),
    ) {
        let (mut shift, mut at) = (Shift::default(), start);
        for (len, by) in changes {
            at = at.wrapping_add(len);
            shift.change(at, by);
            prop_assert_eq!(shift.back(shift.there(at)), at);
            for behind in &asked {
                // No text becomes shorter by more than it had: its end is still behind its beginning.
                let seq = at.wrapping_add(61 + behind);
                prop_assert_eq!(shift.back(shift.there(seq)), seq);
                let seq = at.wrapping_sub(*behind);
                prop_assert_eq!(shift.back(shift.there(seq)), seq);
            }
        }
    }

    /// Whatever stands in a text, the helper for FTP stays inside it, and what it reads out of its own
    /// words is what it wrote.
    #[test]
    fn texts_of_ftp_are_read_within_their_bounds(
        word in prop::sample::select(vec!["227 ", "229 ", "PORT ", "EPRT ", "EPSV", "PASV", ""]),
        rest in "[(|,0-9 .:a-f!\\r\\n]{0,40}",
        port in 1u16..,
    ) {
        let end = |address: [u8; 4], port| Endpoint::new(address.into(), port);
        let ends = Ends {
            client: end([172, 16, 3, 9], 40021),
            virt: end([10, 0, 0, 100], 21),
            real: end([192, 168, 1, 11], 21),
        };
        let text = format!("{word}{rest}");
        for asked in [Awaits::Passive, Awaits::ExtendedPassive] {
            let mut awaits = asked;
            Ftp.hear_client(text.as_bytes(), &ends, &mut awaits);
            let mut awaits = asked;
            let Some(heard) = Ftp.hear_server(text.as_bytes(), &ends, &mut awaits) else {
                continue;
            };
            let mut read = text.clone();
            read.replace_range(heard.rewrite.from..heard.rewrite.to, &heard.rewrite.new);
            let mut awaits = asked;
            let again = Ftp.hear_server(read.as_bytes(), &ends, &mut awaits);
            let again = again.map(|again| again.expected.virt);
            prop_assert_eq!(again, Some(heard.expected.virt), "{} {}", text, read);
        }
        let text = format!("PORT 172,16,3,9,{},{}\r\n", port >> 8, port & 0xff);
        let heard = Ftp.hear_client(text.as_bytes(), &ends, &mut Awaits::Nothing);
        prop_assert_eq!(heard.map(|heard| heard.client), Some(end([172, 16, 3, 9], port)));
    }
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn what_is_encoded_can_be_decoded(tape in prop::collection::vec(any::<u8>(), 0..80)) {
        let request = Request::Do(world::command(&mut Tape::new(&tape)));
        let mut line = codec::encode(&request);
        prop_assert_eq!(line.pop(), Some(b'\n'));
        prop_assert!(!line.contains(&b'\n'));
        prop_assert_eq!(codec::decode_request(&line).expect("our own line"), request);
    }

    #[test]
    fn rules_that_are_printed_can_be_read(tape in prop::collection::vec(any::<u8>(), 0..80)) {
        // What the grammar takes, it prints so that it takes it again and means the same.
        let Some(line) = rule_line(&world::command(&mut Tape::new(&tape))) else {
            return Ok(());
        };
        let Ok(commands) = rules::parse("rules", &line, &NumbersOnly) else {
            return Ok(());
        };
        prop_assert_eq!(commands.len(), 1);
        prop_assert_eq!(rule_line(&commands[0]), Some(line));
    }
}

fn rule_line(command: &Command) -> Option<String> {
    match command {
        Command::AddService(spec) => Some(rules::service_line(spec, &NumbersOnly)),
        Command::AddReal { service, real } => Some(rules::real_line(service, real, &NumbersOnly)),
        _ => None,
    }
}
