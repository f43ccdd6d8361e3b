//! libFuzzer's entry to [`fuzz::ip::routes`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::ip::routes(data));
