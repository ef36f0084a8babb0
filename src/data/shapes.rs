//! The shapes of rows that data sets have, in one table. A row's shape is told by its columns: the first entry whose columns
//! it has, none of them null. To read another shape, add an entry.

use std::collections::BTreeSet;

use serde_json::Value;

use super::json::kind;
use super::row::{Bad, Row};
use super::talk::{Talk, prompt_turns};

/// A shape of rows.
pub(crate) struct Shape {
    /// Its name in logs and in `run.json`.
    pub name: &'static str,
    /// What a row must have.
    pub columns: &'static [&'static str],
    /// Who uses it.
    pub users: &'static str,
    read: fn(&Row) -> Result<Talk, Bad>,
}

/// Columns that may hold the pictures; the first that a row has is taken.
pub(crate) const PICTURES: [&str; 10] = [
    "images",
    "image",
    "file_name",
    "file_names",
    "image_path",
    "image_paths",
    "image_file_name",
    "images_file_names",
    "image_file",
    "img_path",
];

/// Columns beside those of the shapes.
const OTHERS: [&str; 5] = ["id", "flags", "context", "input", "source_rejected"];

/// Every shape. Those with more columns come before those whose columns they include.
pub(crate) static SHAPES: [Shape; 19] = [
    Shape {
        name: "sharegpt-preference",
        columns: &["conversations", "chosen", "rejected"],
        users: "LLaMA-Factory",
        read: |row| Talk::of(row, "conversations", "chosen", Some("rejected")),
    },
    Shape {
        name: "povid",
        columns: &["conversations", "rejected_conversations"],
        users: "POVID",
        read: |row| Talk::with_rejected(row, "conversations", "rejected_conversations"),
    },
    Shape {
        name: "llava",
        columns: &["conversations"],
        users: "LLaVA, LLaMA-Factory",
        read: |row| Talk::conversation(row, "conversations"),
    },
    Shape {
        name: "swift-preference",
        columns: &["messages", "rejected_response"],
        users: "ms-swift",
        read: |row| Talk::with_rejected(row, "messages", "rejected_response"),
    },
    Shape {
        name: "messages",
        columns: &["messages"],
        users: "TRL, ms-swift, LLaMA-Factory",
        read: |row| Talk::conversation(row, "messages"),
    },
    Shape {
        name: "sentinel",
        columns: &["question", "y_win", "y_lose"],
        users: "SENTINEL",
        read: sentinel,
    },
    Shape { name: "bpo", columns: &["prompt", "completions"], users: "BPO", read: completions },
    Shape {
        name: "trl-preference",
        columns: &["prompt", "chosen", "rejected"],
        users: "TRL, and the exports of this program",
        read: |row| Talk::of(row, "prompt", "chosen", Some("rejected")),
    },
    Shape {
        name: "rlaif-v",
        columns: &["question", "chosen", "rejected"],
        users: "RLAIF-V, MMPR",
        read: |row| Talk::of(row, "question", "chosen", Some("rejected")),
    },
    Shape {
        name: "instruction-preference",
        columns: &["instruction", "chosen", "rejected"],
        users: "LLaMA-Factory",
        read: |row| instruction(row, "chosen", Some("rejected")),
    },
    Shape {
        name: "trl-implicit",
        columns: &["chosen", "rejected"],
        users: "TRL, with the prompt inside of both answers",
        read: |row| Talk::implicit(row, "chosen", "rejected"),
    },
    Shape {
        name: "prompt-chosen",
        columns: &["prompt", "chosen"],
        users: "this program",
        read: |row| match row.get("reference") {
            Some(_) => {
                let message = "and field reference are both there, expected one";
                Err(Bad::malformed("chosen", message))
            }
            None => Talk::of(row, "prompt", "chosen", None),
        },
    },
    Shape {
        name: "prompt-reference",
        columns: &["prompt", "reference"],
        users: "this program",
        read: |row| Talk::of(row, "prompt", "reference", None),
    },
    Shape {
        name: "prompt-completion",
        columns: &["prompt", "completion"],
        users: "TRL",
        read: |row| Talk::of(row, "prompt", "completion", None),
    },
    Shape {
        name: "question-answer",
        columns: &["question", "answer"],
        users: "many",
        read: |row| Talk::of(row, "question", "answer", None),
    },
    Shape {
        name: "query-response-preference",
        columns: &["query", "response", "rejected_response"],
        users: "ms-swift",
        read: |row| Talk::of(row, "query", "response", Some("rejected_response")),
    },
    Shape {
        name: "query-response",
        columns: &["query", "response"],
        users: "ms-swift",
        read: |row| Talk::of(row, "query", "response", None),
    },
    Shape {
        name: "instruction-output",
        columns: &["instruction", "output"],
        users: "Alpaca, LLaMA-Factory",
        read: |row| instruction(row, "output", None),
    },
    Shape {
        name: "rlhf-v",
        columns: &["text"],
        users: "RLHF-V: a JSON string with question, chosen and rejected",
        read: json_string,
    },
];

impl Shape {
    /// The shape of a row.
    pub fn of(row: &Row) -> Option<&'static Self> {
        SHAPES.iter().find(|shape| shape.columns.iter().all(|column| row.get(column).is_some()))
    }

    /// What a row of this shape says.
    pub fn read(&self, row: &Row) -> Result<Talk, Bad> {
        (self.read)(row)
    }
}

/// The columns that some shape reads.
pub(crate) fn columns() -> BTreeSet<String> {
    let shapes = SHAPES.iter().flat_map(|shape| shape.columns);
    shapes.chain(&PICTURES).chain(&OTHERS).map(|&name| name.to_owned()).collect()
}

/// Whether some shape has a column of this name.
pub(crate) fn is_column(name: &str) -> bool {
    columns().contains(name)
}

/// What is said of a row that has none of the shapes.
pub(crate) fn unknown(own: &[String]) -> String {
    let mut text = format!("has the columns {}, expected those of one of these:", own.join(", "));
    for shape in &SHAPES {
        text.push_str(&format!(
            "\n  {:<26}{} ({})",
            shape.name,
            shape.columns.join(", "),
            shape.users
        ));
    }
    text.push_str(&format!("\npictures are read from one of {}", PICTURES.join(", ")));
    text.push_str(
        "\nother names: --columns prompt=NAME,chosen=NAME,rejected=NAME,images=NAME,id=NAME",
    );
    text
}

/// The column that holds a row's pictures.
pub(crate) fn picture_column(row: &Row) -> Option<&'static str> {
    PICTURES.into_iter().find(|name| row.get(name).is_some())
}

/// A continuation of what was said so far, for both answers.
fn sentinel(row: &Row) -> Result<Talk, Bad> {
    let context = match row.get("context") {
        Some(_) => row.text("context")?,
        None => "",
    };
    let join = |name: &str| {
        let text = row.text(name)?;
        let apart = context.is_empty()
            || context.ends_with(char::is_whitespace)
            || text.starts_with(char::is_whitespace);
        Ok(format!("{context}{}{text}", if apart { "" } else { " " }))
    };
    Ok(Talk::new(prompt_turns(row, "question")?, join("y_win")?, Some(join("y_lose")?)))
}

/// A question in two parts.
fn instruction(row: &Row, chosen: &str, rejected: Option<&str>) -> Result<Talk, Bad> {
    let mut talk = Talk::of(row, "instruction", chosen, rejected)?;
    if row.get("input").and_then(Value::as_str).is_some_and(|text| !text.trim().is_empty())
        && let Some(question) = talk.turns.first_mut()
    {
        question.text = format!("{}\n{}", question.text, row.text("input")?);
    }
    Ok(talk)
}

/// A list of answers, of which one is the ground truth or has the highest score.
fn completions(row: &Row) -> Result<Talk, Bad> {
    let field = "completions";
    let list = row.get(field).and_then(Value::as_array);
    let list =
        list.ok_or_else(|| Bad::malformed(field, "is no list, expected a list of answers"))?;
    let is_good = |one: &&Value| {
        let kind = one["type"].as_str().unwrap_or_default();
        ["gt", "ground_truth", "chosen", "positive", "preferred"].contains(&kind)
    };
    let score = |one: &&Value| one["score"].as_f64();
    let best = list.iter().filter(|one| score(one).is_some());
    let best =
        best.max_by(|a, b| score(a).partial_cmp(&score(b)).unwrap_or(std::cmp::Ordering::Equal));
    let Some(good) = list.iter().find(is_good).or(best) else {
        let kinds: Vec<String> = list.iter().map(|one| one["type"].to_string()).collect();
        let message = format!(
            "has answers of type {}, expected one of type gt or chosen, or scores",
            kinds.join(", ")
        );
        return Err(Bad::malformed(field, message));
    };
    let text = |one: &Value| match &one["response"] {
        Value::String(text) => Ok(text.clone()),
        other => Err(Bad::malformed(
            "completions[..].response",
            format!("is {}, expected a string", kind(other)),
        )),
    };
    let other = list.iter().find(|one| !std::ptr::eq(*one, good)).map(text).transpose()?;
    Ok(Talk::new(prompt_turns(row, "prompt")?, text(good)?, other))
}

/// A row inside of a string.
fn json_string(row: &Row) -> Result<Talk, Bad> {
    let fields = match serde_json::from_str(row.text("text")?) {
        Ok(Value::Object(fields)) => fields,
        _ => {
            let message = "is no JSON object with question, chosen and rejected; a text alone has no question";
            return Err(Bad::malformed("text", message));
        }
    };
    let inner = Row { fields, ..Row::default() };
    let rejected = inner.get("rejected").map(|_| "rejected");
    Talk::of(&inner, "question", "chosen", rejected)
        .map_err(|bad| Bad { field: format!("text.{}", bad.field), ..bad })
}
