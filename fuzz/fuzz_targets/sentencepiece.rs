//! `tokenizer.model`, and what it makes of a text.
#![no_main]

use bdhs::models::tokenizer::Tokenizer;
use bdhs_fuzz::halves;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (text, model) = halves(data);
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("tokenizer.model"), model).expect("a file");
    let Ok(tokenizer) = Tokenizer::load(dir.path()) else { return };
    if let Ok(encoding) = tokenizer.encode(&String::from_utf8_lossy(text), true) {
        let _ = tokenizer.decode(&encoding.ids, true);
    }
});
