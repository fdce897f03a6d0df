//! Quiet by traffic control: the clsact queueing discipline on each port, and in its ingress a filter
//! with a program in classic BPF. The second choice, where nf_tables is not there: the addresses lie
//! in the program one by one, and what kill -9 leaves behind must be cleaned up. A classic program
//! needs no bpf(2), so this too works in a user namespace. See tc-bpf(8), `net/sched/cls_bpf.c`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Side;
use super::netlink::{Message, Netlink, Refused, attributes, text_of};
use super::quiet::{Addresses, QuietPort, is_left_over};
use super::steer::op::*;
use super::sys;

/// Our filters are numbered by this ("u") and, behind it, by the process, which has at most 22 bits.
const HANDLE_PREFIX: u32 = 0x75 << HANDLE_BITS;
const HANDLE_BITS: u32 = 24;
/// They stand before all others.
const FILTER_PRIORITY: u32 = 1;

/// The longest classic program the kernel takes (`BPF_MAXINSNS`).
const PROGRAM_LEN_MAX: usize = 4096;

/// The filters in force.
#[derive(Debug)]
pub(super) struct TcFilters {
    socket: Netlink,
    /// One for each port.
    places: Vec<Place>,
}

/// Where a filter is.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// Interface number; 0 while the interface is gone.
    index: u32,
    /// The queueing discipline was not there before.
    is_ours: bool,
}

impl TcFilters {
    /// Puts a filter on each port.
    pub fn install(ports: &[QuietPort], addresses: &Addresses) -> Result<TcFilters, Refused> {
        let mut filters = TcFilters {
            socket: Netlink::open(libc::NETLINK_ROUTE)?,
            places: vec![Place::default(); ports.len()],
        };
        filters.update(ports, addresses)?;
        Ok(filters)
    }

    /// Replaces the programs; an interface that came back gets one.
    pub fn update(&mut self, ports: &[QuietPort], addresses: &Addresses) -> Result<(), Refused> {
        for (port, place) in ports.iter().zip(&mut self.places) {
            let program = program(port.side, addresses);
            if program.len() > PROGRAM_LEN_MAX {
                return Err(Refused {
                    errno: libc::E2BIG,
                    words: "too many addresses for a filter program; use nft".to_string(),
                });
            }
            // One that is gone has no frames.
            let index = sys::interface_index(&port.name).unwrap_or(0);
            if index != place.index {
                *place = Place {
                    index,
                    is_ours: index != 0 && add_clsact(&mut self.socket, index)?,
                };
            }
            if index != 0 {
                self.socket.request(filter_message(index, &program))?;
            }
        }
        Ok(())
    }
}

impl Drop for TcFilters {
    fn drop(&mut self) {
        for place in self.places.iter().filter(|place| place.index != 0) {
            // Where it fails the interface is gone, and the filter with it.
            let _ = self
                .socket
                .request(delete_message(place.index, own_handle()));
            if place.is_ours {
                remove_if_empty(&mut self.socket, place.index);
            }
        }
    }
}

/// Removes our filters from all interfaces; says which. Who made the queueing discipline cannot be
/// seen; it goes too if nothing else uses it.
pub(super) fn cleanup_all() -> Vec<String> {
    let Ok(mut socket) = Netlink::open(libc::NETLINK_ROUTE) else {
        return Vec::new();
    };
    let mut removed = Vec::new();
    for interface in super::interfaces() {
        let mut found = filters_of(&mut socket, interface.index, INGRESS);
        found.retain(|handle| is_ours_left_over(*handle));
        for handle in found {
            if socket
                .request(delete_message(interface.index, handle))
                .is_ok()
            {
                remove_if_empty(&mut socket, interface.index);
                removed.push(format!("tc filter on {} ingress", interface.name));
            }
        }
    }
    removed
}

fn own_handle() -> u32 {
    HANDLE_PREFIX | std::process::id()
}

fn is_ours_left_over(handle: u32) -> bool {
    let process = handle & ((1 << HANDLE_BITS) - 1);
    handle & !((1 << HANDLE_BITS) - 1) == HANDLE_PREFIX && is_left_over(process)
}

/// Adds the queueing discipline; says whether it was not there before.
fn add_clsact(socket: &mut Netlink, index: u32) -> Result<bool, Refused> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    match socket.request(clsact_message(libc::RTM_NEWQDISC, flags, index)) {
        Ok(()) => Ok(true),
        Err(refused) if refused.errno == libc::EEXIST => Ok(false),
        Err(refused) => Err(refused),
    }
}

fn remove_if_empty(socket: &mut Netlink, index: u32) {
    let mut filters = filters_of(socket, index, INGRESS);
    filters.extend(filters_of(socket, index, EGRESS));
    if filters.is_empty() {
        // Nothing of ours is in it any more; where it fails it stays, and does nothing.
        let _ = socket.request(clsact_message(libc::RTM_DELQDISC, 0, index));
    }
}

/// The handles of the filters in one direction.
fn filters_of(socket: &mut Netlink, index: u32, parent: u32) -> Vec<u32> {
    let mut handles = Vec::new();
    let request = tc_message(libc::RTM_GETTFILTER, 0, index, 0, parent, 0);
    // It fails where there is no such queueing discipline; then there are no filters either.
    let _ = socket.dump(request, &mut |_, payload| {
        let handle = payload.get(8..12).and_then(|bytes| bytes.first_chunk());
        let handle = handle.map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        let rest = payload.get(TCMSG_LEN..).unwrap_or_default();
        let kind = attributes(rest).find(|(kind, _)| *kind == libc::TCA_KIND);
        // A line for the whole priority comes too; it has no handle.
        if kind.is_some_and(|(_, value)| !text_of(value).is_empty()) && handle != 0 {
            handles.push(handle);
        }
    });
    handles
}

fn clsact_message(kind: u16, flags: i32, index: u32) -> Message {
    let mut message = tc_message(kind, flags, index, CLSACT_HANDLE, CLSACT, 0);
    message.text(libc::TCA_KIND, "clsact");
    message
}

fn filter_message(index: u32, program: &[libc::sock_filter]) -> Message {
    let flags = libc::NLM_F_CREATE;
    let handle = own_handle();
    let mut message = tc_message(libc::RTM_NEWTFILTER, flags, index, handle, INGRESS, INFO);
    message.text(libc::TCA_KIND, "bpf");
    message.nest(libc::TCA_OPTIONS, |options| {
        options.put(TCA_BPF_OPS_LEN, &(program.len() as u16).to_ne_bytes());
        let bytes: Vec<u8> = program
            .iter()
            .flat_map(|op| {
                let [c0, c1] = op.code.to_ne_bytes();
                let [k0, k1, k2, k3] = op.k.to_ne_bytes();
                [c0, c1, op.jt, op.jf, k0, k1, k2, k3]
            })
            .collect();
        options.put(TCA_BPF_OPS, &bytes);
        options.native(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
    });
    message
}

fn delete_message(index: u32, handle: u32) -> Message {
    let mut message = tc_message(libc::RTM_DELTFILTER, 0, index, handle, INGRESS, INFO);
    message.text(libc::TCA_KIND, "bpf");
    message
}

/// A message with a `tcmsg`.
fn tc_message(kind: u16, flags: i32, index: u32, handle: u32, parent: u32, info: u32) -> Message {
    let mut fixed = Vec::with_capacity(TCMSG_LEN);
    for word in [0, index, handle, parent, info] {
        fixed.extend_from_slice(&word.to_ne_bytes());
    }
    Message::new(kind, flags, &fixed)
}

/// The program: drops (`TC_ACT_SHOT`) what is ours, and has no opinion of the rest.
fn program(side: Side, addresses: &Addresses) -> Vec<libc::sock_filter> {
    let is_private = side == Side::Private;
    let mut arp = vec![load_word(net(24))];
    arp.extend(for_each4(&addresses.ours, DROP));
    arp.push(give_back(PASS));

    let mut ipv4 = vec![load_word(net(16))];
    ipv4.extend(for_each4(&addresses.ours, DROP));
    if is_private {
        ipv4.extend(for_each4(&addresses.kernel, PASS));
        ipv4.extend(pass_unless_unicast_to_us());
        ipv4.push(load_word(net(12)));
        ipv4.extend(for_each4(&addresses.real_servers, DROP));
    }
    ipv4.push(give_back(PASS));

    // Neighbour solicitation (RFC 4861 section 4.3) carries its target behind the ICMPv6 header.
    let mut solicited = Vec::new();
    solicited.extend(for_each6(48, &addresses.ours, DROP));
    let mut ipv6 = for_each6(24, &addresses.ours, DROP);
    ipv6.extend([
        load_byte(net(6)),
        jump_if(58, 1, 0),
        jump_over(2 + 1 + solicited.len() as u32),
        load_byte(net(40)),
        jump_if(135, 1, 0),
        jump_over(solicited.len() as u32),
    ]);
    ipv6.extend(solicited);
    if is_private {
        ipv6.extend(for_each6(24, &addresses.kernel, PASS));
        ipv6.extend(pass_unless_unicast_to_us());
        ipv6.extend(for_each6(8, &addresses.real_servers, DROP));
    }

    let protocol = (libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL) as u32;
    let mut all = vec![load_word(protocol)];
    for (ethertype, part) in [(0x0806, arp), (0x0800, ipv4), (0x86dd, ipv6)] {
        all.push(jump_if(ethertype, 1, 0));
        all.push(jump_over(part.len() as u32 + 1));
        all.extend(part);
        all.push(give_back(PASS));
    }
    all.push(give_back(PASS));
    all
}

/// Ends with `verdict` if the word that was loaded is one of these addresses.
fn for_each4(addresses: &BTreeSet<IpAddr>, verdict: u32) -> Vec<libc::sock_filter> {
    let one = |address: &IpAddr| match address {
        IpAddr::V4(address) => vec![jump_if(u32::from(*address), 0, 1), give_back(verdict)],
        IpAddr::V6(_) => Vec::new(),
    };
    addresses.iter().flat_map(one).collect()
}

/// Ends with `verdict` if one of these addresses stands at `offset` of the network header.
fn for_each6(offset: u32, addresses: &BTreeSet<IpAddr>, verdict: u32) -> Vec<libc::sock_filter> {
    let one = |address: &IpAddr| {
        let IpAddr::V6(address) = address else {
            return Vec::new();
        };
        let mut part = Vec::new();
        for word in 0..4 {
            let shift = 96 - 32 * word;
            let bits = (u128::from(*address) >> shift) as u32;
            // What is left of this address is skipped where a word differs.
            let rest = 2 * (3 - word) as u8 + 1;
            part.push(load_word(net(offset + 4 * word as u32)));
            part.push(jump_if(bits, 0, rest));
        }
        part.push(give_back(verdict));
        part
    };
    addresses.iter().flat_map(one).collect()
}

fn pass_unless_unicast_to_us() -> [libc::sock_filter; 3] {
    let kind = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
    [
        load_word(kind),
        jump_if(u32::from(libc::PACKET_HOST), 1, 0),
        give_back(PASS),
    ]
}

/// An offset in the network header.
fn net(offset: u32) -> u32 {
    (libc::SKF_NET_OFF as u32).wrapping_add(offset)
}

/// `TC_ACT_SHOT`
const DROP: u32 = 2;
/// `TC_ACT_UNSPEC`: the next filter may have it.
const PASS: u32 = u32::MAX;

const TCMSG_LEN: usize = 20;
/// `TC_H_CLSACT`, its handle, and its two directions.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// Priority above, protocol below.
const INFO: u32 = FILTER_PRIORITY << 16 | (libc::ETH_P_ALL as u16).to_be() as u32;
const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
