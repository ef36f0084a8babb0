//! Run folders of every kind, names that clash, and settings that are corrected: answered before anything is generated.

use std::{ffi::OsStr, fs, path::Path, process::Command};

use crate::common::{bdhs, dataset, golden, llava, succeed, sweep};

/// Runs to its end, which is this exit code; what it said.
fn ends(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {text}");
    text
}

/// SQLite takes `file:NAME` for an address; the store lies where everything else of the run does.
#[test]
fn a_folder_may_be_called_like_an_address() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 2);
    fs::create_dir(dir.path().join("o")).unwrap();
    for out in ["file:o", "file:o?mode=memory", "a#b%20c"] {
        succeed(sweep(&data, Path::new(out)).current_dir(dir.path()));
        assert!(dir.path().join(out).join("store.db").is_file(), "{out}");
        assert!(dir.path().join(out).join("summary.json").is_file(), "{out}");
        // A part beside it is merged from there.
        let part = Path::new(out).join("part");
        succeed(sweep(&data, &part).current_dir(dir.path()).args(["--shard", "1/2"]));
        succeed(sweep(&data, &part).current_dir(dir.path()).args(["--shard", "2/2"]));
        succeed(sweep(&data, &part).current_dir(dir.path()));
    }
    assert_eq!(fs::read_dir(dir.path().join("o")).unwrap().count(), 0);
}

#[test]
#[cfg(target_os = "linux")]
fn a_folder_that_no_json_can_name_is_refused_at_once() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 2);
    let out = dir.path().join(OsStr::from_bytes(b"run-\xff"));
    let text = ends(&mut sweep(&data, &out), 3);
    assert!(text.contains("is no UTF-8 text"), "{text}");
    let mut eval = bdhs();
    eval.args(["eval", "all", "--only", "pope", "--out"]).arg(&out);
    assert!(ends(&mut eval, 3).contains("is no UTF-8 text"));
    let mut train = bdhs();
    train.args(["train", "--pairs"]).arg(&data).arg("--out").arg(&out);
    assert!(ends(&mut train, 3).contains("is no UTF-8 text"));
    assert!(!out.exists());
    // The same for what is read.
    let odd = dir.path().join(OsStr::from_bytes(b"data-\xff.json"));
    fs::copy(&data, &odd).unwrap();
    assert!(ends(&mut sweep(&odd, &dir.path().join("o")), 3).contains("is no UTF-8 text"));
}

/// Cells are named by thresholds of four decimals and by encoders' folders.
#[test]
fn names_of_cells_that_clash_are_found_before_generation() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 2);
    let out = dir.path().join("run");
    let text =
        ends(sweep(&data, &out).args(["--threshold", "0.90001", "--threshold", "0.90002"]), 3);
    assert!(text.contains("grid.thresholds[1]") && text.contains("both are 0.90"), "{text}");
    assert!(!out.exists());
    // Names that differ in characters that folders of cells do not have.
    let mut command = bdhs();
    command
        .arg("sweep")
        .arg("--model")
        .arg(llava())
        .arg("--data")
        .arg(&data)
        .arg("--out")
        .arg(&out);
    for name in ["a b", "a+b"] {
        copy(&golden("encoders/bert"), &dir.path().join(name));
        command.arg("--encoder").arg(dir.path().join(name));
    }
    let text = ends(&mut command, 3);
    assert!(text.contains("grid.encoders[1]") && text.contains("a_b"), "{text}");
    assert!(!out.join("store.db").exists());
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => fs::copy(entry.path(), target).map(|_| ()).unwrap(),
        }
    }
}

/// A run that is refused before it generates leaves nothing that the corrected command is refused for, in parts or as a whole.
#[test]
fn a_corrected_command_runs_in_the_same_folder() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 2);
    for shard in [None, Some("1/2")] {
        let out = dir.path().join(shard.map_or("whole", |_| "part"));
        let mut wrong = bdhs();
        let too_many = |arg| if arg == "48" { OsStr::new("100000") } else { arg };
        wrong.args(sweep(&data, &out).get_args().map(too_many)).args(["--seed", "7"]);
        wrong.args(shard.iter().flat_map(|shard| ["--shard", shard]));
        let text = ends(&mut wrong, 3);
        assert!(text.contains("positions"), "{text}");
        let mut right = sweep(&data, &out);
        right.args(shard.iter().flat_map(|shard| ["--shard", shard]));
        succeed(&mut right);
        succeed(&mut sweep(&data, &out));
        // And now the folder belongs to the run.
        let text = ends(sweep(&data, &out).args(["--seed", "7"]), 5);
        assert!(text.contains("seed is 0 in the store"), "{text}");
    }
}
