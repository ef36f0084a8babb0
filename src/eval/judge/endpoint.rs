//! Where a judge is, and with which key.

use std::{fmt, net::IpAddr};

use ureq::http::Uri;

use crate::{Error, Result};

/// What every request's path ends in; addresses may have it already.
const PATH: &str = "/chat/completions";

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
    /// An endpoint. White space around address and key is dropped, and so is a `/chat/completions` that the address ends in.
    pub fn new(base_url: &str, model: &str, key: Option<String>) -> Self {
        let key = key.map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
        let url = base_url.trim().trim_end_matches('/');
        let url = url.strip_suffix(PATH).unwrap_or(url).trim_end_matches('/');
        Self { base_url: url.into(), model: model.into(), key }
    }

    /// A model at `OPENAI_BASE_URL`, or `OPENAI_API_BASE` as older clients call it (default: OpenAI's), with `OPENAI_API_KEY`.
    ///
    /// # Errors
    /// As [`Endpoint::validate`].
    pub fn from_env(model: &str) -> Result<Self> {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let url = var("OPENAI_BASE_URL").or_else(|| var("OPENAI_API_BASE"));
        let url = url.unwrap_or_else(|| "https://api.openai.com/v1".to_owned());
        let endpoint = Self::new(&url, model, var("OPENAI_API_KEY"));
        endpoint.validate()?;
        Ok(endpoint)
    }

    /// Checks address and key, before anything is sent.
    ///
    /// # Errors
    /// An address that is none of http or https, or a key that no header can hold. The key is not shown.
    pub fn validate(&self) -> Result<()> {
        let uri = self.url().parse::<Uri>().ok();
        let web = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https"));
        if !uri.is_some_and(|uri| web(&uri) && uri.host().is_some()) {
            let expected = "an address as https://api.openai.com/v1 (from OPENAI_BASE_URL)";
            return Err(Error::argument("judge", "address", &self.base_url, expected));
        }
        let fits = |key: &String| key.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        if self.key.as_ref().is_some_and(|key| !fits(key)) {
            let got = "a text with a line break or another character that a header cannot hold";
            let expected = "one line of letters, digits and signs";
            return Err(Error::argument("judge", "OPENAI_API_KEY", got, expected));
        }
        Ok(())
    }

    /// Where requests go.
    pub(super) fn url(&self) -> String {
        match self.base_url.split_once('?') {
            // As services that are versioned by a query want it.
            Some((path, query)) => format!("{}{PATH}?{query}", path.trim_end_matches(PATH)),
            None => format!("{}{PATH}", self.base_url),
        }
    }

    /// The header of the key.
    pub(super) fn authorization(&self) -> Option<String> {
        self.key.as_ref().map(|key| format!("Bearer {key}"))
    }

    /// Whether the service is on this machine, which no proxy can reach.
    pub(super) fn is_local(&self) -> bool {
        let uri = self.url().parse::<Uri>().ok();
        let Some(host) = uri.as_ref().and_then(Uri::host) else { return false };
        let host = host.trim_matches(['[', ']']);
        host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Text without the key, should a service repeat it.
    pub(super) fn redacted(&self, text: &str) -> String {
        match &self.key {
            Some(key) => text.replace(key.as_str(), "[key]"),
            None => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Endpoint;

    #[test]
    fn addresses_as_users_have_them_mean_one_service() {
        let url = |base: &str| Endpoint::new(base, "m", None).url();
        for base in [
            "http://h/v1",
            "http://h/v1/",
            " http://h/v1/chat/completions\n",
            "http://h/v1/chat/completions/",
        ] {
            assert_eq!(url(base), "http://h/v1/chat/completions", "{base:?}");
        }
        for base in ["http://h/d?v=1", "http://h/d/chat/completions?v=1"] {
            assert_eq!(url(base), "http://h/d/chat/completions?v=1");
        }
        for wrong in ["", "127.0.0.1:8000/v1", "ftp://h/v1", "http:///v1", "http://a b/v1"] {
            assert!(Endpoint::new(wrong, "m", None).validate().is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_lose_white_space_around_them_and_may_have_none_within() {
        let endpoint = |key: &str| Endpoint::new("http://h", "m", Some(key.into()));
        assert_eq!(endpoint("sk-1\r\n").authorization().unwrap(), "Bearer sk-1");
        assert_eq!(endpoint(" \n").authorization(), None);
        let error = endpoint("sk-1\nsk-2").validate().unwrap_err().to_string();
        assert!(error.contains("OPENAI_API_KEY") && !error.contains("sk-"), "{error}");
    }

    #[test]
    fn loopback_is_known_by_address() {
        let local = |base: &str| Endpoint::new(base, "m", None).is_local();
        for base in [
            "http://127.0.0.1:80/v1",
            "http://127.9.9.9",
            "http://LocalHost:1",
            "http://[::1]:8/v1",
        ] {
            assert!(local(base), "{base}");
        }
        for base in [
            "http://localhost.example.com",
            "http://10.0.0.1",
            "http://128.0.0.1",
            "https://api.openai.com/v1",
        ] {
            assert!(!local(base), "{base}");
        }
    }
}
