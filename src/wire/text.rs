//! One line that says what a frame is, for stories and captures. Read by etherparse, which knows more
//! than the packet path needs. It never fails: what is cut off or unknown is called so. Nothing
//! decides by what is written here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    ArpOperation, ArpPacketSlice, EtherType, IpAuthHeaderSlice, IpNumber, Ipv6FragmentHeaderSlice,
    Ipv6RawExtHeaderSlice, LaxNetSlice, LaxSlicedPacket, TcpSlice, TransportSlice,
};

use super::Mac;

/// Chunks of an SCTP packet that are named; what comes behind is data most of the time.
const SCTP_CHUNKS_NAMED_MAX: usize = 3;

/// Says what a frame is. It begins with an Ethernet header, or with IP if `raw_ip`.
pub fn describe(frame: &[u8], raw_ip: bool) -> String {
    let sliced = if raw_ip {
        LaxSlicedPacket::from_ip(frame).ok()
    } else {
        LaxSlicedPacket::from_ethernet(frame).ok()
    };
    let Some(sliced) = sliced else {
        return format!("{} bytes that are no packet", frame.len());
    };
    let mut text: String = sliced
        .vlan_ids()
        .iter()
        .map(|id| format!("VLAN {} ", id.value()))
        .collect();
    match &sliced.net {
        Some(LaxNetSlice::Arp(arp)) => text += &arp_text(arp),
        Some(net) => match IpPart::of(net) {
            Some(ip) => text += &ip.text(sliced.transport.as_ref()),
            None => text += "IP",
        },
        None => text += &other_text(frame, &sliced),
    }
    if let Some((_, layer)) = &sliced.stop_err {
        text += &format!("; the {layer} is cut off or wrong");
    }
    text
}

fn other_text(frame: &[u8], sliced: &LaxSlicedPacket<'_>) -> String {
    let mac = |at: usize| frame.get(at..at + 6).and_then(|mac| mac.try_into().ok());
    let (to, from) = (mac(0).map(Mac), mac(6).map(Mac));
    let kind = sliced.ether_payload().map(|payload| payload.ether_type);
    let name = match kind {
        Some(EtherType(len)) if len < 0x0600 => "802.3 frame".to_string(),
        Some(EtherType(0x88cc)) => "LLDP".to_string(),
        Some(EtherType::IPV4) => "IPv4".to_string(),
        Some(EtherType::IPV6) => "IPv6".to_string(),
        Some(EtherType::ARP) => "ARP".to_string(),
        Some(EtherType(kind)) => format!("Ethernet type {kind:#06x}"),
        None => "frame".to_string(),
    };
    let len = frame.len();
    match (from, to) {
        (Some(from), Some(to)) => format!("{name} from {from} to {to}, {len} bytes"),
        _ => format!("{name}, {len} bytes"),
    }
}

fn arp_text(arp: &ArpPacketSlice<'_>) -> String {
    let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from);
    let mac = |bytes: &[u8]| <[u8; 6]>::try_from(bytes).ok().map(Mac);
    let parts = (
        address(arp.sender_protocol_addr()),
        address(arp.target_protocol_addr()),
        mac(arp.sender_hw_addr()),
    );
    let (Some(sender), Some(target), Some(sender_mac)) = parts else {
        return "ARP of another kind than IPv4 over Ethernet".to_string();
    };
    match arp.operation() {
        ArpOperation::REQUEST if sender == target => {
            format!("ARP {sender} is at {sender_mac} (announced)")
        }
        ArpOperation::REQUEST if sender.is_unspecified() => {
            format!("ARP who has {target}? asks {sender_mac}, before it takes the address")
        }
        ArpOperation::REQUEST => format!("ARP who has {target}? tell {sender} ({sender_mac})"),
        ArpOperation::REPLY => format!("ARP {sender} is at {sender_mac}"),
        ArpOperation(other) => format!("ARP operation {other} of {sender} ({sender_mac})"),
    }
}

/// What the line says of an IP packet, whichever version it has.
struct IpPart<'a> {
    source: IpAddr,
    target: IpAddr,
    ttl: u8,
    /// Length that the header announces.
    len: usize,
    protocol: IpNumber,
    fragment: Option<Fragment>,
    payload: &'a [u8],
}

struct Fragment {
    id: u32,
    /// In bytes.
    offset: usize,
    more: bool,
}

impl<'a> IpPart<'a> {
    fn of(net: &'a LaxNetSlice<'a>) -> Option<IpPart<'a>> {
        match net {
            LaxNetSlice::Ipv4(ip) => {
                let header = ip.header();
                let offset = usize::from(header.fragments_offset().byte_offset());
                let fragment = Fragment {
                    id: header.identification().into(),
                    offset,
                    more: header.more_fragments(),
                };
                let payload = ip.payload();
                Some(IpPart {
                    source: header.source_addr().into(),
                    target: header.destination_addr().into(),
                    ttl: header.ttl(),
                    len: header.total_len().into(),
                    protocol: payload.ip_number,
                    fragment: header.is_fragmenting_payload().then_some(fragment),
                    payload: payload.payload,
                })
            }
            LaxNetSlice::Ipv6(ip) => {
                let header = ip.header();
                let fragment = fragment_v6(header.next_header(), ip.extensions().slice());
                let payload = ip.payload();
                Some(IpPart {
                    source: header.source_addr().into(),
                    target: header.destination_addr().into(),
                    ttl: header.hop_limit(),
                    len: 40 + usize::from(header.payload_length()),
                    protocol: payload.ip_number,
                    fragment,
                    payload: payload.payload,
                })
            }
            LaxNetSlice::Arp(_) => None,
        }
    }

    fn text(&self, transport: Option<&TransportSlice<'_>>) -> String {
        let (source, target) = self.ends();
        let name = protocol_name(self.protocol);
        let detail = match &self.fragment {
            Some(fragment) => fragment.text(self.payload.len()),
            None => self.detail(transport),
        };
        let (ttl, len) = (self.ttl, self.len);
        let hops = if self.source.is_ipv4() {
            "ttl"
        } else {
            "hop limit"
        };
        let detail = if detail.is_empty() {
            detail
        } else {
            format!(" {detail}")
        };
        format!("{source} > {target} {name}{detail}, {hops} {ttl}, {len} bytes")
    }

    /// Both ends, with ports where the packet has them.
    fn ends(&self) -> (String, String) {
        let ported = matches!(
            self.protocol,
            IpNumber::TCP | IpNumber::UDP | IpNumber::SCTP
        );
        let later = self.fragment.as_ref().is_some_and(|part| part.offset != 0);
        match self.payload {
            [a, b, c, d, ..] if ported && !later => {
                let ports = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
                let source = SocketAddr::new(self.source, ports.0).to_string();
                (source, SocketAddr::new(self.target, ports.1).to_string())
            }
            _ => (self.source.to_string(), self.target.to_string()),
        }
    }

    fn detail(&self, transport: Option<&TransportSlice<'_>>) -> String {
        match transport {
            Some(TransportSlice::Tcp(tcp)) => tcp_text(tcp),
            Some(TransportSlice::Udp(udp)) => {
                format!("data {}", usize::from(udp.length()).saturating_sub(8))
            }
            Some(TransportSlice::Icmpv4(icmp)) => {
                let kind = (icmp.type_u8(), icmp.code_u8());
                icmp_v4_text(kind, icmp.bytes5to8(), icmp.payload())
            }
            Some(TransportSlice::Icmpv6(icmp)) => {
                let kind = (icmp.type_u8(), icmp.code_u8());
                icmp_v6_text(kind, icmp.bytes5to8(), icmp.payload())
            }
            _ if self.protocol == IpNumber::SCTP => sctp_text(self.payload),
            _ => String::new(),
        }
    }
}

/// The fragment header among the extension headers of an IPv6 packet, if it has one that says something.
/// etherparse's own iterator over them trusts that every header is whole, which those of a packet that
/// is cut off are not; so each is read anew, with its length checked.
fn fragment_v6(first: IpNumber, mut rest: &[u8]) -> Option<Fragment> {
    let mut next = first;
    loop {
        let header = match next {
            IpNumber::IPV6_HEADER_HOP_BY_HOP
            | IpNumber::IPV6_ROUTE_HEADER
            | IpNumber::IPV6_DESTINATION_OPTIONS => {
                let header = Ipv6RawExtHeaderSlice::from_slice(rest).ok()?;
                next = header.next_header();
                header.slice()
            }
            IpNumber::AUTHENTICATION_HEADER => {
                let header = IpAuthHeaderSlice::from_slice(rest).ok()?;
                next = header.next_header();
                header.slice()
            }
            IpNumber::IPV6_FRAGMENTATION_HEADER => {
                let header = Ipv6FragmentHeaderSlice::from_slice(rest).ok()?;
                return header.is_fragmenting_payload().then(|| Fragment {
                    id: header.identification(),
                    offset: header.fragment_offset().byte_offset().into(),
                    more: header.more_fragments(),
                });
            }
            _ => return None,
        };
        rest = &rest[header.len()..];
    }
}

impl Fragment {
    fn text(&self, len: usize) -> String {
        let Fragment { id, offset, more } = self;
        let end = offset + len;
        let place = match (offset, more) {
            (0, _) => "the first",
            (_, true) => "a middle one",
            (_, false) => "the last",
        };
        format!("fragment {offset} to {end} of packet {id}, {place}")
    }
}

fn protocol_name(protocol: IpNumber) -> String {
    match protocol {
        IpNumber::ICMP => "ICMP".to_string(),
        IpNumber::IPV6_ICMP => "ICMPv6".to_string(),
        other => match other.keyword_str() {
            Some(keyword) => keyword.to_string(),
            None => format!("protocol {}", other.0),
        },
    }
}

fn tcp_text(tcp: &TcpSlice<'_>) -> String {
    let flags = [
        (tcp.fin(), 'F'),
        (tcp.syn(), 'S'),
        (tcp.rst(), 'R'),
        (tcp.psh(), 'P'),
        (tcp.ack(), 'A'),
        (tcp.urg(), 'U'),
        (tcp.ece(), 'E'),
        (tcp.cwr(), 'C'),
    ];
    let set = flags.iter().filter(|(set, _)| *set);
    let mut letters: String = set.map(|(_, letter)| letter).collect();
    if letters.is_empty() {
        letters.push('-');
    }
    let (seq, data) = (tcp.sequence_number(), tcp.payload().len());
    if tcp.ack() {
        let ack = tcp.acknowledgment_number();
        format!("{letters} seq {seq} ack {ack} data {data}")
    } else {
        format!("{letters} seq {seq} data {data}")
    }
}

/// The chunks of an SCTP packet (RFC 9260 section 3.2), which etherparse does not read.
fn sctp_text(packet: &[u8]) -> String {
    let mut names = Vec::new();
    let mut rest = packet.get(12..).unwrap_or_default();
    while let [kind, _, high, low, ..] = rest {
        if names.len() == SCTP_CHUNKS_NAMED_MAX {
            names.push("…".to_string());
            break;
        }
        names.push(chunk_name(*kind));
        let len = usize::from(u16::from_be_bytes([*high, *low])).max(4);
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    names.join(", ")
}

fn chunk_name(kind: u8) -> String {
    let name = match kind {
        0 => "DATA",
        1 => "INIT",
        2 => "INIT ACK",
        3 => "SACK",
        4 => "HEARTBEAT",
        5 => "HEARTBEAT ACK",
        6 => "ABORT",
        7 => "SHUTDOWN",
        8 => "SHUTDOWN ACK",
        9 => "ERROR",
        10 => "COOKIE ECHO",
        11 => "COOKIE ACK",
        14 => "SHUTDOWN COMPLETE",
        _ => return format!("chunk {kind}"),
    };
    name.to_string()
}

/// ICMP (RFC 792): `word` is what stands behind the checksum.
fn icmp_v4_text((kind, code): (u8, u8), word: [u8; 4], payload: &[u8]) -> String {
    let low = u16::from_be_bytes([word[2], word[3]]);
    let what = match (kind, code) {
        (0 | 8, _) => return echo_text(kind == 8, word, payload.len()),
        (3, 0) => "network unreachable".to_string(),
        (3, 1) => "host unreachable".to_string(),
        (3, 2) => "protocol unreachable".to_string(),
        (3, 3) => "port unreachable".to_string(),
        (3, 4) => format!("too long: at most {low} bytes fit"),
        (3, 9 | 10 | 13) => "administratively prohibited".to_string(),
        (3, code) => format!("unreachable, code {code}"),
        (4, _) => "source quench".to_string(),
        (5, _) => format!("redirect to {}", Ipv4Addr::from(word)),
        (11, 0) => "time to live exceeded".to_string(),
        (11, _) => "reassembly time exceeded".to_string(),
        (12, _) => format!("parameter problem at byte {}", word[0]),
        (kind, code) => return format!("type {kind} code {code}"),
    };
    what + &quote_text(payload)
}

/// ICMPv6 (RFC 4443) and neighbour discovery (RFC 4861).
fn icmp_v6_text((kind, code): (u8, u8), word: [u8; 4], payload: &[u8]) -> String {
    let number = u32::from_be_bytes(word);
    let what = match (kind, code) {
        (128 | 129, _) => return echo_text(kind == 128, word, payload.len()),
        (133, _) => return "router solicitation".to_string(),
        (134, _) => return "router advertisement".to_string(),
        (135 | 136, _) => return neighbour_text(kind == 135, payload),
        (1, 0) => "no route".to_string(),
        (1, 1) => "administratively prohibited".to_string(),
        (1, 3) => "address unreachable".to_string(),
        (1, 4) => "port unreachable".to_string(),
        (1, code) => format!("unreachable, code {code}"),
        (2, _) => format!("too long: at most {number} bytes fit"),
        (3, 0) => "hop limit exceeded".to_string(),
        (3, _) => "reassembly time exceeded".to_string(),
        (4, _) => format!("parameter problem at byte {number}"),
        (kind, code) => return format!("type {kind} code {code}"),
    };
    what + &quote_text(payload)
}

fn echo_text(is_request: bool, word: [u8; 4], len: usize) -> String {
    let id = u16::from_be_bytes([word[0], word[1]]);
    let number = u16::from_be_bytes([word[2], word[3]]);
    let name = if is_request {
        "echo request"
    } else {
        "echo reply"
    };
    format!("{name} id {id} seq {number} data {len}")
}

fn neighbour_text(is_question: bool, payload: &[u8]) -> String {
    let target = payload.first_chunk::<16>().copied().map(Ipv6Addr::from);
    let Some(target) = target else {
        return "neighbour discovery, cut off".to_string();
    };
    // The option that names a MAC address: its own of who asks, the target's of who answers.
    let mac = match payload.get(16..24) {
        Some([1 | 2, 1, mac @ ..]) => mac.try_into().ok().map(Mac),
        _ => None,
    };
    match (is_question, mac) {
        (true, _) => format!("who has {target}?"),
        (false, Some(mac)) => format!("{target} is at {mac}"),
        (false, None) => format!("{target} is here"),
    }
}

/// The packet that an ICMP error is about, as far as it is quoted.
fn quote_text(quoted: &[u8]) -> String {
    let sliced = LaxSlicedPacket::from_ip(quoted).ok();
    let net = sliced.as_ref().and_then(|sliced| sliced.net.as_ref());
    let Some(ip) = net.and_then(IpPart::of) else {
        return ", about something that is cut off".to_string();
    };
    let (source, target) = ip.ends();
    let name = protocol_name(ip.protocol);
    format!(", about {source} > {target} {name}")
}

#[cfg(test)]
mod tests;
