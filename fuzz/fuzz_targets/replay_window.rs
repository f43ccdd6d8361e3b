//! libFuzzer's entry to [`fuzz::wireguard::replay_window`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::wireguard::replay_window(data));
