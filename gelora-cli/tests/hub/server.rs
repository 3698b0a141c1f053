//! A local server that behaves like the hub and records its requests.
//!
//! Small files get a relative redirect to `/api/resolve-cache`, and are compressed for clients that accept gzip. Large
//! files get a redirect to a second host that refuses a token, like stores with signed links. Mirrors answer in several
//! other ways.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::common::{Run, data, fixture};

pub const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the server answers requests for files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// Like huggingface.co.
    #[default]
    Hub,
    /// Whole files at once: no redirects, no X-Repo-Commit, no parts, so no Content-Range.
    Mirror,
    /// Parts without Content-Range.
    Parts,
    /// Correct parts, but no HEAD and no Content-Length.
    NoHead,
}

/// Files and behavior of the server.
#[derive(Default)]
pub struct State {
    /// Files of the model tiny/bert.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Files of the dataset tiny/reviews.
    pub dataset: BTreeMap<String, Vec<u8>>,
    /// Header of the dataset's README.
    pub card: Value,
    pub manner: Manner,
    /// Whether the description of a repository lacks its commit.
    pub hides_commit: bool,
    /// Token without which the hub hides everything.
    pub token: Option<String>,
    /// Whether files need a token although the repository is visible to all.
    pub gated: bool,
    /// Number of answers that break in the middle of the weights.
    pub breaks: usize,
    /// Number of answers that pause in the middle of the weights with the connection open, and the length of the pause.
    pub stalls: Vec<Duration>,
    /// Number of answers with weights that have a wrong byte.
    pub corrupt: usize,
    /// Delay of the second host's answers.
    pub delay: Duration,
    /// Answers to the next requests whose path has these words: status and headers.
    pub instead: Vec<(&'static str, &'static str, &'static str)>,
    /// The requests so far.
    pub requests: Vec<Request>,
}

/// A request and its outcome.
#[derive(Clone, Debug)]
pub struct Request {
    pub is_second_host: bool,
    pub method: String,
    pub path: String,
    pub range: String,
    pub authorization: String,
    pub encoding: String,
    pub when: Instant,
    /// Number of bytes of the body that were sent.
    pub sent: usize,
}

impl Request {
    /// Returns the requested file by its name in a repository.
    pub fn file(&self) -> Option<&str> {
        let (_, rest) = self.path.split_once("/resolve/")?;
        rest.split_once('/').map(|(_, name)| name)
    }
}

pub struct Server {
    state: Arc<Mutex<State>>,
    pub address: String,
    dir: tempfile::TempDir,
}

/// An answer before it is sent.
struct Reply {
    status: &'static str,
    headers: String,
    body: Vec<u8>,
    /// Whether the answer has no length, so that the end of the connection ends the body.
    has_length: bool,
    /// Number of bytes that are not sent.
    cut: usize,
    /// Pause in the middle of the body.
    stall: Option<Duration>,
}

impl Reply {
    fn new(status: &'static str, headers: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        let (headers, body) = (headers.into(), body.into());
        Self { status, headers, body, has_length: true, cut: 0, stall: None }
    }
}

impl Server {
    /// Starts a hub with the model tiny/bert and the dataset tiny/reviews.
    pub fn start() -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (hub, store) = (listen(), listen());
        let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
        let address = format!("http://127.0.0.1:{}", port(&hub));
        // Another name for this machine is another host.
        let second = format!("http://localhost:{}", port(&store));
        let dir = tempfile::tempdir().expect("a folder");
        let folder = data(dir.path());
        let read = |path: PathBuf| std::fs::read(path).expect("a file");
        let mut state = State::default();
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            state.files.insert(name.to_owned(), read(fixture("tiny-bert").join(name)));
        }
        for name in ["train.jsonl", "validation.jsonl"] {
            state.dataset.insert(name.to_owned(), read(folder.join(name)));
        }
        // A file that no run needs.
        state.files.insert("pytorch_model.bin".into(), vec![0; 1000]);
        for files in [&mut state.files, &mut state.dataset] {
            files.insert("README.md".into(), b"a repository".to_vec());
        }
        let state = Arc::new(Mutex::new(state));
        for (listener, is_second_host) in [(hub, false), (store, true)] {
            let (shared, second) = (Arc::clone(&state), second.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (shared, second) = (Arc::clone(&shared), second.clone());
                    std::thread::spawn(move || answer(stream, is_second_host, &second, &shared));
                }
            });
        }
        Self { state, address, dir }
    }

    pub fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("no panic"));
    }

    /// Returns the requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().expect("no panic").requests)
    }

    /// Returns the requests for files since the last call, by name and range.
    pub fn file_requests(&self) -> Vec<(String, String)> {
        let of = |request: Request| Some((request.file()?.to_owned(), request.range));
        self.requests().into_iter().filter_map(of).collect()
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("hf")
    }

    pub fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// Returns the folder with the dataset's files.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Returns the model's folder in the cache.
    pub fn snapshot(&self) -> PathBuf {
        self.home().join("hub/models--tiny--bert/snapshots").join(SHA)
    }

    /// Returns the command `gelora COMMAND` with the hub's environment and these arguments.
    pub fn command(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gelora"));
        command.args(arguments);
        for name in [
            "HF_TOKEN",
            "HF_HUB_OFFLINE",
            "HF_HUB_CACHE",
            "HF_HUB_DOWNLOAD_TIMEOUT",
            "TRANSFORMERS_OFFLINE",
            "http_proxy",
            "HTTP_PROXY",
            "all_proxy",
            "ALL_PROXY",
        ] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.address).env("HF_HOME", self.home()).env("NODEVICE_SELECT", "1");
        command.env("GELORA_CACHE", self.dir.path().join("gelora"));
        command.envs(environment.iter().copied());
        command
    }

    /// Runs `gelora`.
    pub fn run(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Run {
        let output = self.command(arguments, environment).output().expect("the program starts");
        Run {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs `gelora rank` on local data.
    pub fn rank(&self, model: &str, options: &[&str], environment: &[(&str, &str)]) -> Run {
        let (data, out) = (self.data().display().to_string(), self.out().display().to_string());
        let mut arguments = vec!["rank", model, "--no-cache", "--data", &data, "--out", &out];
        arguments.extend(options);
        self.run(&arguments, environment)
    }

    /// Runs `gelora rank` with a local model.
    pub fn rank_on(&self, data: &str, options: &[&str], environment: &[(&str, &str)]) -> Run {
        let (model, out) = (fixture("tiny-bert").display().to_string(), self.out().display().to_string());
        let mut arguments = vec!["rank", &model, "--no-cache", "--data", data, "--out", &out];
        arguments.extend(options);
        self.run(&arguments, environment)
    }
}

/// Returns the SHA-256 of a content, the hub's name of large files.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns nearly git's name of a small file.
fn git_name(bytes: &[u8]) -> String {
    sha256(bytes)[..40].to_owned()
}

fn answer(mut stream: TcpStream, is_second_host: bool, second: &str, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let header = |name: &str| {
        let of = |line: &String| line.split_once(':').map(|(n, v)| (n.to_lowercase(), v.trim().to_owned()));
        lines[1..].iter().filter_map(of).find(|(n, _)| n == name).map(|(_, value)| value).unwrap_or_default()
    };
    let mut words = lines[0].split(' ').map(ToOwned::to_owned);
    let mut request = Request {
        is_second_host,
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        range: header("range"),
        authorization: header("authorization"),
        encoding: header("accept-encoding"),
        when: Instant::now(),
        sent: 0,
    };
    let (reply, delay) = {
        let mut state = state.lock().expect("no panic");
        let reply = match is_second_host {
            true => store(&mut state, &request),
            false => hub(&mut state, &request, second),
        };
        let is_head = request.method == "HEAD";
        request.sent = if is_head { 0 } else { reply.body.len() - reply.cut };
        state.requests.push(request.clone());
        (reply, if is_second_host { state.delay } else { Duration::ZERO })
    };
    std::thread::sleep(delay);
    let length = if reply.has_length { format!("Content-Length: {}\r\n", reply.body.len()) } else { String::new() };
    let head = format!("HTTP/1.1 {}\r\nConnection: close\r\n{length}{}\r\n", reply.status, reply.headers);
    let body = if request.method == "HEAD" { &[][..] } else { &reply.body[..reply.body.len() - reply.cut] };
    let half = if reply.stall.is_some() { body.len() / 2 } else { body.len() };
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..half]));
    if let Some(stall) = reply.stall {
        std::thread::sleep(stall);
        let _ = stream.write_all(&body[half..]); // the client may have closed the connection
    }
}

/// Answers like the hub.
fn hub(state: &mut State, request: &Request, second: &str) -> Reply {
    let path = request.path.as_str();
    if let Some(index) = state.instead.iter().position(|(words, _, _)| path.contains(words)) {
        let (_, status, headers) = state.instead.remove(index);
        return Reply::new(status, headers, "");
    }
    // A renamed repository.
    if let Some((before, after)) = path.split_once("old/bert") {
        return Reply::new("307 Temporary Redirect", format!("Location: {before}tiny/bert{after}\r\n"), "moved");
    }
    let token = state.token.as_ref().map(|token| format!("Bearer {token}"));
    let is_shown = token.is_none_or(|token| request.authorization == token);
    if let Some((kind, revision)) = path.strip_prefix("/api/").and_then(|rest| rest.split_once("/revision/")) {
        let files = match kind {
            _ if !is_shown && !state.gated => {
                return Reply::new("401 Unauthorized", "X-Error-Code: RepoNotFound\r\n", "");
            }
            "models/tiny/bert" => &state.files,
            "datasets/tiny/reviews" => &state.dataset,
            _ => return Reply::new("401 Unauthorized", "X-Error-Code: RepoNotFound\r\n", ""),
        };
        if !["main", SHA, "refs%2Fpr%2F1"].contains(&revision) {
            return Reply::new("404 Not Found", "X-Error-Code: RevisionNotFound\r\n", "");
        }
        let names: Vec<Value> = files.keys().map(|name| json!({"rfilename": name})).collect();
        let sha = (!state.hides_commit).then_some(SHA);
        let body = json!({"sha": sha, "siblings": names, "cardData": state.card}).to_string();
        return Reply::new("200 OK", "Content-Type: application/json\r\n", body);
    }
    let commit = format!("X-Repo-Commit: {SHA}\r\n");
    let cached = path.strip_prefix("/api/resolve-cache/").and_then(|rest| rest.split_once(&format!("/{SHA}/")));
    let named = path.trim_start_matches('/').split_once("/resolve/");
    let (repo, name) = match (cached, named) {
        (Some((repo, name)), _) => (repo.trim_start_matches("models/"), name.split('?').next().unwrap_or("")),
        (None, Some((repo, rest))) => (repo, rest.split_once('/').map_or("", |(_, name)| name)),
        _ => return Reply::new("404 Not Found", "X-Error-Code: RepoNotFound\r\n", ""),
    };
    let files = if repo == "tiny/bert" { &state.files } else { &state.dataset };
    let Some(bytes) = files.get(name).cloned() else {
        return Reply::new("404 Not Found", format!("X-Error-Code: EntryNotFound\r\n{commit}"), "");
    };
    if !is_shown {
        return Reply::new("401 Unauthorized", "X-Error-Code: GatedRepo\r\n", "");
    }
    match state.manner {
        Manner::Hub if cached.is_some() => {
            let etag = format!("ETag: W/\"{}\"\r\n{commit}", git_name(&bytes));
            if request.encoding.contains("gzip") {
                let headers = format!("{etag}Content-Encoding: gzip\r\n");
                return Reply { has_length: false, ..Reply::new("200 OK", headers, b"\x1f\x8b compressed") };
            }
            part(state, request, name, bytes, &etag)
        }
        Manner::Hub if is_large(name) => {
            let key = sha256(&bytes);
            let headers = format!(
                "Location: {second}/{repo}/{name}?key={key}&signature=1%2F2\r\nX-Linked-Size: {}\r\n\
                 X-Linked-ETag: \"{key}\"\r\nETag: \"of the redirect\"\r\n{commit}",
                bytes.len()
            );
            Reply::new("302 Found", headers, "Found. Redirecting to another host")
        }
        Manner::Hub => {
            let kind = if repo == "tiny/bert" { "models/" } else { "" };
            let headers = format!("Location: /api/resolve-cache/{kind}{repo}/{SHA}/{name}?etag=%22x%22\r\n{commit}");
            Reply::new("307 Temporary Redirect", headers, "Temporary Redirect")
        }
        Manner::Mirror => {
            let whole = Request { range: String::new(), ..request.clone() };
            let etag = format!("ETag: \"{}\"\r\n", git_name(&bytes));
            part(state, &whole, name, bytes, &etag)
        }
        Manner::Parts => {
            let headers = format!("ETag: \"{}\"\r\n{commit}", git_name(&bytes));
            let mut reply = part(state, request, name, bytes, &headers);
            reply.headers = headers;
            reply
        }
        Manner::NoHead if request.method == "HEAD" => Reply::new("405 Method Not Allowed", "", ""),
        Manner::NoHead => {
            let headers = format!("ETag: \"{}\"\r\n", git_name(&bytes));
            let has_length = request.range == "bytes=0-0";
            Reply { has_length, ..part(state, request, name, bytes, &headers) }
        }
    }
}

/// Answers like the store of large files. Links are signed, and a token beside the signature is an error.
fn store(state: &mut State, request: &Request) -> Reply {
    if !request.authorization.is_empty() {
        return Reply::new("400 Bad Request", "", "Only one auth mechanism allowed");
    }
    let path = request.path.trim_start_matches('/').split('?').next().unwrap_or("");
    let files = [("tiny/bert/", &state.files), ("datasets/tiny/reviews/", &state.dataset)];
    let file = files.iter().find_map(|(repo, files)| {
        let name = path.strip_prefix(repo)?;
        Some((name.to_owned(), files.get(name)?.clone()))
    });
    match file {
        // The ETag of the store is the hash of something else.
        Some((name, bytes)) => part(state, request, &name, bytes, &format!("ETag: \"{}\"\r\n", sha256(b"else"))),
        None => Reply::new("404 Not Found", "", ""),
    }
}

fn is_large(name: &str) -> bool {
    [".safetensors", ".bin", ".h5", ".gguf", ".parquet"].iter().any(|end| name.ends_with(end))
}

/// Returns the requested part of a file, with the faults that the state asks for.
fn part(state: &mut State, request: &Request, name: &str, mut bytes: Vec<u8>, headers: &str) -> Reply {
    let total = bytes.len();
    let is_weights = name.ends_with("model.safetensors") && request.method == "GET" && request.range != "bytes=0-0";
    if is_weights && state.corrupt > 0 {
        state.corrupt -= 1;
        bytes[total - 1] ^= 1;
    }
    let mut reply = match request.range.trim_start_matches("bytes=").split_once('-') {
        None => Reply::new("200 OK", headers, bytes),
        Some((from, to)) => {
            let from: usize = from.parse().expect("a range");
            if from >= total {
                let range = format!("Content-Range: bytes */{total}\r\n");
                return Reply::new("416 Range Not Satisfiable", range, "");
            }
            let to = to.parse().map_or(total, |last: usize| (last + 1).min(total));
            let range = format!("{headers}Content-Range: bytes {from}-{}/{total}\r\n", to - 1);
            Reply::new("206 Partial Content", range, &bytes[from..to])
        }
    };
    if is_weights && state.breaks > 0 {
        state.breaks -= 1;
        reply.cut = reply.body.len() / 2;
    } else if is_weights {
        reply.stall = state.stalls.pop();
    }
    reply
}
