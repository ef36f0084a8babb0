//! Families of models are known to `models` alone: other rooms ask a model, whichever it is.

use std::path::{Path, PathBuf};

use regex::Regex;

/// Rooms that may name families: the networks, and the demo, whose model is a LLaVA.
const FREE: [&str; 2] = ["models", "demo"];

/// What else is called LLaVA, by room: its benchmark and its evaluation scripts; the demo's model and an option of its training.
const OTHERS: [(&str, &str); 4] = [
    (
        "eval/",
        r"(?i)\bllava\b|\bllavaw\b|\bllava(_bench|_pope|_textvqa|_in_the_wild|_questions)\w*",
    ),
    ("cli/eval.rs", r"(?i)\bllavaw\b"),
    ("cli/", "folder::LLAVA|demo-llava|llava_steps"),
    ("config/", "folder::LLAVA"),
];

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => {
                found.extend(Some(path).filter(|path| path.extension().is_some_and(|e| e == "rs")))
            }
        }
    }
    found
}

/// The names of families: their modules, and the model types and classes in the table of what is built in.
fn names(src: &Path) -> Vec<String> {
    let families = src.join("models/families");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&families).unwrap() {
        let path = entry.unwrap().path();
        names.extend(
            path.is_dir().then(|| path.file_name().unwrap().to_string_lossy().into_owned()),
        );
    }
    let table = std::fs::read_to_string(families.join("mod.rs")).unwrap();
    let pattern = Regex::new(r#"(?:model_type|architecture): "(\w+)""#).unwrap();
    let listed = pattern.captures_iter(&table).map(|found| found[1].to_owned());
    names.extend(listed);
    assert!(names.len() >= 5 && names.contains(&"llava".to_owned()), "{names:?}");
    names
}

/// Lines of code that name a family.
fn breaches(path: &str, text: &str, names: &[String]) -> Vec<String> {
    let words: Vec<String> = names.iter().map(|name| regex::escape(name)).collect();
    // A module, a model type, or a type called after a family.
    let family = format!(r"(?i)\b({})\b|\b(llava|qwen|siglip)\w*", words.join("|"));
    let family = Regex::new(&family).unwrap();
    let inside = Regex::new(r"\bfamilies::(\w+|\{)").unwrap();
    let allowed = OTHERS.iter().filter(|(room, _)| path.starts_with(room));
    let allowed: Vec<Regex> = allowed.map(|(_, pattern)| Regex::new(pattern).unwrap()).collect();
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        // Tests inside a file may name the checkpoints that they use.
        if line.trim() == "#[cfg(test)]" {
            break;
        }
        let code = line.split("//").next().unwrap_or_default();
        let mut rest = code.to_owned();
        for pattern in &allowed {
            rest = pattern.replace_all(&rest, "").into_owned();
        }
        let names_one =
            family.is_match(&rest) || inside.captures_iter(&rest).any(|found| &found[1] != "check");
        if names_one {
            found.push(format!("src/{path}:{}: {}", number + 1, line.trim()));
        }
    }
    found
}

#[test]
fn only_models_names_families() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let names = names(&src);
    let mut found = Vec::new();
    for path in files(&src) {
        let name = path.strip_prefix(&src).unwrap().to_string_lossy().into_owned();
        if FREE.iter().all(|room| !name.starts_with(&format!("{room}/"))) {
            found.extend(breaches(&name, &std::fs::read_to_string(&path).unwrap(), &names));
        }
    }
    assert!(found.is_empty(), "ask the model in place of naming its family:\n{}", found.join("\n"));
}

#[test]
fn a_planted_name_is_found() {
    let names = names(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    for planted in [
        "use crate::models::families::llava::Config;",
        "if let Pictures::Llava(config) = &model.config().pictures {",
        "match model_type { \"llava_onevision\" => 1, _ => 2 }",
        "let tower: Siglip = model.tower();",
        "use crate::models::families::{Pictures, part};",
    ] {
        let text = format!("fn f() {{\n    {planted}\n}}\n");
        assert_eq!(breaches("engine/mod.rs", &text, &names).len(), 1, "{planted}");
    }
    for fine in ["// as in llava", "use crate::models::families::check;", "let answer = 1;"] {
        assert!(breaches("engine/mod.rs", fine, &names).is_empty(), "{fine}");
    }
}
