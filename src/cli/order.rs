//! ipvsadm's order of services and servers. It compares by subtracting, and the difference may wrap
//! around: 192.168.1.1 comes before 10.0.0.1, but behind 66.0.0.1. Such an order is not transitive, so
//! what comes out depends on the way of sorting; it is the C library's merge sort.

use std::net::IpAddr;

use crate::config::command::{RealRow, ServiceRow};
use crate::lvs::{Endpoint, Family, ServiceKey};

/// Services by mark, family, protocol, address and port; or as they came.
pub fn services(rows: &[ServiceRow], sorted: bool) -> Vec<&ServiceRow> {
    let rows = rows.iter().collect();
    match sorted {
        true => merge_sort(rows, &|a, b| compare_services(&a.spec.key, &b.spec.key)),
        false => rows,
    }
}

/// Servers by address and port; or as they came.
pub fn reals(rows: &[RealRow], sorted: bool) -> Vec<&RealRow> {
    let rows = rows.iter().collect();
    match sorted {
        true => merge_sort(rows, &|a, b| compare_endpoints(a.spec.key.0, b.spec.key.0)),
        false => rows,
    }
}

/// Negative, zero or positive, like a C comparison.
fn compare_services(one: &ServiceKey, other: &ServiceKey) -> i32 {
    first_difference([
        minus(mark(one), mark(other)),
        family_number(one.family()) - family_number(other.family()),
        protocol(one) - protocol(other),
        compare_endpoints(endpoint(one), endpoint(other)),
    ])
}

fn compare_endpoints(one: Endpoint, other: Endpoint) -> i32 {
    let (words, others) = (words(one.address), words(other.address));
    // An IPv4 address is compared with the first word of an IPv6 address.
    let width = if one.address.is_ipv6() { 4 } else { 1 };
    let mut differences = [0; 5];
    for (place, difference) in differences.iter_mut().take(width).enumerate() {
        *difference = minus(words[place], others[place]);
    }
    differences[4] = i32::from(one.port) - i32::from(other.port);
    first_difference(differences)
}

fn first_difference<const N: usize>(differences: [i32; N]) -> i32 {
    let mut found = differences
        .into_iter()
        .filter(|difference| *difference != 0);
    found.next().unwrap_or(0)
}

fn minus(one: u32, other: u32) -> i32 {
    one.wrapping_sub(other).cast_signed()
}

fn mark(key: &ServiceKey) -> u32 {
    match key {
        ServiceKey::Mark { mark, .. } => *mark,
        ServiceKey::Address { .. } => 0,
    }
}

fn protocol(key: &ServiceKey) -> i32 {
    match key {
        ServiceKey::Mark { .. } => 0,
        ServiceKey::Address { protocol, .. } => i32::from(protocol.0),
    }
}

/// AF_INET and AF_INET6.
fn family_number(family: Family) -> i32 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn endpoint(key: &ServiceKey) -> Endpoint {
    match key {
        ServiceKey::Address { virt, .. } => *virt,
        ServiceKey::Mark { .. } => Endpoint::new([0, 0, 0, 0].into(), 0),
    }
}

fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(v4) => [u32::from(v4), 0, 0, 0],
        IpAddr::V6(v6) => {
            let bits = u128::from(v6);
            [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
        }
    }
}

/// qsort(3) of the GNU C library: halves, the first one the smaller, and what is equal stays in order.
fn merge_sort<T: Copy>(items: Vec<T>, compare: &dyn Fn(T, T) -> i32) -> Vec<T> {
    if items.len() < 2 {
        return items;
    }
    let (first, second) = items.split_at(items.len() / 2);
    let first = merge_sort(first.to_vec(), compare);
    let second = merge_sort(second.to_vec(), compare);
    let (mut left, mut right) = (first.as_slice(), second.as_slice());
    let mut merged = Vec::with_capacity(items.len());
    while let ([a, more_left @ ..], [b, more_right @ ..]) = (left, right) {
        if compare(*a, *b) <= 0 {
            merged.push(*a);
            left = more_left;
        } else {
            merged.push(*b);
            right = more_right;
        }
    }
    merged.extend_from_slice(left);
    merged.extend_from_slice(right);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvs::Protocol;

    fn endpoint(text: &str) -> Endpoint {
        let (host, port) = text.rsplit_once(':').unwrap();
        let host = host.trim_matches(['[', ']']);
        Endpoint::new(host.parse().unwrap(), port.parse().unwrap())
    }

    fn key(text: &str) -> ServiceKey {
        let (kind, rest) = text.split_once(' ').unwrap();
        let family = Family::V4;
        match kind {
            "FWM" => ServiceKey::Mark {
                mark: rest.parse().unwrap(),
                family,
            },
            _ => ServiceKey::Address {
                protocol: [Protocol::TCP, Protocol::UDP][usize::from(kind == "UDP")],
                virt: endpoint(rest),
            },
        }
    }

    // Both recorded from ipvsadm 1.31: --nosort, then sorted.
    #[test]
    fn services_stand_in_ipvsadms_order() {
        let engine = [
            "TCP [1::2:0:0:3:4]:80",
            "TCP [::1.2.3.4]:80",
            "TCP [::5]:80",
            "TCP [fd00::5]:80",
            "TCP 127.5.5.5:80",
            "TCP [1:0:2:0:3:0:4:0]:80",
            "TCP [fe80::1]:80",
            "TCP 200.1.1.1:80",
            "TCP 128.1.1.1:80",
            "TCP 10.1.1.1:80",
            "TCP 192.168.1.1:80",
            "TCP 66.1.1.1:80",
            "UDP 66.1.1.1:53",
            "TCP [2001:db8:0:0:1::]:80",
            "TCP [2001:db8::1]:80",
            "TCP 66.1.1.1:60000",
            "TCP 66.1.1.1:443",
            "TCP [::fffe:102:304]:80",
            "FWM 3000000000",
            "FWM 2147483648",
            "FWM 5",
            "FWM 2147483647",
            "FWM 4294967295",
        ];
        let sorted = [
            "TCP 66.1.1.1:80",
            "TCP 66.1.1.1:443",
            "TCP 66.1.1.1:60000",
            "TCP 127.5.5.5:80",
            "TCP 128.1.1.1:80",
            "TCP 192.168.1.1:80",
            "TCP 200.1.1.1:80",
            "TCP 10.1.1.1:80",
            "UDP 66.1.1.1:53",
            "TCP [fd00::5]:80",
            "TCP [fe80::1]:80",
            "TCP [::5]:80",
            "TCP [::1.2.3.4]:80",
            "TCP [::fffe:102:304]:80",
            "TCP [1::2:0:0:3:4]:80",
            "TCP [1:0:2:0:3:0:4:0]:80",
            "TCP [2001:db8::1]:80",
            "TCP [2001:db8:0:0:1::]:80",
            "FWM 5",
            "FWM 2147483647",
            "FWM 2147483648",
            "FWM 3000000000",
            "FWM 4294967295",
        ];
        let got = merge_sort(engine.to_vec(), &|a, b| compare_services(&key(a), &key(b)));
        assert_eq!(got, sorted);
    }

    // The same for servers of both families under one service.
    #[test]
    fn servers_stand_in_ipvsadms_order() {
        let engine = [
            "10.1.1.1:443",
            "10.1.1.1:60000",
            "[7000::1]:80",
            "[8000::1]:80",
            "[::5]:80",
            "[fd00::5]:80",
            "[2001:db8::1]:80",
            "200.1.1.1:80",
            "128.1.1.1:80",
            "127.5.5.5:80",
            "10.1.1.1:80",
            "192.168.1.1:80",
            "66.1.1.1:80",
        ];
        let sorted = [
            "10.1.1.1:80",
            "10.1.1.1:443",
            "10.1.1.1:60000",
            "[2001:db8::1]:80",
            "66.1.1.1:80",
            "[7000::1]:80",
            "127.5.5.5:80",
            "[8000::1]:80",
            "128.1.1.1:80",
            "192.168.1.1:80",
            "200.1.1.1:80",
            "[fd00::5]:80",
            "[::5]:80",
        ];
        let compare = |a: &str, b: &str| compare_endpoints(endpoint(a), endpoint(b));
        assert_eq!(merge_sort(engine.to_vec(), &|a, b| compare(a, b)), sorted);
    }
}
