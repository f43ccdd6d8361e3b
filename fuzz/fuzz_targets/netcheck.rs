//! libFuzzer's entry to [`fuzz::netcheck::script`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::netcheck::script(data));
