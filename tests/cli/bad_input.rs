//! Bad input, one table: each case ends with its exit code and a message that names the place, or is
//! handled where a user would expect it. What was computed before stays.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::common::{self, bdhs, dataset, disk::Disk, encoders, golden, json, succeed, sweep};
use serde_json::json;

/// A case: its name, what is broken in a fresh folder (which also holds a sound data set, a copy of the
/// model and one of an encoder), further arguments, exit code, and what the message must say.
struct Case {
    name: &'static str,
    spoil: fn(&Setting),
    arguments: &'static [&'static str],
    code: i32,
    says: &'static [&'static str],
}

struct Setting {
    dir: PathBuf,
}

impl Setting {
    fn new(dir: &Path) -> Self {
        dataset(dir, 3);
        copy(&common::llava(), &dir.join("model"));
        copy(&encoders()[0], &dir.join("encoder"));
        Self { dir: dir.to_path_buf() }
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.dir.join(name), bytes).unwrap();
    }

    fn edit(&self, name: &str, change: impl Fn(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.dir.join(name)).unwrap();
        change(&mut bytes);
        self.write(name, bytes);
    }

    /// Replaces the data set by rows with these references, about the first image.
    fn references(&self, texts: &[&str]) {
        let rows: Vec<_> =
            texts.iter().enumerate().map(|(i, text)| row(&i.to_string(), text)).collect();
        self.write("data.json", serde_json::to_string(&rows).unwrap());
    }

    /// Rewrites the tensors of a safetensors file.
    fn tensors(
        &self,
        name: &str,
        change: impl Fn(&str, candle_core::Tensor) -> Option<candle_core::Tensor>,
    ) {
        let path = self.dir.join(name);
        let tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
        let changed: std::collections::HashMap<_, _> = tensors
            .into_iter()
            .filter_map(|(name, tensor)| Some((name.clone(), change(&name, tensor)?)))
            .collect();
        candle_core::safetensors::save(&changed, &path).unwrap();
    }
}

fn row(id: &str, text: &str) -> serde_json::Value {
    json!({"id": id, "image": "images/0.png", "conversations": [
        {"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": text}]})
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A tensor of the language model, in either naming.
fn is_norm(name: &str) -> bool {
    name.contains("language_model") && name.ends_with("layers.0.input_layernorm.weight")
}

const CASES: &[Case] = &[
    // ---- weights ----
    Case {
        name: "missing weights",
        spoil: |s| fs::remove_file(s.dir.join("model/model.safetensors")).unwrap(),
        arguments: &[],
        code: 3,
        says: &["model"],
    },
    Case {
        name: "truncated weights",
        spoil: |s| s.edit("model/model.safetensors", |b| b.truncate(b.len() / 2)),
        arguments: &[],
        code: 3,
        says: &["model.safetensors"],
    },
    Case {
        name: "missing tensor",
        spoil: |s| s.tensors("model/model.safetensors", |n, t| (!is_norm(n)).then_some(t)),
        arguments: &[],
        code: 3,
        says: &["layers.0.input_layernorm.weight"],
    },
    Case {
        name: "wrong shape",
        spoil: |s| {
            s.tensors("model/model.safetensors", |n, t| {
                Some(if is_norm(n) { t.narrow(0, 0, 3).unwrap().contiguous().unwrap() } else { t })
            })
        },
        arguments: &[],
        code: 3,
        says: &["layers.0.input_layernorm.weight", "3"],
    },
    Case {
        name: "wrong dtype",
        spoil: |s| {
            s.tensors("model/model.safetensors", |n, t| {
                Some(if is_norm(n) { t.to_dtype(candle_core::DType::U8).unwrap() } else { t })
            })
        },
        arguments: &[],
        code: 3,
        says: &["layers.0.input_layernorm.weight", "U8"],
    },
    Case {
        name: "NaN weights",
        spoil: |s| {
            s.tensors("model/model.safetensors", |n, t| {
                Some(if is_norm(n) { t.affine(f64::NAN, 0.0).unwrap() } else { t })
            })
        },
        arguments: &[],
        code: 3,
        says: &["layers.0.input_layernorm.weight", "NaN"],
    },
    Case {
        name: "unknown architecture",
        spoil: |s| {
            s.edit("model/config.json", |b| {
                *b = String::from_utf8_lossy(b)
                    .replace("\"llava_next\"", "\"paligemma\"")
                    .into_bytes()
            })
        },
        arguments: &[],
        code: 3,
        says: &["paligemma"],
    },
    Case {
        name: "pickle instead of safetensors",
        spoil: |s| {
            fs::rename(
                s.dir.join("encoder/model.safetensors"),
                s.dir.join("encoder/pytorch_model.bin"),
            )
            .unwrap()
        },
        arguments: &[],
        code: 3,
        says: &["pytorch_model.bin", "safetensors"],
    },
    Case {
        name: "unknown encoder",
        spoil: |s| fs::rename(s.dir.join("encoder"), s.dir.join("elsewhere")).unwrap(),
        arguments: &[],
        code: 4,
        says: &["encoder"],
    },
    Case {
        name: "encoder of an unknown architecture",
        spoil: |s| {
            s.edit("encoder/config.json", |b| {
                *b = String::from_utf8_lossy(b).replace("\"bert\"", "\"deberta\"").into_bytes()
            })
        },
        arguments: &[],
        code: 3,
        says: &["deberta"],
    },
    Case {
        name: "no model folder",
        spoil: |s| fs::remove_dir_all(s.dir.join("model")).unwrap(),
        arguments: &[],
        code: 4,
        says: &["model"],
    },
    // ---- images ----
    Case {
        name: "zero-byte image",
        spoil: |s| s.write("images/1.png", ""),
        arguments: &[],
        code: 3,
        says: &["1.png", "empty"],
    },
    Case {
        name: "corrupt image",
        spoil: |s| s.edit("images/1.png", |b| b.iter_mut().skip(40).for_each(|x| *x ^= 0x5a)),
        arguments: &["--rho", "0.1"],
        code: 3,
        says: &["1.png"],
    },
    Case {
        name: "not an image",
        spoil: |s| s.write("images/1.png", "hello"),
        arguments: &[],
        code: 3,
        says: &["1.png", "image format"],
    },
    Case {
        name: "image of 20,000 pixels a side",
        spoil: |s| s.write("images/1.png", huge_png()),
        arguments: &[],
        code: 3,
        says: &["1.png", "20000 x 20000"],
    },
    Case {
        name: "missing image",
        spoil: |s| fs::remove_file(s.dir.join("images/1.png")).unwrap(),
        arguments: &[],
        code: 3,
        says: &["data.json", "1.png"],
    },
    Case {
        name: "image path that escapes",
        spoil: |s| {
            s.edit("data.json", |b| {
                *b = String::from_utf8_lossy(b)
                    .replace("images/1.png", "../outside.png")
                    .into_bytes()
            })
        },
        arguments: &[],
        code: 3,
        says: &["data.json", "../outside.png"],
    },
    Case {
        name: "palette image",
        spoil: |s| indexed().save_to(&s.dir.join("images/1.png")),
        arguments: &[],
        code: 0,
        says: &[],
    },
    Case {
        name: "CMYK JPEG",
        spoil: |s| {
            fs::copy(golden("../fixtures/cmyk.jpg"), s.dir.join("images/1.png")).unwrap();
        },
        arguments: &[],
        code: 0,
        says: &[],
    },
    // ---- references and rows ----
    Case {
        name: "empty reference",
        spoil: |s| s.references(&["Fine.", ""]),
        arguments: &[],
        code: 3,
        says: &["data.json", "line"],
    },
    Case {
        name: "one word, no full stop, emoji, right-to-left",
        spoil: |s| {
            s.references(&[
                "Cat",
                "A dog without a full stop",
                "A smile 😀👩‍👩‍👧 here. 🎉",
                "كلب صغير يجلس. هنا قطة.",
            ])
        },
        arguments: &[],
        code: 0,
        says: &[],
    },
    Case {
        name: "10,000 words",
        spoil: |s| s.references(&["word ".repeat(10_000).trim()]),
        arguments: &[],
        code: 3,
        says: &["data.json", "positions"],
    },
    Case {
        name: "duplicate ids",
        spoil: |s| {
            s.write(
                "data.json",
                serde_json::to_string(&[row("a", "One."), row("a", "Two.")]).unwrap(),
            )
        },
        arguments: &[],
        code: 0,
        says: &[],
    },
    Case {
        name: "malformed line in the middle",
        spoil: |s| {
            s.write(
                "data.json",
                format!("{}\n{{\"id\": \n{}\n", row("a", "One."), row("b", "Two.")),
            )
        },
        arguments: &[],
        code: 3,
        says: &["data.json", "line 2"],
    },
    Case {
        name: "placeholder without an image",
        spoil: |s| {
            s.edit("data.json", |b| {
                *b = String::from_utf8_lossy(b).replace("<image>", "<image><image>").into_bytes()
            })
        },
        arguments: &[],
        code: 3,
        says: &["data.json", "<image>"],
    },
    Case {
        name: "no data file",
        spoil: |s| fs::remove_file(s.dir.join("data.json")).unwrap(),
        arguments: &[],
        code: 4,
        says: &["data.json"],
    },
    // ---- settings ----
    Case {
        name: "threshold above 1",
        spoil: |_| (),
        arguments: &["--threshold", "1.5"],
        code: 3,
        says: &["grid.thresholds[0]", "1.5", "[-1, 1]"],
    },
    Case {
        name: "threshold below -1",
        spoil: |_| (),
        arguments: &["--threshold", "-1.01"],
        code: 3,
        says: &["grid.thresholds[0]", "-1.01"],
    },
    Case {
        name: "threshold NaN",
        spoil: |_| (),
        arguments: &["--threshold", "nan"],
        code: 3,
        says: &["grid.thresholds[0]", "NaN"],
    },
    Case {
        name: "threshold twice",
        spoil: |_| (),
        arguments: &["--threshold", "0.9", "--threshold", "0.9"],
        code: 3,
        says: &["0.9", "twice"],
    },
    Case {
        name: "rho above 1",
        spoil: |_| (),
        arguments: &["--rho", "1.01"],
        code: 3,
        says: &["rho", "1.01"],
    },
    Case {
        name: "unknown dtype",
        spoil: |_| (),
        arguments: &["--dtype", "int4"],
        code: 3,
        says: &["int4"],
    },
    Case {
        name: "unknown device",
        spoil: |_| (),
        arguments: &["--device", "tpu"],
        code: 3,
        says: &["tpu"],
    },
    Case {
        name: "shard out of range",
        spoil: |_| (),
        arguments: &["--shard", "4/3"],
        code: 2,
        says: &["4/3"],
    },
    Case {
        name: "unknown option",
        spoil: |_| (),
        arguments: &["--thresh", "0.9"],
        code: 2,
        says: &["--thresh"],
    },
    // ---- the run folder ----
    Case {
        name: "a file where the run folder should be",
        spoil: |s| s.write("out", "x"),
        arguments: &[],
        code: 4,
        says: &["out"],
    },
    Case {
        name: "a store that is no database",
        spoil: |s| {
            fs::create_dir(s.dir.join("out")).unwrap();
            s.write(
                "out/store.db",
                "this is no database, but it is long enough to look like a file of some kind",
            )
        },
        arguments: &[],
        code: 5,
        says: &["store.db"],
    },
];

#[test]
fn every_bad_input_is_named_or_handled() {
    let mut failures = Vec::new();
    for case in CASES {
        let dir = tempfile::tempdir().unwrap();
        let setting = Setting::new(dir.path());
        (case.spoil)(&setting);
        let output = run(&setting).args(case.arguments).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        let said = case.says.iter().all(|word| message.contains(word));
        if output.status.code() != Some(case.code) || !said || message.contains("panicked") {
            failures.push(format!(
                "{}: exit {:?} (expected {}), must say {:?}: {message}",
                case.name,
                output.status.code(),
                case.code,
                case.says
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn run(setting: &Setting) -> std::process::Command {
    let mut command = bdhs();
    let path = |name: &str| setting.dir.join(name);
    command.arg("sweep").arg("--model").arg(path("model")).arg("--data").arg(path("data.json"));
    command.arg("--encoder").arg(path("encoder")).arg("--out").arg(path("out"));
    command.args(["--max-sentence-tokens", "16", "--max-response-tokens", "16"]);
    command
}

/// Broken input is found before anything is generated, and a run whose input breaks later keeps what it had.
#[test]
fn nothing_computed_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let setting = Setting::new(dir.path());
    let good = fs::read(dir.path().join("images/2.png")).unwrap();
    let spoil = || setting.edit("images/2.png", |b| b.iter_mut().skip(60).for_each(|x| *x ^= 0x5a));
    spoil();
    let broken = run(&setting).output().unwrap();
    let message = String::from_utf8_lossy(&broken.stderr);
    assert_eq!(broken.status.code(), Some(3), "{message}");
    assert!(message.contains("2.png") && !dir.path().join("out/store.db").exists());

    setting.write("images/2.png", &good);
    let first = json(&succeed(run(&setting).arg("--json")));
    spoil();
    let later = run(&setting).output().unwrap();
    assert_eq!(later.status.code(), Some(5), "other images are another data set");
    assert!(String::from_utf8_lossy(&later.stderr).contains("dataset_fingerprint"));

    setting.write("images/2.png", &good);
    let again = json(&succeed(run(&setting).arg("--json")));
    assert_eq!(first["cells"], again["cells"]);
    let generating = |summary: &serde_json::Value| summary["seconds"]["generate"].as_f64().unwrap();
    assert_eq!(generating(&first), generating(&again), "nothing was generated again");
}

/// A run folder made with other settings, or by another version, is refused by field.
#[test]
fn another_runs_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let setting = Setting::new(dir.path());
    succeed(&mut run(&setting));
    for (arguments, field) in [
        (["--seed", "9"], "seed"),
        (["--rho", "0.5"], "sampling"),
        (["--dtype", "bf16"], "model_fingerprint"),
        (["--limit", "2"], "dataset_fingerprint"),
    ] {
        let output = run(&setting).args(arguments).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{message}");
        assert!(message.contains(field) && message.contains("store.db"), "{message}");
    }
    let store = dir.path().join("out/store.db");
    let connection = rusqlite::Connection::open(&store).unwrap();
    connection.execute("UPDATE manifest SET bdhs_version = '0.0.1'", []).unwrap();
    drop(connection);
    let output = run(&setting).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5));
    assert!(message.contains("0.0.1") && message.contains(env!("CARGO_PKG_VERSION")), "{message}");
}

/// An EXIF-rotated photo has the layout of the upright picture.
#[test]
fn rotated_photos_are_turned() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("turned.jpg");
    let mut bytes = Vec::new();
    common::picture(40, 20, 1)
        .write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Jpeg)
        .unwrap();
    let mut exif = b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
    exif.extend(&bytes[2..]);
    fs::write(&path, [&bytes[..2], &exif].concat()).unwrap();
    assert_eq!(bdhs::data::image::dimensions(&path).unwrap(), (20, 40));
    assert_eq!(bdhs::data::image::open(&path).unwrap().dimensions(), (20, 40));
}

/// A full disk ends the run with exit code 5 or 4 and a store that can be continued.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_keeps_committed_waves() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 8);
    let Some(disk) = Disk::mount(dir.path(), "160k") else { return };
    let run = || {
        let mut command = sweep(&data, &disk.path().join("run"));
        command.args(["--rho", "0.5", "--token-budget", "100"]);
        command
    };
    let failed = run().output().unwrap();
    let message = String::from_utf8_lossy(&failed.stderr).into_owned();
    disk.grow();
    let resumed = run().arg("--json").output().unwrap();
    assert!(matches!(failed.status.code(), Some(4 | 5)), "{message}");
    assert!(message.contains("full") || message.contains("space"), "{message}");
    assert_eq!(json(&resumed)["samples"], 8);
}

/// A PNG header that claims 20,000 x 20,000 pixels.
fn huge_png() -> Vec<u8> {
    let mut bytes = Vec::new();
    common::picture(2, 2, 0)
        .write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png)
        .unwrap();
    let mut header = b"IHDR".to_vec();
    header.extend(20_000u32.to_be_bytes());
    header.extend(20_000u32.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let crc = crc32(&header);
    bytes.splice(12..33, header.into_iter().chain(crc.to_be_bytes()));
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}

/// An indexed-colour picture, as GIF (which the reader tells by content, whatever the name).
struct Indexed(image::RgbaImage);

fn indexed() -> Indexed {
    Indexed(image::RgbaImage::from_fn(20, 16, |x, y| {
        image::Rgba([(x % 4 * 60) as u8, (y % 3 * 80) as u8, 0, 255])
    }))
}

impl Indexed {
    fn save_to(&self, path: &Path) {
        self.0.save_with_format(path, image::ImageFormat::Gif).unwrap();
    }
}
