//! libFuzzer's entry to [`fuzz::wireguard::messages`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::wireguard::messages(data));
