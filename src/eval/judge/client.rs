//! One request at a time to an OpenAI-compatible chat endpoint.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use base64::Engine as _;
use serde_json::{Value, json};

use super::{Ask, Judge, endpoint::Endpoint, graded::text_of};
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

/// A chat completion.
#[derive(Debug)]
pub(super) struct Reply {
    pub model: String,
    /// Empty for a refusal, and for a reply whose limit was used up by thoughts.
    pub content: String,
    pub finish: String,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// As it was sent; none where the service takes none.
    pub temperature: Option<f64>,
    pub raw: Value,
}

/// Why there is none.
#[derive(Debug)]
pub(super) struct Failure {
    pub status: u16,
    pub message: String,
    /// Where the request itself was refused, the parameter that the service names, or all that it says.
    pub refused: String,
    /// Trying again would not help.
    pub fatal: bool,
}

/// The connection pool, and what the service has said about how it wants to be asked.
pub(super) struct Client {
    agent: ureq::Agent,
    endpoint: Endpoint,
    not_before: Mutex<Option<Instant>>,
    /// Takes `max_completion_tokens` in place of `max_tokens`.
    completion_tokens: AtomicBool,
    /// Takes no temperature.
    no_temperature: AtomicBool,
    /// Has taken one.
    some_temperature: AtomicBool,
}

/// The messages of a request.
pub(super) fn messages(judge: &Judge, ask: &Ask, image: Option<&Path>) -> Result<Value> {
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
    Ok(messages.into())
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
        let mut config = ureq::Agent::config_builder()
            .timeout_global(Some(judge.timeout))
            .http_status_as_error(false)
            // A redirected POST becomes a GET, whose answer is no reply; and answers go nowhere but where the user said.
            .max_redirects(0);
        if judge.endpoint.is_local() {
            config = config.proxy(None);
        }
        Self {
            agent: config.build().into(),
            endpoint: judge.endpoint.clone(),
            not_before: Mutex::new(None),
            completion_tokens: AtomicBool::new(false),
            no_temperature: AtomicBool::new(false),
            some_temperature: AtomicBool::new(false),
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

    /// Asks once; again only where the service refuses a parameter that can be sent in another way or left out. Such a refusal
    /// costs nothing, and later requests are sent as it wants them.
    pub fn ask(&self, ask: &Ask, messages: &Value) -> Result<Reply, Failure> {
        let mut bare = self.no_temperature.load(Ordering::SeqCst);
        loop {
            let limit = match self.completion_tokens.load(Ordering::SeqCst) {
                true => "max_completion_tokens",
                false => "max_tokens",
            };
            let temperature = if bare { None } else { Some(ask.temperature) };
            let mut body = json!({"model": self.endpoint.model, "messages": messages});
            if let Some(temperature) = temperature {
                body["temperature"] = json!(temperature);
            }
            if let Some(most) = ask.max_tokens {
                body[limit] = json!(most);
            }
            let failure = match self.post(&body) {
                Ok(reply) => {
                    self.some_temperature.fetch_or(temperature.is_some(), Ordering::SeqCst);
                    return Ok(Reply { temperature, ..reply });
                }
                Err(failure) => failure,
            };
            if limit == "max_tokens" && ask.max_tokens.is_some() && failure.refuses(limit) {
                self.completion_tokens.store(true, Ordering::SeqCst);
            } else if temperature.is_some() && failure.refuses("temperature") {
                // Where others were taken, this value alone is refused.
                let all = !self.some_temperature.load(Ordering::SeqCst);
                self.no_temperature.fetch_or(all, Ordering::SeqCst);
                bare = true;
            } else {
                return Err(failure);
            }
        }
    }

    fn post(&self, body: &Value) -> Result<Reply, Failure> {
        let send = || self.sent(body);
        // What a service sends must not end the run, whatever it does to the code that reads it.
        catch_unwind(AssertUnwindSafe(send)).unwrap_or_else(|_| {
            let message = "the HTTP client failed on what the service sent".to_owned();
            Err(Failure { status: 0, message, refused: String::new(), fatal: false })
        })
    }

    fn sent(&self, body: &Value) -> Result<Reply, Failure> {
        let mut request =
            self.agent.post(self.endpoint.url()).header("content-type", "application/json");
        if let Some(authorization) = self.endpoint.authorization() {
            request = request.header("authorization", authorization);
        }
        let passing = |error: ureq::Error| Failure {
            status: 0,
            message: self.endpoint.redacted(&error.to_string()),
            refused: String::new(),
            fatal: false,
        };
        let mut response = request.send(body.to_string().as_bytes()).map_err(passing)?;
        let status = response.status().as_u16();
        let header =
            |name: &str| Some(response.headers().get(name)?.to_str().ok()?.trim().to_owned());
        let retry_after = header("retry-after").and_then(|value| value.parse::<f64>().ok());
        let location = header("location").unwrap_or_else(|| "another address".to_owned());
        let bytes =
            response.body_mut().with_config().limit(LARGEST_BODY).read_to_vec().map_err(passing)?;
        let text = String::from_utf8_lossy(&bytes);
        let document = serde_json::from_str(&text).ok().map(|raw| self.redacted(raw));
        let shown = || match &document {
            Some(document) => beginning(&document.to_string()),
            None => beginning(&self.endpoint.redacted(&text)),
        };
        let failure =
            |message: String, fatal| Failure { status, message, refused: String::new(), fatal };
        match status {
            200..=299 => {
                let Some(document) = document.clone() else {
                    return Err(failure(format!("the body is no JSON: {}", shown()), false));
                };
                completion(document)
                    .map_err(|(reason, fatal)| failure(format!("{reason}: {}", shown()), fatal))
            }
            300..=399 => {
                let to = self.endpoint.redacted(&location);
                let message = format!(
                    "status {status}: the service redirects to {to}, where nothing was sent; if that is \
                     the judge, set OPENAI_BASE_URL to it"
                );
                Err(failure(message, true))
            }
            _ => {
                if status == 429 {
                    self.hold_back(retry_after);
                }
                // A quota that is used up does not come back by waiting.
                let error = document.as_ref().map_or(&Value::Null, |document| &document["error"]);
                let spent = error["code"] == "insufficient_quota";
                let passes = matches!(status, 408 | 409 | 429) || status >= 500;
                let refused = match error["param"].as_str() {
                    _ if !matches!(status, 400 | 422) => String::new(),
                    Some(param) => param.to_owned(),
                    None => document.as_ref().map_or(String::new(), Value::to_string),
                };
                let message = format!("status {status}: {}", shown());
                Err(Failure { refused, ..failure(message, spent || !passes) })
            }
        }
    }

    /// After a 429, all threads wait as long as the service asked for.
    fn hold_back(&self, seconds: Option<f64>) {
        let seconds = seconds.filter(|seconds| (0.0..=3600.0).contains(seconds));
        if let Ok(mut at) = self.not_before.lock() {
            *at = Some(Instant::now() + Duration::from_secs_f64(seconds.unwrap_or(0.0)));
        }
    }

    /// A document without the key, should a service repeat it, however it is escaped.
    fn redacted(&self, value: Value) -> Value {
        match value {
            Value::String(text) => self.endpoint.redacted(&text).into(),
            Value::Array(list) => list.into_iter().map(|value| self.redacted(value)).collect(),
            Value::Object(fields) => fields
                .into_iter()
                .map(|(name, value)| (self.endpoint.redacted(&name), self.redacted(value)))
                .collect(),
            other => other,
        }
    }
}

impl Failure {
    /// Whether the service refuses a parameter of this name: the error names it, as a word of its own.
    fn refuses(&self, parameter: &str) -> bool {
        self.refused
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .any(|word| word == parameter)
    }
}

fn beginning(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// Reads a chat completion; otherwise what is wrong with it, and whether the service would do it again.
fn completion(raw: Value) -> std::result::Result<Reply, (String, bool)> {
    let choice = raw.get("choices").and_then(|choices| choices.get(0));
    let message = choice.and_then(|choice| choice.get("message"));
    let (Some(choice), Some(message)) = (choice, message) else {
        return Err(("the body has no choices[0].message".to_owned(), false));
    };
    let tokens = |name: &str| raw["usage"][name].as_u64().unwrap_or(0);
    Ok(Reply {
        model: raw["model"].as_str().unwrap_or_default().to_owned(),
        content: text_of(&message["content"])
            .map_err(|reason| (format!("choices[0].message.content {reason}"), true))?,
        finish: choice["finish_reason"].as_str().unwrap_or_default().to_owned(),
        prompt_tokens: tokens("prompt_tokens"),
        completion_tokens: tokens("completion_tokens"),
        temperature: None,
        raw,
    })
}
