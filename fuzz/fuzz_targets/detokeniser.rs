//! Text token by token equals the decoding of the whole, for any tokens.
#![no_main]

use std::sync::LazyLock;

use bdhs::engine::Detokenizer;
use bdhs::models::tokenizer::Tokenizer;
use bdhs_fuzz::golden;
use libfuzzer_sys::fuzz_target;

const FOLDERS: [&str; 4] =
    ["llava/llava15", "llava/next_mistral", "encoders/bert", "encoders/xlm_roberta"];

static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    FOLDERS.iter().map(|name| Tokenizer::load(golden(name)).expect("a tokenizer")).collect()
});

fuzz_target!(|data: &[u8]| {
    let Some((&which, tokens)) = data.split_first() else { return };
    let tokenizer = &TOKENIZERS[usize::from(which) % FOLDERS.len()];
    let ids: Vec<u32> =
        tokens.chunks_exact(2).map(|two| u32::from(u16::from_le_bytes([two[0], two[1]]))).collect();
    let mut text = Detokenizer::after(tokenizer, &[]).expect("no tokens");
    for n in 0..ids.len() {
        text.push(tokenizer, ids[n]).expect("a token");
        assert_eq!(text.whole(), tokenizer.decode(&ids[..=n], true).expect("a text"));
    }
});
