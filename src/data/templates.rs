//! Prompts as text that a chat template has already been put around. The model's own template is put around every prompt,
//! so such a text is taken apart first; otherwise it would carry two.

use crate::models::{Role, Turn};

/// How a template marks who speaks.
struct Marks {
    name: &'static str,
    /// Before a question.
    user: &'static str,
    /// Before an answer: the end of a prompt.
    assistant: &'static str,
    /// What else it writes around turns.
    others: &'static [&'static str],
}

const MARKS: [Marks; 6] = [
    Marks { name: "Vicuna", user: "USER:", assistant: "ASSISTANT:", others: &["<s>", "</s>"] },
    Marks {
        name: "Llama 2",
        user: "[INST]",
        assistant: "[/INST]",
        others: &["<s>", "</s>", "<<SYS>>", "<</SYS>>"],
    },
    Marks {
        name: "ChatML",
        user: "<|im_start|>user",
        assistant: "<|im_start|>assistant",
        others: &["<|im_start|>system", "<|im_end|>"],
    },
    Marks {
        name: "Llama 3",
        user: "<|start_header_id|>user<|end_header_id|>",
        assistant: "<|start_header_id|>assistant<|end_header_id|>",
        others: &["<|begin_of_text|>", "<|start_header_id|>system<|end_header_id|>", "<|eot_id|>"],
    },
    Marks {
        name: "Phi",
        user: "<|user|>",
        assistant: "<|assistant|>",
        others: &["<|system|>", "<|end|>"],
    },
    Marks {
        name: "Gemma",
        user: "<start_of_turn>user",
        assistant: "<start_of_turn>model",
        others: &["<bos>", "<end_of_turn>"],
    },
];

/// What a prompt said before a template was put around it.
pub(crate) struct Bare {
    /// The template.
    pub name: &'static str,
    /// The question, after a system turn if there was one.
    pub turns: Vec<Turn>,
    others: &'static [&'static str],
}

impl Bare {
    /// An answer without the template's end mark and without white space at its ends, which the template writes.
    pub fn answer(&self, text: &str) -> String {
        without(self.others, text)
    }
}

/// Takes a prompt out of its template; none if it is in none. An error says why it cannot be.
pub(crate) fn bare(prompt: &str) -> Option<Result<Bare, String>> {
    let text = prompt.trim();
    let marks = MARKS.iter().find(|marks| {
        text.strip_suffix(marks.assistant).is_some_and(|before| before.contains(marks.user))
    })?;
    let before = text.strip_suffix(marks.assistant).unwrap_or_default();
    if before.contains(marks.assistant) || before.matches(marks.user).count() > 1 {
        return Some(Err(format!(
            "is several turns in the template of {}: give them as a list of messages",
            marks.name
        )));
    }
    let (system, question) = before.split_once(marks.user).unwrap_or_default();
    let mut turns = Vec::new();
    // Llama 2 has its system turn inside of the first question.
    let (system, question) = match question.split_once("<</SYS>>") {
        Some((system, question)) => (system, question),
        None => (system, question),
    };
    let system = without(marks.others, system);
    if !system.is_empty() {
        turns.push(Turn { role: Role::System, text: system });
    }
    let question = without(marks.others, question);
    let question = match question.strip_prefix("<image>") {
        Some(rest) => format!("<image>\n{}", rest.trim()),
        None => question,
    };
    if question.replace("<image>", "").trim().is_empty() {
        return Some(Err(format!("is blank inside of the template of {}", marks.name)));
    }
    turns.push(Turn { role: Role::User, text: question });
    Some(Ok(Bare { name: marks.name, turns, others: marks.others }))
}

fn without(marks: &[&str], text: &str) -> String {
    let mut text = text.to_owned();
    for mark in marks {
        text = text.replace(mark, "");
    }
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(text: &str) -> Vec<(Role, String)> {
        let bare = bare(text).unwrap().unwrap();
        bare.turns.into_iter().map(|turn| (turn.role, turn.text)).collect()
    }

    #[test]
    fn questions_come_out_of_every_template() {
        for text in [
            "USER: <image>\nWhat? ASSISTANT:",
            "<s>[INST] <image>\nWhat? [/INST]",
            "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|user|>\n<image>\nWhat?<|end|>\n<|assistant|>\n",
            "<bos><start_of_turn>user\n<image>\nWhat?<end_of_turn>\n<start_of_turn>model\n",
        ] {
            assert_eq!(turns(text), [(Role::User, "<image>\nWhat?".to_owned())], "{text}");
        }
        assert!(bare("What does USER: mean?").is_none());
        assert!(bare("Which mark ends a turn, ASSISTANT: or another?").is_none());
        assert!(bare("USER: a ASSISTANT: b USER: c ASSISTANT:").unwrap().is_err());
    }

    #[test]
    fn system_turns_are_kept() {
        let expected = [(Role::System, "Be kind.".to_owned()), (Role::User, "Why?".to_owned())];
        for text in [
            "Be kind. USER: Why? ASSISTANT:",
            "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nWhy? [/INST]",
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        ] {
            assert_eq!(turns(text), expected, "{text}");
        }
    }

    #[test]
    fn answers_lose_the_end_mark() {
        let bare = bare("USER: Why? ASSISTANT:").unwrap().unwrap();
        assert_eq!(bare.answer(" So.</s>"), "So.");
    }
}
