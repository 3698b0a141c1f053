//! Transfer of files: redirects, tokens, parts, hashes, refusals, pauses, and two processes at once.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::fixture;
use crate::server::{Manner, Request, SHA, Server, sha256};

const WEIGHTS: &str = "model.safetensors";

fn weights() -> Vec<u8> {
    fs::read(fixture("tiny-bert").join(WEIGHTS)).expect("the fixture")
}

/// Returns the requests for the content of the weights, without those for their description.
fn requests_for_weights(requests: &[Request]) -> Vec<&Request> {
    let is_content = |request: &&Request| request.method == "GET" && request.range != "bytes=0-0";
    requests.iter().filter(|request| request.path.contains(WEIGHTS)).filter(is_content).collect()
}

/// Returns the ranges of the requests for the weights that the hub itself received.
fn ranges(hub: &Server) -> Vec<String> {
    let requests = hub.requests();
    requests_for_weights(&requests).into_iter().filter(|r| !r.is_second_host).map(|r| r.range.clone()).collect()
}

fn is_whole(hub: &Server) -> bool {
    fs::read(hub.snapshot().join(WEIGHTS)).is_ok_and(|bytes| bytes == weights())
}

/// Returns the blob of the weights, under the hub's name of their content.
fn blob(hub: &Server) -> PathBuf {
    hub.home().join("hub/models--tiny--bert/blobs").join(sha256(&weights()))
}

#[test]
fn redirects_are_followed_and_only_the_hub_gets_the_token() {
    let hub = Server::start();
    hub.set(|state| state.token = Some("secret".into()));
    hub.rank("tiny/bert", &[], &[("HF_TOKEN", "secret")]).ok();
    let requests = hub.requests();
    assert!(requests.iter().all(|request| request.encoding == "identity"), "{requests:?}");
    let (second, first): (Vec<&Request>, Vec<&Request>) = requests.iter().partition(|request| request.is_second_host);
    assert!(first.iter().all(|request| request.authorization == "Bearer secret"), "{first:?}");
    assert!(first.iter().any(|request| request.path.starts_with("/api/resolve-cache/models/tiny/bert/")), "{first:?}");
    // The weights came from the second host, once, and no request showed it the token.
    assert!(second.iter().all(|request| request.authorization.is_empty()), "{second:?}");
    assert_eq!(second.iter().map(|request| request.sent).sum::<usize>(), weights().len());
    assert!(second[0].path.contains("signature=1%2F2"), "the link is followed as it is: {}", second[0].path);
    assert!(is_whole(&hub));

    // A renamed repository is found by its old name, with the token, because the host is the same.
    fs::remove_dir_all(hub.home()).expect("a cache");
    hub.rank("old/bert", &[], &[("HF_TOKEN", "secret")]).ok();
    assert!(hub.home().join("hub/models--old--bert/snapshots").join(SHA).join(WEIGHTS).exists());
}

#[cfg(unix)]
#[test]
fn the_cache_has_the_layout_of_python() {
    let hub = Server::start();
    hub.rank("tiny/bert", &[], &[]).ok();
    let repo = hub.home().join("hub/models--tiny--bert");
    assert_eq!(fs::read_to_string(repo.join("refs/main")).expect("a revision"), SHA);
    let link = fs::read_link(hub.snapshot().join(WEIGHTS)).expect("a link");
    assert_eq!(link, PathBuf::from(format!("../../blobs/{}", sha256(&weights()))));
    // A weak ETag loses its prefix and its quotes.
    let link = fs::read_link(hub.snapshot().join("config.json")).expect("a link");
    let config = sha256(&fs::read(fixture("tiny-bert/config.json")).expect("the fixture"));
    assert_eq!(link, PathBuf::from(format!("../../blobs/{}", &config[..40])));
    let blobs = fs::read_dir(repo.join("blobs")).expect("blobs");
    assert_eq!(blobs.count(), 3, "nothing is left over");

    // Another name of the revision is another ref to the same files.
    hub.requests();
    hub.rank("tiny/bert", &["--revision", "refs/pr/1"], &[]).ok();
    assert_eq!(fs::read_to_string(repo.join("refs/refs/pr/1")).expect("a revision"), SHA);
    hub.rank("tiny/bert", &["--revision", SHA], &[("HF_HUB_OFFLINE", "1")]).ok();
    assert_eq!(hub.file_requests(), []);
}

#[test]
fn broken_downloads_resume() {
    let hub = Server::start();
    let size = weights().len();
    // The connection breaks twice, after half and after three quarters. Each byte is sent once.
    hub.set(|state| state.breaks = 2);
    hub.rank("tiny/bert", &[], &[]).ok();
    let half = size - size / 2;
    let three_quarters = half + (size - half) - (size - half) / 2;
    let requests = hub.requests();
    let second: Vec<&Request> =
        requests_for_weights(&requests).into_iter().filter(|request| request.is_second_host).collect();
    let parts: Vec<(&str, usize)> = second.iter().map(|request| (request.range.as_str(), request.sent)).collect();
    let (from_half, from_three_quarters) = (format!("bytes={half}-"), format!("bytes={three_quarters}-"));
    assert_eq!(
        parts,
        [
            ("", half),
            (from_half.as_str(), three_quarters - half),
            (from_three_quarters.as_str(), size - three_quarters)
        ]
    );
    assert!(is_whole(&hub));

    // The connection breaks for good, and another run resumes.
    fs::remove_dir_all(hub.home()).expect("a cache");
    hub.set(|state| state.breaks = 4);
    hub.rank("tiny/bert", &[], &[]).fails_with(&["downloading model.safetensors broke", "the same command resumes it"]);
    assert_eq!(ranges(&hub).len(), 4);
    hub.rank("tiny/bert", &[], &[]).ok();
    let last = ranges(&hub);
    assert_eq!(last.len(), 1);
    assert!(last[0].starts_with("bytes=1"), "{last:?}");
    assert!(is_whole(&hub));

    // A run stopped after all bytes arrived but before the file got its name, so no bytes are requested.
    let incomplete = blob(&hub).with_extension("incomplete");
    fs::rename(blob(&hub), &incomplete).expect("a file");
    hub.rank("tiny/bert", &[], &[]).ok();
    assert_eq!(ranges(&hub), [""; 0]);
    assert!(is_whole(&hub) && !incomplete.exists());
}

#[test]
fn stalled_downloads_resume() {
    let hub = Server::start();
    hub.set(|state| state.stalls = vec![Duration::from_secs(8)]);
    hub.rank("tiny/bert", &[], &[("HF_HUB_DOWNLOAD_TIMEOUT", "2")]).ok();
    assert_eq!(ranges(&hub), [String::new(), format!("bytes={}-", weights().len() / 2)]);
    assert!(is_whole(&hub));
    let wrong = hub.rank("tiny/bert", &[], &[("HF_HUB_DOWNLOAD_TIMEOUT", "soon")]);
    wrong.fails_with(&["HF_HUB_DOWNLOAD_TIMEOUT=soon", "seconds"]);
}

#[test]
fn mirrors_behave_differently() {
    // Without parts and commits, a broken download starts again.
    let hub = Server::start();
    hub.set(|state| (state.manner, state.breaks) = (Manner::Mirror, 1));
    hub.rank("tiny/bert", &[], &[]).ok();
    assert_eq!(ranges(&hub), [String::new(), format!("bytes={}-", weights().len() / 2)]);
    assert!(is_whole(&hub));

    // Parts without a position are useless, so the whole file is requested.
    let hub = Server::start();
    hub.set(|state| (state.manner, state.breaks) = (Manner::Parts, 1));
    hub.rank("tiny/bert", &[], &[]).ok();
    assert_eq!(ranges(&hub), [String::new(), format!("bytes={}-", weights().len() / 2), String::new()]);
    assert!(is_whole(&hub));

    // If the description lacks the commit, the files give it, or the run fails.
    let hub = Server::start();
    hub.set(|state| state.hides_commit = true);
    hub.rank("tiny/bert", &[], &[]).ok();
    assert!(is_whole(&hub));
    hub.set(|state| state.manner = Manner::Mirror);
    hub.rank("tiny/bert", &[], &[]).fails_with(&["does not say which commit", "X-Repo-Commit"]);

    // Without HEAD and Content-Length, the first byte gives the size, which reveals a break.
    let hub = Server::start();
    hub.set(|state| (state.manner, state.breaks) = (Manner::NoHead, 1));
    hub.rank("tiny/bert", &[], &[]).ok();
    assert_eq!(ranges(&hub), [String::new(), format!("bytes={}-", weights().len() / 2)]);
    assert!(is_whole(&hub));
}

#[test]
fn wrong_bytes_are_refused() {
    // After a wrong byte in transit, everything is requested again.
    let hub = Server::start();
    hub.set(|state| state.corrupt = 1);
    hub.rank("tiny/bert", &[], &[]).ok();
    assert_eq!(ranges(&hub), ["", ""]);
    assert!(is_whole(&hub));

    // A second wrong byte is an error that names both hashes.
    fs::remove_dir_all(hub.home()).expect("a cache");
    hub.set(|state| state.corrupt = 9);
    let wanted = sha256(&weights());
    hub.rank("tiny/bert", &[], &[]).fails_with(&["model.safetensors came with the SHA-256", &wanted]);
    assert!(!blob(&hub).exists());

    // The bytes of an earlier run are wrong, or longer than the file.
    hub.set(|state| state.corrupt = 0);
    let incomplete = blob(&hub).with_extension("incomplete");
    for left in [weights().len() - 10, weights().len(), weights().len() + 10] {
        fs::write(&incomplete, vec![7; left]).expect("a file");
        hub.rank("tiny/bert", &[], &[]).ok();
        assert!(is_whole(&hub), "{left}");
        fs::remove_dir_all(hub.snapshot()).expect("a snapshot");
        fs::remove_file(blob(&hub)).expect("a blob");
    }

    // A blob that lost its end is not used.
    fs::write(blob(&hub), b"short").expect("a file");
    hub.rank("tiny/bert", &[], &[]).ok();
    assert!(is_whole(&hub));
}

#[test]
fn busy_hubs_are_asked_again_after_the_requested_wait() {
    let hub = Server::start();
    hub.set(|state| {
        state.instead = vec![
            ("/api/models/", "429 Too Many Requests", "Retry-After: 1\r\n"),
            ("/resolve/", "503 Service Unavailable", "Retry-After: 1\r\n"),
            ("/resolve-cache/", "429 Too Many Requests", "RateLimit: \"resolvers\";r=0;t=1\r\n"),
            ("/resolve/", "500 Internal Server Error", ""),
        ];
    });
    let run = hub.rank("tiny/bert", &[], &[]).ok();
    assert!(run.stderr.contains("status 429 (too many requests) and asks for 1.0 s of rest"), "{}", run.stderr);
    let requests = hub.requests();
    for words in ["/api/models/", "/resolve/"] {
        let times: Vec<_> = requests.iter().filter(|r| r.path.contains(words)).map(|r| r.when).take(2).collect();
        assert!(times[1] - times[0] >= Duration::from_secs(1), "{words}: {:?}", times[1] - times[0]);
    }

    // No run waits for an hour, or forever.
    fs::remove_dir_all(hub.home()).expect("a cache");
    let later = ("/api/models/", "429 Too Many Requests", "Retry-After: 3600\r\n");
    hub.set(|state| state.instead = vec![later]);
    hub.rank("tiny/bert", &[], &[]).fails_with(&["status 429 (too many requests)", "1 h 00 min", "not in"]);
    hub.set(|state| state.instead = vec![("/api/models/", "503 Service Unavailable", ""); 4]);
    hub.requests();
    hub.rank("tiny/bert", &[], &[]).fails_with(&["cannot be reached", "status 503"]);
    assert_eq!(hub.requests().len(), 4);
    hub.set(|state| state.instead = vec![("/resolve/", "429 Too Many Requests", "Retry-After: 3600\r\n")]);
    hub.rank("tiny/bert", &[], &[]).fails_with(&["downloading config.json broke", "status 429", "1 h 00 min"]);

    // The cache serves while the hub is busy.
    hub.rank("tiny/bert", &[], &[]).ok();
    hub.set(|state| state.instead = vec![later]);
    let run = hub.rank("tiny/bert", &[], &[]).ok();
    assert!(run.stderr.contains("taking tiny/bert as it was downloaded before"), "{}", run.stderr);
}

#[test]
fn refusals_quote_the_hub() {
    let hub = Server::start();
    let refuse = |words, status, headers| hub.set(|state| state.instead = vec![(words, status, headers)]);
    let unknown = "X-Error-Message: Invalid credentials in Authorization header\r\n";
    refuse("/api/models/", "401 Unauthorized", unknown);
    hub.rank("tiny/bert", &[], &[("HF_TOKEN", "old")]).fails_with(&["does not know the token", "Invalid credentials"]);
    let forbidden = "X-Error-Message: Your token is not in the team's list.\r\n";
    refuse("/api/models/", "403 Forbidden", forbidden);
    hub.rank("tiny/bert", &[], &[("HF_TOKEN", "x")]).fails_with(&["Your token is not in the team's list"]);
    refuse("/resolve/", "403 Forbidden", "X-Error-Code: GatedRepo\r\n");
    hub.rank("tiny/bert", &[], &[("HF_TOKEN", "x")]).fails_with(&["this token may not read it", "terms"]);
    refuse("/resolve/", "404 Not Found", "X-Error-Code: EntryNotFound\r\n");
    hub.rank("tiny/bert", &[], &[]).fails_with(&["tiny/bert", "the model has no config.json"]);
    refuse("/api/models/", "418 I'm a teapot", "X-Error-Message: short and stout\r\n");
    hub.rank("tiny/bert", &[], &[]).fails_with(&["status 418: short and stout"]);
    refuse("/api/models/", "307 Temporary Redirect", "Location: ftp://elsewhere/\r\n");
    hub.rank("tiny/bert", &[], &[]).fails_with(&["redirects to \"ftp://elsewhere/\", which is no address"]);
    hub.set(|state| {
        state.instead = vec![("/api/models/", "307 Temporary Redirect", "Location: /api/models/x\r\n"); 20]
    });
    hub.rank("tiny/bert", &[], &[]).fails_with(&["redirects more than 10 times"]);
    hub.set(|state| state.instead.clear());

    // A redirect to another host never gets the token, even if that host redirects back.
    let elsewhere = "Location: http://localhost:9/api/models/tiny/bert\r\n";
    refuse("/api/models/", "302 Found", elsewhere);
    hub.rank("tiny/bert", &[], &[("HF_TOKEN", "x")]).fails_with(&["cannot be reached"]);

    hub.rank("tiny/bert", &[], &[("HF_ENDPOINT", "hub.example")]).fails_with(&["HF_ENDPOINT=hub.example", "https://"]);
    hub.rank("tiny/bert", &[], &[("HF_TOKEN", "two words\n")]).fails_with(&["characters that no token has"]);
}

#[test]
fn two_processes_download_each_file_once() {
    let hub = Server::start();
    hub.set(|state| state.delay = Duration::from_millis(1500));
    let (data, outs) = (hub.data().display().to_string(), ["out-1", "out-2"].map(|out| hub.home().with_file_name(out)));
    let start = |out: &PathBuf| {
        let out = out.display().to_string();
        let arguments = ["rank", "tiny/bert", "--no-cache", "--data", &data, "--out", &out];
        let mut command = hub.command(&arguments, &[]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        command.spawn().expect("the program starts")
    };
    let both: Vec<_> = outs.iter().map(start).collect();
    for one in both {
        let output = one.wait_with_output().expect("the program ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(is_whole(&hub));
    let requests = hub.requests();
    let sent: usize = requests.iter().filter(|request| request.is_second_host).map(|request| request.sent).sum();
    assert_eq!(sent, weights().len());
}
