//! A run that is killed and resumed gives the bytes of a run that was left alone.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::common::{dataset, exports, succeed, sweep};

/// Many small waves, so that a kill can fall between and inside them.
fn small_sweep(data: &Path, out: &Path) -> Command {
    let mut command = sweep(data, out);
    command.args(["--rho", "0.5", "--token-budget", "100"]).stdout(Stdio::null());
    command
}

#[test]
fn kill_at_twenty_random_moments_changes_no_byte() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let data = dataset(dir.path(), 8);
    let calm = dir.path().join("calm");
    let begun = Instant::now();
    succeed(&mut small_sweep(&data, &calm));
    let whole = begun.elapsed();
    assert_eq!(exports(&calm).len(), 30, "two encoders, five thresholds, two formats and a card");

    let (mut killed, mut finished, mut state) = (0, 0, 0x2545_f491_4f6c_dd1d_u64);
    let mut out = dir.path().join("run-0");
    while killed < 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let pause = whole.mul_f64((state >> 40) as f64 / (1u64 << 24) as f64);
        let mut child = small_sweep(&data, &out).stderr(Stdio::null()).spawn().expect("it starts");
        std::thread::sleep(pause.max(Duration::from_millis(1)));
        if child.try_wait().expect("a status").is_none() {
            child.kill().expect("SIGKILL");
            killed += 1;
        }
        if child.wait().expect("a status").success() {
            compare(&out, &calm);
            finished += 1;
            out = dir.path().join(format!("run-{finished}"));
        }
    }
    succeed(&mut small_sweep(&data, &out));
    compare(&out, &calm);
    println!("{killed} kills, {finished} runs finished between them");
}

fn compare(run: &Path, calm: &Path) {
    for ((name, bytes), (expected_name, expected)) in exports(run).iter().zip(&exports(calm)) {
        assert_eq!(name, expected_name);
        let same = bytes == expected;
        assert!(same, "{} differs from the undisturbed run's", run.join(name).display());
    }
    assert_eq!(exports(run).len(), exports(calm).len());
}
