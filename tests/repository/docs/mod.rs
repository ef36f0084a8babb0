//! The documentation against the repository: every command line parses, every filter finds a test, every link and file exists.

mod commands;
mod names;
mod pages;

use std::path::Path;

use pages::{Span, links, pages, spans};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What is wrong with a page, each with its line.
fn problems(page: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for Span { line, code } in spans(text) {
        let wrong = commands::problems(&code).into_iter().chain(pages::missing_file(&code));
        found.extend(wrong.map(|problem| format!("{page}:{line}: {problem}, in: {code}")));
    }
    for (line, target) in links(text) {
        let wrong = pages::broken_link(page, text, &target);
        found.extend(wrong.map(|problem| format!("{page}:{line}: {problem}")));
    }
    found
}

#[test]
fn commands_filters_links_and_files_of_the_pages_exist() {
    let pages = pages();
    assert!(pages.len() >= 9, "only {} pages", pages.len());
    let mut seen = 0;
    let mut found = Vec::new();
    for (page, text) in &pages {
        seen += spans(text).iter().filter(|span| commands::is_command(&span.code)).count();
        found.extend(problems(page, text));
    }
    assert!(seen > 150, "only {seen} commands found");
    assert!(found.is_empty(), "{} problems:\n{}", found.len(), found.join("\n"));
}

/// The filters that scripts give to `cargo test`, which passes where nothing matches.
#[test]
fn filters_of_scripts_find_tests() {
    let mut found = Vec::new();
    let mut seen = 0;
    for script in [".ci/run", "scripts/cuda-on-cpu", "scripts/gpu-pack", "scripts/package-check"] {
        let text = std::fs::read_to_string(root().join(script)).unwrap();
        for line in text.lines().filter(|line| line.contains("cargo test")) {
            let command = &line[line.find("cargo test").unwrap_or(0)..];
            seen += 1;
            let wrong = commands::problems(command);
            found.extend(wrong.into_iter().map(|problem| format!("{script}: {problem}: {line}")));
        }
    }
    assert!(seen >= 6, "only {seen} calls of cargo test found");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The table of CONTRIBUTING.md has every variable that Rust code reads, and none that nothing reads.
#[test]
fn variables_are_documented() {
    let table = std::fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let name = |part: &str| {
        let end = part.find(|c: char| !c.is_ascii_uppercase() && c != '_');
        format!("BDHS_{}", &part[..end.unwrap_or(part.len())])
    };
    let mut code = String::new();
    for folder in ["src", "tests", "benches", "examples", "build", "scripts", ".ci"] {
        pages::read_all(&root().join(folder), &mut code);
    }
    for part in code.split("\"BDHS_").skip(1).filter(|part| !part.starts_with([' ', '"'])) {
        let quoted = name(part);
        let whole = part[quoted.len() - "BDHS_".len()..].starts_with('"');
        assert!(!whole || table.contains(&format!("`{quoted}`")), "{quoted} is in no table");
    }
    for part in table.split("`BDHS_").skip(1) {
        assert!(code.contains(&name(part)), "nothing reads {}", name(part));
    }
}

/// Each kind of fault, planted in a page.
#[test]
fn planted_faults_are_found() {
    for (text, says) in [
        ("`bdhs sweep --rhoo 0.9`", "no option --rhoo"),
        ("`bdhs sweeep`", "unrecognized subcommand"),
        ("`bdhs sweep --threads many`", "invalid value"),
        ("```sh\nbdhs train --pairs a.jsonl \\\n    --outt DIR\n```", "no option --outt"),
        ("```sh\nbdhs report RUN && bdhs doctor --modle X\n```", "no option --modle"),
        ("```sh\ncargo run --release -- sweep --trian\n```", "no option --trian"),
        ("`cargo test --test models engine::forkd`", "no test matches engine::forkd"),
        ("`cargo test --test engine`", "no test binary engine"),
        ("`cargo test --test ops -- cosine:: cosin3 --nocapture`", "no test matches cosin3"),
        ("`cargo test no_such_test`", "no test matches no_such_test"),
        ("`cargo bench --bench pooool`", "no bench pooool"),
        ("`cargo run --example none`", "no example none"),
        ("`scripts/photo`", "no file scripts/photo"),
        ("`tests/ops/pol.rs`", "no file tests/ops/pol.rs"),
        ("[x](docs/evil.md)", "no file docs/evil.md"),
        ("[x](docs/eval.md#no-such-heading)", "no heading #no-such-heading"),
        ("# A heading\n[x](#a-headin)", "no heading #a-headin"),
    ] {
        let found = problems("README.md", text);
        assert!(found.len() == 1 && found[0].contains(says), "{text}: {found:?}");
    }
    for text in [
        "`bdhs sweep [CONFIG.toml]`, `bdhs doctor --model`, `bdhs eval METRIC`",
        "```sh\nBDHS_CACHE=x bdhs --quiet sweep 'a b.toml' --rho 1 | tee log   # a comment --with\n```",
        "`cargo test --test models engine::forked -- --nocapture` and `--test ops cosine::`",
        "[x](docs/eval.md) [y](https://example.org/none) `src/ops/*.rs` `kernels/NAME.cu`",
        "# A heading, `x`: \"y\"\n[x](#a-heading-x-y)",
    ] {
        assert_eq!(problems("README.md", text), [""; 0], "{text}");
    }
}
