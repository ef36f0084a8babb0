//! Models by their names on a hub: what is fetched, what is not, and what is said. The hub is one of the test's own.

mod costs;
mod refusals;
mod server;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{bdhs, dataset, exports, golden, json, succeed};
use candle_core::Device;
use serde_json::{Value, json};
use server::{COMMIT, Faults, Hub, files};
use tempfile::TempDir;

/// A copy of a golden checkpoint with the files that repositories also have.
fn checkpoint(dir: &Path, name: &str) -> PathBuf {
    let target = dir.join(name.rsplit('/').next().unwrap());
    for file in files(&golden(name), "") {
        if !file.starts_with("expected/") {
            fs::create_dir_all(target.join(&file).parent().unwrap()).unwrap();
            fs::copy(golden(name).join(&file), target.join(&file)).unwrap();
        }
    }
    for file in
        ["README.md", ".gitattributes", "pytorch_model.bin", "onnx/model.onnx", "data_config.json"]
    {
        fs::create_dir_all(target.join(file).parent().unwrap()).unwrap();
        fs::write(target.join(file), "nobody reads this").unwrap();
    }
    target
}

/// A hub with a LLaVA and two encoders, and an empty cache.
struct World {
    dir: TempDir,
    hub: Hub,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("hub");
        let llava = checkpoint(&source, "llava/next_vicuna");
        let [bert, mpnet] =
            ["encoders/bert", "encoders/mpnet"].map(|name| checkpoint(&source, name));
        let hub = Hub::new(&[
            ("tiny/llava", &llava),
            ("tiny/bert", &bert),
            ("sentence-transformers/mpnet", &mpnet),
        ]);
        Self { dir, hub }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// The folder of a repository in the cache.
    fn repo(&self, name: &str) -> PathBuf {
        self.home().join("hub").join(format!("models--{}", name.replace('/', "--")))
    }

    fn snapshot(&self, name: &str) -> PathBuf {
        self.repo(name).join("snapshots").join(COMMIT)
    }

    /// The command, with this hub and this cache alone.
    fn bdhs(&self) -> Command {
        let mut command = bdhs();
        for name in [
            "HF_TOKEN",
            "HF_TOKEN_PATH",
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "TRANSFORMERS_OFFLINE",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN",
            "http_proxy",
            "HTTP_PROXY",
            "all_proxy",
            "ALL_PROXY",
        ] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.home()).env("HF_ENDPOINT", self.hub.url());
        command
    }

    /// A run of one sample, for which everything of a model is fetched.
    fn fetch(&self, name: &str) -> Command {
        let data = dataset(&self.dir.path().join("one"), 1);
        let out = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        let mut command = self.bdhs();
        command.args(["--json", "sweep", "--model", name, "--data"]).arg(data);
        command.arg("--encoder").arg(golden("encoders/bert")).args(["--threshold", "0.9"]);
        command.args(["--rho", "1", "--attempts", "1", "--max-response-tokens", "2", "--out"]);
        command.arg(out);
        command
    }

    /// A check of a model, for which its weights are not fetched.
    fn doctor(&self, name: &str) -> Command {
        let mut command = self.bdhs();
        command.args(["--json", "doctor", "--model", name]);
        command
    }

    fn embed(&self, encoder: &str) -> Command {
        let input = self.dir.path().join("texts.jsonl");
        fs::write(&input, "{\"id\": \"a\", \"text\": \"A red bus.\"}\n").unwrap();
        let mut command = self.bdhs();
        command.args(["--json", "embed", "--encoder", encoder, "--input"]).arg(input);
        command.arg("--output").arg(self.dir.path().join("vectors.npy"));
        command
    }

    /// A sweep of four samples.
    fn sweep(&self, model: &str, encoders: [&str; 2], out: &str) -> Command {
        let data = dataset(&self.dir.path().join("data"), 4);
        let mut command = self.bdhs();
        command.args(["--json", "sweep", "--model", model, "--data"]).arg(data);
        for encoder in encoders {
            command.args(["--encoder", encoder]);
        }
        command.args(["--rho", "0.5", "--attempts", "2", "--max-sentence-tokens", "8"]);
        command.args(["--max-response-tokens", "16", "--out"]).arg(self.dir.path().join(out));
        command
    }

    /// Runs a command that must fail; its exit code and what it says.
    fn refused(&self, command: &mut Command) -> (i32, String) {
        let output = command.output().unwrap();
        assert!(!output.status.success(), "{command:?} succeeded");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }
}

fn requests(hub: &Hub) -> Vec<String> {
    hub.seen().into_iter().map(|seen| seen.what).collect()
}

/// A sweep by names gives the bytes of one by folders; only what is read was fetched; another run asks nothing.
#[test]
fn names_do_what_folders_do_and_are_fetched_once() {
    let world = World::new();
    let folder = |name: &str| golden(name).to_str().unwrap().to_owned();
    let by_folder = succeed(&mut world.sweep(
        &folder("llava/next_vicuna"),
        [&folder("encoders/bert"), &folder("encoders/mpnet")],
        "folders",
    ));
    assert!(world.hub.seen().is_empty(), "folders need no hub");
    let names = ["tiny/bert", "mpnet"];
    let by_name = succeed(&mut world.sweep("tiny/llava", names, "names"));
    assert_eq!(json(&by_folder)["cells"], json(&by_name)["cells"]);
    // The data cards name the model as it was named.
    let [folders, names_out] = ["folders", "names"].map(|out| {
        let mut files = exports(&world.dir.path().join(out));
        files.retain(|(path, _)| !path.ends_with("README.md"));
        files
    });
    assert!(folders.len() >= 10 && folders == names_out);
    assert!(!requests(&world.hub).is_empty());

    let fetched = |name: &str| files(&world.snapshot(name), "");
    let weights = "model.safetensors";
    for (name, from) in [("tiny/bert", "encoders/bert"), ("tiny/llava", "llava/next_vicuna")] {
        let mut expected = files(&golden(from), "");
        expected.retain(|file| !file.starts_with("expected/"));
        assert_eq!(fetched(name), expected);
        assert!(fs::symlink_metadata(world.snapshot(name).join(weights)).unwrap().is_symlink());
    }
    assert_eq!(fs::read_to_string(world.repo("tiny/llava").join("refs/main")).unwrap(), COMMIT);
    let run: Value =
        serde_json::from_slice(&fs::read(world.dir.path().join("names/run.json")).unwrap())
            .unwrap();
    assert_eq!(run["config"]["model"]["path"], format!("tiny/llava@{COMMIT}"));
    let pinned = format!("sentence-transformers/mpnet@{COMMIT}");
    assert_eq!(run["config"]["grid"]["encoders"][1], pinned);

    // Again: in a new folder, and as the run that it was.
    succeed(&mut world.sweep("tiny/llava", names, "again"));
    let mut command = world.bdhs();
    command.args(["--json", "sweep", "--from-run"]).arg(world.dir.path().join("names"));
    assert_eq!(json(&succeed(&mut command))["cells"], json(&by_name)["cells"]);
    assert_eq!(requests(&world.hub), [""; 0], "all is in the cache");
    succeed(world.sweep("tiny/llava", names, "offline").env("HF_HUB_OFFLINE", "1"));
    let report = json(&succeed(world.doctor("tiny/llava@main").env("HF_HUB_OFFLINE", "1")));
    assert_eq!(report["origin"], json!({"repo": "tiny/llava", "commit": COMMIT}));
    assert_eq!(requests(&world.hub), [""; 0]);
}

/// The store of a run knows a model by what its files hold, wherever they lie and whatever lies beside them.
#[test]
fn a_run_goes_on_by_another_name_of_the_same_model() {
    let world = World::new();
    succeed(&mut world.sweep("tiny/llava", ["tiny/bert", "mpnet"], "run"));
    // Another client fetches more of the repository.
    fs::write(world.snapshot("tiny/llava").join("data_config.json"), "{}").unwrap();
    let [llava, bert, mpnet] = ["llava/next_vicuna", "encoders/bert", "encoders/mpnet"]
        .map(|name| golden(name).to_str().unwrap().to_owned());
    let again = succeed(&mut world.sweep(&llava, [&bert, &mpnet], "run"));
    assert_eq!(json(&again)["samples"], 4);
}

#[test]
fn revisions_and_paths_in_a_configuration() {
    let world = World::new();
    for revision in ["v1", "refs/pr/1", COMMIT] {
        let report = json(&succeed(&mut world.doctor(&format!("tiny/llava@{revision}"))));
        assert_eq!(report["origin"]["commit"], COMMIT);
        let refs = world.repo("tiny/llava").join("refs").join(revision);
        assert_eq!(refs.is_file(), revision != COMMIT);
    }
    // A folder beside the file comes before a name, a name before nothing.
    let dir = world.dir.path().join("configured");
    fs::create_dir_all(dir.join("tiny")).unwrap();
    std::os::unix::fs::symlink(golden("encoders/bert"), dir.join("tiny/bert")).unwrap();
    let file = dir.join("sweep.toml");
    let text = format!(
        "model.path = \"tiny/llava@v1\"\ndata.file = {:?}\ngrid.encoders = [\"tiny/bert\", \"mpnet,dim=8\"]\n\
         [sampling]\nrho = 1.0\nattempts = 1\nmax_sentence_tokens = 4\n",
        dataset(&dir, 2),
    );
    fs::write(&file, text).unwrap();
    world.hub.seen();
    let mut command = world.bdhs();
    command.args(["--json", "sweep"]).arg(&file).arg("--out").arg(dir.join("out"));
    let summary = json(&succeed(&mut command));
    let mut names: Vec<&str> = summary["cells"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cell| cell["encoder"].as_str().unwrap())
        .collect();
    names.dedup();
    assert_eq!(names, ["bert", "mpnet,dim=8"]);
    assert!(requests(&world.hub).iter().all(|what| what.contains("sentence-transformers/mpnet")));
}

#[test]
fn an_adapter_of_the_hub_brings_its_base() {
    let world = World::new();
    let source = world.dir.path().join("adapters");
    let adapter = checkpoint(&source, "llava/adapter_next_vicuna");
    let path = adapter.join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["base_model_name_or_path"] = json!("tiny/llava");
    config["revision"] = json!("v1");
    fs::write(&path, config.to_string()).unwrap();
    let hub =
        Hub::new(&[("tiny/lora", &adapter), ("tiny/llava", &source.join("../hub/next_vicuna"))]);
    let world = World { hub, ..world };
    let report = json(&succeed(&mut world.doctor("tiny/lora")));
    assert_eq!(report["origin"]["repo"], "tiny/lora");
    assert_eq!(report["model"]["family"], "LLaVA-1.6");
    assert_eq!(
        files(&world.snapshot("tiny/lora"), ""),
        ["adapter_config.json", "adapter_model.safetensors"]
    );
    assert!(world.repo("tiny/llava").join("refs/v1").is_file());
    world.hub.seen();
    succeed(&mut world.fetch("tiny/lora"));
    assert_eq!(requests(&world.hub), [""; 0]);
    // A folder's adapter as well.
    succeed(world.fetch(adapter.to_str().unwrap()).env("HF_HUB_OFFLINE", "1"));
}

/// What was trained whole beside an adapter is a part of it, and not to be left out where it cannot be read.
#[test]
fn an_adapter_comes_with_what_was_trained_whole() {
    let world = World::new();
    let adapter = checkpoint(&world.dir.path().join("adapters"), "llava/adapter_next_vicuna");
    let config = adapter.join("adapter_config.json");
    let mut named: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    named["base_model_name_or_path"] = json!(golden("llava/next_vicuna"));
    fs::write(&config, named.to_string()).unwrap();
    let [all, whole, pickle] =
        ["adapter_model.safetensors", "non_lora_trainables.safetensors", "non_lora_trainables.bin"];
    let tensors = candle_core::safetensors::load(adapter.join(all), &Device::Cpu).unwrap();
    let (lora, beside): (HashMap<_, _>, HashMap<_, _>) =
        tensors.into_iter().partition(|(name, _)| name.contains(".lora_"));
    assert!(!beside.is_empty());
    for (tensors, file) in [(lora, all), (beside, whole)] {
        candle_core::safetensors::save(&tensors, adapter.join(file)).unwrap();
    }
    let world = World { hub: Hub::new(&[("tiny/lora", &adapter)]), ..world };
    fs::rename(adapter.join(whole), adapter.join(pickle)).unwrap();
    let (code, message) = world.refused(&mut world.fetch("tiny/lora"));
    assert_eq!(code, 3, "{message}");
    assert!(message.contains(&format!("has {pickle}, expected {whole}")), "{message}");
    assert!(!world.home().join("hub").exists());

    fs::rename(adapter.join(pickle), adapter.join(whole)).unwrap();
    succeed(&mut world.fetch("tiny/lora"));
    let fetched = || files(&world.snapshot("tiny/lora"), "");
    assert_eq!(fetched(), ["adapter_config.json", all, whole]);
    // A cache that another client has filled without it is completed.
    fs::remove_file(world.snapshot("tiny/lora").join(whole)).unwrap();
    succeed(&mut world.fetch("tiny/lora"));
    assert_eq!(fetched(), ["adapter_config.json", all, whole]);
    world.hub.seen();
    succeed(&mut world.fetch("tiny/lora"));
    assert_eq!(requests(&world.hub), [""; 0]);
}

/// What is trained on a model of the hub names it as PEFT does, and finds it again.
#[test]
fn an_adapter_names_its_base_on_the_hub() {
    let world = World::new();
    let out = world.dir.path().join("trained");
    let mut command = world.bdhs();
    command.args([
        "--json",
        "train",
        "--model",
        "tiny/llava",
        "--rank",
        "2",
        "--batch",
        "4",
        "--epochs",
        "1",
        "--pairs",
    ]);
    command.arg(golden("dpo/pairs.jsonl")).arg("--out").arg(&out);
    succeed(&mut command);
    let config: Value =
        serde_json::from_slice(&fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["base_model_name_or_path"], "tiny/llava");
    assert_eq!(config["revision"], COMMIT);
    succeed(world.fetch(out.to_str().unwrap()).env("HF_HUB_OFFLINE", "1"));
    // Without the cache, it says where it looked.
    fs::remove_dir_all(world.home()).unwrap();
    let (code, message) =
        world.refused(world.fetch(out.to_str().unwrap()).env("HF_HUB_OFFLINE", "1"));
    assert_eq!(code, 3, "{message}");
    assert!(message.contains(&format!("tiny/llava@{COMMIT}")), "{message}");
}

#[test]
fn shards_are_those_that_the_index_names() {
    let world = World::new();
    let dir = world.dir.path().join("hub/next_vicuna");
    let shard = "model-00001-of-00001.safetensors";
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let map: serde_json::Map<String, Value> =
        tensors.names().iter().map(|name| ((*name).to_owned(), json!(shard))).collect();
    fs::write(dir.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string())
        .unwrap();
    fs::rename(dir.join("model.safetensors"), dir.join(shard)).unwrap();
    fs::write(dir.join("consolidated.safetensors"), "nobody reads this").unwrap();
    succeed(&mut world.fetch("tiny/llava"));
    let fetched = files(&world.snapshot("tiny/llava"), "");
    assert!(fetched.iter().any(|file| file == shard));
    assert!(!fetched.iter().any(|file| file == "consolidated.safetensors"));
    fs::remove_file(world.snapshot("tiny/llava").join(shard)).unwrap();
    world.hub.seen();
    succeed(&mut world.fetch("tiny/llava"));
    let seen = requests(&world.hub);
    // The blob is still there: its name is asked for, its bytes are not.
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen[1].starts_with("HEAD") && seen[1].ends_with(shard));
}

/// A connection that ends is taken up where it ended, within a command and by the next one; until all is there, nothing is.
#[test]
fn a_cut_download_goes_on() {
    let world = World::new();
    let path = world.snapshot("tiny/llava").join("model.safetensors");
    let size = fs::metadata(golden("llava/next_vicuna").join("model.safetensors")).unwrap().len();
    world.hub.set(Faults { cut: Some(100_000), ..Faults::default() });
    succeed(&mut world.fetch("tiny/llava"));
    let ranges: Vec<_> = world.hub.seen().into_iter().filter_map(|seen| seen.range).collect();
    // One for the address that redirects and one for where it leads.
    assert_eq!(ranges, ["bytes=100000-"; 2]);
    assert_eq!(fs::metadata(&path).unwrap().len(), size);

    fs::remove_dir_all(world.home()).unwrap();
    let blobs = world.repo("tiny/llava").join("blobs");
    let part = || files(&blobs, "").into_iter().find(|name| name.ends_with(".incomplete"));
    world.hub.set(Faults { down: true, ..Faults::default() });
    let (code, message) = world.refused(&mut world.fetch("tiny/llava"));
    assert_eq!(code, 4, "{message}");
    assert!(message.contains("model.safetensors"), "{message}");
    assert!(!path.exists(), "a part looks whole");
    // As a killed process leaves it.
    let part = blobs.join(part().unwrap());
    let bytes = fs::read(golden("llava/next_vicuna").join("model.safetensors")).unwrap();
    fs::write(&part, &bytes[..70_000]).unwrap();
    world.hub.set(Faults::default());
    world.hub.seen();
    succeed(&mut world.fetch("tiny/llava"));
    let seen = world.hub.seen();
    assert!(seen.iter().any(|seen| seen.range.as_deref() == Some("bytes=70000-")), "{seen:?}");
    assert!(!part.exists());
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn two_processes_fetch_a_file_once() {
    let world = World::new();
    let mut children: Vec<_> = (0..3)
        .map(|_| world.fetch("tiny/llava").stdout(std::process::Stdio::null()).spawn().unwrap())
        .collect();
    assert!(children.iter_mut().all(|child| child.wait().unwrap().success()));
    let weights = requests(&world.hub).into_iter().filter(|what| what.starts_with("GET /cdn/"));
    assert_eq!(weights.count(), 1);
}

/// Caches that other clients have left: whole ones, and parts.
#[test]
fn caches_of_other_clients_are_completed() {
    let world = World::new();
    let snapshot = world.snapshot("tiny/bert");
    let fill = |files: &[&str]| {
        let _ = fs::remove_dir_all(world.home());
        fs::create_dir_all(world.repo("tiny/bert").join("refs")).unwrap();
        fs::write(world.repo("tiny/bert").join("refs/main"), COMMIT).unwrap();
        for file in files {
            fs::create_dir_all(snapshot.join(file).parent().unwrap()).unwrap();
            fs::copy(world.dir.path().join("hub/bert").join(file), snapshot.join(file)).unwrap();
        }
        world.hub.seen();
    };
    let read = [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    // `hf download`: everything.
    fill(&[&read[..], &[".gitattributes", "README.md"]].concat());
    succeed(&mut world.embed("tiny/bert"));
    assert_eq!(requests(&world.hub), [""; 0]);
    // All that is read, but whether there is a file of prompts is not known: the hub is asked once.
    fill(&read);
    let output = succeed(world.embed("tiny/bert").env("HF_HUB_OFFLINE", "1"));
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(warning.contains("config_sentence_transformers.json"), "{warning}");
    assert_eq!(requests(&world.hub), [""; 0]);
    succeed(&mut world.embed("tiny/bert"));
    assert_eq!(requests(&world.hub).len(), 1);
    succeed(&mut world.embed("tiny/bert"));
    assert_eq!(requests(&world.hub), [""; 0]);
    // Another client has listed what there is: nothing is unsure, and what is listed and read is not left out.
    let list = |files: &[&str]| {
        let files: serde_json::Map<_, _> = files
            .iter()
            .map(|file| ((*file).to_owned(), json!({"size": 1, "blob_id": "x"})))
            .collect();
        let path = world.repo("tiny/bert").join("trees").join(format!("{COMMIT}.json"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, json!({"format_version": 1, "files": files}).to_string()).unwrap();
    };
    fill(&read);
    list(&read);
    succeed(&mut world.embed("tiny/bert"));
    assert_eq!(requests(&world.hub), [""; 0]);
    list(&[&read[..], &["config_sentence_transformers.json"]].concat());
    let (_, message) = world.refused(world.embed("tiny/bert").env("HF_HUB_OFFLINE", "1"));
    assert!(message.contains("config_sentence_transformers.json missing"), "{message}");
    // Without the tokenizer and the weights: these are fetched, the rest is not.
    fill(&read.map(|file| {
        if file.starts_with("tok") || file.starts_with("model.") { "README.md" } else { file }
    }));
    let (code, message) = world.refused(world.embed("tiny/bert").env("HF_HUB_OFFLINE", "1"));
    assert_eq!(code, 3, "{message}");
    assert!(message.contains("tokenizer.json, model.safetensors missing"), "{message}");
    succeed(&mut world.embed("tiny/bert"));
    let heads = requests(&world.hub).into_iter().filter(|what| what.contains("HEAD /tiny"));
    assert_eq!(heads.count(), 3);
    // An unreachable hub is no reason to leave what is there.
    fill(&read);
    let output = succeed(world.embed("tiny/bert").env("HF_ENDPOINT", "http://127.0.0.1:9"));
    assert!(String::from_utf8(output.stderr).unwrap().contains("warning"));
    world.hub.set(Faults { busy: 9, ..Faults::default() });
    let output = succeed(&mut world.embed("tiny/bert"));
    assert!(String::from_utf8(output.stderr).unwrap().contains("warning"));
}

#[test]
fn a_token_goes_to_the_hub_alone() {
    let world = World::new();
    fs::create_dir_all(world.home()).unwrap();
    fs::write(world.home().join("token"), "secret-of-the-file\n").unwrap();
    let sent = |command: &mut Command| {
        let _ = fs::remove_dir_all(world.home().join("hub"));
        succeed(command);
        let (elsewhere, hub): (Vec<_>, Vec<_>) =
            world.hub.seen().into_iter().partition(|seen| seen.what.contains("/cdn/"));
        assert!(elsewhere.iter().all(|seen| seen.authorization.is_none()), "{elsewhere:?}");
        assert!(!elsewhere.is_empty());
        let mut sent: Vec<_> = hub.into_iter().map(|seen| seen.authorization).collect();
        sent.dedup();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.remove(0)
    };
    let file = Some("Bearer secret-of-the-file".to_owned());
    assert_eq!(sent(&mut world.fetch("tiny/llava")), file);
    let named = sent(world.fetch("tiny/llava").env("HF_TOKEN", "secret"));
    assert_eq!(named.as_deref(), Some("Bearer secret"));
    let none = sent(world.fetch("tiny/llava").env("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"));
    assert_eq!(none, None);
    let elsewhere = world.dir.path().join("another");
    fs::write(&elsewhere, "another").unwrap();
    let named = sent(world.fetch("tiny/llava").env("HF_TOKEN_PATH", elsewhere));
    assert_eq!(named.as_deref(), Some("Bearer another"));
}

#[test]
fn the_cache_is_where_the_variables_say() {
    let world = World::new();
    let dir = world.dir.path();
    for (name, value, expected) in [
        ("HF_HUB_CACHE", dir.join("a"), dir.join("a")),
        ("HUGGINGFACE_HUB_CACHE", dir.join("b"), dir.join("b")),
        ("HF_HOME", dir.join("c"), dir.join("c/hub")),
    ] {
        succeed(world.embed("tiny/bert").env(name, value));
        assert!(expected.join("models--tiny--bert/snapshots").join(COMMIT).is_dir(), "{name}");
    }
    let mut command = world.embed("tiny/bert");
    succeed(command.env_remove("HF_HOME").env("XDG_CACHE_HOME", dir.join("d")));
    assert!(dir.join("d/huggingface/hub/models--tiny--bert").is_dir());
    assert!(!world.home().exists());
}
