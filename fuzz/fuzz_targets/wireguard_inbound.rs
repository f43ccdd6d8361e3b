//! libFuzzer's entry to [`fuzz::wireguard::inbound`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::wireguard::inbound(data));
