//! One run on several devices: a process each, here all on the CPU. The same bytes as on one, whoever is killed.
#![cfg(target_os = "linux")]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::common::{self, bdhs, dataset, encoders, exports, json, succeed, sweep};
use bdhs::store::Store;

/// Four blocks of two samples.
fn blocks(dir: &Path) -> (PathBuf, PathBuf) {
    let config = dir.join("run.toml");
    std::fs::write(&config, "[run]\nblock = 2\n[sampling]\nrho = 0.5\n").unwrap();
    (dataset(dir, 8), config)
}

fn run(data: &Path, config: &Path, out: &Path, devices: &str) -> Command {
    let mut command = sweep(data, out);
    command.arg(config).args(["--token-budget", "400", "--device", devices]);
    command
}

fn waves(run: &Path) -> usize {
    Store::open(run.join("store.db")).unwrap().waves().unwrap().len()
}

fn candidates(store: PathBuf) -> usize {
    Store::open(store).unwrap().candidate_refs().unwrap().len()
}

fn same(run: &Path, expected: &[(PathBuf, Vec<u8>)]) {
    let seen = exports(run);
    let names =
        |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|f| f.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&seen), names(expected));
    for ((name, bytes), (_, expected)) in seen.iter().zip(expected) {
        assert!(bytes == expected, "{} differs from one device's", run.join(name).display());
    }
}

#[test]
fn several_devices_give_the_bytes_of_one() {
    let dir = tempfile::tempdir().unwrap();
    let (data, config) = blocks(dir.path());
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    let first = json(&succeed(run(&data, &config, &one, "cpu").arg("--json")));
    let begun =
        |out: &Path, devices| json(&succeed(run(&data, &config, out, devices).arg("--json")));
    let second = begun(&two, "cpu,cpu");
    for field in ["cells", "candidates_generated", "candidates_if_independent", "overlap"] {
        assert_eq!(first[field], second[field], "{field}");
    }
    same(&two, &exports(&one));
    // The time of the devices' processes counts, and stays when a later one has nothing to do.
    for stage in ["generate", "embed bert", "embed mpnet", "store"] {
        assert!(second["seconds"][stage].as_f64().is_some_and(|s| s > 0.0), "{stage}: {second}");
    }
    let parts = ["part-1-of-2.db", "part-2-of-2.db"].map(|part| candidates(two.join(part)));
    assert!(parts.iter().all(|&n| n > 0), "{parts:?}");
    assert_eq!(parts.iter().sum::<usize>(), candidates(two.join("store.db")));
    let before = waves(&two);
    // Again, and for one cell: nothing is generated, and the answer is the same.
    let again = begun(&two, "cpu,cpu");
    assert_eq!(again["cells"], first["cells"]);
    assert_eq!(again["seconds"]["generate"], second["seconds"]["generate"]);
    let mut sample = bdhs();
    sample.arg("sample").arg(&config).arg("--model").arg(common::llava()).arg("--data").arg(&data);
    sample.args(["--max-sentence-tokens", "24", "--max-response-tokens", "48", "--json"]);
    let alone = succeed(
        sample
            .arg("--out")
            .arg(&two)
            .arg("--encoder")
            .arg(&encoders()[0])
            .args(["--device", "cpu,cpu"]),
    );
    let cell = json(&alone)["cells"][0].take();
    let expected = first["cells"].as_array().unwrap().iter();
    let expected = expected.filter(|c| c["encoder"] == "bert" && c["threshold"] == 0.97);
    assert_eq!(vec![&cell], expected.collect::<Vec<_>>());
    assert_eq!(waves(&two), before);
}

#[test]
fn a_run_goes_on_however_it_was_divided_before() {
    let dir = tempfile::tempdir().unwrap();
    let (data, config) = blocks(dir.path());
    let [calm, out] = ["calm", "run"].map(|name| dir.path().join(name));
    succeed(&mut run(&data, &config, &calm, "cpu"));
    // The first and third block, by one of two; then all, by three, who take those over.
    succeed(run(&data, &config, &out, "cpu").args(["--shard", "1/2"]));
    let done = candidates(out.join("part-1-of-2.db"));
    std::fs::write(out.join("part-2-of-2.db"), "").unwrap();
    succeed(&mut run(&data, &config, &out, "cpu,cpu,cpu"));
    same(&out, &exports(&calm));
    let all = candidates(out.join("store.db"));
    assert_eq!(all, candidates(calm.join("store.db")));
    let waves =
        |part| Store::open(out.join(format!("part-{part}-of-3.db"))).unwrap().waves().unwrap();
    let own = (1..=3).flat_map(waves).filter(|wave| wave.shard.ends_with("/3"));
    let own: usize = own.map(|wave| wave.candidates as usize).sum();
    assert_eq!(done + own, all, "nothing was generated twice");
    // More devices than blocks: who has nothing to do says so.
    let output = succeed(&mut run(&data, &config, &out, "cpu,cpu,cpu,cpu,cpu"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cpu, part 5/5: this part has no block"), "{said}");
    same(&out, &exports(&calm));
}

/// A process's state and the process that started it; none if it has ended.
fn process(id: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// The processes that a process has started and that have not ended.
fn children(of: &Child) -> Vec<u32> {
    let ids = std::fs::read_dir("/proc").unwrap();
    let ids = ids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|&id| process(id).is_some_and(|(_, parent)| parent == of.id())).collect()
}

fn is_at_work(id: u32) -> bool {
    process(id).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

fn kill(id: u32) {
    // It may have ended by itself just now.
    let _ = Command::new("kill").args(["-9", &id.to_string()]).stderr(Stdio::null()).status();
}

#[test]
fn whoever_is_killed_no_byte_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (data, config) = blocks(dir.path());
    let calm = dir.path().join("calm");
    succeed(&mut run(&data, &config, &calm, "cpu"));
    let expected = exports(&calm);
    let begun = Instant::now();
    succeed(&mut run(&data, &config, &dir.path().join("timed"), "cpu,cpu"));
    let whole = begun.elapsed();

    let (mut parents, mut workers, mut state) = (0, 0, 0x1234_5678_9abc_def1_u64);
    let (mut runs, mut out) = (0, dir.path().join("run-0"));
    while parents < 6 || workers < 6 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let pause = whole.mul_f64((state >> 40) as f64 / (1u64 << 24) as f64);
        let mut command = run(&data, &config, &out, "cpu,cpu");
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        std::thread::sleep(pause.max(Duration::from_millis(1)));
        let at_work = children(&child);
        if parents <= workers {
            if child.try_wait().unwrap().is_none() {
                kill(child.id());
                parents += 1;
            }
            child.wait().unwrap();
            let killed = Instant::now();
            while at_work.iter().any(|&id| is_at_work(id)) {
                assert!(killed.elapsed() < Duration::from_secs(10), "{at_work:?} outlive it");
                std::thread::sleep(Duration::from_millis(5));
            }
        } else if let Some(&worker) = at_work.get(state as usize % 2) {
            kill(worker);
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            // One that was about to end anyway has done its part.
            if !output.status.success() {
                assert_eq!(output.status.code(), Some(1), "{said}");
                assert!(said.contains("error: cpu, part ") && said.contains("SIGKILL"), "{said}");
                workers += 1;
            }
        } else {
            child.wait().unwrap();
        }
        if out.join("report.html").exists() {
            same(&out, &expected);
            runs += 1;
            out = dir.path().join(format!("run-{runs}"));
        }
    }
    succeed(&mut run(&data, &config, &out, "cpu,cpu"));
    same(&out, &expected);
    println!("{parents} parents and {workers} workers killed");
}

#[test]
fn what_one_device_meets_is_named_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (data, config) = blocks(dir.path());
    let out = dir.path().join("run");
    let refused = |command: &mut Command, code: i32, parts: &[&str]| {
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{error}");
        assert_eq!(output.status.code(), Some(code), "{error}");
        for part in parts {
            assert!(error.contains(part), "no {part:?} in: {error}");
        }
    };
    let device = |names: &str| run(&data, &config, &out, names);
    refused(&mut device("cpu,tpu"), 3, &["device \"tpu\"", "cuda:all"]);
    refused(&mut device("cpu,cuda:0"), 3, &["\"cpu,cuda:0\"", "GPUs alone"]);
    if !cfg!(feature = "cuda") {
        refused(&mut device("cuda:0,1"), 3, &["device \"cuda:0\"", "no CUDA"]);
        refused(&mut device("cuda:all"), 3, &["device \"cuda:all\"", "no CUDA"]);
    }
    refused(device("cpu,cpu").args(["--shard", "1/2"]), 3, &["--shard with 2 devices"]);
    refused(device("cpu,cpu").args(["--slurm"]), 3, &["--slurm", "--shards"]);
    assert!(!out.exists(), "nothing was begun");
    let mut embed = bdhs();
    embed
        .arg("embed")
        .arg("--encoder")
        .arg(&encoders()[0])
        .args(["--input", "x.jsonl", "--output"]);
    std::fs::write(dir.path().join("x.jsonl"), "{\"id\": 1, \"text\": \"a\"}\n").unwrap();
    embed.current_dir(dir.path()).arg("y.npy").args(["--device", "cpu,cpu"]);
    refused(&mut embed, 3, &["--device \"cpu,cpu\"", "one device, as --device cpu"]);
    // A picture that is none.
    std::fs::write(dir.path().join("images/5.png"), "no picture").unwrap();
    refused(&mut device("cpu,cpu"), 3, &["error: cpu, part ", "images/5.png"]);
}
