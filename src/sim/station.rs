//! The machines' cards: who answers ARP, who asks it, and what frames a machine's packets become.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::net::Arrival;
use super::packet;
use super::topology::{self, DIRECTOR, VIPS};
use crate::time::{Duration, Instant};
use crate::wire::arp::Arp;
use crate::wire::memory::MemoryFrame;
use crate::wire::packet::Kind;
use crate::wire::{Layout, Mac, Offload, Packet};

/// How long a host believes an ARP answer.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// Time between two ARP questions of one host.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// The mark that a classifier puts on frames for the second VIP.
pub const MARK: u32 = 1;

/// One machine on a link.
#[derive(Debug)]
struct Station {
    address: Option<Ipv4Addr>,
    port: usize,
    knows: BTreeMap<Ipv4Addr, (Mac, Instant)>,
    asked: Option<Instant>,
}

/// All machines on the links but the director.
#[derive(Debug)]
pub struct Stations {
    by_mac: BTreeMap<Mac, Station>,
    /// Frames for the second VIP carry a mark.
    marks: bool,
}

impl Stations {
    /// Machines that know nobody yet.
    pub fn new(marks: bool) -> Stations {
        let station = |(mac, address, port)| {
            let station = Station {
                address,
                port,
                knows: BTreeMap::new(),
                asked: None,
            };
            (mac, station)
        };
        let by_mac = topology::stations().into_iter().map(station).collect();
        Stations { by_mac, marks }
    }

    /// Is this machine on the link of `port`?
    pub fn is_on(&self, mac: Mac, port: usize) -> bool {
        let station = self.by_mac.get(&mac);
        station.is_some_and(|station| station.port == port)
    }

    /// Whoever is meant learns from an ARP packet of the director. Returns the answer, if there is one.
    pub fn hear_arp(&mut self, port: usize, arp: Arp, now: Instant) -> Option<Arrival> {
        let meant = |station: &Station| station.port == port && station.address == Some(arp.target);
        let mut stations = self.by_mac.iter_mut();
        let (mac, station) = stations.find(|(_, station)| meant(station))?;
        station.knows.insert(arp.sender, (arp.sender_mac, now));
        arp.is_request.then(|| {
            let mut frame = Vec::new();
            arp.answered_by(*mac).frame(&mut frame);
            to_director(port, frame, 0)
        })
    }

    /// The frame that takes a packet from the machine with this MAC address to the director. If it does
    /// not know the director's MAC address the packet is lost, and it asks. The second VIP is routed to
    /// the director, and IPv6 neighbours are known.
    pub fn emit(&mut self, mac: Mac, hop: IpAddr, packet: &[u8], now: Instant) -> Option<Arrival> {
        let station = self.by_mac.get_mut(&mac).expect("every host has its card");
        let director = match hop {
            IpAddr::V4(address) if hop != VIPS[1] => {
                let known = station.knows.get(&address);
                let known = known.filter(|(_, since)| now - *since < KNOWN_FOR);
                match known {
                    Some((director, _)) => *director,
                    None => return station.ask(mac, address, now),
                }
            }
            _ => DIRECTOR[station.port],
        };
        let mark = if self.marks && hop == VIPS[1] {
            MARK
        } else {
            0
        };
        let frame = packet::frame(director, mac, packet);
        Some(to_director(station.port, frame, mark))
    }
}

impl Station {
    fn ask(&mut self, mac: Mac, target: Ipv4Addr, now: Instant) -> Option<Arrival> {
        let asked = self.asked.is_some_and(|asked| now - asked < ASK_AGAIN);
        let sender = self.address.filter(|_| !asked)?;
        self.asked = Some(now);
        let mut frame = Vec::new();
        Arp::request(mac, sender, target).frame(&mut frame);
        Some(to_director(self.port, frame, 0))
    }
}

fn to_director(port: usize, frame: Vec<u8>, mark: u32) -> Arrival {
    let frame = MemoryFrame {
        bytes: frame,
        offload: Offload::default(),
        mark,
    };
    Arrival::Director {
        port,
        frame,
        plain: true,
    }
}

/// Who a frame is for, and who sent it.
pub fn macs_of(frame: &[u8]) -> (Mac, Mac) {
    let mac = |at: usize| {
        let octets = frame.get(at..at + 6);
        Mac(octets
            .and_then(|octets| octets.try_into().ok())
            .unwrap_or_default())
    };
    (mac(0), mac(6))
}

/// The ARP packet in a frame, if there is one.
pub fn read_arp(frame: &[u8]) -> Option<Arp> {
    let mut bytes = frame.to_vec();
    let layout = Layout::parse(&bytes, false).ok()?;
    let packet = Packet::over(&mut bytes, layout, Offload::default());
    (layout.kind == Kind::Arp).then(|| Arp::read(&packet))?
}
