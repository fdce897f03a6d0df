//! Everybody but the director: clients, real servers, the gateway. They answer and ask ARP, speak
//! enough TCP, UDP and SCTP to notice what a director could spoil, and check every packet they hear:
//! its sums, and that a client is never shown what lies behind the VIP.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::invariant::Broken;
use super::net::Arrival;
use super::packet::{self, Heard, TcpSegment};
use super::station::{self, Stations};
use super::talk::{self, Ending, Fate, Poke, Talk};
use super::tcp::{self, TcpEnd};
use super::topology::{self, CLIENTS, DIRECTOR, OWN, PRIVATE, PUBLIC, REALS, VIPS};
use crate::lvs::{Endpoint, Protocol, TcpFlags};
use crate::rng::Rng;
use crate::time::Instant;
use crate::wire::{Mac, text};

/// The first port of clients. Every talk has one of its own, unless it is to use one again.
const FIRST_PORT: u16 = 20_000;

/// A real server has heard a packet of a talk.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    /// The talk.
    pub id: u32,
    /// The real server.
    pub real: Endpoint,
}

/// Everybody but the director.
#[derive(Debug)]
pub struct Hosts {
    /// Talk number n is at place n - 1.
    talks: Vec<Talk>,
    /// Whose a client's end is now.
    latest: BTreeMap<(Protocol, Endpoint), u32>,
    /// The real servers' ends of TCP connections: own end, client's end.
    ends: BTreeMap<(Endpoint, Endpoint), TcpEnd>,
    stations: Stations,
    /// What sets out, to be taken by whoever owns the cables.
    out: Vec<Arrival>,
    sightings: Vec<Sighting>,
    rng: Rng,
}

impl Hosts {
    /// Hosts that have not said a word yet.
    pub fn new(marks: bool, seed: u64) -> Hosts {
        Hosts {
            talks: Vec::new(),
            latest: BTreeMap::new(),
            ends: BTreeMap::new(),
            stations: Stations::new(marks),
            out: Vec::new(),
            sightings: Vec::new(),
            rng: Rng::new(seed),
        }
    }

    /// What set out since the last call.
    pub fn take_out(&mut self) -> Vec<Arrival> {
        std::mem::take(&mut self.out)
    }

    /// Who was seen where since the last call.
    pub fn take_sightings(&mut self) -> Vec<Sighting> {
        std::mem::take(&mut self.sightings)
    }

    /// All talks.
    pub fn talks(&self) -> &[Talk] {
        &self.talks
    }

    /// A client opens a TCP connection, from the port of `again` if there is one.
    pub fn connect(
        &mut self,
        (client, to): (IpAddr, Endpoint),
        again: Option<u32>,
        plan: (u32, Ending),
        now: Instant,
    ) -> &Talk {
        let (id, ends) = self.begin(client, to, again);
        let (talk, packet) = Talk::connect(id, ends, plan, now);
        self.add(talk);
        self.client_sends(&packet, now);
        &self.talks[id as usize - 1]
    }

    /// A client sends a first datagram.
    pub fn datagram(&mut self, client: IpAddr, to: Endpoint, now: Instant) -> &Talk {
        let (id, ends) = self.begin(client, to, None);
        self.add(Talk::datagrams(id, ends));
        self.poke(id, Poke::Send, now);
        &self.talks[id as usize - 1]
    }

    /// A client opens an SCTP association.
    pub fn associate(
        &mut self,
        (client, to): (IpAddr, Endpoint),
        again: Option<u32>,
        now: Instant,
    ) -> &Talk {
        let (id, ends) = self.begin(client, to, again);
        let (talk, packet) = Talk::associate(id, ends, now);
        self.add(talk);
        self.client_sends(&packet, now);
        &self.talks[id as usize - 1]
    }

    /// The number and the ends of the next talk.
    fn begin(
        &mut self,
        client: IpAddr,
        to: Endpoint,
        again: Option<u32>,
    ) -> (u32, (Endpoint, Endpoint)) {
        let id = self.talks.len() as u32 + 1;
        match again {
            Some(old) => {
                let old = &self.talks[old as usize - 1];
                (id, (old.from, old.to))
            }
            None => {
                // The key exchange of IPsec speaks from its own port.
                let port = if to.port == 500 {
                    500
                } else {
                    FIRST_PORT + id as u16
                };
                (id, (Endpoint::new(client, port), to))
            }
        }
    }

    fn add(&mut self, talk: Talk) {
        self.latest.insert((talk.protocol(), talk.from), talk.id);
        self.talks.push(talk);
    }

    /// Makes a client go on with a talk, or end it.
    pub fn poke(&mut self, id: u32, poke: Poke, now: Instant) {
        if let Some(packet) = self.talks[id as usize - 1].poke(poke, now) {
            self.client_sends(&packet, now);
        }
    }

    /// Makes the real server of a talk close or reset its end. Says if there was one.
    pub fn poke_server(&mut self, id: u32, reset: bool, now: Instant) -> bool {
        let peer = self.talks[id as usize - 1].from;
        let Some((me, end)) = self.end_of(peer) else {
            return false;
        };
        let segment = if reset {
            Some(end.reset())
        } else {
            end.close(now)
        };
        if reset {
            self.ends.remove(&(me, peer));
        }
        if let Some(segment) = segment {
            self.server_sends(&packet::tcp(me, peer, &segment), now);
        }
        true
    }

    /// A real server says something to the client of a talk, though nobody asked it.
    pub fn speak_first(&mut self, id: u32, real: IpAddr, now: Instant) {
        let talk = &self.talks[id as usize - 1];
        let from = Endpoint::new(real, talk.to.port);
        let packet = packet::udp(from, talk.from, &talk.unasked());
        self.server_sends(&packet, now);
    }

    fn end_of(&mut self, peer: Endpoint) -> Option<(Endpoint, &mut TcpEnd)> {
        let mut ends = self.ends.iter_mut();
        let found = ends.find(|((_, other), end)| *other == peer && !end.is_over());
        found.map(|((me, _), end)| (*me, end))
    }

    /// A host complains by ICMP about a packet of this talk: the client or a router on its side about
    /// an answer, the real server or a router on its side about a request. Says if somebody could.
    pub fn complain(&mut self, id: u32, (inside, router): (bool, bool), now: Instant) -> bool {
        let talk = &self.talks[id as usize - 1];
        let (client, virt) = (talk.from, talk.to);
        let (kind, code) = match (client.address, self.rng.below(3)) {
            (IpAddr::V4(_), 0) => (3, 3),
            (IpAddr::V4(_), 1) => (11, 0),
            (IpAddr::V4(_), _) => (3, 1),
            (IpAddr::V6(_), 0) => (1, 4),
            (IpAddr::V6(_), _) => (3, 0),
        };
        if !inside {
            let quote = quoted(talk.protocol(), virt, client);
            let from = if router {
                topology::stranger(7)[usize::from(client.address.is_ipv6())]
            } else {
                client.address
            };
            let error = packet::complaint(from, kind, code, &quote);
            self.emit(from, virt.address, &error, now);
            return true;
        }
        let protocol = talk.protocol();
        let Some((real, _)) = self.end_of(client) else {
            return false;
        };
        if VIPS.contains(&real.address) {
            return false;
        }
        let quote = quoted(protocol, client, real);
        let from = match real.address {
            IpAddr::V4(_) if router => topology::INNER_ROUTER,
            address => address,
        };
        let error = packet::complaint(from, kind, code, &quote);
        let gateway = OWN[PRIVATE][usize::from(from.is_ipv6())];
        self.emit(from, gateway, &error, now);
        true
    }

    /// When `handle_timeout` is due.
    pub fn next(&self) -> Option<Instant> {
        let open = self.talks.iter().filter(|talk| talk.fate == Fate::Open);
        let clients = open.filter_map(Talk::due);
        let servers = self.ends.values().filter_map(TcpEnd::due);
        clients.chain(servers).min()
    }

    /// Time passed: what was not heard is sent again.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut packets = Vec::new();
        for talk in self.talks.iter_mut().filter(|talk| talk.fate == Fate::Open) {
            packets.extend(talk.handle_timeout(now));
        }
        for packet in packets {
            self.client_sends(&packet, now);
        }
        let mut packets = Vec::new();
        for ((me, peer), end) in &mut self.ends {
            let segment = end.handle_timeout(now);
            packets.extend(segment.map(|segment| packet::tcp(*me, *peer, &segment)));
        }
        self.ends.retain(|_, end| !end.is_over());
        for packet in packets {
            self.server_sends(&packet, now);
        }
    }

    /// Nobody says anything any more.
    pub fn fall_silent(&mut self) {
        self.out.clear();
        self.ends.clear();
        self.talks.clear();
        self.latest.clear();
    }

    /// A frame of the director on the link of `port`.
    ///
    /// # Errors
    /// It should not have been sent like this.
    pub fn hear(&mut self, port: usize, frame: &[u8], now: Instant) -> Result<(), Broken> {
        let (to, from) = station::macs_of(frame);
        if from != DIRECTOR[port] {
            return Err(Broken::new(4, format!("a frame in the name of {from}")));
        }
        if let Some(arp) = station::read_arp(frame) {
            let answer = self.stations.hear_arp(port, arp, now);
            self.out.extend(answer);
            return Ok(());
        }
        let here = self.stations.is_on(to, port);
        let Some(packet) = packet::packet_in(frame).filter(|_| here) else {
            return Err(Broken::new(
                4,
                format!("a frame for nobody: {}", text::describe(frame, false)),
            ));
        };
        match port {
            PUBLIC => self.hear_outside(packet, now),
            _ => self.hear_inside(to, packet, now),
        }
    }

    /// A packet that a real server sent past the director.
    ///
    /// # Errors
    /// A client may not see it.
    pub fn hear_past(&mut self, packet: &[u8], now: Instant) -> Result<(), Broken> {
        self.hear_outside(packet, now)
    }

    /// Everything on the public link is checked, whoever it is for.
    fn hear_outside(&mut self, packet: &[u8], now: Instant) -> Result<(), Broken> {
        let heard = Heard::read(packet).map_err(|what| Broken::new(4, what))?;
        let complaint = heard.complaint();
        let quoted = complaint.map(|(flow, _)| [flow.source.address, flow.target.address]);
        let shown = [heard.source]
            .into_iter()
            .chain(quoted.into_iter().flatten());
        if let Some(shown) = shown
            .into_iter()
            .find(|address| topology::is_private(*address))
        {
            return Err(Broken::new(4, format!("{} is shown {shown}", heard.target)));
        }
        if !CLIENTS.contains(&heard.target) {
            return Ok(());
        }
        if let Some((flow, nobody)) = complaint {
            if let Some(talk) = self.talk_of(flow.protocol, flow.source) {
                if flow.target != talk.to {
                    return Err(Broken::new(
                        4,
                        format!("an error quotes {flow}, never sent"),
                    ));
                }
                if nobody {
                    talk.hear_refusal();
                }
            }
            return Ok(());
        }
        let flow = heard.flow();
        let Some(talk) = self.talk_of(heard.protocol, flow.target) else {
            return Ok(());
        };
        if flow.source != talk.to {
            let text = format!(
                "{} asked {} and {} answers",
                talk.from, talk.to, flow.source
            );
            return Err(Broken::new(4, text));
        }
        if let Some(answer) = talk.hear(&heard, now)? {
            self.client_sends(&answer, now);
        }
        Ok(())
    }

    fn talk_of(&mut self, protocol: Protocol, client: Endpoint) -> Option<&mut Talk> {
        let id = self.latest.get(&(protocol, client))?;
        self.talks.get_mut(*id as usize - 1)
    }

    /// The real server with this MAC address hears a packet. What strangers send may be damaged.
    fn hear_inside(&mut self, mac: Mac, packet: &[u8], now: Instant) -> Result<(), Broken> {
        let Some(rip) = REALS
            .into_iter()
            .find(|real| topology::mac_of(*real) == mac)
        else {
            return Ok(());
        };
        let heard = match Heard::read(packet) {
            Ok(heard) => heard,
            Err(what) if is_of_client(packet) => return Err(Broken::new(4, what)),
            Err(_) => return Ok(()),
        };
        if heard.target != rip && !VIPS.contains(&heard.target) {
            let text = format!("{rip} has a packet for {}", heard.target);
            return Err(Broken::new(4, text));
        }
        if let Some((flow, _)) = heard.complaint() {
            let mine = flow.source.address == rip || VIPS.contains(&flow.source.address);
            let text = || format!("{rip} hears of {flow}, which it never sent");
            return mine.then_some(()).ok_or_else(|| Broken::new(4, text()));
        }
        self.see(rip, &heard);
        for answer in self.serve(&heard, now) {
            self.server_sends(&answer, now);
        }
        Ok(())
    }

    /// Remembers where a packet of a talk has come to.
    fn see(&mut self, rip: IpAddr, heard: &Heard) {
        let flow = heard.flow();
        let Some(id) = talk::id_of(heard) else { return };
        let talk = self.talks.get((id as usize).wrapping_sub(1));
        if talk.is_some_and(|talk| talk.from == flow.source && talk.protocol() == flow.protocol) {
            let real = Endpoint::new(rip, flow.target.port);
            self.sightings.push(Sighting { id, real });
        }
    }

    /// What a real server says to a packet.
    fn serve(&mut self, heard: &Heard, now: Instant) -> Vec<Vec<u8>> {
        let flow = heard.flow();
        let (me, peer) = (flow.target, flow.source);
        match heard.protocol {
            Protocol::TCP => {
                let Some(segment) = heard.tcp() else {
                    return Vec::new();
                };
                let answers = self.serve_tcp((me, peer), &segment, now);
                let packets = answers.iter().map(|answer| packet::tcp(me, peer, answer));
                packets.collect()
            }
            Protocol::UDP => {
                let data = heard.udp().unwrap_or_default();
                vec![packet::udp(me, peer, &talk::datagram_answer(data))]
            }
            Protocol::SCTP => {
                let answer = heard
                    .sctp()
                    .and_then(|(tag, chunk)| Some((tag, talk::sctp_answer(chunk)?)));
                let packets = answer.map(|(tag, chunk)| packet::sctp(me, peer, tag, chunk));
                packets.into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    fn serve_tcp(
        &mut self,
        ends: (Endpoint, Endpoint),
        segment: &TcpSegment,
        now: Instant,
    ) -> Vec<TcpSegment> {
        let opens = segment.flags & (TcpFlags::SYN | TcpFlags::ACK) == TcpFlags::SYN
            && segment.flags & TcpFlags::RST == 0;
        let known = self.ends.get_mut(&ends);
        // A SYN with another number is a new connection; the old one is forgotten.
        let end = match known {
            Some(end) if !opens || end.is_my_syn(segment) => end,
            _ if opens => {
                let first = self.rng.next_u64() as u32;
                let (end, answer) = TcpEnd::answer(first, segment.seq, now);
                self.ends.insert(ends, end);
                return vec![answer];
            }
            _ => return tcp::refusal(segment).into_iter().collect(),
        };
        let brought = end.handle(segment, now);
        let echo = (!brought.data.is_empty()).then(|| end.send(talk::echo(&brought.data), now));
        let fin = brought.fin.then(|| end.close(now));
        let more: Vec<TcpSegment> = [echo, fin].into_iter().flatten().flatten().collect();
        if end.is_over() {
            self.ends.remove(&ends);
        }
        if more.is_empty() {
            brought.answer.into_iter().collect()
        } else {
            more
        }
    }

    /// A client's packet sets out.
    fn client_sends(&mut self, packet: &[u8], now: Instant) {
        if let Ok(heard) = Heard::read(packet) {
            self.emit(heard.source, heard.target, packet, now);
        }
    }

    /// A real server's packet sets out: through the director, or past it if it speaks for the VIP.
    fn server_sends(&mut self, packet: &[u8], now: Instant) {
        let Ok(heard) = Heard::read(packet) else {
            return;
        };
        if VIPS.contains(&heard.source) {
            let packet = packet.to_vec();
            self.out.push(Arrival::Past { packet });
            return;
        }
        let gateway = OWN[PRIVATE][usize::from(heard.source.is_ipv6())];
        self.emit(heard.source, gateway, packet, now);
    }

    fn emit(&mut self, from: IpAddr, hop: IpAddr, packet: &[u8], now: Instant) {
        let mac = topology::mac_of(from);
        self.out.extend(self.stations.emit(mac, hop, packet, now));
    }
}

/// The beginning of a packet of this flow, as an ICMP error quotes it.
fn quoted(protocol: Protocol, from: Endpoint, to: Endpoint) -> Vec<u8> {
    let ports = [from.port.to_be_bytes(), to.port.to_be_bytes()].concat();
    let body = [&ports[..], &[0; 4]].concat();
    packet::ip(from.address, to.address, protocol, &body)
}

/// Does this packet, damaged or not, come from one of our clients?
fn is_of_client(packet: &[u8]) -> bool {
    let source = match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.get(12..16).map(|octets| {
            let octets: [u8; 4] = octets.try_into().expect("four bytes");
            IpAddr::from(octets)
        }),
        _ => packet.get(8..24).map(|octets| {
            let octets: [u8; 16] = octets.try_into().expect("sixteen bytes");
            IpAddr::from(octets)
        }),
    };
    source.is_some_and(|source| CLIENTS.contains(&source))
}
