//! Every shape of rows in every format of files, with content written for it.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, ListBuilder, StringBuilder, StructBuilder};
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Fields, Schema};
use bdhs::data::{Dataset, DatasetOptions, Reason, Sample};
use image::{ImageFormat, RgbImage};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("images")).unwrap();
        for name in ["a.png", "b.png"] {
            fs::write(folder.path().join("images").join(name), png(name.as_bytes()[0])).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn rows(&self, rows: &[Value]) -> PathBuf {
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        self.write("rows.jsonl", lines)
    }
}

fn png(shade: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::from_pixel(3, 2, image::Rgb([shade; 3]))
        .write_to(&mut bytes, ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

fn open(path: &Path) -> Dataset {
    Dataset::open(path, &DatasetOptions { needs_picture: true, ..Default::default() }).unwrap()
}

fn samples(data: &Dataset) -> Vec<Sample> {
    data.read(0..data.len()).unwrap()
}

const QUESTION: &str = "What lies on the table?";
const GOOD: &str = "A pear lies on it. It is green.";
const BAD: &str = "Two forks lie on it.";

/// What every row of this file says, whatever its shape.
fn expect(sample: &Sample, rejected: Option<&str>) {
    let turns: Vec<&str> = sample.turns.iter().map(|turn| turn.text.as_str()).collect();
    assert_eq!(turns, [format!("<image>\n{QUESTION}")]);
    assert_eq!(sample.reference, GOOD);
    assert_eq!(sample.rejected.as_deref(), rejected);
    assert_eq!(sample.images.len(), 1);
    assert_eq!(sample.images[0].open().unwrap().get_pixel(0, 0).0, [b'a'; 3]);
}

fn shape(data: &Dataset) -> String {
    data.described().shapes.keys().cloned().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_shape_of_rows_is_read() {
    let with = format!("<image>\n{QUESTION}");
    let behind = format!("{QUESTION}\n<image>");
    let said = |from: &str, value: &str| json!({"from": from, "value": value});
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let parts = |role: &str, text: &str| {
        let image = json!({"type": "image", "text": null});
        let text = json!({"type": "text", "text": text});
        json!({"role": role, "content": if role == "user" { vec![image, text] } else { vec![text] }})
    };
    let rlhf = json!({"question": QUESTION, "chosen": GOOD, "rejected": BAD}).to_string();
    let image = "images/a.png";
    let both = [
        (
            "povid",
            json!({"id": 7, "image": image,
            "conversations": [said("human", &with), said("gpt", GOOD)],
            "rejected_conversations": [said("human", &with), said("gpt", BAD)]}),
        ),
        (
            "sharegpt-preference",
            json!({"images": [image], "conversations": [said("human", &with)],
            "chosen": said("gpt", GOOD), "rejected": said("gpt", BAD)}),
        ),
        (
            "swift-preference",
            json!({"images": [image], "rejected_response": BAD,
            "messages": [message("user", &with), message("assistant", GOOD)]}),
        ),
        (
            "trl-preference",
            json!({"images": [image], "prompt": [parts("user", QUESTION)],
            "chosen": [parts("assistant", GOOD)], "rejected": [parts("assistant", BAD)]}),
        ),
        (
            "trl-preference",
            json!({"images": [image], "prompt": QUESTION, "chosen": GOOD, "rejected": BAD}),
        ),
        (
            "trl-preference",
            json!({"images": [image], "prompt": QUESTION,
            "chosen": [message("user", QUESTION), message("assistant", GOOD)],
            "rejected": [message("user", QUESTION), message("assistant", BAD)]}),
        ),
        (
            "trl-implicit",
            json!({"images": [image],
            "chosen": [parts("user", QUESTION), parts("assistant", GOOD)],
            "rejected": [parts("user", QUESTION), parts("assistant", BAD)]}),
        ),
        (
            "rlaif-v",
            json!({"image": {"path": image, "bytes": null}, "question": QUESTION,
            "chosen": GOOD, "rejected": BAD, "origin_dataset": "x"}),
        ),
        ("rlhf-v", json!({"ds_name": "x", "image": image, "text": rlhf})),
        (
            "sentinel",
            json!({"image_path": image, "question": QUESTION, "context": "A pear lies on it.",
            "y_win": "It is green.", "y_lose": "Two forks lie on it."}),
        ),
        (
            "bpo",
            json!({"image": image, "prompt": behind, "completions": [
            {"type": "weakened", "score": 0, "response": BAD}, {"type": "gt", "score": 1, "response": GOOD}]}),
        ),
        (
            "bpo",
            json!({"image": image, "prompt": behind, "completions": [
            {"score": 0.5, "response": BAD}, {"score": 2, "response": GOOD}]}),
        ),
        (
            "query-response-preference",
            json!({"images": [image], "query": with, "response": GOOD,
            "rejected_response": BAD}),
        ),
        (
            "instruction-preference",
            json!({"images": [image], "instruction": QUESTION, "input": "",
            "chosen": GOOD, "rejected": BAD}),
        ),
    ];
    let folder = Folder::new();
    for (name, row) in both {
        let data = open(&folder.rows(std::slice::from_ref(&row)));
        assert_eq!(shape(&data), name, "{row}");
        let rejected = match name {
            "sentinel" => format!("A pear lies on it. {BAD}"),
            _ => BAD.to_owned(),
        };
        expect(&samples(&data)[0], Some(&rejected));
    }
    let alone = [
        (
            "llava",
            json!({"id": "x", "image": image, "conversations": [said("human", &with), said("gpt", GOOD)]}),
        ),
        (
            "llava",
            json!({"images": [image], "conversations": [said("human", QUESTION), said("gpt", GOOD), said("human", "?")]}),
        ),
        (
            "messages",
            json!({"images": [{"path": image}], "messages": [message("user", &with), message("assistant", GOOD)]}),
        ),
        ("prompt-chosen", json!({"image": folder.path(image), "prompt": QUESTION, "chosen": GOOD})),
        ("prompt-reference", json!({"image_path": image, "prompt": QUESTION, "reference": GOOD})),
        ("prompt-completion", json!({"images": [image], "prompt": QUESTION, "completion": GOOD})),
        (
            "question-answer",
            json!({"image": image, "question": QUESTION, "answer": GOOD, "text": "other"}),
        ),
        ("query-response", json!({"images": [image], "query": QUESTION, "response": GOOD})),
        ("instruction-output", json!({"image": image, "instruction": QUESTION, "output": GOOD})),
    ];
    for (name, row) in alone {
        let data = open(&folder.rows(std::slice::from_ref(&row)));
        assert_eq!(shape(&data), name, "{row}");
        expect(&samples(&data)[0], None);
    }
}

#[test]
fn alpaca_joins_instruction_and_input() {
    let folder = Folder::new();
    let row = json!({"image": "images/a.png", "instruction": "What lies", "input": "on the table?", "output": GOOD});
    let sample = &samples(&open(&folder.rows(&[row])))[0];
    assert_eq!(sample.turns[0].text, "<image>\nWhat lies\non the table?");
}

#[test]
fn prompts_in_a_chat_template_are_taken_out_of_it() {
    let folder = Folder::new();
    let row = json!({"images": ["images/a.png"], "prompt": format!("USER: <image>\n{QUESTION} ASSISTANT:"),
        "chosen": format!(" {GOOD}</s>"), "rejected": format!(" {BAD}</s>")});
    let data = open(&folder.rows(&[row]));
    expect(&samples(&data)[0], Some(BAD));
    assert!(data.note().unwrap().contains("1 in that of Vicuna"), "{:?}", data.note());
    let two = json!({"images": ["images/a.png"], "prompt": "USER: a ASSISTANT: b USER: c ASSISTANT:",
        "chosen": GOOD, "rejected": BAD});
    let data = Dataset::list(&[folder.rows(&[two])], &DatasetOptions::default()).unwrap();
    assert!(data.skipped()[0].message.contains("list of messages"), "{:?}", data.skipped());
}

#[test]
fn columns_of_other_names_are_mapped() {
    let folder = Folder::new();
    let row = json!({"key": 5, "pic": "images/a.png", "ask": QUESTION, "say": GOOD, "bad": BAD});
    let path = folder.rows(&[row]);
    let error = Dataset::open(&path, &DatasetOptions::default()).unwrap_err().to_string();
    for word in ["has the columns key, pic, ask, say, bad", "rlaif-v", "conversations", "--columns"]
    {
        assert!(error.contains(word), "{error}");
    }
    let names = [
        ("id", "key"),
        ("image", "pic"),
        ("question", "ask"),
        ("chosen", "say"),
        ("rejected", "bad"),
    ];
    let columns = names.map(|(name, column)| (name.to_owned(), column.to_owned())).into();
    let options = DatasetOptions { columns, ..Default::default() };
    let sample = samples(&Dataset::open(&path, &options).unwrap()).remove(0);
    expect(&sample, Some(BAD));
    assert_eq!(sample.id, "5");
    let columns = [("prompt".to_owned(), "asked".to_owned())].into();
    let options = DatasetOptions { columns, ..Default::default() };
    let error = Dataset::open(&path, &options).unwrap_err().to_string();
    assert!(error.contains("no column \"asked\"") && error.contains("key, pic"), "{error}");
}

// ---- files ----

#[test]
fn text_formats_several_files_patterns_and_packed_ones() {
    let folder = Folder::new();
    let row =
        |id: &str| json!({"id": id, "image": "images/a.png", "question": QUESTION, "answer": GOOD});
    folder.write("one.jsonl", row("a").to_string());
    folder.write("two.json", json!([row("b"), row("c")]).to_string());
    let csv = format!("id,image,question,answer\nd,images/a.png,{QUESTION},\"{GOOD}\"\n");
    folder.write("three.csv", &csv);
    folder.write("four.tsv", csv.replace(',', "\t").replace("\"", ""));
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(row("f").to_string().as_bytes()).unwrap();
    folder.write("five.jsonl.gz", gz.finish().unwrap());
    let packed = zstd::stream::encode_all(csv.replace("\nd,", "\ng,").as_bytes(), 1).unwrap();
    folder.write("six.csv.zst", packed);
    let names = ["one.jsonl", "two.json", "three.csv", "four.tsv", "five.jsonl.gz", "six.csv.zst"];
    let paths = names.map(|name| folder.path(name));
    let data = Dataset::list(&paths, &DatasetOptions::default()).unwrap();
    let all = samples(&data);
    all.iter().for_each(|sample| expect(sample, None));
    let ids: Vec<_> = all.iter().map(|sample| sample.id.as_str()).collect();
    assert_eq!(ids, ["a", "b", "c", "d", "d#2", "f", "g"]);
    assert_eq!(all[3].place, "line 2");
    assert_eq!(data.described().rows, 7);
    let some = open(&folder.path("t*.json"));
    assert_eq!(some.len(), 2);
    let error = Dataset::open(&folder.path("x*.json"), &DatasetOptions::default()).unwrap_err();
    assert!(error.to_string().contains("matches no file"), "{error}");
}

#[test]
fn csv_quotes_and_line_breaks_inside_of_values() {
    let folder = Folder::new();
    let text = "image,question,answer\nimages/a.png,\"One\nor \"\"two\"\"?\",Two.\nimages/b.png,And?,\"So, yes.\"\n";
    let data = open(&folder.write("x.csv", text));
    let all = samples(&data);
    assert_eq!(all[0].turns[0].text, "<image>\nOne\nor \"two\"?");
    assert_eq!((all[1].reference.as_str(), all[1].place.as_str()), ("So, yes.", "line 4"));
}

#[test]
fn one_object_with_the_rows_inside_is_named() {
    let folder = Folder::new();
    let row = json!({"image": "images/a.png", "prompt": QUESTION, "chosen": GOOD});
    let path = folder.write("x.json", format!("{:#}", json!({"version": 1, "data": [row]})));
    let error = Dataset::open(&path, &DatasetOptions::default()).unwrap_err().to_string();
    assert!(error.contains("is one JSON object") && error.contains("\"data\""), "{error}");
    assert!(error.contains("an array of rows, or a row (an object) a line"), "{error}");
}

#[test]
fn a_collection_names_files_and_their_folders() {
    let folder = Folder::new();
    let row = |image: &str| json!({"image": image, "question": QUESTION, "chosen": GOOD, "rejected": BAD});
    folder.write("mmpr/annotations/x.jsonl", row("a.png").to_string());
    folder.write("mmpr/annotations/y.jsonl", row("deep/a.png").to_string());
    fs::create_dir_all(folder.path("mmpr/pictures/deep")).unwrap();
    fs::copy(folder.path("images/a.png"), folder.path("mmpr/pictures/a.png")).unwrap();
    fs::copy(folder.path("images/a.png"), folder.path("mmpr/pictures/deep/a.png")).unwrap();
    let meta = json!({
        "x": {"root": "mmpr/pictures", "annotation": "mmpr/annotations/x.jsonl", "repeat_time": 1, "length": 1},
        "y": {"root": "mmpr/pictures", "annotation": "mmpr/annotations/y.jsonl", "repeat_time": 1, "length": 1},
    });
    let data = open(&folder.write("mmpr/meta.json", meta.to_string()));
    assert_eq!(shape(&data), "rlaif-v");
    samples(&data).iter().for_each(|sample| expect(sample, Some(BAD)));
    assert_eq!(data.len(), 2);
}

#[test]
fn an_imagefolder_is_read_by_its_metadata() {
    let row = json!({"file_name": "pictures/a.png", "question": QUESTION, "answer": GOOD});
    for name in ["metadata.jsonl", "metadata.csv"] {
        let folder = Folder::new();
        let text = match name {
            "metadata.jsonl" => row.to_string(),
            _ => format!("file_name,question,answer\npictures/a.png,{QUESTION},{GOOD}\n"),
        };
        folder.write(&format!("set/{name}"), text);
        fs::create_dir_all(folder.path("set/pictures")).unwrap();
        fs::copy(folder.path("images/a.png"), folder.path("set/pictures/a.png")).unwrap();
        expect(&samples(&open(&folder.path("set")))[0], None);
    }
    let folder = Folder::new();
    let error = Dataset::open(&folder.path("images"), &DatasetOptions::default()).unwrap_err();
    assert!(error.to_string().contains("folder without data"), "{error}");
}

// ---- columns of bytes ----

/// How pictures lie in a table.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pictures {
    /// `image: binary`.
    Bytes,
    /// `image: struct<bytes, path>`.
    Struct,
    /// `images: list<struct<bytes, path>>`.
    List,
    /// As `Struct`, with a path alone.
    Path,
}

fn pair_fields() -> Fields {
    vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)]
        .into()
}

fn pair_builder() -> StructBuilder {
    StructBuilder::new(
        pair_fields(),
        vec![Box::new(BinaryBuilder::new()), Box::new(StringBuilder::new())],
    )
}

fn append(builder: &mut StructBuilder, bytes: Option<&[u8]>, path: &str) {
    builder.field_builder::<BinaryBuilder>(0).unwrap().append_option(bytes);
    builder.field_builder::<StringBuilder>(1).unwrap().append_value(path);
    builder.append(true);
}

/// Rows of RLAIF-V's columns, and one that no shape reads. `broken` are rows whose picture is cut.
fn batch(count: usize, pictures: Pictures, broken: &[usize]) -> RecordBatch {
    let bytes = |i: usize| {
        let all = png(b'a');
        let end = if broken.contains(&i) { all.len() / 2 } else { all.len() };
        all[..end].to_vec()
    };
    let (name, column): (&str, ArrayRef) = match pictures {
        Pictures::Bytes => {
            let mut builder = BinaryBuilder::new();
            (0..count).for_each(|i| builder.append_value(bytes(i)));
            ("image", Arc::new(builder.finish()))
        }
        Pictures::Struct | Pictures::Path => {
            let mut builder = pair_builder();
            for i in 0..count {
                let own = bytes(i);
                let own = (pictures == Pictures::Struct).then_some(own.as_slice());
                append(&mut builder, own, "images/a.png");
            }
            ("image", Arc::new(builder.finish()))
        }
        Pictures::List => {
            let mut builder = ListBuilder::new(pair_builder());
            for i in 0..count {
                append(builder.values(), Some(&bytes(i)), "a.png");
                builder.append(true);
            }
            ("images", Arc::new(builder.finish()))
        }
    };
    let texts = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text; count])) };
    let columns = vec![
        (name, column),
        ("question", texts(QUESTION)),
        ("chosen", texts(GOOD)),
        ("rejected", texts(BAD)),
        ("origin_split", texts("{}")),
    ];
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, column)| Field::new(*name, column.data_type().clone(), true))
        .collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn parquet(path: &Path, batch: &RecordBatch, compression: Compression) {
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(7))
        .set_compression(compression)
        .build();
    let file = fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn parquet_with_pictures_of_every_form() {
    for (pictures, compression) in [
        (Pictures::Bytes, Compression::SNAPPY),
        (Pictures::Struct, Compression::UNCOMPRESSED),
        (Pictures::List, Compression::GZIP(Default::default())),
        (Pictures::Path, Compression::LZ4_RAW),
    ] {
        let folder = Folder::new();
        let path = folder.path("train-00000-of-00001.parquet");
        parquet(&path, &batch(20, pictures, &[]), compression);
        let data = open(&path);
        assert_eq!((data.len(), shape(&data).as_str()), (20, "rlaif-v"), "{pictures:?}");
        // Across the row groups' ends, and one row alone.
        let some = data.read(5..16).unwrap();
        assert_eq!(some.len(), 11);
        some.iter().for_each(|sample| expect(sample, Some(BAD)));
        assert_eq!((some[0].id.as_str(), some[0].place.as_str()), ("row-6", "row 6"));
        assert_eq!(data.references(19..20).unwrap(), [GOOD]);
        // Pictures that are left in the file.
        let lazy = data.read_lazily(13..14).unwrap();
        expect(&lazy[0], Some(BAD));
        let content = lazy[0].images[0].content_hash().unwrap();
        assert_eq!(content, *blake3::hash(&png(b'a')).as_bytes(), "content, not path");
    }
}

#[test]
fn arrow_folders_are_read_by_batch() {
    let folder = Folder::new();
    for split in ["set/train", "set/test"] {
        fs::create_dir_all(folder.path(split)).unwrap();
        let file = fs::File::create(folder.path(split).join("data-00000-of-00001.arrow")).unwrap();
        let first = batch(5, Pictures::Struct, &[]);
        let mut writer = arrow_ipc::writer::StreamWriter::try_new(file, &first.schema()).unwrap();
        writer.write(&first).unwrap();
        writer.write(&batch(3, Pictures::Struct, &[])).unwrap();
        writer.finish().unwrap();
        fs::write(folder.path(split).join("state.json"), "{}").unwrap();
    }
    folder.write("set/dataset_dict.json", r#"{"splits": ["train", "test"]}"#);
    let error = Dataset::open(&folder.path("set"), &DatasetOptions::default()).unwrap_err();
    assert!(error.to_string().contains("splits train, test"), "{error}");
    let data = open(&folder.path("set/train"));
    assert_eq!(data.len(), 8);
    let some = data.read(3..7).unwrap();
    some.iter().for_each(|sample| expect(sample, Some(BAD)));
    assert_eq!(some[3].id, "row-7");

    let path = folder.path("with-footer.arrow");
    let first = batch(5, Pictures::List, &[]);
    let file = fs::File::create(&path).unwrap();
    let mut writer = arrow_ipc::writer::FileWriter::try_new(file, &first.schema()).unwrap();
    writer.write(&first).unwrap();
    writer.write(&first).unwrap();
    writer.finish().unwrap();
    let data = open(&path);
    expect(&data.read(7..8).unwrap()[0], Some(BAD));
    // Cut in the middle of a message.
    let bytes = fs::read(folder.path("set/test/data-00000-of-00001.arrow")).unwrap();
    let cut = folder.write("cut.arrow", &bytes[..bytes.len() / 2]);
    let error = Dataset::open(&cut, &DatasetOptions::default()).unwrap_err().to_string();
    assert!(error.contains("cut.arrow") && error.contains("ends here"), "{error}");
}

#[test]
fn a_parquet_that_is_none_is_named() {
    let folder = Folder::new();
    let path = folder.write("x.parquet", b"PAR1 and then nothing of the kind");
    let error = Dataset::open(&path, &DatasetOptions::default()).unwrap_err().to_string();
    assert!(error.contains("x.parquet: cannot be read"), "{error}");
}

// ---- rows of no use ----

#[test]
fn rows_of_no_use_are_counted_by_kind() {
    let folder = Folder::new();
    let row = |image: Value, question: &str, answer: &str| json!({"image": image, "question": question, "answer": answer});
    let conversation = json!({"image": "images/a.png", "conversations": [
        {"from": "gpt", "value": "A."}, {"from": "human", "value": "<image>\n?"}]});
    let rows = [
        row(json!("images/a.png"), QUESTION, GOOD),
        row(json!(null), QUESTION, GOOD),
        row(json!("images/gone.png"), QUESTION, GOOD),
        row(json!("images/gone too.png"), QUESTION, GOOD),
        row(json!("images/a.png"), " ", GOOD),
        row(json!("images/a.png"), QUESTION, ""),
        row(json!("../a.png"), QUESTION, GOOD),
        row(json!("images/a.png"), "<image> or <image>?", GOOD),
        row(json!(4), QUESTION, GOOD),
        conversation,
        json!({"caption": "A pear."}),
        row(json!("images/b.png"), QUESTION, GOOD),
    ];
    let options = DatasetOptions { needs_picture: true, ..Default::default() };
    let path = folder.rows(&rows);
    let data = Dataset::list(std::slice::from_ref(&path), &options).unwrap();
    assert_eq!(data.len(), 2);
    let reasons: Vec<(usize, Reason)> =
        data.skipped().iter().map(|one| (one.row, one.reason)).collect();
    assert_eq!(
        reasons,
        [
            (2, Reason::NoPicture),
            (3, Reason::MissingPicture),
            (4, Reason::MissingPicture),
            (5, Reason::Blank),
            (6, Reason::Blank),
            (7, Reason::PictureOutside),
            (8, Reason::PictureCount),
            (9, Reason::Malformed),
            (10, Reason::TurnOrder),
            (11, Reason::Malformed),
        ]
    );
    let ids: Vec<String> = samples(&data).into_iter().map(|sample| sample.id).collect();
    assert_eq!(ids, ["row-1", "row-12"]);
    let error = data.check("ADVICE").unwrap_err().to_string();
    for word in [
        "rows.jsonl: line 2: sample \"row-2\" has no image",
        "10 of 12 rows cannot be used",
        "2 x missing picture, first",
        "2 x blank question or answer",
        "1 x turns out of order",
        "ADVICE",
    ] {
        assert!(error.contains(word), "{word}\n{error}");
    }
    assert!(data.check_share(0.9).is_ok());
    let error = data.check_share(0.5).unwrap_err().to_string();
    assert!(error.contains("83.3 %") && error.contains("max_skipped"), "{error}");
}

#[test]
fn a_limit_ends_the_reading() {
    let folder = Folder::new();
    let row = json!({"image": "images/a.png", "question": QUESTION, "answer": GOOD});
    let path = folder.rows(&[row.clone(), row, json!({"image": 5})]);
    let options = DatasetOptions { limit: Some(2), needs_picture: true, ..Default::default() };
    assert_eq!(Dataset::open(&path, &options).unwrap().len(), 2);
}

#[cfg(unix)]
#[test]
fn links_out_of_the_folder_are_followed_on_demand() {
    let folder = Folder::new();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("a.png"), png(b'a')).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), folder.path("coco")).unwrap();
    let path = folder.rows(&[json!({"image": "coco/a.png", "question": QUESTION, "answer": GOOD})]);
    let error = Dataset::open(&path, &DatasetOptions::default()).unwrap_err().to_string();
    assert!(error.contains("leads to") && error.contains("--allow-links"), "{error}");
    let options = DatasetOptions { allow_links: true, ..Default::default() };
    expect(&samples(&Dataset::open(&path, &options).unwrap())[0], None);
}
