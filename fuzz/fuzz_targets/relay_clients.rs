//! libFuzzer's entry to [`fuzz::relay::clients`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::relay::clients(data));
