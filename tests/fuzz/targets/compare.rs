#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| essrun_pipeline::fuzz::compare(data));
