//! Tokenizers made from a SentencePiece model, against sentencepiece and transformers (scripts/golden_sentencepiece.py).

use bdhs::models::tokenizer::Tokenizer;

use super::*;

/// The golden model's folder with a rule for the blank that words begin with, and what it makes of texts.
fn with_rule(legacy: Option<bool>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(place::root().join("tests/golden/sentencepiece")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let mut settings = json_file(dir.path().join("tokenizer_config.json"));
    settings["legacy"] = json!(legacy);
    write(dir.path(), "tokenizer_config.json", &settings);
    dir
}

fn expected() -> Value {
    json_file(place::root().join("tests/golden/sentencepiece/expected.json"))
}

#[test]
fn ids_equal_sentencepiece_and_transformers() {
    for (legacy, rule) in [(None, "segments"), (Some(true), "segments"), (Some(false), "start")] {
        let dir = with_rule(legacy);
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(tokenizer.path(), dir.path().join("tokenizer.model"));
        assert_eq!(tokenizer.vocab_size(), 422);
        for row in expected()["texts"].as_array().unwrap() {
            let text = row["text"].as_str().unwrap();
            assert_eq!(
                tokenizer.encode(text, true).unwrap().ids,
                ids(&row[rule]),
                "{rule} {text:?}"
            );
            if rule == "start" {
                let decoded = tokenizer.decode(&ids(&row[rule]), true).unwrap();
                assert_eq!(decoded, row["decoded"].as_str().unwrap(), "{text:?}");
            }
        }
    }
}

/// A checkpoint with nothing but that model: prompts are cut at images, and each part is tokenised by itself.
#[test]
fn prompts_equal_the_original_code() {
    for (legacy, rule) in [(true, "segments"), (false, "start")] {
        let written = original::Written::new("llava15", false);
        std::fs::remove_file(written.dir.join("tokenizer.json")).unwrap();
        let pieces = with_rule(Some(legacy));
        for entry in std::fs::read_dir(pieces.path()).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, written.dir.join(path.file_name().unwrap())).unwrap();
        }
        let model = written.load();
        for row in expected()["prompts"].as_array().unwrap() {
            let parts: Vec<Vec<u32>> = row[rule].as_array().unwrap().iter().map(ids).collect();
            let mut pieces = Vec::new();
            for (i, part) in parts.into_iter().enumerate() {
                pieces.extend(i.checked_sub(1).map(Piece::Image));
                pieces.extend((!part.is_empty()).then_some(Piece::Tokens(part)));
            }
            let text = row["text"].as_str().unwrap();
            assert_eq!(model.encode(text).unwrap(), pieces, "{rule} {text:?}");
        }
        let before = model.fingerprint().unwrap();
        let path = written.dir.join("tokenizer.model");
        let mut bytes = std::fs::read(&path).unwrap();
        // An unknown field at the end changes the file and nothing else.
        bytes.extend([0xf8, 0x07, 0x01]);
        std::fs::write(&path, bytes).unwrap();
        assert_ne!(written.load().fingerprint().unwrap(), before, "the model is part of it");
    }
}

#[test]
fn models_that_do_not_fit_are_named() {
    let refused = |dir: &Path, expected: &[&str]| {
        let error = Tokenizer::load(dir).unwrap_err().to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    let dir = with_rule(None);
    let path = dir.path().join("tokenizer.model");
    let whole = std::fs::read(&path).unwrap();
    let edit = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        edit(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
    };
    edit(&|bytes| bytes.truncate(1000));
    refused(dir.path(), &["tokenizer.model", "not a SentencePiece model"]);
    edit(&|bytes| bytes.clear());
    refused(dir.path(), &["tokenizer.model", "no pieces"]);
    // Fields of the trainer and the normaliser, given once more: the last one counts.
    edit(&|bytes| bytes.extend([0x12, 2, 3 << 3, 1]));
    refused(dir.path(), &["tokenizer.model", "no BPE with byte fallback"]);
    edit(&|bytes| bytes.extend([0x1a, 2, 4 << 3, 1]));
    refused(dir.path(), &["removes blanks"]);
    edit(&|bytes| bytes.extend([0x1a, 3, 2 << 3 | 2, 1, 7]));
    refused(dir.path(), &["replaces characters"]);
    // A piece that is there already.
    edit(&|bytes| bytes.extend([0x0a, 5, 0x0a, 3, b'<', b's', b'>']));
    refused(dir.path(), &["pieces", "\"<s>\" is both token 1 and token 420"]);
    edit(&|_| {});
    for (file, value, expected) in [
        ("added_tokens.json", json!({"<pad>": 7}), ["token 7", "<pad>"]),
        ("added_tokens.json", json!({"<pad>": 430}), ["added token \"<pad>\"", "430"]),
        ("added_tokens.json", json!({"<pad>": "x"}), ["field <pad>", "expected a token's id"]),
        (
            "tokenizer_config.json",
            json!({"tokenizer_class": "GemmaTokenizer"}),
            ["GemmaTokenizer", "expected LlamaTokenizer"],
        ),
        ("tokenizer_config.json", json!({"legacy": "no"}), ["field legacy", "\"no\""]),
        ("tokenizer_config.json", json!({"bos_token": "<bos>"}), ["\"<bos>\"", "bos_token"]),
    ] {
        let dir = with_rule(None);
        write(dir.path(), file, &value);
        refused(dir.path(), &expected);
    }
}
