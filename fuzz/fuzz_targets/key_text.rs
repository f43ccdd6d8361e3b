//! libFuzzer's entry to [`fuzz::key::text`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::key::text(data));
