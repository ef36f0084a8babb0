//! Lines of text, one layout a trainer.

use serde_json::{Map, Value, json};

use super::record::Record;
use crate::config::ExportFormat;
use crate::data::Sample;
use crate::models::Role;
use crate::sweep::grid::Cell;

/// A file of one line a pair.
pub(super) struct Layout {
    /// Its name.
    pub file: &'static str,
    /// The trainer it is for; TRL's is always written.
    format: ExportFormat,
    /// A pair's line, with its end.
    pub line: fn(&Record, &Sample) -> serde_json::Result<String>,
    /// A file that goes with it: name and text.
    pub beside: fn(&Cell) -> Option<(&'static str, String)>,
}

static LAYOUTS: [Layout; 3] = [
    Layout {
        file: "pairs.jsonl",
        format: ExportFormat::Trl,
        line: |record, _| Ok(serde_json::to_string(record)? + "\n"),
        beside: |_| None,
    },
    Layout {
        file: "llama_factory.jsonl",
        format: ExportFormat::LlamaFactory,
        line: sharegpt,
        beside: |cell| Some(("dataset_info.json", description(cell))),
    },
    Layout { file: "swift.jsonl", format: ExportFormat::Swift, line: swift, beside: |_| None },
];

/// The layouts of some formats, and TRL's.
pub(super) fn of(formats: &[ExportFormat]) -> impl Iterator<Item = &'static Layout> {
    let wanted = formats.to_vec();
    LAYOUTS
        .iter()
        .filter(move |one| one.format == ExportFormat::Trl || wanted.contains(&one.format))
}

/// A line: a trainer's own fields, then those of the record that say where the pair is from.
fn line(own: Value, record: &Record) -> serde_json::Result<String> {
    let mut fields: Map<String, Value> = serde_json::from_value(own)?;
    let all: Map<String, Value> = serde_json::from_value(serde_json::to_value(record)?)?;
    let origin = all
        .into_iter()
        .filter(|(name, _)| !["images", "prompt", "chosen", "rejected"].contains(&name.as_str()));
    fields.extend(origin);
    Ok(serde_json::to_string(&fields)? + "\n")
}

fn sharegpt(record: &Record, sample: &Sample) -> serde_json::Result<String> {
    let name = |role| match role {
        Role::System => "system",
        Role::User => "human",
        Role::Assistant => "gpt",
    };
    let turns = sample.turns.iter();
    let turns: Vec<Value> =
        turns.map(|turn| json!({"from": name(turn.role), "value": turn.text})).collect();
    let own = json!({
        "conversations": turns,
        "chosen": {"from": "gpt", "value": sample.reference},
        "rejected": {"from": "gpt", "value": record.answer()},
        "images": record.images,
    });
    line(own, record)
}

fn swift(record: &Record, sample: &Sample) -> serde_json::Result<String> {
    let name = |role| match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let turns = sample.turns.iter();
    let mut turns: Vec<Value> =
        turns.map(|turn| json!({"role": name(turn.role), "content": turn.text})).collect();
    turns.push(json!({"role": "assistant", "content": sample.reference}));
    let own = json!({
        "messages": turns,
        "rejected_response": record.answer(),
        "images": record.images,
    });
    line(own, record)
}

/// LLaMA-Factory's entry for the file beside it.
fn description(cell: &Cell) -> String {
    let columns = json!({
        "messages": "conversations",
        "chosen": "chosen",
        "rejected": "rejected",
        "images": "images",
    });
    let entry = json!({
        "file_name": "llama_factory.jsonl",
        "ranking": true,
        "formatting": "sharegpt",
        "columns": columns,
    });
    let mut all = Map::new();
    all.insert(format!("bdhs_{}", cell.label()), entry);
    format!("{:#}\n", Value::Object(all))
}
