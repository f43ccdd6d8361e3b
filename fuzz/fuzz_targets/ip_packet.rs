//! libFuzzer's entry to [`fuzz::ip::packet`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::ip::packet(data));
