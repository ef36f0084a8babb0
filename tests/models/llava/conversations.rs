//! Prompts and token ids of many conversations against transformers and the LLaVA code (scripts/golden_prompts.py).

use super::*;

/// The model of a target; names of templates stand for its checkpoint without a template file.
fn target(name: &str, checkpoint: &str) -> Model {
    if name == checkpoint {
        return load(name);
    }
    let dir = copy(checkpoint);
    for file in ["chat_template.json", "chat_template.jinja"] {
        let path = dir.path().join(file);
        if path.is_file() {
            std::fs::remove_file(path).unwrap();
        }
    }
    let mut settings = json_file(dir.path().join("tokenizer_config.json"));
    settings["chat_template"] = Value::Null;
    write(dir.path(), "tokenizer_config.json", &settings);
    let model = Model::load(dir.path(), &Device::Cpu, DType::F32).unwrap();
    assert_eq!(model.format.template_name(), name);
    model
}

fn turns_of(case: &Value) -> Vec<Turn> {
    let turn = |t: &Value| Turn {
        role: match t[0].as_str().unwrap() {
            "system" => Role::System,
            "user" => Role::User,
            _ => Role::Assistant,
        },
        text: t[1].as_str().unwrap().to_owned(),
    };
    case["turns"].as_array().unwrap().iter().map(turn).collect()
}

/// Ids as in the golden file: -n for the n tokens of an image, and images side by side as one number.
fn encoded(model: &Model, text: &str, sizes: &Value) -> Vec<i64> {
    let sizes: Vec<Vec<u32>> = sizes.as_array().unwrap().iter().map(ids).collect();
    let mut all: Vec<i64> = Vec::new();
    for piece in model.encode(text).unwrap() {
        match piece {
            Piece::Tokens(ids) => all.extend(ids.into_iter().map(i64::from)),
            Piece::Image(i) => {
                let layout = model.layout(sizes[i][0] as usize, sizes[i][1] as usize).unwrap();
                let tokens = layout.tokens as i64;
                match all.last_mut() {
                    Some(last) if *last < 0 => *last -= tokens,
                    _ => all.push(-tokens),
                }
            }
        }
    }
    all
}

#[test]
fn conversations_equal_transformers_and_llava() {
    let golden = json_file(folder("conversations.json"));
    let cases = golden["conversations"].as_array().unwrap();
    assert!(cases.len() >= 30);
    let mut different = Vec::new();
    let (mut equal, mut refused) = (0, 0);
    for (name, of_target) in golden["targets"].as_object().unwrap() {
        let model = target(name, of_target["folder"].as_str().unwrap());
        for (case, expected) in cases.iter().zip(of_target["results"].as_array().unwrap()) {
            let what = format!("{name}, {}", case["name"].as_str().unwrap());
            let prompt = match (model.prompt(&turns_of(case)), expected.is_null()) {
                (Err(_), true) => {
                    refused += 1;
                    continue;
                }
                (Ok(prompt), false) => prompt,
                (found, _) => {
                    different.push(format!("{what}: {found:?}, expected {expected}"));
                    continue;
                }
            };
            let sizes = &case["sizes"];
            assert_eq!(prompt.images, sizes.as_array().unwrap().len(), "{what}");
            let found = json!({
                "prompt": prompt.text,
                "answered": prompt.with_answer(ANSWER),
                "ids": encoded(&model, &prompt.text, sizes),
            });
            if found != *expected {
                different.push(format!("{what}:\n  found    {found}\n  expected {expected}"));
            }
            equal += 1;
        }
    }
    println!(
        "{equal} prompts equal in text and ids, {refused} refused by the template on both sides"
    );
    assert!(different.is_empty(), "{}", different.join("\n"));
    // Only the template of next_mistral refuses: system turns and an assistant that begins.
    assert!(equal > 6 * cases.len() && refused < 10, "{equal} {refused}");
}
