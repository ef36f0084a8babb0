//! Chat templates: Jinja as checkpoints carry it.
//!
//! Templates are written against Python, so besides plain Jinja they need some of its string and dict methods and
//! transformers' settings: blocks trimmed, `raise_exception`, and `{% generation %}` marks (rendered as always true,
//! which keeps their white-space control). `strftime_now` is refused: a prompt must not depend on the day.
//!
//! A template is a program from a stranger: its work and its output are limited ([`FUEL`], [`MAX_TEXT`]), and a panic of the
//! library becomes an error.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error as JinjaError, ErrorKind, State, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value as Json;

use super::fields::Fields;
use super::guard::guarded;
use crate::{Error, Result};

/// Steps that one rendering may take; minijinja counts instructions, and 64 bytes of data as one. A hundred messages of published
/// templates take about 5,000.
const FUEL: u64 = 1_000_000;

/// Bytes that a rendering may have beyond its messages.
const MAX_TEXT: usize = 1 << 20;

/// Templates used where a checkpoint has none: the conversations of the LLaVA code, of the same names.
const KNOWN: [(&str, &str); 5] = [
    (
        "vicuna_v1",
        "{% if messages[0]['role'] != 'system' %}{{ \"A chat between a curious user and an artificial intelligence \
         assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. \" }}{% endif %}\
         {% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}\
         {% elif m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}\
         {% else %}{{ 'ASSISTANT: ' + m['content'] + '</s>' }}{% endif %}{% endfor %}\
         {% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    ),
    (
        "mistral_instruct",
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' </s>' }}\
         {% elif m['role'] == 'user' %}{{ '[INST] ' }}\
         {% if loop.index0 == 1 and messages[0]['role'] == 'system' and messages[0]['content'] %}\
         {{ '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' }}{% endif %}\
         {{ m['content'] + ' [/INST]' }}{% endif %}{% endfor %}",
    ),
    (
        "chatml_direct",
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nAnswer the questions.<|im_end|>' }}{% endif %}\
         {% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    (
        "qwen_1_5",
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}\
         {% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    (
        "llava_llama_2",
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% else %}\
         {% set system = 'You are a helpful language and vision assistant. You are able to understand the visual content that \
         the user provides, and assist the user with a variety of tasks using natural language.' %}{% endif %}\
         {% set ns = namespace(first=true) %}\
         {% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' </s>' }}\
         {% elif m['role'] == 'user' %}{% if ns.first %}{{ '[INST] <<SYS>>\n' + system + '\n<</SYS>>\n\n' }}\
         {% set ns.first = false %}{% else %}{{ '<s>[INST] ' }}{% endif %}{{ m['content'] + ' [/INST]' }}\
         {% endif %}{% endfor %}",
    ),
];

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions before the conversation.
    System,
    /// The human.
    User,
    /// The model.
    Assistant,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A message, its images in their place.
pub(super) struct Message<'a> {
    pub role: Role,
    /// Text with the checkpoint's own image placeholder.
    pub text: &'a str,
}

/// A chat template ready to render.
pub(super) struct Template {
    env: Environment<'static>,
    name: String,
    source: String,
    /// Content as a list of parts (`{"type": "image"}`, `{"type": "text"}`) rather than as one string.
    parts: bool,
}

impl Template {
    /// The template of the checkpoint in `dir`, looked for where transformers does: `chat_template.jinja`,
    /// `chat_template.json`, `processor_config.json`, `tokenizer_config.json`. `None` if there is none.
    pub fn read(dir: &Path, tokenizer: Option<&Fields>) -> Result<Option<Self>> {
        if let Some(own) = Self::read_own(dir, tokenizer)? {
            return Ok(Some(own));
        }
        for file in ["chat_template.json", "processor_config.json", "tokenizer_config.json"] {
            let path = dir.join(file);
            let Some(fields) = Fields::read_if_present(&path)? else { continue };
            if let Some(source) = chosen(&fields)? {
                let name = format!("{}, field chat_template", path.display());
                return Self::new(name, source, tokenizer).map(Some);
            }
        }
        Ok(None)
    }

    /// The template in `chat_template.jinja` alone. `None` if there is none.
    pub fn read_own(dir: &Path, tokenizer: Option<&Fields>) -> Result<Option<Self>> {
        let path = dir.join("chat_template.jinja");
        if !path.is_file() {
            return Ok(None);
        }
        let source = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        Self::new(path.display().to_string(), source, tokenizer).map(Some)
    }

    /// A template by the name of its LLaVA conversation: `vicuna_v1`, `mistral_instruct` or `chatml_direct`.
    pub fn known(name: &str, tokenizer: Option<&Fields>) -> Result<Self> {
        let source = KNOWN.iter().find(|(n, _)| *n == name).map(|(_, source)| *source);
        let source = source.ok_or_else(|| {
            Error::unsupported(
                format!("chat template \"{name}\""),
                "known are vicuna_v1, mistral_instruct and chatml_direct",
            )
        })?;
        Self::new(name.to_owned(), source.to_owned(), tokenizer)
    }

    fn new(name: String, source: String, tokenizer: Option<&Fields>) -> Result<Self> {
        let source = without_generation_marks(&source)?;
        let mut this = Self { env: environment(tokenizer)?, name, source, parts: false };
        this.parts = this.takes_parts();
        Ok(this)
    }

    /// A short name for messages: a file or a known template.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Renders the messages; `image` is the placeholder that stands for an image in their text.
    pub fn render(
        &self,
        messages: &[Message],
        image: &str,
        answer_follows: bool,
    ) -> Result<String> {
        let list: Vec<Value> = messages.iter().map(|m| message(m, image, self.parts)).collect();
        let refused = |message: String| {
            Error::unsupported(format!("chat template of {}", self.name), message)
        };
        let text = self.render_values(list, answer_follows)?.map_err(|e| match e.kind() {
            ErrorKind::OutOfFuel => refused(format!(
                "it takes more than {FUEL} steps for one conversation; templates of chat models take thousands"
            )),
            _ => refused(format!("{e:#}")),
        })?;
        let given: usize = messages.iter().map(|m| m.text.len()).sum();
        if text.len() > given + MAX_TEXT {
            let message = format!("it makes {} bytes of {given} bytes of messages", text.len());
            return Err(refused(message));
        }
        Ok(text)
    }

    /// The outer error is a panic of the library.
    fn render_values(
        &self,
        messages: Vec<Value>,
        answer_follows: bool,
    ) -> Result<Result<String, JinjaError>> {
        let context = context! { messages, add_generation_prompt => answer_follows };
        guarded(Path::new(&self.name), "minijinja", || {
            self.env.template_from_str(&self.source)?.render(context)
        })
    }

    /// Whether the template understands lists of parts: tried out, since templates do not say.
    fn takes_parts(&self) -> bool {
        const PROBE: &str = "probe of the content";
        let probe = Message { role: Role::User, text: PROBE };
        match self.render_values(vec![message(&probe, "\u{0}", true)], true) {
            // A template for strings either fails on a list or prints it with its keys.
            Ok(Ok(text)) => {
                text.contains(PROBE) && !text.contains("\"type\"") && !text.contains("'type'")
            }
            _ => false,
        }
    }
}

/// The template text of a settings file; of a list of named ones, `default`.
fn chosen(fields: &Fields) -> Result<Option<String>> {
    const NAME: &str = "chat_template";
    match fields.value(NAME) {
        None => Ok(None),
        Some(Json::String(source)) => Ok(Some(source.clone())),
        Some(Json::Array(list)) => list
            .iter()
            .find(|t| t["name"] == "default")
            .and_then(|t| t["template"].as_str())
            .map(|source| Some(source.to_owned()))
            .ok_or_else(|| fields.invalid(NAME, "is a list without a template named \"default\"")),
        Some(other) => Err(fields.wrong(NAME, other, "a template or a list of named templates")),
    }
}

fn without_generation_marks(source: &str) -> Result<String> {
    let pattern = regex::Regex::new(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
        .map_err(|e| Error::unsupported("chat template", e.to_string()))?;
    let swap = |c: &regex::Captures| {
        let statement = if c.get(2).is_some() { "endif" } else { "if true" };
        format!("{{%{} {statement} {}%}}", &c[1], &c[3])
    };
    Ok(pattern.replace_all(source, swap).into_owned())
}

fn message(message: &Message, image: &str, parts: bool) -> Value {
    let role = message.role.name();
    if !parts {
        return context! { role, content => message.text };
    }
    let mut content = Vec::new();
    let mut pieces = message.text.split(image).peekable();
    let mut first = true;
    while let Some(mut piece) = pieces.next() {
        // Line breaks beside a placeholder belong to LLaVA's data format; the template writes its own.
        if !first {
            content.push(context! { type => "image" });
            piece = piece.trim_start_matches('\n');
        }
        if pieces.peek().is_some() {
            piece = piece.trim_end_matches('\n');
        }
        first = false;
        if !piece.is_empty() {
            content.push(context! { type => "text", text => piece });
        }
    }
    context! { role, content }
}

fn environment(tokenizer: Option<&Fields>) -> Result<Environment<'static>> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.map_err(|e| Error::unsupported("chat template", e.to_string()))?);
    env.set_recursion_limit(200);
    env.set_fuel(Some(FUEL));
    let refuse = |message: String| -> Result<Value, JinjaError> {
        Err(JinjaError::new(ErrorKind::InvalidOperation, message))
    };
    env.add_function("raise_exception", move |message: String| refuse(message));
    env.add_function("strftime_now", move |_: String| {
        refuse("strftime_now would make prompts depend on the date".into())
    });
    env.set_unknown_method_callback(|state, value, method, args| {
        if let Some(text) = value.as_str() {
            pay(state, text, method, args)?;
        }
        python_method(state, value, method, args)
    });
    for name in ["bos_token", "eos_token", "unk_token", "pad_token"] {
        let text = tokenizer.and_then(|fields| special_token(fields, name)).unwrap_or_default();
        env.add_global(name, text);
    }
    Ok(env)
}

/// A special token of `tokenizer_config.json`: a string, or an object with its `content`.
pub(super) fn special_token(fields: &Fields, name: &str) -> Option<String> {
    let value = fields.value(name)?;
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// The Python methods of strings and dicts. Python counts U+001C to U+001F as white space, Unicode does not.
fn python_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, JinjaError> {
    let space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    let text = value.as_str().filter(|_| args.is_empty());
    Ok(match (text, method) {
        (Some(text), "strip") => text.trim_matches(space).into(),
        (Some(text), "lstrip") => text.trim_start_matches(space).into(),
        (Some(text), "rstrip") => text.trim_end_matches(space).into(),
        (Some(text), "split") => {
            text.split(space).filter(|word| !word.is_empty()).map(Value::from).collect()
        }
        _ => return unknown_method_callback(state, value, method, args),
    })
}

/// Takes the fuel of a string method before it makes anything.
fn pay(state: &State, text: &str, method: &str, args: &[Value]) -> Result<(), JinjaError> {
    let len = |i: usize| args.get(i).and_then(Value::as_str).map_or(0, str::len);
    let bytes = match method {
        // Each part is a value of its own.
        "split" | "splitlines" | "rsplit" => text.len().saturating_mul(64),
        "replace" => {
            let places = text.len() / len(0).max(1) + 1;
            text.len().saturating_add(places.saturating_mul(len(1)))
        }
        _ => text.len(),
    };
    state.consume_fuel(bytes as u64 / 64)
}
