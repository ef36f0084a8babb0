//! One request at a time to an OpenAI-compatible chat endpoint.

use std::{
    fmt,
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use base64::Engine as _;
use serde_json::{Value, json};

use super::{Ask, Judge};
use crate::{
    Error, Result,
    engine::{Progress, checkpoint},
};

/// Longest wait between tries.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Largest body that is read.
const LARGEST_BODY: u64 = 16 << 20;
/// Bytes of a body that is no reply, for messages.
const SHOWN: usize = 300;

/// Where a judge is, and which.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Address without `/chat/completions`.
    pub base_url: String,
    /// Model name as the service knows it.
    pub model: String,
    /// Bearer token; none for services without.
    key: Option<String>,
}

/// The key is not shown.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let key = self.key.as_ref().map(|_| "...");
        f.debug_struct("Endpoint")
            .field("base_url", &self.base_url)
            .field("model", &self.model)
            .field("key", &key)
            .finish()
    }
}

impl Endpoint {
    /// An endpoint.
    pub fn new(base_url: &str, model: &str, key: Option<String>) -> Self {
        let key = key.filter(|key| !key.is_empty());
        Self { base_url: base_url.trim_end_matches('/').into(), model: model.into(), key }
    }

    /// A model at `OPENAI_BASE_URL` (default: OpenAI's) with `OPENAI_API_KEY`.
    pub fn from_env(model: &str) -> Self {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = var("OPENAI_BASE_URL").unwrap_or_else(|| "https://api.openai.com/v1".to_owned());
        Self::new(&url, model, var("OPENAI_API_KEY"))
    }
}

/// A chat completion.
#[derive(Debug)]
pub(super) struct Reply {
    pub model: String,
    /// Empty for a refusal.
    pub content: String,
    pub finish: String,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub raw: Value,
}

/// Why there is none.
#[derive(Debug)]
pub(super) struct Failure {
    pub status: u16,
    pub message: String,
    /// Trying again would not help.
    pub fatal: bool,
}

/// The connection pool, and when the service wants to hear from us again.
pub(super) struct Client {
    agent: ureq::Agent,
    endpoint: Endpoint,
    not_before: Mutex<Option<Instant>>,
}

/// The request's JSON.
pub(super) fn body(judge: &Judge, ask: &Ask, image: Option<&Path>) -> Result<Value> {
    let content = match image {
        None => json!(ask.user),
        Some(path) => json!([
            {"type": "text", "text": ask.user},
            {"type": "image_url", "image_url": {"url": data_url(path)?, "detail": judge.detail}},
        ]),
    };
    let mut messages = Vec::new();
    messages.extend(ask.system.map(|system| json!({"role": "system", "content": system})));
    messages.push(json!({"role": "user", "content": content}));
    let mut body = json!({
        "model": judge.endpoint.model, "messages": messages, "temperature": ask.temperature,
    });
    if let Some(most) = ask.max_tokens {
        body["max_tokens"] = json!(most);
    }
    Ok(body)
}

/// An image file as it is, in base64.
fn data_url(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let kind = image::guess_format(&bytes).map_err(|_| {
        Error::invalid(path, "", "is of no known image format, expected PNG, JPEG, WebP or GIF")
    })?;
    let text = base64::engine::general_purpose::STANDARD.encode(&bytes);
    Ok(format!("data:{};base64,{text}", kind.to_mime_type()))
}

impl Client {
    pub fn new(judge: &Judge) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(judge.timeout))
            .http_status_as_error(false)
            .build();
        Self {
            agent: config.into(),
            endpoint: judge.endpoint.clone(),
            not_before: Mutex::new(None),
        }
    }

    /// Waits before try `number`, and as long as the service asked for. Hears requests to stop.
    pub fn wait(&self, number: u32, first: Duration, progress: &dyn Progress) -> Result<()> {
        let own = match number {
            0 => Duration::ZERO,
            number => first.saturating_mul(1 << (number - 1).min(16)).min(LONGEST_WAIT),
        };
        let until = Instant::now() + own;
        loop {
            checkpoint(progress)?;
            let asked = self.not_before.lock().ok().and_then(|at| *at).unwrap_or(until);
            let left = until.max(asked).saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    pub fn post(&self, body: &Value) -> Result<Reply, Failure> {
        let url = format!("{}/chat/completions", self.endpoint.base_url);
        let mut request = self.agent.post(&url).header("content-type", "application/json");
        if let Some(key) = &self.endpoint.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let passing = |error: ureq::Error| Failure {
            status: 0,
            message: self.redacted(&error.to_string()),
            fatal: false,
        };
        let mut response = request.send(body.to_string().as_bytes()).map_err(passing)?;
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.trim().parse::<f64>().ok())
            .filter(|seconds| (0.0..=3600.0).contains(seconds));
        let bytes =
            response.body_mut().with_config().limit(LARGEST_BODY).read_to_vec().map_err(passing)?;
        let text = self.redacted(&String::from_utf8_lossy(&bytes));
        match status {
            200..=299 => completion(&text).map_err(|reason| Failure {
                status,
                message: format!("{reason}: {}", beginning(&text)),
                fatal: false,
            }),
            _ => {
                let fatal = !(status == 408 || status == 409 || status == 429 || status >= 500);
                if status == 429
                    && let Ok(mut at) = self.not_before.lock()
                {
                    let wait = Duration::from_secs_f64(retry_after.unwrap_or(0.0));
                    *at = Some(Instant::now() + wait);
                }
                let message = format!("status {status}: {}", beginning(&text));
                Err(Failure { status, message, fatal })
            }
        }
    }

    /// Text without the key, should a service repeat it.
    fn redacted(&self, text: &str) -> String {
        match &self.endpoint.key {
            Some(key) => text.replace(key.as_str(), "[key]"),
            None => text.to_owned(),
        }
    }
}

fn beginning(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// Reads a chat completion; what is wrong with it otherwise.
fn completion(text: &str) -> std::result::Result<Reply, &'static str> {
    let raw: Value = serde_json::from_str(text).map_err(|_| "the body is no JSON")?;
    let choice = raw.get("choices").and_then(|choices| choices.get(0));
    let message = choice
        .and_then(|choice| choice.get("message"))
        .ok_or("the body has no choices[0].message")?;
    let tokens = |name: &str| raw["usage"][name].as_u64().unwrap_or(0);
    Ok(Reply {
        model: raw["model"].as_str().unwrap_or_default().to_owned(),
        content: message["content"].as_str().unwrap_or_default().to_owned(),
        finish: choice
            .and_then(|choice| choice["finish_reason"].as_str())
            .unwrap_or_default()
            .to_owned(),
        prompt_tokens: tokens("prompt_tokens"),
        completion_tokens: tokens("completion_tokens"),
        raw,
    })
}
