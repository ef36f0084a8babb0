//! Models by their names on the Hugging Face hub: `org/repo`, or `org/repo@revision` with a branch, a tag or a commit.
//!
//! They are kept in the cache that the hub's other clients use, in its layout (`blobs/`, `refs/`, `snapshots/`, `.no_exist/`),
//! so that what one of them fetched the others have. The cache comes first: what is there as a whole is used without a single
//! request, whatever the branch has become meanwhile; of the rest, what is missing is fetched. Only files that are read are.
//!
//! | variable | meaning, as in `huggingface_hub` |
//! |---|---|
//! | `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME` | the cache; by default `~/.cache/huggingface/hub` |
//! | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` | 1: no request is made |
//! | `HF_ENDPOINT` | address of the hub, for mirrors |
//! | `HF_TOKEN`, `HF_TOKEN_PATH` | a token, or the file that holds one; by default `token` in `HF_HOME` |
//! | `HF_HUB_DISABLE_IMPLICIT_TOKEN` | 1: the token is not sent |
//!
//! Why not the crate `hf-hub`: its version 0.5 does not verify what it downloaded, knows neither `HF_HUB_OFFLINE` nor
//! `HF_HUB_CACHE`, and does not say what a refusal means; 1.0 brings an asynchronous runtime and a second HTTP client. What is
//! needed of the hub is three requests, on the client that judges are asked with.

mod cache;
mod client;
mod download;
mod environment;
mod headers;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use self::cache::{Lacking, Repo};
use self::client::{Client, Failure, Info};
use self::environment::Environment;
pub use self::headers::{Headers, headers};
use super::weights::{INDEX, Index, SINGLE};
use super::{adapter, families, files};
use crate::progress::Progress;
use crate::{Error, Result};

/// What a name is to stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A LLaVA, or an adapter of one.
    Model,
    /// A sentence-transformers model.
    Encoder,
}

/// How much of a repository is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Settings alone, `config.json` first: whether the model is one that can be run is known before its weights come.
    Settings,
    /// Everything that is read.
    All,
}

/// A repository of models and a revision of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    repo: String,
    revision: String,
}

impl Name {
    /// The name in a text, if it is one: `org/repo` or `org/repo@revision`. An encoder's may lack the organisation: it is then
    /// `sentence-transformers`, as it is there.
    pub fn parse(text: &str, kind: Kind) -> Option<Self> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let repo = match (repo.split_once('/'), kind) {
            (Some((org, name)), _) if is_word(org) && is_word(name) => repo.to_owned(),
            (None, Kind::Encoder) if is_word(repo) => format!("sentence-transformers/{repo}"),
            _ => return None,
        };
        let known = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        let inside = revision.split('/').all(|part| !matches!(part, "" | "." | ".."));
        (inside && revision.chars().all(known))
            .then(|| Self { repo, revision: revision.to_owned() })
    }

    /// `org/repo`.
    pub fn repo(&self) -> &str {
        &self.repo
    }
}

/// Whether the hub takes a text as the name of an organisation or a repository.
fn is_word(text: &str) -> bool {
    let ends = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=96).contains(&text.len())
        && text.chars().all(|c| ends(c) || c == '-' || c == '.')
        && text.starts_with(ends)
        && text.ends_with(ends)
        && !text.contains("--")
        && !text.contains("..")
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            "main" => f.write_str(&self.repo),
            revision => write!(f, "{}@{revision}", self.repo),
        }
    }
}

/// Where a folder of the cache comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// `org/repo`.
    pub repo: String,
    /// The commit, 40 hexadecimal digits.
    pub commit: String,
}

impl Origin {
    /// The origin of a snapshot's folder, in any cache; none for other folders.
    pub fn of(folder: &Path) -> Option<Self> {
        let mut parts = folder.iter().rev().map(|part| part.to_str());
        let commit = parts.next()??;
        if parts.next()?? != "snapshots" || !is_commit(commit) {
            return None;
        }
        let (org, name) = parts.next()??.strip_prefix("models--")?.split_once("--")?;
        Some(Self { repo: format!("{org}/{name}"), commit: commit.to_owned() })
    }

    /// As [`Origin::of`], of the folders that [`fetch`] finds under [`Origin`]'s own text.
    pub fn in_cache(folder: &Path) -> Option<Self> {
        folder.starts_with(Environment::read().cache).then(|| Self::of(folder))?
    }

    /// The repository's name without its organisation.
    pub fn name(&self) -> &str {
        self.repo.split_once('/').map_or(&self.repo, |(_, name)| name)
    }
}

impl fmt::Display for Origin {
    /// A [`Name`] that means this commit for ever.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repo, self.commit)
    }
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// The folder of a name in the cache, if what is read of it is there. Never makes a request.
pub fn cached(name: &Name, kind: Kind) -> Option<PathBuf> {
    let repo = Repo::new(&Environment::read().cache, &name.repo);
    let commit = repo.commit(&name.revision)?;
    repo.lacking(&commit, kind).required.is_empty().then(|| repo.snapshot(&commit))
}

/// What a person can do where a name is neither cached nor to be fetched: the folder looked in, and the command.
pub fn advice(name: &Name) -> String {
    let cache = Environment::read().cache;
    let revision = match name.revision.as_str() {
        "main" => String::new(),
        revision => format!(" --revision {revision}"),
    };
    format!(
        "looked in {}; where there is a network, `hf download {}{revision}` fills that folder (HF_HOME moves it)",
        Repo::new(&cache, &name.repo).folder().display(),
        name.repo,
    )
}

/// The folder of a name, fetched as far as it is not in the cache.
///
/// # Errors
/// [`Error::Unsupported`] where its `config.json` names a model that is not supported; nothing else has been fetched then.
/// [`Error::Invalid`] naming the repository: it does not exist or is not to be read with this token, lacks the revision, has no
/// safetensors, is not cached and the hub must not be asked, or a file came with another checksum than the hub's (it is
/// deleted). [`Error::Io`] where the hub cannot be reached or the cache cannot be written; what has come so far is kept, and
/// the next call goes on from there. [`Error::Interrupted`].
pub fn fetch(name: &Name, kind: Kind, depth: Depth, progress: &dyn Progress) -> Result<PathBuf> {
    let environment = Environment::read();
    let repo = Repo::new(&environment.cache, &name.repo);
    let known = repo.commit(&name.revision);
    if let (Depth::Settings, Some(commit)) = (depth, &known) {
        // The first files that are fetched: with them, the others were, or will be.
        let snapshot = repo.snapshot(commit);
        let begun = ["config.json", "modules.json", adapter::CONFIG];
        if begun.iter().any(|file| snapshot.join(file).is_file()) {
            check_family(kind, &snapshot)?;
            return Ok(snapshot);
        }
    }
    let lacking = known.as_deref().map(|commit| repo.lacking(commit, kind));
    let usable = match (&known, &lacking) {
        (Some(commit), Some(lacking)) if lacking.required.is_empty() => {
            if lacking.unsure.is_empty() {
                return Ok(repo.snapshot(commit));
            }
            Some((repo.snapshot(commit), &lacking.unsure))
        }
        _ => None,
    };
    let as_it_is = |(folder, unsure): (PathBuf, &Vec<String>)| {
        progress.warn(&format!(
            "{name}: used as it is in the cache; the hub was not asked whether it also has {}",
            unsure.join(", ")
        ));
        Ok(folder)
    };
    if environment.offline {
        return match usable {
            Some(usable) => as_it_is(usable),
            None => Err(not_cached(name, lacking)),
        };
    }
    let client = Client::new(&environment, name, progress);
    // A branch that is cached in part is completed at its commit.
    let info = client.info(known.as_deref().unwrap_or(&name.revision));
    match (info, usable) {
        (Ok(info), _) => complete(&client, &repo, kind, depth, &info),
        (Err(Failure::Refused(Error::Interrupted)), _) => Err(Error::Interrupted),
        (Err(_), Some(usable)) => as_it_is(usable),
        (Err(Failure::Unreachable(error)), None) => Err(unreachable(error, name)),
        (Err(Failure::Refused(error)), None) => Err(error),
    }
}

/// Fetches what a snapshot does not have of what is read.
fn complete(
    client: &Client,
    repo: &Repo,
    kind: Kind,
    depth: Depth,
    info: &Info,
) -> Result<PathBuf> {
    let mut settings = settings(&info.files, kind);
    settings.sort_by_key(|file| *file != "config.json");
    let weights = weights(&info.files, &settings);
    check(client.name, kind, &info.files, &weights)?;
    repo.note_commit(&client.name.revision, &info.commit)?;
    client.progress.begin(&format!("fetching {}", client.name), None);
    let get = |file: &str| download::file(client, repo, &info.commit, file);
    for file in settings {
        get(file)?;
        if file == "config.json" {
            // Told before gigabytes are fetched, not after.
            check_family(kind, &repo.snapshot(&info.commit))?;
        }
    }
    let weights = if depth == Depth::All { weights } else { Vec::new() };
    for file in weights {
        get(file)?;
        if let Some(folder) = file.strip_suffix(INDEX) {
            let index = Index::read(&repo.snapshot(&info.commit).join(file))?;
            index.shards.iter().try_for_each(|shard| get(&format!("{folder}{shard}")))?;
        }
    }
    for file in repo.lacking(&info.commit, kind).unsure {
        if !info.files.contains(&file) {
            repo.note_absent(&info.commit, &file)?;
        }
    }
    Ok(repo.snapshot(&info.commit))
}

/// Refuses a model of a family that is not supported. What else may be wrong with its settings is told by loading it.
fn check_family(kind: Kind, snapshot: &Path) -> Result<()> {
    if kind == Kind::Encoder || !snapshot.join("config.json").is_file() {
        return Ok(());
    }
    match families::check(snapshot) {
        Err(error @ Error::Unsupported { .. }) => Err(error),
        _ => Ok(()),
    }
}

/// The files of a repository that hold settings; of an adapter's, its own alone.
fn settings(all: &[String], kind: Kind) -> Vec<&str> {
    let names = all.iter().map(String::as_str);
    let pieces = !all.iter().any(|file| file == "tokenizer.json");
    let read = |file: &&str| files::is_settings(file) || pieces && files::PIECES.contains(file);
    match kind == Kind::Model && all.iter().any(|file| file == adapter::CONFIG) {
        true => vec![adapter::CONFIG],
        false => names.filter(read).collect(),
    }
}

/// Its weight files: of every folder the single file, or else the index; of an adapter's, the adapter and what was trained whole
/// beside it.
fn weights<'a>(all: &'a [String], settings: &[&str]) -> Vec<&'a str> {
    let of = |wanted: &str| all.iter().map(String::as_str).find(|file| *file == wanted);
    if settings == [adapter::CONFIG] {
        return [adapter::TENSORS, adapter::WHOLE].into_iter().filter_map(of).collect();
    }
    let mut folders: Vec<&str> = all
        .iter()
        .filter_map(|file| file.rsplit_once('/').map(|(folder, _)| folder))
        .filter(|folder| files::is_module(folder) && !folder.contains('/'))
        .collect();
    folders.sort_unstable();
    folders.dedup();
    let prefixes = std::iter::once(String::new()).chain(folders.iter().map(|f| format!("{f}/")));
    prefixes
        .filter_map(|prefix| {
            of(&format!("{prefix}{SINGLE}")).or_else(|| of(&format!("{prefix}{INDEX}")))
        })
        .collect()
}

/// Refuses a repository that cannot be what its name stands for, before anything of it is fetched.
fn check(name: &Name, kind: Kind, all: &[String], weights: &[&str]) -> Result<()> {
    const OTHERS: [&str; 9] =
        ["bin", "pt", "pth", "ckpt", "gguf", "onnx", "h5", "msgpack", "safetensors"];
    let has = |wanted: &str| all.iter().any(|file| file == wanted);
    let invalid = |message: String| Err(Error::invalid(name.to_string(), "", message));
    match kind {
        Kind::Encoder if !has("modules.json") => {
            return invalid(
                "has no modules.json, expected a sentence-transformers model".to_owned(),
            );
        }
        Kind::Model if !has("config.json") && !has(adapter::CONFIG) => {
            let message = format!(
                "has no config.json, expected a LLaVA, or an adapter's {}",
                adapter::CONFIG
            );
            return invalid(message);
        }
        _ => {}
    }
    // Without it the adapter would be another one.
    let pickle = Path::new(adapter::WHOLE).with_extension("bin").display().to_string();
    if weights.contains(&adapter::TENSORS) && has(&pickle) && !has(adapter::WHOLE) {
        return invalid(format!(
            "has {pickle}, expected {}; nothing was downloaded. Look for a revision or a copy of it in safetensors, or convert \
             a folder of it (scripts/pickle_to_safetensors.py)",
            adapter::WHOLE
        ));
    }
    // Those of the network itself: later modules are small, and may be all that is in safetensors.
    if weights.iter().any(|file| !file.contains('/') || file.starts_with("0_")) {
        return Ok(());
    }
    let other = |file: &&str| {
        let extension = Path::new(file).extension().and_then(|e| e.to_str()).unwrap_or_default();
        OTHERS.contains(&extension)
    };
    let others: Vec<&str> = all.iter().map(String::as_str).filter(other).take(5).collect();
    let others = if others.is_empty() { "no weights at all".to_owned() } else { others.join(", ") };
    invalid(format!(
        "has {others}, expected {SINGLE} or {INDEX}; nothing was downloaded. Look for a revision or a copy of it in safetensors"
    ))
}

/// Nothing to use in the cache, and no hub to ask.
fn not_cached(name: &Name, lacking: Option<Lacking>) -> Error {
    let lacks = lacking.map(|lacking| format!(" ({} missing)", lacking.required.join(", ")));
    let message = format!(
        "no folder here, and not in the cache{}, while HF_HUB_OFFLINE forbids requests; {}",
        lacks.unwrap_or_default(),
        advice(name)
    );
    Error::invalid(name.to_string(), "", message)
}

/// A failed first request, with what a person can do.
fn unreachable(error: Error, name: &Name) -> Error {
    match error {
        Error::Io { path, source } => {
            let message = format!(
                "{source}; {name} is no folder here and not in the cache: {}",
                advice(name)
            );
            Error::Io { path, source: std::io::Error::new(source.kind(), message) }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        let repo = |text: &str, kind| Name::parse(text, kind).map(|name| name.to_string());
        for (text, model, encoder) in [
            ("llava-hf/llava-1.5-7b-hf", Some("llava-hf/llava-1.5-7b-hf"), None),
            ("a/b@refs/pr/1", Some("a/b@refs/pr/1"), None),
            ("a/b@v1.0", Some("a/b@v1.0"), None),
            ("a/b@main", Some("a/b"), None),
            ("all-mpnet-base-v2", None, Some("sentence-transformers/all-mpnet-base-v2")),
        ] {
            assert_eq!(repo(text, Kind::Model).as_deref(), model, "{text}");
            assert_eq!(repo(text, Kind::Encoder).as_deref(), encoder.or(model), "{text}");
        }
        for text in [
            "/a/b", "./a/b", "../b", "a/b/c", "a/", "/a", "", "~/a", "a//b", "a/b@", "a/b@../c",
            "a/b@/c", "a b/c", "a--b/c", "a/b.", "a/-b", "a/b@x y", ".", "..",
        ] {
            assert_eq!(repo(text, Kind::Model), None, "{text}");
            assert_eq!(repo(text, Kind::Encoder), None, "{text}");
        }
    }

    #[test]
    fn a_snapshot_tells_its_origin() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let folder = format!("/x/hub/models--llava-hf--llava-1.5-7b-hf/snapshots/{commit}");
        let origin = Origin::of(Path::new(&folder)).unwrap();
        assert_eq!(origin.to_string(), format!("llava-hf/llava-1.5-7b-hf@{commit}"));
        assert_eq!(origin.name(), "llava-1.5-7b-hf");
        for other in ["/x/llava", "/x/models--a--b/snapshots/main", "/x/datasets--a--b/snapshots"] {
            assert_eq!(Origin::of(Path::new(other)), None);
        }
    }

    #[test]
    fn only_what_is_read_is_fetched() {
        let files =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let all = files(&[
            ".gitattributes",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "2_Dense/pytorch_model.bin",
            "README.md",
            "config.json",
            "data_config.json",
            "model.safetensors",
            "modules.json",
            "onnx/model.onnx",
            "openvino/config.json",
            "pytorch_model.bin",
            "sentence_bert_config.json",
            "special_tokens_map.json",
            "tokenizer.json",
            "train_script.py",
            "vocab.txt",
        ]);
        let chosen = settings(&all, Kind::Encoder);
        assert_eq!(
            chosen,
            [
                "1_Pooling/config.json",
                "2_Dense/config.json",
                "config.json",
                "modules.json",
                "sentence_bert_config.json",
                "tokenizer.json"
            ]
        );
        assert_eq!(weights(&all, &chosen), ["model.safetensors", "2_Dense/model.safetensors"]);
        let all =
            files(&["config.json", "mm_projector.bin", "tokenizer.model", "added_tokens.json"]);
        assert_eq!(
            settings(&all, Kind::Model),
            ["config.json", "tokenizer.model", "added_tokens.json"]
        );
        let all = files(&[
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "tokenizer.json",
        ]);
        let chosen = settings(&all, Kind::Model);
        assert_eq!(chosen, ["adapter_config.json"]);
        assert_eq!(weights(&all, &chosen), ["adapter_model.safetensors"]);
    }
}
