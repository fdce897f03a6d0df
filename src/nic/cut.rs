//! Super-frames of UDP datagrams, cut here for kernels that do not take them from us: AF_PACKET and TUN
//! know them since Linux 6.2 (`VIRTIO_NET_HDR_GSO_UDP_L4`). An older kernel refuses each of them with
//! EINVAL, so none has to be asked beforehand.

use crate::wire::gso::Segments;
use crate::wire::{FrameView, Layout, Offload, Packet};

/// The datagrams of a super-frame, each a whole frame with its sums. `None` if it is no super-frame of UDP,
/// or not a sound one.
pub(super) fn datagrams(view: &FrameView<'_>) -> Option<Vec<Vec<u8>>> {
    if !view.offload.is_udp_gso() {
        return None;
    }
    let layout = Layout::parse(view.bytes, view.raw_ip).ok()?;
    let mut bytes = view.bytes.to_vec();
    let packet = Packet::over(&mut bytes, layout, view.offload);
    let segments = Segments::new(&packet)?;
    let link = &view.bytes[..usize::from(layout.l3)];
    let cut = (0..segments.len()).map(|index| {
        let mut frame = link.to_vec();
        segments.write(index, &mut frame);
        frame
    });
    Some(cut.collect())
}

/// A frame that was cut here.
pub(super) fn view(bytes: &[u8], raw_ip: bool) -> FrameView<'_> {
    FrameView {
        bytes,
        offload: Offload::default(),
        raw_ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::checksum::Sum;

    /// A super-frame of three datagrams, with an Ethernet header.
    fn super_frame() -> Vec<u8> {
        let mut ip = vec![
            0x45, 0, 0, 0, 0, 7, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        ip[2..4].copy_from_slice(&278u16.to_be_bytes());
        let sum = Sum::of(&ip).checksum();
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut bytes = vec![2; 12];
        bytes.extend([8, 0]);
        bytes.extend(ip);
        bytes.extend([0x9c, 0x40, 0, 53, 1, 2, 0, 0]);
        bytes.extend(0..250u8);
        bytes
    }

    #[test]
    fn each_datagram_is_a_frame() {
        let bytes = super_frame();
        let offload = Offload::datagrams(34, 100);
        let whole = FrameView {
            bytes: &bytes,
            offload,
            raw_ip: false,
        };
        let cut = datagrams(&whole).expect("a super-frame");
        let data: Vec<u8> = cut.iter().flat_map(|frame| frame[42..].to_vec()).collect();
        assert_eq!(data, bytes[42..]);
        for mut frame in cut {
            assert_eq!(frame[..14], bytes[..14]);
            let layout = Layout::parse(&frame, false).expect("a frame");
            let packet = Packet::over(&mut frame, layout, Offload::default());
            assert!(packet.transport_sum_holds());
        }
        let raw = FrameView {
            bytes: &bytes[14..],
            offload: Offload::datagrams(20, 100),
            raw_ip: true,
        };
        assert_eq!(datagrams(&raw).map(|cut| cut.len()), Some(3));
        assert_eq!(
            datagrams(&FrameView {
                offload: Offload::partial(34, 6),
                ..whole
            }),
            None
        );
        assert_eq!(
            datagrams(&FrameView {
                bytes: &bytes[..40],
                ..whole
            }),
            None
        );
    }
}
