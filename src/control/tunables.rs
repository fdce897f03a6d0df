//! Tunables by the kernel's names. Accepted values are those of `/proc/sys/net/ipv4/vs` (recorded in
//! `tests/golden/proc/sysctls.json`): the first word counts, no word changes nothing.

use crate::config::Refusal;
use crate::lvs::Tunables;

/// Sets the tunable `name` to `value`.
///
/// # Errors
/// `UnknownTunable` for a name nobody knows, `Invalid` for a value the kernel refuses.
pub(super) fn set(tunables: &mut Tunables, name: &str, value: &str) -> Result<(), Refusal> {
    let write: fn(&mut Tunables, i32) = match name {
        "conn_reuse_mode" => |tunables, number| tunables.conn_reuse_mode = reuse_bits(number),
        "expire_nodest_conn" => |tunables, number| tunables.expire_nodest_conn = number != 0,
        "expire_quiescent_template" => {
            |tunables, number| tunables.expire_quiescent_template = number != 0
        }
        "sloppy_tcp" => |tunables, number| tunables.sloppy_tcp = number != 0,
        "sloppy_sctp" => |tunables, number| tunables.sloppy_sctp = number != 0,
        "nat_icmp_send" => |tunables, number| tunables.nat_icmp_send = number != 0,
        "schedule_icmp" => |tunables, number| tunables.schedule_icmp = number != 0,
        _ => return Err(Refusal::UnknownTunable),
    };
    if let Some(number) = first_number(value)? {
        write(tunables, number);
    }
    Ok(())
}

/// Only "not zero" and bit 1 of `conn_reuse_mode` mean anything, so every value fits a byte.
fn reuse_bits(number: i32) -> u8 {
    u8::try_from(number).unwrap_or(1 | (number & 2) as u8)
}

/// The first word as a 32-bit number, decimal, 0x hexadecimal or 0 octal (`proc_dointvec`).
fn first_number(value: &str) -> Result<Option<i32>, Refusal> {
    let Some(word) = value.split_ascii_whitespace().next() else {
        return Ok(None);
    };
    let (minus, digits) = match word.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, word),
    };
    let (digits, radix) = match digits.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (digits, 8),
        None => (digits, 10),
    };
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return Err(Refusal::Invalid);
    }
    let number = i64::from_str_radix(digits, radix).map_err(|_| Refusal::Invalid)?;
    let signed = if minus { -number } else { number };
    let number = i32::try_from(signed).map_err(|_| Refusal::Invalid)?;
    Ok(Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The recorded writes: each value in turn, `None` when the kernel took it, and what it then read.
    #[test]
    fn takes_and_refuses_what_the_kernel_does() {
        let text = include_str!("../../tests/golden/proc/sysctls.json");
        let case: serde_json::Value = serde_json::from_str(text).expect("recorded JSON");
        let mut probed = 0;
        for step in case["steps"].as_array().expect("steps") {
            let name = step["name"]
                .as_str()
                .expect("name")
                .trim_start_matches("net.ipv4.vs.");
            let mut tunables = Tunables::default();
            if set(&mut tunables, name, "") == Err(Refusal::UnknownTunable) {
                continue;
            }
            probed += 1;
            for write in step["writes"].as_array().expect("writes") {
                let value = write[0].as_str().expect("value");
                let taken = set(&mut tunables, name, value);
                assert_eq!(taken.is_ok(), write[1].is_null(), "{name} = `{value}`");
                let now: i64 = write[2].as_str().expect("text").parse().expect("number");
                let ours = value_of(&tunables, name);
                assert_eq!(ours != 0, now != 0, "{name} after `{value}`");
                if name == "conn_reuse_mode" {
                    assert_eq!(ours & 2, now & 2, "bit 1 after `{value}`");
                }
            }
        }
        assert_eq!(probed, 6, "sloppy_sctp is not in the recorded kernel");
    }

    fn value_of(tunables: &Tunables, name: &str) -> i64 {
        i64::from(match name {
            "conn_reuse_mode" => return i64::from(tunables.conn_reuse_mode),
            "expire_nodest_conn" => tunables.expire_nodest_conn,
            "expire_quiescent_template" => tunables.expire_quiescent_template,
            "sloppy_tcp" => tunables.sloppy_tcp,
            "nat_icmp_send" => tunables.nat_icmp_send,
            _ => tunables.schedule_icmp,
        })
    }
}
