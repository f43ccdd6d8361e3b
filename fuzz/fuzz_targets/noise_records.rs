//! libFuzzer's entry to [`fuzz::control::noise_records`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::control::noise_records(data));
