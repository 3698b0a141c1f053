//! Requests to the hub. Redirects are followed here, the token is not sent to other hosts, and failed requests are
//! repeated after pauses.
//!
//! Every request asks for `Accept-Encoding: identity`. With gzip, the hub compresses its answer in transit, so it
//! neither knows the size of the answer nor sends a part of it.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, anyhow};
use ureq::http::{HeaderMap, Request, Uri};
use ureq::{Agent, Body, BodyReader, Error, Timeout};

use super::headers::{ContentRange, Described, retry_after, text};
use super::settings::Settings;
use crate::ui;

pub use ureq::http::Method;

/// Maximum number of redirects of one request.
const MAX_REDIRECTS: usize = 10;
/// Time limit for a server to accept a connection, and to begin its answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Number of retries before a failure is an error.
pub const RETRIES: u32 = 3;
/// Pause before the first retry. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(300);
/// Maximum wait that a server may ask for.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// Reason why a request failed.
#[derive(Debug)]
pub enum Trouble {
    /// No connection to the server.
    Unreachable(String),
    /// The connection broke.
    Broken(String),
    /// The server is busy. It may ask for a wait.
    Busy { status: u16, wait: Option<Duration> },
    /// The server refuses the request.
    Refused(Refusal),
    /// The answer is invalid. The text continues the server's name.
    Bad(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Unreachable(problem) | Trouble::Broken(problem) => f.write_str(problem),
            Trouble::Busy { status, wait } => {
                let meaning = if *status == 429 { " (too many requests)" } else { "" };
                write!(f, "it answers with status {status}{meaning}")?;
                match wait {
                    Some(wait) => write!(f, " and asks for {} of rest", ui::duration(*wait)),
                    None => Ok(()),
                }
            }
            Trouble::Refused(refusal) => write!(f, "it answers with status {}", refusal.status),
            Trouble::Bad(problem) => write!(f, "it {problem}"),
        }
    }
}

/// An answer with a status of 400 or above, which a repeated request would not change.
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    /// X-Error-Code: RepoNotFound, RevisionNotFound, EntryNotFound, GatedRepo, or nothing.
    pub code: String,
    /// X-Error-Message, shortened to one sentence.
    pub message: String,
}

/// An answer after its redirects.
pub struct Answer {
    pub status: u16,
    /// Description of the file from all answers of the redirect chain.
    pub described: Described,
    /// Content-Range of the last answer.
    pub range: Option<ContentRange>,
    body: Body,
}

impl Answer {
    /// Reads the body as text of at most `longest` bytes.
    pub fn text(self, longest: u64) -> Result<String, Trouble> {
        match self.body.into_with_config().limit(longest).read_to_string() {
            Ok(text) => Ok(text),
            Err(Error::BodyExceedsLimit(_)) => Err(Trouble::Bad(format!("sends more than {longest} bytes"))),
            Err(error) => Err(Trouble::Broken(error.to_string())),
        }
    }

    /// Returns a reader of the body.
    pub fn reader(self) -> BodyReader<'static> {
        self.body.into_with_config().limit(u64::MAX).reader()
    }
}

/// Connection to one hub.
pub struct Client {
    agent: Agent,
    endpoint: String,
    endpoint_uri: Uri,
    token: Option<String>,
}

impl Client {
    /// Returns a client for the server that the settings name.
    ///
    /// # Errors
    /// Returns an error if the server's address is invalid.
    pub fn new(settings: &Settings) -> Result<Self> {
        let endpoint = settings.endpoint.clone();
        let is_address = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
        let endpoint_uri = endpoint.parse().ok().filter(is_address).ok_or_else(|| {
            anyhow!("HF_ENDPOINT={endpoint}: expected the address of a server, such as https://huggingface.co")
        })?;
        let agent = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("gelora/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(CONNECT_TIMEOUT.max(settings.read_timeout)))
            .timeout_per_read(Some(settings.read_timeout))
            .build()
            .new_agent();
        Ok(Self { agent, endpoint, endpoint_uri, token: settings.token.clone() })
    }

    /// Returns the server's address, without a trailing slash.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Requests a path below the endpoint and follows redirects. The token is sent to the hub's own host only. If
    /// `leaves_host` is false, a redirect to another host is returned as the answer.
    ///
    /// # Errors
    /// Returns an error if there is no answer, or if its status is 400 or above.
    pub fn ask(&self, method: Method, path: &str, range: Option<&str>, leaves_host: bool) -> Result<Answer, Trouble> {
        let address = format!("{}/{path}", self.endpoint);
        let mut uri: Uri = address.parse().map_err(|_| Trouble::Bad(format!("has no such address as {address}")))?;
        let (mut described, mut is_other_host) = (Described::default(), false);
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder().method(method.clone()).uri(uri.clone());
            if let Some(range) = range {
                request = request.header("range", range);
            }
            if let Some(token) = self.token.as_ref().filter(|_| !is_other_host) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let request = request.body(()).map_err(|error| Trouble::Bad(format!("cannot be asked: {error}")))?;
            let (parts, body) = self.agent.run(request).map_err(trouble)?.into_parts();
            let status = parts.status.as_u16();
            described.add(status, &parts.headers, is_other_host);
            if matches!(status, 301 | 302 | 303 | 307 | 308) {
                let location = text(&parts.headers, "location").unwrap_or_default();
                let target = joined(&uri, &location)
                    .ok_or_else(|| Trouble::Bad(format!("redirects to {location:?}, which is no address")))?;
                let leaves = is_other_host || !is_same_site(&self.endpoint_uri, &target);
                if leaves && !leaves_host {
                    return Ok(Answer { status, described, range: None, body });
                }
                (uri, is_other_host) = (target, leaves);
                continue;
            }
            return check_answer(status, &parts.headers, is_other_host).map(|()| {
                let range = ContentRange::of(&parts.headers);
                Answer { status, described, range, body }
            });
        }
        Err(Trouble::Bad(format!("redirects more than {MAX_REDIRECTS} times")))
    }
}

/// Returns an error unless the answer has the requested content.
fn check_answer(status: u16, headers: &HeaderMap, is_other_host: bool) -> Result<(), Trouble> {
    match status {
        200..300 => match text(headers, "content-encoding").filter(|encoding| encoding != "identity") {
            None => Ok(()),
            Some(encoding) => Err(Trouble::Bad(format!("answers in the encoding {encoding}, which was not asked for"))),
        },
        // 408 and 5xx are temporary. A link to another host may expire; the next request gets a new link.
        408 | 429 | 500.. => Err(Trouble::Busy { status, wait: retry_after(headers) }),
        403 if is_other_host => Err(Trouble::Broken("the link to the file has run out (status 403)".into())),
        _ => {
            let code = text(headers, "x-error-code").unwrap_or_default();
            let message = text(headers, "x-error-message").unwrap_or_default();
            let message = message.chars().take(200).collect::<String>().trim_end_matches('.').to_owned();
            Err(Trouble::Refused(Refusal { status, code, message }))
        }
    }
}

fn trouble(error: Error) -> Trouble {
    use std::io::ErrorKind::{
        AddrNotAvailable, ConnectionRefused, HostUnreachable, InvalidData, NetworkDown, NetworkUnreachable,
    };
    let has_no_connection = match &error {
        Error::HostNotFound | Error::ConnectionFailed | Error::BadUri(_) | Error::Tls(_) | Error::Rustls(_) => true,
        Error::ConnectProxyFailed(_) | Error::InvalidProxyUrl => true,
        Error::Timeout(Timeout::Resolve | Timeout::Connect) => true,
        // An untrusted certificate has the kind InvalidData.
        Error::Io(error) => matches!(
            error.kind(),
            AddrNotAvailable | ConnectionRefused | HostUnreachable | InvalidData | NetworkDown | NetworkUnreachable
        ),
        _ => false,
    };
    let problem = match &error {
        Error::Io(error) => error.to_string(),
        error => error.to_string(),
    };
    if has_no_connection { Trouble::Unreachable(problem) } else { Trouble::Broken(problem) }
}

/// Count of the retries of one request or download.
pub struct Retries {
    used: u32,
    quiet: bool,
}

impl Retries {
    pub fn new(quiet: bool) -> Self {
        Self { used: 0, quiet }
    }

    /// Resets the count after a try that made progress.
    pub fn forget(&mut self) {
        self.used = 0;
    }

    /// Waits before a retry, as long as a busy server asks for.
    ///
    /// # Errors
    /// Returns the trouble itself if a retry is useless, all retries are used, or the server asks for too long a wait.
    pub fn wait(&mut self, trouble: Trouble) -> Result<(), Trouble> {
        let pause = FIRST_PAUSE * (1 << self.used);
        let wait = match &trouble {
            Trouble::Unreachable(_) | Trouble::Broken(_) => pause,
            Trouble::Busy { wait, .. } => wait.map_or(pause, |wait| wait.max(pause)),
            Trouble::Refused(_) | Trouble::Bad(_) => return Err(trouble),
        };
        if self.used == RETRIES || wait > MAX_WAIT {
            return Err(trouble);
        }
        self.used += 1;
        if matches!(trouble, Trouble::Busy { .. }) {
            ui::note(self.quiet, format!("the hub: {trouble}; asked again in {}", ui::duration(wait)));
        }
        std::thread::sleep(wait);
        Ok(())
    }
}

/// Returns true if a redirect from the hub to `to` stays with the hub: the same host with the same scheme and port, or
/// a change from http to https with their default ports.
fn is_same_site(hub: &Uri, to: &Uri) -> bool {
    let host = |uri: &Uri| uri.host().unwrap_or_default().to_ascii_lowercase();
    let port = |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let is_upgrade = (port(hub), port(to)) == (80, 443) && to.scheme_str() == Some("https");
    host(hub) == host(to) && (is_upgrade || (hub.scheme() == to.scheme() && port(hub) == port(to)))
}

/// Returns the address of a Location header relative to `from`.
fn joined(from: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let text = if location.is_empty() {
        return None;
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.split('/').next().is_some_and(|first| first.ends_with(':')) {
        location.to_owned()
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let uri: Uri = text.parse().ok()?;
    (matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()).then_some(uri)
}

/// Percent-encodes a text for a part of an address: every byte with a special meaning becomes `%XX`, slashes too unless
/// they are kept.
pub fn encoded(text: &str, keeps_slashes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'/' if keeps_slashes => out.push('/'),
            b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn locations_are_relative_to_the_request() {
        let from = uri("https://hub.example:8443/org/name/resolve/main/config.json?download=true");
        let to = |location: &str| joined(&from, location).map(|uri| uri.to_string());
        let same = "https://hub.example:8443";
        let api = "/api/resolve-cache/models/org/name/c0ffee/config.json?etag=%22a%22";
        assert_eq!(to(api), Some(format!("{same}{api}")));
        assert_eq!(to("other.json"), Some(format!("{same}/org/name/resolve/main/other.json")));
        assert_eq!(to("//cdn.example/a"), Some("https://cdn.example/a".into()));
        assert_eq!(to("http://cdn.example/a?b=c#d"), Some("http://cdn.example/a?b=c".into()));
        for no in ["", "ftp://cdn.example/a", "file:///etc/passwd", "https://", "a b"] {
            assert_eq!(to(no), None, "{no}");
        }
    }

    #[test]
    fn the_token_stays_with_the_hub() {
        let same = |hub: &str, to: &str| is_same_site(&uri(hub), &uri(to));
        assert!(same("https://hub.example", "https://HUB.example/a"));
        assert!(same("https://hub.example", "https://hub.example:443/a"));
        assert!(same("http://hub.example", "https://hub.example/a"), "http that becomes https");
        assert!(!same("https://hub.example", "http://hub.example/a"), "https that becomes http");
        assert!(!same("https://hub.example", "https://cdn.hub.example/a"));
        assert!(!same("https://hub.example", "https://hub.example.evil/a"));
        assert!(!same("http://127.0.0.1:8000", "http://127.0.0.1:8001/a"), "another port is another server");
    }

    #[test]
    fn parts_of_addresses_are_encoded() {
        assert_eq!(encoded("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(encoded("data/train ä?.csv", true), "data/train%20%C3%A4%3F.csv");
    }

    #[test]
    fn retries_are_limited() {
        let mut retries = Retries::new(true);
        let broken = || Trouble::Broken("x".into());
        assert!(retries.wait(Trouble::Bad("x".into())).is_err());
        assert!(retries.wait(Trouble::Busy { status: 429, wait: Some(Duration::from_secs(3600)) }).is_err());
        retries.used = RETRIES - 1;
        assert!(retries.wait(Trouble::Busy { status: 503, wait: Some(Duration::ZERO) }).is_ok());
        assert!(retries.wait(broken()).is_err());
        retries.forget();
        assert!(retries.wait(broken()).is_ok());
    }
}
