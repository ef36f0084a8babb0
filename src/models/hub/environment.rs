//! What the environment says about the hub.

use std::path::PathBuf;

const ENDPOINT: &str = "https://huggingface.co";

/// Settings of the hub's clients.
pub(super) struct Environment {
    /// The folder of all repositories.
    pub cache: PathBuf,
    /// Address of the hub, without a slash at its end.
    pub endpoint: String,
    /// No request may be made.
    pub offline: bool,
    pub token: Option<Token>,
}

/// A secret, and where it is from. It is never shown.
pub(super) struct Token {
    pub secret: String,
    pub from: String,
}

impl Environment {
    pub fn read() -> Self {
        let home = path("HF_HOME").unwrap_or_else(|| {
            let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| expanded("~/.cache"));
            caches.join("huggingface")
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let token = if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            None
        } else {
            let named = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find_map(|name| {
                Some(Token { secret: secret(&variable(name)?)?, from: name.to_owned() })
            });
            named.or_else(|| {
                let file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
                let text = std::fs::read_to_string(&file).ok()?;
                Some(Token { secret: secret(&text)?, from: file.display().to_string() })
            })
        };
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Self {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
            token,
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn path(name: &str) -> Option<PathBuf> {
    variable(name).map(|value| expanded(&value))
}

/// A path whose `~` is the home folder.
fn expanded(text: &str) -> PathBuf {
    match text.strip_prefix("~/").zip(variable("HOME")) {
        Some((rest, home)) => PathBuf::from(home).join(rest),
        None => text.into(),
    }
}

fn is_on(name: &str) -> bool {
    let value = variable(name).unwrap_or_default().to_uppercase();
    ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
}

/// A token without the line ends that files have.
fn secret(text: &str) -> Option<String> {
    let text = text.replace(['\r', '\n'], "");
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
