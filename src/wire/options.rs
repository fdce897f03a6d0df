//! IPv4 options (RFC 791 section 3.1) as a host or router on the way takes part in them: it writes its
//! address where the route is recorded and its time where times are, and takes no source routes
//! (`ip_options.c`).

use std::net::Ipv4Addr;

use super::checksum::Sum;
use super::packet::{Kind, Packet};

/// Why a packet goes no further because of its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionFault {
    /// Its sender wants to choose its way.
    SourceRoute,
    /// The byte at this offset of the IP header makes no sense.
    Malformed(u8),
}

/// The addresses under which we take part: times are written when a packet comes in, the route when it
/// leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// What stands beside a time.
    pub on_the_way_in: Ipv4Addr,
    /// What the recorded route gets.
    pub on_the_way_out: Ipv4Addr,
}

impl From<Ipv4Addr> for Signature {
    /// The same address both ways.
    fn from(address: Ipv4Addr) -> Signature {
        Signature {
            on_the_way_in: address,
            on_the_way_out: address,
        }
    }
}

/// Length of an IPv4 header without options.
const PLAIN_LEN: usize = 20;

/// Option numbers (RFC 791, RFC 2113).
mod option {
    pub const END: u8 = 0;
    pub const NOP: u8 = 1;
    pub const RECORD_ROUTE: u8 = 7;
    pub const TIMESTAMP: u8 = 68;
    pub const LOOSE_ROUTE: u8 = 131;
    pub const STRICT_ROUTE: u8 = 137;
    pub const ROUTER_ALERT: u8 = 148;
}

/// What the timestamp option shall hold, by its flag field.
mod stamp {
    pub const TIME: u8 = 0;
    pub const ADDRESS_AND_TIME: u8 = 1;
    pub const ASKED_FOR: u8 = 3;
}

/// Where in a header the options lie that want to be written into; offsets from its first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    record: Option<usize>,
    stamp: Option<usize>,
    routed: Option<usize>,
    /// Behind the option that ends the list.
    end: Option<usize>,
}

impl Packet<'_> {
    /// Has it IPv4 options?
    pub fn has_options(&self) -> bool {
        self.layout.kind == Kind::V4 && self.l4() - self.l3() > PLAIN_LEN
    }

    /// What is wrong with its options, if anything.
    pub fn options_fault(&self) -> Option<OptionFault> {
        match find(&self.bytes[self.l3()..self.l4()]) {
            Ok(Found {
                routed: Some(_), ..
            }) => Some(OptionFault::SourceRoute),
            Ok(_) => None,
            Err(at) => Some(OptionFault::Malformed(at as u8)),
        }
    }

    /// Writes our addresses and `time` into the options that ask for them. `is_local` knows whose
    /// time is ours to write where a certain host was asked for it. Options with a fault stay as
    /// they are.
    pub fn stamp_options(&mut self, we: Signature, time: u32, is_local: impl Fn(Ipv4Addr) -> bool) {
        let (l3, l4) = (self.l3(), self.l4());
        let header = &mut self.bytes[l3..l4];
        let Ok(found) = find(header) else { return };
        if let Some(at) = found.record {
            record(&mut header[at..], we.on_the_way_out);
        }
        if let Some(at) = found.stamp {
            stamp(&mut header[at..], we.on_the_way_in, time, is_local);
        }
        if let Some(end) = found.end {
            header[end..].fill(option::END);
        }
        header[10..12].fill(0);
        let sum = Sum::of(header).checksum();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Walks the options of an IPv4 header; the error is the offset of the byte that makes no sense.
fn find(header: &[u8]) -> Result<Found, usize> {
    let mut found = Found::default();
    let mut at = PLAIN_LEN;
    while at < header.len() {
        match header[at] {
            option::END => {
                found.end = Some(at + 1);
                return Ok(found);
            }
            option::NOP => {
                at += 1;
                continue;
            }
            _ => {}
        }
        let len = usize::from(*header.get(at + 1).ok_or(at)?);
        if len < 2 || at + len > header.len() {
            return Err(at);
        }
        let body = &header[at..at + len];
        let slot = match body[0] {
            option::RECORD_ROUTE => {
                check_list(body, 3, 4, 4).map_err(|fault| at + fault)?;
                &mut found.record
            }
            option::TIMESTAMP => {
                check_stamps(body).map_err(|fault| at + fault)?;
                &mut found.stamp
            }
            option::LOOSE_ROUTE | option::STRICT_ROUTE => {
                check_list(body, 3, 4, 0).map_err(|fault| at + fault)?;
                &mut found.routed
            }
            option::ROUTER_ALERT if len < 4 => return Err(at + 1),
            _ => {
                at += len;
                continue;
            }
        };
        if slot.replace(at).is_some() {
            return Err(at);
        }
        at += len;
    }
    Ok(found)
}

/// An option of at least `len_min` bytes whose pointer is at least `first` and leaves room for the
/// next `entry` bytes, unless it is full.
fn check_list(body: &[u8], len_min: usize, first: u8, entry: usize) -> Result<(), usize> {
    if body.len() < len_min {
        return Err(1);
    }
    let pointer = usize::from(body[2]);
    let cut = pointer <= body.len() && pointer + entry > body.len() + 1;
    if body[2] < first || cut {
        return Err(2);
    }
    Ok(())
}

fn check_stamps(body: &[u8]) -> Result<(), usize> {
    check_list(body, 4, 5, 4)?;
    let (pointer, flags, overflow) = (usize::from(body[2]), body[3] & 15, body[3] >> 4);
    if pointer > body.len() {
        return if overflow == 15 { Err(3) } else { Ok(()) };
    }
    match flags {
        stamp::TIME => Ok(()),
        stamp::ADDRESS_AND_TIME | stamp::ASKED_FOR => check_list(body, 4, 5, 8),
        // Nobody has said what the others mean: such an option stays as it is.
        _ => Ok(()),
    }
}

/// Writes the address into the next free place of a record-route option; a full one stays.
fn record(body: &mut [u8], address: Ipv4Addr) {
    let (len, pointer) = (body[1], usize::from(body[2]));
    if pointer > usize::from(len) {
        return;
    }
    body[pointer - 1..pointer + 3].copy_from_slice(&address.octets());
    body[2] += 4;
}

/// Writes the time into the next free place of a timestamp option, or counts that there is none.
fn stamp(body: &mut [u8], address: Ipv4Addr, time: u32, is_local: impl Fn(Ipv4Addr) -> bool) {
    let (len, pointer) = (body[1], usize::from(body[2]));
    if pointer > usize::from(len) {
        body[3] += 1 << 4;
        return;
    }
    let place = pointer - 1;
    let asked = |body: &[u8]| -> Ipv4Addr {
        let octets: [u8; 4] = body[place..place + 4].try_into().expect("four bytes");
        octets.into()
    };
    let time_at = match body[3] & 15 {
        stamp::TIME => place,
        stamp::ADDRESS_AND_TIME => {
            body[place..place + 4].copy_from_slice(&address.octets());
            place + 4
        }
        stamp::ASKED_FOR if is_local(asked(body)) => place + 4,
        _ => return,
    };
    body[time_at..time_at + 4].copy_from_slice(&time.to_be_bytes());
    body[2] += (time_at + 4 - place) as u8;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Layout, Offload};

    const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
    const TIME: u32 = 0x8001_0203;

    /// A bare IPv4 packet with these options, to be read by `look`.
    fn with<T>(options: &[u8], look: impl FnOnce(&mut Packet<'_>) -> T) -> T {
        assert_eq!(options.len() % 4, 0);
        let mut bytes = vec![0; PLAIN_LEN + options.len()];
        bytes[0] = 0x40 | (bytes.len() / 4) as u8;
        bytes[3] = bytes.len() as u8;
        bytes[8] = 64;
        bytes[PLAIN_LEN..].copy_from_slice(options);
        let sum = Sum::of(&bytes).checksum();
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        let layout = Layout::parse(&bytes, true).expect("a good header");
        look(&mut Packet::over(&mut bytes, layout, Offload::default()))
    }

    fn stamped(options: &[u8]) -> Vec<u8> {
        with(options, |packet| {
            assert_eq!(packet.options_fault(), None, "{options:?}");
            packet.stamp_options(HERE.into(), TIME, |address| address == HERE);
            let bytes = packet.frame().to_vec();
            assert!(
                Layout::parse(&bytes, true).is_ok(),
                "the header's sum is right"
            );
            bytes[PLAIN_LEN..].to_vec()
        })
    }

    fn fault(options: &[u8]) -> Option<OptionFault> {
        with(options, |packet| packet.options_fault())
    }

    #[test]
    fn the_route_is_recorded_where_there_is_room() {
        assert_eq!(
            stamped(&[7, 7, 4, 0, 0, 0, 0, 0]),
            [7, 7, 8, 10, 0, 0, 100, 0]
        );
        let full = [7, 7, 8, 9, 9, 9, 9, 0];
        assert_eq!(stamped(&full), full);
        assert_eq!(
            stamped(&[1, 7, 7, 4, 0, 0, 0, 0]),
            [1, 7, 7, 8, 10, 0, 0, 100]
        );
    }

    #[test]
    fn times_are_written_as_their_flag_says() {
        assert_eq!(
            stamped(&[68, 8, 5, 0, 0, 0, 0, 0]),
            [68, 8, 9, 0, 0x80, 1, 2, 3]
        );
        let both = [68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            stamped(&both),
            [68, 12, 13, 1, 10, 0, 0, 100, 0x80, 1, 2, 3]
        );
        let ours = [68, 12, 5, 3, 10, 0, 0, 100, 0, 0, 0, 0];
        assert_eq!(
            stamped(&ours),
            [68, 12, 13, 3, 10, 0, 0, 100, 0x80, 1, 2, 3]
        );
        let of_others = [68, 12, 5, 3, 10, 0, 0, 7, 0, 0, 0, 0];
        assert_eq!(stamped(&of_others), of_others);
        assert_eq!(
            stamped(&[68, 8, 9, 0, 1, 1, 1, 1]),
            [68, 8, 9, 16, 1, 1, 1, 1]
        );
    }

    #[test]
    fn nothing_follows_the_end() {
        assert_eq!(stamped(&[1, 0, 5, 6]), [1, 0, 0, 0]);
        assert_eq!(stamped(&[130, 4, 5, 6]), [130, 4, 5, 6]);
    }

    #[test]
    fn faults_name_their_byte() {
        use OptionFault::{Malformed, SourceRoute};
        assert_eq!(fault(&[131, 7, 4, 10, 0, 0, 9, 0]), Some(SourceRoute));
        assert_eq!(fault(&[137, 3, 4, 0]), Some(SourceRoute));
        assert_eq!(fault(&[7, 9, 4, 0]), Some(Malformed(20)), "beyond the end");
        assert_eq!(fault(&[1, 1, 1, 7]), Some(Malformed(23)), "no length");
        assert_eq!(fault(&[7, 2, 0, 0]), Some(Malformed(21)));
        assert_eq!(fault(&[7, 3, 3, 0]), Some(Malformed(22)));
        assert_eq!(fault(&[7, 4, 4, 0]), Some(Malformed(22)), "cut place");
        assert_eq!(fault(&[68, 8, 9, 0xf0, 0, 0, 0, 0]), Some(Malformed(23)));
        assert_eq!(fault(&[68, 8, 5, 2, 0, 0, 0, 0]), None);
        assert_eq!(fault(&[68, 8, 5, 1, 0, 0, 0, 0]), Some(Malformed(22)));
        assert_eq!(fault(&[148, 2, 0, 0]), Some(Malformed(21)));
        let twice = [7, 3, 4, 7, 3, 4, 0, 0];
        assert_eq!(fault(&twice), Some(Malformed(23)));
    }
}
