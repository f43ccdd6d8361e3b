//! libFuzzer's entry to [`fuzz::control::map_frames`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::control::map_frames(data));
