//! A hub on the loopback address: the routes and headers of the real one, repositories from folders, and faults on demand.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::{Digest, Sha256};

/// The commit of every repository's branch `main` and tag `v1`.
pub const COMMIT: &str = "5a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b";

/// What goes wrong.
#[derive(Clone, Default)]
pub struct Faults {
    /// Error of a repository: status, code, message.
    pub refused: HashMap<String, (u16, &'static str, &'static str)>,
    /// Bytes after which a connection for weights ends.
    pub cut: Option<usize>,
    /// Connections for weights end at once.
    pub down: bool,
    /// A byte of all weights is another.
    pub damaged: bool,
    /// Requests that are answered with 503.
    pub busy: usize,
}

/// A request that was made.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Method and path.
    pub what: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

#[derive(Default)]
struct State {
    repos: HashMap<String, PathBuf>,
    faults: Faults,
    seen: Vec<Seen>,
}

pub struct Hub {
    state: Arc<Mutex<State>>,
    port: u16,
}

struct Request {
    method: String,
    path: String,
    headers: HashMap<String, String>,
}

impl Hub {
    pub fn new(repos: &[(&str, &Path)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let repos =
            repos.iter().map(|(name, dir)| ((*name).to_owned(), dir.to_path_buf())).collect();
        let state = Arc::new(Mutex::new(State { repos, ..State::default() }));
        let shared = state.clone();
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state) = (stream.unwrap(), shared.clone());
                std::thread::spawn(move || serve(stream, port, &state));
            }
        });
        Self { state, port }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn set(&self, faults: Faults) {
        self.state.lock().unwrap().faults = faults;
    }

    /// The requests since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }
}

/// Reads a request; none where a client has only connected.
fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let pair = |line: String| {
        line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
    };
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(pair).collect();
    Some(Request { method, path, headers })
}

fn serve(mut stream: TcpStream, port: u16, state: &Mutex<State>) {
    let Some(request) = read(&stream) else { return };
    let (faults, busy, repos) = {
        let mut state = state.lock().unwrap();
        state.seen.push(Seen {
            what: format!("{} {}", request.method, request.path),
            range: request.headers.get("range").cloned(),
            authorization: request.headers.get("authorization").cloned(),
        });
        let busy = state.faults.busy > 0;
        state.faults.busy -= usize::from(busy);
        (state.faults.clone(), busy, state.repos.clone())
    };
    if busy {
        return answer(&mut stream, &request, 503, &[("retry-after", "0".to_owned())], b"");
    }
    let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    let (repo, rest) = match parts[..] {
        ["api", "models", org, name, "revision", revision] => {
            (format!("{org}/{name}"), vec![revision])
        }
        ["cdn" | "cached", org, name, ..] => (format!("{org}/{name}"), parts[3..].to_vec()),
        [org, name, "resolve", commit, ..] if commit == COMMIT => {
            (format!("{org}/{name}"), parts[4..].to_vec())
        }
        _ => return error(&mut stream, &request, (404, "", "")),
    };
    if let Some(refused) = faults.refused.get(&repo) {
        return error(&mut stream, &request, *refused);
    }
    let Some(dir) = repos.get(&repo) else {
        return error(
            &mut stream,
            &request,
            (401, "RepoNotFound", "Invalid username or password."),
        );
    };
    if parts[0] == "api" {
        return describe(&mut stream, &request, dir, rest[0]);
    }
    let file = dir.join(rest.join("/"));
    let Ok(mut bytes) = fs::read(&file) else {
        return error(&mut stream, &request, (404, "EntryNotFound", ""));
    };
    match parts[0] {
        "cdn" => {
            if faults.damaged {
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
            }
            weights(&mut stream, &request, &bytes, &faults);
        }
        "cached" => {
            let etag = format!("W/\"{}\"", &sha256(&bytes)[..40]);
            let headers = [("etag", etag), ("x-repo-commit", COMMIT.to_owned())];
            answer(&mut stream, &request, 200, &headers, &bytes);
        }
        // Weights lie elsewhere, under another name of this machine; small files behind a redirection within the hub.
        _ if file.extension().is_some_and(|e| e == "safetensors") => {
            let to = format!("http://localhost:{port}/cdn/{repo}/{}", rest.join("/"));
            let headers = [
                ("location", to),
                ("x-repo-commit", COMMIT.to_owned()),
                ("x-linked-etag", format!("\"{}\"", sha256(&bytes))),
                ("x-linked-size", bytes.len().to_string()),
                ("etag", "\"of the pointer\"".to_owned()),
            ];
            answer(&mut stream, &request, 302, &headers, b"elsewhere");
        }
        _ => {
            let to = format!("/cached/{repo}/{}", rest.join("/"));
            answer(&mut stream, &request, 307, &[("location", to)], b"");
        }
    }
}

fn describe(stream: &mut TcpStream, request: &Request, dir: &Path, revision: &str) {
    if !["main", "v1", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
        return error(stream, request, (404, "RevisionNotFound", "Invalid rev id"));
    }
    let files: Vec<_> = files(dir, "").into_iter().map(|name| json!({"rfilename": name})).collect();
    let document = json!({"id": "x", "sha": COMMIT, "siblings": files}).to_string();
    answer(stream, request, 200, &[], document.as_bytes());
}

/// Bytes from a range on, as far as the connection lasts.
fn weights(stream: &mut TcpStream, request: &Request, bytes: &[u8], faults: &Faults) {
    if faults.down {
        return;
    }
    let range = request.headers.get("range").map(|range| {
        let (from, last) = range.trim_start_matches("bytes=").split_once('-').unwrap();
        let end = last.parse::<usize>().map_or(bytes.len(), |last| (last + 1).min(bytes.len()));
        (from.parse::<usize>().unwrap(), end)
    });
    let status = if range.is_some() { 206 } else { 200 };
    let (from, whole) = range.unwrap_or((0, bytes.len()));
    let bytes = &bytes[..whole];
    let length = bytes.len() - from;
    write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n")
        .unwrap();
    let end = faults.cut.map_or(bytes.len(), |cut| (from + cut).min(bytes.len()));
    // The client may be gone.
    let _ = stream.write_all(&bytes[from..end]);
}

fn error(stream: &mut TcpStream, request: &Request, refused: (u16, &str, &str)) {
    let (status, code, message) = refused;
    let headers = [("x-error-code", code.to_owned()), ("x-error-message", message.to_owned())];
    answer(stream, request, status, &headers, b"");
}

fn answer(
    stream: &mut TcpStream,
    request: &Request,
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
) {
    let mut head =
        format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let _ = stream.write_all((head + "\r\n").as_bytes());
    if request.method != "HEAD" {
        let _ = stream.write_all(body);
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Paths of all files below a folder.
pub fn files(dir: &Path, prefix: &str) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.path().is_dir() {
            true => all.extend(files(&entry.path(), &format!("{name}/"))),
            false => all.push(name),
        }
    }
    all.sort();
    all
}
