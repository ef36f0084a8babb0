//! A chat template, rendered for a conversation with a picture.
#![no_main]

use std::sync::LazyLock;

use bdhs::models::{Config, PromptFormat, Role, Turn};
use bdhs_fuzz::copy;
use libfuzzer_sys::fuzz_target;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| copy("llava/llava15"));

fuzz_target!(|data: &[u8]| {
    let folder = FOLDER.path();
    std::fs::write(folder.join("chat_template.jinja"), data).expect("a file");
    let config = Config::read(folder).expect("a configuration");
    let Ok(format) = PromptFormat::read(folder, &config) else { return };
    let turn = Turn { role: Role::User, text: "<image>\nWhat is it?".into() };
    if let Ok(prompt) = format.prompt(&[turn]) {
        let _ = format.encode(&prompt.text);
    }
});
