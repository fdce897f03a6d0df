//! Services, real servers and daemons as the kernel lists them (`ip_vs_genl_fill_service`,
//! `ip_vs_genl_fill_dest`, `ip_vs_genl_fill_daemon` in `ip_vs_ctl.c`). Rows in, attributes out.

use std::net::IpAddr;

use ulvs::config::command::{RealRow, ServiceRow, StatsRow};
use ulvs::lvs::{
    Family, ForwardMethod, Netmask, ServiceKey, SyncRole, SyncRow, Tunnel, TunnelChecksum,
};

use crate::family::attr;
use crate::message::Draft;
use crate::read::{HASHED, PERSISTENT, daemon_attr, dest_attr, service_attr};

/// A service with its counters.
pub fn service(draft: &mut Draft, row: &ServiceRow) {
    use service_attr::{ADDR, AF, FLAGS, FWMARK, NETMASK, PE_NAME, PORT, PROTOCOL};
    use service_attr::{SCHED_NAME, STATS, STATS64, TIMEOUT};
    let spec = &row.spec;
    draft.begin(attr::SERVICE);
    draft.short(AF, family_number(spec.key.family()));
    match spec.key {
        ServiceKey::Mark { mark, .. } => draft.word(FWMARK, mark),
        ServiceKey::Address { protocol, virt } => {
            draft.short(PROTOCOL, u16::from(protocol.0));
            draft.put(ADDR, &address(virt.address));
            draft.port(PORT, virt.port);
        }
    }
    draft.text(SCHED_NAME, &spec.scheduler);
    if let Some(engine) = &spec.engine {
        draft.text(PE_NAME, engine);
    }
    let persistent = if spec.persistence.is_some() {
        PERSISTENT
    } else {
        0
    };
    let flags = spec.flags.0 | persistent | HASHED;
    let [one, other] = [flags, u32::MAX].map(u32::to_ne_bytes);
    draft.put(FLAGS, &[one, other].concat());
    draft.word(TIMEOUT, spec.persistence.map_or(0, |kept| kept.timeout_s));
    match spec.netmask {
        Netmask::V4(mask) => draft.put(NETMASK, &mask.to_be_bytes()),
        Netmask::V6(length) => draft.word(NETMASK, u32::from(length)),
    }
    stats(draft, STATS, STATS64, &row.stats);
    draft.end();
}

/// A real server with its counts and counters.
pub fn real(draft: &mut Draft, row: &RealRow) {
    use dest_attr::{ACTIVE_CONNS, ADDR, ADDR_FAMILY, FWD_METHOD, INACT_CONNS, L_THRESH};
    use dest_attr::{PERSIST_CONNS, PORT, STATS, STATS64, U_THRESH, WEIGHT};
    let spec = &row.spec;
    let endpoint = spec.key.0;
    draft.begin(attr::DEST);
    draft.put(ADDR, &address(endpoint.address));
    draft.port(PORT, endpoint.port);
    draft.word(FWD_METHOD, method_number(spec.method));
    draft.word(WEIGHT, spec.weight.0.cast_unsigned());
    tunnel(draft, spec.tunnel);
    draft.word(U_THRESH, spec.thresholds.upper);
    draft.word(L_THRESH, spec.thresholds.lower);
    draft.word(ACTIVE_CONNS, row.active);
    draft.word(INACT_CONNS, row.inactive);
    draft.word(PERSIST_CONNS, row.persistent);
    draft.short(ADDR_FAMILY, family_number(Family::of(endpoint.address)));
    stats(draft, STATS, STATS64, &row.stats);
    draft.end();
}

/// The kernel has no number for full NAT; who knows only the kernel is told that it rewrites.
fn method_number(method: ForwardMethod) -> u32 {
    match method {
        ForwardMethod::FullNat | ForwardMethod::Masquerade => ForwardMethod::Masq as u32,
        other => other as u32,
    }
}

fn tunnel(draft: &mut Draft, tunnel: Tunnel) {
    use dest_attr::{TUN_FLAGS, TUN_PORT, TUN_TYPE};
    let (kind, port, checksum) = match tunnel {
        Tunnel::Ipip => (0, 0, TunnelChecksum::No),
        Tunnel::Gue { port, checksum } => (1, port, checksum),
        Tunnel::Gre { checksum } => (2, 0, checksum),
    };
    let flags = match checksum {
        TunnelChecksum::No => 0,
        TunnelChecksum::Full => 1,
        TunnelChecksum::Remote => 2,
    };
    draft.byte(TUN_TYPE, kind);
    draft.port(TUN_PORT, port);
    draft.short(TUN_FLAGS, flags);
}

/// Ten numbers twice: in the widths of old, and all in eight bytes. What does not fit into the old
/// ones is cut at the top, as the kernel cuts it.
fn stats(draft: &mut Draft, old: u16, wide: u16, row: &StatsRow) {
    let numbers = row.counters.into_iter().chain(row.rates);
    let numbers: Vec<(u16, u64)> = (1..).zip(numbers).collect();
    draft.begin(old);
    for (number, value) in &numbers {
        match number {
            4 | 5 => draft.long(*number, *value),
            _ => draft.word(*number, *value as u32),
        }
    }
    draft.end();
    draft.begin(wide);
    for (number, value) in &numbers {
        draft.long(*number, *value);
    }
    draft.end();
}

/// A daemon of connection synchronisation.
pub fn daemon(draft: &mut Draft, row: &SyncRow) {
    use daemon_attr::{MCAST_GROUP, MCAST_GROUP6, MCAST_IFN, MCAST_PORT, MCAST_TTL};
    use daemon_attr::{STATE, SYNC_ID, SYNC_MAXLEN};
    draft.begin(attr::DAEMON);
    draft.word(
        STATE,
        match row.role {
            SyncRole::Master => 1,
            SyncRole::Backup => 2,
        },
    );
    draft.text(MCAST_IFN, &row.interface);
    draft.word(SYNC_ID, u32::from(row.sync_id));
    draft.short(SYNC_MAXLEN, row.maxlen);
    draft.short(MCAST_PORT, row.port);
    draft.byte(MCAST_TTL, row.ttl);
    match row.group {
        IpAddr::V4(group) => draft.put(MCAST_GROUP, &group.octets()),
        IpAddr::V6(group) => draft.put(MCAST_GROUP6, &group.octets()),
    }
    draft.end();
}

/// Sixteen bytes, also for IPv4.
fn address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(address) => {
            let mut all = [0; 16];
            all[..4].copy_from_slice(&address.octets());
            all
        }
    }
}

fn family_number(family: Family) -> u16 {
    let number = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    number as u16
}
