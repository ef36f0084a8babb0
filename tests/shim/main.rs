//! Runs the CUDA kernels on the CPU: `kernels/*.cu` built by the system's C++ compiler with the host shim beside this
//! file, each against its plain reference (`passes`) and against the Rust CPU path (`compare`). Skipped, with a
//! message, where there is no C++ compiler.
//!
//! `CXX` names the compiler. The sanitizers run in `scripts/shim-sanitize`.

mod compare;
#[path = "../numbers/token.rs"]
mod exact;
#[path = "../numbers/mod.rs"]
mod numbers;
#[path = "../numbers/pairs.rs"]
mod pairs;
#[path = "../common/skip.rs"]
mod skip;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use skip::compiler;

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

const RUNTIME: [&str; 4] = ["fibers", "launch", "collectives", "halves"];

fn compile(compiler: &str, kernels: &Path, args: &[PathBuf], out: &Path) {
    let mut command = Command::new(compiler);
    command.args(FLAGS).arg("-I").arg(root().join("tests/shim")).arg("-I").arg(kernels);
    let output = command.args(args).arg("-o").arg(out).output().unwrap();
    assert!(output.status.success(), "{out:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The shim's runtime, compiled once.
fn runtime(compiler: &str) -> &'static [PathBuf] {
    static OBJECTS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    OBJECTS.get_or_init(|| {
        let object = |name: &str| {
            let source = root().join("tests/shim").join(name).with_extension("cpp");
            let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("shim-{name}.o"));
            compile(compiler, &root().join("kernels"), &["-c".into(), source], &to);
            to
        };
        RUNTIME.map(object).to_vec()
    })
}

/// Builds `tests/shim/<driver>.cpp` against the kernels in `kernels`.
fn build(compiler: &str, driver: &str, kernels: &Path, name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("shim-{name}"));
    let mut args = runtime(compiler).to_vec();
    args.push(root().join("tests/shim").join(driver).with_extension("cpp"));
    compile(compiler, kernels, &args, &program);
    program
}

const OPS: [&str; 8] = ["act", "attend", "cosine", "mask", "norm", "pool", "rope", "token"];

/// The driver of an op with the real kernels, built once; `None` without a compiler.
fn driver(op: &str) -> Option<&'static Path> {
    static PROGRAMS: [OnceLock<Option<PathBuf>>; OPS.len()] =
        [const { OnceLock::new() }; OPS.len()];
    let slot = OPS.iter().position(|&name| name == op).expect("an op with a driver");
    PROGRAMS[slot]
        .get_or_init(|| Some(build(&compiler()?, op, &root().join("kernels"), op)))
        .as_deref()
}

fn run(program: &Path, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

/// At least 5,000 cases of one op, all right.
fn passes(op: &str) {
    passes_of(op, 5000);
}

fn passes_of(op: &str, least: u64) {
    let Some(program) = driver(op) else { return };
    let output = run(program, &[]);
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{op}: {}\n{stdout}{stderr}", output.status);
    println!("{stdout}");
    let cases: u64 = stdout
        .strip_prefix(&format!("{op}: "))
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{op} reports no cases: {stdout}"));
    assert!(cases >= least, "{op} ran {cases} cases");
}

/// Fewer cases: each multiplies tiles, and goes through the kernel twice.
#[test]
fn attend() {
    passes_of("attend", 1500);
}

#[test]
fn act() {
    passes("act");
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
fn norm() {
    passes("norm");
}

#[test]
fn pool() {
    passes("pool");
}

#[test]
fn rope() {
    passes("rope");
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

/// A copy of the kernels with one fault.
fn faulty_kernels(fault: Fault) -> tempfile::TempDir {
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
    copy
}

/// The proof of the proof: the same run catches each fault planted in a copy of the kernels.
#[test]
fn planted_faults_are_caught() {
    let Some(compiler) = compiler() else { return };
    for (n, (name, fault)) in FAULTS.into_iter().enumerate() {
        let kernels = faulty_kernels(fault);
        let program = build(&compiler, "mask", kernels.path(), &format!("fault-{n}"));
        let output = run(&program, &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{name}: not caught");
        println!("{name}: {}; {}", output.status, stderr.lines().next().unwrap_or("no message"));
    }
}

/// Cases from Rust through the kernels and back: `cases` as `tests/shim/driver.hpp` describes.
fn replay(program: &Path, cases: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let [from, to] = ["cases", "results"].map(|name| folder.path().join(name));
    std::fs::write(&from, cases).unwrap();
    let output =
        Command::new(program).arg("replay").arg(&from).arg(&to).output().expect("the driver runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {}\n{stderr}", program.display(), output.status);
    std::fs::read(&to).unwrap()
}

/// Differences that a comparison must see, each planted in the kernels of its op.
const DIFFERENCES: [(&str, &str, Fault); 4] = [
    ("mask", "another bar", ("mask.cu", "word >= args.bar", "word > args.bar + 0x1000000", 0)),
    ("token", "another stream", ("token.cu", "PURPOSE_TOKEN = 3", "PURPOSE_TOKEN = 4", 0)),
    (
        "pool",
        "another divisor",
        ("pool.cu", "return (float)sqrt(n);", "return sqrtf((float)n + 1);", 0),
    ),
    ("cosine", "no guard band", ("cosine.cu", "<= bound;", "<= 0.0 * bound;", 0)),
];

#[test]
fn comparisons_see_planted_differences() {
    let Some(compiler) = compiler() else { return };
    for (op, name, fault) in DIFFERENCES {
        let kernels = faulty_kernels(fault);
        let program = build(&compiler, op, kernels.path(), &format!("other-{op}"));
        let outcome = match op {
            "mask" => compare::mask(&program, 60),
            "token" => compare::token(&program, 60),
            "pool" => compare::pool(&program, 60),
            _ => compare::decisions(&program, 20_000),
        };
        let seen = outcome.expect_err(name);
        println!("{op}, {name}: {seen}");
    }
}

#[test]
fn masks_equal_the_cpu_path_bit_for_bit() {
    if let Some(program) = driver("mask") {
        println!("mask: {}", compare::mask(program, 1500).unwrap());
    }
}

#[test]
fn tokens_equal_the_cpu_path() {
    if let Some(program) = driver("token") {
        println!("token: {}", compare::token(program, 1000).unwrap());
    }
}

#[test]
fn pooled_vectors_equal_the_cpu_path() {
    if let Some(program) = driver("pool") {
        println!("pool: {}", compare::pool(program, 1000).unwrap());
    }
}

#[test]
fn cosine_rows_equal_the_cpu_path() {
    if let Some(program) = driver("cosine") {
        println!("cosine rows: {}", compare::cosine_rows(program, 800).unwrap());
    }
}

/// 100,000 pairs around thresholds: the kernel's decisions are those of float64.
#[test]
fn kernel_decisions_are_those_of_float64() {
    if let Some(program) = driver("cosine") {
        println!("cosine decisions: {}", compare::decisions(program, 100_000).unwrap());
    }
}
