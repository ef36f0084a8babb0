//! Which GPUs and drivers a build runs on, how its targets are read, and what the build script looks for. Needs no GPU and no
//! CUDA.

#[path = "../../build/compile.rs"]
#[allow(dead_code)]
mod compile;
#[path = "../../src/ops/cuda/support.rs"]
#[allow(dead_code)]
mod support;
#[path = "../../build/toolkit.rs"]
#[allow(dead_code)]
mod toolkit;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use support::{DEFAULT, Version, choose, parse_targets};

const CUDA_13: Version = Version(13, 0);

/// The target chosen by a default build, or its message.
fn default_on(gpu: (u32, u32), driver: (u32, u32)) -> Result<String, String> {
    let targets = parse_targets(DEFAULT).unwrap();
    choose(&targets, CUDA_13, Version(gpu.0, gpu.1), Version(driver.0, driver.1))
        .map(|t| t.to_string())
}

#[test]
fn every_generation_gets_its_target() {
    let table = [
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 7), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90a"),
        ((10, 0), "compute_90"),
        ((12, 0), "compute_90"),
    ];
    for (gpu, expected) in table {
        for driver in [(13, 0), (13, 2), (14, 0)] {
            assert_eq!(default_on(gpu, driver).as_deref(), Ok(expected), "{gpu:?} {driver:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_said() {
    let cases = [
        ((7, 5), (13, 0), ["7.5 (Turing)", "8.0 (Ampere) or later"]),
        ((6, 1), (13, 0), ["6.1 (Pascal)", "--device cpu"]),
        ((9, 0), (12, 8), ["the driver knows CUDA up to 12.8", "driver 580 or later"]),
        ((9, 0), (0, 0), ["the driver knows CUDA up to 0.0", "made with CUDA 13.0"]),
    ];
    for (gpu, driver, parts) in cases {
        let message = default_on(gpu, driver).unwrap_err();
        for part in parts {
            assert!(message.contains(part), "{message}: no {part:?}");
        }
    }
    // No target for this GPU.
    let only = parse_targets("90a").unwrap();
    let message = choose(&only, CUDA_13, Version(8, 6), CUDA_13).unwrap_err();
    assert!(message.contains("sm_90a only") && message.contains("BDHS_CUDA_ARCHS=86"), "{message}");
    // A binary of one generation does not run on the next; PTX needs a driver as new as its toolkit.
    assert!(choose(&only, CUDA_13, Version(10, 0), CUDA_13).is_err());
    let ptx = parse_targets("compute_80").unwrap();
    let message = choose(&ptx, Version(13, 1), Version(9, 0), CUDA_13).unwrap_err();
    assert!(
        message.contains("PTX of CUDA 13.1") && message.contains("update the driver"),
        "{message}"
    );
    // A binary does not: minor versions of CUDA are compatible.
    let binary = parse_targets("80").unwrap();
    assert!(choose(&binary, Version(13, 1), Version(8, 0), CUDA_13).is_ok());
}

#[test]
fn targets_are_read() {
    let names = |text: &str| -> Result<Vec<String>, String> {
        Ok(parse_targets(text)?.iter().map(ToString::to_string).collect())
    };
    assert_eq!(names(DEFAULT).unwrap(), ["sm_80", "sm_86", "sm_89", "sm_90a", "compute_90"]);
    assert_eq!(names("sm_80;  90a").unwrap(), ["sm_80", "sm_90a"]);
    assert_eq!(names("120,compute_100").unwrap(), ["sm_120", "compute_100"]);
    for (text, part) in [
        ("", "names no target"),
        (" , ", "names no target"),
        ("75", "too old"),
        ("compute_70", "too old"),
        ("9", "is no target"),
        ("sm_9x", "is no target"),
        ("90f", "is no target"),
        ("8000", "is no target"),
        ("compute_90a", "one generation only"),
        ("80,sm_80", "named twice"),
    ] {
        let message = names(text).unwrap_err();
        assert!(message.contains(part), "{text:?}: {message}");
    }
    let gencode: Vec<String> =
        parse_targets("80,90a,compute_90").unwrap().iter().map(|t| t.gencode()).collect();
    let expected = [
        "arch=compute_80,code=sm_80",
        "arch=compute_90a,code=sm_90a",
        "arch=compute_90,code=compute_90",
    ];
    assert_eq!(gencode, expected);
}

#[test]
fn versions_are_read() {
    let text =
        "nvcc: NVIDIA (R) Cuda compiler driver\n\nCuda compilation tools, release 13.0, V13.0.88\n";
    assert_eq!(toolkit::parse_version(text), Some(Version(13, 0)));
    assert_eq!(toolkit::parse_version("release 12.10, V12"), Some(Version(12, 10)));
    for bad in ["", "release", "release 13", "release x.y"] {
        assert_eq!(toolkit::parse_version(bad), None, "{bad:?}");
    }
    assert_eq!(Version::from_driver(13020), Version(13, 2));
    assert_eq!(Version::from_driver(-1), Version(0, 0));
}

#[test]
fn nvcc_is_looked_for_in_order() {
    let home = tempfile::tempdir().unwrap();
    let package = home.path().join("venv/lib/python3.11/site-packages/nvidia/cu13/bin");
    std::fs::create_dir_all(&package).unwrap();
    let places = toolkit::places(|name| -> Option<OsString> {
        Some(match name {
            "CUDA_HOME" => "/one".into(),
            "CUDA_PATH" => "/two".into(),
            "PATH" => "/three:/four".into(),
            "VIRTUAL_ENV" => home.path().join("venv").into(),
            "HOME" => home.path().into(),
            _ => return None,
        })
    });
    let at = |place: PathBuf| {
        places.iter().position(|p| *p == place).unwrap_or_else(|| panic!("{}", place.display()))
    };
    let order = [
        at("/one/bin/nvcc".into()),
        at("/two/bin/nvcc".into()),
        at("/three/nvcc".into()),
        at("/four/nvcc".into()),
        at("/usr/local/cuda/bin/nvcc".into()),
        at(package.join("nvcc")),
        at(home.path().join(".cache/bdhs/cuda-13.0/nvidia/cu13/bin/nvcc")),
    ];
    assert!(order.is_sorted(), "{order:?}");
    // Nothing set: still the usual folders, and no panic.
    assert!(toolkit::places(|_| None).contains(&PathBuf::from("/usr/local/cuda/bin/nvcc")));
}

/// The build script's lists are explicit; this test keeps them whole.
#[test]
fn every_kernel_file_is_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut found: Vec<String> = vec![];
    for folder in ["", "common"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            if name.ends_with(".cu") || name.ends_with(".cuh") {
                found.push(name);
            }
        }
    }
    let kernels = compile::KERNELS.iter().map(|name| format!("{name}.cu"));
    let mut listed: Vec<String> = kernels.chain(compile::HEADERS.map(str::to_owned)).collect();
    found.sort();
    listed.sort();
    assert_eq!(found, listed);
}
