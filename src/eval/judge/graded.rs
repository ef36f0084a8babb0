//! The part of a reply that rules look for a grade in.

use serde_json::Value;

use crate::data::json::kind;

/// Tags around what models of today think before they answer.
const THOUGHTS: [&str; 3] = ["think", "thinking", "reasoning"];

/// A reply without what its model thought before it answered, and without a fence around the whole answer. A reply that has
/// neither is returned unchanged, to the blank, since rules depend on blanks. Thoughts that no tag ends were cut off, and no
/// answer follows them.
pub fn graded(reply: &str) -> &str {
    unfenced(answer(reply))
}

/// What follows the thoughts.
fn answer(reply: &str) -> &str {
    let start = reply.trim_start();
    for tag in THOUGHTS {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        if let Some(thoughts) = start.strip_prefix(open.as_str()) {
            // Where thoughts quote the tag, the answer follows the last one.
            return thoughts.rsplit_once(close.as_str()).map_or("", |(_, rest)| rest.trim());
        }
        // Templates that end in the opening tag leave the closing one alone.
        if let Some((_, rest)) = reply.rsplit_once(close.as_str()) {
            return rest.trim();
        }
    }
    reply
}

/// What stands in a fence of back-ticks that encloses everything; its first line may name a language.
fn unfenced(text: &str) -> &str {
    let whole = text.trim();
    let inside = whole.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    let Some(inside) = inside.filter(|inside| !inside.contains("```")) else { return text };
    match inside.split_once('\n') {
        Some((language, body)) if language.trim().chars().all(char::is_alphanumeric) => body.trim(),
        Some(_) => text,
        None => inside.trim(),
    }
}

/// The text of a message's content: a string, or a list of parts whose texts are joined; parts that are thoughts or refusals
/// are no text. Null is no text either.
pub(in crate::eval) fn text_of(content: &Value) -> std::result::Result<String, String> {
    let part = |part: &Value| match (part, part["type"].as_str()) {
        (Value::String(text), _) => Ok(text.clone()),
        (_, Some("text" | "output_text")) if part["text"].is_string() => {
            Ok(part["text"].as_str().unwrap_or_default().to_owned())
        }
        (_, Some("thinking" | "reasoning" | "redacted_thinking" | "refusal")) => Ok(String::new()),
        _ => Err(format!("has the part {part}, expected one with a text")),
    };
    match content {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => parts.iter().map(part).collect(),
        other => Err(format!("is {}, expected a text, a list of parts or null", kind(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::graded;

    #[test]
    fn thoughts_and_fences_are_taken_off() {
        for (reply, answer) in [
            ("0.5", "0.5"),
            (" 0.5\n", " 0.5\n"),
            ("", ""),
            ("<think>\nperhaps 0.2\n</think>\n\n0.5", "0.5"),
            ("perhaps 0.2\n</think>\n0.5 ", "0.5"),
            ("<thinking>0.1</thinking>0.5", "0.5"),
            ("<think>a</think> then <think>b</think>\n7 8\nwhy", "7 8\nwhy"),
            ("<think>cut off at 0.2", ""),
            ("```\n0.5\n```", "0.5"),
            ("```0.5```", "0.5"),
            ("```text\n0.5\n```\n", "0.5"),
            ("<think>x</think>\n```\n7 8\n```", "7 8"),
            // Not around everything.
            ("see ```\n0.5\n```", "see ```\n0.5\n```"),
            ("```a\n1\n``` and ```\n2\n```", "```a\n1\n``` and ```\n2\n```"),
            ("I think <b>0.5</b>", "I think <b>0.5</b>"),
        ] {
            assert_eq!(graded(reply), answer, "{reply:?}");
        }
    }
}
