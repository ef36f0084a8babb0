//! The same ablation through a real SLURM: `SLURM_CONF` names one whose jobs run here (scripts/slurm-local starts it). Without it
//! this test says so and is left out.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use crate::common::{
    ablation::{ablate, configuration, table},
    bdhs, json,
    skip::skip,
    succeed,
};

/// Our jobs in the queue: number, state, name.
fn queue() -> Vec<(String, String, String)> {
    let output = succeed(Command::new("squeue").args(["-h", "-r", "-o", "%i %T %j"]));
    let text = String::from_utf8(output.stdout).unwrap();
    let job = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        Some((words.next()?, words.next()?, words.next().filter(|name| name.starts_with("bdhs-"))?))
    };
    text.lines().filter_map(job).collect()
}

/// Waits for the second training task to run (the first is the baseline's, which trains nothing), or for the end of all.
fn training() -> Option<String> {
    let begun = Instant::now();
    loop {
        let jobs = queue();
        let found = jobs.iter().find(|(job, state, name)| {
            state == "RUNNING" && name == "bdhs-train" && job.ends_with("_2")
        });
        if let Some((job, ..)) = found {
            return Some(job.clone());
        }
        if jobs.is_empty() {
            return None;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{jobs:?}");
        std::thread::sleep(Duration::from_millis(30));
    }
}

fn wait() {
    let begun = Instant::now();
    while !queue().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(240), "{:?}", queue());
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn job_arrays_give_the_table_of_one_process_though_jobs_are_cancelled_and_requeued() {
    if std::env::var_os("SLURM_CONF").is_none() {
        skip("slurm", "SLURM_CONF is not set");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (config, plain) = (configuration(dir.path()), dir.path().join("plain"));
    // Tasks that last seconds, so that one can be met at work.
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains("epochs = 2"));
    std::fs::write(&config, text.replace("epochs = 2", "epochs = 60")).unwrap();
    succeed(&mut ablate(&config, &plain));
    let run = dir.path().join("run");
    let submit = || {
        let mut command = ablate(&config, &run);
        command.args(["--slurm", "--shards", "2", "--sbatch=--cpus-per-task=1", "--json"]);
        json(&succeed(&mut command))
    };
    let jobs = submit();
    let stages: Vec<&str> =
        jobs.as_array().unwrap().iter().map(|job| job["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["generate", "decide", "train", "judge", "report"]);
    // A task of the training is cancelled: what waits for it goes, and the same command submits what is left.
    let victim = training().expect("a training task at work");
    succeed(Command::new("scancel").arg(&victim));
    wait();
    assert!(!run.join("ablation.json").exists());
    let status =
        || json(&succeed(bdhs().args(["sweep", "--status", "--json", "--from-run"]).arg(&run)));
    let before = status();
    assert_eq!(
        (before["decided"].as_bool(), before["finished"].as_bool()),
        (Some(true), Some(false))
    );
    submit();
    // And one is requeued while it runs.
    let victim = training().expect("the rest of the training at work");
    succeed(Command::new("scontrol").args(["requeue", &victim]));
    wait();
    let after = status();
    assert_eq!(after["finished"], true, "{after}");
    assert_eq!(after["trained"], after["models"]);
    assert_eq!(table(&run), table(&plain));
}

/// A folder with stand-ins for `sbatch`, which counts its calls, and `squeue`.
fn stand_ins(dir: &std::path::Path, sbatch: &str, squeue: Option<&str>) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let bin = dir.join("bin");
    let _ = std::fs::remove_dir_all(&bin);
    std::fs::create_dir(&bin).unwrap();
    let program = |name: &str, body: &str| {
        let path = bin.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let count = format!(
        "[ \"$1\" = --version ] && exit 0\necho \"$@\" >> '{0}/calls'\nn=$((100 + $(wc -l < '{0}/calls')))",
        dir.display()
    );
    program("sbatch", &format!("{count}\n{sbatch}"));
    if let Some(squeue) = squeue {
        program("squeue", squeue);
    }
    bin
}

/// Whatever `sbatch` prints, no job is queued twice: its number is found, a job that is still there is not submitted again, and one
/// that may be there is named.
#[test]
#[cfg(unix)]
fn no_job_is_queued_twice() {
    let dir = tempfile::tempdir().unwrap();
    let config = configuration(dir.path());
    let run = dir.path().join("run");
    let calls =
        || std::fs::read_to_string(dir.path().join("calls")).unwrap_or_default().lines().count();
    let submit = |bin: &std::path::Path, more: &[&str]| {
        let mut command = bdhs();
        command.arg("sweep").arg(&config).arg("--out").arg(&run).arg("--slurm").args(more);
        command.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    // Without sbatch nothing is written.
    let mut command = bdhs();
    command.arg("sweep").arg(&config).arg("--out").arg(&run).arg("--slurm").env("PATH", dir.path());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(3) && text.contains("no sbatch"), "{text}");
    assert!(!run.exists());
    // One that refuses leaves no job behind; the reason is told.
    let refuses = stand_ins(dir.path(), "echo Invalid partition >&2; exit 1", None);
    let (code, text) = submit(&refuses, &[]);
    assert!(code == Some(3) && text.contains("did not take it: Invalid partition"), "{text}");
    // One that speaks: the first stage is there, and the second is refused.
    let speaks =
        stand_ins(dir.path(), "echo 'INFO: 12 hours left'\necho \"$n;alpha\"\necho done", None);
    let (code, text) = submit(&speaks, &[]);
    assert!(
        code == Some(0) && text.contains("generate  job 102") && text.contains("decide    job 103"),
        "{text}"
    );
    assert_eq!(calls(), 3);
    // Nobody can say whether they are still there.
    let (code, text) = submit(&speaks, &[]);
    assert!(code == Some(3) && text.contains("squeue") && text.contains("job 102"), "{text}");
    // They are; so nothing is submitted, and another division is refused.
    let there = stand_ins(dir.path(), "echo $n", Some("shift 2; echo $2"));
    let (code, text) = submit(&there, &[]);
    assert!(code == Some(0) && text.contains("generate  job 102"), "{text}");
    let (code, text) = submit(&there, &["--shards", "2"]);
    assert!(code == Some(3) && text.contains("scancel 102"), "{text}");
    assert_eq!(calls(), 3);
    // They are gone, and submitted again. Now sbatch says nothing of a number, once, and then no command submits any more.
    let gone = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1";
    let silent = stand_ins(dir.path(), "echo thank you", Some(gone));
    for _ in 0..2 {
        let (code, text) = submit(&silent, &[]);
        assert!(code == Some(3) && text.contains("scancel --me --name=bdhs-generate"), "{text}");
        assert_eq!(calls(), 4);
    }
}
