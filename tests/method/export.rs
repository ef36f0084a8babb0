//! Exports read back: JSONL line by line, Parquet with the Parquet crate; matrices byte by byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{Array, RecordBatch};
use bdhs::data::{Dataset, DatasetOptions};
use bdhs::sampling::{Candidate, Flag, Part, SamplingConfig, Stop};
use bdhs::store::{EncoderInfo, Key, Manifest, Score, Shard, Store, WaveRecord};
use bdhs::sweep::export::{ExportOptions, Exported, Exporter};
use bdhs::sweep::grid::{Attempts, Cell, ScoreTable, decide_cells};
use bdhs::sweep::npy::MatrixWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

const SEED: u64 = u64::MAX - 1;

/// A run with 120 samples (more than one row group) and two encoders, N = 2.
struct Run {
    folder: PathBuf,
    dataset: Dataset,
    store: Store,
    cell: Cell,
}

fn png(path: &Path, shade: u8) {
    image::RgbImage::from_fn(3, 2, |x, y| image::Rgb([shade, x as u8 * 40, y as u8 * 90]))
        .save(path)
        .unwrap();
}

fn key(sample: u32, attempt: u32) -> Key {
    Key::from_bytes(*blake3::hash(format!("{sample} {attempt}").as_bytes()).as_bytes())
}

fn candidate(sample: u32, attempt: u32) -> (Key, Candidate) {
    let text =
        if sample == 3 { String::new() } else { format!("No {sample}.\n\u{1F408} {attempt}") };
    let part = Part {
        kept: String::new(),
        completion: text.clone(),
        separator: String::new(),
        swapped: false,
        stop: if sample == 4 { Stop::TokenLimit } else { Stop::FullStop },
        tokens: 3,
        logprob: -1.0,
    };
    let kept = (0..sample % 7).collect();
    let guided = attempt == 1;
    (
        key(sample, attempt),
        Candidate { sample, attempt, guided, text, parts: vec![part], image_tokens: 36, kept },
    )
}

/// phi of the first encoder: every third sample needs its second attempt, which is not below 0.9 either.
fn phi(sample: u32, attempt: u32) -> f64 {
    match (sample % 3, attempt) {
        (0, 1) => 0.95,
        (0, _) if sample == 6 => f64::NAN,
        (0, _) => 0.93,
        _ => 0.5 + f64::from(sample) / 1000.0,
    }
}

fn run(folder: &Path) -> Run {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder.join("images/sub")).unwrap();
    let mut lines = String::new();
    for sample in 0..120u32 {
        let name =
            if sample % 2 == 0 { format!("{sample}.png") } else { format!("sub/{sample}.png") };
        png(&folder.join("images").join(&name), sample as u8);
        let row = if sample == 1 {
            json!({"id": "one", "image": [name, "0.png"], "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Left <image> or\n<image>\nright?"}, {"from": "gpt", "value": "Left."},
                {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes \"1\"."}]})
        } else {
            json!({"id": format!("s{sample}"), "image": name, "prompt": "What is it?", "chosen": format!("Yes {sample}.")})
        };
        lines.push_str(&format!("{row}\n"));
    }
    fs::write(folder.join("data.jsonl"), lines).unwrap();
    let options =
        DatasetOptions { image_folder: Some(folder.join("images")), ..Default::default() };
    let dataset = Dataset::open(&folder.join("data.jsonl"), &options).unwrap();

    let manifest = Manifest {
        bdhs_version: "0.1.0".into(),
        model_fingerprint: "m".into(),
        model_path: "m".into(),
        sampling: "{}".into(),
        seed: SEED,
        token_budget: 100,
        dataset_fingerprint: "d".into(),
        plan_hash: "p".into(),
        shard: Shard::WHOLE,
        created_at: String::new(),
    };
    let mut store = Store::create(folder.join("store.db"), &manifest).unwrap();
    for name in ["mini", "b.2"] {
        let fingerprint = format!("fp-{name}");
        store
            .add_encoder(&EncoderInfo { fingerprint, name: name.into(), dim: 4, max_tokens: 128 })
            .unwrap();
    }
    for attempt in 1..=2 {
        let record =
            WaveRecord { round: attempt, wave: 0, token_budget: 100, seconds: BTreeMap::new() };
        // Backwards: exports are ordered by sample all the same.
        let rows: Vec<_> = (0..120).rev().map(|sample| candidate(sample, attempt)).collect();
        store.commit_wave(&record, &rows).unwrap();
        let score = |sample: u32, phi: f64| Score {
            candidate: key(sample, attempt),
            phi,
            candidate_tokens: 10 + sample,
            reference_tokens: 20,
            candidate_truncated: sample == 5,
            reference_truncated: false,
        };
        let all: Vec<_> = (0..120).map(|s| score(s, phi(s, attempt))).collect();
        store.commit_scores(&[("fp-mini", &all)]).unwrap();
        // The second encoder has not scored sample 2.
        let some: Vec<_> = (0..120).filter(|&s| s != 2).map(|s| score(s, 0.25)).collect();
        store.commit_scores(&[("fp-b.2", &some)]).unwrap();
    }
    let attempts = Attempts { count: 2, guidance: true };
    let table = ScoreTable::new("mini", &store.score_rows("fp-mini").unwrap(), attempts);
    let samples: Vec<u32> = (0..120).collect();
    let mut cells = decide_cells(&[table], &samples, &[0.9], attempts).unwrap();
    Run { folder: folder.into(), dataset, store, cell: cells.remove(0) }
}

impl Run {
    fn export(&self, name: &str, options: &ExportOptions) -> bdhs::Result<Exported> {
        let config = SamplingConfig::default();
        let images = self.folder.join("images");
        Exporter::new(&self.store, &self.dataset, &images, &config)?.export(
            &self.cell,
            &self.folder.join(name),
            options,
        )
    }
}

/// With the pictures in the Parquet file.
fn embedded() -> ExportOptions {
    ExportOptions { embed_images: true, ..ExportOptions::default() }
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn batches(path: &Path) -> Vec<RecordBatch> {
    let file = fs::File::open(path).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    reader.map(|batch| batch.unwrap()).collect()
}

/// A column's value as JSON, to compare the two formats by.
fn value(array: &dyn Array, row: usize) -> Value {
    use arrow_schema::DataType;
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Utf8 => json!(array.as_string::<i32>().value(row)),
        DataType::Binary => json!(array.as_binary::<i32>().value(row)),
        DataType::Boolean => json!(array.as_boolean().value(row)),
        DataType::Int64 => json!(array.as_primitive::<Int64Type>().value(row)),
        DataType::Float64 => json!(array.as_primitive::<Float64Type>().value(row)),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            (0..items.len()).map(|i| value(&items, i)).collect()
        }
        DataType::Struct(fields) => {
            let columns = array.as_struct();
            let pairs = fields.iter().zip(columns.columns());
            Value::Object(pairs.map(|(f, c)| (f.name().clone(), value(c, row))).collect())
        }
        other => panic!("no column is {other}"),
    }
}

fn rows(path: &Path) -> Vec<Value> {
    let batches = batches(path);
    let row = |batch: &RecordBatch, row: usize| {
        let schema = batch.schema();
        let pairs = schema.fields().iter().zip(batch.columns());
        Value::Object(pairs.map(|(f, c)| (f.name().clone(), value(c, row))).collect())
    };
    batches.iter().flat_map(|b| (0..b.num_rows()).map(move |i| row(b, i))).collect()
}

#[test]
fn jsonl_holds_what_a_trainer_and_a_reader_need() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path());
    let done = run.export("out", &embedded()).unwrap();
    let cell = folder.path().join("out/cells/mini__0.90");
    assert_eq!((done.pairs, done.excluded), (120, 0));
    let names = ["pairs.jsonl", "pairs.parquet", "README.md"];
    assert_eq!(done.files, names.map(|name| cell.join(name)));
    assert_eq!(fs::read_dir(&cell).unwrap().count(), 3, "no temporary files");

    let rows = lines(&cell.join("pairs.jsonl"));
    assert_eq!(rows.len(), 120);
    for (index, row) in rows.iter().enumerate() {
        assert_eq!(row["sample"], index);
    }
    let text = |text: &str| json!({"type": "text", "text": text});
    let one = &rows[1];
    let images = folder.path().canonicalize().unwrap().join("images");
    assert_eq!(one["images"], json!([images.join("sub/1.png"), images.join("0.png")]));
    assert_eq!(
        one["prompt"],
        json!([
            {"role": "system", "content": [text("Be brief.")]},
            {"role": "user", "content": [text("Left "), {"type": "image"}, text(" or"), {"type": "image"}, text("right?")]},
            {"role": "assistant", "content": [text("Left.")]},
            {"role": "user", "content": [text("Sure?")]},
        ])
    );
    assert_eq!(one["chosen"], json!([{"role": "assistant", "content": [text("Yes \"1\".")]}]));
    assert_eq!(
        one["rejected"],
        json!([{"role": "assistant", "content": [text("No 1.\n\u{1F408} 1")]}])
    );
    assert_eq!(rows[0]["prompt"][0]["content"], json!([{"type": "image"}, text("What is it?")]));

    let three = &rows[3];
    let names: Vec<_> = three.as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        names,
        [
            "images",
            "prompt",
            "chosen",
            "rejected",
            "id",
            "sample",
            "attempt",
            "guided",
            "forced",
            "encoder",
            "threshold",
            "phi",
            "scores",
            "mask",
            "flags",
            "candidate",
            "seed"
        ]
    );
    assert_eq!(
        (&three["attempt"], &three["guided"], &three["forced"]),
        (&json!(2), &json!(false), &json!(true))
    );
    assert_eq!(
        (&three["id"], &three["encoder"], &three["threshold"]),
        (&json!("s3"), &json!("mini"), &json!(0.9))
    );
    assert_eq!((&three["phi"], &three["scores"]["mini"]["phi"]), (&json!(0.93), &json!(0.93)));
    assert_eq!(three["scores"]["b.2"]["phi"], 0.25);
    assert_eq!(three["flags"], json!(["empty"]));
    assert_eq!(rows[4]["flags"], json!(["token_limit", "empty_completion"][..1]));
    assert_eq!(three["candidate"], key(3, 2).to_string());
    assert_eq!(three["seed"], SEED.to_string());
    assert_eq!((&three["mask"]["rho"], &three["mask"]["kept"]), (&json!(0.99), &json!(3)));
    assert_eq!(rows[10]["mask"]["key"], three["mask"]["key"], "equal masks");
    assert_ne!(rows[9]["mask"]["key"], three["mask"]["key"]);
    assert_eq!(rows[5]["scores"]["mini"]["candidate_truncated"], true);
    assert_eq!((&rows[6]["phi"], &rows[6]["forced"]), (&Value::Null, &json!(true)));
    assert_eq!(rows[2]["scores"]["b.2"], Value::Null);
}

#[test]
fn parquet_says_the_same_and_carries_the_images() {
    // Kept after the test: what scripts/check_exports.py reads.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("export");
    let run = run(&folder);
    run.export("out", &embedded()).unwrap();
    let cell = folder.join("out/cells/mini__0.90");
    let from_parquet = rows(&cell.join("pairs.parquet"));
    let mut from_jsonl = lines(&cell.join("pairs.jsonl"));
    for row in &mut from_jsonl {
        let bytes = |path: &Value| {
            let path = Path::new(path.as_str().unwrap());
            let images = folder.canonicalize().unwrap().join("images");
            json!({"bytes": fs::read(path).unwrap(), "path": path.strip_prefix(images).unwrap()})
        };
        row["images"] = row["images"].as_array().unwrap().iter().map(bytes).collect();
        for message in row["prompt"].as_array_mut().unwrap() {
            for piece in message["content"].as_array_mut().unwrap() {
                if piece["type"] == "image" {
                    piece["text"] = Value::Null;
                }
            }
        }
    }
    assert_eq!(from_parquet, from_jsonl);

    let file = fs::File::open(cell.join("pairs.parquet")).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let groups: Vec<_> = reader.metadata().row_groups().iter().map(|g| g.num_rows()).collect();
    assert_eq!(groups, [100, 20]);
    let description: Value =
        serde_json::from_str(&reader.schema().metadata()["huggingface"]).unwrap();
    let features = &description["info"]["features"];
    let names: Vec<_> = reader.schema().fields().iter().map(|f| f.name().clone()).collect();
    assert_eq!(features.as_object().unwrap().keys().cloned().collect::<Vec<_>>(), names);
    assert_eq!(features["images"], json!([{"_type": "Image"}]));
    assert_eq!(features["sample"], json!({"dtype": "int64", "_type": "Value"}));
    let string = json!({"dtype": "string", "_type": "Value"});
    assert_eq!(
        features["prompt"],
        json!([{"role": string, "content": [{"type": string, "text": string}]}])
    );
    assert_eq!(features["scores"]["b.2"]["phi"]["dtype"], "float64");
}

#[test]
fn the_same_store_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path());
    let (a, b) = (run.export("a", &embedded()), run.export("b", &embedded()));
    for (a, b) in a.unwrap().files.iter().zip(b.unwrap().files) {
        assert!(fs::read(a).unwrap() == fs::read(b).unwrap(), "{}", a.display());
    }
    // And writing again over what is there.
    let before = fs::read(folder.path().join("a/cells/mini__0.90/pairs.parquet")).unwrap();
    let again = run.export("a", &embedded()).unwrap();
    assert!(fs::read(&again.files[1]).unwrap() == before);
}

#[test]
fn options_do_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path());
    let options =
        ExportOptions { exclude: vec![Flag::Empty, Flag::TokenLimit], ..Default::default() };
    let done = run.export("out", &options).unwrap();
    assert_eq!((done.pairs, done.excluded, done.files.len()), (118, 2, 3));
    let rows = rows(&done.files[1]);
    assert!(rows.iter().all(|row| row["sample"] != 3 && row["sample"] != 4));
    let path = folder.path().canonicalize().unwrap().join("images/0.png");
    assert_eq!(rows[0]["images"], json!([{"bytes": null, "path": path}]));
}

#[test]
fn a_failed_export_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = run(folder.path());
    fs::remove_file(folder.path().join("images/sub/119.png")).unwrap();
    let error = run.export("out", &embedded()).unwrap_err().to_string();
    assert!(error.contains("119.png"), "{error}");
    assert_eq!(fs::read_dir(folder.path().join("out/cells/mini__0.90")).unwrap().count(), 0);

    run.cell.pairs[0].attempt = 9;
    let error = run.export("out", &embedded()).unwrap_err().to_string();
    assert!(error.contains("candidate of sample 0, attempt 9 of cell mini__0.90"), "{error}");
    run.cell.pairs[0].sample = 120;
    run.cell.pairs.truncate(1);
    let error = run.export("out", &embedded()).unwrap_err().to_string();
    assert!(error.contains("dataset's row of sample 120"), "{error}");

    let twin =
        EncoderInfo { fingerprint: "twin".into(), name: "mini".into(), dim: 4, max_tokens: 9 };
    run.store.add_encoder(&twin).unwrap();
    let error = run.export("out", &embedded()).unwrap_err().to_string();
    assert!(error.contains("two encoders named mini"), "{error}");
}

#[test]
fn matrices_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<f32> = vec![0.1, -2.5e-38, f32::MAX, 3.0, 1.0 / 3.0, -0.0];
    let write = |name: &str, rows: usize, dim: usize| {
        let path = folder.path().join(name);
        let mut writer = MatrixWriter::create(&path, rows, dim).unwrap();
        writer.write(&values[..dim]).unwrap();
        writer.write(&values[dim..]).unwrap();
        writer.finish().unwrap();
        fs::read(path).unwrap()
    };
    let npy = write("m.npy", 2, 3);
    assert_eq!(&npy[..8], b"\x93NUMPY\x01\x00");
    let length = usize::from(u16::from_le_bytes([npy[8], npy[9]]));
    assert_eq!((10 + length) % 64, 0);
    let header = std::str::from_utf8(&npy[10..10 + length]).unwrap();
    assert!(header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"));
    assert!(header.ends_with('\n'));
    let floats = |bytes: &[u8]| -> Vec<u32> {
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let bits: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
    assert_eq!(floats(&npy[10 + length..]), bits);

    let bytes = write("m.safetensors", 3, 2);
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor("embeddings").unwrap();
    assert_eq!((tensor.shape(), tensor.dtype()), (&[3, 2][..], safetensors::Dtype::F32));
    assert_eq!(floats(tensor.data()), bits);

    let text = String::from_utf8(write("m.jsonl", 2, 3)).unwrap();
    assert!(text.starts_with("{\"index\":0,\"embedding\":[0.1,"), "{text}");
    let mut read = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let row: Value = serde_json::from_str(line).unwrap();
        assert_eq!(row["index"], index);
        let numbers = row["embedding"].as_array().unwrap();
        read.extend(numbers.iter().map(|x| (x.as_f64().unwrap() as f32).to_bits()));
    }
    assert_eq!(read, bits);
}

#[test]
fn matrices_are_complete_or_absent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.npy");
    let mut writer = MatrixWriter::create(&path, 2, 3).unwrap();
    assert!(
        writer.write(&[0.0; 4]).unwrap_err().to_string().contains("multiple of the dimension, 3")
    );
    assert!(writer.write(&[0.0; 9]).unwrap_err().to_string().contains("at most the 2 announced"));
    writer.write(&[0.0; 3]).unwrap();
    assert!(
        writer.finish().unwrap_err().to_string().contains("rows is 1, expected the 2 announced")
    );
    drop(MatrixWriter::create(&path, 2, 3).unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    // No rows are a file, too.
    MatrixWriter::create(&path, 0, 3).unwrap().finish().unwrap();
    assert!(fs::read(&path).unwrap().ends_with(b"\n"));
    let error = MatrixWriter::create(folder.path().join("m.txt"), 1, 1).unwrap_err().to_string();
    assert!(error.contains("m.txt") && error.contains(".npy"), "{error}");
}
