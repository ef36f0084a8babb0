//! The judge of the demo's benchmarks: a local HTTP service with the wire format of OpenAI's chat completions.
//!
//! It knows the scenes of [`super::benchmarks`] and grades by rule, in the forms that the benchmarks ask for: a rating
//! (MMHal-Bench, with the picture or without), two scores (LLaVA-Bench), a share (MM-Vet). So the client, the wire, the
//! replies' parsing and their storage are those of real judges, at no cost and without a network.
//!
//! It reads prompts in this crate's own wording and refuses others: `POST /v1/chat/completions` with a known prompt is
//! answered with 200, anything else with the status and the error document that such services use.

pub mod claims;
pub mod grade;

use std::{
    collections::HashMap,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    thread::JoinHandle,
};

use base64::Engine as _;
use serde_json::{Value, json};
use tiny_http::{Header, Method, Request, Response, Server};

use super::{
    benchmarks,
    scene::{Scene, Split},
};
use crate::{
    Error, Result,
    eval::{llavaw, mmhal, mmvet},
};

/// The model's name.
pub use super::JUDGE as MODEL;

/// Requests answered at once.
const THREADS: usize = 2;
/// Largest body that is read.
const LARGEST_BODY: u64 = 16 << 20;

/// A running service; it ends when this is dropped.
pub struct Service {
    server: Arc<Server>,
    url: String,
    threads: Vec<JoinHandle<()>>,
}

impl Service {
    /// Begins to listen on a port of this machine's loopback address; 0 = any free one.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn start(port: u16) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let failed = |error: &dyn std::fmt::Display| Error::Unsupported {
            what: format!("judge at {address}"),
            message: error.to_string(),
        };
        let server = Arc::new(Server::http(address).map_err(|error| failed(&error))?);
        let url = format!("http://{}/v1", server.server_addr());
        let knowledge = Arc::new(Knowledge::new());
        let threads = (0..THREADS)
            .map(|_| {
                let (server, knowledge) = (server.clone(), knowledge.clone());
                std::thread::spawn(move || {
                    while let Ok(request) = server.recv() {
                        // A client that is gone needs no answer.
                        let _ = serve(request, &knowledge);
                    }
                })
            })
            .collect();
        Ok(Self { server, url, threads })
    }

    /// The address, for `OPENAI_BASE_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for _ in &self.threads {
            self.server.unblock();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Reads a request and answers it.
fn serve(mut request: Request, knowledge: &Knowledge) -> std::io::Result<()> {
    let mut body = String::new();
    let known = request.url() == "/v1/chat/completions" && *request.method() == Method::Post;
    let answer = match request.as_reader().take(LARGEST_BODY).read_to_string(&mut body) {
        _ if !known => Err((404, "expected POST /v1/chat/completions".to_owned())),
        Ok(_) => knowledge.complete(&body),
        Err(error) => Err((400, error.to_string())),
    };
    let (status, document) = match answer {
        Ok(document) => (200, document),
        Err((status, message)) => {
            (status, json!({"error": {"message": message, "type": "invalid_request_error"}}))
        }
    };
    let header = Header::from_bytes("content-type", "application/json");
    let response = Response::from_string(document.to_string()).with_status_code(status);
    request.respond(match header {
        Ok(header) => response.with_header(header),
        Err(()) => response,
    })
}

/// Status and message of a request that cannot be answered.
type Refusal = (u16, String);

/// The scenes by what prompts show of them.
struct Knowledge {
    scenes: Vec<Scene>,
    by_contents: HashMap<String, usize>,
    by_caption: HashMap<String, usize>,
    /// By a hash of the pixels.
    by_picture: HashMap<blake3::Hash, usize>,
}

impl Knowledge {
    fn new() -> Self {
        const SPLITS: [Split; 2] = [Split::Eval, Split::Select];
        let scenes: Vec<Scene> = SPLITS.into_iter().flat_map(benchmarks::scenes).collect();
        let pictures = SPLITS.into_iter().flat_map(|split| {
            (0..benchmarks::SCENES as usize).map(move |i| benchmarks::image(split, i))
        });
        let numbered = |name: &dyn Fn(&Scene) -> String| {
            scenes.iter().enumerate().map(|(i, scene)| (name(scene), i)).collect()
        };
        Self {
            by_contents: numbered(&|scene| benchmarks::contents(scene).join(", ")),
            by_caption: numbered(&benchmarks::caption),
            by_picture: pictures
                .enumerate()
                .map(|(i, picture)| (blake3::hash(picture.as_raw()), i))
                .collect(),
            scenes,
        }
    }

    /// The chat completion of a request.
    fn complete(&self, body: &str) -> std::result::Result<Value, Refusal> {
        let bad = |message: &str| (400, message.to_owned());
        let request: Value = serde_json::from_str(body).map_err(|_| bad("the body is no JSON"))?;
        let model = request["model"].as_str().unwrap_or_default();
        if model != MODEL {
            return Err((404, format!("there is no model {model:?} here, only {MODEL}")));
        }
        let user = request["messages"].as_array().and_then(|messages| messages.last());
        let content = &user.ok_or_else(|| bad("messages is missing or empty"))?["content"];
        let (prompt, image) = match content {
            Value::String(text) => (text.as_str(), None),
            Value::Array(parts) => {
                let part = |kind: &str| parts.iter().find(|part| part["type"] == kind);
                let text = part("text").and_then(|part| part["text"].as_str());
                let url = part("image_url").and_then(|part| part["image_url"]["url"].as_str());
                (text.unwrap_or_default(), url)
            }
            _ => return Err(bad("the last message has no content")),
        };
        let pictured = image.map(|url| self.pictured(url)).transpose()?;
        let reply = self.judge(prompt, pictured)?;
        let tokens = |text: &str| text.chars().count().div_ceil(4);
        let (prompt_tokens, completion_tokens) = (tokens(prompt), tokens(&reply));
        let id = blake3::hash(body.as_bytes()).to_hex();
        Ok(json!({
            "id": format!("chatcmpl-{}", &id[..16]),
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": reply},
                "finish_reason": "stop",
            }],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }))
    }

    /// The scene whose picture a data URL holds.
    fn pictured(&self, url: &str) -> std::result::Result<usize, Refusal> {
        let bad = |message: &str| (400, message.to_owned());
        let (_, data) =
            url.split_once(";base64,").ok_or_else(|| bad("the image is no data URL"))?;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(data)
            .map_err(|_| bad("the image is no base64"))?;
        let picture = image::load_from_memory(&bytes).map_err(|error| (400, error.to_string()))?;
        let hash = blake3::hash(picture.to_rgb8().as_raw());
        let known = self.by_picture.get(&hash).copied();
        known.ok_or_else(|| bad("the image is none of the demo's benchmark scenes"))
    }

    /// The reply to a prompt of one of the judged benchmarks.
    fn judge(&self, prompt: &str, pictured: Option<usize>) -> std::result::Result<String, Refusal> {
        let unknown = || (400, "the scene is none of the demo's benchmarks".to_owned());
        if let Some([contents, _, reference, answer]) = mmhal::own_fields(prompt) {
            // A judge that sees the picture believes what it sees.
            let scene = pictured.or_else(|| self.by_contents.get(contents).copied());
            let scene = &self.scenes[scene.ok_or_else(unknown)?];
            let verdict = grade::examine(answer, reference, scene);
            let found = match verdict.wrong[..] {
                [] => "Nothing in the answer contradicts the scene.".to_owned(),
                ref wrong => format!("Not in the scene: {wrong:?}."),
            };
            return Ok(format!("{found}\nRating: {}", grade::rating(&verdict)));
        }
        if let Some([context, _, first, second]) = llavaw::own_fields(prompt) {
            let scene = &self.scenes[*self.by_caption.get(context).ok_or_else(unknown)?];
            let [a, b] = [first, second].map(|answer| grade::examine(answer, first, scene));
            return Ok(format!(
                "{} {}\nThe second answer says {} true and {} false things.",
                grade::ten(&a),
                grade::ten(&b),
                b.right,
                b.wrong.len()
            ));
        }
        if let Some([_, truth, answer]) = mmvet::own_fields(prompt) {
            return Ok(format!("{:.1}", grade::share(answer, truth)));
        }
        Err((400, "the prompt is of no benchmark that this judge knows".to_owned()))
    }
}
