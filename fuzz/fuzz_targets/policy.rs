//! libFuzzer's entry to [`fuzz::policy::policy`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::policy::policy(data));
