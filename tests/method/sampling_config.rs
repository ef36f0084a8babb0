//! Settings, and the identity of candidates.

use std::borrow::Cow;
use std::collections::BTreeSet;

use bdhs::sampling::{
    Attempt, CandidateKey, CutUnit, MaskScheme, Newlines, Positions, SETTINGS, SamplingConfig,
    SentenceRule, YesNoRule,
};

fn config(change: impl FnOnce(&mut SamplingConfig)) -> SamplingConfig {
    let mut config = SamplingConfig::default();
    change(&mut config);
    config.validate().expect("a valid configuration");
    config
}

// ---- identity of candidates ----

fn key(config: &SamplingConfig) -> CandidateKey<'_> {
    CandidateKey {
        model: [1; 32],
        config,
        seed: 9,
        images: Cow::Owned(vec![[2; 32]]),
        turns: vec![("human", "What is it?")],
        reference: "A cat.",
        sample: 3,
        attempt: Attempt { number: 2, guided: true },
    }
}

#[test]
fn key_does_not_depend_on_guidance_or_number_of_attempts() {
    let default = SamplingConfig::default();
    let other = config(|c| {
        c.attempts = 9;
        c.guidance = false;
    });
    assert_eq!(key(&default).hash(), key(&other).hash());
    assert_ne!(default.canonical(), other.canonical());
}

#[test]
fn key_depends_on_everything_else() {
    let default = SamplingConfig::default();
    let configs = [
        config(|c| c.rho = 0.5),
        config(|c| c.law = MaskScheme::ExactK),
        config(|c| c.law = MaskScheme::Blocks { block: 2 }),
        config(|c| c.law = MaskScheme::Blocks { block: 3 }),
        config(|c| c.positions = Positions::Compact),
        config(|c| c.newlines = Newlines::Exempt),
        config(|c| c.noise_steps = 100),
        config(|c| c.sentences = SentenceRule::FirstDot),
        config(|c| c.yes_no = YesNoRule::Pattern),
        config(|c| c.swap_probability = 0.0),
        config(|c| c.cut = CutUnit::Character),
        config(|c| c.temperature = 0.7),
        config(|c| c.top_k = 5),
        config(|c| c.top_p = 0.9),
        config(|c| c.min_p = 0.1),
        config(|c| c.repetition_penalty = 1.1),
        config(|c| c.max_sentence_tokens = 5),
        config(|c| c.max_response_tokens = 5),
    ];
    let mut hashes: Vec<[u8; 32]> = configs.iter().map(|config| key(config).hash()).collect();
    let base = key(&default);
    hashes.push(base.hash());
    hashes.push(CandidateKey { model: [0; 32], ..base.clone() }.hash());
    hashes.push(CandidateKey { seed: 8, ..base.clone() }.hash());
    hashes.push(CandidateKey { images: Cow::Owned(vec![]), ..base.clone() }.hash());
    hashes.push(CandidateKey { images: Cow::Owned(vec![[2; 32], [2; 32]]), ..base.clone() }.hash());
    hashes.push(CandidateKey { turns: vec![("gpt", "What is it?")], ..base.clone() }.hash());
    hashes.push(
        CandidateKey { turns: vec![("human", "What is it"), ("human", "?")], ..base.clone() }
            .hash(),
    );
    hashes.push(CandidateKey { reference: "A cat", ..base.clone() }.hash());
    hashes.push(CandidateKey { sample: 4, ..base.clone() }.hash());
    hashes
        .push(CandidateKey { attempt: Attempt { number: 1, guided: true }, ..base.clone() }.hash());
    hashes.push(CandidateKey { attempt: Attempt { number: 2, guided: false }, ..base }.hash());
    assert_eq!(hashes.iter().collect::<BTreeSet<_>>().len(), hashes.len());
}

#[test]
fn key_of_the_default_configuration_is_pinned() {
    // A change here means that existing stores no longer match: raise the version in the key on purpose, then pin again.
    let default = SamplingConfig::default();
    assert_eq!(
        default.canonical_generation(),
        concat!(
            r#"{"cut":"word","law":"bernoulli","max_response_tokens":1024,"max_sentence_tokens":128,"min_p":0.0,"#,
            r#""newlines":"image","noise_steps":0,"positions":"original","repetition_penalty":1.0,"rho":0.99,"#,
            r#""sentences":"unicode","swap_probability":0.5,"temperature":1.0,"text_rule":2,"top_k":0,"top_p":1.0,"yes_no":"word"}"#
        )
    );
    let hex: String = key(&default).hash().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "cd067a309bb22a2886356bcae22f74a080703b6c17036297aac080a28595b7c0");
}

// ---- configuration ----

#[test]
fn the_papers_values_are_the_defaults() {
    let c = SamplingConfig::default();
    assert_eq!((c.rho, c.attempts, c.swap_probability), (0.99, 5, 0.5));
    assert_eq!((c.guidance, c.law), (true, MaskScheme::Bernoulli));
    let paper = SamplingConfig::paper();
    paper.validate().unwrap();
    assert_eq!((paper.sentences, paper.yes_no), (SentenceRule::FirstDot, YesNoRule::Pattern));
}

#[test]
fn table_of_settings_is_complete() {
    let fields = serde_json::to_value(SamplingConfig::default()).unwrap();
    let fields: Vec<&String> = fields.as_object().unwrap().keys().collect();
    assert_eq!(fields, SETTINGS.iter().map(|row| row.name).collect::<Vec<_>>());
    let table = SamplingConfig::table();
    assert_eq!(table.len(), fields.len());
    assert!(table.iter().flatten().all(|cell| !cell.is_empty() && cell != "null"));
    for [name, default, paper, source, _] in &table {
        assert!(
            source != "[S]" || default == paper,
            "{name}: a stated value cannot differ in paper mode"
        );
    }
    let row = table.iter().find(|row| row[0] == "sentences").unwrap();
    assert_eq!(&row[1..4], ["\"unicode\"", "\"first_dot\"", "[C]"]);
}

#[test]
fn configuration_reads_json_and_refuses_unknown_fields() {
    let read = |text: &str| serde_json::from_str::<SamplingConfig>(text);
    let json = read(r#"{"sentences":"first_dot","law":{"blocks":{"block":4}},"rho":1.0}"#).unwrap();
    assert_eq!((json.law, json.rho), (MaskScheme::Blocks { block: 4 }, 1.0));
    assert_eq!(read("{}").unwrap(), SamplingConfig::default());
    assert_eq!(read(&SamplingConfig::paper().canonical()).unwrap(), SamplingConfig::paper());
    assert!(read("{\"roh\": 1}").unwrap_err().to_string().contains("roh"));
    assert!(read(r#"{"law":{"blocks":{"block":2,"size":3}}}"#).is_err());
}

#[test]
fn validation_names_the_field() {
    type Change = fn(&mut SamplingConfig);
    let bad: [(&str, Change); 13] = [
        ("rho", |c| c.rho = f64::NAN),
        ("rho", |c| c.rho = -0.1),
        ("law.blocks.block", |c| c.law = MaskScheme::Blocks { block: 0 }),
        ("noise_steps", |c| c.noise_steps = 1001),
        ("attempts", |c| c.attempts = 0),
        ("swap_probability", |c| c.swap_probability = 1.1),
        ("temperature", |c| c.temperature = -1.0),
        ("temperature", |c| c.temperature = f64::INFINITY),
        ("top_p", |c| c.top_p = 0.0),
        ("min_p", |c| c.min_p = f64::NAN),
        ("repetition_penalty", |c| c.repetition_penalty = 0.0),
        ("max_sentence_tokens", |c| c.max_sentence_tokens = 0),
        ("max_response_tokens", |c| c.max_response_tokens = 0),
    ];
    for (field, change) in bad {
        let mut config = SamplingConfig::default();
        change(&mut config);
        let message = config.validate().unwrap_err().to_string();
        assert!(message.starts_with(&format!("sampling config: {field} is ")), "{message}");
    }
}

#[test]
fn canonical_form_does_not_tell_negative_zero_from_zero() {
    assert_eq!(config(|c| c.rho = -0.0).canonical(), config(|c| c.rho = 0.0).canonical());
}

/// `docs/config.md` shows the table that the code has. With `BDHS_BLESS=1` it is written instead.
#[test]
fn documented_table_is_the_codes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/config.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut table =
        String::from("| setting | default | `--paper` | | meaning |\n|---|---|---|---|---|\n");
    for [setting, default, paper, source, meaning] in SamplingConfig::table() {
        table.push_str(&format!(
            "| `{setting}` | `{default}` | `{paper}` | {source} | {meaning} |\n"
        ));
    }
    let (head, rest) = text.split_once("<!-- table -->\n").unwrap();
    let (shown, tail) = rest.split_once("<!-- end -->").unwrap();
    if std::env::var_os("BDHS_BLESS").is_some() {
        std::fs::write(path, format!("{head}<!-- table -->\n{table}<!-- end -->{tail}")).unwrap();
    } else {
        assert_eq!(shown, table);
    }
}
