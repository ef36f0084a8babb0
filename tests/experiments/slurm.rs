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
