//! The kernel's end of the port by which packets reach programs of this machine: a TAP device that the
//! daemon has opened. Sets it up, gives it addresses, and sends back into it what the kernel answers from
//! there (rules by source); undoes that when dropped. The device, its addresses and its routes go with its
//! descriptors. See `include/uapi/linux/{if_link,if_addr,fib_rules,rtnetlink}.h`.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use super::netlink::{Message, Netlink, Refused, attributes};

/// Its name. There is one for each network namespace.
pub const LOCAL_DEVICE: &str = "ulvs-local";

/// The routing table with one route: into the device. Its number spells "ulvs".
const TABLE: u32 = 0x756c_7673;
/// Before the main table, behind that of local addresses.
const RULE_PRIORITY: u32 = 100;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// No search for duplicates, no route beside our own.
const IFA_F_NODAD: u32 = 0x02;
const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
/// Bytes of `fib_rule_hdr`.
const RULE_HEADER_LEN: usize = 12;
const FR_ACT_TO_TBL: u8 = 1;

/// What the kernel says from here is for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelSource {
    /// The address.
    pub address: IpAddr,
    /// Protocol and port; all of the address if there are none.
    pub port: Option<(u8, u16)>,
}

/// What the kernel's end shall have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelHoldings {
    /// Addresses that the kernel shall hold there.
    pub addresses: BTreeSet<IpAddr>,
    /// What it says from here comes out of the device, wherever it goes.
    pub sources: BTreeSet<KernelSource>,
}

/// The device is set up as long as this lives.
#[derive(Debug)]
pub struct LocalLink {
    socket: Netlink,
    index: u32,
    ends: KernelHoldings,
}

impl LocalLink {
    /// Sets up the device of that name, which is open.
    ///
    /// # Errors
    /// A message that says what the kernel refused.
    pub fn set_up() -> Result<LocalLink, String> {
        let failed =
            |what: &str, refused: &Refused| format!("{LOCAL_DEVICE}: cannot {what}: {refused}");
        let index = super::all_interfaces()
            .into_iter()
            .find(|interface| interface.name == LOCAL_DEVICE)
            .map(|interface| interface.index)
            .ok_or_else(|| format!("{LOCAL_DEVICE} is not there"))?;
        let socket = Netlink::open(libc::NETLINK_ROUTE);
        let mut socket = socket.map_err(|error| failed("ask the kernel", &error.into()))?;
        remove_left_rules(&mut socket).map_err(|refused| failed("clean up", &refused))?;
        // What comes from us has sources that are elsewhere, and errors come from our own addresses.
        set_switch("ipv4", "rp_filter", "0");
        set_switch("ipv4", "accept_local", "1");
        // Neither an address of its own nor a search for routers, but IPv6.
        set_switch("ipv6", "disable_ipv6", "0");
        set_switch("ipv6", "addr_gen_mode", "1");
        set_switch("ipv6", "accept_ra", "0");
        let up = socket.request(link_up(index));
        up.map_err(|refused| failed("set it up", &refused))?;
        let routed = routes_into(&mut socket, index);
        routed.map_err(|refused| failed("route into it", &refused))?;
        Ok(LocalLink {
            socket,
            index,
            ends: KernelHoldings::default(),
        })
    }

    /// Follows a change. What is new comes before what is old goes.
    ///
    /// # Errors
    /// A message that says what the kernel refused; the rest was done.
    pub fn update(&mut self, wanted: &KernelHoldings) -> Result<(), String> {
        if *wanted == self.ends {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.ends, wanted.clone());
        let come = (
            wanted.addresses.difference(&before.addresses),
            wanted.sources.difference(&before.sources),
        );
        let gone = (
            before.addresses.difference(&wanted.addresses),
            before.sources.difference(&wanted.sources),
        );
        let index = self.index;
        let requests = (come.0.map(|own| address(RTM_NEWADDR, own, index)))
            .chain(come.1.map(|end| rule(RTM_NEWRULE, end)))
            .chain(gone.1.map(|end| rule(RTM_DELRULE, end)))
            .chain(gone.0.map(|own| address(RTM_DELADDR, own, index)));
        let mut refusals = Vec::new();
        for request in requests {
            match self.socket.request(request) {
                Ok(()) => {}
                // Somebody else has done it already.
                Err(refused) if [libc::EEXIST, libc::ENOENT].contains(&refused.errno) => {}
                Err(refused) => refusals.push(refused.to_string()),
            }
        }
        // Without an address of a family a device has no routes of that either (`fib_disable_ip`).
        if let Err(refused) = routes_into(&mut self.socket, index) {
            refusals.push(refused.to_string());
        }
        match refusals.first() {
            None => Ok(()),
            Some(first) => Err(format!(
                "{LOCAL_DEVICE}: {} of the addresses and rules of real servers that are this \
                 machine were refused, the first: {first}",
                refusals.len()
            )),
        }
    }
}

impl Drop for LocalLink {
    fn drop(&mut self) {
        for end in &self.ends.sources {
            // A rule into a table without routes does nothing.
            let _ = self.socket.request(rule(RTM_DELRULE, end));
        }
    }
}

/// The routes of our table, anew or once more.
fn routes_into(socket: &mut Netlink, index: u32) -> Result<(), Refused> {
    socket.request(route_into(libc::AF_INET, index))?;
    // There may be a kernel without IPv6.
    let _ = socket.request(route_into(libc::AF_INET6, index));
    Ok(())
}

/// A switch of the device that not every kernel has, or lets us change.
fn set_switch(family: &str, name: &str, value: &str) {
    let path = format!("/proc/sys/net/{family}/conf/{LOCAL_DEVICE}/{name}");
    let _ = fs::write(path, value);
}

/// How many rules of ours are in force.
#[cfg(test)]
pub(super) fn rules_in_force() -> Result<usize, Refused> {
    rules_of_ours(&mut Netlink::open(libc::NETLINK_ROUTE)?).map(|rules| rules.len())
}

/// Rules of a director that could not clean up.
fn remove_left_rules(socket: &mut Netlink) -> Result<(), Refused> {
    for rule in rules_of_ours(socket)? {
        // As it was told it is named.
        socket.request(Message::new(RTM_DELRULE, 0, &rule))?;
    }
    Ok(())
}

fn rules_of_ours(socket: &mut Netlink) -> Result<Vec<Vec<u8>>, Refused> {
    let mut left = Vec::new();
    let all = Message::new(RTM_GETRULE, 0, &[0; RULE_HEADER_LEN]);
    socket.dump(all, &mut |_, payload| {
        let rest = payload.get(RULE_HEADER_LEN..).unwrap_or_default();
        let table = attributes(rest).find(|(kind, _)| *kind == FRA_TABLE);
        if table.is_some_and(|(_, table)| table == TABLE.to_ne_bytes()) {
            left.push(payload.to_vec());
        }
    })?;
    Ok(left)
}

fn link_up(index: u32) -> Message {
    // Without ARP both ends have one MAC address, and nobody asks.
    let flags = (libc::IFF_UP | libc::IFF_NOARP) as u32;
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&flags.to_ne_bytes());
    Message::new(RTM_NEWLINK, 0, &fixed)
}

fn route_into(family: i32, index: u32) -> Message {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let scope = match family {
        libc::AF_INET => libc::RT_SCOPE_LINK,
        _ => libc::RT_SCOPE_UNIVERSE,
    };
    let kind = libc::RTN_UNICAST;
    let [table, protocol] = [libc::RT_TABLE_UNSPEC, libc::RTPROT_STATIC];
    let fixed = [
        family as u8,
        0,
        0,
        0,
        table,
        protocol,
        scope,
        kind,
        0,
        0,
        0,
        0,
    ];
    let mut message = Message::new(RTM_NEWROUTE, flags, &fixed);
    message.native(RTA_TABLE, TABLE).native(RTA_OIF, index);
    message
}

fn address(kind: u16, own: &IpAddr, index: u32) -> Message {
    let (family, bytes) = octets(own);
    let flags = match kind {
        RTM_NEWADDR => libc::NLM_F_CREATE | libc::NLM_F_EXCL,
        _ => 0,
    };
    let mut fixed = [family, bytes.len() as u8 * 8, 0, 0, 0, 0, 0, 0];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(kind, flags, &fixed);
    message.put(IFA_LOCAL, &bytes).put(IFA_ADDRESS, &bytes);
    if kind == RTM_NEWADDR {
        message.native(IFA_FLAGS, IFA_F_NODAD);
    }
    message
}

fn rule(kind: u16, end: &KernelSource) -> Message {
    let (family, bytes) = octets(&end.address);
    let flags = match kind {
        RTM_NEWRULE => libc::NLM_F_CREATE | libc::NLM_F_EXCL,
        _ => 0,
    };
    let len = bytes.len() as u8 * 8;
    let fixed = [family, 0, len, 0, 0, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
    let mut message = Message::new(kind, flags, &fixed);
    message.put(FRA_SRC, &bytes);
    message.native(FRA_PRIORITY, RULE_PRIORITY);
    message.native(FRA_TABLE, TABLE);
    if let Some((protocol, port)) = end.port {
        message.put(FRA_IP_PROTO, &[protocol]);
        let port = port.to_ne_bytes();
        message.put(FRA_SPORT_RANGE, &[port, port].concat());
    }
    message
}

fn octets(address: &IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(v4) => (libc::AF_INET as u8, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6 as u8, v6.octets().to_vec()),
    }
}
