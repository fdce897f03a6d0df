//! A file of rules, applied whole: no panic, whole or not at all.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ulvs_fuzz::texts::rules(bytes);
});
