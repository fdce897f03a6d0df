//! What requests say of services, real servers and daemons, checked as the kernel checks it
//! (`ip_vs_genl_parse_service`, `ip_vs_genl_parse_dest`, `ip_vs_genl_new_daemon` in `ip_vs_ctl.c`). The
//! director checks what the words mean.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ulvs::config::RealSpec;
use ulvs::lvs::{
    Endpoint, Family, ForwardMethod, Netmask, Persistence, Protocol, RealKey, ServiceFlags,
    ServiceKey, ServiceSpec, SyncDaemon, SyncRole, Thresholds, Tunnel, TunnelChecksum, Weight,
};

use crate::family::Errno;
use crate::message::Attributes;

/// `IP_VS_SVC_F_PERSISTENT`
pub const PERSISTENT: u32 = 0x1;
/// `IP_VS_SVC_F_HASHED`: the kernel's own, in everything it lists.
pub const HASHED: u32 = 0x2;
/// The flags that a service is configured with.
const CONFIGURED: u32 = ServiceFlags::ONE_PACKET
    | ServiceFlags::SCHED_1
    | ServiceFlags::SCHED_2
    | ServiceFlags::SCHED_3;
/// `IP_VS_CONN_F_FWD_MASK`
const METHOD_BITS: u32 = 0x7;

/// `IPVS_SVC_ATTR_…`
pub mod service_attr {
    pub const AF: u16 = 1;
    pub const PROTOCOL: u16 = 2;
    pub const ADDR: u16 = 3;
    pub const PORT: u16 = 4;
    pub const FWMARK: u16 = 5;
    pub const SCHED_NAME: u16 = 6;
    pub const FLAGS: u16 = 7;
    pub const TIMEOUT: u16 = 8;
    pub const NETMASK: u16 = 9;
    pub const STATS: u16 = 10;
    pub const PE_NAME: u16 = 11;
    pub const STATS64: u16 = 12;
}

/// `IPVS_DEST_ATTR_…`
pub mod dest_attr {
    pub const ADDR: u16 = 1;
    pub const PORT: u16 = 2;
    pub const FWD_METHOD: u16 = 3;
    pub const WEIGHT: u16 = 4;
    pub const U_THRESH: u16 = 5;
    pub const L_THRESH: u16 = 6;
    pub const ACTIVE_CONNS: u16 = 7;
    pub const INACT_CONNS: u16 = 8;
    pub const PERSIST_CONNS: u16 = 9;
    pub const STATS: u16 = 10;
    pub const ADDR_FAMILY: u16 = 11;
    pub const STATS64: u16 = 12;
    pub const TUN_TYPE: u16 = 13;
    pub const TUN_PORT: u16 = 14;
    pub const TUN_FLAGS: u16 = 15;
}

/// `IPVS_DAEMON_ATTR_…`
pub mod daemon_attr {
    pub const STATE: u16 = 1;
    pub const MCAST_IFN: u16 = 2;
    pub const SYNC_ID: u16 = 3;
    pub const SYNC_MAXLEN: u16 = 4;
    pub const MCAST_GROUP: u16 = 5;
    pub const MCAST_GROUP6: u16 = 6;
    pub const MCAST_PORT: u16 = 7;
    pub const MCAST_TTL: u16 = 8;
}

/// Which service.
pub fn service_key(service: &Attributes) -> Result<ServiceKey, Errno> {
    use service_attr::{ADDR, AF, FWMARK, PORT, PROTOCOL};
    let family = service.short(AF).ok_or(libc::EINVAL)?;
    let mark = service.word(FWMARK);
    let named = (
        service.short(PROTOCOL),
        service.get(ADDR),
        service.port(PORT),
    );
    if mark.is_none() && !matches!(named, (Some(_), Some(_), Some(_))) {
        return Err(libc::EINVAL);
    }
    let family = family_of(family)?;
    match (mark, named) {
        (Some(mark), _) if mark != 0 => Ok(ServiceKey::Mark { mark, family }),
        (_, (Some(protocol), Some(bytes), Some(port))) => Ok(ServiceKey::Address {
            protocol: Protocol(u8::try_from(protocol).map_err(|_| libc::EINVAL)?),
            virt: Endpoint::new(address(family, bytes)?, port),
        }),
        _ => Err(libc::EINVAL),
    }
}

/// A whole service, and the flags that the request does not speak of.
pub fn service(service: &Attributes) -> Result<(ServiceSpec, u32), Errno> {
    use service_attr::{FLAGS, NETMASK, PE_NAME, SCHED_NAME, TIMEOUT};
    let key = service_key(service)?;
    let scheduler = service.text(SCHED_NAME);
    let (timeout_s, mask) = (service.word(TIMEOUT), service.get(NETMASK));
    let (Some(scheduler), Some(flags), Some(timeout_s), Some(mask)) =
        (scheduler, service.get(FLAGS), timeout_s, mask)
    else {
        return Err(libc::EINVAL);
    };
    let (flags, spoken_of) = (word(flags, 0)?, word(flags, 4)?);
    let set = flags & spoken_of;
    let spec = ServiceSpec {
        key,
        scheduler,
        flags: ServiceFlags(set & CONFIGURED),
        persistence: (set & PERSISTENT != 0).then_some(Persistence { timeout_s }),
        netmask: netmask(key.family(), mask)?,
        engine: service.text(PE_NAME).filter(|name| !name.is_empty()),
    };
    Ok((spec, !spoken_of & (CONFIGURED | PERSISTENT)))
}

/// An IPv4 mask as it stands in packets, or the length of an IPv6 prefix as a number.
fn netmask(family: Family, bytes: &[u8]) -> Result<Netmask, Errno> {
    let number = word(bytes, 0)?;
    match family {
        Family::V4 => Ok(Netmask::V4(u32::from_be(number))),
        Family::V6 => match u8::try_from(number) {
            Ok(length @ 1..=128) => Ok(Netmask::V6(length)),
            _ => Err(libc::EINVAL),
        },
    }
}

/// Which real server. Old programs do not say its family: it is the service's.
pub fn real_key(real: &Attributes, family: Family) -> Result<RealKey, Errno> {
    use dest_attr::{ADDR, ADDR_FAMILY, PORT};
    let (Some(bytes), Some(port)) = (real.get(ADDR), real.port(PORT)) else {
        return Err(libc::EINVAL);
    };
    let family = match real.short(ADDR_FAMILY) {
        None | Some(0) => family,
        Some(number) => family_of(number)?,
    };
    Ok(RealKey(Endpoint::new(address(family, bytes)?, port)))
}

/// A whole real server.
pub fn real(real: &Attributes, family: Family) -> Result<RealSpec, Errno> {
    use dest_attr::{FWD_METHOD, L_THRESH, U_THRESH, WEIGHT};
    let key = real_key(real, family)?;
    let all = [FWD_METHOD, WEIGHT, U_THRESH, L_THRESH].map(|number| real.word(number));
    let [Some(method), Some(weight), Some(upper), Some(lower)] = all else {
        return Err(libc::EINVAL);
    };
    let method = match method & METHOD_BITS {
        0 => ForwardMethod::Masq,
        1 => ForwardMethod::Local,
        2 => ForwardMethod::Tunnel,
        3 => ForwardMethod::Route,
        _ => return Err(libc::EINVAL),
    };
    Ok(RealSpec {
        key,
        weight: Weight(weight.cast_signed()),
        method,
        thresholds: Thresholds { upper, lower },
        tunnel: tunnel(real)?,
    })
}

fn tunnel(real: &Attributes) -> Result<Tunnel, Errno> {
    use dest_attr::{TUN_FLAGS, TUN_PORT, TUN_TYPE};
    let checksum = match real.short(TUN_FLAGS).unwrap_or(0) {
        0 => TunnelChecksum::No,
        flags if flags & 2 != 0 => TunnelChecksum::Remote,
        _ => TunnelChecksum::Full,
    };
    match real.byte(TUN_TYPE).unwrap_or(0) {
        0 => Ok(Tunnel::Ipip),
        1 => Ok(Tunnel::Gue {
            port: real.port(TUN_PORT).unwrap_or(0),
            checksum,
        }),
        2 => Ok(Tunnel::Gre { checksum }),
        _ => Err(libc::EINVAL),
    }
}

/// Which of the two daemons.
pub fn role(daemon: &Attributes) -> Result<SyncRole, Errno> {
    match daemon.word(daemon_attr::STATE) {
        Some(1) => Ok(SyncRole::Master),
        Some(2) => Ok(SyncRole::Backup),
        _ => Err(libc::EINVAL),
    }
}

/// A whole daemon; 0 leaves a thing to the director.
pub fn daemon(daemon: &Attributes) -> Result<SyncDaemon, Errno> {
    use daemon_attr::{MCAST_GROUP, MCAST_GROUP6, MCAST_IFN, MCAST_PORT, MCAST_TTL};
    use daemon_attr::{SYNC_ID, SYNC_MAXLEN};
    let role = role(daemon)?;
    let (Some(interface), Some(sync_id)) = (daemon.text(MCAST_IFN), daemon.word(SYNC_ID)) else {
        return Err(libc::EINVAL);
    };
    let group = match (daemon.get(MCAST_GROUP), daemon.get(MCAST_GROUP6)) {
        (Some(bytes), _) => Some(address(Family::V4, bytes)?),
        (None, Some(bytes)) => Some(address(Family::V6, bytes)?),
        (None, None) => None,
    };
    Ok(SyncDaemon {
        role,
        interface: Some(interface),
        sync_id: u8::try_from(sync_id).map_err(|_| libc::EINVAL)?,
        maxlen: daemon.short(SYNC_MAXLEN).filter(|length| *length != 0),
        group: group.filter(|group| !group.is_unspecified()),
        port: daemon.short(MCAST_PORT).filter(|port| *port != 0),
        ttl: daemon.byte(MCAST_TTL).filter(|ttl| *ttl != 0),
    })
}

fn family_of(number: u16) -> Result<Family, Errno> {
    match i32::from(number) {
        libc::AF_INET => Ok(Family::V4),
        libc::AF_INET6 => Ok(Family::V6),
        _ => Err(libc::EAFNOSUPPORT),
    }
}

/// An address at the beginning of its sixteen bytes.
fn address(family: Family, bytes: &[u8]) -> Result<IpAddr, Errno> {
    let v4 = bytes
        .first_chunk::<4>()
        .map(|four| Ipv4Addr::from(*four).into());
    let v6 = bytes
        .first_chunk::<16>()
        .map(|all| Ipv6Addr::from(*all).into());
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
    .ok_or(libc::EINVAL)
}

fn word(bytes: &[u8], at: usize) -> Result<u32, Errno> {
    let four = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>);
    four.map(|four| u32::from_ne_bytes(*four))
        .ok_or(libc::EINVAL)
}
