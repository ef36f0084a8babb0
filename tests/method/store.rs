//! The store: what goes in comes out, a wave is all or nothing, and nothing that does not fit is touched.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bdhs::sampling::{Candidate, Part, Stop};
use bdhs::store::{EncoderInfo, Key, Manifest, Score, Shard, Store, WaveRecord, merge};
use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn manifest() -> Manifest {
    Manifest {
        bdhs_version: "0.1.0".into(),
        model_fingerprint: "ab".repeat(32),
        model_path: "/models/llava".into(),
        sampling: r#"{"law":"bernoulli","rho":0.99,"top":{"k":0,"p":1.0}}"#.into(),
        seed: u64::MAX,
        token_budget: 4096,
        dataset_fingerprint: "cd".repeat(32),
        plan_hash: "ef".repeat(32),
        shard: Shard::WHOLE,
        created_at: String::new(),
    }
}

fn shard(index: u32, count: u32) -> Manifest {
    Manifest { shard: Shard::Part { index, count }, ..manifest() }
}

fn wave(round: u32, wave: u32) -> WaveRecord {
    let seconds = BTreeMap::from([("prefill".to_owned(), 0.25), ("decode".to_owned(), 1.5)]);
    WaveRecord { round, wave, token_budget: 4096, seconds }
}

fn key(sample: u32, attempt: u32, guided: bool) -> Key {
    let name = format!("{sample} {attempt} {guided}");
    Key::from_bytes(*blake3::hash(name.as_bytes()).as_bytes())
}

fn candidate(sample: u32, attempt: u32, guided: bool) -> (Key, Candidate) {
    let part = Part {
        kept: "A red".into(),
        completion: " cat\u{0}\u{1F408} \"x\".".into(),
        separator: "\r\n ".into(),
        swapped: attempt == 2,
        stop: Stop::FullStop,
        tokens: 7,
        logprob: -0.1,
    };
    let candidate = Candidate {
        sample,
        attempt,
        guided,
        text: format!("A red cat\u{0}\u{1F408} \"x\". {sample}/{attempt}"),
        parts: vec![part.clone(), Part { stop: Stop::TokenLimit, logprob: -17.328_125, ..part }],
        image_tokens: 2880,
        kept: vec![0, 17, 2879],
    };
    (key(sample, attempt, guided), candidate)
}

fn encoder(name: &str) -> EncoderInfo {
    EncoderInfo { fingerprint: format!("fp-{name}"), name: name.into(), dim: 384, max_tokens: 256 }
}

fn score(sample: u32, attempt: u32, guided: bool, phi: f64) -> Score {
    Score {
        candidate: key(sample, attempt, guided),
        phi,
        candidate_tokens: 30,
        reference_tokens: 300,
        candidate_truncated: false,
        reference_truncated: true,
    }
}

/// A store with two samples, two rounds and one encoder.
fn filled(path: &Path, manifest: &Manifest, samples: &[u32]) {
    let mut store = Store::create(path, manifest).unwrap();
    store.add_encoder(&encoder("mini")).unwrap();
    for round in 1..=2 {
        let rows: Vec<_> = samples.iter().map(|&s| candidate(s, round, round == 1)).collect();
        store.commit_wave(&wave(round, 0), &rows).unwrap();
        let scores: Vec<_> = samples
            .iter()
            .map(|&s| score(s, round, round == 1, 0.5 + f64::from(s) / 1000.0))
            .collect();
        store.commit_scores(&[("fp-mini", &scores)]).unwrap();
    }
}

fn message<T: std::fmt::Debug>(result: bdhs::Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[track_caller]
fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

#[test]
fn everything_comes_back() {
    let folder = folder();
    let path = folder.path().join("store.db");
    let mut store = Store::create(&path, &manifest()).unwrap();
    // Out of order on purpose: reading sorts.
    let rows = [
        candidate(9, 1, true),
        candidate(3, 2, false),
        candidate(3, 2, true),
        candidate(3, 1, true),
    ];
    store.commit_wave(&wave(1, 4), &rows).unwrap();
    store.add_encoder(&encoder("mini")).unwrap();
    let scores =
        [score(3, 1, true, 0.1 + 0.2), score(3, 2, false, f64::NAN), score(9, 1, true, -1.0)];
    store.commit_scores(&[("fp-mini", &scores)]).unwrap();
    drop(store);

    let store = Store::open(&path).unwrap();
    let created = store.manifest().created_at.clone();
    assert_eq!(created.len(), "2026-01-31T12:00:00Z".len(), "{created}");
    assert_eq!(*store.manifest(), Manifest { created_at: created, ..manifest() });

    let sorted = [rows[3].clone(), rows[2].clone(), rows[1].clone(), rows[0].clone()];
    assert_eq!(store.candidates().unwrap(), sorted);
    assert_eq!(store.candidates_for(3).unwrap(), sorted[..3]);
    assert_eq!(store.candidate(&rows[1].0).unwrap().as_ref(), Some(&rows[1].1));
    assert_eq!(store.candidate(&key(99, 1, true)).unwrap(), None);
    let heads: Vec<_> = store
        .candidate_refs()
        .unwrap()
        .iter()
        .map(|h| (h.key, h.sample, h.attempt, h.guided))
        .collect();
    let expected: Vec<_> =
        sorted.iter().map(|(k, c)| (*k, c.sample, c.attempt, c.guided)).collect();
    assert_eq!(heads, expected);

    assert_eq!((store.next_wave(1).unwrap(), store.next_wave(2).unwrap()), (5, 0));
    let waves = store.waves().unwrap();
    assert_eq!((waves.len(), &waves[0].record, waves[0].candidates), (1, &wave(1, 4), 4));

    assert_eq!(store.encoders().unwrap(), [encoder("mini")]);
    let stored = store.score_rows("fp-mini").unwrap();
    assert_eq!(stored.iter().map(|row| row.sample).collect::<Vec<_>>(), [3, 3, 9]);
    assert_eq!((stored[0].score, stored[2].score), (scores[0], scores[2]));
    assert!(stored[1].score.phi.is_nan() && !stored[1].guided);
    assert_eq!(store.scores("fp-mini").unwrap().len(), 3);
    let unscored = store.unscored("fp-mini").unwrap();
    assert_eq!(unscored.len(), 1);
    assert_eq!(
        (unscored[0].key, unscored[0].sample, &unscored[0].text),
        (rows[2].0, 3, &rows[2].1.text)
    );
    assert_says(&message(store.scores("fp-other")), &["fp-other", "not known"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_candidate_comes_back(
        text in any::<String>(),
        pieces in prop::collection::vec((any::<String>(), any::<String>(), -1e30f32..0.0, any::<u32>(), any::<bool>()), 0..4),
        kept in prop::collection::btree_set(0u32..5000, 0..60),
        guided in any::<bool>(),
    ) {
        let folder = folder();
        let parts = pieces.into_iter().map(|(kept, completion, logprob, tokens, swapped)| Part {
            separator: completion.clone(), kept, completion, swapped, stop: Stop::EndOfSequence, tokens, logprob,
        }).collect();
        let candidate = Candidate {
            sample: u32::MAX, attempt: 1, guided, text, parts, image_tokens: 5000, kept: kept.into_iter().collect(),
        };
        let rows = [(key(1, 1, true), candidate)];
        let mut store = Store::create(folder.path().join("s.db"), &manifest()).unwrap();
        store.commit_wave(&wave(1, 0), &rows).unwrap();
        prop_assert_eq!(store.candidates().unwrap(), rows);
    }
}

#[test]
fn a_wave_is_all_or_nothing() {
    let folder = folder();
    let path = folder.path().join("store.db");
    let mut store = Store::create(&path, &manifest()).unwrap();
    store.commit_wave(&wave(1, 0), &[candidate(0, 1, true)]).unwrap();

    let again = message(store.commit_wave(&wave(1, 0), &[candidate(5, 1, true)]));
    assert_says(&again, &["wave 0 of round 1", "already committed"]);
    let known =
        message(store.commit_wave(&wave(1, 1), &[candidate(5, 1, true), candidate(0, 1, true)]));
    assert_says(&known, &["sample 0, attempt 1, guided", &key(0, 1, true).to_string()]);
    let other_key = (key(77, 7, true), candidate(0, 1, true).1);
    assert_says(
        &message(store.commit_wave(&wave(1, 1), &[candidate(5, 1, true), other_key])),
        &["sample 0"],
    );
    let mut wrong = candidate(6, 1, true);
    wrong.1.parts[1].logprob = f32::NEG_INFINITY;
    assert_says(
        &message(store.commit_wave(&wave(1, 1), &[candidate(5, 1, true), wrong])),
        &["sample 6", "-inf"],
    );
    for kept in [vec![3, 2], vec![2, 2], vec![2880]] {
        let mut wrong = candidate(6, 1, true);
        wrong.1.kept = kept;
        assert_says(&message(store.commit_wave(&wave(1, 1), &[wrong])), &["sample 6", "2880"]);
    }

    assert_eq!(store.candidates().unwrap(), [candidate(0, 1, true)]);
    assert_eq!(store.waves().unwrap().len(), 1);
    store.commit_wave(&wave(1, 1), &[candidate(5, 1, true)]).unwrap();
    store.commit_wave(&wave(1, 2), &[]).unwrap();
    assert_eq!(store.next_wave(1).unwrap(), 3);
}

#[test]
fn scores_are_all_or_nothing() {
    let folder = folder();
    let path = folder.path().join("store.db");
    filled(&path, &manifest(), &[0, 1]);
    let mut store = Store::open_writable(&path).unwrap();
    store.add_encoder(&encoder("mini")).unwrap();
    let changed = EncoderInfo { dim: 768, ..encoder("mini") };
    assert_says(&message(store.add_encoder(&changed)), &["384", "768", "fp-mini"]);
    assert!(!message(store.add_encoder(&changed)).contains("EncoderInfo"));
    // The same files under another name go on. Regression: a folder that was renamed ended the run.
    let renamed = EncoderInfo { name: "renamed".into(), ..encoder("mini") };
    store.add_encoder(&renamed).unwrap();
    assert_eq!(store.encoders().unwrap(), [renamed]);
    store.add_encoder(&encoder("mini")).unwrap();
    store.add_encoder(&encoder("other")).unwrap();

    let unknown = [score(0, 1, true, 0.5), score(42, 1, true, 0.5)];
    assert_says(
        &message(store.commit_scores(&[("fp-other", &unknown)])),
        &[&key(42, 1, true).to_string()],
    );
    let outside = [score(0, 1, true, 0.5), score(1, 1, true, 1.000_001)];
    assert_says(&message(store.commit_scores(&[("fp-other", &outside)])), &["1.000001", "-1 to 1"]);
    assert_says(
        &message(store.commit_scores(&[("fp-mini", &[score(0, 1, true, 0.5)])])),
        &["already scored"],
    );
    assert!(store.scores("fp-other").unwrap().is_empty());
    assert_eq!(store.unscored("fp-other").unwrap().len(), 4);
}

#[test]
fn a_smaller_budget_is_recorded() {
    let folder = folder();
    let path = folder.path().join("store.db");
    let mut store = Store::create(&path, &manifest()).unwrap();
    assert_eq!(store.token_budget().unwrap(), 4096);
    store.lower_token_budget(2, 7, 2048, "out of memory").unwrap();
    for wrong in [0, 2048, 4096] {
        assert_says(
            &message(store.lower_token_budget(2, 8, wrong, "")),
            &[&wrong.to_string(), "2048"],
        );
    }
    drop(store);
    // A resumed run asks for the first budget and gets the one in force.
    let store = Store::open_or_create(&path, &manifest()).unwrap();
    assert_eq!((store.token_budget().unwrap(), store.manifest().token_budget), (2048, 4096));
    let change = &store.budget_changes().unwrap()[0];
    assert_eq!((change.round, change.wave, change.token_budget), (2, 7, 2048));
    assert_eq!(change.reason, "out of memory");
}

#[test]
fn another_run_is_refused_field_by_field() {
    let folder = folder();
    let path = folder.path().join("store.db");
    filled(&path, &manifest(), &[0, 1]);
    let before = fs::read(&path).unwrap();
    type Change = fn(&mut Manifest);
    let changes: [(Change, &[&str]); 10] = [
        (|m| m.bdhs_version = "9.9.9".into(), &["bdhs_version is 0.1.0", "wants 9.9.9"]),
        (|m| m.model_fingerprint = "xyz".into(), &["model_fingerprint is abab", "wants xyz"]),
        (|m| m.seed = 3, &["seed is 18446744073709551615", "wants 3"]),
        (|m| m.dataset_fingerprint = "x".into(), &["dataset_fingerprint is cdcd", "wants x"]),
        (|m| m.dataset_fingerprint = "2:x".into(), &["wants 2:x", "another version of bdhs"]),
        (|m| m.plan_hash = "x".into(), &["plan_hash is efef", "wants x"]),
        (|m| m.shard = Shard::Part { index: 1, count: 2 }, &["shard is 0/1", "wants 1/2"]),
        (
            |m| m.sampling = r#"{"law":"bernoulli","rho":0.5,"top":{"k":0,"p":0.9}}"#.into(),
            &["sampling.rho is 0.99", "wants 0.5", "sampling.top.p is 1.0", "wants 0.9"],
        ),
        (
            |m| {
                m.sampling =
                    r#"{"law":"bernoulli","rho":0.99,"top":{"k":0,"p":1.0},"new":1}"#.into()
            },
            &["sampling.new is absent in the store", "wants 1"],
        ),
        (|m| m.sampling = "not json".into(), &["sampling is {", "wants \"not json\""]),
    ];
    for (change, words) in changes {
        let mut wanted = manifest();
        change(&mut wanted);
        let text = message(Store::open_or_create(&path, &wanted));
        assert_says(&text, words);
        assert_says(&text, &["store.db"]);
        assert!(!text.contains("sampling.law"), "only fields that differ are named: {text}");
    }
    assert_eq!(fs::read(&path).unwrap(), before, "a refused store is left as it was");
    // Recorded only.
    let elsewhere = Manifest { model_path: "/elsewhere".into(), token_budget: 1, ..manifest() };
    let store = Store::open_or_create(&path, &elsewhere).unwrap();
    assert_eq!((store.manifest().token_budget, store.candidates().unwrap().len()), (4096, 4));
}

/// What a run leaves that was refused before it generated: settings and encoders of nothing.
#[test]
fn a_store_without_candidates_fits_every_run() {
    let folder = folder();
    let path = folder.path().join("store.db");
    let mut store = Store::create(&path, &shard(0, 2)).unwrap();
    store.add_encoder(&encoder("mini")).unwrap();
    drop(store);
    assert!(Store::is_begun(&path).unwrap() && !Store::has_candidates(&path).unwrap());
    let other = Manifest { seed: 3, token_budget: 7, sampling: "{}".into(), ..manifest() };
    let store = Store::open_or_create(&path, &other).unwrap();
    let found = store.manifest();
    assert_eq!((found.seed, found.token_budget, found.shard), (3, 7, Shard::WHOLE));
    assert!(store.encoders().unwrap().is_empty());
    drop(store);
    // So does one that shards are merged into.
    let part = folder.path().join("part.db");
    filled(&part, &shard(0, 2), &[0]);
    merge(&path, &[part]).unwrap();
    assert_eq!(Store::open(&path).unwrap().manifest().seed, u64::MAX);
    assert!(Store::has_candidates(&path).unwrap());
}

/// Rows that no bdhs has written are refused when they are read, and so is everything that is no table of a store.
#[test]
fn what_was_changed_by_other_means_is_refused() {
    let folder = folder();
    let path = folder.path().join("store.db");
    let changed = |sql: &str| {
        let _ = fs::remove_file(&path);
        filled(&path, &manifest(), &[0, 1]);
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        path.clone()
    };
    for phi in ["-9.2e18", "1.0000001", "9e999"] {
        let sql = format!("PRAGMA ignore_check_constraints = ON; UPDATE scores SET phi = {phi}");
        let result = Store::open(changed(&sql)).and_then(|store| store.score_rows("fp-mini"));
        assert_says(&message(result), &["store.db"]);
    }
    for (sql, wanted) in [
        ("CREATE VIEW extra AS SELECT 1", "the view \"extra\""),
        ("CREATE TABLE extra (a)", "the table \"extra\""),
        ("DROP TABLE budget_changes", "no table \"budget_changes\""),
        ("DROP TABLE budget_changes; CREATE VIEW budget_changes AS SELECT 1", "the view"),
        ("DROP TABLE budget_changes; CREATE TABLE budget_changes (a)", "the table"),
        ("CREATE TRIGGER t AFTER INSERT ON waves BEGIN SELECT 1; END", "the trigger \"t\""),
    ] {
        let path = changed(&format!("PRAGMA foreign_keys = OFF; {sql}"));
        assert_says(&message(Store::open(path)), &[wanted, "store.db"]);
    }
    // An index of one's own changes no answer.
    Store::open(changed("CREATE INDEX mine ON candidates (text)")).unwrap();
}

#[test]
fn create_never_overwrites() {
    let folder = folder();
    let path = folder.path().join("store.db");
    filled(&path, &manifest(), &[0]);
    assert_says(&message(Store::create(&path, &manifest())), &["store.db", "already exists"]);
    assert_eq!(Store::open(&path).unwrap().candidate_refs().unwrap().len(), 2);
    // What a run leaves that was killed before its first transaction.
    let empty = folder.path().join("empty.db");
    fs::write(&empty, b"").unwrap();
    Store::open_or_create(&empty, &manifest()).unwrap();
    assert!(Store::open(&empty).unwrap().candidate_refs().unwrap().is_empty());
}

#[test]
fn files_that_are_no_store_are_refused() {
    let folder = folder();
    let file = |name: &str| folder.path().join(name);
    let all = |path: &Path, words: &[&str]| {
        let before = fs::read(path).unwrap();
        let results = [
            message(Store::open(path)),
            message(Store::open_writable(path)),
            message(Store::open_or_create(path, &manifest())),
        ];
        for text in results {
            assert_says(&text, words);
            assert_says(&text, &[path.to_str().unwrap()]);
        }
        assert_eq!(fs::read(path).unwrap(), before);
    };
    fs::write(file("text.db"), "this is no database, but it is long enough to look at").unwrap();
    all(&file("text.db"), &["not an SQLite database"]);

    Connection::open(file("foreign.db")).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    all(&file("foreign.db"), &["not a bdhs store", "application_id is 0"]);

    filled(&file("future.db"), &manifest(), &[0]);
    Connection::open(file("future.db")).unwrap().pragma_update(None, "user_version", 7).unwrap();
    all(&file("future.db"), &["schema_version is 7", "wants 1"]);

    filled(&file("cut.db"), &manifest(), &(0..200).collect::<Vec<_>>());
    let bytes = fs::read(file("cut.db")).unwrap();
    assert!(bytes.len() > 100_000);
    fs::write(file("cut.db"), &bytes[..bytes.len() / 2]).unwrap();
    all(&file("cut.db"), &["damaged"]);
    let mut holed = bytes.clone();
    holed[4096 * 20..4096 * 21].fill(0xFF);
    fs::write(file("holed.db"), holed).unwrap();
    all(&file("holed.db"), &["damaged"]);

    for result in [Store::open(file("absent.db")), Store::open_writable(file("absent.db"))] {
        assert_says(&message(result), &["absent.db"]);
        assert!(!file("absent.db").exists());
    }
    let nowhere = file("no/such/folder/store.db");
    assert_says(
        &message(Store::open_or_create(&nowhere, &manifest())),
        &["no/such/folder/store.db"],
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_cannot_be_written_is_named() {
    // Also refused to root, unlike a folder without write permission.
    let text = message(Store::open_or_create("/proc/self/store.db", &manifest()));
    assert_says(&text, &["/proc/", "store.db"]);
}

#[test]
fn one_writer_many_readers() {
    let folder = folder();
    let path = folder.path().join("store.db");
    let mut writer = Store::create(&path, &manifest()).unwrap();
    writer.commit_wave(&wave(1, 0), &[candidate(0, 1, true)]).unwrap();
    let pid = std::process::id().to_string();
    for refused in [Store::open_or_create(&path, &manifest()), Store::open_writable(&path)] {
        assert_says(&message(refused), &["another writer", &pid, "store.db"]);
    }
    #[cfg(unix)]
    {
        let link = folder.path().join("link.db");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_says(&message(Store::open_writable(&link)), &["another writer"]);
    }
    let mut reader = Store::open(&path).unwrap();
    assert_eq!(reader.candidate_refs().unwrap().len(), 1);
    writer.commit_wave(&wave(1, 1), &[candidate(1, 1, true)]).unwrap();
    assert_eq!(reader.candidate_refs().unwrap().len(), 2);
    assert_says(&message(reader.commit_wave(&wave(1, 2), &[])), &["reading only"]);
    drop(writer);
    Store::open_or_create(&path, &manifest()).unwrap();
}

/// The writer of the next test: a process of its own, since it is killed in the middle of a transaction.
fn doomed_writer(path: &Path) -> ! {
    let mut store = Store::create(path, &manifest()).unwrap();
    store.commit_wave(&wave(1, 0), &[candidate(0, 1, true)]).unwrap();
    // A second connection writes half a wave; its pages go to the file, and so its journal is hot.
    let half = Connection::open(path).unwrap();
    half.execute_batch(
        "PRAGMA cache_size = 1; BEGIN IMMEDIATE; \
         INSERT INTO waves VALUES ('0/1', 1, 1, 4096, 500, '{}', ''); \
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) \
         INSERT INTO candidates SELECT randomblob(32), i, 1, 1, hex(randomblob(2000)), '[]', 0, '[]', 0, '0/1', 1, 1 FROM n;",
    )
    .unwrap();
    println!("half a wave written");
    std::thread::sleep(std::time::Duration::from_secs(600));
    unreachable!("the test kills this process");
}

#[test]
fn a_killed_writer_leaves_whole_waves_and_no_lock() {
    const CHILD: &str = "BDHS_TEST_DOOMED_WRITER";
    if let Some(path) = std::env::var_os(CHILD) {
        doomed_writer(&PathBuf::from(path));
    }
    let folder = folder();
    let path = folder.path().join("store.db");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::a_killed_writer_leaves_whole_waves_and_no_lock", "--nocapture"])
        .env(CHILD, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("half a wave written")));
    let pid = child.id().to_string();
    assert_says(&message(Store::open_or_create(&path, &manifest())), &["another writer", &pid]);
    child.kill().unwrap();
    child.wait().unwrap();
    let journal = folder.path().join("store.db-journal");
    assert!(journal.metadata().unwrap().len() > 512, "the journal should be hot");

    let store = Store::open(&path).unwrap();
    assert_eq!(store.candidate_refs().unwrap().len(), 1);
    let mut store = Store::open_or_create(&path, &manifest()).unwrap();
    assert_eq!(store.next_wave(1).unwrap(), 1);
    store.commit_wave(&wave(1, 1), &[candidate(1, 1, true)]).unwrap();
    assert_eq!(store.candidate_refs().unwrap().len(), 2);
}

#[test]
fn merging_is_the_union_and_can_be_repeated() {
    let folder = folder();
    let file = |name: &str| folder.path().join(name);
    filled(&file("a.db"), &shard(0, 2), &[0, 2]);
    filled(&file("b.db"), &shard(1, 2), &[1, 3]);
    let shards = [file("b.db"), file("a.db")];
    let done = merge(file("all.db"), &shards).unwrap();
    assert_eq!((done.shards, done.candidates, done.candidates_present), (2, 8, 0));
    assert_eq!((done.scores, done.encoders, done.waves), (8, 1, 4));

    let all = Store::open(file("all.db")).unwrap();
    assert_eq!(all.manifest().shard, Shard::Merged);
    let expected: Vec<_> =
        (0..4).flat_map(|s| [candidate(s, 1, true), candidate(s, 2, false)]).collect();
    assert_eq!(all.candidates().unwrap(), expected);
    let phis: Vec<f64> =
        all.score_rows("fp-mini").unwrap().iter().map(|row| row.score.phi).collect();
    assert_eq!(phis, [0.5, 0.5, 0.501, 0.501, 0.502, 0.502, 0.503, 0.503]);
    assert_eq!(all.waves().unwrap().len(), 4);
    drop(all);

    let again = merge(file("all.db"), &shards).unwrap();
    assert_eq!((again.candidates, again.candidates_present), (0, 8));
    assert_eq!((again.scores, again.encoders, again.waves), (0, 0, 0));
    // A whole run may go on where the shards ended, a shard may not.
    let mut store = Store::open_or_create(file("all.db"), &manifest()).unwrap();
    store.commit_wave(&wave(3, 0), &[candidate(0, 3, true)]).unwrap();
    drop(store);
    assert_says(
        &message(Store::open_or_create(file("all.db"), &shard(0, 2))),
        &["shard is merged", "0/2"],
    );
}

#[test]
fn merging_refuses_what_contradicts() {
    let folder = folder();
    let file = |name: &str| folder.path().join(name);
    filled(&file("a.db"), &shard(0, 2), &[0, 2]);
    let other = Manifest { seed: 5, ..shard(1, 2) };
    filled(&file("seed.db"), &other, &[1]);
    let text = message(merge(file("all.db"), &[file("a.db"), file("seed.db")]));
    assert_says(&text, &["seed.db", "seed is 5", "18446744073709551615"]);
    assert!(!file("all.db").exists(), "manifests are compared before anything is written");

    let contradict = |name: &str, sql: &str, words: &[&str]| {
        filled(&file(name), &shard(1, 2), &[0, 1]);
        let raw = Connection::open(file(name)).unwrap();
        raw.execute_batch(sql).unwrap();
        drop(raw);
        let target = file(&format!("into-{name}"));
        let text = message(merge(&target, &[file("a.db"), file(name)]));
        assert_says(&text, words);
        assert_says(&text, &[name]);
        // The first shard is in, nothing of the second is.
        assert_eq!(Store::open(&target).unwrap().candidate_refs().unwrap().len(), 4);
    };
    let name = key(0, 1, true).to_string();
    contradict(
        "text.db",
        "UPDATE candidates SET text = 'other' WHERE sample = 0 AND attempt = 1",
        &[&name, "sample 0, attempt 1", "another text"],
    );
    contradict(
        "key.db",
        "PRAGMA foreign_keys = OFF; UPDATE candidates SET key = zeroblob(32) WHERE sample = 0 AND attempt = 1",
        &[&"0".repeat(64), "sample 0, attempt 1", "another key"],
    );
    contradict("phi.db", "UPDATE scores SET phi = 0.25", &["sample 0", "another score"]);
    contradict("encoder.db", "UPDATE encoders SET dim = 9", &["encoder fp-mini"]);

    assert_says(&message(merge(file("a.db"), &[file("a.db")])), &["into itself"]);
    assert_says(&message(merge(file("x.db"), &[])), &["at least 1"]);
    assert_says(&message(merge(file("x.db"), &[file("nothing.db")])), &["nothing.db"]);
}

#[test]
fn keys_read_and_write_themselves() {
    let key = key(1, 2, true);
    assert_eq!(key.to_string().parse::<Key>().unwrap(), key);
    assert!("abc".parse::<Key>().unwrap_err().contains("64 hexadecimal digits"));
}

#[test]
fn documented_queries_work() {
    let folder = folder();
    let path = folder.path().join("store.db");
    filled(&path, &manifest(), &[0, 1, 2]);
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/store.md")).unwrap();
    let raw = Connection::open(&path).unwrap();
    let mut count = 0;
    for block in page.split("```sql\n").skip(1) {
        let query = block.split("```").next().unwrap();
        let mut statement = raw.prepare(query).unwrap_or_else(|error| panic!("{error} in {query}"));
        let mut rows = statement.query([]).unwrap();
        assert!(rows.next().unwrap().is_some(), "no rows from {query}");
        count += 1;
    }
    assert!(count >= 5, "{count} queries");
    for table in ["manifest", "budget_changes", "waves", "candidates", "encoders", "scores"] {
        let mut columns =
            raw.prepare(&format!("SELECT name FROM pragma_table_info('{table}')")).unwrap();
        let names = columns.query_map([], |row| row.get::<_, String>(0)).unwrap();
        for name in names.map(Result::unwrap) {
            assert!(page.contains(&format!("`{name}`")), "{table}.{name} is not documented");
        }
    }
}
