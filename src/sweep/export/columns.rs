//! Records as Parquet columns.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{
    ArrayBuilder, BinaryBuilder, BooleanBuilder, Float64Builder, Int64Builder, ListBuilder,
    StringBuilder, StructBuilder,
};
use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use serde_json::{Value, json};

use super::File;
use super::record::{Message, Record};
use crate::files::AtomicFile;
use crate::store::Score;
use crate::sweep::summary::flag_name;
use crate::{Error, Result};

/// Rows of a row group, and the bytes of images after which it ends early: what data set viewers can page through.
const GROUP_ROWS: usize = 100;
const GROUP_BYTES: usize = 64 << 20;

/// A Parquet file being written.
pub(super) struct ParquetFile {
    writer: ArrowWriter<AtomicFile>,
    path: PathBuf,
    schema: Arc<Schema>,
    /// With the data set's own rejected answers.
    own: bool,
    rows: Vec<(Record, Vec<Picture>)>,
    bytes: usize,
}

/// An image as Hugging Face's `Image` feature stores it.
struct Picture {
    bytes: Option<Vec<u8>>,
    path: String,
}

impl ParquetFile {
    pub fn create(path: &Path, encoders: &[&str], own: bool) -> Result<Self> {
        let schema = Arc::new(schema(encoders, own));
        let properties = properties(path)?;
        let file = AtomicFile::create(path)?;
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))
            .map_err(|error| failed(path, error))?;
        Ok(Self { writer, path: path.into(), schema, own, rows: Vec::new(), bytes: 0 })
    }

    /// Adds a row; `files` are the record's images.
    pub fn push(&mut self, record: Record, files: Vec<File>) -> Result<()> {
        let picture = |file: File| match file.bytes {
            Some(bytes) => Picture { bytes: Some(bytes), path: file.name },
            None => Picture { bytes: None, path: file.path.to_string_lossy().into_owned() },
        };
        let pictures: Vec<Picture> = files.into_iter().map(picture).collect();
        self.bytes += pictures.iter().filter_map(|p| p.bytes.as_ref()).map(Vec::len).sum::<usize>();
        self.rows.push((record, pictures));
        if self.rows.len() >= GROUP_ROWS || self.bytes >= GROUP_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }

    pub fn commit(mut self) -> Result<()> {
        self.flush()?;
        let path = self.path;
        self.writer.into_inner().map_err(|error| failed(&path, error))?.commit()
    }

    fn flush(&mut self) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let columns = columns(&self.rows, self.own);
        RecordBatch::try_new(self.schema.clone(), columns)
            .map_err(Into::into)
            .and_then(|batch| self.writer.write(&batch))
            .and_then(|()| self.writer.flush())
            .map_err(|error| failed(&self.path, error))?;
        self.rows.clear();
        self.bytes = 0;
        Ok(())
    }
}

fn failed(path: &Path, error: parquet::errors::ParquetError) -> Error {
    Error::Io { path: path.into(), source: std::io::Error::other(error) }
}

/// Settings that decide the bytes of a file, all of them fixed.
fn properties(path: &Path) -> Result<WriterProperties> {
    let level = ZstdLevel::try_new(3).map_err(|error| failed(path, error))?;
    // Pictures are compressed already, never repeat within a row group, and have no useful order.
    let pictures: ColumnPath =
        ["images", "list", "item", "bytes"].map(String::from).to_vec().into();
    Ok(WriterProperties::builder()
        .set_created_by(concat!("bdhs version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(None)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_column_compression(pictures.clone(), Compression::UNCOMPRESSED)
        .set_column_dictionary_enabled(pictures.clone(), false)
        .set_column_statistics_enabled(pictures, EnabledStatistics::None)
        .build())
}

fn field(name: &str, kind: DataType) -> Field {
    Field::new(name, kind, true)
}

fn list(item: DataType) -> DataType {
    DataType::List(Arc::new(field("item", item)))
}

fn picture_fields() -> Fields {
    vec![field("bytes", DataType::Binary), field("path", DataType::Utf8)].into()
}

fn content_fields() -> Fields {
    vec![field("type", DataType::Utf8), field("text", DataType::Utf8)].into()
}

fn message_fields() -> Fields {
    vec![field("role", DataType::Utf8), field("content", list(DataType::Struct(content_fields())))]
        .into()
}

fn score_fields() -> Fields {
    vec![
        field("phi", DataType::Float64),
        field("candidate_tokens", DataType::Int64),
        field("reference_tokens", DataType::Int64),
        field("candidate_truncated", DataType::Boolean),
        field("reference_truncated", DataType::Boolean),
    ]
    .into()
}

fn scores_fields(encoders: &[&str]) -> Fields {
    encoders.iter().map(|name| field(name, DataType::Struct(score_fields()))).collect()
}

fn mask_fields() -> Fields {
    vec![
        field("rho", DataType::Float64),
        field("kept", DataType::Int64),
        field("image_tokens", DataType::Int64),
        field("key", DataType::Utf8),
    ]
    .into()
}

/// The columns, with Hugging Face's description of them.
fn schema(encoders: &[&str], own: bool) -> Schema {
    let messages = || list(DataType::Struct(message_fields()));
    let mut fields = vec![
        field("images", list(DataType::Struct(picture_fields()))),
        field("prompt", messages()),
        field("chosen", messages()),
        field("rejected", messages()),
        field("id", DataType::Utf8),
        field("sample", DataType::Int64),
        field("attempt", DataType::Int64),
        field("guided", DataType::Boolean),
        field("forced", DataType::Boolean),
        field("encoder", DataType::Utf8),
        field("threshold", DataType::Float64),
        field("phi", DataType::Float64),
    ];
    if !encoders.is_empty() {
        // Parquet has no struct without fields.
        fields.push(field("scores", DataType::Struct(scores_fields(encoders))));
    }
    fields.extend([
        field("mask", DataType::Struct(mask_fields())),
        field("flags", list(DataType::Utf8)),
        field("candidate", DataType::Utf8),
        field("seed", DataType::Utf8),
    ]);
    if own {
        fields.push(field("source_rejected", DataType::Utf8));
    }
    let mut features = features(&fields.iter().cloned().collect());
    features["images"] = json!([{ "_type": "Image" }]);
    let description = json!({ "info": { "features": features } }).to_string();
    Schema::new_with_metadata(fields, [("huggingface", description)])
}

/// Fields in the notation of Hugging Face's `datasets`. A list is a JSON list of one entry, which all its versions read.
fn features(fields: &Fields) -> Value {
    Value::Object(fields.iter().map(|f| (f.name().clone(), feature(f.data_type()))).collect())
}

fn feature(kind: &DataType) -> Value {
    let value = |dtype: &str| json!({ "dtype": dtype, "_type": "Value" });
    match kind {
        DataType::Struct(fields) => features(fields),
        DataType::List(item) => Value::Array(vec![feature(item.data_type())]),
        DataType::Utf8 => value("string"),
        DataType::Boolean => value("bool"),
        other => value(&other.to_string().to_lowercase()),
    }
}

fn columns(rows: &[(Record, Vec<Picture>)], own: bool) -> Vec<ArrayRef> {
    let records = || rows.iter().map(|(record, _)| record);
    let texts = |get: fn(&Record) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(records().map(get)))
    };
    let numbers = |get: fn(&Record) -> u32| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(records().map(|r| i64::from(get(r)))))
    };
    let switches = |get: fn(&Record) -> bool| -> ArrayRef {
        Arc::new(records().map(|record| Some(get(record))).collect::<BooleanArray>())
    };
    let mut columns: Vec<ArrayRef> = vec![
        pictures(rows),
        messages(records().map(|r| &r.prompt)),
        messages(records().map(|r| &r.chosen)),
        messages(records().map(|r| &r.rejected)),
        texts(|r| &r.id),
        numbers(|r| r.sample),
        numbers(|r| r.attempt),
        switches(|r| r.guided),
        switches(|r| r.forced),
        texts(|r| &r.encoder),
        Arc::new(Float64Array::from_iter_values(records().map(|r| r.threshold))),
        Arc::new(records().map(|r| number(r.phi)).collect::<Float64Array>()),
    ];
    columns.extend(scores(rows));
    columns.push(masks(rows));
    columns.push(flags(rows));
    columns.push(texts(|r| &r.candidate));
    columns.push(texts(|r| &r.seed));
    if own {
        let texts = records().map(|r| r.source_rejected.as_deref());
        columns.push(Arc::new(texts.collect::<StringArray>()));
    }
    columns
}

/// NaN is null, as in JSON.
fn number(value: f64) -> Option<f64> {
    (!value.is_nan()).then_some(value)
}

fn list_of(fields: Fields, builders: Vec<Box<dyn ArrayBuilder>>) -> ListBuilder<StructBuilder> {
    let item = field("item", DataType::Struct(fields.clone()));
    ListBuilder::new(StructBuilder::new(fields, builders)).with_field(item)
}

/// Appends to a struct's child. The children of each struct are made right here, so their types are known.
macro_rules! child {
    ($parent:expr, $index:expr, $kind:ty, $value:expr) => {
        if let Some(builder) = $parent.field_builder::<$kind>($index) {
            builder.append_option($value);
        }
    };
}

fn pictures(rows: &[(Record, Vec<Picture>)]) -> ArrayRef {
    let children: Vec<Box<dyn ArrayBuilder>> =
        vec![Box::new(BinaryBuilder::new()), Box::new(StringBuilder::new())];
    let mut lists = list_of(picture_fields(), children);
    for (_, pictures) in rows {
        for picture in pictures {
            let entry = lists.values();
            child!(entry, 0, BinaryBuilder, picture.bytes.as_deref());
            child!(entry, 1, StringBuilder, Some(&picture.path));
            entry.append(true);
        }
        lists.append(true);
    }
    Arc::new(lists.finish())
}

fn messages<'a>(rows: impl Iterator<Item = &'a Vec<Message>>) -> ArrayRef {
    let texts: Vec<Box<dyn ArrayBuilder>> =
        vec![Box::new(StringBuilder::new()), Box::new(StringBuilder::new())];
    let contents = list_of(content_fields(), texts);
    let children: Vec<Box<dyn ArrayBuilder>> =
        vec![Box::new(StringBuilder::new()), Box::new(contents)];
    let mut lists = list_of(message_fields(), children);
    for conversation in rows {
        for message in conversation {
            let entry = lists.values();
            child!(entry, 0, StringBuilder, Some(message.role));
            if let Some(contents) = entry.field_builder::<ListBuilder<StructBuilder>>(1) {
                for content in &message.content {
                    let piece = contents.values();
                    child!(piece, 0, StringBuilder, Some(content.r#type));
                    child!(piece, 1, StringBuilder, content.text.as_deref());
                    piece.append(true);
                }
                contents.append(true);
            }
            entry.append(true);
        }
        lists.append(true);
    }
    Arc::new(lists.finish())
}

/// No column without encoders, as in the schema.
fn scores(rows: &[(Record, Vec<Picture>)]) -> Option<ArrayRef> {
    let (first, _) = rows.first()?;
    let names: Vec<&str> = first.scores.0.iter().map(|(name, _)| name.as_str()).collect();
    if names.is_empty() {
        return None;
    }
    let one = || -> Box<dyn ArrayBuilder> {
        let children: Vec<Box<dyn ArrayBuilder>> = vec![
            Box::new(Float64Builder::new()),
            Box::new(Int64Builder::new()),
            Box::new(Int64Builder::new()),
            Box::new(BooleanBuilder::new()),
            Box::new(BooleanBuilder::new()),
        ];
        Box::new(StructBuilder::new(score_fields(), children))
    };
    let mut all = StructBuilder::new(scores_fields(&names), names.iter().map(|_| one()).collect());
    for (record, _) in rows {
        for (index, (_, score)) in record.scores.0.iter().enumerate() {
            if let Some(entry) = all.field_builder::<StructBuilder>(index) {
                append_score(entry, score.as_ref());
            }
        }
        all.append(true);
    }
    Some(Arc::new(all.finish()))
}

fn append_score(entry: &mut StructBuilder, score: Option<&Score>) {
    child!(entry, 0, Float64Builder, score.and_then(|s| number(s.phi)));
    child!(entry, 1, Int64Builder, score.map(|s| i64::from(s.candidate_tokens)));
    child!(entry, 2, Int64Builder, score.map(|s| i64::from(s.reference_tokens)));
    child!(entry, 3, BooleanBuilder, score.map(|s| s.candidate_truncated));
    child!(entry, 4, BooleanBuilder, score.map(|s| s.reference_truncated));
    entry.append(score.is_some());
}

fn masks(rows: &[(Record, Vec<Picture>)]) -> ArrayRef {
    let children: Vec<Box<dyn ArrayBuilder>> = vec![
        Box::new(Float64Builder::new()),
        Box::new(Int64Builder::new()),
        Box::new(Int64Builder::new()),
        Box::new(StringBuilder::new()),
    ];
    let mut all = StructBuilder::new(mask_fields(), children);
    for (Record { mask, .. }, _) in rows {
        child!(all, 0, Float64Builder, Some(mask.rho));
        child!(all, 1, Int64Builder, Some(i64::from(mask.kept)));
        child!(all, 2, Int64Builder, Some(i64::from(mask.image_tokens)));
        child!(all, 3, StringBuilder, Some(&mask.key));
        all.append(true);
    }
    Arc::new(all.finish())
}

fn flags(rows: &[(Record, Vec<Picture>)]) -> ArrayRef {
    let mut lists = ListBuilder::new(StringBuilder::new());
    for (record, _) in rows {
        for flag in &record.flags {
            lists.values().append_value(flag_name(*flag));
        }
        lists.append(true);
    }
    Arc::new(lists.finish())
}
