//! Command lines, one after the other: no panic, and what fails changes nothing.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ulvs_fuzz::texts::command_lines(bytes);
});
