//! `tokenizer.json`, and what it makes of a text.
#![no_main]

use bdhs::models::tokenizer::Tokenizer;
use bdhs_fuzz::halves;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (text, rules) = halves(data);
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, rules).expect("a file");
    let Ok(tokenizer) = Tokenizer::load(&path) else { return };
    let text = String::from_utf8_lossy(text);
    if let Ok(encoding) = tokenizer.encode(&text, true) {
        let _ = tokenizer.decode(&encoding.ids, true);
    }
    let _ = tokenizer.encode_truncated(&text, 8);
});
