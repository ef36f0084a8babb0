//! The order of rooms: each top-level module of `src/` imports only from lower levels, and no rooms import each other in a circle.
//! Read from the sources: every `use`, and every path in the code that begins with `crate`, `super` or a child module.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// The rooms from the ground up. A room imports from the levels above its own line here, and not from its own.
const LEVELS: &[(&str, &[&str])] = &[
    ("ground", &["error"]),
    ("ground", &["files", "lock", "progress"]),
    ("ground", &["append"]),
    ("1 ops", &["ops"]),
    ("2 models", &["models"]),
    ("3 method", &["sampling"]),
    ("3 method", &["data", "store"]),
    ("3 method", &["engine"]),
    ("4 experiments", &["eval", "train"]),
    ("4 experiments", &["demo"]),
    ("4 experiments", &["config"]),
    ("4 experiments", &["sweep", "bench"]),
    ("4 experiments", &["ablation"]),
    ("4 experiments", &["report"]),
    ("5 commands", &["cli"]),
    ("5 commands", &["main"]),
];

/// A file of each circle that is left to cut.
const LEFT: &[&str] = &["models::adapter", "models::memory", "models::llava::patches"];

/// A module: its path from the crate's root, and where its text is.
type Module = Vec<String>;
/// From a module to another one, with the line of the first import found.
type Edges = BTreeMap<(Module, Module), usize>;

/// A piece of Rust, with its line.
#[derive(Clone, Debug, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

/// Words, `::` and single signs; comments, strings and characters are left out.
fn tokens(source: &str) -> Vec<Token> {
    let (bytes, mut all, mut at, mut line) = (source.as_bytes(), Vec::new(), 0, 1);
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    while at < bytes.len() {
        let rest = &source[at..];
        let hashes = rest.strip_prefix('r').map(|r| r.len() - r.trim_start_matches('#').len());
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(n) = hashes.filter(|n| rest[1 + n..].starts_with('"')) {
            let end = format!("\"{}", "#".repeat(n));
            rest[n + 2..].find(&end).map_or(rest.len(), |i| n + 2 + i + end.len())
        } else if rest.starts_with('"') {
            let mut end = 1;
            while rest.as_bytes().get(end).is_some_and(|&b| b != b'"') {
                end += if rest.as_bytes()[end] == b'\\' { 2 } else { 1 };
            }
            end + 1
        } else if rest.starts_with("'\\") {
            rest[3..].find('\'').map_or(rest.len(), |end| end + 4)
        } else if rest.starts_with('\'') && rest.chars().nth(2) == Some('\'') {
            rest.chars().take(3).map(char::len_utf8).sum()
        } else if word(bytes[at]) {
            let length = bytes[at..].iter().take_while(|&&b| word(b)).count();
            all.push(Token { text: rest[..length].to_owned(), line });
            length
        } else {
            let length = if rest.starts_with("::") {
                2
            } else {
                rest.chars().next().map_or(1, char::len_utf8)
            };
            if !rest[..length].trim().is_empty() {
                all.push(Token { text: rest[..length].to_owned(), line });
            }
            length
        };
        let length = length.min(rest.len());
        line += rest[..length].bytes().filter(|&b| b == b'\n').count();
        at += length;
    }
    all
}

/// A path that a file mentions: its parts, the name it is given here, whether it is a `use`, and how many inline modules it is in.
struct Mention {
    path: Vec<String>,
    name: Option<String>,
    inline: usize,
    line: usize,
}

/// What a file says: the modules it declares, and the paths it mentions.
#[derive(Default)]
struct File {
    children: BTreeSet<String>,
    mentions: Vec<Mention>,
}

impl File {
    fn read(source: &str) -> Self {
        let all = tokens(source);
        let text = |i: usize| all.get(i).map_or("", |token| token.text.as_str());
        let closing = |mut i: usize| {
            let mut depth = 0;
            loop {
                match text(i) {
                    "{" => depth += 1,
                    "}" => depth -= 1,
                    _ => {}
                }
                if depth == 0 || i >= all.len() {
                    return i;
                }
                i += 1;
            }
        };
        let mut file = Self::default();
        let (mut ends, mut i): (Vec<usize>, usize) = (Vec::new(), 0);
        while i < all.len() {
            ends.retain(|&end| end > i);
            let (inline, line) = (ends.len(), all[i].line);
            match (text(i), text(i + 2)) {
                ("mod", ";") => {
                    file.children.insert(text(i + 1).to_owned());
                }
                ("mod", "{") if i > 2 && text(i - 3) == "test" => i = closing(i + 2),
                ("mod", "{") => ends.push(closing(i + 2)),
                ("use", _) => {
                    let end = (i..all.len()).find(|&j| text(j) == ";").unwrap_or(all.len());
                    let words: Vec<&str> = (i + 1..end).map(text).collect();
                    for (path, name) in tree(&words) {
                        file.mentions.push(Mention { path, name: Some(name), inline, line });
                    }
                    i = end;
                }
                (first, _)
                    if text(i + 1) == "::" && !(i > 0 && ["::", "in"].contains(&text(i - 1))) =>
                {
                    let mut path = vec![first.to_owned()];
                    while text(i + 1) == "::"
                        && text(i + 2).starts_with(|c: char| c == '_' || c.is_alphabetic())
                    {
                        path.push(text(i + 2).to_owned());
                        i += 2;
                    }
                    file.mentions.push(Mention { path, name: None, inline, line });
                }
                _ => {}
            }
            i += 1;
        }
        file
    }
}

/// The paths of a `use`, each with the name that it binds.
fn tree(words: &[&str]) -> Vec<(Vec<String>, String)> {
    let Some(open) = words.iter().position(|&w| w == "{") else {
        let named = words.iter().position(|&w| w == "as");
        let path: Vec<String> = words[..named.unwrap_or(words.len())]
            .iter()
            .filter(|&&w| w != "::")
            .map(|&w| w.to_owned())
            .collect();
        let last = named.map_or_else(|| path.last().cloned(), |at| Some(words[at + 1].to_owned()));
        return vec![(path, last.unwrap_or_default())];
    };
    let (before, inside) = (&words[..open], &words[open + 1..words.len() - 1]);
    let (mut all, mut depth, mut begun) = (Vec::new(), 0, 0);
    for end in 0..=inside.len() {
        match inside.get(end) {
            Some(&"{") => depth += 1,
            Some(&"}") => depth -= 1,
            Some(&",") | None if depth == 0 && end > begun => {
                let whole: Vec<&str> = before.iter().chain(&inside[begun..end]).copied().collect();
                all.extend(tree(&whole));
                begun = end + 1;
            }
            _ => {}
        }
    }
    all
}

/// All modules of a crate.
struct Crate(HashMap<Module, File>);

impl Crate {
    /// Reads texts by their paths below `src/`.
    fn new<'a>(sources: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let module = |path: &str| {
            let mut parts: Module =
                path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
            parts.pop_if(|last| last == "mod");
            parts.pop_if(|last| last == "lib");
            parts
        };
        Self(sources.into_iter().map(|(path, text)| (module(path), File::read(text))).collect())
    }

    fn read(src: &Path) -> Self {
        let (mut folders, mut texts) = (vec![src.to_owned()], Vec::new());
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "rs") {
                    let name = path.strip_prefix(src).unwrap().to_str().unwrap().replace('\\', "/");
                    texts.push((name, std::fs::read_to_string(&path).unwrap()));
                }
            }
        }
        Self::new(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())))
    }

    /// A mentioned path from the crate's root; none of another crate's.
    fn absolute(&self, from: &Module, mention: &Mention) -> Option<Vec<String>> {
        let mut at = match mention.path[0].as_str() {
            "crate" | "bdhs" => Module::new(),
            "self" | "super" => from.clone(),
            child if self.0[from].children.contains(child) => from.clone(),
            _ => return None,
        };
        let mut inline = mention.inline;
        for part in &mention.path {
            match part.as_str() {
                "crate" | "bdhs" | "self" => {}
                "super" if inline > 0 => inline -= 1,
                "super" => {
                    at.pop();
                }
                part => at.push(part.to_owned()),
            }
        }
        Some(at)
    }

    /// The module that a path leads to: where it passes through a name that a module only imports, the module that has it.
    fn target(&self, path: &[String], depth: usize) -> Module {
        let split = (0..=path.len()).rev().find(|&n| self.0.contains_key(&path[..n])).unwrap_or(0);
        let (module, rest) = (path[..split].to_vec(), &path[split..]);
        let Some((name, rest)) = rest.split_first().filter(|_| depth < 8) else { return module };
        let bound = self.0.get(&module).and_then(|file| {
            file.mentions.iter().find(|m| m.inline == 0 && m.name.as_ref() == Some(name))
        });
        match bound.and_then(|mention| self.absolute(&module, mention)) {
            Some(next) if next.as_slice() != path => {
                self.target(&next.iter().chain(rest).cloned().collect::<Vec<_>>(), depth + 1)
            }
            _ => module,
        }
    }

    /// Who imports from whom. A name that a module takes out of its own parts and that others take from it is theirs.
    fn imports(&self) -> Edges {
        let mut edges = Edges::new();
        for (from, file) in &self.0 {
            for mention in &file.mentions {
                if let Some(path) = self.absolute(from, mention) {
                    let to = self.target(&path, 0);
                    if to != *from && !to.is_empty() {
                        let line = edges.entry((from.clone(), to)).or_insert(mention.line);
                        *line = mention.line.min(*line);
                    }
                }
            }
        }
        // The crate's root only declares what there is.
        edges.retain(|(from, _), _| !from.is_empty());
        edges
    }
}

/// The circles of a graph: sets of nodes that all reach each other.
fn circles<T: Clone + Ord>(edges: &BTreeSet<(T, T)>) -> Vec<BTreeSet<T>> {
    let nodes: BTreeSet<T> = edges.iter().flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    let mut after: BTreeMap<&T, Vec<&T>> = BTreeMap::new();
    for (from, to) in edges {
        after.entry(from).or_default().push(to);
    }
    let reached = |start: &T| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
        while let Some(node) = open.pop() {
            for &next in after.get(node).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        seen
    };
    let all: BTreeMap<T, BTreeSet<T>> = nodes.iter().map(|n| (n.clone(), reached(n))).collect();
    let mut found: Vec<BTreeSet<T>> = Vec::new();
    for node in nodes.iter().filter(|n| all[n].contains(n)) {
        if !found.iter().any(|circle| circle.contains(node)) {
            found.push(all[node].iter().filter(|n| all[n].contains(node)).cloned().collect());
        }
    }
    found
}

/// Whether a circle of files is a module and its own parts: without the module, nothing of it is left. The types are in `mod.rs`,
/// the work is in its children.
fn is_one_module(circle: &BTreeSet<Module>, edges: &BTreeSet<(Module, Module)>) -> bool {
    circle.iter().any(|head| {
        let rest = |m: &Module| m != head && circle.contains(m);
        circle.iter().all(|m| m.starts_with(head))
            && circles(&edges.iter().filter(|(a, b)| rest(a) && rest(b)).cloned().collect())
                .iter()
                .all(|inner| is_one_module(inner, edges))
    })
}

fn name(module: &Module) -> String {
    module.join("::")
}

/// What is wrong with the rooms of a crate: imports that do not go down, rooms without a level, circles.
fn faults(tree: &Crate) -> Vec<String> {
    let level = |room: &str| LEVELS.iter().position(|(_, rooms)| rooms.contains(&room));
    let (mut found, mut rooms) = (Vec::new(), BTreeSet::new());
    for ((from, to), line) in tree.imports() {
        if from[0] == to[0] {
            continue;
        }
        rooms.insert((from[0].clone(), to[0].clone()));
        let ends = format!("{} (line {line}) imports {}", name(&from), name(&to));
        match (level(&from[0]), level(&to[0])) {
            (Some(above), Some(below)) if above > below => {}
            (Some(_), Some(_)) => found.push(format!("{ends}, which is not on a lower level")),
            _ => found.push(format!("{ends}: a room has no level in tests/repository/floors.rs")),
        }
    }
    for circle in circles(&rooms) {
        let inside = |room: &String| circle.contains(room);
        let arrows = rooms.iter().filter(|(a, b)| inside(a) && inside(b));
        let arrows: Vec<String> = arrows.map(|(a, b)| format!("{a} -> {b}")).collect();
        found.push(format!("a circle of rooms: {}", arrows.join(", ")));
    }
    found
}

fn own() -> Crate {
    Crate::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

/// Rooms import downwards.
#[test]
fn rooms_import_downwards() {
    let faults = faults(&own());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Files import each other in a circle only as a module and its parts do.
#[test]
fn files_import_without_circles() {
    let edges: BTreeSet<(Module, Module)> = own().imports().into_keys().collect();
    let (inside, across): (Vec<_>, Vec<_>) =
        circles(&edges).into_iter().partition(|circle| is_one_module(circle, &edges));
    println!(
        "{} circles of files: {} of a module and its parts",
        inside.len() + across.len(),
        inside.len()
    );
    let describe = |circle: &BTreeSet<Module>| {
        let arrows = edges.iter().filter(|(a, b)| circle.contains(a) && circle.contains(b));
        let arrows: Vec<String> =
            arrows.map(|(a, b)| format!("{} -> {}", name(a), name(b))).collect();
        format!("a circle of {} files: {}", circle.len(), arrows.join(", "))
    };
    let left =
        |circle: &&BTreeSet<Module>| !circle.iter().any(|m| LEFT.contains(&name(m).as_str()));
    let across: Vec<String> = across.iter().filter(left).map(describe).collect();
    assert!(across.is_empty(), "{}", across.join("\n"));
}

/// The reader sees what it must: groups, `super`, inline modules, names passed on, paths in the code; not comments, texts and tests.
#[test]
fn planted_faults_are_found() {
    let lower = ("ops/mod.rs", "pub mod pool;\npub use pool::pool;");
    let tell =
        |sources: &[(&str, &str)]| faults(&Crate::new([&[lower], sources].concat())).join("\n");
    assert_eq!(
        tell(&[("ops/pool.rs", ""), ("models/mod.rs", "use crate::ops::{pool, pool::*};")]),
        ""
    );

    for upward in [
        "use crate::models::weights;",
        "use crate::{Error, models::{self as m, weights}};",
        "use super::super::models;",
        "fn f() { crate::models::load(); }",
        "mod inner { use super::super::super::models; }",
    ] {
        let found = tell(&[("ops/pool.rs", upward), ("models/mod.rs", "")]);
        assert!(
            found.contains("ops::pool (line 1) imports models, which is not"),
            "{upward}: {found}"
        );
    }
    for silent in [
        "// use crate::models;\n/* use crate::models; */",
        "const A: &str = \"use crate::models;\"; const B: &str = r#\"crate::models::x\"#;",
        "#[cfg(test)]\nmod tests { use crate::models; }",
        "fn f<'a>(x: &'a str) { let c = '\"'; } // crate::models::x \"",
    ] {
        assert_eq!(tell(&[("ops/pool.rs", silent), ("models/mod.rs", "")]), "", "{silent}");
    }
    // Rooms of one level, and a circle over three.
    let found = tell(&[("data/mod.rs", "use crate::store::Store;"), ("store/mod.rs", "")]);
    assert!(
        found.contains("data (line 1) imports store, which is not on a lower level"),
        "{found}"
    );
    let found = tell(&[
        ("sweep/mod.rs", "use crate::ablation;"),
        ("ablation/mod.rs", "use crate::report::write;"),
        ("report/mod.rs", "\nuse crate::sweep::grid;"),
    ]);
    assert!(found.contains("sweep (line 1) imports ablation"), "{found}");
    assert!(
        found.contains("a circle of rooms: ablation -> report, report -> sweep, sweep -> ablation"),
        "{found}"
    );
    let found = tell(&[("ops/pool.rs", ""), ("new/mod.rs", "use crate::ops::pool;")]);
    assert!(found.contains("new (line 1) imports ops::pool: a room has no level"), "{found}");
}

/// Circles of files: those of a module and its parts are told from others.
#[test]
fn planted_circles_of_files_are_found() {
    let kinds = |sources: &[(&str, &str)]| {
        let edges: BTreeSet<_> =
            Crate::new(sources.iter().copied()).imports().into_keys().collect();
        circles(&edges).iter().map(|circle| is_one_module(circle, &edges)).collect::<Vec<_>>()
    };
    let parent = ("ops/mod.rs", "mod a; mod b; pub struct T; pub use a::A; fn f() { a::run(); }");
    assert_eq!(
        kinds(&[parent, ("ops/a.rs", "use super::T;"), ("ops/b.rs", "use super::A;")]),
        [true]
    );
    assert_eq!(
        kinds(&[parent, ("ops/a.rs", "use super::b::B;"), ("ops/b.rs", "use super::A;")]),
        [false]
    );
    assert_eq!(
        kinds(&[parent, ("ops/a.rs", "use super::b::B;"), ("ops/b.rs", "")]),
        [] as [bool; 0]
    );
}
