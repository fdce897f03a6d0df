//! The network in which things are measured: a client, whoever is measured, and one machine with the
//! addresses of two real servers, on plain cables. No bridge: it would cost everybody the same, and hide
//! part of the difference.

use super::others::{loopback, no_reverse_path_filter};
use super::*;

/// What is between the client and the real servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// Nobody: client and real servers on one cable.
    Nobody,
    /// A machine that hands frames on as they are: both cables are one network.
    Wire,
    /// A machine whose kernel has the VIP and routes.
    Kernel,
    /// A director that reads frames.
    Frames,
    /// A director behind a TUN device.
    Tun,
    /// A machine whose kernel routes, and which answers go past on a cable of their own.
    KernelOneWay,
    /// A director of LVS-DR that reads frames; answers go past it on a cable of their own.
    FramesOneWay,
    /// The same with LVS-TUN: the real servers' machine unwraps.
    FramesWrapped,
}

impl Between {
    /// Everything that can be in the middle.
    pub const ALL: [Between; 8] = [
        Between::Nobody,
        Between::Wire,
        Between::Kernel,
        Between::Frames,
        Between::Tun,
        Between::KernelOneWay,
        Between::FramesOneWay,
        Between::FramesWrapped,
    ];

    /// Do answers go past it?
    pub const fn is_one_way(self) -> bool {
        matches!(
            self,
            Between::KernelOneWay | Between::FramesOneWay | Between::FramesWrapped
        )
    }
}

/// The second real server's address, on the same machine as the first.
const SECOND: Prefix = Prefix::v4(192, 168, 1, 12, 24);
/// The cable for answers that go past: the client's end, the real servers' end.
const BACK: [Prefix; 2] = [Prefix::v4(10, 9, 0, 1, 24), Prefix::v4(10, 9, 0, 2, 24)];
/// The client where it is in the real servers' network.
const NEAR_CLIENT: Prefix = Prefix::v4(192, 168, 1, 100, 24);

impl Topology {
    /// The network that is measured, with this in its middle.
    pub fn measured(between: Between) -> Topology {
        let path = match between {
            Between::Nobody | Between::Wire | Between::Kernel | Between::KernelOneWay => {
                Path::Kernel
            }
            Between::Frames | Between::FramesOneWay | Between::FramesWrapped => Path::Frames,
            Between::Tun => Path::Tun,
        };
        let mut topology = Topology::nat(path);
        topology.name = "measured".to_string();
        topology.masquerade = None;
        topology.notes = vec![];
        topology.leave_out_world();
        topology
            .hosts
            .retain(|host| !["rs2", "rs3"].contains(&host.name.as_str()));
        if between == Between::Nobody {
            topology.hosts.retain(|host| host.role != Role::Director);
        }
        for host in &mut topology.hosts {
            host.sysctls.extend(many_connections());
            match host.role {
                Role::RealServer { .. } => host.interfaces[0].addresses.push(SECOND),
                Role::Client if matches!(between, Between::Nobody | Between::Wire) => {
                    host.interfaces[0].addresses = vec![NEAR_CLIENT];
                    host.wiring = Wiring::default();
                }
                Role::Director => fit_director(host, between),
                _ => {}
            }
        }
        if between.is_one_way() {
            topology.lay_back_cable();
            topology.method = match between {
                Between::FramesWrapped => "tunnel",
                _ => "route",
            }
            .to_string();
        }
        if between == Between::Nobody {
            // One cable for both.
            topology.segments.retain(|segment| segment.name == "in");
            for host in &mut topology.hosts {
                host.interfaces[0].segment = "in".to_string();
            }
        }
        topology
    }

    /// A cable from the real servers' machine to the client. That machine has the VIP, too, and keeps
    /// silent when somebody asks who has it.
    fn lay_back_cable(&mut self) {
        self.segments.push(Segment {
            name: "back".to_string(),
            net: Prefix::v4(10, 9, 0, 0, 24),
            mtu: MTU_BYTES,
        });
        for host in &mut self.hosts {
            match host.role {
                Role::Client => {
                    let end = interface("eth1", "back", 0x64, vec![BACK[0]]);
                    host.interfaces.push(end);
                }
                Role::RealServer { .. } => {
                    let end = interface("eth1", "back", 0x1b, vec![BACK[1]]);
                    host.interfaces.extend([end, loopback(VIP)]);
                    host.wiring.routes = vec![route(ANYWHERE, BACK[0])];
                    for (name, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
                        let name = format!("ipv4/conf/all/{name}");
                        host.sysctls.push((name, value.to_string()));
                    }
                }
                _ => continue,
            }
            // What comes back, or out of a tunnel, has a source that is elsewhere.
            host.sysctls.extend(no_reverse_path_filter());
        }
    }
}

/// The one in the middle: addresses, and whether its kernel forwards.
fn fit_director(host: &mut Host, between: Between) {
    match between {
        Between::Kernel => host.interfaces[0].addresses.push(single(VIP)),
        Between::Wire => {
            host.interfaces
                .iter_mut()
                .for_each(|at| at.addresses.clear());
            let forward = |(name, value): &mut (String, String)| {
                if name == "ipv4/ip_forward" {
                    *value = "0".to_string();
                }
            };
            host.sysctls.iter_mut().for_each(forward);
        }
        _ => {}
    }
}

/// What a machine needs that opens thousands of connections a second. The time of a closed connection
/// is shortened for connection tracking, whose table would else decide how much can be measured.
fn many_connections() -> Vec<(String, String)> {
    let settings = [
        ("ipv4/ip_local_port_range", "1024 65535"),
        ("ipv4/tcp_tw_reuse", "1"),
        ("ipv4/tcp_max_syn_backlog", "8192"),
        ("core/somaxconn", "4096"),
        ("netfilter/nf_conntrack_tcp_timeout_time_wait?", "5"),
    ];
    settings
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cable_has_two_ends() {
        for between in Between::ALL {
            let topology = Topology::measured(between);
            let all = topology.hosts.iter().flat_map(|host| &host.interfaces);
            let segments: Vec<&str> = all.map(|at| at.segment.as_str()).collect();
            for name in ["out", "in"] {
                let ends = segments.iter().filter(|segment| **segment == name).count();
                let wanted = if between == Between::Nobody && name == "out" {
                    0
                } else {
                    2
                };
                assert_eq!(ends, wanted, "{between:?} {name}");
            }
            let back = segments.iter().filter(|segment| **segment == "back");
            let wanted = if between.is_one_way() { 2 } else { 0 };
            assert_eq!(back.count(), wanted, "{between:?}");
        }
    }
}
