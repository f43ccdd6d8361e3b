//! libFuzzer's entry to [`fuzz::config::static_file`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::config::static_file(data));
