//! libFuzzer's entry to [`fuzz::ip::echo`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::ip::echo(data));
