//! Templates and tokens.

use bdhs::models::{Role, Turn};

use super::*;

/// 30 conversations: system texts, several turns, images in front, behind and in between.
#[test]
fn prompts_and_ids_equal_transformers() {
    let rows = json_file(&golden("conversations.json"));
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 30);
    for name in COMPLETE {
        let model = load(name);
        for row in rows {
            let turn = |turn: &Value| Turn {
                role: match turn[0].as_str().unwrap() {
                    "system" => Role::System,
                    "user" => Role::User,
                    _ => Role::Assistant,
                },
                text: turn[1].as_str().unwrap().to_owned(),
            };
            let turns: Vec<Turn> = row["turns"].as_array().unwrap().iter().map(turn).collect();
            let prompt = model.prompt(&turns).unwrap();
            assert_eq!(prompt.text, row["text"].as_str().unwrap(), "{name}");
            assert_eq!(
                (prompt.images as u64, &prompt.separator[..]),
                (row["images"].as_u64().unwrap(), "")
            );
            let image = model.format.image_token().unwrap();
            let pieces = model.encode(&prompt.text).unwrap();
            let found: Vec<u32> = pieces
                .into_iter()
                .flat_map(|piece| match piece {
                    Piece::Tokens(ids) => ids,
                    Piece::Image(_) => vec![image],
                })
                .collect();
            assert_eq!(found, ids(&row["ids"]), "{name}: {}", prompt.text);
        }
    }
}

#[test]
fn answers_end_where_the_checkpoint_says() {
    let model = load("qwen2_5");
    let token = |name: &str| model.format.tokenizer().token_id(name).unwrap();
    assert_eq!(model.format.eos_ids(), [token("<|im_end|>"), token("<|endoftext|>")]);
    assert_eq!(model.format.image_token(), Some(token("<|image_pad|>")));
}

/// Only pictures are built in.
#[test]
fn videos_are_refused_by_name() {
    let model = load("qwen2");
    let text = "<|vision_start|><|video_pad|><|vision_end|> What moves?";
    let turns = [Turn { role: Role::User, text: text.to_owned() }];
    let error = model.prompt(&turns).unwrap_err().to_string();
    assert!(error.contains("video") && error.contains("<|video_pad|>"), "{error}");
}
