//! libFuzzer's entry to [`fuzz::relay::frames`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::relay::frames(data));
