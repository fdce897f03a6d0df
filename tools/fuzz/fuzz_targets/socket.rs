//! Bytes on the control socket: no panic, and what is refused changes nothing.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ulvs_fuzz::texts::socket(bytes);
});
