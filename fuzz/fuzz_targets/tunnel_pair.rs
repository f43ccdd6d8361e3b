//! libFuzzer's entry to [`fuzz::wireguard::tunnel_pair`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::wireguard::tunnel_pair(data));
