//! FTP (RFC 959, RFC 2428): what client and real server say to each other on the control connection
//! about where data will flow (`ip_vs_ftp.c`). Texts only: who acts on them is `helper`. A text that is
//! split over segments, or that makes no sense, is not understood, and passes as it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::helper::{AppHelper, Ends, Expected, Heard, Rewrite};
use crate::conn::Awaits;
use crate::lvs::Endpoint;

/// Delimiters of the extended commands are printable characters that are no space (RFC 2428).
const DELIMITERS: std::ops::RangeInclusive<u8> = 33..=126;

/// The helper.
#[derive(Clone, Copy, Debug)]
pub struct Ftp;

impl AppHelper for Ftp {
    /// Asks for passive mode are remembered wherever they stand; where the client will listen itself is
    /// told at the start of a segment.
    fn hear_client(&self, text: &[u8], ends: &Ends, awaits: &mut Awaits) -> Option<Expected> {
        if let Some(asked) = asks_passive(text, ends) {
            *awaits = asked.unwrap_or(*awaits);
            return None;
        }
        let client = match plain(text, "PORT", b' ') {
            Some(found) if ends.is_v4() => found.end,
            _ => extended(text, "EPRT", b' ', ends, false)?.end,
        };
        *awaits = Awaits::Nothing;
        let before = |end: Endpoint| Endpoint::new(end.address, end.port.wrapping_sub(1));
        Some(Expected {
            client,
            virt: before(ends.virt),
            real: before(ends.real),
        })
    }

    fn hear_server(&self, text: &[u8], ends: &Ends, awaits: &mut Awaits) -> Option<Heard> {
        let (found, new) = match awaits {
            Awaits::Nothing => return None,
            Awaits::Passive => {
                let found = plain(text, "227 ", b'(')?;
                let new = told_plain(ends.virt.address, found.end.port)?;
                (found, new)
            }
            Awaits::ExtendedPassive => {
                let found = extended(text, "229 ", b'(', ends, true)?;
                let new = format!("|||{}|", found.end.port);
                (found, new)
            }
        };
        *awaits = Awaits::Nothing;
        Some(Heard {
            expected: Expected {
                client: Endpoint::new(ends.client.address, 0),
                virt: Endpoint::new(ends.virt.address, found.end.port),
                real: found.end,
            },
            rewrite: Rewrite {
                from: found.from,
                to: found.to,
                new,
            },
        })
    }
}

/// An address and port in a text, and where they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    end: Endpoint,
    from: usize,
    to: usize,
}

/// Does the text ask for passive mode? Inside: what it asks for, or `None` if that cannot be had, in which
/// case nothing behind it is looked at either.
fn asks_passive(text: &[u8], ends: &Ends) -> Option<Option<Awaits>> {
    const SHORTEST: usize = 6;
    let last = text.len().checked_sub(SHORTEST)?;
    (0..=last).find_map(|at| {
        let rest = &text[at..];
        if ends.is_v4() && starts(rest, "PASV\r\n") {
            return Some(Some(Awaits::Passive));
        }
        if !starts(rest, "EPSV") || !matches!(rest[4], b' ' | b'\r') {
            return None;
        }
        let family = if ends.is_v4() { b'1' } else { b'2' };
        let fits = rest[4] == b'\r' || rest[5] == family && rest.get(6) == Some(&b'\r');
        Some(fits.then_some(Awaits::ExtendedPassive))
    })
}

fn starts(text: &[u8], word: &str) -> bool {
    text.get(..word.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
}

/// Reads `h1,h2,h3,h4,p1,p2` behind `word`: six numbers up to 255, then something else.
fn plain(text: &[u8], word: &str, skip: u8) -> Option<Found> {
    if !starts(text, word) {
        return None;
    }
    let from = skipped(text, word.len(), skip, true)?;
    let (mut numbers, mut index, mut at) = ([0u32; 6], 0, from);
    loop {
        match *text.get(at)? {
            digit @ b'0'..=b'9' => {
                numbers[index] = numbers[index] * 10 + u32::from(digit - b'0');
                if numbers[index] > 255 {
                    return None;
                }
            }
            b',' if index < 5 => index += 1,
            _ => break,
        }
        at += 1;
    }
    if index != 5 {
        return None;
    }
    let [a, b, c, d, high, low] = numbers.map(|number| number as u8);
    let address = Ipv4Addr::new(a, b, c, d).into();
    let port = u16::from_be_bytes([high, low]);
    Some(Found {
        end: Endpoint::new(address, port),
        from,
        to: at,
    })
}

/// Where the text goes on behind the next run of `wanted`, or at the first digit if that counts.
fn skipped(text: &[u8], mut at: usize, wanted: u8, or_digit: bool) -> Option<usize> {
    let mut found = false;
    loop {
        let byte = *text.get(at)?;
        if !found && or_digit && byte.is_ascii_digit() || found && byte != wanted {
            return Some(at);
        }
        found |= byte == wanted;
        at += 1;
    }
}

/// Reads `|family|address|port|` behind `word`; an answer may leave family and address out.
fn extended(text: &[u8], word: &str, skip: u8, ends: &Ends, answer: bool) -> Option<Found> {
    if !starts(text, word) {
        return None;
    }
    let from = skipped(text, word.len(), skip, false)?;
    let delimiter = *text.get(from)?;
    if !DELIMITERS.contains(&delimiter) {
        return None;
    }
    let mut parts = text[from + 1..].split(|byte| *byte == delimiter);
    let (family, address, port) = (parts.next()?, parts.next()?, parts.next()?);
    // The port ends with the delimiter.
    parts.next()?;
    let to = from + family.len() + address.len() + port.len() + 4;
    let address = match family {
        b"" if answer && address.is_empty() => ends.real.address,
        b"1" if ends.is_v4() => v4_in(address)?,
        b"2" if !ends.is_v4() => v6_in(address)?,
        _ => return None,
    };
    let port = port_in(port)?;
    Some(Found {
        end: Endpoint::new(address, port),
        from,
        to,
    })
}

/// Four numbers up to 255; zeros may stand before them (`in4_pton`).
fn v4_in(text: &[u8]) -> Option<IpAddr> {
    let mut octets = [0; 4];
    let mut parts = text.split(|byte| *byte == b'.');
    for octet in &mut octets {
        let part = parts.next().filter(|part| !part.is_empty())?;
        *octet = part.iter().try_fold(0u8, |number, digit| {
            let digit = char::from(*digit).to_digit(10)?;
            number.checked_mul(10)?.checked_add(digit as u8)
        })?;
    }
    parts.next().is_none().then(|| octets.into())
}

fn v6_in(text: &[u8]) -> Option<IpAddr> {
    let address: Ipv6Addr = std::str::from_utf8(text).ok()?.parse().ok()?;
    Some(address.into())
}

/// A port; 0 is none, and what is beyond the last one neither.
fn port_in(text: &[u8]) -> Option<u16> {
    let number = text.iter().try_fold(0u16, |number, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        number.checked_mul(10)?.checked_add(digit as u16)
    })?;
    (number != 0).then_some(number)
}

/// The VIP as an answer to PASV tells it.
fn told_plain(address: IpAddr, port: u16) -> Option<String> {
    let IpAddr::V4(address) = address else {
        return None;
    };
    let [a, b, c, d] = address.octets();
    let [high, low] = port.to_be_bytes();
    Some(format!("{a},{b},{c},{d},{high},{low}"))
}
