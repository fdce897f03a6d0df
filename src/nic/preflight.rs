//! Preflight: what a machine may be set to that would make the director fail silently, looked for
//! before it starts, each with what to do about it. Only reads; what cannot be read is not warned of.
//! What makes starting impossible is not here: `open` and `Quiet::install` refuse it.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};

use super::netlink::{Message, Netlink, attributes};
use super::packet_socket::{Buffer, set_buffer};
use super::sys::{self, check};
use super::{Backend, Interface, OpenOptions, QuietRules};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It works, but not as well as it could.
    Note,
    /// Traffic will be lost or go wrong.
    Trouble,
}

/// Something that will make trouble, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// How bad it is.
    pub severity: Severity,
    message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

fn note(message: String) -> Warning {
    Warning {
        severity: Severity::Note,
        message,
    }
}

fn trouble(message: String) -> Warning {
    Warning {
        severity: Severity::Trouble,
        message,
    }
}

/// Looks at this machine (the network namespace of this thread) as it will be used: with `backend`
/// on the interfaces of `ports`, for the addresses of `rules`. The worst comes first.
pub fn preflight(backend: Backend, ports: &[OpenOptions], rules: &QuietRules) -> Vec<Warning> {
    let machine = super::interfaces();
    let used: Vec<&Interface> = ports
        .iter()
        .filter_map(|port| machine.iter().find(|found| found.name == port.interface))
        .collect();
    let mut warnings = same_twice(ports);
    warnings.extend(vips_in_kernel(&machine, rules));
    if let Ok(socket) = sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) {
        warnings.extend(unlike_mtus(&socket, &used));
        if backend == Backend::Tun {
            warnings.extend(used.iter().flat_map(|port| unrouted(port)));
        } else {
            warnings.extend(used.iter().flat_map(|port| unfit(&socket, port)));
            warnings.extend(enslaved(&used));
            warnings.extend(small_buffers(&socket, ports));
        }
    }
    warnings.sort_by_key(|warning| std::cmp::Reverse(warning.severity));
    warnings
}

/// Two ports on one interface would each get every frame.
fn same_twice(ports: &[OpenOptions]) -> Vec<Warning> {
    let earlier = |index: usize| ports[..index].iter().map(|port| &port.interface);
    ports
        .iter()
        .enumerate()
        .filter(|(index, port)| earlier(*index).any(|name| *name == port.interface))
        .map(|(_, port)| {
            trouble(format!(
                "interface `{}` is a port twice, so each frame would be taken twice: name it once",
                port.interface
            ))
        })
        .collect()
}

fn vips_in_kernel(machine: &[Interface], rules: &QuietRules) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for interface in machine {
        let held = interface.addresses.iter();
        for (vip, prefix_len) in held.filter(|(address, _)| rules.vips.contains(address)) {
            warnings.push(note(format!(
                "{vip} is a virtual address, and the kernel holds it too (on `{0}`), so \
                 programs of this machine will meet the kernel there: \
                 ip addr del {vip}/{prefix_len} dev {0}",
                interface.name
            )));
        }
    }
    warnings
}

fn unlike_mtus(socket: &OwnedFd, ports: &[&Interface]) -> Option<Warning> {
    let mtus: Vec<(u32, &str)> = ports
        .iter()
        .filter_map(|port| Some((sys::interface_mtu(socket, &port.name).ok()?, &*port.name)))
        .collect();
    let (least, most) = (mtus.iter().min()?, mtus.iter().max()?);
    (least.0 < most.0).then(|| {
        note(format!(
            "`{}` takes packets of {} bytes and `{}` only of {}: longer ones are dropped, their \
             sender is told; give both the same MTU (ip link set {} mtu {})",
            most.1, most.0, least.1, least.0, least.1, most.0
        ))
    })
}

/// What AF_PACKET needs of a port.
fn unfit(socket: &OwnedFd, port: &Interface) -> Vec<Warning> {
    let name = &port.name;
    let mut warnings = Vec::new();
    if port.loopback {
        warnings.push(trouble(format!(
            "`{name}` is the loopback: what a program sends there never leaves the kernel; \
             use an interface with a neighbour"
        )));
        return warnings;
    }
    if !port.up {
        warnings.push(trouble(format!(
            "`{name}` is down: nothing comes or goes until it is up (ip link set {name} up)"
        )));
    } else if feature(socket, name, ETHTOOL_GLINK) == Some(0) {
        warnings.push(trouble(format!(
            "`{name}` has no link: is its cable in, is the other end up?"
        )));
    }
    if feature(socket, name, ETHTOOL_GFLAGS).is_some_and(|flags| flags & ETH_FLAG_LRO != 0) {
        warnings.push(trouble(format!(
            "`{name}` merges packets for good (LRO), which cannot be forwarded: \
             ethtool -K {name} lro off"
        )));
    }
    if feature(socket, name, ETHTOOL_GTSO) == Some(0) {
        warnings.push(note(format!(
            "`{name}` does not cut long TCP packets by itself, so the kernel must: \
             ethtool -K {name} tso on, if it can"
        )));
    }
    warnings
}

/// What the kernel must do around a TUN device.
fn unrouted(port: &Interface) -> Vec<Warning> {
    let name = &port.name;
    let mut warnings = Vec::new();
    let is_off = |path: &str| sys::sysctl(path).is_some_and(|value| value == "0");
    if is_off("net/ipv4/ip_forward") {
        warnings.push(trouble(format!(
            "the kernel does not forward, so nothing will come to the TUN device `{name}`: \
             sysctl -w net.ipv4.ip_forward=1"
        )));
    }
    // The kernel takes the stricter of the two.
    let strict = ["all", name].map(|which| {
        let value = sys::sysctl(&format!("net/ipv4/conf/{which}/rp_filter"));
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    });
    if strict.into_iter().max() == Some(1) {
        warnings.push(trouble(format!(
            "the kernel will drop what we send through `{name}` for clients, whom it knows \
             elsewhere (strict rp_filter): sysctl -w net.ipv4.conf.{name}.rp_filter=2"
        )));
    }
    warnings
}

/// A bridge, bond or team takes the frames of its ports for itself, besides us.
fn enslaved(ports: &[&Interface]) -> Vec<Warning> {
    const IFINFOMSG_LEN: usize = 16;
    let mut masters: Vec<(u32, u32)> = Vec::new();
    let request = Message::new(libc::RTM_GETLINK, 0, &[0; IFINFOMSG_LEN]);
    let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let asked = Netlink::open(libc::NETLINK_ROUTE).map(|mut socket| {
        socket.dump(request, &mut |_, payload| {
            let index = payload.get(4..8).and_then(number);
            let rest = payload.get(IFINFOMSG_LEN..).unwrap_or_default();
            let master = attributes(rest).find(|(kind, _)| *kind == libc::IFLA_MASTER);
            let master = master.and_then(|(_, value)| number(value));
            masters.extend(index.zip(master));
        })
    });
    if !matches!(asked, Ok(Ok(()))) {
        return Vec::new();
    }
    let is_slave = |port: &&&Interface| masters.iter().any(|(index, _)| *index == port.index);
    ports
        .iter()
        .filter(is_slave)
        .map(|port| {
            trouble(format!(
                "`{0}` is part of a bridge, bond or team, which forwards its frames besides us: \
                 use that one, or take `{0}` out of it (ip link set {0} nomaster)",
                port.name
            ))
        })
        .collect()
}

fn small_buffers(socket: &OwnedFd, ports: &[OpenOptions]) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let kinds = [
        (Buffer::Receive, "receive", "rmem_max", libc::SO_RCVBUF),
        (Buffer::Send, "send", "wmem_max", libc::SO_SNDBUF),
    ];
    for (which, word, sysctl, option) in kinds {
        let wanted = ports.iter().map(|port| match which {
            Buffer::Receive => port.receive_buffer_bytes,
            Buffer::Send => port.send_buffer_bytes,
        });
        let Some(wanted) = wanted.max() else { continue };
        let got = set_buffer(socket, which, wanted)
            .and_then(|()| sys::get_option::<i32>(socket, libc::SOL_SOCKET, option));
        let Ok(got) = got else { continue };
        if (got as usize) < wanted / 2 {
            warnings.push(note(format!(
                "the {word} buffers are {} KiB instead of {} KiB, so bursts may be lost: run with \
                 CAP_NET_ADMIN, or as root sysctl -w net.core.{sysctl}={}",
                got / 1024,
                wanted / 1024,
                wanted / 2
            )));
        }
    }
    warnings
}

/// A word that the driver tells about itself (`ethtool_value`).
fn feature(socket: &OwnedFd, interface: &str, question: u32) -> Option<u32> {
    let mut request = sys::request_for(interface)?;
    let mut value = [question, 0];
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: SIOCETHTOOL reads the name and writes the second word of `value`, which lives through
    // the call, as these questions are answered with one word.
    let asked = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &mut request) };
    check(asked).ok().map(|_| value[1])
}

const ETHTOOL_GLINK: u32 = 0x0a;
const ETHTOOL_GTSO: u32 = 0x1e;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETH_FLAG_LRO: u32 = 1 << 15;
