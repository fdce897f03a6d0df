//! Offload: what `virtio_net_hdr` says of a frame (virtio 1.2 section 5.1.6). A sender on the same
//! machine leaves the transport checksum unfinished and may hand over a super-frame of many segments;
//! NAT must keep both true.

/// Length of the header that the kernel puts before a frame with `PACKET_VNET_HDR` or `IFF_VNET_HDR`.
pub const VNET_HEADER_LEN: usize = 10;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;

const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// The first segment alone says that the sender's window was reduced (CWR).
const GSO_ECN: u8 = 0x80;

/// The decoded header. The default says nothing: the checksum is complete and it is one segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    flags: u8,
    gso_type: u8,
    header_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Offload {
    /// Reads the header as the kernel wrote it (host order, as on every legacy interface).
    pub fn decode(bytes: &[u8; VNET_HEADER_LEN]) -> Offload {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Offload {
            flags: bytes[0],
            gso_type: bytes[1],
            header_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// Writes the header as the kernel reads it. A received "checksum was verified" is not passed on:
    /// it is a statement about the past.
    pub fn encode(&self) -> [u8; VNET_HEADER_LEN] {
        let mut bytes = [0; VNET_HEADER_LEN];
        bytes[0] = self.flags & !F_DATA_VALID;
        bytes[1] = self.gso_type;
        let words = [
            self.header_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
        ];
        for (at, word) in words.iter().enumerate() {
            bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// The checksum field holds only the sum over the pseudo-header; the device finishes it.
    pub const fn is_partial(&self) -> bool {
        self.flags & F_NEEDS_CSUM != 0
    }

    /// A super-frame: longer than the MTU, to be cut by the device.
    pub const fn is_gso(&self) -> bool {
        self.gso_type != 0
    }

    /// A super-frame of TCP segments, of either family.
    pub const fn is_tcp_gso(&self) -> bool {
        matches!(self.gso_type & !GSO_ECN, GSO_TCPV4 | GSO_TCPV6)
    }

    /// A super-frame of whole UDP datagrams; not one to be fragmented.
    pub const fn is_udp_gso(&self) -> bool {
        self.gso_type == GSO_UDP_L4
    }

    /// Payload bytes of each segment of a super-frame; 0 if it is none.
    pub const fn segment_len(&self) -> u16 {
        self.gso_size
    }

    /// Where the unfinished sum begins, counted from the frame's first byte.
    pub const fn csum_start(&self) -> usize {
        self.csum_start as usize
    }

    /// Where it is to be written, counted from `csum_start`.
    pub const fn csum_offset(&self) -> usize {
        self.csum_offset as usize
    }

    /// A frame whose transport checksum the device shall finish; for frames built here.
    pub const fn partial(csum_start: u16, csum_offset: u16) -> Offload {
        Offload {
            flags: F_NEEDS_CSUM,
            gso_type: 0,
            header_len: 0,
            gso_size: 0,
            csum_start,
            csum_offset,
        }
    }

    /// A super-frame of UDP datagrams for frames built here: `udp` is where its UDP header begins, each
    /// datagram but the last carries `len` bytes.
    pub const fn datagrams(udp: u16, len: u16) -> Offload {
        Offload {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_UDP_L4,
            header_len: udp + 8,
            gso_size: len,
            csum_start: udp,
            csum_offset: 6,
        }
    }

    /// The frame grew by `by` bytes before its network header (a VLAN tag put back, an outer header).
    pub fn shift(&mut self, by: i32) {
        let moved = |at: u16| u16::try_from(i32::from(at) + by).unwrap_or(0);
        if self.is_partial() {
            self.csum_start = moved(self.csum_start);
        }
        if self.is_gso() {
            self.header_len = moved(self.header_len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_survives_the_round_trip() {
        let mut bytes = [0; VNET_HEADER_LEN];
        bytes[0] = F_NEEDS_CSUM | F_DATA_VALID;
        bytes[1] = 1;
        bytes[2..4].copy_from_slice(&66u16.to_ne_bytes());
        bytes[4..6].copy_from_slice(&1448u16.to_ne_bytes());
        bytes[6..8].copy_from_slice(&34u16.to_ne_bytes());
        bytes[8..10].copy_from_slice(&16u16.to_ne_bytes());
        let offload = Offload::decode(&bytes);
        assert!(offload.is_partial() && offload.is_gso());
        assert_eq!((offload.csum_start(), offload.csum_offset()), (34, 16));
        bytes[0] = F_NEEDS_CSUM;
        assert_eq!(offload.encode(), bytes);
    }

    #[test]
    fn a_vlan_tag_moves_the_checksum() {
        let mut offload = Offload::partial(34, 16);
        offload.shift(4);
        assert_eq!(offload.csum_start(), 38);
    }
}
