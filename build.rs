//! Compiles `kernels/*.cu` into the crate if the feature `cuda-kernels` is on, which `cuda` turns on. Needs nvcc and a C++
//! compiler; no GPU, no driver, no network. On docs.rs it compiles nothing. With `cuda-kernels` alone it also compiles nothing
//! where no nvcc is found, so that `cargo check` works there; opening a GPU then says that the build has no kernels.
//!
//! Environment: `NVCC`, `CUDA_HOME`, `CUDA_PATH` and `PATH` say where nvcc is, `NVCC_CCBIN` which C++ compiler it uses,
//! `BDHS_CUDA_ARCHS` what is compiled for (default: `src/ops/cuda/support.rs`).

#[path = "build/compile.rs"]
mod compile;
#[path = "src/ops/cuda/support.rs"]
#[allow(dead_code)]
mod support;
#[path = "build/toolkit.rs"]
mod toolkit;

use std::path::PathBuf;
use std::process::ExitCode;

use toolkit::Problem;

fn main() -> ExitCode {
    for path in ["build.rs", "build/compile.rs", "build/toolkit.rs", "src/ops/cuda/support.rs"] {
        println!("cargo::rerun-if-changed={path}");
    }
    if std::env::var_os("CARGO_FEATURE_CUDA_KERNELS").is_none() {
        return ExitCode::SUCCESS;
    }
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // `cargo::error` shows the lines by themselves, without the script's other output.
            message.lines().for_each(|line| println!("cargo::error={line}"));
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    println!("cargo::rerun-if-env-changed=DOCS_RS");
    if std::env::var_os("DOCS_RS").is_some() {
        return compile::write_table(&out, support::OLDEST_TOOLKIT, &[]);
    }
    println!("cargo::rerun-if-env-changed=BDHS_CUDA_ARCHS");
    let archs = std::env::var("BDHS_CUDA_ARCHS").unwrap_or_else(|_| support::DEFAULT.into());
    let targets =
        support::parse_targets(&archs).map_err(|error| format!("BDHS_CUDA_ARCHS: {error}"))?;
    let toolkit = match toolkit::find() {
        Ok(toolkit) => toolkit,
        Err(Problem::Missing(message)) if std::env::var_os("CARGO_FEATURE_CUDA").is_none() => {
            let first = message.lines().next().unwrap_or_default();
            println!("cargo::warning=no kernels are compiled: {first}");
            return compile::write_table(&out, support::OLDEST_TOOLKIT, &[]);
        }
        Err(Problem::Missing(message) | Problem::Unusable(message)) => return Err(message),
    };
    compile::all(&toolkit, &targets, &out)?;
    compile::write_table(&out, toolkit.version, &targets)
}
