//! Quiet: the kernel of the director's namespace says nothing about our frames, whatever it is
//! configured to do; goes on with what is its own; and is as it was afterwards. No director runs
//! here, so everything that comes out of the director's ports was said by the kernel.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use super::frame_tests::*;
use super::world_tests::*;
use crate::nic::netlink::{Message, Netlink};
use crate::nic::{Backend, Halves, KeepOff, OpenOptions, Quiet, QuietPort, QuietRules, Side, open};
use crate::wire::checksum::{Sum, pseudo_header};
use crate::wire::{Mac, Rx};

const CIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
const OTHER_VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 101);
const RIP: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const OTHER_RIP: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 254);
/// The kernel's own addresses on the director's two ports.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 253);
const CIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 1);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 0x100);
const RIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, 0, 1);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 0x254);
const INSIDE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, 0, 0x253);

fn rules() -> QuietRules {
    QuietRules {
        vips: [VIP.into(), VIP6.into()].into(),
        own: [GATEWAY.into(), OUTSIDE.into()].into(),
        real_servers: [RIP.into(), RIP6.into()].into(),
    }
}

fn ports() -> [QuietPort; 2] {
    [("d0", Side::Public), ("d1", Side::Private)].map(|(name, side)| QuietPort {
        name: name.to_string(),
        side,
    })
}

/// A client and a server made of raw frames, and a director whose kernel is listened to.
struct Theatre {
    director: Space,
    client: Space,
    at_client: Halves,
    at_server: Halves,
}

fn listen(name: &str) -> Halves {
    let mut options = OpenOptions::new(name, Side::Public);
    options.foreign_macs = true;
    open(Backend::Packet, &options).unwrap()
}

impl Theatre {
    fn new() -> Theatre {
        let (client, director) = two_spaces();
        let server = Space::new();
        veth(&director, "d1", &server, "s0");
        director.enter(|| {
            for name in ["d0", "d1"] {
                sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0");
                sysctl(&format!("net/ipv6/conf/{name}/addr_gen_mode"), "1");
                sysctl(&format!("net/ipv6/conf/{name}/router_solicitations"), "0");
            }
            add_address("d0", OUTSIDE, 24);
            add_address("d1", INSIDE, 24);
            add_address("d0", OUTSIDE6, 64);
            add_address("d1", INSIDE6, 64);
            // So that it can forward at once.
            add_neighbour("d0", CIP, mac_of("c0"));
            add_neighbour("d0", CIP6, mac_of("c0"));
            sysctl("net.ipv4.icmp_ratelimit", "0");
        });
        let at_client = client.enter(|| listen("c0"));
        let at_server = server.enter(|| listen("s0"));
        let mut theatre = Theatre {
            director,
            client,
            at_client,
            at_server,
        };
        theatre.heard();
        theatre
    }

    fn forward(&self, on: bool) {
        let value = if on { "1" } else { "0" };
        self.director.enter(|| {
            sysctl("net.ipv4.ip_forward", value);
            sysctl("net.ipv6.conf.all.forwarding", value);
        });
    }

    /// Sends all that a director's ports meet in a day, and returns what the kernel said to it.
    fn provoke(&mut self) -> Vec<Vec<u8>> {
        self.provoke_from_client(VIP);
        let c0 = Way {
            from: "c0",
            to: "d0",
        };
        self.client_says(c0.ip6(CIP6, VIP6, 6, &tcp_syn(CIP6.into(), VIP6.into())));
        self.client_says(c0.solicit(CIP6, VIP6));
        let s0 = Way {
            from: "s0",
            to: "d1",
        };
        self.server_says(s0.arp(RIP, GATEWAY));
        self.provoke_from_server(RIP);
        self.server_says(s0.ip4(RIP, GATEWAY, 1, &echo()));
        self.server_says(s0.ip4(RIP, VIP, 17, &udp(RIP, VIP)));
        self.server_says(s0.ip6(RIP6, CIP6, 6, &tcp_syn(RIP6.into(), CIP6.into())));
        self.heard()
    }

    fn provoke_from_client(&mut self, vip: Ipv4Addr) {
        let c0 = Way {
            from: "c0",
            to: "d0",
        };
        self.client_says(c0.arp(CIP, vip));
        self.client_says(c0.ip4(CIP, vip, 6, &tcp_syn(CIP.into(), vip.into())));
        self.client_says(c0.ip4(CIP, vip, 17, &udp(CIP, vip)));
        self.client_says(c0.ip4(CIP, vip, 1, &echo()));
    }

    /// A real server's answers to the client, as they are before we translate them.
    fn provoke_from_server(&mut self, rip: Ipv4Addr) {
        let s0 = Way {
            from: "s0",
            to: "d1",
        };
        self.server_says(s0.ip4(rip, CIP, 6, &tcp_syn(rip.into(), CIP.into())));
        self.server_says(s0.ip4(rip, CIP, 17, &udp(rip, CIP)));
    }

    fn client_says(&mut self, frame: Vec<u8>) {
        assert_eq!(send_all(&mut *self.at_client.1, &[frame]).taken, 1);
    }

    fn server_says(&mut self, frame: Vec<u8>) {
        assert_eq!(send_all(&mut *self.at_server.1, &[frame]).taken, 1);
    }

    /// What the kernel has said by now: everything up to its answer to a question about itself.
    fn heard(&mut self) -> Vec<Vec<u8>> {
        let asked = Way {
            from: "c0",
            to: "d0",
        }
        .arp(CIP, OUTSIDE);
        self.client_says(asked);
        let mut heard = until_answered(&mut *self.at_client.0, OUTSIDE);
        let asked = Way {
            from: "s0",
            to: "d1",
        }
        .arp(RIP, INSIDE);
        self.server_says(asked);
        heard.extend(until_answered(&mut *self.at_server.0, INSIDE));
        heard
    }

    fn quiet(&self, keep_off: KeepOff) -> Quiet {
        self.director
            .enter(|| Quiet::install(keep_off, &ports(), &rules()).unwrap())
    }

    fn configure_vips(&self) {
        self.director.enter(|| {
            add_address("d0", VIP, 32);
            add_address("d0", VIP6, 128);
        });
    }

    fn unconfigure_vips(&self) {
        self.director.enter(|| {
            delete_address("d0", VIP, 32);
            delete_address("d0", VIP6, 128);
        });
    }
}

/// The frames before the answer to an ARP request for `address`.
fn until_answered(rx: &mut dyn Rx, address: Ipv4Addr) -> Vec<Vec<u8>> {
    let mut heard = Vec::new();
    loop {
        for frame in receive(rx, 1) {
            let is_arp_answer = frame[12..14] == [8, 6] && frame[20..22] == [0, 2];
            if is_arp_answer && frame[28..32] == address.octets() {
                return heard;
            }
            if !is_housekeeping(&frame) {
                heard.push(frame);
            }
        }
    }
}

/// What a kernel with IPv6 says about its own addresses: the groups it listens to, and whether
/// somebody else has them.
fn is_housekeeping(frame: &[u8]) -> bool {
    const HOP_BY_HOP: u8 = 0;
    let is_solicitation = frame.get(54) == Some(&135);
    let from_nobody = frame.get(22..38) == Some(&[0; 16]);
    frame[12..14] == [0x86, 0xdd] && (frame[20] == HOP_BY_HOP || is_solicitation && from_nobody)
}

/// Frames from one interface to another.
#[derive(Clone, Copy)]
struct Way {
    from: &'static str,
    to: &'static str,
}

impl Way {
    fn ethernet(self, to: Mac, ethertype: u16, payload: &[&[u8]]) -> Vec<u8> {
        let mut frame = to.0.to_vec();
        frame.extend(mac_of(self.from).0);
        frame.extend(ethertype.to_be_bytes());
        frame.extend(payload.concat());
        frame
    }

    fn arp(self, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let (mac, nobody) = (mac_of(self.from).0, [0; 6]);
        let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
        let parts: [&[u8]; 5] = [&fixed, &mac, &sender.octets(), &nobody, &target.octets()];
        self.ethernet(Mac::BROADCAST, 0x0806, &parts)
    }

    fn ip4(self, from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = [0; 20];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
        header[8] = 64;
        header[9] = protocol;
        header[12..16].copy_from_slice(&from.octets());
        header[16..20].copy_from_slice(&to.octets());
        let sum = Sum::of(&header).checksum();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        self.ethernet(mac_of(self.to), 0x0800, &[&header, payload])
    }

    fn ip6(self, from: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        self.ethernet(
            mac_of(self.to),
            0x86dd,
            &[&ip6_header(from, to, protocol, payload), payload],
        )
    }

    /// Neighbour solicitation.
    fn solicit(self, from: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        let mut group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).octets();
        group[13..].copy_from_slice(&target.octets()[13..]);
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.octets());
        message.extend([1, 1]);
        message.extend(mac_of(self.from).0);
        let sum = pseudo_header(from.into(), IpAddr::from(group), 58, message.len());
        let sum = sum.plus(Sum::of(&message)).checksum();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut header = ip6_header(from, group.into(), 58, &message);
        header[7] = 255;
        let mac = Mac([0x33, 0x33, group[12], group[13], group[14], group[15]]);
        self.ethernet(mac, 0x86dd, &[&header, &message])
    }
}

fn ip6_header(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: &[u8]) -> [u8; 40] {
    let mut header = [0; 40];
    header[0] = 0x60;
    header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    header[6] = protocol;
    header[7] = 64;
    header[8..24].copy_from_slice(&from.octets());
    header[24..40].copy_from_slice(&to.octets());
    header
}

fn tcp_syn(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let mut segment = vec![
        0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 4, 0, 0, 0, 0, 0,
    ];
    let sum = pseudo_header(from, to, 6, segment.len()).plus(Sum::of(&segment));
    segment[16..18].copy_from_slice(&sum.checksum().to_be_bytes());
    segment
}

fn udp(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut datagram = vec![0x9c, 0x40, 0, 80, 0, 12, 0, 0, 1, 2, 3, 4];
    let sum = pseudo_header(from.into(), to.into(), 17, datagram.len()).plus(Sum::of(&datagram));
    datagram[6..8].copy_from_slice(&sum.checksum().to_be_bytes());
    datagram
}

fn echo() -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0, 0, 1, 0, 1];
    let sum = Sum::of(&message).checksum();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// What is installed in this thread's namespace: nf_tables tables, queueing disciplines.
fn installed() -> Vec<Vec<u8>> {
    const NFT_GETTABLE: u16 = 0x0a01;
    let mut found = Vec::new();
    for (protocol, kind, fixed_len) in [
        (libc::NETLINK_NETFILTER, NFT_GETTABLE, 4),
        (libc::NETLINK_ROUTE, libc::RTM_GETQDISC, 20),
    ] {
        let request = Message::new(kind, 0, &vec![0; fixed_len]);
        let mut socket = Netlink::open(protocol).unwrap();
        let mut each = |_: u16, payload: &[u8]| found.push(payload[..fixed_len].to_vec());
        socket.dump(request, &mut each).unwrap();
    }
    found
}

fn silence(keep_off: KeepOff) {
    let mut theatre = Theatre::new();
    let before = theatre.director.enter(installed);
    for forwards in [false, true] {
        for has_vip in [false, true] {
            theatre.forward(forwards);
            if has_vip {
                theatre.configure_vips();
            }
            theatre.heard();
            if forwards || has_vip {
                let heard = theatre.provoke();
                assert!(
                    heard.len() > 3,
                    "the kernel was to talk without us: {heard:02x?}"
                );
            }
            let quiet = theatre.quiet(keep_off);
            assert_eq!(quiet.keep_off(), keep_off);
            let heard = theatre.provoke();
            assert!(heard.is_empty(), "{forwards} {has_vip}: {heard:02x?}");
            // The tap is before the drop.
            let mut tap = theatre
                .director
                .enter(|| open(Backend::Packet, &OpenOptions::new("d0", Side::Public)).unwrap());
            theatre.provoke_from_client(VIP);
            assert_eq!(receive(&mut *tap.0, 4).len(), 4);
            assert_ne!(theatre.director.enter(installed), before);
            drop(quiet);
            assert_eq!(theatre.director.enter(installed), before);
            if forwards || has_vip {
                assert!(
                    !theatre.provoke().is_empty(),
                    "the kernel was to talk again"
                );
            }
            if has_vip {
                theatre.unconfigure_vips();
            }
        }
    }
}

#[test]
fn nft_silences_the_kernel() {
    in_world(User::Same, || silence(KeepOff::Nft));
}

#[test]
fn nft_silences_the_kernel_for_an_ordinary_user() {
    in_world(User::Nobody, || silence(KeepOff::Nft));
}

#[test]
fn tc_silences_the_kernel() {
    in_world(User::Same, || silence(KeepOff::Tc));
}

#[test]
fn tc_silences_the_kernel_for_an_ordinary_user() {
    in_world(User::Nobody, || silence(KeepOff::Tc));
}

/// A word each way over TCP.
fn talk(from: &Space, to: &Space, address: SocketAddr) {
    let listener = to.enter(|| TcpListener::bind(address).unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            from.come_in();
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"hello").unwrap();
            assert_eq!(stream.read(&mut [0; 8]).unwrap(), 5);
        });
        let (mut stream, _) = listener.accept().unwrap();
        let mut word = [0; 5];
        stream.read_exact(&mut word).unwrap();
        stream.write_all(&word).unwrap();
    });
}

/// ssh to the director, and health checks from it, live on.
fn own_traffic(keep_off: KeepOff) {
    let (client, director) = two_spaces();
    let server = Space::new();
    veth(&director, "d1", &server, "s0");
    client.enter(|| add_address("c0", CIP, 24));
    server.enter(|| add_address("s0", RIP, 24));
    director.enter(|| {
        add_address("d0", OUTSIDE, 24);
        add_address("d1", INSIDE, 24);
    });
    let quiet = director.enter(|| Quiet::install(keep_off, &ports(), &rules()).unwrap());
    talk(&client, &director, (OUTSIDE, 22).into());
    talk(&director, &client, (CIP, 80).into());
    talk(&server, &director, (INSIDE, 22).into());
    talk(&director, &server, (RIP, 80).into());
    drop(quiet);
}

#[test]
fn nft_leaves_the_kernel_its_own_traffic() {
    in_world(User::Same, || own_traffic(KeepOff::Nft));
}

#[test]
fn tc_leaves_the_kernel_its_own_traffic() {
    in_world(User::Same, || own_traffic(KeepOff::Tc));
}

fn following(keep_off: KeepOff) {
    let mut theatre = Theatre::new();
    theatre.forward(true);
    theatre.director.enter(|| add_address("d0", OTHER_VIP, 32));
    let mut quiet = theatre.quiet(keep_off);
    assert_eq!(theatre.provoke(), Vec::<Vec<u8>>::new());
    let update = |theatre: &Theatre, quiet: &mut Quiet, rules: &QuietRules| {
        theatre.director.enter(|| quiet.update(rules).unwrap());
    };
    // A VIP comes, and goes; a real server comes, goes, and stays quiet.
    let mut more = rules();
    more.vips.insert(OTHER_VIP.into());
    more.real_servers.insert(OTHER_RIP.into());
    for _ in 0..3 {
        theatre.provoke_from_client(OTHER_VIP);
        assert!(theatre.heard().len() > 1);
        update(&theatre, &mut quiet, &more);
        theatre.provoke_from_client(OTHER_VIP);
        theatre.provoke_from_server(OTHER_RIP);
        assert_eq!(theatre.provoke(), Vec::<Vec<u8>>::new());
        update(&theatre, &mut quiet, &rules());
        theatre.provoke_from_server(OTHER_RIP);
        assert_eq!(theatre.provoke(), Vec::<Vec<u8>>::new());
    }
    // As many as there may be for nft; for the program, as many as fit.
    let count = if keep_off == KeepOff::Nft { 4000 } else { 300 };
    let mut many = more.clone();
    let far = |number: u32| IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + number));
    many.vips.extend((0..count).map(far));
    many.real_servers.extend((0..count).map(far));
    update(&theatre, &mut quiet, &many);
    theatre.provoke_from_client(OTHER_VIP);
    assert_eq!(theatre.provoke(), Vec::<Vec<u8>>::new());
    many.vips.extend((0..20_000).map(far));
    let error = theatre.director.enter(|| quiet.update(&many).unwrap_err());
    assert!(error.to_string().contains("4096"), "{error}");
    assert_eq!(theatre.provoke(), Vec::<Vec<u8>>::new());
    // The interface goes away and comes back.
    theatre.director.enter(|| link_delete("d0"));
    update(&theatre, &mut quiet, &more);
    veth(&theatre.client, "c0", &theatre.director, "d0");
    theatre.director.enter(|| {
        add_address("d0", OUTSIDE, 24);
        add_address("d0", OTHER_VIP, 32);
    });
    theatre.at_client = theatre.client.enter(|| listen("c0"));
    update(&theatre, &mut quiet, &more);
    theatre.provoke_from_client(OTHER_VIP);
    assert_eq!(theatre.heard(), Vec::<Vec<u8>>::new());
}

#[test]
fn nft_follows_changes() {
    in_world(User::Same, || following(KeepOff::Nft));
}

#[test]
fn tc_follows_changes() {
    in_world(User::Same, || following(KeepOff::Tc));
}

fn leave_behind(keep_off: KeepOff) {
    Box::leak(Box::new(
        Quiet::install(keep_off, &ports(), &rules()).unwrap(),
    ));
}

#[test]
fn nothing_stays_after_a_kill() {
    in_world(User::Same, || {
        let mut theatre = Theatre::new();
        theatre.configure_vips();
        let before = theatre.director.enter(installed);
        theatre
            .director
            .enter(|| killed(|| leave_behind(KeepOff::Nft)));
        // The kernel has taken the table away with its owner.
        assert_eq!(theatre.director.enter(installed), before);
        assert!(theatre.provoke().len() > 3);
        assert_eq!(
            theatre.director.enter(Quiet::cleanup_all),
            Vec::<String>::new()
        );

        theatre
            .director
            .enter(|| killed(|| leave_behind(KeepOff::Tc)));
        assert!(theatre.provoke().is_empty());
        let removed = theatre.director.enter(Quiet::cleanup_all);
        assert_eq!(
            removed,
            ["tc filter on d0 ingress", "tc filter on d1 ingress"]
        );
        assert_eq!(theatre.director.enter(installed), before);
        assert!(theatre.provoke().len() > 3);
        assert_eq!(
            theatre.director.enter(Quiet::cleanup_all),
            Vec::<String>::new()
        );
    });
}

#[test]
fn cleaning_up_leaves_a_living_director_alone() {
    in_world(User::Same, || {
        for keep_off in [KeepOff::Nft, KeepOff::Tc] {
            let mut theatre = Theatre::new();
            theatre.configure_vips();
            let quiet = theatre.quiet(keep_off);
            // Another process cleans up, and finds nothing to remove.
            theatre.director.enter(|| {
                killed(|| assert_eq!(Quiet::cleanup_all(), Vec::<String>::new()));
            });
            assert!(theatre.provoke().is_empty());
            drop(quiet);
        }
    });
}

#[test]
fn without_a_way_the_kernel_must_be_silent_by_itself() {
    in_world(User::Same, || {
        let mut theatre = Theatre::new();
        let none = |theatre: &Theatre| {
            theatre
                .director
                .enter(|| Quiet::install(KeepOff::None, &ports(), &rules()))
        };
        theatre.forward(false);
        let mut quiet = none(&theatre).unwrap();
        assert_eq!(quiet.keep_off(), KeepOff::None);
        assert!(theatre.provoke().is_empty());
        theatre.forward(true);
        let error = none(&theatre).unwrap_err().to_string();
        assert!(
            error.contains("net/ipv4/conf/d0/forwarding is on"),
            "{error}"
        );
        theatre.forward(false);
        theatre.configure_vips();
        let error = none(&theatre).unwrap_err().to_string();
        assert!(
            error.contains("ip addr del 10.0.0.100/32 dev d0"),
            "{error}"
        );
        let error = theatre.director.enter(|| quiet.update(&rules()));
        assert!(error.is_err());
    });
}

#[test]
fn keep_off_is_read_and_shown() {
    for way in KeepOff::ALL {
        assert_eq!(way.to_string().parse(), Ok(way));
    }
    assert!("iptables".parse::<KeepOff>().is_err());
}
