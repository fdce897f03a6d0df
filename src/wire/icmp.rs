//! ICMP (RFC 792) and ICMPv6 (RFC 4443): what kind of message it is, the packet an error quotes, and
//! rewriting that quotation in place.

use std::net::IpAddr;

use super::checksum::{self, Delta, Sum};
use super::packet::{Fragment, Kind, Layout, Packet, number};

/// The messages that mean something to a director.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Echo request.
    Echo,
    /// Timestamp request; IPv4 only.
    Timestamp,
    /// An error that IPVS relates to a connection: unreachable, source quench, time exceeded; for
    /// ICMPv6 every type below 128.
    Error,
    /// Anything else.
    Other,
}

/// Length of an echo's header: its identifier and number are in it.
const ECHO_LEN: usize = 8;
/// Offset of the quoted packet inside the message.
const QUOTE_AT: usize = 8;

impl Packet<'_> {
    /// Is it an ICMP message whose header is whole?
    pub fn is_icmp(&self) -> bool {
        self.layout.transport
            && match self.layout.kind {
                Kind::V4 => self.layout.protocol == number::ICMP,
                Kind::V6 => self.layout.protocol == number::ICMPV6,
                _ => false,
            }
    }

    /// The kind of ICMP message; call it only if `is_icmp`.
    pub fn icmp_message(&self) -> Message {
        let kind = self.bytes[self.l4()];
        match (self.layout.kind, kind) {
            (Kind::V4, 8) | (Kind::V6, 128) => Message::Echo,
            (Kind::V4, 13) => Message::Timestamp,
            (Kind::V4, 3 | 4 | 11) | (Kind::V6, 0..128) => Message::Error,
            _ => Message::Other,
        }
    }

    /// Type and code of an ICMP message.
    pub fn icmp_type_code(&self) -> (u8, u8) {
        (self.bytes[self.l4()], self.bytes[self.l4() + 1])
    }

    /// Is the message's own checksum right?
    pub fn icmp_sum_holds(&self) -> bool {
        self.icmp_sum().folded() == 0xffff
    }

    fn icmp_sum(&self) -> Sum {
        let body = self.transport();
        match self.layout.kind {
            Kind::V6 => Sum::of(body).plus(checksum::pseudo_header(
                self.source(),
                self.target(),
                number::ICMPV6,
                body.len(),
            )),
            _ => Sum::of(body),
        }
    }

    fn refresh_icmp_sum(&mut self) {
        let at = self.l4() + 2;
        self.bytes[at..at + 2].fill(0);
        let sum = self.icmp_sum().checksum();
        self.bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }

    /// Type and code of an ICMP message, and the four bytes behind its checksum.
    pub fn icmp_words(&self) -> (u8, u8, u32) {
        let (kind, code) = self.icmp_type_code();
        let rest = &self.transport()[4..QUOTE_AT];
        (
            kind,
            code,
            u32::from_be_bytes(rest.try_into().expect("four bytes")),
        )
    }

    /// The bytes that an ICMP error quotes, which may be none.
    pub fn quoted(&self) -> &[u8] {
        self.transport().get(QUOTE_AT..).unwrap_or_default()
    }

    /// What an ICMP error is about.
    pub fn quote(&self) -> Option<Quote> {
        let bytes = self.transport().get(QUOTE_AT..)?;
        let layout = Layout::parse_quoted(bytes, self.layout.kind).ok()?;
        Some(Quote::read(bytes, layout))
    }
}

impl Quote {
    /// Reads a quoted packet, whose layout is counted from its first byte.
    pub fn read(bytes: &[u8], layout: Layout) -> Quote {
        let port = |at: usize| {
            let at = usize::from(layout.l4) + at;
            if layout.transport {
                u16::from_be_bytes([bytes[at], bytes[at + 1]])
            } else {
                0
            }
        };
        let address = |v4: usize, v6: usize| -> IpAddr {
            if layout.kind == Kind::V4 {
                let octets: [u8; 4] = bytes[v4..v4 + 4].try_into().expect("four bytes");
                octets.into()
            } else {
                let octets: [u8; 16] = bytes[v6..v6 + 16].try_into().expect("sixteen bytes");
                octets.into()
            }
        };
        Quote {
            layout,
            source: address(12, 8),
            target: address(16, 24),
            source_port: port(0),
            target_port: port(2),
        }
    }

    /// Does it name both ports, so that it can belong to a connection?
    pub fn has_ports(&self) -> bool {
        self.layout.transport
    }
}

impl Packet<'_> {
    /// Rewrites the source of the quoted packet, its IP header sum and the message's sum. The quoted
    /// transport checksum stays as it is (`ip_vs_nat_icmp`).
    pub fn set_quoted_source(&mut self, quote: &Quote, address: IpAddr, port: u16) {
        self.rewrite_quote(quote, (12, 8), 0, address, port);
    }

    /// Rewrites the target of the quoted packet, likewise.
    pub fn set_quoted_target(&mut self, quote: &Quote, address: IpAddr, port: u16) {
        self.rewrite_quote(quote, (16, 24), 2, address, port);
    }

    fn rewrite_quote(
        &mut self,
        quote: &Quote,
        at: (usize, usize),
        port_at: usize,
        address: IpAddr,
        port: u16,
    ) {
        let start = self.l4() + QUOTE_AT;
        match address {
            IpAddr::V4(address) => {
                let at = start + at.0;
                self.bytes[at..at + 4].copy_from_slice(&address.octets());
                let header = start..start + usize::from(quote.layout.l4);
                self.bytes[start + 10..start + 12].fill(0);
                let sum = Sum::of(&self.bytes[header]).checksum();
                self.bytes[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
            }
            IpAddr::V6(address) => {
                let at = start + at.1;
                self.bytes[at..at + 16].copy_from_slice(&address.octets());
            }
        }
        if quote.layout.transport {
            let at = start + usize::from(quote.layout.l4);
            match quote.layout.protocol {
                number::ICMP | number::ICMPV6 => self.put_ident(at, port),
                _ => self.bytes[at + port_at..][..2].copy_from_slice(&port.to_be_bytes()),
            }
        }
        self.refresh_icmp_sum();
    }

    /// Of an echo, request or reply: is it a request, and its identifier.
    pub fn echo(&self) -> Option<Echo> {
        let body = self.transport();
        let whole = self.is_icmp() && self.layout.fragment == Fragment::Whole;
        whole.then(|| echo_in(self.layout.kind, body)).flatten()
    }

    /// Replaces the identifier of an echo and repairs the sum by difference.
    pub fn set_echo_ident(&mut self, ident: u16) {
        self.put_ident(self.l4(), ident);
    }

    fn put_ident(&mut self, icmp_at: usize, ident: u16) {
        let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let (old, sum) = (word(self.bytes, icmp_at + 4), word(self.bytes, icmp_at + 2));
        let sum = Delta::none().word(old, ident).apply(sum);
        self.bytes[icmp_at + 2..icmp_at + 4].copy_from_slice(&sum.to_be_bytes());
        self.bytes[icmp_at + 4..icmp_at + 6].copy_from_slice(&ident.to_be_bytes());
    }

    /// The echo that an ICMP error quotes.
    pub fn quoted_echo(&self, quote: &Quote) -> Option<Echo> {
        let icmp = matches!(quote.layout.protocol, number::ICMP | number::ICMPV6);
        if !icmp || !quote.has_ports() {
            return None;
        }
        let at = QUOTE_AT + usize::from(quote.layout.l4);
        let header = self.transport().get(at..at + ECHO_LEN)?;
        echo_in(quote.layout.kind, header)
    }

    /// Replaces an ICMP message's own source address; an ICMPv6 sum covers it.
    pub fn set_icmp_source(&mut self, address: IpAddr) {
        self.set_source(address, 0);
        self.after_icmp_readdress();
    }

    /// Replaces an ICMP message's own target address; an ICMPv6 sum covers it.
    pub fn set_icmp_target(&mut self, address: IpAddr) {
        self.set_target(address, 0);
        self.after_icmp_readdress();
    }

    fn after_icmp_readdress(&mut self) {
        if self.layout.kind == Kind::V6 {
            self.refresh_icmp_sum();
        }
    }
}

/// An echo, request or reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// It asks.
    pub is_request: bool,
    /// By what the one who asks knows the reply.
    pub ident: u16,
}

/// Reads the first eight bytes of an ICMP message (RFC 792, RFC 4443 section 4).
fn echo_in(kind: Kind, message: &[u8]) -> Option<Echo> {
    let is_request = match (kind, message.first()?) {
        (Kind::V4, 8) | (Kind::V6, 128) => true,
        (Kind::V4, 0) | (Kind::V6, 129) => false,
        _ => return None,
    };
    let ident: [u8; 2] = message.get(4..6)?.try_into().ok()?;
    (message.len() >= QUOTE_AT).then_some(Echo {
        is_request,
        ident: u16::from_be_bytes(ident),
    })
}

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug)]
pub struct Quote {
    /// Where things lie in it, counted from its first byte.
    pub layout: Layout,
    /// Its source address.
    pub source: IpAddr,
    /// Its target address.
    pub target: IpAddr,
    /// Its source port; 0 where it is cut off.
    pub source_port: u16,
    /// Its target port; 0 where it is cut off.
    pub target_port: u16,
}
