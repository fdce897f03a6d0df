//! `ulvs trace` on small captures made here: the story of whole connections, the JSON document, the
//! copy with comments, and every kind of capture that cannot be read. How ten connections are told under
//! each scheduler is in `trace/stories.rs`; `ULVS_STORIES=write` writes those texts anew.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use pcap_file::pcapng::PcapNgReader;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use serde_json::Value;
use ulvs::cli::trace::{self, Hints, TraceArgs};
use ulvs::nic::pcap::{CaptureInterface, CaptureWriter, Captured};
use ulvs::time::Instant;
use ulvs::wire::Mac;
use ulvs::wire::arp::Arp;

#[path = "trace/stories.rs"]
mod stories;

const CLIENT: [u8; 4] = [172, 16, 3, 9];
const VIP: [u8; 4] = [1, 2, 3, 1];
const RS1: [u8; 4] = [192, 168, 1, 11];
const RS2: [u8; 4] = [192, 168, 1, 12];
const GATEWAY: [u8; 4] = [192, 168, 1, 254];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 9];
const OUTSIDE: [u8; 6] = [2, 0, 0, 0, 1, 1];
const INSIDE: [u8; 6] = [2, 0, 0, 0, 2, 1];
const RS1_MAC: [u8; 6] = [2, 0, 0, 0, 2, 11];
const RS2_MAC: [u8; 6] = [2, 0, 0, 0, 2, 12];

const RULES: &str = "-A -t 1.2.3.1:80 -s SCHEDULER\n\
                     -a -t 1.2.3.1:80 -r 192.168.1.11:8080 -m -w 2\n\
                     -a -t 1.2.3.1:80 -r 192.168.1.12:8080 -m -w 1\n\
                     -A -u 1.2.3.1:53 -s rr\n\
                     -a -u 1.2.3.1:53 -r 192.168.1.11:53 -m\n";

/// A folder that is gone with the test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let name = format!("ulvs-trace-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder of our own");
        Place(path)
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).expect("it can be written");
        path
    }

    fn rules(&self, scheduler: &str) -> PathBuf {
        let text = RULES.replace("SCHEDULER", scheduler);
        self.file(&format!("rules-{scheduler}"), text)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn ulvs(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ulvs"));
    command.arg("trace").args(words).stdin(Stdio::null());
    command.output().expect("it can be run")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("our names are text")
}

/// What a good trace prints.
fn told(words: &[&str]) -> String {
    let output = ulvs(words);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    String::from_utf8(output.stdout).expect("text")
}

/// What a bad one says; its exit status is 1.
fn refused(words: &[&str]) -> (String, String) {
    let output = ulvs(words);
    assert_eq!(output.status.code(), Some(1), "{words:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.starts_with("ulvs trace: "), "{said}");
    (said, String::from_utf8_lossy(&output.stdout).into_owned())
}

type End = ([u8; 6], [u8; 4], u16);

fn tcp(from: End, to: End, flags: &str, data: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.0, to.0).ipv4(from.1, to.1, 64);
    let mut builder = builder.tcp(from.2, to.2, 1000, 4096);
    for flag in flags.chars() {
        builder = match flag {
            'S' => builder.syn(),
            'A' => builder.ack(7000),
            'F' => builder.fin(),
            'R' => builder.rst(),
            other => panic!("{other}"),
        };
    }
    let mut frame = Vec::new();
    builder.write(&mut frame, data).expect("a vector takes all");
    frame
}

fn udp(from: End, to: End, data: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.0, to.0).ipv4(from.1, to.1, 64);
    let mut frame = Vec::new();
    let written = builder.udp(from.2, to.2).write(&mut frame, data);
    written.expect("a vector takes all");
    frame
}

fn client(port: u16) -> End {
    (CLIENT_MAC, CLIENT, port)
}

/// The VIP as the client's frames name it.
const VIRT: End = (OUTSIDE, VIP, 80);

/// A request of the client, on its side.
fn request(port: u16, flags: &str) -> (usize, Vec<u8>) {
    (0, tcp(client(port), VIRT, flags, b""))
}

/// An answer of a real server, on the other side.
fn answer(server: [u8; 4], mac: [u8; 6], port: u16, flags: &str) -> (usize, Vec<u8>) {
    let to = (INSIDE, CLIENT, port);
    (1, tcp((mac, server, 8080), to, flags, b""))
}

fn arp_question(mac: [u8; 6], asker: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::new();
    Arp::request(Mac(mac), asker.into(), target.into()).frame(&mut frame);
    frame
}

/// A whole connection through `rs2`, after an ARP question for the VIP.
fn connection() -> Vec<(usize, Vec<u8>)> {
    vec![
        (0, arp_question(CLIENT_MAC, CLIENT, VIP)),
        request(40000, "S"),
        answer(RS2, RS2_MAC, 40000, "SA"),
        request(40000, "A"),
        (0, tcp(client(40000), VIRT, "A", b"GET / HTTP/1.1\r\n\r\n")),
        answer(RS2, RS2_MAC, 40000, "A"),
        answer(RS2, RS2_MAC, 40000, "FA"),
        request(40000, "FA"),
        answer(RS2, RS2_MAC, 40000, "A"),
    ]
}

/// A classic pcap of one interface: a packet each millisecond.
fn pcap(link: u32, packets: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let words = |bytes: &mut Vec<u8>, words: &[u32]| {
        words
            .iter()
            .for_each(|word| bytes.extend(word.to_le_bytes()));
    };
    words(&mut bytes, &[0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, link]);
    for (number, packet) in (0..).zip(packets) {
        let len = packet.len() as u32;
        words(&mut bytes, &[1_795_166_100, number * 1000, len, len]);
        bytes.extend(packet);
    }
    bytes
}

/// A pcapng of two interfaces: a packet each millisecond.
fn pcapng(packets: &[(usize, Vec<u8>)]) -> Vec<u8> {
    let interface = |name: &str| CaptureInterface {
        name: name.to_string(),
        raw_ip: false,
    };
    let interfaces = [interface("eth0"), interface("eth1")];
    let mut writer = CaptureWriter::new(Vec::new(), &interfaces).expect("a vector takes all");
    for (number, (interface, bytes)) in (0..).zip(packets) {
        let packet = Captured {
            time: Instant::from_nanos(1_795_166_100_000_000_000 + number * 1_000_000),
            interface: *interface,
            raw_ip: false,
            original_len: bytes.len(),
            bytes: bytes.clone(),
        };
        writer.write(&packet, "").expect("a vector takes all");
    }
    writer.finish().expect("a vector takes all")
}

/// All of `lines`, in this order, each as a whole line.
fn assert_lines(text: &str, lines: &[&str]) {
    let mut rest = text.lines();
    for wanted in lines {
        let found = rest.any(|line| line == *wanted);
        assert!(
            found,
            "`{wanted}` is missing, or not where it should be, in\n{text}"
        );
    }
}

#[test]
fn a_whole_connection_is_told() {
    let place = Place::new("connection");
    let capture = place.file("nat.pcapng", pcapng(&connection()));
    let rules = place.rules("wlc");
    let story = told(&[text(&capture), "--rules", text(&rules)]);
    let wanted = [
        "  eth0: taken for the public side",
        "  eth1: taken for the private side",
        "  eth0: the director is 02:00:00:00:01:01 (from the capture)",
        "  eth1: the director is 02:00:00:00:02:01 (from the capture)",
        "  eth1: 192.168.1.11 is 02:00:c0:a8:01:0b (made up)",
        "  eth1: 192.168.1.12 is 02:00:00:00:02:0c (from the capture)",
        "#1  0.000000  in eth0  ARP who has 1.2.3.1? tell 172.16.3.9 (02:00:00:00:01:09)",
        "    note      1.2.3.1 is at 02:00:00:00:01:01 (us)",
        "    answered  by the director itself",
        "    reply     eth0 ARP 1.2.3.1 is at 02:00:00:00:01:01",
        "#2  0.001000  in eth0  172.16.3.9:40000 > 1.2.3.1:80 TCP S seq 1000 data 0, ttl 64, \
         40 bytes",
        "    service   TCP 1.2.3.1:80 wlc",
        "    pick      wlc (the least (active*256 + inactive)/weight)",
        "                192.168.1.12:8080  (0*256 + 0)/1 = 0",
        "                192.168.1.11:8080  (0*256 + 0)/2 = 0",
        "              -> 192.168.1.12:8080, the least; of 2 equals the first in the list",
        "    entry     172.16.3.9:40000 > 1.2.3.1:80 > 192.168.1.12:8080, the client speaks",
        "    state     NONE -> SYN_RECV, expires in 60 s",
        "    forward   Masq: target 1.2.3.1:80 -> 192.168.1.12:8080, ttl 63, checksum adjusted",
        "    send      eth1 via 192.168.1.12 (02:00:00:00:02:0c)",
        "#3  0.002000  in eth1  192.168.1.12:8080 > 172.16.3.9:40000 TCP SA seq 1000 ack 7000 \
         data 0, ttl 64, 40 bytes",
        "    entry     172.16.3.9:40000 > 1.2.3.1:80 > 192.168.1.12:8080, the real server speaks",
        "    state     SYN_RECV stays, expires in 60 s",
        "    forward   Masq: source 192.168.1.12:8080 -> 1.2.3.1:80, ttl 63, checksum adjusted",
        "    send      eth0 via 172.16.3.9 (02:00:00:00:01:09)",
        "    state     SYN_RECV -> ESTABLISHED, expires in 900 s",
        "    state     ESTABLISHED stays, expires in 900 s",
        "    state     ESTABLISHED -> FIN_WAIT, expires in 120 s",
        "    state     FIN_WAIT -> TIME_WAIT, expires in 120 s",
        "    state     TIME_WAIT stays, expires in 120 s",
        "9 packets: 8 forwarded, 1 answered, 0 passed, 0 held, 0 dropped",
        "  -> 192.168.1.12:8080            Masq    1      0          1         ",
        "TCP 02:00  TIME_WAIT   172.16.3.9:40000   1.2.3.1:80         192.168.1.12:8080",
    ];
    assert_lines(&story, &wanted);
}

#[test]
fn the_schedulers_numbers_are_told() {
    let place = Place::new("numbers");
    let opened: Vec<_> = (0..3).map(|port| request(40000 + port, "S")).collect();
    let capture = place.file("three.pcapng", pcapng(&opened));
    let tell = |scheduler| {
        let rules = place.rules(scheduler);
        told(&[text(&capture), "--rules", text(&rules)])
    };
    let numbers = [
        "              -> 192.168.1.12:8080, the least; of 2 equals the first in the list",
        "                192.168.1.12:8080  (1*256 + 0)/1 = 256",
        "                192.168.1.11:8080  (0*256 + 0)/2 = 0",
        "              -> 192.168.1.11:8080, the least",
        "                192.168.1.12:8080  (1*256 + 0)/1 = 256",
        "                192.168.1.11:8080  (1*256 + 0)/2 = 128",
        "              -> 192.168.1.11:8080, the least",
    ];
    assert_lines(&tell("wlc"), &numbers);
    let turns = [
        "    pick      rr (each in turn)",
        "              -> 192.168.1.12:8080, next in turn",
        "              -> 192.168.1.11:8080, next in turn",
        "                begin behind 192.168.1.11:8080, chosen last",
        "              -> 192.168.1.12:8080, next in turn",
    ];
    assert_lines(&tell("rr"), &turns);
}

fn document(words: &[&str]) -> Value {
    serde_json::from_str(&told(words)).expect("one JSON document")
}

#[test]
fn the_document_has_it_all() {
    let place = Place::new("json");
    let mut packets = connection();
    packets.push(request(40001, "A"));
    packets.push((0, tcp(client(40002), (OUTSIDE, VIP, 81), "S", b"")));
    packets.push((0, vec![2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 9, 8, 0, 0x45]));
    let capture = place.file("nat.pcapng", pcapng(&packets));
    let rules = place.rules("wlc");
    let found = document(&[text(&capture), "--rules", text(&rules), "--json"]);
    let told = found["packets"].as_array().expect("a list");
    let verdict = |number: usize| {
        let packet = &told[number - 1];
        assert_eq!(packet["number"], number);
        (packet["verdict"].as_str().expect("a word"), &packet["side"])
    };
    assert_eq!(verdict(1), ("answered", &"public".into()));
    assert_eq!(verdict(2), ("forwarded", &"public".into()));
    assert_eq!(verdict(3), ("forwarded", &"private".into()));
    assert_eq!(verdict(10), ("answered", &"public".into()));
    assert_eq!(verdict(12), ("dropped", &"public".into()));
    assert_eq!(told[11]["reason"], "malformed");
    assert_eq!(told[1]["reason"], Value::Null);
    assert_eq!(told[1]["time_ns"], 1_795_166_100_001_000_000u64);
    assert_eq!(told[1]["port"], "eth0");
    let story = told[11]["story"].as_array().expect("a list");
    assert_eq!(story[1], "    note      cut off in IPv4");
    assert_eq!(
        story[2],
        "    drop      malformed: Shorter than its own headers, or lengths that lie"
    );
    check_frames(told);
    let account = &found["account"];
    assert_eq!(account["received"], 12);
    assert_eq!(account["forwarded"], 8);
    assert_eq!(account["answered"], 3);
    assert_eq!(account["drops"]["malformed"], 1);
    assert_eq!(account["balances"], true);
    assert_eq!(found["connections"][0]["state"], "TIME_WAIT");
    assert_eq!(found["ports"][0]["mac"], "02:00:00:00:01:01");
    assert_eq!(found["error"], Value::Null);
}

/// The frames that came out, judged by an independent parser.
fn check_frames(told: &[Value]) {
    let frame = |number: usize, at: usize| {
        let out = &told[number - 1]["out"][at];
        let hex = out["frame"].as_str().expect("hex");
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        (out["port"].as_str().expect("a name").to_string(), bytes)
    };
    let seen = |bytes: &[u8]| {
        let sliced = SlicedPacket::from_ethernet(bytes).expect("a good frame");
        let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else {
            panic!("IPv4")
        };
        let (source, target) = (ip.header().source(), ip.header().destination());
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
            panic!("TCP")
        };
        let sum = tcp.calc_checksum_ipv4(source, target);
        assert_eq!(sum, Ok(tcp.checksum()));
        (
            (source, tcp.source_port()),
            (target, tcp.destination_port()),
        )
    };
    let (port, bytes) = frame(2, 0);
    assert_eq!(port, "eth1");
    assert_eq!(bytes[..12], [RS2_MAC, INSIDE].concat());
    assert_eq!(seen(&bytes), ((CLIENT, 40000), (RS2, 8080)));
    let (port, bytes) = frame(3, 0);
    assert_eq!(port, "eth0");
    assert_eq!(bytes[..12], [CLIENT_MAC, OUTSIDE].concat());
    assert_eq!(seen(&bytes), ((VIP, 80), (CLIENT, 40000)));
    // A stray segment is reset.
    let (port, bytes) = frame(10, 0);
    assert_eq!(
        (port.as_str(), seen(&bytes)),
        ("eth0", ((VIP, 80), (CLIENT, 40001)))
    );
}

#[test]
fn the_copy_has_each_packets_story() {
    let place = Place::new("write");
    let packets = connection();
    let capture = place.file("nat.pcapng", pcapng(&packets));
    let copy = place.0.join("told.pcapng");
    let rules = place.rules("wlc");
    let words = [text(&capture), "--rules", text(&rules), "--write"];
    told(&[&words[..], &[text(&copy)]].concat());
    let bytes = std::fs::read(&copy).expect("it was written");
    let mut reader = PcapNgReader::new(bytes.as_slice()).expect("pcapng");
    let mut found = Vec::new();
    while let Some(block) = reader.next_block() {
        let block = block.expect("a good block").into_owned();
        if let Some(packet) = block.into_enhanced_packet() {
            let comments = packet.options.iter().filter_map(|option| match option {
                EnhancedPacketOption::Comment(text) => Some(text.to_string()),
                _ => None,
            });
            let comments: Vec<String> = comments.collect();
            found.push((packet.interface_id, packet.data.to_vec(), comments));
        }
    }
    assert_eq!(found.len(), packets.len());
    for ((interface, bytes), (copied, data, comments)) in packets.iter().zip(&found) {
        assert_eq!((*interface, bytes), (*copied as usize, data), "as it was");
        assert_eq!(comments.len(), 1);
    }
    assert!(found[1].2[0].contains("\n    pick      wlc"));
    assert!(found[2].2[0].contains("SYN_RECV stays"));
    // The copy is a capture like any other, and the names of its interfaces are kept.
    let again = told(&[text(&copy), "--rules", text(&rules)]);
    assert!(again.contains("eth1: taken for the private side"));
    let (said, _) = refused(&[&words[..], &[text(&capture)]].concat());
    assert!(said.contains("is the capture itself"), "{said}");
    let nowhere = place.0.join("no/where.pcapng");
    let (said, _) = refused(&[&words[..], &[text(&nowhere)]].concat());
    assert!(said.contains("cannot write") && said.contains("where.pcapng"));
}

/// One interface that saw both sides: addresses tell where a frame came in.
#[test]
fn sides_are_found_by_content() {
    let place = Place::new("content");
    let mut packets: Vec<Vec<u8>> = connection().into_iter().map(|(_, bytes)| bytes).collect();
    // What the director sent itself was captured too.
    let sent = tcp((INSIDE, CLIENT, 40000), (RS2_MAC, RS2, 8080), "S", b"");
    packets.insert(2, sent);
    packets.push(arp_question(RS1_MAC, RS1, GATEWAY));
    packets.push(tcp(
        (CLIENT_MAC, CLIENT, 5),
        ([2; 6], [9, 9, 9, 9], 6),
        "S",
        b"",
    ));
    let mut lldp = [[1, 0x80, 0xc2, 0, 0, 0xe], CLIENT_MAC].concat();
    lldp.extend([0x88, 0xcc, 0, 0]);
    packets.push(lldp);
    let capture = place.file("all.pcap", pcap(1, &packets));
    let rules = place.rules("wlc");
    let story = told(&[text(&capture), "--rules", text(&rules)]);
    let wanted = [
        "  public: the director is 02:00:00:00:01:01 (from the capture)",
        "  private: the director is 02:00:00:00:02:01 (from the capture)",
        "  private: 192.168.1.11 is 02:00:00:00:02:0b (from the capture)",
        "    send      private via 192.168.1.12 (02:00:00:00:02:0c)",
        "#3  0.002000  in private  172.16.3.9:40000 > 192.168.1.12:8080 TCP S seq 1000 data 0, \
         ttl 64, 40 bytes",
        "    note      the director's own",
        "    pass      not ours; left to the kernel",
        "#11  0.010000  in private  ARP who has 192.168.1.254? tell 192.168.1.11 \
         (02:00:00:00:02:0b)",
        "    pass      not ours; left to the kernel",
        "#12  0.011000  in public  172.16.3.9:5 > 9.9.9.9:6 TCP S seq 1000 data 0, ttl 64, \
         40 bytes",
        "    note      for 02:02:02:02:02:02, and the director is 02:00:00:00:01:01",
        "#13  0.012000  in public  LLDP from 02:00:00:00:01:09 to 01:80:c2:00:00:0e, 16 bytes",
        "    note      neither ARP nor IP",
        "13 packets: 8 forwarded, 1 answered, 4 passed, 0 held, 0 dropped",
    ];
    assert_lines(&story, &wanted);
}

#[test]
fn hints_go_before_what_is_found() {
    let place = Place::new("hints");
    let capture = place.file("nat.pcapng", pcapng(&connection()));
    let rules = place.rules("wlc");
    let words = [text(&capture), "--rules", text(&rules)];
    let with = |more: &[&'static str]| [&words[..], more].concat();
    let story = told(&with(&["--public-mac", "02:00:00:00:00:77"]));
    assert!(story.contains("eth0: the director is 02:00:00:00:00:77 (as told)"));
    assert!(story.contains("for 02:00:00:00:01:01, and the director is 02:00:00:00:00:77"));
    let story = told(&with(&["--public", "eth1", "--private", "eth0"]));
    assert!(story.contains("in eth1  192.168.1.12:8080 >"), "{story}");
    let (said, _) = refused(&with(&["--public", "eth7"]));
    assert!(said.contains("it has no interface \"eth7\""), "{said}");
    // A client out of the real servers' network, on one interface.
    let packets = [tcp((CLIENT_MAC, RS1, 9), VIRT, "S", b"")];
    let capture = place.file("near.pcap", pcap(1, &packets));
    let words = [text(&capture), "--rules", text(&rules)];
    assert!(told(&words).contains("#1  0.000000  in private"));
    let story = told(&[&words[..], &["--public-net", "192.168.1.8/29"]].concat());
    assert!(story.contains("#1  0.000000  in public"));
    let story = told(&[&words[..], &["--private-net", "1.2.3.0/24"]].concat());
    assert!(story.contains("#1  0.000000  in private"));
    for bad in ["1.2.3.0/33", "1.2.3", "x/8"] {
        let output = ulvs(&[&words[..], &["--public-net", bad]].concat());
        assert_eq!(output.status.code(), Some(2), "{bad}");
    }
}

/// A capture of another choice than this run's: said, and on demand told as if.
#[test]
fn answers_of_a_server_that_was_not_chosen() {
    let place = Place::new("whatif");
    let mut packets = connection();
    packets.insert(1, request(39999, "S"));
    let capture = place.file("nat.pcapng", pcapng(&packets));
    let rules = place.rules("rr");
    let words = [text(&capture), "--rules", text(&rules)];
    let story = told(&words);
    let wanted = [
        "    note      192.168.1.12:8080 speaks, but 192.168.1.11:8080 was chosen here; see \
         --what-if",
        "    note      no connection, and no service TCP 172.16.3.9:40000",
        "    pass      not ours; left to the kernel",
    ];
    assert_lines(&story, &wanted);
    let story = told(&[&words[..], &["--what-if"]].concat());
    let wanted = [
        "#4  0.003000  in eth1  192.168.1.11:8080 > 172.16.3.9:40000 TCP SA seq 1000 ack 7000 \
         data 0, ttl 64, 40 bytes",
        "    note      192.168.1.12:8080 said this when it was captured; here \
         192.168.1.11:8080 does",
        "    forward   Masq: source 192.168.1.11:8080 -> 1.2.3.1:80, ttl 63, checksum adjusted",
        "    state     FIN_WAIT -> TIME_WAIT, expires in 120 s",
        "10 packets: 9 forwarded, 1 answered, 0 passed, 0 held, 0 dropped",
    ];
    assert_lines(&story, &wanted);
}

#[test]
fn packets_without_ethernet_are_told_too() {
    let place = Place::new("raw");
    let packets: Vec<Vec<u8>> = connection()[1..]
        .iter()
        .map(|(_, bytes)| bytes[14..].to_vec())
        .collect();
    let capture = place.file("raw.pcap", pcap(101, &packets));
    let rules = place.rules("wlc");
    let story = told(&[text(&capture), "--rules", text(&rules)]);
    assert!(
        !story.contains("the director is"),
        "there is no MAC address"
    );
    let wanted = [
        "    forward   Masq: source 192.168.1.12:8080 -> 1.2.3.1:80, ttl 63, checksum adjusted",
        "8 packets: 8 forwarded, 0 answered, 0 passed, 0 held, 0 dropped",
    ];
    assert_lines(&story, &wanted);
}

/// The capture's times are the clock: what is idle too long expires.
#[test]
fn times_of_the_capture_drive_the_timeouts() {
    let place = Place::new("time");
    let question = udp(client(5000), (OUTSIDE, VIP, 53), b"question");
    let mut bytes = pcap(1, &[question.clone(), question.clone(), question]);
    let record = (bytes.len() - 24) / 3;
    for (number, second) in [(1, 299), (2, 299 + 300)] {
        let at = 24 + number * record;
        let time: u32 = 1_795_166_100 + second;
        bytes[at..at + 4].copy_from_slice(&time.to_le_bytes());
    }
    let capture = place.file("udp.pcap", bytes);
    let rules = place.rules("wlc");
    let story = told(&[text(&capture), "--rules", text(&rules)]);
    let wanted = [
        "#1  0.000000  in public  172.16.3.9:5000 > 1.2.3.1:53 UDP data 8, ttl 64, 36 bytes",
        "    service   UDP 1.2.3.1:53 rr",
        "#2  299.001000  in public  172.16.3.9:5000 > 1.2.3.1:53 UDP data 8, ttl 64, 36 bytes",
        "    entry     172.16.3.9:5000 > 1.2.3.1:53 > 192.168.1.11:53, the client speaks",
        "#3  599.002000  in public  172.16.3.9:5000 > 1.2.3.1:53 UDP data 8, ttl 64, 36 bytes",
        "    note      its connection has expired",
        "    service   UDP 1.2.3.1:53 rr",
    ];
    assert_lines(&story, &wanted);
}

/// Frames as their own sender's machine sees them: the device has not summed them yet. And one that
/// the capture cut.
#[test]
fn unfinished_checksums_and_cut_packets_are_understood() {
    let place = Place::new("partial");
    let mut stray = tcp(client(40001), VIRT, "A", b"");
    // The pseudo-header alone: addresses, protocol, length.
    let sum: u32 = [0xac10, 0x0309, 0x0102, 0x0301, 6, 20].iter().sum();
    let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
    stray[50..52].copy_from_slice(&sum.to_be_bytes());
    let mut broken = stray.clone();
    broken[51] ^= 1;
    let mut bytes = pcap(1, &[stray, broken]);
    let long = tcp(client(40000), VIRT, "S", &[7; 1000]);
    let (have, len) = (64u32, long.len() as u32);
    for word in [1_795_166_100, 9000, have, len] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(&long[..64]);
    let capture = place.file("partial.pcap", bytes);
    let rules = place.rules("wlc");
    let story = told(&[text(&capture), "--rules", text(&rules)]);
    let wanted = [
        "    note      answers with a reset: nobody expected this segment",
        "    reply     public 1.2.3.1:80 > 172.16.3.9:40001 TCP R seq 7000 data 0, ttl 64, \
         40 bytes",
        "    drop      unwanted: For our address, but nobody here wants it",
        "#3  0.009000  in public  172.16.3.9:40000 > 1.2.3.1:80 TCP S seq 1000 data 1000, ttl 64, \
         1040 bytes",
        "    note      the capture has 64 of its 1054 bytes; the rest is taken for 0",
        "    send      private via 192.168.1.12 (02:00:c0:a8:01:0c)",
    ];
    assert_lines(&story, &wanted);
}

#[test]
fn a_configuration_says_more_than_rules() {
    let place = Place::new("config");
    let config = place.file(
        "ulvs.toml",
        r#"
[[port]]
interface = "eth0"
side = "public"
addresses = ["1.2.3.2/24"]
routes = [{ to = "0.0.0.0/0", via = "1.2.3.254" }]

[[port]]
interface = "eth1"
side = "private"
addresses = ["192.168.1.254/24"]

[[service]]
tcp = "1.2.3.1:80"
scheduler = "wlc"
real = [{ address = "192.168.1.12:8080", method = "masq" }]
"#,
    );
    let mut packets = connection();
    packets.push((1, arp_question(RS2_MAC, RS2, GATEWAY)));
    let capture = place.file("nat.pcapng", pcapng(&packets));
    let output = ulvs(&[text(&capture), "--config", text(&config)]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let story = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    let wanted = [
        "  eth0: 1.2.3.254 is 02:00:00:00:01:09 (from the capture)",
        "    send      eth1 via 192.168.1.12 (02:00:00:00:02:0c)",
        "    send      eth0 via 1.2.3.254 (02:00:00:00:01:09)",
        "    reply     eth1 ARP 192.168.1.254 is at 02:00:00:00:02:01",
    ];
    assert_lines(&story, &wanted);
    let bad = place.file("bad.toml", "[[port]]\ninterface = 7\n");
    let (said, story) = refused(&[text(&capture), "--config", text(&bad)]);
    assert!(said.contains("bad.toml:2:13"), "{said}");
    assert!(story.is_empty());
}

#[test]
fn bad_captures_are_named_with_the_place() {
    let place = Place::new("bad");
    let rules = place.rules("wlc");
    let trace = |name: &str, bytes: &[u8]| {
        let capture = place.file(name, bytes);
        let (said, story) = refused(&[text(&capture), "--rules", text(&rules)]);
        assert!(said.contains(name), "{said}");
        (said, story)
    };
    let cases: [(&str, &[u8], &str); 4] = [
        ("empty", b"", "too short to be a capture"),
        ("text", b"not a capture at all", "neither pcap nor pcapng"),
        ("zipped", &[0x1f, 0x8b, 8, 0, 0, 0], "gunzip"),
        ("head", &pcap(1, &[])[..20], "the file ends in the middle"),
    ];
    for (name, bytes, reason) in cases {
        let (said, story) = trace(name, bytes);
        assert!(said.contains(reason) && story.is_empty(), "{said}");
    }
    let packets: Vec<Vec<u8>> = connection().into_iter().map(|(_, bytes)| bytes).collect();
    let whole = pcap(1, &packets);
    // What came before the cut is told.
    let (said, story) = trace("cut", &whole[..24 + 2 * 16 + 42 + 54 + 20]);
    assert!(
        said.contains("packet 3, at byte 152: the file ends in the middle of it"),
        "{said}"
    );
    assert!(story.contains("#2  0.001000") && !story.contains("#3"));
    assert!(story.contains("2 packets: 1 forwarded, 1 answered"));
    // The length of the second record is a lie.
    let mut garbled = whole.clone();
    garbled[24 + 16 + 42 + 8..][..4].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    let (said, story) = trace("garbled", &garbled);
    assert!(said.contains("packet 2, at byte 82: "), "{said}");
    assert!(story.contains("#1  0.000000"));
    let (said, _) = trace("cooked", &pcap(113, &packets));
    assert!(said.contains("packet 1, at byte 24: ") && said.contains("tcpdump -i eth0"));
    let (said, _) = trace("wifi", &pcap(105, &packets));
    assert!(said.contains("only Ethernet and raw IP"), "{said}");
    let (said, _) = refused(&["/nowhere.pcap", "--rules", text(&rules)]);
    assert!(said.contains("cannot open /nowhere.pcap"), "{said}");
    // As a document it is whole, and says the same.
    let capture = place.file("cut.pcap", &whole[..whole.len() - 1]);
    let (_, json) = refused(&[text(&capture), "--rules", text(&rules), "--json"]);
    let found: Value = serde_json::from_str(&json).expect("one JSON document");
    assert_eq!(found["packets"].as_array().map(Vec::len), Some(8));
    let error = found["error"].as_str().expect("a sentence");
    assert!(error.contains("packet 9, at byte "), "{error}");
}

#[test]
fn bad_rules_and_words_are_refused() {
    let place = Place::new("words");
    let capture = place.file("nat.pcapng", pcapng(&connection()));
    let rules = place.file(
        "rules",
        "-A -t 1.2.3.1:80\n-a -t 1.2.3.1:80 -r 1.1.1.1 -w x\n",
    );
    let (said, _) = refused(&[text(&capture), "--rules", text(&rules)]);
    assert!(said.contains("rules:2:32"), "{said}");
    let rules = place.rules("nosuch");
    let (said, _) = refused(&[text(&capture), "--rules", text(&rules)]);
    assert!(
        said.contains("rules-nosuch: service TCP 1.2.3.1:80: Scheduler"),
        "{said}"
    );
    let (said, _) = refused(&[text(&capture), "--rules", "/nowhere/rules"]);
    assert!(said.contains("/nowhere/rules"), "{said}");
    let rules = place.rules("wlc");
    for words in [
        vec![text(&capture)],
        vec!["--rules", text(&rules)],
        vec![text(&capture), "--rules", "a", "--config", "b"],
        vec![text(&capture), "--rules", text(&rules), "--public-mac", "x"],
    ] {
        assert_eq!(ulvs(&words).status.code(), Some(2), "{words:?}");
    }
    let help = ulvs(&["-h"]);
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).contains("--what-if"));
}

/// What README.md shows: captured in the director of `ulvs lab nat`, both interfaces.
#[test]
fn the_example_is_what_the_director_did() {
    let words = [
        "docs/examples/nat.pcapng",
        "--rules",
        "docs/examples/nat.rules",
    ];
    let story = told(&words);
    let wanted = [
        "              -> 192.168.1.13:80, the least; of 3 equals the first in the list",
        "                192.168.1.13:80  (0*256 + 1)/1 = 1",
        "                192.168.1.12:80  (0*256 + 0)/1 = 0",
        "              -> 192.168.1.12:80, the least; of 2 equals the first in the list",
        "24 packets: 20 forwarded, 1 answered, 3 passed, 0 held, 0 dropped",
    ];
    assert_lines(&story, &wanted);
    assert!(!story.contains("chosen here"), "it chose the same servers");
    let place = Place::new("example");
    let rules = std::fs::read_to_string("docs/examples/nat.rules").expect("a text");
    let rules = place.file("rules", rules.replace("wlc", "sed"));
    let story = told(&[words[0], "--rules", text(&rules), "--what-if"]);
    assert!(story.contains("24 packets: 20 forwarded, 1 answered, 3 passed"));
}

/// A reader that has seen enough, as `head`, is no error.
#[test]
fn whoever_stops_reading_stops_the_trace() {
    let place = Place::new("pipe");
    let many: Vec<_> = (0..5000).map(|_| request(40000, "S")).collect();
    let capture = place.file("many.pcapng", pcapng(&many));
    let rules = place.rules("wlc");
    let mut child = Command::new(env!("CARGO_BIN_EXE_ulvs"))
        .args(["trace", text(&capture), "--rules", text(&rules)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be run");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty());
}

/// Every byte of a capture garbled, one by one and many at once: told or refused, never a panic, and
/// always one whole document.
#[test]
fn garbled_captures_never_panic() {
    let place = Place::new("garbled");
    let rules = place.rules("wlc");
    let packets: Vec<Vec<u8>> = connection().into_iter().map(|(_, bytes)| bytes).collect();
    let mut rng = ulvs::rng::Rng::new(5);
    for whole in [
        pcapng(&connection()),
        pcap(1, &packets),
        pcap(101, &packets),
    ] {
        for round in 0..150 {
            let mut garbled = whole.clone();
            for _ in 0..1 + round % 4 {
                let at = rng.below(garbled.len() as u64) as usize;
                garbled[at] = [0, 1, 0x7f, 0x80, 0xff][rng.below(5) as usize];
            }
            let args = TraceArgs {
                capture: place.file("x", &garbled),
                rules: Some(rules.clone()),
                config: None,
                json: true,
                write: None,
                what_if: round % 2 == 0,
                hints: Hints::default(),
            };
            let mut out = Vec::new();
            let done = trace::trace(&args, &mut out);
            if done.is_ok() || !out.is_empty() {
                let found: Value = serde_json::from_slice(&out).expect("one JSON document");
                assert_eq!(found["account"]["balances"], true);
            }
        }
    }
}
