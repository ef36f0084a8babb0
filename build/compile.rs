//! Compiles the kernels, each file into one fatbin that holds every target.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::support::{Kind, Target, Version};
use super::toolkit::Toolkit;

/// What is compiled: `kernels/<name>.cu`.
pub const KERNELS: [&str; 8] = ["act", "attend", "cosine", "mask", "norm", "pool", "rope", "token"];

/// What those include, below `kernels/`.
pub const HEADERS: [&str; 15] = [
    "attend_float.cuh",
    "attend_half.cuh",
    "attend_work.cuh",
    "common/async.cuh",
    "common/dtype.cuh",
    "common/grid.cuh",
    "common/hopper.cuh",
    "common/mma.cuh",
    "common/philox.cuh",
    "common/platform.cuh",
    "common/reduce.cuh",
    "common/select.cuh",
    "cosine_exact.cuh",
    "cosine_hopper.cuh",
    "cosine_pairs.cuh",
];

/// Compiles all kernels to `<out>/<name>.fatbin`, as many files at a time as cargo allows.
pub fn all(toolkit: &Toolkit, targets: &[Target], out: &Path) -> Result<(), String> {
    for header in HEADERS {
        println!("cargo::rerun-if-changed=kernels/{header}");
    }
    for name in KERNELS {
        println!("cargo::rerun-if-changed=kernels/{name}.cu");
    }
    let jobs = std::env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(vec![]);
    std::thread::scope(|scope| {
        for _ in 0..KERNELS.len().min(jobs) {
            scope.spawn(|| {
                while let Some(name) = KERNELS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(message) = one(toolkit, targets, name, out) {
                        failed.lock().unwrap_or_else(|e| e.into_inner()).push(message);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(|e| e.into_inner());
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}

fn one(toolkit: &Toolkit, targets: &[Target], name: &str, out: &Path) -> Result<(), String> {
    let source = format!("kernels/{name}.cu");
    let mut command = Command::new(&toolkit.nvcc);
    command.args([
        "-fatbin",
        "-std=c++17",
        "-O3",
        "-Werror",
        "all-warnings",
        "-Xfatbin=-compress-all",
    ]);
    for target in targets {
        command.arg("-gencode").arg(target.gencode());
    }
    command.arg(&source).arg("-o").arg(out.join(format!("{name}.fatbin")));
    let output =
        command.output().map_err(|e| format!("{}: cannot be run: {e}", toolkit.nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();
    let hint = if text.contains("cicc") || text.contains("nvvm") {
        "\nThe toolkit lacks its compiler proper (package nvidia-nvvm)."
    } else if text.contains("cc1plus")
        || text.contains("host compiler")
        || text.contains("unsupported GNU version")
    {
        "\nnvcc needs a C++ compiler that it supports; NVCC_CCBIN names another one."
    } else {
        ""
    };
    Err(format!(
        "{source}: {} ended with {}:\n{}{hint}",
        toolkit.nvcc.display(),
        output.status,
        text.trim()
    ))
}

/// Writes what `src/ops/cuda/module.rs` includes: the fatbins and what they were made for; none without targets.
pub fn write_table(out: &Path, toolkit: Version, targets: &[Target]) -> Result<(), String> {
    let mut text = format!("const TOOLKIT: Version = Version({}, {});\n", toolkit.0, toolkit.1);
    text += "const TARGETS: &[Target] = &[\n";
    for Target { kind, capability } in targets {
        let kind = match kind {
            Kind::Binary => "Binary",
            Kind::Specific => "Specific",
            Kind::Ptx => "Ptx",
        };
        let Version(major, minor) = capability;
        let _ = writeln!(
            text,
            "    Target {{ kind: support::Kind::{kind}, capability: Version({major}, {minor}) }},"
        );
    }
    text += "];\n";
    for name in KERNELS {
        let value = if targets.is_empty() {
            "None".into()
        } else {
            format!("Some(include_bytes!(\"{name}.fatbin\"))")
        };
        let _ = writeln!(text, "const {}: Option<&[u8]> = {value};", name.to_uppercase());
    }
    let path = out.join("kernels.rs");
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}
