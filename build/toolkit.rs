//! Finds nvcc.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::support::{OLDEST_TOOLKIT, Version};

/// A working nvcc.
pub struct Toolkit {
    pub nvcc: PathBuf,
    pub version: Version,
}

/// Why there is no toolkit.
pub enum Problem {
    /// No nvcc anywhere.
    Missing(String),
    /// An nvcc that cannot be used.
    Unusable(String),
}

const HOW: &str = "Get it with NVIDIA's installer, your distribution (nvidia-cuda-toolkit), or without root by\n    \
                   export CUDA_HOME=$(scripts/cuda-toolkit --candle) PATH=$CUDA_HOME/bin:$PATH\n\
                   or build without the features `cuda` and `cuda-kernels`: everything runs on the CPU.";

/// The nvcc to use: what `NVCC` names; else below `CUDA_HOME` and `CUDA_PATH`; on `PATH`; in the usual folders; as a Python
/// package of the active environment; or from `scripts/cuda-toolkit`.
pub fn find() -> Result<Toolkit, Problem> {
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN", "NVCC_APPEND_FLAGS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let nvcc = match env::var_os("NVCC") {
        Some(path) if Path::new(&path).is_file() => PathBuf::from(path),
        Some(path) => {
            let path = Path::new(&path).display();
            return Err(Problem::Unusable(format!("NVCC is {path}, which is no file")));
        }
        None => {
            let places = places(|name| env::var_os(name));
            match places.iter().find(|place| place.is_file()) {
                Some(place) => place.clone(),
                None => return Err(Problem::Missing(nothing_found(&places))),
            }
        }
    };
    println!("cargo::rerun-if-changed={}", nvcc.display());
    let version = Command::new(&nvcc).arg("--version").output().map_err(|error| {
        Problem::Unusable(format!("{}: cannot be run: {error}", nvcc.display()))
    })?;
    let text = String::from_utf8_lossy(&version.stdout);
    let Some(version) = parse_version(&text) else {
        return Err(Problem::Unusable(format!(
            "{} --version says no `release X.Y`, but {text:?}",
            nvcc.display()
        )));
    };
    if version < OLDEST_TOOLKIT {
        return Err(Problem::Unusable(format!(
            "{} is CUDA {version}, expected {OLDEST_TOOLKIT} or later",
            nvcc.display()
        )));
    }
    if text.contains("bdhs stand-in") {
        // scripts/nvcc-stand-in compiles nothing: a real one may take its place any time.
        println!("cargo::rerun-if-env-changed=PATH");
    }
    Ok(Toolkit { nvcc, version })
}

/// Where nvcc may be, in order; `variable` reads the environment.
pub fn places(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let program = if cfg!(windows) { "nvcc.exe" } else { "nvcc" };
    let mut folders: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"]
        .iter()
        .filter_map(|name| variable(name).filter(|value| !value.is_empty()))
        .map(|home| Path::new(&home).join("bin"))
        .collect();
    if let Some(path) = variable("PATH") {
        folders.extend(env::split_paths(&path));
    }
    folders
        .extend(["/usr/local/cuda/bin", "/opt/cuda/bin", "/usr/lib/cuda/bin"].map(PathBuf::from));
    folders.extend(children("/usr/local", "cuda-").into_iter().rev().map(|home| home.join("bin")));
    for name in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        let Some(prefix) = variable(name) else { continue };
        for python in children(Path::new(&prefix).join("lib"), "python3") {
            let packages = python.join("site-packages/nvidia");
            folders
                .extend(children(&packages, "cu").into_iter().rev().map(|home| home.join("bin")));
        }
    }
    let cache = variable("BDHS_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&variable("HOME")?).join(".cache/bdhs")));
    folders.extend(cache.map(|cache| cache.join("cuda-13.0/nvidia/cu13/bin")));
    folders.into_iter().map(|folder| folder.join(program)).collect()
}

/// Entries of a folder whose names begin with `prefix`, sorted; none if it cannot be read.
fn children(folder: impl AsRef<Path>, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .collect();
    found.sort();
    found
}

fn nothing_found(places: &[PathBuf]) -> String {
    let looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    format!(
        "the feature `cuda` compiles kernels and needs nvcc, which is at none of {}.\n{HOW}",
        looked.join(", ")
    )
}

/// The X.Y of `release X.Y,`.
pub fn parse_version(text: &str) -> Option<Version> {
    let rest = &text[text.find("release ")? + "release ".len()..];
    let (major, rest) = rest.split_once('.')?;
    let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some(Version(major.parse().ok()?, minor.parse().ok()?))
}
