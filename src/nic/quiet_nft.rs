//! Quiet by nf_tables: one table in the netdev family with a chain on each port's ingress and the
//! addresses in sets. Written as raw netlink, so no `nft` program is needed. The table belongs to our
//! socket: the kernel removes it when the socket is closed, also after kill -9. See nft(8), and
//! `include/uapi/linux/netfilter/nf_tables.h` for the numbers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Side;
use super::netlink::{Message, Netlink, Refused, attributes, text_of};
use super::quiet::{Addresses, QuietPort, is_left_over};
use super::sys;

/// Our tables are called this and the process number.
const TABLE_PREFIX: &str = "ulvs-";

/// Before everything that others hook into ingress (`NF_IP_PRI_RAW` is -300).
const PRIORITY: i32 = -500;

/// Addresses in one message: an attribute holds 64 KiB, and an address needs 28 bytes.
const MESSAGE_ADDRESSES_MAX: usize = 1024;

/// The table in force.
#[derive(Debug)]
pub(super) struct NftTable {
    socket: Netlink,
    name: String,
    is_owned: bool,
    /// Interface numbers when the chains were hooked.
    hooked: Vec<Option<u32>>,
}

impl NftTable {
    /// Makes the table.
    pub fn install(ports: &[QuietPort], addresses: &Addresses) -> Result<NftTable, Refused> {
        let mut table = NftTable {
            socket: Netlink::open(libc::NETLINK_NETFILTER)?,
            name: format!("{TABLE_PREFIX}{}", std::process::id()),
            is_owned: true,
            hooked: Vec::new(),
        };
        match table.build(ports, addresses) {
            // Linux before 5.12 knows no owners.
            Err(refused) if matches!(refused.errno, libc::EINVAL | libc::EOPNOTSUPP) => {
                table.is_owned = false;
                table.build(ports, addresses)?;
            }
            built => built?,
        }
        Ok(table)
    }

    /// Changes the sets, or makes everything anew where a port has come back.
    pub fn update(
        &mut self,
        ports: &[QuietPort],
        old: &Addresses,
        new: &Addresses,
    ) -> Result<(), Refused> {
        if self.hooked != numbers_of(ports) {
            return self.build(ports, new);
        }
        let mut changes = Vec::new();
        for set in Set::ALL {
            let (old, new) = (set.of(old), set.of(new));
            let gone = old.difference(new).copied().collect();
            let come = new.difference(old).copied().collect();
            changes.extend(self.elements(NFT_MSG_DELSETELEM, set, &gone));
            changes.extend(self.elements(NFT_MSG_NEWSETELEM, set, &come));
        }
        if changes.is_empty() {
            return Ok(());
        }
        // Somebody may have flushed the rules (a kernel without owners): then make them anew.
        self.send(changes).or_else(|refused| match refused.errno {
            libc::ENOENT => self.build(ports, new),
            _ => Err(refused),
        })
    }

    /// Takes away what there is and makes all of it, in one transaction: no frame slips through.
    fn build(&mut self, ports: &[QuietPort], addresses: &Addresses) -> Result<(), Refused> {
        let hooked = numbers_of(ports);
        let owner = if self.is_owned { NFT_TABLE_F_OWNER } else { 0 };
        let mut all = vec![
            self.table_message(NFT_MSG_NEWTABLE, owner),
            self.table_message(NFT_MSG_DELTABLE, 0),
            self.table_message(NFT_MSG_NEWTABLE, owner),
        ];
        for set in Set::ALL {
            all.push(self.set_message(set));
            all.extend(self.elements(NFT_MSG_NEWSETELEM, set, set.of(addresses)));
        }
        for (port, index) in ports.iter().zip(&hooked) {
            // One that is gone has no frames; `update` is told when it comes back.
            if index.is_some() {
                all.push(self.chain_message(&port.name));
                all.extend(self.rules(port));
            }
        }
        self.send(all)?;
        self.hooked = hooked;
        Ok(())
    }

    fn send(&mut self, requests: Vec<Message>) -> Result<(), Refused> {
        send(&mut self.socket, requests)
    }

    fn table_message(&self, kind: u16, flags: u32) -> Message {
        let mut message = message(kind, libc::NLM_F_CREATE);
        message.text(NFTA_TABLE_NAME, &self.name);
        if kind == NFT_MSG_NEWTABLE {
            message.number(NFTA_TABLE_FLAGS, flags);
        }
        message
    }

    fn set_message(&self, set: Set) -> Message {
        let mut message = message(NFT_MSG_NEWSET, libc::NLM_F_CREATE);
        message
            .text(NFTA_SET_TABLE, &self.name)
            .text(NFTA_SET_NAME, set.name())
            .number(NFTA_SET_FLAGS, 0)
            .number(NFTA_SET_KEY_TYPE, set.family().key_type())
            .number(NFTA_SET_KEY_LEN, set.family().len())
            .number(NFTA_SET_ID, set as u32);
        message
    }

    /// Messages that put `addresses` into the set, or take them out.
    fn elements(&self, kind: u16, set: Set, addresses: &BTreeSet<IpAddr>) -> Vec<Message> {
        let keys: Vec<Vec<u8>> = addresses
            .iter()
            .filter_map(|address| set.family().key(address))
            .collect();
        let one = |keys: &[Vec<u8>]| {
            let mut message = message(kind, libc::NLM_F_CREATE);
            message.text(NFTA_SET_ELEM_LIST_TABLE, &self.name);
            message.text(NFTA_SET_ELEM_LIST_SET, set.name());
            message.number(NFTA_SET_ELEM_LIST_SET_ID, set as u32);
            message.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                for key in keys {
                    list.nest(NFTA_LIST_ELEM, |element| {
                        element.nest(NFTA_SET_ELEM_KEY, |data| {
                            data.put(NFTA_DATA_VALUE, key);
                        });
                    });
                }
            });
            message
        };
        keys.chunks(MESSAGE_ADDRESSES_MAX).map(one).collect()
    }

    fn chain_message(&self, port: &str) -> Message {
        let mut message = message(NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE);
        message.text(NFTA_CHAIN_TABLE, &self.name);
        message.text(NFTA_CHAIN_NAME, port);
        message.nest(NFTA_CHAIN_HOOK, |hook| {
            hook.number(NFTA_HOOK_HOOKNUM, NF_NETDEV_INGRESS);
            hook.number(NFTA_HOOK_PRIORITY, PRIORITY as u32);
            hook.text(NFTA_HOOK_DEV, port);
        });
        message.number(NFTA_CHAIN_POLICY, NF_ACCEPT);
        message.text(NFTA_CHAIN_TYPE, "filter");
        message
    }

    fn rules(&self, port: &QuietPort) -> Vec<Message> {
        let mut rules = vec![
            // ARP for our addresses, requests and answers: the target protocol address (RFC 826).
            self.rule(&port.name, |is| {
                is.protocol(ARP).in_set(24, Set::Ours4, false)
            }),
            self.rule(&port.name, |is| {
                is.protocol(IPV4).in_set(16, Set::Ours4, false)
            }),
            self.rule(&port.name, |is| {
                is.protocol(IPV6).in_set(24, Set::Ours6, false)
            }),
            // Neighbour solicitation for our addresses (RFC 4861 section 4.3).
            self.rule(&port.name, |is| {
                is.protocol(IPV6)
                    .byte(6, 58)
                    .byte(40, 135)
                    .in_set(48, Set::Ours6, false)
            }),
        ];
        if port.side == Side::Private {
            // What real servers send through us: to our MAC address, but not to the kernel's own
            // addresses, where answers to health checks go.
            rules.push(self.rule(&port.name, |is| {
                is.protocol(IPV4)
                    .unicast_to_us()
                    .in_set(12, Set::RealServers4, false)
                    .in_set(16, Set::Kernel4, true)
            }));
            rules.push(self.rule(&port.name, |is| {
                is.protocol(IPV6)
                    .unicast_to_us()
                    .in_set(8, Set::RealServers6, false)
                    .in_set(24, Set::Kernel6, true)
            }));
        }
        rules
    }

    /// A rule that drops what `matches` says.
    fn rule(&self, chain: &str, matches: impl FnOnce(Matches<'_>) -> Matches<'_>) -> Message {
        let mut message = message(NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND);
        message.text(NFTA_RULE_TABLE, &self.name);
        message.text(NFTA_RULE_CHAIN, chain);
        message.nest(NFTA_RULE_EXPRESSIONS, |list| {
            matches(Matches(list)).drop();
        });
        message
    }
}

impl Drop for NftTable {
    fn drop(&mut self) {
        let table = self.table_message(NFT_MSG_DELTABLE, 0);
        // Where it fails the table is gone already, or goes with the socket.
        let _ = self.send(vec![table]);
    }
}

/// Removes tables of directors that no longer run; says which.
pub(super) fn cleanup_all() -> Vec<String> {
    let Ok(mut socket) = Netlink::open(libc::NETLINK_NETFILTER) else {
        return Vec::new();
    };
    let mut names = Vec::new();
    let _ = socket.dump(message(NFT_MSG_GETTABLE, 0), &mut |_, payload| {
        let rest = payload.get(NFGENMSG_LEN..).unwrap_or_default();
        let name = attributes(rest).find(|(kind, _)| *kind == NFTA_TABLE_NAME);
        names.extend(name.map(|(_, value)| text_of(value)));
    });
    let process = |name: &String| name.strip_prefix(TABLE_PREFIX)?.parse().ok();
    names.retain(|name| process(name).is_some_and(is_left_over));
    names.retain(|name| {
        let mut table = message(NFT_MSG_DELTABLE, 0);
        table.text(NFTA_TABLE_NAME, name);
        // Where the kernel knows owners, it refuses to take a table from one.
        send(&mut socket, vec![table]).is_ok()
    });
    names
        .into_iter()
        .map(|name| format!("nft table netdev {name}"))
        .collect()
}

fn numbers_of(ports: &[QuietPort]) -> Vec<Option<u32>> {
    let number = |port: &QuietPort| sys::interface_index(&port.name);
    ports.iter().map(number).collect()
}

/// The sets of addresses; the number is also the set's identity inside a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Ours4 = 1,
    Ours6,
    RealServers4,
    RealServers6,
    Kernel4,
    Kernel6,
}

impl Set {
    const ALL: [Set; 6] = [
        Set::Ours4,
        Set::Ours6,
        Set::RealServers4,
        Set::RealServers6,
        Set::Kernel4,
        Set::Kernel6,
    ];

    fn name(self) -> &'static str {
        match self {
            Set::Ours4 => "ours4",
            Set::Ours6 => "ours6",
            Set::RealServers4 => "real-servers4",
            Set::RealServers6 => "real-servers6",
            Set::Kernel4 => "kernel4",
            Set::Kernel6 => "kernel6",
        }
    }

    fn family(self) -> Family {
        match self {
            Set::Ours4 | Set::RealServers4 | Set::Kernel4 => Family::V4,
            Set::Ours6 | Set::RealServers6 | Set::Kernel6 => Family::V6,
        }
    }

    fn of(self, addresses: &Addresses) -> &BTreeSet<IpAddr> {
        match self {
            Set::Ours4 | Set::Ours6 => &addresses.ours,
            Set::RealServers4 | Set::RealServers6 => &addresses.real_servers,
            Set::Kernel4 | Set::Kernel6 => &addresses.kernel,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn len(self) -> u32 {
        match self {
            Family::V4 => 4,
            Family::V6 => 16,
        }
    }

    /// What `nft list` shows the elements as: its own numbers for ipv4_addr and ipv6_addr.
    fn key_type(self) -> u32 {
        match self {
            Family::V4 => 7,
            Family::V6 => 8,
        }
    }

    fn key(self, address: &IpAddr) -> Option<Vec<u8>> {
        match (self, address) {
            (Family::V4, IpAddr::V4(address)) => Some(address.octets().to_vec()),
            (Family::V6, IpAddr::V6(address)) => Some(address.octets().to_vec()),
            _ => None,
        }
    }
}

/// The expressions of a rule, one after the other; all must hold.
struct Matches<'a>(&'a mut Message);

impl Matches<'_> {
    fn protocol(self, ethertype: u16) -> Self {
        self.expression("meta", |data| {
            data.number(NFTA_META_DREG, NFT_REG_1);
            data.number(NFTA_META_KEY, NFT_META_PROTOCOL);
        })
        .equals(&ethertype.to_be_bytes())
    }

    /// Sent to this interface's MAC address: not broadcast, not multicast, not another's.
    fn unicast_to_us(self) -> Self {
        self.expression("meta", |data| {
            data.number(NFTA_META_DREG, NFT_REG_1);
            data.number(NFTA_META_KEY, NFT_META_PKTTYPE);
        })
        .equals(&[libc::PACKET_HOST])
    }

    /// The byte at `offset` of the network header.
    fn byte(self, offset: u32, value: u8) -> Self {
        self.load(offset, 1).equals(&[value])
    }

    /// The address at `offset` of the network header is in the set, or (`inverted`) is not.
    fn in_set(self, offset: u32, set: Set, inverted: bool) -> Self {
        self.load(offset, set.family().len())
            .expression("lookup", |data| {
                data.text(NFTA_LOOKUP_SET, set.name());
                data.number(NFTA_LOOKUP_SREG, NFT_REG_1);
                data.number(NFTA_LOOKUP_SET_ID, set as u32);
                if inverted {
                    data.number(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
                }
            })
    }

    fn drop(self) {
        self.expression("immediate", |data| {
            data.number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            data.nest(NFTA_IMMEDIATE_DATA, |data| {
                data.nest(NFTA_DATA_VERDICT, |verdict| {
                    verdict.number(NFTA_VERDICT_CODE, NF_DROP);
                });
            });
        });
    }

    fn load(self, offset: u32, len: u32) -> Self {
        self.expression("payload", |data| {
            data.number(NFTA_PAYLOAD_DREG, NFT_REG_1);
            data.number(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_NETWORK_HEADER);
            data.number(NFTA_PAYLOAD_OFFSET, offset);
            data.number(NFTA_PAYLOAD_LEN, len);
        })
    }

    fn equals(self, value: &[u8]) -> Self {
        self.expression("cmp", |data| {
            data.number(NFTA_CMP_SREG, NFT_REG_1);
            data.number(NFTA_CMP_OP, NFT_CMP_EQ);
            data.nest(NFTA_CMP_DATA, |data| {
                data.put(NFTA_DATA_VALUE, value);
            });
        })
    }

    fn expression(self, name: &str, fill: impl FnOnce(&mut Message)) -> Self {
        self.0.nest(NFTA_LIST_ELEM, |element| {
            element.text(NFTA_EXPR_NAME, name);
            element.nest(NFTA_EXPR_DATA, fill);
        });
        self
    }
}

/// A message to nf_tables about the netdev family.
fn message(kind: u16, flags: i32) -> Message {
    let subsystem = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
    Message::new(subsystem | kind, flags, &[NFPROTO_NETDEV, 0, 0, 0])
}

/// Sends `requests` as one transaction.
fn send(socket: &mut Netlink, requests: Vec<Message>) -> Result<(), Refused> {
    let [high, low] = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
    let mark = |kind: i32| Message::new(kind as u16, 0, &[0, 0, high, low]);
    let (begin, end) = (
        mark(libc::NFNL_MSG_BATCH_BEGIN),
        mark(libc::NFNL_MSG_BATCH_END),
    );
    socket.batch(begin, requests, end)
}

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

const NFGENMSG_LEN: usize = 4;
const NFPROTO_NETDEV: u8 = 5;
const NF_NETDEV_INGRESS: u32 = 0;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFT_TABLE_F_OWNER: u32 = 2;
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
const NFT_META_PROTOCOL: u32 = 1;
const NFT_META_PKTTYPE: u32 = 19;
const NFT_CMP_EQ: u32 = 0;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_LOOKUP_F_INV: u32 = 1;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_HOOK_DEV: u16 = 3;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_LIST_SET_ID: u16 = 4;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_SET_ID: u16 = 4;
const NFTA_LOOKUP_FLAGS: u16 = 5;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
