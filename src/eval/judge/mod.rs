//! Judges: a benchmark's questions to a language model behind an OpenAI-compatible endpoint.
//!
//! Every reply is appended to `replies.jsonl` and made durable before it counts, so that scoring replays it for nothing and no
//! reply is paid for twice: a run that ends anywhere goes on with what is there. `judge.json` says what was asked; another model,
//! prompt or set of answers is refused. A lock keeps two processes from asking the same.
//!
//! # Rows
//! `{"kind": "reply", "id", "run", "attempt", "model", "content", "finish", "prompt_tokens", "completion_tokens",
//! "temperature", "raw"}`, `raw` being the service's document. `temperature` is null where the service takes none. `kind` is
//! `other_model` for a reply of another model than asked, which is kept (it was paid for) but not used, and `failure` for what was
//! no reply: `status` and the body's beginning.
//!
//! # What services of today want
//! `max_tokens` is sent as `max_completion_tokens`, and no temperature is sent, once the service has refused them by name. Content
//! may be a list of parts. Rules look for a grade in what follows a reply's thoughts ([`graded`]); a reply without text whose
//! `finish` is `length` was cut by its limit, which [`Judge::max_tokens`] raises.
//!
//! # Failures
//! 408, 409, 429, 5xx, time-outs, broken connections and bodies that are no chat completion (HTML, half a JSON) are tried again, with
//! waits that double from [`Judge::backoff`] up to a minute, or, after a 429, as long as its `Retry-After` asks, which holds all threads back. Other
//! statuses, redirections and a content that is no text end the run at once. A refusal is a reply without text, and no rule finds a
//! score in it.
//!
//! The key comes from the environment, is sent to the endpoint, and appears nowhere else: bodies that repeat it are redacted, however
//! they escape it. A service on this machine is asked without a proxy.

mod client;
mod endpoint;
mod graded;
mod store;

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use serde_json::{Value, json};

pub use endpoint::Endpoint;
pub use graded::graded;
pub(super) use graded::text_of;

use self::{
    client::{Client, Failure, Reply},
    store::Store,
};
use super::{Benchmark, Item, folder::claim};
use crate::{Error, Result, engine::Progress};

/// What a judge is asked about one answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// System message, if the reference sends one.
    pub system: Option<&'static str>,
    /// User message.
    pub user: String,
    /// Whether the image goes with it.
    pub image: bool,
    /// Sampling temperature.
    pub temperature: f64,
    /// Most tokens of the reply; none = the service's.
    pub max_tokens: Option<u32>,
}

/// Texts between the pieces of a form; there is one piece more than texts.
pub(super) fn fill<'a>(
    pieces: impl IntoIterator<Item = &'a str>,
    fields: impl IntoIterator<Item = &'a str>,
) -> String {
    let (mut text, mut fields) = (String::new(), fields.into_iter());
    for piece in pieces {
        text.push_str(piece);
        text.push_str(fields.next().unwrap_or_default());
    }
    text
}

/// The inverse of [`fill`], for judges of our own: a text's fields, if it has the form. Only the last field may contain the
/// piece that ends it.
pub(super) fn fields<'a, const N: usize>(
    text: &'a str,
    (first, between, last): (&str, [&str; N], &str),
) -> Option<Vec<&'a str>> {
    let mut rest = text.strip_prefix(first)?.strip_suffix(last)?;
    let mut fields = Vec::with_capacity(N + 1);
    for piece in between {
        let (field, after) = rest.split_once(piece)?;
        fields.push(field);
        rest = after;
    }
    fields.push(rest);
    Some(fields)
}

/// How to ask.
#[derive(Clone, Debug, PartialEq)]
pub struct Judge {
    /// Where.
    pub endpoint: Endpoint,
    /// Runs over all items.
    pub runs: u32,
    /// Requests under way at once.
    pub threads: usize,
    /// Tries of one request.
    pub tries: u32,
    /// First wait after a failure; doubles up to a minute.
    pub backoff: Duration,
    /// Longest time for one request, at most a day.
    pub timeout: Duration,
    /// Most tokens of a reply, in place of the protocol's: for models that think before they answer.
    pub max_tokens: Option<u32>,
    /// A model name that replies may have besides the one asked for.
    pub accept_model: Option<String>,
    /// Detail level of images: auto, low or high.
    pub detail: String,
    /// Price of a million prompt tokens and of a million reply tokens.
    pub prices: Option<(f64, f64)>,
}

/// Longest time for a request, and longest first wait.
const DAY: Duration = Duration::from_secs(86_400);

impl Judge {
    /// Runs over all items.
    pub const RUNS: u32 = 1;
    /// Requests under way at once.
    pub const THREADS: usize = 4;
    /// Tries of one request.
    pub const TRIES: u32 = 8;
    /// Seconds before the second try.
    pub const BACKOFF: f64 = 1.0;
    /// Seconds for one request.
    pub const TIMEOUT: f64 = 120.0;
    /// Detail level of images.
    pub const DETAIL: &str = "auto";

    /// A judge that is asked as the constants above say.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            runs: Self::RUNS,
            threads: Self::THREADS,
            tries: Self::TRIES,
            backoff: Duration::from_secs_f64(Self::BACKOFF),
            timeout: Duration::from_secs_f64(Self::TIMEOUT),
            max_tokens: None,
            accept_model: None,
            detail: Self::DETAIL.to_owned(),
            prices: None,
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// The first one outside its range.
    pub fn validate(&self) -> Result<()> {
        self.endpoint.validate()?;
        let refuse =
            |what, got: String, expected| Err(Error::argument("judge", what, got, expected));
        let seconds = |time: Duration| format!("{} s", time.as_secs_f64());
        match self {
            _ if self.timeout.is_zero() || self.timeout > DAY => {
                refuse("timeout", seconds(self.timeout), "more than 0 and at most 86400 s")
            }
            _ if self.backoff > DAY => refuse("backoff", seconds(self.backoff), "at most 86400 s"),
            _ if !(1..=999).contains(&self.runs) => {
                refuse("runs", self.runs.to_string(), "between 1 and 999")
            }
            _ if !(1..=1024).contains(&self.threads) => {
                refuse("threads", self.threads.to_string(), "between 1 and 1024")
            }
            _ if self.max_tokens == Some(0) => refuse("max_tokens", "0".into(), "1 or more"),
            _ => Ok(()),
        }
    }

    /// Whether a reply of this model is used: the one asked for or accepted by name, or a dated version of it.
    fn accepts(&self, model: &str) -> bool {
        let same = |name: &str| {
            model.strip_prefix(name).is_some_and(|end| end.is_empty() || end.starts_with('-'))
        };
        same(&self.endpoint.model) || self.accept_model.as_deref().is_some_and(same)
    }
}

/// What asking will cost, or has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Requests.
    pub requests: u64,
    /// Tokens of prompts; an estimate before asking (four characters a token, images not counted).
    pub prompt_tokens: u64,
    /// Tokens of replies; 0 before asking.
    pub completion_tokens: u64,
    /// In the unit of the prices; null without prices.
    pub price: Option<f64>,
}

impl Cost {
    fn priced(mut self, prices: Option<(f64, f64)>) -> Self {
        self.price = prices.map(|(prompt, reply)| {
            (self.prompt_tokens as f64 * prompt + self.completion_tokens as f64 * reply) / 1e6
        });
        self
    }
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { requests, prompt_tokens, completion_tokens, price } = self;
        write!(
            f,
            "{requests} requests, {prompt_tokens} prompt tokens, {completion_tokens} reply tokens"
        )?;
        price.map_or(Ok(()), |price| write!(f, ", price {price:.4}"))
    }
}

/// What is to be judged, and where replies go.
pub struct Work<'a> {
    /// The metric's name.
    pub metric: &'a str,
    /// Items and prompts.
    pub benchmark: &'a dyn Benchmark,
    /// Answers in the items' order.
    pub answers: &'a [Option<String>],
    /// Image file of an item, where the judge sees it.
    pub image: &'a (dyn Fn(&Item) -> Result<PathBuf> + Sync),
    /// Folder of `judge.json` and `replies.jsonl`.
    pub out: &'a Path,
}

/// Asks for every reply that is not there yet; returns the store's file and what this call has cost. `estimate` hears of the
/// cost before the first request.
///
/// # Errors
/// If the folder belongs to another run or is in use, a request fails for good, a reply is of another model, or the run is
/// interrupted. What was received by then is kept.
pub fn run(
    judge: &Judge,
    work: &Work,
    progress: &dyn Progress,
    estimate: &dyn Fn(Cost),
) -> Result<(PathBuf, Cost)> {
    judge.validate()?;
    let items = work.benchmark.items();
    let first: Vec<Ask> = (0..items.len())
        .map(|i| {
            let ask = work.benchmark.ask(i, work.answers[i].as_deref().unwrap_or(""))?;
            Ok(Ask { max_tokens: judge.max_tokens.or(ask.max_tokens), ..ask })
        })
        .collect::<Result<_>>()?;
    let path = work.out.join("replies.jsonl");
    let store = Store::open(&path, |model| judge.accepts(model))?;
    claim(&work.out.join("judge.json"), &manifest(judge, work, &first))?;
    let jobs: Vec<(usize, u32)> =
        (0..judge.runs).flat_map(|run| (0..items.len()).map(move |i| (i, run))).collect();
    let open: Vec<(usize, u32)> =
        jobs.into_iter().filter(|&(i, run)| !store.has(&items[i].id, run, 0)).collect();
    let characters: usize = open.iter().map(|&(i, _)| first[i].user.chars().count()).sum();
    let before = Cost {
        requests: open.len() as u64,
        prompt_tokens: characters.div_ceil(4) as u64,
        ..Cost::default()
    };
    estimate(before.priced(judge.prices));
    progress.begin("asking the judge", Some(u64::from(judge.runs) * items.len() as u64));
    let shared = Shared {
        judge,
        work,
        first,
        client: Client::new(judge),
        path,
        store: Mutex::new(store),
        next: AtomicUsize::new(0),
        failed: Mutex::new(None),
        cost: Mutex::new(Cost::default()),
    };
    std::thread::scope(|scope| {
        for _ in 0..judge.threads.max(1) {
            scope.spawn(|| shared.work_off(progress));
        }
    });
    match shared.failed.into_inner().unwrap_or_default() {
        Some(error) => Err(error),
        None => {
            let cost = shared.cost.into_inner().unwrap_or_default();
            Ok((shared.path, cost.priced(judge.prices)))
        }
    }
}

/// What a store's replies depend on.
fn manifest(judge: &Judge, work: &Work, asks: &[Ask]) -> Value {
    let mut hasher = blake3::Hasher::new();
    for ask in asks {
        hasher.update(format!("{ask:?}\n").as_bytes());
    }
    json!({
        "metric": work.metric,
        "model": judge.endpoint.model,
        "detail": judge.detail,
        "asks": hasher.finalize().to_hex().to_string(),
        "comparable": work.benchmark.official_prompt(),
    })
}

/// What the threads share.
struct Shared<'a> {
    judge: &'a Judge,
    work: &'a Work<'a>,
    first: Vec<Ask>,
    client: Client,
    path: PathBuf,
    store: Mutex<Store>,
    next: AtomicUsize,
    failed: Mutex<Option<Error>>,
    cost: Mutex<Cost>,
}

impl Shared<'_> {
    /// Takes items until there are none, or something has failed for good.
    fn work_off(&self, progress: &dyn Progress) {
        let items = self.work.benchmark.items().len();
        loop {
            let job = self.next.fetch_add(1, Ordering::SeqCst);
            let failed = self.failed.lock().map_or(true, |failed| failed.is_some());
            if failed || job >= items * self.judge.runs as usize {
                return;
            }
            let (item, run) = (job % items, (job / items) as u32);
            if let Err(error) = self.one(item, run, progress) {
                if let Ok(mut failed) = self.failed.lock() {
                    failed.get_or_insert(error);
                }
                return;
            }
            progress.advance(1);
        }
    }

    /// All requests about one item in one run: the first, and more where the protocol asks again.
    fn one(&self, item: usize, run: u32, progress: &dyn Progress) -> Result<()> {
        let id = &self.work.benchmark.items()[item].id;
        let mut ask = self.first[item].clone();
        let mut replies: Vec<String> = Vec::new();
        loop {
            let attempt = replies.len() as u32;
            let known = self.locked()?.content(id, run, attempt);
            let content = match known {
                Some(content) => content,
                None => self.request(item, run, attempt, &ask, progress)?,
            };
            replies.push(content);
            match self.work.benchmark.again(&self.first[item], &replies) {
                Some(next) => ask = next,
                None => return Ok(()),
            }
        }
    }

    fn locked(&self) -> Result<std::sync::MutexGuard<'_, Store>> {
        let broken = |_| Error::argument("judge", "a thread", "panicked", "threads that end");
        self.store.lock().map_err(broken)
    }

    /// Asks until there is a reply, and stores it.
    fn request(
        &self,
        item: usize,
        run: u32,
        attempt: u32,
        ask: &Ask,
        progress: &dyn Progress,
    ) -> Result<String> {
        let it = &self.work.benchmark.items()[item];
        let image = if ask.image { Some((self.work.image)(it)?) } else { None };
        let messages = client::messages(self.judge, ask, image.as_deref())?;
        let place = json!({"id": it.id, "run": run, "attempt": attempt});
        let (mut last, mut tried) = (String::new(), 0);
        for number in 0..self.judge.tries.max(1) {
            self.client.wait(number, self.judge.backoff, progress)?;
            tried = number + 1;
            match self.client.ask(ask, &messages) {
                Ok(reply) => return self.keep(&place, reply),
                Err(failure) => {
                    last = failure.message.clone();
                    let Failure { status, message, .. } = &failure;
                    let row = json!({"kind": "failure", "status": status, "message": message});
                    self.locked()?.append(&merged(row, &place))?;
                    if failure.fatal {
                        break;
                    }
                }
            }
        }
        let message = format!(
            "the judge gave no reply about item {} in {tried} tries; the last: {last}",
            it.id
        );
        Err(Error::invalid(self.judge.endpoint.url(), "", message))
    }

    fn keep(&self, place: &Value, reply: Reply) -> Result<String> {
        let wanted = &self.judge.endpoint.model;
        let ours = self.judge.accepts(&reply.model);
        let row = json!({
            "kind": if ours { "reply" } else { "other_model" },
            "model": reply.model,
            "content": reply.content,
            "finish": reply.finish,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "temperature": reply.temperature,
            "raw": reply.raw,
        });
        self.locked()?.append(&merged(row, place))?;
        if let Ok(mut cost) = self.cost.lock() {
            // A service may claim any number.
            cost.requests += 1;
            cost.prompt_tokens = cost.prompt_tokens.saturating_add(reply.prompt_tokens);
            cost.completion_tokens = cost.completion_tokens.saturating_add(reply.completion_tokens);
        }
        if ours {
            return Ok(graded(&reply.content).to_owned());
        }
        let message = format!(
            "the reply names {:?}; it is kept in {}, but not used. Ask for that model, or accept it by name",
            reply.model,
            self.path.display()
        );
        Err(Error::invalid(self.judge.endpoint.url(), format!("judge {wanted}"), message))
    }
}

/// The fields of both, the place's at the end.
fn merged(mut row: Value, place: &Value) -> Value {
    for (name, value) in place.as_object().into_iter().flatten() {
        row[name] = value.clone();
    }
    row
}
