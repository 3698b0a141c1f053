//! Reads the headers of the hub's answers: commit, ETag and size of a file, and the time to wait before a retry.

use std::time::Duration;

use ureq::http::HeaderMap;

/// Description of a file from a chain of answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Described {
    /// X-Repo-Commit: the commit of the file.
    pub commit: Option<String>,
    /// X-Linked-Etag, which the hub sends for a file that is stored elsewhere.
    linked_etag: Option<String>,
    /// X-Linked-Size.
    linked_size: Option<u64>,
    /// ETag of the last answer.
    etag: Option<String>,
    /// Whether `etag` comes from the hub and not from another host.
    etag_is_own: bool,
    /// Size of the whole file according to the last answer.
    size: Option<u64>,
}

impl Described {
    /// Adds the headers of one answer of a chain. Commits and links are only read from the hub's own host.
    pub fn add(&mut self, status: u16, headers: &HeaderMap, is_other_host: bool) {
        if !is_other_host {
            self.commit = self.commit.take().or_else(|| text(headers, "x-repo-commit"));
            self.linked_etag =
                self.linked_etag.take().or_else(|| text(headers, "x-linked-etag").and_then(|etag| normalized(&etag)));
            self.linked_size = self.linked_size.or_else(|| number(headers, "x-linked-size"));
        }
        // ETag and length of a redirect describe the redirect itself.
        if (200..300).contains(&status) {
            self.etag = text(headers, "etag").and_then(|etag| normalized(&etag));
            self.etag_is_own = !is_other_host;
            self.size = match ContentRange::of(headers) {
                Some(range) => range.total,
                // The length of a part does not give the length of the file.
                None if status == 206 => None,
                None => number(headers, "content-length"),
            };
        }
    }

    /// Returns this description, with missing values taken from `other`.
    pub fn or(self, other: Self) -> Self {
        let has_etag = self.etag.is_some();
        Self {
            commit: self.commit.or(other.commit),
            linked_etag: self.linked_etag.or(other.linked_etag),
            linked_size: self.linked_size.or(other.linked_size),
            etag_is_own: if has_etag { self.etag_is_own } else { other.etag_is_own },
            etag: self.etag.or(other.etag),
            size: self.size.or(other.size),
        }
    }

    /// Returns the ETag of the file's content: X-Linked-Etag, else ETag.
    pub fn etag(&self) -> Option<&str> {
        self.linked_etag.as_deref().or(self.etag.as_deref())
    }

    /// Returns the size of the whole file in bytes: X-Linked-Size, else the total of Content-Range, else
    /// Content-Length.
    pub fn size(&self) -> Option<u64> {
        self.linked_size.or(self.size)
    }

    /// Returns the SHA-256 of the content if the ETag is one. Files of git have shorter ETags, and the ETag of another
    /// host may be the hash of something else.
    pub fn sha256(&self) -> Option<&str> {
        let own = self.etag.as_deref().filter(|_| self.etag_is_own);
        self.linked_etag
            .as_deref()
            .or(own)
            .filter(|etag| etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit()))
    }
}

/// Content-Range: the bytes in an answer, and the size of the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ContentRange {
    /// Position of the first byte, or `None` if the answer has no bytes.
    pub first: Option<u64>,
    /// Size of the whole file.
    pub total: Option<u64>,
}

impl ContentRange {
    /// Reads `bytes 100-199/1000`, `bytes 100-199/*` or `bytes */1000`.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let value = text(headers, "content-range")?;
        let (range, total) = value.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
        let first = match range.trim() {
            "*" => None,
            range => Some(range.split_once('-')?.0.trim().parse().ok()?),
        };
        let total = match total.trim() {
            "*" => None,
            total => Some(total.parse().ok()?),
        };
        Some(Self { first, total })
    }
}

/// Returns the wait that the server asks for: Retry-After in seconds, or the rest of a used-up rate limit in the hub's
/// form, `RateLimit: "api";r=0;t=55`.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let from_rate_limit = || {
        let limit = text(headers, "ratelimit")?;
        let field = |name: &str| {
            let value = limit.split(';').find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='));
            value?.trim().parse::<u64>().ok()
        };
        field("t").filter(|_| field("r") == Some(0))
    };
    number(headers, "retry-after").or_else(from_rate_limit).map(Duration::from_secs)
}

/// Returns a header as text.
pub fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned)
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.trim().parse().ok()
}

/// Returns an ETag without its quotes and without the prefix of a weak ETag.
fn normalized(etag: &str) -> Option<String> {
    let etag = etag.trim();
    let bare = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    (!bare.is_empty()).then(|| bare.to_owned())
}

#[cfg(test)]
mod tests {
    use ureq::http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        lines.iter().map(pair).collect()
    }

    #[test]
    fn linked_files_are_described_by_the_hub() {
        let sha256 = "ab".repeat(32);
        let etag = format!("\"{sha256}\"");
        let redirect = [
            ("X-Repo-Commit", "c0ffee"),
            ("X-Linked-Size", "5000"),
            ("X-Linked-Etag", &etag),
            ("ETag", "\"of-the-redirect\""),
            ("Content-Length", "311"),
        ];
        let mut described = Described::default();
        described.add(302, &headers(&redirect), false);
        assert_eq!((described.size(), described.etag()), (Some(5000), Some(sha256.as_str())));
        let other = [("Content-Length", "5000"), ("ETag", "\"of-the-store\""), ("X-Repo-Commit", "beef")];
        described.add(200, &headers(&other), true);
        assert_eq!(described.etag(), Some(sha256.as_str()));
        assert_eq!(described.sha256(), Some(sha256.as_str()));
        assert_eq!(described.commit.as_deref(), Some("c0ffee"));
    }

    #[test]
    fn sizes_are_those_of_the_whole_file() {
        let described = |status, lines: &[(&str, &str)]| {
            let mut described = Described::default();
            described.add(status, &headers(lines), false);
            described
        };
        assert_eq!(described(307, &[("Content-Length", "311"), ("ETag", "\"x\"")]), Described::default());
        assert_eq!(described(200, &[("Content-Length", "77")]).size(), Some(77));
        let part = [("Content-Length", "1"), ("Content-Range", "bytes 0-0/77")];
        assert_eq!(described(206, &part).size(), Some(77));
        assert_eq!(described(206, &[("Content-Length", "1")]).size(), None);
        assert_eq!(described(206, &[("Content-Length", "1"), ("Content-Range", "bytes 0-0/*")]).size(), None);
        let linked = [("X-Linked-Size", "78"), ("Content-Range", "bytes 0-0/77")];
        assert_eq!(described(206, &linked).size(), Some(78));
    }

    #[test]
    fn etags_lose_quotes_and_the_weak_prefix() {
        let etag = |value: &str| {
            let mut described = Described::default();
            described.add(200, &headers(&[("ETag", value)]), false);
            described.etag().map(ToOwned::to_owned)
        };
        for value in ["\"abc\"", "W/\"abc\"", "abc", " \"abc\" "] {
            assert_eq!(etag(value).as_deref(), Some("abc"), "{value}");
        }
        assert_eq!(etag("\"\""), None);
        // The ETag of another host is not a SHA-256 of the content.
        let mut described = Described::default();
        described.add(200, &headers(&[("ETag", &"ab".repeat(32))]), true);
        assert_eq!((described.etag().map(str::len), described.sha256()), (Some(64), None));
    }

    #[test]
    fn ranges_and_waits() {
        let range = |value: &str| ContentRange::of(&headers(&[("Content-Range", value)]));
        assert_eq!(range("bytes 100-199/1000"), Some(ContentRange { first: Some(100), total: Some(1000) }));
        assert_eq!(range("bytes 100-199/*"), Some(ContentRange { first: Some(100), total: None }));
        assert_eq!(range("bytes */1000"), Some(ContentRange { first: None, total: Some(1000) }));
        for broken in ["", "bytes", "lines 1-2/3", "bytes a-b/3", "bytes 1-2/x"] {
            assert_eq!(range(broken), None, "{broken}");
        }
        let wait = |lines: &[(&str, &str)]| retry_after(&headers(lines)).map(|wait| wait.as_secs());
        assert_eq!(wait(&[("Retry-After", "7")]), Some(7));
        assert_eq!(wait(&[("RateLimit", "\"api\";r=0;t=55")]), Some(55));
        assert_eq!(wait(&[("RateLimit", "\"api\";r=12;t=55")]), None);
        assert_eq!(wait(&[("Retry-After", "soon")]), None);
    }
}
