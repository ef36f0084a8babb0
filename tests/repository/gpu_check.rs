//! `scripts/gpu-check` and `scripts/compare-sweeps` on a bundle of shell scripts: they fail where a GPU would be wrong.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

fn script(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/bash\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A test program: `passes` tests, unless kernels with a fault are named and noticed.
fn tests(bundle: &Path, name: &str, passes: u32, notices: bool) {
    let fails = if notices { r#"[ -z "${BDHS_KERNEL_DIR:-}" ] || exit 101"# } else { "" };
    let text = format!("{fails}\necho 'test result: ok. {passes} passed; 0 failed'");
    script(&bundle.join("bin").join(name), &text);
}

/// A bundle in which all is well; its sweeps give 20 answers, `differ` of them others on the GPU.
fn bundle(differ: u32) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    fs::create_dir(dir.path().join("scripts")).unwrap();
    for name in ["gpu-check", "compare-sweeps"] {
        fs::copy(scripts.join(name), dir.path().join("scripts").join(name)).unwrap();
    }
    tests(dir.path(), "test-cuda", 3, true);
    tests(dir.path(), "test-models", 3, false);
    let sweep = format!(
        r#"[ "$2" = sweep ] || {{ echo "device fake: usable"; exit; }}
cell=$6/cells/one; mkdir -p "$cell"
for i in $(seq 20); do
    if [ "$4" = cuda ] && [ $i -le {differ} ]; then other=" or not"; else other=; fi
    echo "{{\"rejected\":\"answer $i$other\",\"id\":$i}}"
done >"$cell/pairs.jsonl""#
    );
    script(&dir.path().join("bin/bdhs"), &sweep);
    dir
}

/// What `gpu-check` says and returns, and its folder of results.
fn check(bundle: &TempDir, arguments: &[&str], environment: &[(&str, &str)]) -> (Output, PathBuf) {
    let out = bundle.path().join("results");
    let mut command = Command::new(bundle.path().join("scripts/gpu-check"));
    command.arg("--out").arg(&out).args(arguments).env_remove("BDHS_KERNEL_DIR");
    command.envs(environment.iter().copied());
    (command.output().expect("bash"), out)
}

fn record(out: &Path, name: &str) -> String {
    fs::read_to_string(out.join(name)).unwrap()
}

#[track_caller]
fn ends(seen: &(Output, PathBuf), code: i32, says: &str) {
    let text = String::from_utf8_lossy(&seen.0.stdout).into_owned();
    let error = String::from_utf8_lossy(&seen.0.stderr);
    assert_eq!(seen.0.status.code(), Some(code), "{text}{error}");
    assert!(text.contains(says), "no {says:?} in: {text}{error}");
}

#[test]
fn a_planted_fault_has_to_be_what_fails() {
    let good = bundle(0);
    ends(&check(&good, &["ops"], &[]), 0, "passed 2, failed 0");
    let blind = bundle(0);
    tests(blind.path(), "test-cuda", 3, false);
    ends(&check(&blind, &["ops"], &[]), 1, "passed 1, failed 1");
    let broken = bundle(0);
    script(&broken.path().join("bin/test-cuda"), "exit 101");
    ends(&check(&broken, &["ops"], &[]), 1, "passed 0, failed 2");
}

#[test]
fn a_filter_that_matches_nothing_fails() {
    let bundle = bundle(0);
    tests(bundle.path(), "test-models", 0, false);
    let seen = check(&bundle, &["models"], &[]);
    ends(&seen, 1, "passed 0, failed 4");
    ends(&seen, 1, "no test ran");
}

#[test]
fn the_share_of_equal_answers_is_asserted_and_recorded() {
    for (differ, code, same) in [(0, 0, 20), (1, 0, 19), (2, 1, 18), (20, 1, 0)] {
        let bundle = bundle(differ);
        let seen = check(&bundle, &["sweep"], &[]);
        ends(&seen, code, &format!("{same} of 20 rejected answers are equal"));
        let json: String = record(&seen.1, "checks.json");
        assert!(json.contains(&format!("\"same\":{same},\"all\":20,\"least\":95")), "{json}");
    }
    // No answer at all, and a cell that one run lacks.
    for (sweep, says) in [
        (r#"mkdir -p "$6/cells/one"; : >"$6/cells/one/pairs.jsonl""#, "0 of 0 rejected"),
        (
            r#"mkdir -p "$6/cells/$4"; echo '{"id":1}' >"$6/cells/$4/pairs.jsonl""#,
            "different cells",
        ),
    ] {
        let bundle = bundle(0);
        let text =
            format!("[ \"$2\" = sweep ] || {{ echo 'device fake: usable'; exit; }}\n{sweep}");
        script(&bundle.path().join("bin/bdhs"), &text);
        ends(&check(&bundle, &["sweep"], &[]), 1, says);
    }
}

#[test]
fn a_part_that_runs_out_of_time_keeps_what_it_has() {
    let bundle = bundle(0);
    script(&bundle.path().join("bin/test-models"), "sleep 60");
    let begun = std::time::Instant::now();
    let seen = check(&bundle, &["A"], &[("part", "3")]);
    assert!(begun.elapsed().as_secs() < 30);
    ends(&seen, 1, "passed 2, failed 1");
    let json = record(&seen.1, "checks-A.json");
    assert!(json.contains("planted-fault") && json.contains("\"interrupted\":true"), "{json}");
    assert!(seen.1.join("logs-A.tar.gz").metadata().unwrap().len() > 100);
    assert!(fs::read_dir(&seen.1).unwrap().count() <= 4);
}

#[test]
fn without_a_device_it_is_skipped_and_never_passed() {
    let bundle = bundle(0);
    script(&bundle.path().join("bin/bdhs"), "echo 'device cuda: not usable'");
    ends(&check(&bundle, &[], &[]), 77, "no CUDA device");
    ends(&check(&bundle, &["--dry-run"], &[]), 77, "start-bdhs");
}
