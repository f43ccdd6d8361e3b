//! libFuzzer's entry to [`fuzz::netcheck::stun`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::netcheck::stun(data));
