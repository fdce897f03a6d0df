//! A SYN flood inside a lab: segments that open connections, from random sources, as fast as the
//! interface takes them or at a rate. Bounded in frames and in time, and it wants proof that it is in
//! a lab. Whoever answers is not heard.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::netns::Inside;
use crate::nic::{self, Backend, Halves, OpenOptions, Side};
use crate::rng::Rng;
use crate::wire::arp::Arp;
use crate::wire::checksum::{Sum, pseudo_header};
use crate::wire::nic::FrameView;
use crate::wire::packet::Kind;
use crate::wire::{Layout, Mac, Offload, Packet, Tx};

/// Most frames of one flood.
pub const FRAMES_MAX: u64 = 100_000_000;
/// Longest flood, in seconds.
pub const SECONDS_MAX: u64 = 120;
/// Frames handed to the interface at once.
const BATCH: usize = nic::BATCH_FRAMES_MAX;
/// How long the target may take to tell its MAC address, and how often it is asked meanwhile.
const ARP_TIME: Duration = Duration::from_secs(3);
const ARP_AGAIN: Duration = Duration::from_millis(200);

/// A frame: Ethernet, IPv4 and TCP headers without options, padded as Ethernet wants it.
const FRAME_BYTES: usize = 60;
const IP_AT: usize = 14;
const TCP_AT: usize = IP_AT + 20;
const END: usize = TCP_AT + 20;
const TCP: u8 = 6;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// Who is flooded.
    pub target: SocketAddrV4,
    /// At most so many frames; not more than `FRAMES_MAX`.
    pub frames: u64,
    /// At most so long, in seconds; not more than `SECONDS_MAX`.
    pub seconds: u64,
    /// Frames in a second; as many as go if left out.
    pub per_second: Option<u64>,
    /// Where the random sources come from.
    pub seed: u64,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloodReport {
    /// Frames the interface took.
    pub sent: u64,
    /// Frames it would not take.
    pub refused: u64,
    /// From the first frame to the last, in microseconds.
    pub took_us: u64,
}

impl Flood {
    /// Finds the interface and the MAC address of the target, and floods it.
    ///
    /// # Errors
    /// When no interface of this host has the target's network, nobody tells its MAC address, or the
    /// interface cannot be opened.
    pub fn run(&self, inside: &Inside) -> io::Result<FloodReport> {
        let Outlet { mut tx, macs, .. } = Outlet::towards(inside, *self.target.ip())?;
        let mut frames = [blank(macs, self.target); BATCH];
        let mut rng = Rng::new(self.seed);
        let (start, limit) = (
            Instant::now(),
            Duration::from_secs(self.seconds.min(SECONDS_MAX)),
        );
        let frames_max = self.frames.min(FRAMES_MAX);
        let mut report = FloodReport::default();
        while report.sent + report.refused < frames_max && start.elapsed() < limit {
            let done = report.sent + report.refused;
            let count = (frames_max - done).min(BATCH as u64) as usize;
            frames[..count]
                .iter_mut()
                .for_each(|frame| draw(frame, &mut rng));
            let views = frames[..count].iter().map(|frame| FrameView {
                bytes: frame,
                offload: Offload::default(),
                raw_ip: false,
            });
            let sent = tx.send(&mut { views });
            report.sent += sent.taken as u64;
            report.refused += sent.refused as u64;
            if let Some(rate) = self.per_second {
                let due = (done + count as u64) * 1_000_000 / rate.max(1);
                pass(Duration::from_micros(due).saturating_sub(start.elapsed()));
            }
        }
        report.took_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(report)
    }
}

/// An interface by which a neighbour is reached, to send frames of our own making.
pub struct Outlet {
    /// Sends.
    pub tx: Box<dyn Tx>,
    /// MAC addresses: the neighbour's, our own.
    pub macs: (Mac, Mac),
    /// Our own address there.
    pub own: Ipv4Addr,
}

impl Outlet {
    /// Finds the interface that has the neighbour's network, and asks for its MAC address.
    ///
    /// # Errors
    /// When no interface of this host has that network, nobody tells the MAC address, or the interface
    /// cannot be opened.
    pub fn towards(_: &Inside, neighbour: Ipv4Addr) -> io::Result<Outlet> {
        let (interface, own) = interface_to(neighbour)?;
        let options = OpenOptions::new(interface.name.as_str(), Side::Public);
        let opened = nic::open(Backend::Packet, &options);
        let mut halves = opened.map_err(|error| io::Error::other(error.to_string()))?;
        let mac = ask_mac(&mut halves, (interface.mac, own), neighbour)?;
        // Nobody reads the answers, so nobody shall collect them.
        let (_, tx) = halves;
        Ok(Outlet {
            tx,
            macs: (mac, interface.mac),
            own,
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "a rate is time that passes")]
fn pass(time: Duration) {
    std::thread::sleep(time.min(Duration::from_secs(SECONDS_MAX)));
}

/// The interface in whose network the target is, and our own address there.
fn interface_to(target: Ipv4Addr) -> io::Result<(nic::Interface, Ipv4Addr)> {
    let found = nic::interfaces().into_iter().find_map(|interface| {
        let on_link = |(address, length): &(IpAddr, u8)| match address {
            IpAddr::V4(own) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0);
                (u32::from(*own) & mask == u32::from(target) & mask).then_some(*own)
            }
            IpAddr::V6(_) => None,
        };
        let usable = interface.up && !interface.loopback;
        let own = interface.addresses.iter().find_map(on_link);
        own.filter(|_| usable).map(|own| (interface, own))
    });
    found.ok_or_else(|| {
        let text = format!("no interface of this host is in the network of {target}");
        io::Error::new(ErrorKind::NotFound, text)
    })
}

/// Asks who has `target` until somebody says so.
fn ask_mac((rx, tx): &mut Halves, own: (Mac, Ipv4Addr), target: Ipv4Addr) -> io::Result<Mac> {
    let mut question = Vec::new();
    Arp::request(own.0, own.1, target).frame(&mut question);
    let fd = rx.wait_fd().expect("an interface of the machine has one");
    let start = Instant::now();
    while start.elapsed() < ARP_TIME {
        let question = FrameView {
            bytes: &question,
            offload: Offload::default(),
            raw_ip: false,
        };
        tx.send(&mut std::iter::once(question));
        let asked = Instant::now();
        while asked.elapsed() < ARP_AGAIN {
            let patience = crate::time::Duration::from_nanos(ARP_AGAIN.as_nanos() as u64);
            nic::wait(&[fd], Some(patience))?;
            let count = rx.fill().unwrap_or(0);
            let mut macs = (0..count).map(|index| mac_told(rx.frame(index).bytes_mut(), target));
            let mac = macs.find_map(|mac| mac);
            rx.release();
            if let Some(mac) = mac {
                return Ok(mac);
            }
        }
    }
    let text = format!("nobody says that {target} is theirs");
    Err(io::Error::new(ErrorKind::TimedOut, text))
}

/// The MAC address of `target`, if this frame is its answer.
fn mac_told(frame: &mut [u8], target: Ipv4Addr) -> Option<Mac> {
    let layout = Layout::parse(frame, false).ok()?;
    if layout.kind != Kind::Arp {
        return None;
    }
    let arp = Arp::read(&Packet::over(frame, layout, Offload::default()))?;
    (!arp.is_request && arp.sender == target).then_some(arp.sender_mac)
}

/// A SYN to the target in which the source and the sums are still missing.
fn blank((to, from): (Mac, Mac), target: SocketAddrV4) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&from.0);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let length = ((END - IP_AT) as u16).to_be_bytes();
    // Version and header length; do not fragment; TTL 64.
    frame[IP_AT..IP_AT + 10]
        .copy_from_slice(&[0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, TCP]);
    frame[IP_AT + 16..TCP_AT].copy_from_slice(&target.ip().octets());
    frame[TCP_AT + 2..TCP_AT + 4].copy_from_slice(&target.port().to_be_bytes());
    // Header length, SYN, window.
    frame[TCP_AT + 12..TCP_AT + 16].copy_from_slice(&[0x50, 0x02, 0xfa, 0xf0]);
    frame
}

/// Gives the frame a source and a sequence number, and the sums they need.
fn draw(frame: &mut [u8; FRAME_BYTES], rng: &mut Rng) {
    let source = source(rng);
    let bits = rng.next_u64();
    let port = 1024 + (bits as u16) % (u16::MAX - 1023);
    frame[IP_AT + 12..IP_AT + 16].copy_from_slice(&source.octets());
    frame[TCP_AT..TCP_AT + 2].copy_from_slice(&port.to_be_bytes());
    frame[TCP_AT + 4..TCP_AT + 8].copy_from_slice(&((bits >> 32) as u32).to_be_bytes());
    frame[IP_AT + 10..IP_AT + 12].fill(0);
    let sum = Sum::of(&frame[IP_AT..TCP_AT]).checksum();
    frame[IP_AT + 10..IP_AT + 12].copy_from_slice(&sum.to_be_bytes());
    frame[TCP_AT + 16..TCP_AT + 18].fill(0);
    let target: [u8; 4] = frame[IP_AT + 16..TCP_AT].try_into().expect("four bytes");
    let pseudo = pseudo_header(source.into(), IpAddr::from(target), TCP, END - TCP_AT);
    let sum = Sum::of(&frame[TCP_AT..END]).plus(pseudo).checksum();
    frame[TCP_AT + 16..TCP_AT + 18].copy_from_slice(&sum.to_be_bytes());
}

/// Any address that a stranger may have: none of 0/8, 10/8, 127/8, 169.254/16, 172.16/12, 192.168/16,
/// 1.2.3/24 (the lab's own) and what is no unicast.
fn source(rng: &mut Rng) -> Ipv4Addr {
    loop {
        let address = Ipv4Addr::from(rng.next_u64() as u32);
        let [first, second, third, _] = address.octets();
        let fine = (1..=223).contains(&first)
            && !address.is_private()
            && !address.is_loopback()
            && !address.is_link_local()
            && [first, second, third] != [1, 2, 3];
        if fine {
            return address;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_a_whole_syn_from_somebody_else() {
        let target = SocketAddrV4::new([1, 2, 3, 1].into(), 80);
        let macs = (Mac([2, 0, 0, 0, 1, 2]), Mac([2, 0, 0, 0, 1, 0x64]));
        let mut frame = blank(macs, target);
        let mut rng = Rng::new(7);
        let mut sources = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            draw(&mut frame, &mut rng);
            let layout = Layout::parse(&frame, false).expect("well formed");
            assert!(layout.transport && layout.kind == Kind::V4);
            let packet = Packet::over(&mut frame, layout, Offload::default());
            assert!(packet.transport_sum_holds());
            assert_eq!(Sum::of(&packet.frame()[IP_AT..TCP_AT]).folded(), 0xffff);
            assert_eq!(packet.target(), IpAddr::V4(*target.ip()));
            sources.insert((packet.source(), packet.source_port()));
        }
        assert!(sources.len() > 990);
    }
}
