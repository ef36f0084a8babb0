//! Pages of Markdown: their code, their links, and the files that they name.

use std::fs;

use super::root;

/// Code on a page: an inline span, or a command of a block.
pub struct Span {
    pub line: usize,
    pub code: String,
}

/// The pages that describe the present state, by name.
pub fn pages() -> Vec<(String, String)> {
    let mut names: Vec<String> = Vec::new();
    for folder in ["", "docs/"] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            // What the changelog says was so at its time.
            if name.ends_with(".md") && name != "CHANGELOG.md" {
                names.push(format!("{folder}{name}"));
            }
        }
    }
    names.sort();
    names.into_iter().map(|name| (name.clone(), read(&name))).collect()
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Adds the text of every file below a folder that is text.
pub fn read_all(folder: &std::path::Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, text);
        } else if let Ok(more) = fs::read_to_string(&path) {
            text.push_str(&more);
        }
    }
}

/// Inline code, also where it goes on in the next line, and the lines of shell blocks, joined where they end with a backslash.
pub fn spans(text: &str) -> Vec<Span> {
    let mut found = Vec::new();
    let mut prose = String::new();
    let mut block: Option<bool> = None;
    let mut joined = String::new();
    for (line, row) in (1..).zip(text.lines()) {
        if let Some(language) = row.trim_start().strip_prefix("```") {
            block =
                if block.is_some() { None } else { Some(matches!(language, "sh" | "bash" | "")) };
            prose.push('\n');
            continue;
        }
        match block {
            None => prose.push_str(row),
            Some(false) => {}
            Some(true) => match row.trim_end().strip_suffix('\\') {
                Some(part) => joined.push_str(part),
                None => {
                    let code = std::mem::take(&mut joined) + row.trim();
                    found.push(Span { line, code });
                }
            },
        }
        prose.push('\n');
    }
    // An empty line ends a span that was never closed.
    let mut line = 1;
    for paragraph in prose.split("\n\n") {
        let mut at = line;
        for (n, part) in paragraph.split('`').enumerate() {
            if n % 2 == 1 && !part.is_empty() {
                found.push(Span { line: at, code: part.replace('\n', " ") });
            }
            at += part.matches('\n').count();
        }
        line += paragraph.matches('\n').count() + 2;
    }
    found
}

/// Targets of links, with their lines; none of code.
pub fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_block = false;
    for (line, row) in (1..).zip(text.lines()) {
        in_block ^= row.trim_start().starts_with("```");
        if in_block {
            continue;
        }
        let plain: Vec<&str> = row.split('`').step_by(2).collect();
        for part in plain.join("x").split("](").skip(1) {
            if let Some((target, _)) = part.split_once(')') {
                found.push((line, target.to_owned()));
            }
        }
    }
    found
}

/// As GitHub makes it: lower case, without punctuation, with hyphens for blanks.
fn anchor(heading: &str) -> String {
    let lower = heading.trim().to_lowercase();
    let kept = lower.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
        _ => None,
    });
    kept.collect()
}

fn has_heading(text: &str, wanted: &str) -> bool {
    text.lines().any(|row| {
        let heading = row.trim_start_matches('#');
        heading.len() < row.len() && anchor(heading) == wanted
    })
}

/// What is wrong with a link of a page.
pub fn broken_link(page: &str, text: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, heading) = target.split_once('#').unwrap_or((target, ""));
    let folder = page.rsplit_once('/').map_or("", |(folder, _)| folder);
    let path = root().join(folder).join(file);
    if !file.is_empty() && !path.exists() {
        return Some(format!("no file {file}"));
    }
    let other = if file.is_empty() { None } else { fs::read_to_string(&path).ok() };
    let missing = !heading.is_empty() && !has_heading(other.as_deref().unwrap_or(text), heading);
    missing
        .then(|| format!("no heading #{heading} in {}", if file.is_empty() { page } else { file }))
}

/// A file of the repository that code names and that is not there. Patterns and names to fill in are none.
pub fn missing_file(code: &str) -> Option<String> {
    let folders = [
        "src", "tests", "docs", "benches", "scripts", "kernels", "examples", "build", ".ci",
        ".github",
    ];
    let name = code.split_whitespace().find(|word| word.contains('/'))?;
    let name = name.split(':').next().unwrap_or(name).trim_end_matches(['/', ',', '.', ')']);
    let known = name.split_once('/').is_some_and(|(folder, _)| folders.contains(&folder));
    let plain = name.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
    let to_fill_in = name.split('/').any(|part| {
        let stem = part.split('.').next().unwrap_or(part);
        stem.len() > 1 && !stem.chars().any(|c| c.is_lowercase())
    });
    let checked = known && plain && !to_fill_in;
    (checked && !root().join(name).exists()).then(|| format!("no file {name}"))
}
