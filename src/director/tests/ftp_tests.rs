//! The FTP helper: what is understood of which text, as asked of Linux 6.1, and whole sessions.

use super::*;
use crate::conn::Awaits;
use crate::conn::tcp::TcpState;
use crate::director::ftp::Ftp;
use crate::director::helper::{AppHelper, Ends};
use crate::rng::Rng;
use crate::wire::checksum::{self, Sum};

fn ends() -> Ends {
    Ends {
        client: end(CLIENT, 40021),
        virt: end(VIP, 21),
        real: end(RIP, 21),
    }
}

fn ends_v6() -> Ends {
    let at = |address: &str, port| Endpoint::new(address.parse().expect("an address"), port);
    Ends {
        client: at("2001:db8:7::9", 40021),
        virt: at("fd00:c::100", 21),
        real: at("fd00:5::b", 21),
    }
}

/// Whom the real server will connect to because of this text, and what the helper waits for then.
fn client_says(ends: &Ends, text: &str) -> (Option<String>, Awaits) {
    let mut awaits = Awaits::Nothing;
    let expected = Ftp.hear_client(text.as_bytes(), ends, &mut awaits);
    (expected.map(|expected| expected.client.to_string()), awaits)
}

/// Whom the client will connect to because of this answer, and what it reads.
fn server_says(ends: &Ends, mut awaits: Awaits, text: &str) -> Option<(String, String)> {
    let heard = Ftp.hear_server(text.as_bytes(), ends, &mut awaits)?;
    assert_eq!(awaits, Awaits::Nothing);
    let mut read = text.to_string();
    read.replace_range(heard.rewrite.from..heard.rewrite.to, &heard.rewrite.new);
    Some((heard.expected.real.to_string(), read))
}

#[test]
fn what_a_client_listens_on_is_understood_as_in_the_kernel() {
    let understood = [
        ("PORT 172,16,3,9,4,5\r\n", "172.16.3.9:1029"),
        ("port  172,16,3,9,4,5\r\n", "172.16.3.9:1029"),
        ("PORT,172,16,3,9,4,5\r\n", "172.16.3.9:1029"),
        ("PORT172,16,3,9,4,5\n", "172.16.3.9:1029"),
        ("PORT 172,,3,9,4,5\r\n", "172.0.3.9:1029"),
        ("PORT 172,16,3,9,0,0\r\n", "172.16.3.9:0"),
        ("PORT 172,16,3,9,4,5,6\r\n", "172.16.3.9:1029"),
        ("PORT 9,9,9,9,156,72\r\n", "9.9.9.9:40008"),
        ("EPRT |1|172.16.3.9|6275|\r\n", "172.16.3.9:6275"),
        ("eprt  !1!172.16.3.009!6275!", "172.16.3.9:6275"),
        ("EPRT |1|172.16.3.9|6275| \r\nPASV", "172.16.3.9:6275"),
    ];
    for (text, client) in understood {
        let said = client_says(&ends(), text);
        assert_eq!(said, (Some(client.into()), Awaits::Nothing), "{text}");
    }
    let not = [
        "PORT 172,16,3,9,4,5",
        "PORT x172,16,3,9,4,5\r\n",
        "PORT 172,16,3,9,4\r\n",
        "PORT 172,16,3,300,4,5\r\n",
        "PORT 172,16,3,9,4,4294967297\r\n",
        "XX\r\nPORT 172,16,3,9,156,73\r\n",
        "EPRT |1|172.16.3.9|65536|\r\n",
        "EPRT |1|172.16.3.9|99999|\r\n",
        "EPRT |1|172.16.3.9|0|\r\n",
        "EPRT |1|172.16.3.9|6275\r\n",
        "EPRT |2|::1|6275|\r\n",
        "EPRT |1|172.16.3|6275|\r\n",
        "EPRT |1|172.16.300.9|6275|\r\n",
        "EPRT |1|172.16.3.9x|6275|\r\n",
        "EPRT |||6275|\r\n",
        "EPRT|1|172.16.3.9|6275|\r\n",
        "EPRT x|1|172.16.3.9|6275|\r\n",
        "EPRT \t1\t172.16.3.9\t6275\t\r\n",
        "",
        "P",
        "EPRT ",
        "PORT",
    ];
    for text in not {
        assert_eq!(client_says(&ends(), text).0, None, "{text}");
    }
    let text = "EPRT |2|2001:db8:7::9|6275|\r\n";
    let said = client_says(&ends_v6(), text).0;
    assert_eq!(said.as_deref(), Some("[2001:db8:7::9]:6275"));
    for text in ["PORT 172,16,3,9,4,5\r\n", "EPRT |1|172.16.3.9|6275|\r\n"] {
        assert_eq!(client_says(&ends_v6(), text).0, None, "{text}");
    }
}

#[test]
fn asking_for_passive_mode_is_understood_as_in_the_kernel() {
    use Awaits::{ExtendedPassive, Nothing, Passive};
    let asked = [
        ("PASV\r\n", Passive),
        ("XXpAsV\r\nLIST\r\n", Passive),
        ("PASV\r\nEPSV\r\n", Passive),
        ("PASV\r", Nothing),
        ("PASV \r\n", Nothing),
        ("PASV\n", Nothing),
        ("EPSV\r\n", ExtendedPassive),
        ("xEPSV 1\r\n", ExtendedPassive),
        ("EPSV 1\r", ExtendedPassive),
        ("EPSV 2\r\n", Nothing),
        ("EPSV ALL\r\n", Nothing),
        ("EPSV ALL\r\nPASV\r\n", Nothing),
        ("EPSV  1\r\n", Nothing),
        ("EPSV 1\n", Nothing),
        ("EPSV\n\n", Nothing),
        ("EPSV\r", Nothing),
    ];
    for (text, awaits) in asked {
        assert_eq!(client_says(&ends(), text), (None, awaits), "{text}");
    }
    let v6 = |text| client_says(&ends_v6(), text).1;
    assert_eq!([v6("PASV\r\n"), v6("EPSV 1\r\n")], [Nothing, Nothing]);
    assert_eq!([v6("EPSV 2\r\n"), v6("EPSV\r\n")], [ExtendedPassive; 2]);
}

#[test]
fn answers_are_understood_and_name_the_vip() {
    let passive = |text| server_says(&ends(), Awaits::Passive, text);
    let understood = [
        (
            "227 x (192,168,1,11,4,5).\r\n",
            "192.168.1.11:1029",
            "227 x (10,0,0,100,4,5).\r\n",
        ),
        (
            "227 =192,168,1,11,4,5\r",
            "192.168.1.11:1029",
            "227 =10,0,0,100,4,5\r",
        ),
        (
            "227 (9,9,9,9,4,6)\r\n",
            "9.9.9.9:1030",
            "227 (10,0,0,100,4,6)\r\n",
        ),
        (
            "227 ((192,168,1,11,4,5,6)",
            "192.168.1.11:1029",
            "227 ((10,0,0,100,4,5,6)",
        ),
        (
            "227 (192,168,1,,04,005)\r\n",
            "192.168.1.0:1029",
            "227 (10,0,0,100,4,5)\r\n",
        ),
        (
            "227 (1,2,3,4,0,0) (9,9,9,9,9,9)",
            "1.2.3.4:0",
            "227 (10,0,0,100,0,0) (9,9,9,9,9,9)",
        ),
    ];
    for (text, real, read) in understood {
        assert_eq!(passive(text), Some((real.into(), read.into())), "{text}");
    }
    for text in [
        "227 (192,168,1,11,4)\r\n",
        "227 5 (192,168,1,11,4,5)\r\n",
        "227 x192,168,1,11,4,5",
        "227 ( 192,168,1,11,4,5)\r\n",
        "227-(192,168,1,11,4,5)\r\n",
        "227 (-192,168,1,11,4,5)\r\n",
        "227 (192,168,1,11,4,256)\r\n",
        "227\t(192,168,1,11,4,5)\r\n",
        "200 x\r\n227 (192,168,1,11,4,7)\r\n",
        "229 (|||99|)\r\n",
        "227 (192",
        "",
    ] {
        assert_eq!(passive(text), None, "{text}");
    }
    let extended = |text| server_says(&ends(), Awaits::ExtendedPassive, text);
    let understood = [
        (
            "229 x (|||6446|)\r\n",
            "192.168.1.11:6446",
            "229 x (|||6446|)\r\n",
        ),
        (
            "229 (|1|192.168.1.12|6446|)\r\n",
            "192.168.1.12:6446",
            "229 (|||6446|)\r\n",
        ),
        ("229 ((!!!007!", "192.168.1.11:7", "229 ((|||7|"),
    ];
    for (text, real, read) in understood {
        assert_eq!(extended(text), Some((real.into(), read.into())), "{text}");
    }
    for text in [
        "229 (|||65536|)\r\n",
        "229 (|||99999|)\r\n",
        "229 (|||0|)\r\n",
        "229 (|||7)\r\n",
        "229 |||6446|\r\n",
        "229-(|||6446|)\r\n",
        "229 (|2|::1|6446|)\r\n",
        "229 ( |||6446|)\r\n",
        "229 (||x|6446|)\r\n",
    ] {
        assert_eq!(extended(text), None, "{text}");
    }
    assert_eq!(
        server_says(&ends(), Awaits::Nothing, "227 (1,2,3,4,5,6)\r\n"),
        None
    );
}

/// Rubbish around good words: never a panic, and what is to be replaced lies inside the text.
#[test]
fn no_text_breaks_the_parser() {
    let words = [
        "PASV\r\n", "EPSV", "PORT", "EPRT", "227 ", "229 ", "(", "|", "1", ",", " ", "255", "::",
        ".",
    ];
    let mut rng = Rng::new(21);
    for _ in 0..50_000 {
        let mut text = Vec::new();
        for _ in 0..rng.below(24) {
            match rng.below(8) {
                0 => text.push(rng.next_u64() as u8),
                _ => text.extend(words[rng.below(words.len() as u64) as usize].bytes()),
            }
        }
        for ends in [ends(), ends_v6()] {
            for asked in [Awaits::Nothing, Awaits::Passive, Awaits::ExtendedPassive] {
                let mut awaits = asked;
                Ftp.hear_client(&text, &ends, &mut awaits);
                let mut awaits = asked;
                if let Some(heard) = Ftp.hear_server(&text, &ends, &mut awaits) {
                    let (from, to) = (heard.rewrite.from, heard.rewrite.to);
                    assert!(from < to && to <= text.len());
                }
            }
        }
    }
}

struct Session {
    house: House,
    /// What the client and the server would send next, each in its own numbers; what each has seen.
    client: (u32, u32),
    server: (u32, u32),
}

const OPTIONS: [u8; 12] = [1, 1, 5, 10, 0, 0, 0, 0, 0, 0, 0, 0];

impl Session {
    fn new() -> Session {
        let mut house = house(ServiceKey::tcp(VIP.into(), 21), 21, true);
        let old = house.worker.snapshot();
        let parts = Parts {
            id: SnapshotId(old.id.0 + 1),
            role: old.role,
            services: old.services.clone(),
            ports: old.ports.clone(),
            tunables: old.tunables,
            timeouts: old.timeouts,
            limits: old.limits,
        };
        let snapshot = Snapshot::new(parts).with_ftp(&[21]);
        let now = house.now;
        house
            .worker
            .handle_order(Order::Adopt(Arc::new(snapshot)), now);
        let mut session = Session {
            house,
            client: (1000, 0),
            server: (5000, 0),
        };
        session.send(true, 0x02, b"");
        session.client.0 += 1;
        session.send(false, 0x12, b"");
        session.server.0 += 1;
        session.send(true, 0x10, b"");
        session
    }

    /// A segment of one side; returns what the other side gets: sequence, acknowledged, text, SACK edges.
    fn send(
        &mut self,
        from_client: bool,
        flags: u8,
        text: &[u8],
    ) -> Option<(u32, u32, Vec<u8>, [u32; 2])> {
        let (seq, ack) = if from_client {
            self.client
        } else {
            self.server
        };
        let (macs, ips, ports) = match from_client {
            true => (IN, (CLIENT, VIP), (40021, 21)),
            false => (OUT, (RIP, CLIENT), (21, 40021)),
        };
        let frame = segment(macs, ips, ports, (seq, ack), flags, text);
        self.house.now += Duration::from_millis(1);
        let (outside, inside) = match from_client {
            true => self.house.outside_says(&frame),
            false => self.house.inside_says(&frame),
        };
        let out = if from_client { inside } else { outside };
        let got = &out.first()?.bytes;
        seen(got);
        let long = |at: usize| u32::from_be_bytes(got[at..at + 4].try_into().expect("four"));
        let end = 14 + usize::from(u16::from_be_bytes([got[16], got[17]]));
        let text = got[66..end].to_vec();
        let (seq, ack, edges) = (long(38), long(42), [long(58), long(62)]);
        let next = seq + text.len() as u32 + u32::from(flags & 0x03 != 0);
        if from_client {
            (self.client.0, self.server.1) = (self.client.0 + text.len() as u32, next);
        } else {
            self.client.1 = next;
        }
        Some((seq, ack, text, edges))
    }

    fn client_says(&mut self, text: &str) -> (u32, u32, Vec<u8>, [u32; 2]) {
        self.send(true, 0x18, text.as_bytes()).expect("forwarded")
    }

    fn server_says(&mut self, text: &str) -> String {
        let got = self.send(false, 0x18, text.as_bytes()).expect("forwarded");
        self.server.0 += text.len() as u32;
        String::from_utf8(got.2).expect("text")
    }

    fn listed(&self) -> Vec<String> {
        let mut rows = Vec::new();
        self.house.table.for_each(|conn| {
            let (client, virt, real) = (conn.client(), conn.virt(), conn.real());
            rows.push(format!("{client} {virt} {real} {}", conn.state_name()));
        });
        rows.sort();
        rows
    }
}

/// A segment with a selective acknowledgement of the last ten bytes that were seen.
fn segment(
    to: (Mac, Mac),
    ips: ([u8; 4], [u8; 4]),
    ports: (u16, u16),
    (seq, ack): (u32, u32),
    flags: u8,
    text: &[u8],
) -> Vec<u8> {
    let mut tcp = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    tcp.extend([seq.to_be_bytes(), ack.to_be_bytes()].concat());
    tcp.extend([0x80, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    let mut options = OPTIONS;
    options[4..8].copy_from_slice(&ack.wrapping_sub(10).to_be_bytes());
    options[8..].copy_from_slice(&ack.to_be_bytes());
    tcp.extend(options);
    tcp.extend(text);
    let pseudo = checksum::pseudo_header(ips.0.into(), ips.1.into(), number::TCP, tcp.len());
    let sum = Sum::of(&tcp).plus(pseudo).checksum();
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [to.0.0, to.1.0].concat();
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(((20 + tcp.len()) as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, number::TCP, 0, 0]);
    frame.extend([ips.0, ips.1].concat());
    let sum = Sum::of(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend(tcp);
    frame
}

#[test]
fn passive_transfers_with_texts_that_grow_and_shrink() {
    let mut session = Session::new();
    let control = "172.16.3.9:40021 10.0.0.100:21 192.168.1.11:21 ESTABLISHED".to_string();
    let (mut sent, mut read) = (0i64, 0i64);
    for (port, real) in [
        (1, "192,168,1,11"),
        (2, "1,1,1,1"),
        (3, "10,0,0,1"),
        (4, "192,168,1,11"),
    ] {
        session.client_says("PASV\r\n");
        let text = format!("227 Entering Passive Mode ({real},4,{port})\r\n");
        let got = session.server_says(&text);
        assert_eq!(
            got,
            format!("227 Entering Passive Mode (10,0,0,100,4,{port})\r\n")
        );
        (sent, read) = (sent + text.len() as i64, read + got.len() as i64);
        // The client acknowledges what it read, the server hears what it sent; SACK blocks likewise.
        let (_, ack, _, edges) = session.client_says("NOOP\r\n");
        assert_eq!(ack, session.server.0);
        assert_eq!(edges, [ack - 10, ack]);
        let done = "200 done\r\n";
        let got = session
            .send(false, 0x18, done.as_bytes())
            .expect("forwarded");
        assert_eq!(i64::from(got.0), i64::from(session.server.0) + read - sent);
        session.server.0 += done.len() as u32;
        let waiting = format!(
            "172.16.3.9:0 10.0.0.100:{} {}:{} LISTEN",
            1024 + port,
            real.replace(',', "."),
            1024 + port
        );
        assert!(
            session.listed().contains(&waiting),
            "{:?}",
            session.listed()
        );
    }
    assert!(session.listed().contains(&control));
    assert_eq!(
        (session.house.table.len(), session.house.table.remembered()),
        (5, 5)
    );
    // A client opens one of them; another port finds nothing there any more.
    let syn = |port| segment(IN, (CLIENT, VIP), (port, 1025), (1, 0), 0x02, b"");
    let (_, inside) = session.house.outside_says(&syn(40100));
    assert_eq!(seen(&inside[0].bytes).1, end(RIP, 1025));
    let (outside, inside) = session.house.outside_says(&syn(40101));
    assert!(inside.is_empty() && outside.len() == 1, "a reset");
    assert_eq!(
        (session.house.table.len(), session.house.table.remembered()),
        (5, 4)
    );
    let answer = segment(OUT, (RIP, CLIENT), (1025, 40100), (1, 2), 0x12, b"");
    let (outside, _) = session.house.inside_says(&answer);
    assert_eq!(seen(&outside[0].bytes).0, end(VIP, 1025));
    // The control connection outlives its own time while it controls others; then all is gone.
    for _ in 0..400 {
        session.house.now += Duration::from_secs(10);
        session.house.breathe();
    }
    assert_eq!(
        (session.house.table.len(), session.house.table.remembered()),
        (0, 0)
    );
    assert_eq!(session.house.live.total(), 0);
}

#[test]
fn an_active_transfer_comes_from_the_vip() {
    let mut session = Session::new();
    session.client_says("PORT 172,16,3,9,156,70\r\n");
    let waiting = "172.16.3.9:40006 10.0.0.100:20 192.168.1.11:20 LISTEN".to_string();
    assert!(
        session.listed().contains(&waiting),
        "{:?}",
        session.listed()
    );
    let syn = segment(OUT, (RIP, CLIENT), (20, 40006), (1, 0), 0x02, b"");
    let (outside, _) = session.house.inside_says(&syn);
    assert_eq!(seen(&outside[0].bytes).0, end(VIP, 20));
    let answer = segment(IN, (CLIENT, VIP), (40006, 20), (1, 2), 0x12, b"");
    let (_, inside) = session.house.outside_says(&answer);
    assert_eq!(seen(&inside[0].bytes).1, end(RIP, 20));
    assert_eq!(session.house.live.total(), 2);
}

#[test]
fn what_comes_again_keeps_its_place_and_damage_is_not_mended() {
    let mut session = Session::new();
    session.client_says("PASV\r\n");
    let text = "227 ok (192,168,1,11,4,1)\r\n";
    let first = session.server.0;
    session.server_says(text);
    let later = session.server.0;
    session.server_says("150 abcdefgh\r\n");
    // The answer comes again: it is not waited for any more, as in the kernel.
    session.server.0 = first;
    let again = session
        .send(false, 0x18, text.as_bytes())
        .expect("forwarded");
    assert_eq!((again.0, again.2), (first, text.as_bytes().to_vec()));
    session.server.0 = later;
    let again = session
        .send(false, 0x18, b"150 abcdefgh\r\n")
        .expect("forwarded");
    assert_eq!(again.0, later - 2);
    // A damaged answer passes as it is, and nothing is expected.
    let entries = session.house.table.len();
    session.client_says("PASV\r\n");
    let (seq, ack) = session.server;
    let mut frame = segment(
        OUT,
        (RIP, CLIENT),
        (21, 40021),
        (seq, ack),
        0x18,
        b"227 (1,2,3,4,5,6)\r\n",
    );
    frame[50] ^= 1;
    let (outside, _) = session.house.inside_says(&frame);
    assert_eq!(&outside[0].bytes[66..], b"227 (1,2,3,4,5,6)\r\n");
    assert_eq!(session.house.table.len(), entries);
}

#[test]
fn nothing_is_heard_before_a_connection_is_established_or_without_the_helper() {
    let mut plain = house(ServiceKey::tcp(VIP.into(), 21), 21, true);
    let syn = segment(IN, (CLIENT, VIP), (40021, 21), (1, 0), 0x02, b"");
    plain.outside_says(&syn);
    let mut helped = 0;
    plain
        .table
        .for_each(|conn| helped += usize::from(conn.is_helped()));
    assert_eq!((helped, plain.table.remembered()), (0, 0));
    let mut session = Session::new();
    session.send(true, 0x11, b"");
    let mut state = None;
    session
        .house
        .table
        .for_each(|conn| state = Some(conn.state().number()));
    assert_ne!(state, Some(TcpState::Established as u8));
    session.send(true, 0x18, b"PORT 172,16,3,9,156,70\r\n");
    assert_eq!(session.house.table.len(), 1);
}

/// An answer that fills its frame, and grows: it leaves in two, and what follows is counted right.
#[test]
fn an_answer_that_outgrows_the_link_is_cut() {
    let mut session = Session::new();
    session.client_says("PASV\r\n");
    let mut text = b"227 (1,1,1,1,4,5)\r\n".to_vec();
    text.resize(1500 - 20 - 32, b'x');
    let (seq, ack) = session.server;
    let frame = segment(OUT, (RIP, CLIENT), (21, 40021), (seq, ack), 0x18, &text);
    let (outside, _) = session.house.inside_says(&frame);
    let lens: Vec<usize> = outside.iter().map(|frame| frame.bytes.len() - 14).collect();
    assert_eq!(lens, [1500, 23]);
    let mut whole = outside[0].bytes[34..].to_vec();
    whole.extend_from_slice(&outside[1].bytes[34..]);
    let pseudo = checksum::pseudo_header(VIP.into(), CLIENT.into(), number::TCP, whole.len());
    assert_eq!(Sum::of(&whole).plus(pseudo).folded(), 0xffff);
    assert!(whole[32..].starts_with(b"227 (10,0,0,100,4,5)\r\nxxx"));
    session.server.0 += text.len() as u32;
    let after = session.send(false, 0x18, b"200 z\r\n").expect("forwarded");
    assert_eq!(after.0, session.server.0 + 3);
}
