//! Models by their id on a hub: a server on this machine that speaks the hub's protocol, and counts what it is asked for.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use common::{Run, data, fixture};
use serde_json::{Value, json};

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has and how it behaves.
#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// The hub hides the model from whoever does not show this token.
    token: Option<String>,
    /// Files need a token, though the model is shown to all.
    gated: bool,
    /// How many answers break in the middle of the weights.
    breaks: usize,
    /// Path and range of every request.
    asked: Vec<(String, String)>,
}

struct Server {
    state: Arc<Mutex<State>>,
    address: String,
    dir: tempfile::TempDir,
}

impl Server {
    /// A hub with the model tiny/bert.
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let mut files = BTreeMap::new();
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            let bytes = std::fs::read(fixture("tiny-bert").join(name)).expect("a file of the fixture");
            files.insert(name.to_owned(), bytes);
        }
        // What nobody needs.
        files.insert("pytorch_model.bin".into(), vec![0; 1000]);
        files.insert("README.md".into(), b"a model".to_vec());
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || answer(stream, &shared));
            }
        });
        let dir = tempfile::tempdir().expect("a folder");
        data(dir.path());
        Self { state, address, dir }
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("no panic"));
    }

    /// The requests for files so far, by name and range, each time anew.
    fn files_asked_for(&self) -> Vec<(String, String)> {
        let mut state = self.state.lock().expect("no panic");
        let asked = std::mem::take(&mut state.asked);
        asked
            .into_iter()
            .filter_map(|(path, range)| Some((path.split("/resolve/main/").nth(1)?.into(), range)))
            .collect()
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("hf")
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn rank(&self, model: &str, options: &[&str], environment: &[(&str, &str)]) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gelora"));
        command.args(["rank", model, "--no-cache", "--data"]).arg(self.dir.path().join("data"));
        command.arg("--out").arg(self.out()).args(options);
        for name in ["HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.address).env("HF_HOME", self.home()).env("NODEVICE_SELECT", "1");
        command.envs(environment.iter().copied());
        let output = command.output().expect("the program starts");
        Run {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) {
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
    let path = lines[0].split(' ').nth(1).unwrap_or("/").to_owned();
    let header = |name: &str| {
        let of = |line: &String| line.split_once(':').map(|(n, v)| (n.to_lowercase(), v.trim().to_owned()));
        lines[1..].iter().filter_map(of).find(|(n, _)| n == name).map(|(_, value)| value).unwrap_or_default()
    };
    let (range, authorization) = (header("range"), header("authorization"));
    let mut state = state.lock().expect("no panic");
    state.asked.push((path.clone(), range.clone()));
    let shown = state.token.as_ref().is_none_or(|token| authorization == format!("Bearer {token}"));
    let mut reply = |status: &str, headers: &str, body: &[u8], cut: usize| {
        let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..body.len() - cut]));
    };
    if let Some(rest) = path.strip_prefix("/api/models/tiny/bert/revision/") {
        match rest {
            _ if !shown && !state.gated => reply("401 Unauthorized", "X-Error-Code: RepoNotFound\r\n", b"", 0),
            "main" => {
                let names: Vec<Value> = state.files.keys().map(|name| json!({"rfilename": name})).collect();
                let body = json!({"sha": SHA, "siblings": names}).to_string();
                reply("200 OK", "Content-Type: application/json\r\n", body.as_bytes(), 0);
            }
            _ => reply("404 Not Found", "X-Error-Code: RevisionNotFound\r\n", b"", 0),
        }
        return;
    }
    let name = path.strip_prefix("/tiny/bert/resolve/main/").unwrap_or("");
    let Some(bytes) = state.files.get(name).cloned() else {
        return reply("404 Not Found", "X-Error-Code: RepoNotFound\r\n", b"", 0);
    };
    if !shown {
        return reply("401 Unauthorized", "X-Error-Code: GatedRepo\r\n", b"", 0);
    }
    let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap_or(("0", ""));
    let from: usize = from.parse().expect("a range");
    if from >= bytes.len() {
        return reply("416 Range Not Satisfiable", "", b"", 0);
    }
    let to = to.parse().map_or(bytes.len(), |last: usize| (last + 1).min(bytes.len()));
    let headers = format!(
        "ETag: \"{name}-etag\"\r\nX-Repo-Commit: {SHA}\r\nContent-Range: bytes {from}-{}/{}\r\n",
        to - 1,
        bytes.len()
    );
    let breaks = name.ends_with("model.safetensors") && to - from > 1 && state.breaks > 0;
    state.breaks -= usize::from(breaks);
    let cut = if breaks { (to - from) / 2 } else { 0 };
    reply("206 Partial Content", &headers, &bytes[from..to], cut);
}

#[test]
fn a_model_is_downloaded_once_and_only_what_is_needed() {
    let hub = Server::start();
    let run = hub.rank("tiny/bert", &[], &[]).ok();
    assert!(run.stderr.contains("tiny/bert model.safetensors"), "it says what it downloads: {}", run.stderr);
    let mut names: Vec<String> = hub.files_asked_for().into_iter().map(|(name, _)| name).collect();
    names.dedup();
    assert_eq!(names, ["config.json", "tokenizer.json", "model.safetensors"]);
    let snapshot = hub.home().join("hub/models--tiny--bert/snapshots").join(SHA);
    assert_eq!(
        std::fs::read(snapshot.join("model.safetensors")).expect("it is there"),
        std::fs::read(fixture("tiny-bert/model.safetensors")).expect("the fixture")
    );
    let by_id = std::fs::read_to_string(hub.out().join("adapter_config.json")).expect("a config");
    assert!(by_id.contains("\"base_model_name_or_path\": \"tiny/bert\""), "{by_id}");
    let ranks = std::fs::read_to_string(hub.out().join("ranks.json")).expect("ranks");

    let by_folder = hub.rank(&fixture("tiny-bert").display().to_string(), &[], &[]).ok();
    assert_eq!(hub.files_asked_for(), []);
    assert_eq!(by_folder.stdout, run.stdout);
    assert!(ranks.contains("\"model\": \"tiny/bert\""), "{ranks}");

    // The second time nothing is downloaded; without the hub, or if asked to, neither.
    hub.rank("tiny/bert", &[], &[]).ok();
    assert_eq!(hub.files_asked_for(), []);
    assert_eq!(hub.rank("tiny/bert", &[], &[("HF_HUB_OFFLINE", "1")]).ok().stdout, run.stdout);
    let gone = hub.rank("tiny/bert", &[], &[("HF_ENDPOINT", "http://127.0.0.1:9")]).ok();
    assert_eq!(gone.stdout, run.stdout);
    assert!(gone.stderr.contains("http://127.0.0.1:9 cannot be reached"), "{}", gone.stderr);
}

#[test]
fn what_is_not_in_the_cache_needs_the_hub() {
    let hub = Server::start();
    let cache = hub.home().join("hub").display().to_string();
    let way_on = "Run this once with a connection, or give the folder of a copy";
    hub.rank("tiny/bert", &[], &[("HF_HUB_OFFLINE", "1")]).fails_with(&["tiny/bert", &cache, "HF_HUB_OFFLINE", way_on]);
    hub.rank("tiny/bert", &[], &[("HF_ENDPOINT", "http://127.0.0.1:9")]).fails_with(&[
        "tiny/bert",
        &cache,
        "http://127.0.0.1:9 cannot be reached",
        way_on,
    ]);
    // Half of a model is none.
    hub.set(|state| state.breaks = 9);
    hub.rank("tiny/bert", &[], &[]).fails_with(&["downloading model.safetensors broke"]);
    hub.rank("tiny/bert", &[], &[("HF_HUB_OFFLINE", "1")]).fails_with(&["not all of it", way_on]);
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let hub = Server::start();
    let size = std::fs::metadata(fixture("tiny-bert/model.safetensors")).expect("the fixture").len();
    // The connection breaks twice: half is there, then three quarters.
    hub.set(|state| state.breaks = 2);
    hub.rank("tiny/bert", &[], &[]).ok();
    let ranges = |hub: &Server| -> Vec<String> {
        let of_weights = |(name, range): (String, String)| (name == "model.safetensors").then_some(range);
        hub.files_asked_for().into_iter().filter_map(of_weights).filter(|range| range != "bytes=0-0").collect()
    };
    let half = size - size / 2;
    let three_quarters = half + (size - half) - (size - half) / 2;
    assert_eq!(ranges(&hub), ["bytes=0-".to_owned(), format!("bytes={half}-"), format!("bytes={three_quarters}-")]);

    // It breaks for good, and another run goes on.
    std::fs::remove_dir_all(hub.home()).expect("a cache");
    hub.set(|state| state.breaks = 4);
    hub.rank("tiny/bert", &[], &[]).fails_with(&["downloading model.safetensors broke", "goes on where it stopped"]);
    assert_eq!(ranges(&hub).len(), 4);
    hub.rank("tiny/bert", &[], &[]).ok();
    let last = ranges(&hub);
    assert_eq!(last.len(), 1);
    assert_ne!(last[0], "bytes=0-");

    // A run that was stopped when all was there, but had no name yet.
    let blobs = hub.home().join("hub/models--tiny--bert/blobs");
    let whole = blobs.join("model.safetensors-etag");
    std::fs::rename(&whole, whole.with_extension("part")).expect("a file");
    hub.rank("tiny/bert", &[], &[]).ok();
    assert_eq!(ranges(&hub), [format!("bytes={size}-"), "bytes=0-".to_owned()]);
}

#[test]
fn shards_are_those_of_the_index() {
    let hub = Server::start();
    hub.set(|state| {
        let whole = state.files.remove("model.safetensors").expect("weights");
        let header = u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
        let json: Value = serde_json::from_slice(&whole[8..8 + header]).expect("a header");
        let names = json.as_object().expect("tensors").keys().filter(|name| *name != "__metadata__");
        let map: serde_json::Map<String, Value> =
            names.map(|name| (name.clone(), "model-00001-of-00001.safetensors".into())).collect();
        let index = json!({"weight_map": map}).to_string();
        state.files.insert("model.safetensors.index.json".into(), index.into_bytes());
        state.files.insert("model-00001-of-00001.safetensors".into(), whole.clone());
        state.files.insert("consolidated.safetensors".into(), whole);
    });
    hub.rank("tiny/bert", &[], &[]).ok();
    let asked = hub.files_asked_for();
    assert!(asked.iter().any(|(name, _)| name == "model-00001-of-00001.safetensors"), "{asked:?}");
    assert!(asked.iter().all(|(name, _)| name != "consolidated.safetensors"), "{asked:?}");
}

/// As microsoft/deberta-v3-base is: shards of PyTorch, and a SentencePiece model.
#[test]
fn older_repositories_give_their_older_files() {
    let hub = Server::start();
    let file = |name: &str| std::fs::read(fixture(name)).expect("a file of the fixtures");
    let older =
        ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"];
    hub.set(|state| {
        state.files.clear();
        state.files.insert("config.json".into(), file("families/deberta/config.json"));
        state.files.insert("tokenizer_config.json".into(), br#"{"do_lower_case": false}"#.to_vec());
        for name in older.iter().chain(&["spm.model"]) {
            state.files.insert((*name).into(), file(&format!("torch/{name}")));
        }
        state.files.insert("rust_model.ot".into(), vec![0; 1000]);
    });
    let run = hub.rank("tiny/bert", &[], &[]).ok();
    let names = |hub: &Server| {
        let mut names: Vec<String> = hub.files_asked_for().into_iter().map(|(name, _)| name).collect();
        names.dedup();
        names
    };
    let wanted =
        ["config.json", "spm.model", "tokenizer_config.json", "pytorch_model.bin.index.json", older[0], older[1]];
    assert_eq!(names(&hub), wanted);

    // Without the hub all of it has to be there.
    let offline = [("HF_HUB_OFFLINE", "1")];
    assert_eq!(hub.rank("tiny/bert", &[], &offline).ok().stdout, run.stdout);
    let snapshot = hub.home().join("hub/models--tiny--bert/snapshots").join(SHA);
    for name in [older[1], "spm.model"] {
        std::fs::remove_file(snapshot.join(name)).expect("it was there");
        hub.rank("tiny/bert", &[], &offline).fails_with(&["not all of it"]);
        hub.rank("tiny/bert", &[], &[]).ok();
    }

    // The newer files are preferred, one by one.
    std::fs::remove_dir_all(hub.home()).expect("a cache");
    names(&hub);
    hub.set(|state| {
        state.files.insert("model.safetensors".into(), file("families/deberta/model.safetensors"));
        state.files.insert("vocab.txt".into(), b"[PAD]\n".to_vec());
    });
    hub.rank("tiny/bert", &[], &[]).ok();
    assert_eq!(names(&hub), ["config.json", "spm.model", "vocab.txt", "tokenizer_config.json", "model.safetensors"]);

    // An index cannot have files written outside of the model's folder.
    hub.set(|state| {
        state.files.remove("model.safetensors");
        let index = br#"{"weight_map": {"a": "../../a.bin"}}"#;
        state.files.insert("pytorch_model.bin.index.json".into(), index.to_vec());
    });
    std::fs::remove_dir_all(hub.home()).expect("a cache");
    hub.rank("tiny/bert", &[], &[]).fails_with(&["pytorch_model.bin.index.json", "expected a file of this folder"]);

    hub.set(|state| {
        state.files.remove("spm.model");
        state.files.remove("vocab.txt");
    });
    hub.rank("tiny/bert", &[], &[])
        .fails_with(&["none of tokenizer.json, spm.model, vocab.txt, vocab.json with merges.txt"]);
}

#[test]
fn ids_that_cannot_be_read_say_why() {
    let hub = Server::start();
    hub.rank("tiny/other", &[], &[]).fails_with(&[
        "tiny/other",
        "no such model",
        "without a token; HF_TOKEN takes one",
    ]);
    hub.rank("tiny/other", &[], &[("HF_TOKEN", "mine")]).fails_with(&["tiny/other", "to the owner of this token"]);
    hub.rank("tiny/bert", &["--revision", "v9"], &[]).fails_with(&["tiny/bert", "no revision v9"]);

    let here = fixture("tiny-bert").display().to_string();
    hub.rank(&here, &["--revision", "main"], &[]).fails_with(&["--revision main is for models on the hub", &here]);

    // A private model is not shown without its token, which may come from a file too.
    hub.set(|state| state.token = Some("secret".into()));
    hub.rank("tiny/bert", &[], &[]).fails_with(&["tiny/bert", "no such model, or does not show it without a token"]);
    hub.rank("tiny/bert", &[], &[("HF_TOKEN", "wrong")]).fails_with(&["to the owner of this token"]);
    hub.rank("tiny/bert", &[], &[("HF_TOKEN", "secret")]).ok();
    std::fs::remove_dir_all(hub.home()).expect("a cache");
    std::fs::create_dir_all(hub.home()).expect("a folder");
    std::fs::write(hub.home().join("token"), "secret\n").expect("a file");
    hub.rank("tiny/bert", &[], &[]).ok();

    // A gated one is shown, but its files are not given.
    std::fs::remove_dir_all(hub.home()).expect("a cache");
    hub.set(|state| state.gated = true);
    let page = format!("{}/tiny/bert", hub.address);
    hub.rank("tiny/bert", &[], &[]).fails_with(&["tiny/bert", "needs a token", "terms", &page]);
    hub.rank("tiny/bert", &[], &[("HF_TOKEN", "wrong")]).fails_with(&["this token may not read it", &page]);

    let hub = Server::start();
    hub.set(|state| {
        state.files.remove("model.safetensors");
        state.files.remove("pytorch_model.bin");
        state.files.insert("tf_model.h5".into(), vec![0; 8]);
    });
    hub.rank("tiny/bert", &[], &[]).fails_with(&[
        "none of model.safetensors, model.safetensors.index.json, pytorch_model.bin",
        "it has tf_model.h5",
        "save_pretrained",
    ]);
    hub.set(|state| {
        state.files.insert("tiny.gguf".into(), vec![0; 8]);
    });
    hub.rank("tiny/bert", &[], &[]).fails_with(&["it has tf_model.h5, tiny.gguf", "tiny/bert/FILE.gguf"]);
    hub.rank("tiny/bert/other.gguf", &[], &[]).fails_with(&["tiny/bert has no other.gguf; it has", "tiny.gguf"]);
    hub.rank("tiny/bert/tiny.gguf", &[], &[]).fails_with(&["tiny.gguf", "not"]);
    assert!(Path::new(&hub.home()).join("hub/models--tiny--bert/snapshots").join(SHA).join("tiny.gguf").exists());
}
