//! libFuzzer's entry to [`fuzz::config::scenario`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::config::scenario(data));
