//! Captures: what was written is read, times and all; cut-off and garbled files end with an error.

use pcap_file::pcapng::PcapNgReader;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;

use crate::nic::pcap::{CaptureInterface, CaptureReader, CaptureWriter, Captured, PcapRx};
use crate::time::Instant;
use crate::wire::{NicError, Rx};

fn interfaces() -> Vec<CaptureInterface> {
    [("public", false), ("tun0", true)]
        .map(|(name, raw_ip)| CaptureInterface {
            name: name.to_string(),
            raw_ip,
        })
        .to_vec()
}

fn packet(number: u8) -> Captured {
    let len = usize::from(number) * 7;
    Captured {
        time: Instant::from_nanos(1_795_166_100_123_456_789 + u64::from(number)),
        interface: usize::from(number % 2),
        raw_ip: number % 2 == 1,
        original_len: len + usize::from(number.is_multiple_of(3)),
        bytes: vec![number; len],
    }
}

fn pcapng() -> Vec<u8> {
    let mut writer = CaptureWriter::new(Vec::new(), &interfaces()).unwrap();
    for number in 0..10 {
        let comment = if number == 4 {
            ""
        } else {
            "forward  masq → rs1"
        };
        writer.write(&packet(number), comment).unwrap();
    }
    writer.finish().unwrap()
}

/// A pcap file in the old format: big or little end first, of this magic number.
fn pcap(magic: u32, link: u32, little: bool) -> Vec<u8> {
    let word = |value: u32| {
        if little {
            value.to_le_bytes()
        } else {
            value.to_be_bytes()
        }
    };
    let mut bytes = word(magic).to_vec();
    bytes.extend(word(if little { 0x0004_0002 } else { 0x0002_0004 }));
    for value in [0, 0, 96, link] {
        bytes.extend(word(value));
    }
    // The second was longer than the 96 bytes of the capture.
    for (len, original) in [(60, 60), (96, 1514)] {
        for value in [1_795_166_100, 123_456, len, original] {
            bytes.extend(word(value));
        }
        bytes.extend(vec![7; len as usize]);
    }
    bytes
}

fn read(bytes: &[u8]) -> Result<Vec<Captured>, String> {
    let mut reader = CaptureReader::new(bytes).map_err(|error| error.to_string())?;
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_packet().map_err(|error| error.to_string())? {
        packets.push(packet);
    }
    Ok(packets)
}

#[test]
fn pcapng_survives_the_round_trip() {
    let bytes = pcapng();
    let written: Vec<Captured> = (0..10).map(packet).collect();
    assert_eq!(read(&bytes).unwrap(), written);
    let mut reader = CaptureReader::new(bytes.as_slice()).unwrap();
    assert_eq!(reader.interface_name(0), None);
    reader.next_packet().unwrap();
    assert_eq!(reader.interface_name(0), Some("public"));
    assert_eq!(reader.interface_name(1), Some("tun0"));
    assert_eq!(reader.interface_name(2), None);
}

#[test]
fn comments_are_there_and_bounded() {
    let mut writer = CaptureWriter::new(Vec::new(), &interfaces()).unwrap();
    let long = "→".repeat(40_000);
    writer.write(&packet(2), "short").unwrap();
    writer.write(&packet(4), &long).unwrap();
    let bytes = writer.finish().unwrap();
    let mut reader = PcapNgReader::new(bytes.as_slice()).unwrap();
    let mut comments = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Some(packet) = block.unwrap().into_owned().into_enhanced_packet() {
            comments.extend(packet.options);
        }
    }
    let texts: Vec<_> = comments
        .iter()
        .map(|option| match option {
            EnhancedPacketOption::Comment(text) => text.as_ref(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(texts, ["short", &"→".repeat(20_000)]);
    let mut elsewhere = packet(2);
    elsewhere.interface = 5;
    let mut writer = CaptureWriter::new(Vec::new(), &interfaces()).unwrap();
    let error = writer.write(&elsewhere, "").unwrap_err().to_string();
    assert_eq!(error, "it is of interface 5, which is not described");
}

#[test]
fn pcap_is_read_in_both_byte_orders_and_resolutions() {
    for (magic, nanos) in [(0xa1b2_c3d4, 123_456_000), (0xa1b2_3c4d, 123_456)] {
        for little in [false, true] {
            let packets = read(&pcap(magic, 1, little)).unwrap();
            assert_eq!(packets.len(), 2);
            let time = Instant::from_nanos(1_795_166_100_000_000_000 + nanos);
            assert_eq!((packets[0].time, packets[0].raw_ip), (time, false));
            assert_eq!(
                (packets[1].bytes.len(), packets[1].original_len),
                (96, 1514)
            );
            assert!(read(&pcap(magic, 101, little)).unwrap()[0].raw_ip);
        }
    }
}

/// A pcapng interface whose times are not in nanoseconds.
#[test]
fn times_are_read_in_the_interfaces_own_units() {
    for (resolution, units, nanos) in [
        (6u8, 5_000_001u64, 5_000_001_000u64),
        (9, 5_000_001, 5_000_001),
        (0, 5, 5_000_000_000),
        (0x80 | 10, 1024 + 512, 1_500_000_000),
        (0x7f, u64::MAX, 0),
        (0xff, u64::MAX, 0),
    ] {
        let mut bytes = CaptureWriter::new(Vec::new(), &interfaces()).unwrap();
        let mut one = packet(2);
        one.time = Instant::from_nanos(units);
        bytes.write(&one, "").unwrap();
        let mut bytes = bytes.finish().unwrap();
        // The option if_tsresol: kind 9, length 1, the value.
        let little = cfg!(target_endian = "little");
        let option: &[u8] = if little {
            &[9, 0, 1, 0, 9]
        } else {
            &[0, 9, 0, 1, 9]
        };
        let at = bytes
            .windows(5)
            .position(|window| window == option)
            .unwrap();
        bytes[at + 4] = resolution;
        let got = read(&bytes).unwrap()[0].time.as_nanos();
        assert_eq!(got, nanos, "resolution {resolution:#x}");
    }
}

#[test]
fn what_cannot_be_read_is_explained() {
    let say = |bytes: &[u8]| read(bytes).unwrap_err();
    assert_eq!(say(b""), "it is too short to be a capture");
    assert_eq!(say(b"hello, world"), "it is neither pcap nor pcapng");
    assert!(say(&[0x1f, 0x8b, 8, 0]).contains("gunzip"));
    assert!(say(&pcap(0xa1b2_c3d4, 113, true)).contains("tcpdump -i eth0"));
    assert!(say(&pcap(0xa1b2_c3d4, 105, true)).contains("only Ethernet and raw IP"));
    let whole = pcap(0xa1b2_c3d4, 1, true);
    let cut = &whole[..whole.len() - 1];
    let wanted = "packet 2, at byte 100: the file ends in the middle of it";
    assert_eq!(say(cut), wanted);
    let mut garbled = pcapng();
    let at = garbled.len() - 4;
    garbled[at] ^= 4;
    let said = say(&garbled);
    let place = garbled.len() - usize::from(garbled[at] ^ 4);
    assert!(
        said.starts_with(&format!("packet 10, at byte {place}: it is garbled")),
        "{said}"
    );
    let error = CaptureReader::open("/nowhere/x.pcap".as_ref()).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot open /nowhere/x.pcap: ")
    );
}

/// Every cut and every flipped byte: an end or an error, in bounded time, and no panic.
#[test]
fn garbled_captures_never_panic() {
    for whole in [
        pcapng(),
        pcap(0xa1b2_c3d4, 1, true),
        pcap(0xa1b2_3c4d, 101, false),
    ] {
        for len in 0..whole.len() {
            let _ = read(&whole[..len]);
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut garbled = whole.clone();
                garbled[at] = value;
                if let Ok(packets) = read(&garbled) {
                    assert!(packets.len() <= 64);
                }
            }
        }
    }
}

#[test]
fn a_capture_is_a_wire() {
    let mut bytes = pcapng();
    let mut rx = PcapRx::new(CaptureReader::new(bytes.as_slice()).unwrap());
    assert_eq!(rx.fill(), Ok(10));
    for number in 0..10 {
        let wanted = packet(number);
        let view = rx.view(number.into());
        assert_eq!(
            (view.bytes, view.raw_ip),
            (&wanted.bytes[..], wanted.raw_ip)
        );
        assert_eq!(rx.time(number.into()), wanted.time);
    }
    rx.frame(3).bytes_mut()[0] = 99;
    assert_eq!(rx.view(3).bytes[0], 99);
    rx.release();
    assert_eq!(rx.fill(), Ok(0));
    let counters = rx.counters();
    assert_eq!((counters.received, counters.truncated), (10, 4));
    assert!(rx.error().is_none() && rx.wait_fd().is_none());
    // What came before the cut is delivered first.
    bytes.truncate(bytes.len() - 4);
    let mut rx = PcapRx::new(CaptureReader::new(bytes.as_slice()).unwrap());
    assert_eq!(rx.fill(), Ok(9));
    rx.release();
    assert_eq!(rx.fill(), Err(NicError::Errno(libc::EIO)));
    assert!(
        rx.error()
            .unwrap()
            .to_string()
            .starts_with("packet 10, at byte ")
    );
}
