//! ARP for IPv4 over Ethernet (RFC 826): parse, build, gratuitous (RFC 5227 section 3).

use std::net::Ipv4Addr;

use super::Mac;
use super::packet::{ETHERNET_LEN, Packet};

/// What an ARP packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// A question, or else an answer.
    pub is_request: bool,
    /// MAC of who speaks.
    pub sender_mac: Mac,
    /// Address of who speaks; 0.0.0.0 in a probe.
    pub sender: Ipv4Addr,
    /// MAC of who is spoken to; zero in a question.
    pub target_mac: Mac,
    /// Address asked for, or of who is answered.
    pub target: Ipv4Addr,
}

/// Length of the frame that `Arp::frame` builds; Ethernet pads it to 60 on the wire.
pub const FRAME_LEN: usize = ETHERNET_LEN + 28;

const REQUEST: u16 = 1;
const REPLY: u16 = 2;

impl Arp {
    /// Reads a packet of kind `Kind::Arp`; `None` for an operation that is neither question nor answer.
    pub fn read(packet: &Packet<'_>) -> Option<Arp> {
        let body = packet.ip();
        let mac = |at: usize| Mac(body[at..at + 6].try_into().expect("six bytes"));
        let address = |at: usize| {
            let bytes: [u8; 4] = body[at..at + 4].try_into().expect("four bytes");
            Ipv4Addr::from(bytes)
        };
        let is_request = match u16::from_be_bytes([body[6], body[7]]) {
            REQUEST => true,
            REPLY => false,
            _ => return None,
        };
        Some(Arp {
            is_request,
            sender_mac: mac(8),
            sender: address(14),
            target_mac: mac(18),
            target: address(24),
        })
    }

    /// "Who has `target`? Tell `sender`."
    pub const fn request(sender_mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Arp {
        Arp {
            is_request: true,
            sender_mac,
            sender,
            target_mac: Mac([0; 6]),
            target,
        }
    }

    /// The answer to this question: its target is at `mac`.
    pub const fn answered_by(&self, mac: Mac) -> Arp {
        Arp {
            is_request: false,
            sender_mac: mac,
            sender: self.target,
            target_mac: self.sender_mac,
            target: self.sender,
        }
    }

    /// The announcement that `address` is at `mac` now.
    pub const fn gratuitous(mac: Mac, address: Ipv4Addr) -> Arp {
        Arp::request(mac, address, address)
    }

    /// The whole frame: a question goes to everybody, an answer to who asked.
    pub fn frame(&self, out: &mut Vec<u8>) {
        let to = if self.is_request {
            Mac::BROADCAST
        } else {
            self.target_mac
        };
        out.extend_from_slice(&to.0);
        out.extend_from_slice(&self.sender_mac.0);
        out.extend_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4]);
        let operation = if self.is_request { REQUEST } else { REPLY };
        out.extend_from_slice(&operation.to_be_bytes());
        out.extend_from_slice(&self.sender_mac.0);
        out.extend_from_slice(&self.sender.octets());
        out.extend_from_slice(&self.target_mac.0);
        out.extend_from_slice(&self.target.octets());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Layout, Offload};

    #[test]
    fn a_question_gets_its_answer() {
        let (asker, owner) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let question = Arp::request(asker, [10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let mut bytes = Vec::new();
        question.frame(&mut bytes);
        assert_eq!(bytes.len(), FRAME_LEN);
        let layout = Layout::parse(&bytes, false).expect("well formed");
        let read = Arp::read(&Packet::over(&mut bytes, layout, Offload::default()));
        assert_eq!(read, Some(question));
        let answer = question.answered_by(owner);
        assert_eq!((answer.sender, answer.sender_mac), (question.target, owner));
        assert_eq!((answer.target, answer.target_mac), (question.sender, asker));
    }
}
