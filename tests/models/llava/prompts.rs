//! Templates, separators and token ids.

use super::*;

#[test]
fn prompts_equal_transformers() {
    for name in ["llava15", "next_vicuna", "next_mistral"] {
        let (model, golden) = (load(name), Golden::of(name));
        let prompt = model.prompt(&turns()).unwrap();
        assert_eq!(prompt.text, golden.results["prompt"].as_str().unwrap(), "{name}");
        assert_eq!(prompt.with_answer(ANSWER), golden.results["full"].as_str().unwrap(), "{name}");
        assert_eq!((prompt.separator.as_str(), prompt.images), (" ", 1), "{name}");
    }
    for (name, count) in
        [("llava15", 1), ("llava15_odd", 1), ("next_vicuna", 2), ("next_mistral", 1)]
    {
        let model = load(name);
        assert_eq!(model.format.eos_ids().len(), count, "{name}");
        assert_eq!(model.format.eos_ids()[0], 1, "{name}");
    }
}

#[test]
fn ids_equal_transformers() {
    for name in MODELS {
        let (model, golden) = (load(name), Golden::of(name));
        let full = golden.results["full"].as_str().unwrap();
        let encoded = model.format.encode_with_offsets(full).unwrap();
        let [Piece::Tokens(before), Piece::Image(0), Piece::Tokens(after)] = &encoded.pieces[..]
        else {
            panic!("{name}: {:?}", encoded.pieces)
        };
        let case = &golden.results["cases"][0];
        assert_eq!((before, after), (&ids(&case["before"]), &ids(&case["after"])), "{name}");
        assert_eq!(encoded.offsets.len(), before.len() + 1 + after.len());
        assert!(encoded.offsets.windows(2).all(|w| w[0].1 <= w[1].1), "{name}: offsets go back");
        assert_eq!(encoded.offsets.last().unwrap().1, full.len());
        let text = model.encode("The dog, near the tree.").unwrap();
        assert_eq!(text, vec![Piece::Tokens(ids(&golden.results["text_ids"]))], "{name}");
    }
}

#[test]
fn fallback_templates_and_system_turns() {
    let system = Turn { role: Role::System, text: "Be brief.".into() };
    let user = Turn { role: Role::User, text: "<image>\nWhat is it?".into() };
    // Without a template file the family decides; vicuna_v1 has a system prompt of its own.
    let odd = load("llava15_odd");
    assert_eq!(odd.format.template_name(), "vicuna_v1");
    let prompt = odd.prompt(std::slice::from_ref(&user)).unwrap();
    assert!(prompt.text.starts_with("A chat between a curious user"));
    assert!(
        prompt.text.ends_with("questions. USER: <image>\nWhat is it? ASSISTANT:"),
        "{prompt:?}"
    );
    assert_eq!(prompt.separator, " ");
    let prompt = odd.prompt(&[system.clone(), user.clone()]).unwrap();
    assert_eq!(prompt.text, "Be brief. USER: <image>\nWhat is it? ASSISTANT:");

    let dir = copy("next_mistral");
    let mut settings = json_file(dir.path().join("tokenizer_config.json"));
    settings["chat_template"] = Value::Null;
    write(dir.path(), "tokenizer_config.json", &settings);
    let mistral = Model::load(dir.path(), &Device::Cpu, DType::F32).unwrap();
    assert_eq!(mistral.format.template_name(), "mistral_instruct");
    let prompt = mistral.prompt(std::slice::from_ref(&user)).unwrap();
    assert_eq!(
        (prompt.text.as_str(), prompt.separator.as_str()),
        ("[INST] <image>\nWhat is it? [/INST]", " ")
    );
}

#[test]
fn bad_conversations_are_refused() {
    let model = load("next_mistral");
    for (turns, expected) in [
        (vec![], "no turns"),
        (turns()[..2].to_vec(), "answered"),
        (vec![turns()[0].clone(), turns()[2].clone()], "roles must alternate"),
    ] {
        let error = model.prompt(&turns).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let dir = copy("next_mistral");
    let mut settings = json_file(dir.path().join("tokenizer_config.json"));
    settings["chat_template"] =
        json!("{% for m in messages %}{{ m['content'] | replace('<image>', '') }}{% endfor %}");
    write(dir.path(), "tokenizer_config.json", &settings);
    let model = Model::load(dir.path(), &Device::Cpu, DType::F32).unwrap();
    let error = model.prompt(&one_question()).unwrap_err().to_string();
    assert!(error.contains("1 images, the rendered prompt 0"), "{error}");
}
