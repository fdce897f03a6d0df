//! Neighbour discovery (RFC 4861): solicitations and advertisements read and built. Routers are found
//! by configuration, so their messages are nobody's business here.

use std::net::{IpAddr, Ipv6Addr};

use super::Mac;
use super::checksum::{self, Sum};
use super::packet::{ETHERNET_LEN, Kind, Packet, number};

/// Types of the two messages (section 4.3, 4.4).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Options with a link-layer address (section 4.6.1): of the source, of the target.
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
/// No router lets such a message pass (section 3.1).
const HOP_LIMIT: u8 = 255;
/// An advertisement that was asked for, and that replaces what was known.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// Header, reserved word and target address; behind them stand options.
const FIXED_LEN: usize = 24;
/// Length of what we build, with one option.
const MESSAGE_LEN: usize = FIXED_LEN + 8;

/// What such a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// A question, or else an answer.
    pub is_request: bool,
    /// Who speaks; unspecified in a probe for duplicates.
    pub sender: Ipv6Addr,
    /// Whom it is about.
    pub target: Ipv6Addr,
    /// The MAC that it tells: in a question the sender's, in an answer the target's.
    pub mac: Option<Mac>,
}

impl Packet<'_> {
    /// Is it a message of neighbour discovery, sound or not?
    pub fn is_discovery(&self) -> bool {
        self.is_icmp() && matches!(self.icmp_type_code().0, SOLICITATION | ADVERTISEMENT)
    }
}

impl Discovery {
    /// Reads a message; `None` if it is none, or not sound (section 7.1).
    pub fn read(packet: &Packet<'_>) -> Option<Discovery> {
        let body = packet.transport();
        let is_ours = packet.layout.kind == Kind::V6 && packet.is_discovery();
        if !is_ours || packet.ttl() != HOP_LIMIT || body.len() < FIXED_LEN {
            return None;
        }
        if body[1] != 0 || !packet.icmp_sum_holds() {
            return None;
        }
        let IpAddr::V6(sender) = packet.source() else {
            return None;
        };
        let octets: [u8; 16] = body[8..24].try_into().expect("sixteen bytes");
        let target = Ipv6Addr::from(octets);
        let is_request = body[0] == SOLICITATION;
        let kind = if is_request { SOURCE_MAC } else { TARGET_MAC };
        let mac = option(&body[FIXED_LEN..], kind)?;
        // Who probes for a duplicate has no address yet to be reached under.
        let probe_tells = sender.is_unspecified() && (mac.is_some() || !is_request);
        if target.is_multicast() || probe_tells {
            return None;
        }
        Some(Discovery {
            is_request,
            sender,
            target,
            mac,
        })
    }

    /// Writes the frame that asks who has `target` (section 7.2.2), to the few who may have it.
    pub fn ask(mac: Mac, sender: Ipv6Addr, target: Ipv6Addr, out: &mut Vec<u8>) {
        let [.., high, middle, low] = target.octets();
        let group = Ipv6Addr::new(
            0xff02,
            0,
            0,
            0,
            0,
            1,
            0xff00 | u16::from(high),
            u16::from_be_bytes([middle, low]),
        );
        let to = Mac([0x33, 0x33, 0xff, high, middle, low]);
        write(out, (mac, to), (sender, group), (SOLICITATION, 0), target);
    }

    /// Writes the frame that answers this question, which came from `asker`: its target is at `mac`. A
    /// probe is answered to everybody (section 7.2.4).
    pub fn answer(&self, mac: Mac, asker: Mac, out: &mut Vec<u8>) {
        let (to, listener, flags) = match self.sender.is_unspecified() {
            true => {
                let everybody = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
                (Mac([0x33, 0x33, 0, 0, 0, 1]), everybody, OVERRIDE)
            }
            false => (self.mac.unwrap_or(asker), self.sender, SOLICITED | OVERRIDE),
        };
        let ends = (self.target, listener);
        write(out, (mac, to), ends, (ADVERTISEMENT, flags), self.target);
    }
}

/// The MAC in the first option of this kind. `None` if the options lie about their lengths.
#[expect(clippy::option_option, reason = "unsound, absent, there")]
fn option(mut options: &[u8], kind: u8) -> Option<Option<Mac>> {
    let mut found = None;
    while let [this, words, rest @ ..] = options {
        let len = usize::from(*words) * 8;
        if len == 0 || len > options.len() {
            return None;
        }
        if *this == kind && found.is_none() {
            found = Some(Mac(rest[..6].try_into().expect("eight bytes and no less")));
        }
        options = &options[len..];
    }
    options.is_empty().then_some(found)
}

fn write(
    out: &mut Vec<u8>,
    (from, to): (Mac, Mac),
    (source, target): (Ipv6Addr, Ipv6Addr),
    (kind, flags): (u8, u8),
    about: Ipv6Addr,
) {
    out.extend_from_slice(&to.0);
    out.extend_from_slice(&from.0);
    out.extend_from_slice(&[0x86, 0xdd]);
    let len = (MESSAGE_LEN as u16).to_be_bytes();
    out.extend_from_slice(&[0x60, 0, 0, 0, len[0], len[1], number::ICMPV6, HOP_LIMIT]);
    out.extend_from_slice(&source.octets());
    out.extend_from_slice(&target.octets());
    let message = out.len();
    out.extend_from_slice(&[kind, 0, 0, 0, flags, 0, 0, 0]);
    out.extend_from_slice(&about.octets());
    let option = if kind == SOLICITATION {
        SOURCE_MAC
    } else {
        TARGET_MAC
    };
    out.extend_from_slice(&[option, 1]);
    out.extend_from_slice(&from.0);
    let pseudo = checksum::pseudo_header(source.into(), target.into(), number::ICMPV6, MESSAGE_LEN);
    let sum = Sum::of(&out[message..]).plus(pseudo).checksum();
    out[message + 2..message + 4].copy_from_slice(&sum.to_be_bytes());
    debug_assert_eq!(out.len(), ETHERNET_LEN + 40 + MESSAGE_LEN);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Layout, Offload};

    const US: Mac = Mac([2, 0, 0, 0, 5, 1]);
    const THEM: Mac = Mac([2, 0, 0, 0, 5, 9]);

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().expect("an address")
    }

    fn read(frame: &[u8]) -> Option<Discovery> {
        let layout = Layout::parse(frame, false).expect("a good frame");
        let mut bytes = frame.to_vec();
        Discovery::read(&Packet::over(&mut bytes, layout, Offload::default()))
    }

    #[test]
    fn a_question_and_its_answer() {
        let mut frame = Vec::new();
        Discovery::ask(THEM, ip("fd00::9"), ip("fd00::1234:5678"), &mut frame);
        assert_eq!(&frame[..6], [0x33, 0x33, 0xff, 0x34, 0x56, 0x78]);
        let asked = read(&frame).expect("sound");
        let wanted = Discovery {
            is_request: true,
            sender: ip("fd00::9"),
            target: ip("fd00::1234:5678"),
            mac: Some(THEM),
        };
        assert_eq!(asked, wanted);
        let mut reply = Vec::new();
        asked.answer(US, THEM, &mut reply);
        assert_eq!(&reply[..12], [THEM.0, US.0].concat());
        let told = read(&reply).expect("sound");
        assert_eq!(
            (told.is_request, told.target, told.mac),
            (false, asked.target, Some(US))
        );
        assert_eq!(reply[14 + 40 + 4], SOLICITED | OVERRIDE);
    }

    #[test]
    fn a_probe_is_answered_to_everybody() {
        let probe = Discovery {
            is_request: true,
            sender: Ipv6Addr::UNSPECIFIED,
            target: ip("fd00::1"),
            mac: None,
        };
        let mut reply = Vec::new();
        probe.answer(US, THEM, &mut reply);
        assert_eq!(&reply[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(&reply[38..54], ip("ff02::1").octets());
        assert_eq!(reply[14 + 40 + 4], OVERRIDE);
    }

    #[test]
    fn what_is_not_sound_is_not_read() {
        let mut good = Vec::new();
        Discovery::ask(THEM, ip("fd00::9"), ip("fd00::1"), &mut good);
        let spoilt = |at: usize, byte: u8| {
            let mut frame = good.clone();
            frame[at] = byte;
            frame
        };
        // From beyond a router, of another code, with a wrong sum, with an option of no length, with
        // one that is longer than the message.
        for frame in [
            spoilt(21, 254),
            spoilt(55, 1),
            spoilt(56, good[56] ^ 1),
            spoilt(79, 0),
            spoilt(79, 2),
        ] {
            assert_eq!(read(&frame), None);
        }
        assert!(read(&good).is_some());
    }
}
