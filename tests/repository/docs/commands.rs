//! Command lines: `bdhs` against its own parser, cargo's against what there is to test, measure and run.

use clap::error::ErrorKind;

use super::names::TESTS;
use super::root;

/// Whether code is a command that [`problems`] looks at.
pub fn is_command(code: &str) -> bool {
    parts(&words(code)).iter().any(|part| matches!(part[0].as_str(), "bdhs" | "cargo"))
}

/// What is wrong with the commands of a line of code.
pub fn problems(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in parts(&words(code)) {
        let rest = &part[1..];
        match part[0].as_str() {
            "bdhs" => found.extend(bdhs(rest)),
            "cargo" => found.extend(cargo(rest)),
            // As in "and `--test ops cosine::`".
            "--test" => found.extend(tests(&part)),
            _ => {}
        }
    }
    found
}

/// As a shell splits them, without comments. Operators are words of their own.
fn words(code: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in code.chars() {
        let last = words.last_mut().expect("one word at least");
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => last.push(c),
            (None, '\'' | '"') => quote = Some(c),
            (None, '#') if last.is_empty() => break,
            (None, c) if c.is_whitespace() => words.push(String::new()),
            (None, '|' | '&' | ';' | '>' | '<' | '(' | ')') => {
                words.push(c.to_string());
                words.push(String::new());
            }
            (None, c) => last.push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The commands between operators, without variables before their name and brackets around what may be left out.
fn parts(words: &[String]) -> Vec<Vec<String>> {
    let operator = |word: &String| ["|", "&", ";", ">", "<", "(", ")"].contains(&word.as_str());
    let part = |words: &[String]| -> Vec<String> {
        let plain = words.iter().map(|word| word.trim_matches(['[', ']']).to_owned());
        plain.skip_while(|word| word.contains('=') || word == "env").collect()
    };
    words.split(operator).map(part).filter(|part| !part.is_empty()).collect()
}

/// A name to fill in (`DIR`, `cuda:N`), or what a shell would.
fn to_fill_in(word: &str) -> bool {
    let word = word.trim_end_matches(".toml");
    let capitals = word.chars().any(char::is_uppercase) && !word.chars().any(char::is_lowercase);
    capitals || word.contains(['$', '…', '{']) || word.contains("...")
}

/// `bdhs` with these arguments: every option is one of the command, and the whole is taken. In a text, required arguments may be
/// absent and values may stand for others.
fn bdhs(arguments: &[String]) -> Vec<String> {
    // "bdhs = { path = ... }" of a manifest.
    if arguments.first().is_some_and(|word| word == "=") {
        return vec![];
    }
    let mut command = bdhs::cli::command();
    command.build();
    let mut at = &command;
    let mut found = Vec::new();
    for word in arguments {
        if let Some(inner) = at.find_subcommand(word) {
            at = inner;
        } else if let Some(option) = word.strip_prefix("--").filter(|option| !option.is_empty()) {
            let name = option.split('=').next().unwrap_or(option);
            let known = at.get_arguments().any(|argument| {
                argument.get_long() == Some(name)
                    || argument.get_all_aliases().is_some_and(|all| all.contains(&name))
            });
            if !known && name != "help" {
                found.push(format!("no option --{name} of {}", at.get_name()));
            }
        }
    }
    if !found.is_empty() {
        return found;
    }
    let open = arguments.iter().any(|word| to_fill_in(word));
    let ends_open = arguments.last().is_some_and(|word| word.starts_with('-'));
    let program = [String::from("bdhs")];
    match command.try_get_matches_from(program.iter().chain(arguments)) {
        Ok(_) => vec![],
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            | ErrorKind::MissingRequiredArgument
            | ErrorKind::MissingSubcommand => vec![],
            ErrorKind::InvalidValue | ErrorKind::ValueValidation if open || ends_open => vec![],
            ErrorKind::InvalidSubcommand if open => vec![],
            _ => vec![error.to_string().lines().next().unwrap_or("refused").to_owned()],
        },
    }
}

/// `cargo` with these arguments.
fn cargo(arguments: &[String]) -> Vec<String> {
    let Some(first) = arguments.first() else { return vec![] };
    let mut found = match first.as_str() {
        "test" => tests(&arguments[1..]),
        "run" if !arguments.iter().any(|word| word == "--example") => {
            let own = arguments.iter().skip_while(|word| *word != "--").skip(1);
            return bdhs(&own.cloned().collect::<Vec<_>>());
        }
        _ => vec![],
    };
    for (option, folder) in [("--bench", "benches"), ("--example", "examples")] {
        for name in values(arguments, option) {
            let path = root().join(folder).join(name);
            if !to_fill_in(name)
                && !path.with_extension("rs").exists()
                && !path.join("main.rs").exists()
            {
                found.push(format!("no {} {name}", &option[2..]));
            }
        }
    }
    found
}

/// The values of an option among cargo's own arguments.
fn values<'a>(arguments: &'a [String], option: &str) -> Vec<&'a str> {
    let own: Vec<&String> = arguments.iter().take_while(|word| *word != "--").collect();
    own.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
}

/// Options of cargo and of the test harness that take a value.
const VALUED: [&str; 9] = [
    "--test",
    "--features",
    "--bench",
    "--bin",
    "--profile",
    "--example",
    "--target",
    "--skip",
    "--test-threads",
];

/// `cargo test` with these arguments: its binaries exist, and each filter matches a test of them.
fn tests(arguments: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let named = values(arguments, "--test");
    for name in &named {
        if !TESTS.contains_key(*name) && !to_fill_in(name) {
            found.push(format!("no test binary {name}"));
        }
    }
    if !found.is_empty() || arguments.iter().any(|word| word == "--doc") {
        return found;
    }
    let mut filters = arguments.iter();
    while let Some(word) = filters.next() {
        if VALUED.contains(&word.as_str()) {
            filters.next();
        } else if !word.starts_with('-') && !to_fill_in(word) {
            let searched = TESTS.iter().filter(|(name, _)| match named.as_slice() {
                [] => true,
                some => some.contains(&name.as_str()),
            });
            if !searched.flat_map(|(_, tests)| tests).any(|test| test.contains(word.as_str())) {
                found.push(format!("no test matches {word}"));
            }
        }
    }
    found
}
