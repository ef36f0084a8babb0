//! The kernels in another project: a throw-away crate with `default-features = false` builds and runs without the toolkit,
//! offline, and has few direct dependencies.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `examples/embed_kernels.rs` as the program of a crate of its own.
fn project() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("standalone");
    std::fs::create_dir_all(folder.join("src")).unwrap();
    let manifest = format!(
        "[package]\nname = \"standalone\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
         [dependencies]\nbdhs = {{ path = {:?}, default-features = false }}\ncandle-core = \"0.11.1\"\n\n\
         [workspace]\n\n[profile.dev]\ndebug = false\n",
        root().to_str().unwrap(),
    );
    // Untouched files keep their times, so that a second run builds nothing.
    let put = |name: &str, text: &str| {
        let path = folder.join(name);
        if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return;
        }
        std::fs::write(&path, text).unwrap();
    };
    put("Cargo.toml", &manifest);
    let example = std::fs::read_to_string(root().join("examples/embed_kernels.rs")).unwrap();
    put("src/main.rs", &example);
    // The versions that this repository is tested with; cargo drops what the crate does not need.
    std::fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    folder
}

fn cargo(folder: &Path, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(args)
        .arg("--offline")
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn another_project_gets_the_kernels_alone() {
    let folder = project();
    let tree = cargo(
        &folder,
        &["tree", "--package", "bdhs", "--depth", "1", "--edges", "normal", "--prefix", "none"],
    );
    let direct: BTreeSet<&str> =
        tree.lines().skip(1).filter_map(|line| line.split(' ').next()).collect();
    let expected = ["bytemuck", "candle-core", "gemm", "half", "rayon", "thiserror"];
    assert_eq!(direct, BTreeSet::from(expected), "{tree}");

    // Buffers alone bring cudarc, and nothing of candle's CUDA build.
    let features = ["tree", "--package", "bdhs", "--edges", "normal", "--prefix", "none"];
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let buffers = manifest.replace(
        "default-features = false }",
        "default-features = false, features = [\"cuda-kernels\"] }",
    );
    assert_ne!(manifest, buffers);
    std::fs::write(folder.join("Cargo.toml"), buffers).unwrap();
    let tree = cargo(&folder, &features);
    std::fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains("cudarc"), "{tree}");
    assert!(!names.contains("candle-kernels"), "{tree}");

    let seen = cargo(&folder, &["run", "--quiet"]);
    assert!(seen.contains("tokens to [300, 256] F16"), "{seen}");
    assert!(seen.contains("of 44850 pairs"), "{seen}");
}
