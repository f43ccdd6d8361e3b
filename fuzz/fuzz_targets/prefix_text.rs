//! libFuzzer's entry to [`fuzz::ip::prefix`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::ip::prefix(data));
