//! The names of all tests, read from the sources: what `cargo test -- --list` would print, without building it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use super::root;

/// Names of tests by binary; those of the library under "".
pub static TESTS: LazyLock<BTreeMap<String, Vec<String>>> = LazyLock::new(|| {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(root().join("tests")).unwrap() {
        let folder = entry.unwrap().path();
        if folder.join("main.rs").exists() {
            let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
            all.insert(name, below(&folder, ""));
        }
    }
    all.insert(String::new(), below(&root().join("src"), "::tests"));
    all
});

fn below(folder: &Path, inner: &str) -> Vec<String> {
    let mut names = Vec::new();
    collect(folder, "", inner, &mut names);
    names
}

fn collect(folder: &Path, module: &str, inner: &str, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let child = if module.is_empty() { stem.to_owned() } else { format!("{module}::{stem}") };
        if path.is_dir() {
            collect(&path, &child, inner, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let module = if ["main", "mod", "lib"].contains(&stem) { module } else { &child };
            let text = fs::read_to_string(&path).unwrap();
            let prefix =
                if module.is_empty() { String::new() } else { format!("{module}{inner}::") };
            names.extend(functions(&text).map(|name| format!("{prefix}{name}")));
        }
    }
}

/// The functions under `#[test]`.
fn functions(text: &str) -> impl Iterator<Item = &str> {
    text.split("#[test]\n").skip(1).filter_map(|after| {
        let (_, name) = after.split_once("fn ")?;
        name.split('(').next()
    })
}
