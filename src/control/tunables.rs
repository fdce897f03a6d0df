//! Tunables by the kernel's names. Accepted values are those of `/proc/sys/net/ipv4/vs` (recorded in
//! `tests/golden/proc/sysctls.json`): the first word counts, no word changes nothing.

use crate::config::Refusal;
use crate::lvs::{Accepts, Tunables};

/// Sets the tunable `name` to `value`.
///
/// # Errors
/// `UnknownTunable` for a name nobody knows, `Invalid` for a value the kernel refuses.
pub(super) fn set(tunables: &mut Tunables, name: &str, value: &str) -> Result<(), Refusal> {
    let accepts = Tunables::accepts(name).ok_or(Refusal::UnknownTunable)?;
    if accepts == Accepts::Nothing {
        return Err(Refusal::Invalid);
    }
    let Some(number) = first_number(value)? else {
        return Ok(());
    };
    if !accepts.takes(number) {
        return Err(Refusal::Invalid);
    }
    *tunables.get_mut(name).expect("it has just been found") = number;
    Ok(())
}

/// The first word as a number, decimal, 0x hexadecimal or 0 octal (`proc_dointvec`).
fn first_number(value: &str) -> Result<Option<i64>, Refusal> {
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
    Ok(Some(signed))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The recorded writes: each value in turn, whether the kernel took it, and what it then read. The
    /// defences' automatics, which turn 2 into 1 while there is memory, are the control plane's.
    #[test]
    fn takes_and_refuses_what_the_kernel_does() {
        let text = include_str!("../../tests/golden/proc/sysctls.json");
        let case: serde_json::Value = serde_json::from_str(text).expect("recorded JSON");
        let steps = case["steps"].as_array().expect("steps");
        assert!(steps.len() > 15);
        for step in steps {
            let name = step["name"].as_str().expect("name");
            let name = name.trim_start_matches("net.ipv4.vs.");
            let mut tunables = Tunables::default();
            let wanted: i64 = step["default"]
                .as_str()
                .expect("text")
                .parse()
                .expect("number");
            assert_eq!(tunables.get(name), Some(wanted), "{name}");
            for write in step["writes"].as_array().expect("writes") {
                let value = write[0].as_str().expect("value");
                let taken = set(&mut tunables, name, value);
                assert_eq!(taken.is_ok(), write[1].is_null(), "{name} = `{value}`");
                let now: i64 = write[2].as_str().expect("text").parse().expect("number");
                let ours = tunables.get(name).expect("known");
                let automatic = ours == 2 && now == 1;
                assert!(
                    ours == now || automatic,
                    "{name} after `{value}`: {ours}, not {now}"
                );
            }
        }
    }
}
