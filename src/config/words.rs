//! The small words of ipvsadm: numbers, addresses, masks, names of scheduler flags; how they are read
//! and how they are printed. Host and service names go through a Resolver, since a pure room asks
//! nobody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::lvs::{Netmask, Protocol, ServiceFlags};

/// Names for addresses and ports. The system's is in `cli`.
pub trait Resolver {
    /// The first IPv4 address of a host.
    fn address_of(&self, host: &str) -> Option<Ipv4Addr>;
    /// The port of a service.
    fn port_of(&self, service: &str, protocol: Protocol) -> Option<u16>;
    /// The name of an address.
    fn host_of(&self, address: IpAddr) -> Option<String>;
    /// The name of a port.
    fn service_of(&self, port: u16, protocol: Protocol) -> Option<String>;
}

/// Knows no names: only numbers are read, and only numbers are printed (`-n`).
#[derive(Clone, Copy, Debug, Default)]
pub struct NumbersOnly;

impl Resolver for NumbersOnly {
    fn address_of(&self, _: &str) -> Option<Ipv4Addr> {
        None
    }
    fn port_of(&self, _: &str, _: Protocol) -> Option<u16> {
        None
    }
    fn host_of(&self, _: IpAddr) -> Option<String> {
        None
    }
    fn service_of(&self, _: u16, _: Protocol) -> Option<String> {
        None
    }
}

/// A decimal number between `min` and `max`, read as strtol(3) reads it: blanks and a sign may stand
/// in front, nothing may follow.
pub fn number(text: &str, min: i64, max: i64) -> Option<i64> {
    let text = text.trim_start_matches(is_blank);
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value = text.parse::<i64>().ok()?;
    (min..=max).contains(&value).then_some(value)
}

/// What isspace(3) calls a blank.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// An IPv4 address as inet_aton(3) reads it: one to four parts, decimal, octal (`0…`) or hexadecimal
/// (`0x…`), the last one filling the rest; what follows a blank is ignored.
pub fn loose_ipv4(text: &str) -> Option<Ipv4Addr> {
    let text = text.split(is_blank).next()?;
    let parts: Vec<u32> = text.split('.').map(c_integer).collect::<Option<_>>()?;
    let (last, leading) = parts.split_last()?;
    if leading.len() > 3 || leading.iter().any(|part| *part > 255) {
        return None;
    }
    let room = u32::MAX >> (8 * leading.len() as u32);
    if *last > room {
        return None;
    }
    let high = leading.iter().enumerate();
    let high = high.fold(0, |sum, (place, part)| {
        sum | part << (24 - 8 * place as u32)
    });
    Some(Ipv4Addr::from(high | last))
}

/// A number as strtoul(3) with base 0 reads it, digits only.
fn c_integer(text: &str) -> Option<u32> {
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None if lower.starts_with('0') => (lower.as_str(), 8),
        None => (lower.as_str(), 10),
    };
    let clean = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    clean.then(|| u32::from_str_radix(digits, radix).ok())?
}

/// An address, and a port if one was written.
pub type HostPort = (IpAddr, Option<u16>);

/// `host`, `host:port`, `[IPv6]:port` or a bare IPv6 address. `None` for everything else, also for
/// digits alone, which ipvsadm does not take for an address.
pub fn host_port(text: &str, protocol: Protocol, names: &dyn Resolver) -> Option<HostPort> {
    if text.is_empty() || text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host, Some(port.strip_prefix(':')?))
        }
        None => (text, None),
    };
    if let Ok(address) = host.parse::<Ipv6Addr>() {
        let port = port.map(|port| port_number(port, protocol, names));
        return Some((
            address.into(),
            port.map_or(Some(None), |port| port.map(Some))?,
        ));
    }
    // A port behind brackets that hold no IPv6 address is lost in ipvsadm too.
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) => (host, Some(port_number(port, protocol, names)?)),
        None => (host, None),
    };
    let address = loose_ipv4(host).or_else(|| names.address_of(host))?;
    Some((address.into(), port))
}

fn port_number(text: &str, protocol: Protocol, names: &dyn Resolver) -> Option<u16> {
    match number(text, 0, 65535) {
        Some(port) => u16::try_from(port).ok(),
        None => names.port_of(text, protocol),
    }
}

/// Can a real server have this address at all? Not if it is no unicast address, which the kernel
/// refuses (`__ip_vs_add_dest`). Link-local IPv6 and broadcasts of our own networks are left to the
/// engine, which knows the interfaces.
pub fn can_serve(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_unspecified() && !v4.is_broadcast() && !v4.is_multicast(),
        IpAddr::V6(v6) => {
            let mapped = v6.to_ipv4_mapped().is_some();
            !v6.is_unspecified() && !v6.is_multicast() && !mapped
        }
    }
}

/// An address as inet_ntop(3) prints it. Rust prints the IPv4-compatible addresses of `::/96`
/// otherwise.
pub fn address_text(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => match address.segments() {
            [0, 0, 0, 0, 0, 0, high, low] if high != 0 => {
                let [a, b] = high.to_be_bytes();
                let [c, d] = low.to_be_bytes();
                format!("::{a}.{b}.{c}.{d}")
            }
            _ => address.to_string(),
        },
    }
}

/// What ipvsadm keeps of an IPv4 name with its port, in bytes.
const ENDPOINT_BYTES_MAX: usize = 59;

/// The first bytes of a text, as C keeps them in a buffer; never half a letter.
pub fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// `host:port` or `[host]:port`, with names where `names` has them; port 0 stays `0`.
pub fn endpoint_text(
    address: IpAddr,
    port: u16,
    protocol: Protocol,
    names: &dyn Resolver,
) -> String {
    let host = names.host_of(address);
    let host = host.unwrap_or_else(|| address_text(address));
    let service = (port != 0)
        .then(|| names.service_of(port, protocol))
        .flatten();
    let service = service.unwrap_or_else(|| port.to_string());
    match address {
        IpAddr::V4(_) => cut(&format!("{host}:{service}"), ENDPOINT_BYTES_MAX).to_string(),
        IpAddr::V6(_) => format!("[{host}]:{service}"),
    }
}

/// A persistence mask as it is printed, or `None` where it is not: one client each.
pub fn netmask_text(netmask: Netmask) -> Option<String> {
    match netmask {
        Netmask::V4(u32::MAX) | Netmask::V6(128) => None,
        Netmask::V4(mask) => Some(Ipv4Addr::from(mask).to_string()),
        Netmask::V6(prefix) => Some(prefix.to_string()),
    }
}

/// The three scheduler flags, lowest bit first.
const FLAG_BITS: [u32; 3] = [
    ServiceFlags::SCHED_1,
    ServiceFlags::SCHED_2,
    ServiceFlags::SCHED_3,
];

/// Their general names, and the names that two schedulers give them.
const GENERAL_FLAGS: [&str; 3] = ["flag-1", "flag-2", "flag-3"];
const OWN_FLAGS: [(&str, [&str; 2]); 2] = [
    ("sh", ["sh-fallback", "sh-port"]),
    ("mh", ["mh-fallback", "mh-port"]),
];

/// Why a word is no flag of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagFault {
    /// No scheduler has it.
    Invalid,
    /// Another scheduler has it.
    Incompatible,
}

/// The bit of a scheduler flag.
pub fn flag_bit(word: &str, scheduler: &str) -> Result<u32, FlagFault> {
    if let Some(place) = GENERAL_FLAGS.iter().position(|name| *name == word) {
        return Ok(FLAG_BITS[place]);
    }
    for (owner, names) in OWN_FLAGS {
        if let Some(place) = names.iter().position(|name| *name == word) {
            let fits = owner == scheduler;
            return fits
                .then_some(FLAG_BITS[place])
                .ok_or(FlagFault::Incompatible);
        }
    }
    Err(FlagFault::Invalid)
}

/// The bits of a comma list; on failure also the word at fault. Empty words are skipped.
pub fn flag_bits<'a>(list: &'a str, scheduler: &str) -> Result<u32, (FlagFault, &'a str)> {
    let words = list.split(',').filter(|word| !word.is_empty());
    words.into_iter().try_fold(0, |bits, word| {
        let bit = flag_bit(word, scheduler).map_err(|fault| (fault, word))?;
        Ok(bits | bit)
    })
}

/// The scheduler flags as ipvsadm prints them, `None` if there are none. The third flag has no name
/// under `sh` and `mh`, so a list can be empty.
pub fn flags_text(flags: ServiceFlags, scheduler: &str) -> Option<String> {
    if !FLAG_BITS.iter().any(|bit| flags.has(*bit)) {
        return None;
    }
    let own = OWN_FLAGS.iter().find(|(owner, _)| *owner == scheduler);
    let names: &[&str] = own.map_or(&GENERAL_FLAGS, |(_, names)| names);
    let set = names
        .iter()
        .zip(FLAG_BITS)
        .filter(|(_, bit)| flags.has(*bit));
    let set: Vec<&str> = set.map(|(name, _)| *name).collect();
    Some(set.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Few;
    impl Resolver for Few {
        fn address_of(&self, host: &str) -> Option<Ipv4Addr> {
            (host == "localhost").then_some(Ipv4Addr::LOCALHOST)
        }
        fn port_of(&self, service: &str, protocol: Protocol) -> Option<u16> {
            (service == "http" && protocol == Protocol::TCP).then_some(80)
        }
        fn host_of(&self, _: IpAddr) -> Option<String> {
            None
        }
        fn service_of(&self, port: u16, _: Protocol) -> Option<String> {
            (port == 80).then(|| "http".to_string())
        }
    }

    fn read(text: &str) -> Option<HostPort> {
        host_port(text, Protocol::TCP, &Few)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    // Recorded from ipvsadm 1.31.
    #[test]
    fn addresses_are_read_as_ipvsadm_reads_them() {
        assert_eq!(read("1.2.3.4:80"), Some((ip("1.2.3.4"), Some(80))));
        assert_eq!(read("1.2.3.4"), Some((ip("1.2.3.4"), None)));
        assert_eq!(read("1234:80"), Some((ip("0.0.4.210"), Some(80))));
        assert_eq!(read("0x10:80"), Some((ip("0.0.0.16"), Some(80))));
        assert_eq!(read("10.1:80"), Some((ip("10.0.0.1"), Some(80))));
        assert_eq!(read("010.0.0.1:80"), Some((ip("8.0.0.1"), Some(80))));
        assert_eq!(read("1.2.3.7 : 80"), Some((ip("1.2.3.7"), Some(80))));
        assert_eq!(read("1.2.3.9:+080"), Some((ip("1.2.3.9"), Some(80))));
        assert_eq!(read("localhost:http"), Some((ip("127.0.0.1"), Some(80))));
        assert_eq!(read("::1"), Some((ip("::1"), None)));
        assert_eq!(read("fd00:c::100:81"), Some((ip("fd00:c::100:81"), None)));
        assert_eq!(
            read("[FD00:C::0100]:80"),
            Some((ip("fd00:c::100"), Some(80)))
        );
        assert_eq!(read("[1.2.3.4]:80"), Some((ip("1.2.3.4"), None)));
        for bad in [
            "",
            ":",
            ":80",
            ":http",
            "1234",
            "80",
            "http",
            "[::1]",
            "[::1]:",
            "[::1",
            "[::1]80",
            "[::1%lo]:80",
            "1.2.3.4:",
            "1.2.3.4:-1",
            "1.2.3.4:65536",
            "1.2.3.4:0x50",
            "1.2.3.4:80 ",
            " 1.2.3.4:80",
            "1.2.3.4:80:80",
            "1.2.3.300:80",
            "1.2.3.4:domain",
            "==",
        ] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn masks_are_read_as_inet_aton_reads_them() {
        let mask = |text| loose_ipv4(text).map(|mask| mask.to_string());
        assert_eq!(mask("255.255"), Some("255.0.0.255".into()));
        assert_eq!(mask("0xffffff00"), Some("255.255.255.0".into()));
        assert_eq!(mask("255.255.255.0 x"), Some("255.255.255.0".into()));
        assert_eq!(mask("64"), Some("0.0.0.64".into()));
        for bad in [
            "",
            "255.255.256.0",
            "1.2.3.4.5",
            "0x",
            "08",
            "1..2",
            "+1",
            "4294967296",
        ] {
            assert_eq!(mask(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn numbers_are_read_as_strtol_reads_them() {
        assert_eq!(number("+5", 0, 9), Some(5));
        assert_eq!(number(" \t5", 0, 9), Some(5));
        assert_eq!(number("-0", 0, 9), Some(0));
        for bad in [
            "",
            " ",
            "5 ",
            "++5",
            "0x5",
            "10",
            "-1",
            "99999999999999999999",
        ] {
            assert_eq!(number(bad, 0, 9), None, "{bad:?}");
        }
    }

    #[test]
    fn addresses_print_as_inet_ntop_prints_them() {
        for text in [
            "::1.2.3.4",
            "::5",
            "::",
            "::fffe:102:304",
            "1:0:2:0:3:0:4:0",
            "1.2.3.4",
        ] {
            assert_eq!(address_text(ip(text)), text);
        }
        assert_eq!(address_text(ip("::ffff:a00:1")), "::ffff:10.0.0.1");
        assert_eq!(
            endpoint_text(ip("::1"), 80, Protocol::TCP, &Few),
            "[::1]:http"
        );
        assert_eq!(endpoint_text(ip("::1"), 0, Protocol::TCP, &Few), "[::1]:0");
    }

    #[test]
    fn flags_belong_to_their_scheduler() {
        let (one, two, three) = (FLAG_BITS[0], FLAG_BITS[1], FLAG_BITS[2]);
        assert_eq!(flag_bits("sh-port,,sh-fallback,", "sh"), Ok(one | two));
        assert_eq!(flag_bits("flag-1,flag-3", "rr"), Ok(one | three));
        assert_eq!(flag_bits("", "rr"), Ok(0));
        let incompatible = Err((FlagFault::Incompatible, "mh-port"));
        assert_eq!(flag_bits("sh-port,mh-port,x", "sh"), incompatible);
        assert_eq!(
            flag_bits(" sh-port", "sh"),
            Err((FlagFault::Invalid, " sh-port"))
        );
        let text = |bits, scheduler| flags_text(ServiceFlags(bits), scheduler);
        assert_eq!(text(one | two, "mh"), Some("mh-fallback,mh-port".into()));
        assert_eq!(text(three, "sh"), Some(String::new()));
        assert_eq!(text(one | three, "rr"), Some("flag-1,flag-3".into()));
        assert_eq!(text(ServiceFlags::ONE_PACKET, "rr"), None);
    }
}
