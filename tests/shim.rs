//! Runs the CUDA kernels on the CPU: `kernels/*.cu` built by the system's C++ compiler with the host shim under
//! `tests/shim`, each against its plain reference. Skipped, with a message, where there is no C++ compiler.
//!
//! `CXX` names the compiler. The sanitizers run in `scripts/shim-sanitize`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FLAGS: [&str; 8] = [
    "-std=c++17",
    "-O2",
    "-g1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-fno-strict-aliasing",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The C++ compiler, or `None` after saying that the test is skipped.
fn compiler() -> Option<String> {
    let name = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let found = Command::new(&name).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        eprintln!(
            "skipped: no C++ compiler ({name}); install one or set CXX to run the kernels on the CPU"
        );
    }
    found.then_some(name)
}

/// Builds `tests/shim/<driver>.cpp` against the kernels in `kernels`.
fn build(compiler: &str, driver: &str, kernels: &Path, name: &str) -> PathBuf {
    let shim = root().join("tests/shim");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("shim-{name}"));
    let output = Command::new(compiler)
        .args(FLAGS)
        .arg("-I")
        .arg(&shim)
        .arg("-I")
        .arg(kernels)
        .arg(shim.join("runtime.cpp"))
        .arg(shim.join(format!("{driver}.cpp")))
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap();
    assert!(output.status.success(), "{driver}: {}", String::from_utf8_lossy(&output.stderr));
    program
}

fn run(program: &Path, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

/// At least 5,000 cases of one op, all right.
fn passes(op: &str) {
    let Some(compiler) = compiler() else { return };
    let program = build(&compiler, op, &root().join("kernels"), op);
    let output = run(&program, &[]);
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{op}: {}\n{stdout}{stderr}", output.status);
    println!("{stdout}");
    let cases: u64 = stdout
        .strip_prefix(&format!("{op}: "))
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{op} reports no cases: {stdout}"));
    assert!(cases >= 5000, "{op} ran {cases} cases");
}

#[test]
fn cosine() {
    passes("cosine");
}

#[test]
fn mask() {
    passes("mask");
}

#[test]
fn pool() {
    passes("pool");
}

#[test]
fn token() {
    passes("token");
}

/// A fault to plant: file, the text to replace, what to put there, and how many of its occurrences to skip.
type Fault = (&'static str, &'static str, &'static str, usize);

const FAULTS: [(&str, Fault); 6] = [
    ("missing barrier", ("common/reduce.cuh", "    __syncthreads();\n", "", 2)),
    (
        "read past the end",
        ("mask.cu", "for (; i < count; i += 32)", "for (; i <= count; i += 32)", 0),
    ),
    ("shared memory not cleared", ("common/select.cuh", "bins[i] = 0;", ";", 0)),
    ("wrong shuffle mask", ("common/platform.cuh", "0xffffffffu", "0x7fffffffu", 0)),
    (
        "32-bit offset",
        (
            "mask.cu",
            "args.row_of[r] * args.row_bytes",
            "(uint32_t)(args.row_of[r] * args.row_bytes)",
            0,
        ),
    ),
    (
        "shuffle in a divergent branch",
        ("mask.cu", "if (args.bitmask) {", "if (args.bitmask && threadIdx.x % 8 == 0) {", 0),
    ),
];

fn plant(text: &str, (_, from, to, skip): Fault) -> String {
    let (at, _) = text.match_indices(from).nth(skip).expect("the place of the fault");
    format!("{}{to}{}", &text[..at], &text[at + from.len()..])
}

/// The proof of the proof: the same run catches each fault planted in a copy of the kernels.
#[test]
fn planted_faults_are_caught() {
    let Some(compiler) = compiler() else { return };
    for (n, (name, fault)) in FAULTS.into_iter().enumerate() {
        let copy = tempfile::tempdir().unwrap();
        std::fs::create_dir(copy.path().join("common")).unwrap();
        for folder in ["", "common"] {
            for entry in std::fs::read_dir(root().join("kernels").join(folder)).unwrap() {
                let from = entry.unwrap().path();
                if from.is_file() {
                    let to = copy.path().join(folder).join(from.file_name().unwrap());
                    std::fs::copy(&from, to).unwrap();
                }
            }
        }
        let path = copy.path().join(fault.0);
        let planted = plant(&std::fs::read_to_string(&path).unwrap(), fault);
        std::fs::write(&path, planted).unwrap();
        let program = build(&compiler, "mask", copy.path(), &format!("fault-{n}"));
        let output = run(&program, &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{name}: not caught");
        println!("{name}: {}; {}", output.status, stderr.lines().next().unwrap_or("no message"));
    }
}
