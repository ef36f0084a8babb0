//! The hub's requests: what a revision holds, what a file is, and its bytes.

use std::fmt::Write;
use std::time::Duration;

use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body, RequestBuilder, typestate::WithoutBody};

use super::Name;
use super::cache::Repo;
use super::environment::Environment;
use crate::progress::{Progress, checkpoint};
use crate::{Error, Result};

/// Longest silence of the hub, of any kind.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest time until a connection stands.
const CONNECT: Duration = Duration::from_secs(10);
/// Tries of a request that the hub is too busy for.
const TRIES: u32 = 4;
/// Wait after the first of them; it doubles.
const WAIT: Duration = Duration::from_millis(500);
/// Longest wait that the hub may ask for.
const LONGEST_WAIT: u64 = 60;
/// Redirections within the hub, as those of renamed repositories.
const REDIRECTIONS: u32 = 5;
/// Largest answer about a revision.
const LARGEST_INFO: u64 = 64 << 20;

/// The hub, for one repository.
pub(super) struct Client<'a> {
    agent: Agent,
    environment: &'a Environment,
    pub name: &'a Name,
    pub progress: &'a dyn Progress,
}

/// What a revision is.
pub(super) struct Info {
    pub commit: String,
    /// Paths of all files.
    pub files: Vec<String>,
}

/// What a file is.
pub(super) struct Metadata {
    /// Its blob's name in the cache: the SHA-256 of a large file, in hexadecimal digits.
    pub etag: String,
    pub size: u64,
}

/// Why a request failed.
pub(super) enum Failure {
    /// No answer, or one that ended early.
    Unreachable(Error),
    /// Anything else: trying again would not help.
    Refused(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unreachable(error) | Failure::Refused(error) => error,
        }
    }
}

impl Failure {
    /// No answer from an address, and why.
    pub fn unreachable(url: &str, reason: impl std::fmt::Display) -> Self {
        let source = std::io::Error::other(format!("not to be reached: {reason}"));
        Self::Unreachable(Error::Io { path: url.into(), source })
    }
}

type Request = RequestBuilder<WithoutBody>;

impl<'a> Client<'a> {
    pub fn new(environment: &'a Environment, name: &'a Name, progress: &'a dyn Progress) -> Self {
        let config = Agent::config_builder()
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("bdhs/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), environment, name, progress }
    }

    /// The commit and the files of a revision.
    pub fn info(&self, revision: &str) -> Result<Info, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let Environment { endpoint, .. } = self.environment;
        let (repo, escaped) = (&self.name.repo, encoded(revision, ""));
        let url = format!("{endpoint}/api/models/{repo}/revision/{escaped}");
        let mut response = self.send(revision, &url, || self.agent.get(&url))?;
        let bytes = response.body_mut().with_config().limit(LARGEST_INFO).read_to_vec();
        let bytes = bytes.map_err(|error| Failure::unreachable(&url, error))?;
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|error| {
            Error::invalid(&url, "", format!("answers with no description of a revision: {error}"))
        })?;
        if !super::is_commit(&answer.sha) {
            let message = format!("is {:?}, expected 40 hexadecimal digits", answer.sha);
            return Err(Error::invalid(&url, "field sha", message).into());
        }
        let inside = |file: &str| file.split('/').all(|part| !matches!(part, "" | "." | ".."));
        let files = answer.siblings.into_iter().map(|sibling| sibling.rfilename);
        Ok(Info { commit: answer.sha, files: files.filter(|file| inside(file)).collect() })
    }

    /// The etag and the size of a file.
    pub fn metadata(&self, commit: &str, file: &str) -> Result<Metadata, Failure> {
        let mut url = self.url(commit, file);
        let mut response = None;
        for _ in 0..REDIRECTIONS {
            let request = || self.agent.head(&url).config().max_redirects(0).build();
            let answer = self.send(commit, &url, request)?;
            let on = header(answer.headers(), "location").filter(|to| to.starts_with('/'));
            let origin = url.parse::<Uri>().ok().and_then(|uri| {
                Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?.as_str()))
            });
            response = Some(answer);
            match (on, origin) {
                (Some(path), Some(origin)) => url = format!("{origin}{path}"),
                _ => break,
            }
        }
        let headers = response.as_ref().map(Response::headers);
        let of = |names: [&str; 2]| names.iter().find_map(|name| header(headers?, name));
        let etag = of(["x-linked-etag", "etag"]);
        // Weak ones are marked, all are quoted.
        let etag = etag.as_deref().map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        let size = of(["x-linked-size", "content-length"]).and_then(|size| size.parse().ok());
        let plain = |etag: &&str| {
            let known = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            !etag.is_empty() && etag.chars().all(known)
        };
        match (etag.filter(plain), size) {
            (Some(etag), Some(size)) => Ok(Metadata { etag: etag.to_owned(), size }),
            (etag, size) => {
                let message =
                    format!("answers with etag {etag:?} and size {size:?}, expected both of a hub");
                Err(Error::invalid(url, "", message).into())
            }
        }
    }

    /// The bytes of a file, from one of them on: status 206 if they begin there, 200 if they begin at the first.
    pub fn bytes(&self, commit: &str, file: &str, from: u64) -> Result<Response<Body>, Failure> {
        let url = self.url(commit, file);
        self.send(commit, &url, || match from {
            0 => self.agent.get(&url),
            from => self.agent.get(&url).header("range", format!("bytes={from}-")),
        })
    }

    /// Some bytes of a file: at most those of the range.
    pub fn range(
        &self,
        commit: &str,
        file: &str,
        range: std::ops::Range<u64>,
    ) -> Result<Vec<u8>, Failure> {
        let url = self.url(commit, file);
        let (first, last) = (range.start, range.end.saturating_sub(1));
        let mut response = self.send(commit, &url, || {
            self.agent.get(&url).header("range", format!("bytes={first}-{last}"))
        })?;
        // A whole file in answer to a range would be what was to be spared.
        if response.status().as_u16() != 206 {
            let status = response.status();
            let message =
                format!("answers a request for a range with status {status}, expected 206");
            return Err(Error::invalid(url, "", message).into());
        }
        let limit = range.end - range.start;
        let bytes = response.body_mut().with_config().limit(limit + 1).read_to_vec();
        bytes.map_err(|error| Failure::unreachable(&url, error))
    }

    /// The address of a file.
    pub fn url(&self, commit: &str, file: &str) -> String {
        let Environment { endpoint, .. } = self.environment;
        format!("{endpoint}/{}/resolve/{commit}/{}", self.name.repo, encoded(file, "/"))
    }

    /// Sends a request about a revision, again while the hub is too busy. Answers are successes or redirections.
    fn send(
        &self,
        revision: &str,
        url: &str,
        request: impl Fn() -> Request,
    ) -> Result<Response<Body>, Failure> {
        let mut number = 0;
        loop {
            number += 1;
            checkpoint(self.progress)?;
            let mut request = request().header("accept-encoding", "identity");
            if let Some(token) = &self.environment.token {
                request = request.header("authorization", format!("Bearer {}", token.secret));
            }
            let response = request.call().map_err(|error| Failure::unreachable(url, error))?;
            let status = response.status().as_u16();
            if status < 400 {
                return Ok(response);
            }
            let busy = matches!(status, 429 | 500 | 502 | 503 | 504);
            if !busy || number == TRIES {
                return Err(Failure::Refused(self.refusal(revision, url, &response)));
            }
            let asked = header(response.headers(), "retry-after").and_then(|s| s.parse().ok());
            let asked = asked.map(|seconds: u64| Duration::from_secs(seconds.min(LONGEST_WAIT)));
            std::thread::sleep(asked.unwrap_or(WAIT * 2u32.pow(number - 1)));
        }
    }

    /// What a refusal means. The hub says so in headers; a repository that does not exist looks like a private one.
    fn refusal(&self, revision: &str, url: &str, response: &Response<Body>) -> Error {
        let Environment { endpoint, token, cache, .. } = self.environment;
        let Name { repo, revision: wanted } = self.name;
        let status = response.status().as_u16();
        let code = header(response.headers(), "x-error-code").unwrap_or_default();
        let said = header(response.headers(), "x-error-message").unwrap_or_default();
        let how = format!(
            "create a token at {endpoint}/settings/tokens and give it as HF_TOKEN, or with `hf auth login`"
        );
        let invalid = |message: String| Error::invalid(self.name.to_string(), "", message);
        if said.starts_with("Invalid credentials") {
            let from = token.as_ref().map_or("nowhere", |token| &token.from);
            return invalid(format!("the hub does not know the token from {from}; {how}"));
        }
        match (code.as_str(), status) {
            ("GatedRepo", _) => invalid(format!(
                "is gated: its authors want to be asked. Accept their terms at {endpoint}/{repo}, then {}",
                match token {
                    None => how,
                    Some(token) => format!(
                        "use a token of the same account (that from {} was sent)",
                        token.from
                    ),
                }
            )),
            ("RevisionNotFound", _) if revision != wanted => invalid(format!(
                "is cached in part, at commit {revision}, which the hub no longer has; delete {} to fetch what {wanted:?} is now, or \
                 name another revision: {endpoint}/{repo}/tree/main lists what there is",
                Repo::new(cache, repo).reference(wanted).display()
            )),
            ("RevisionNotFound", _) => invalid(format!(
                "has no branch, tag or commit {revision:?}; {endpoint}/{repo}/tree/main lists what there is"
            )),
            ("EntryNotFound", _) => invalid(format!("lost a file while it was fetched: {url}")),
            ("RepoNotFound", _) | (_, 401 | 404) => invalid(format!(
                "no folder here, and no repository at {endpoint}/{repo}, or a private one: {}",
                match token {
                    None => format!("for that, {how}"),
                    Some(token) => format!("the token from {} does not open it", token.from),
                }
            )),
            (_, 403) => invalid(format!(
                "may not be read: {}; see {endpoint}/{repo}, and {how}",
                if said.is_empty() { "the hub answers 403" } else { &said }
            )),
            _ => {
                let reason = format!("answers with status {status} {said}");
                Error::Io {
                    path: url.into(),
                    source: std::io::Error::other(reason.trim_end().to_owned()),
                }
            }
        }
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// Percent encoding of all but letters, digits, `-._~` and `kept`.
fn encoded(text: &str, kept: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match char::from(byte) {
            c if c.is_ascii_alphanumeric() || "-._~".contains(c) || kept.contains(c) => out.push(c),
            // Writing to a string cannot fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}
