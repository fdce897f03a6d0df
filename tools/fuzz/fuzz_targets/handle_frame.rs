//! Any bytes, in any order, with any commands between: no panic, and every frame accounted for.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ulvs_fuzz::drive::run(bytes);
});
