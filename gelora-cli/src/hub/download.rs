//! Downloads one file of a repository into the cache. An interrupted download resumes where it stopped, and a file is
//! checked before it gets its name.
//!
//! The lock keeps two processes from downloading the same file. On a file system without locks, two processes write the
//! same bytes to the same positions, so the file stays valid: bytes are written at their position in the file, never
//! appended.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

use super::cache::{hex, make_folder_of};
use super::client::{Answer, Method, Refusal, Retries, Trouble, encoded};
use super::headers::{ContentRange, Described};
use super::{Hub, Kind};
use crate::ui;

/// Number of bytes that are read and written at once.
const CHUNK: usize = 1 << 18;
/// Number of bytes after which a try counts as progress and the retries are reset.
const PROGRESS: u64 = 1 << 20;

impl Hub {
    /// Downloads a file of a commit unless it exists.
    ///
    /// # Errors
    /// Returns an error if the hub refuses the file, if the connection fails after all retries, if size or hash differ
    /// from the hub's description, or if the cache cannot be written.
    pub fn download(&self, commit: &str, name: &str) -> Result<()> {
        let pointer = self.cache.pointer(commit, name)?;
        if pointer.exists() {
            return Ok(());
        }
        let described = self.describe(commit, name)?;
        let (model, endpoint) = (self.repo.name(), self.client.endpoint());
        if let Some(other) = described.commit.as_deref().filter(|other| *other != commit) {
            bail!("{model}: {endpoint} answers with {name} of the commit {other}, but was asked for {commit}");
        }
        let Some(etag) = described.etag() else {
            bail!("{model}: {endpoint} sends {name} without an ETag, and the cache has no other name for its content");
        };
        let lock = self.cache.lock(etag, self.quiet)?;
        let blob = self.cache.blob(etag);
        let is_whole = blob.metadata().is_ok_and(|file| described.size().is_none_or(|size| size == file.len()));
        if !is_whole {
            self.transfer(commit, name, &described, etag)?;
        }
        self.cache.link(etag, commit, name)?;
        drop(lock);
        Ok(())
    }

    /// Requests the description of a file without its content: HEAD, which does not follow redirects to another host.
    /// If ETag or size are still unknown, it requests the first byte.
    pub(super) fn describe(&self, revision: &str, name: &str) -> Result<Described> {
        let path = self.address(revision, name);
        let head = self.ask_until_answered(name, || self.client.ask(Method::HEAD, &path, None, false))?;
        let described = match head {
            Ok(answer) => answer.described,
            // The server does not support HEAD.
            Err(Refusal { status: 405 | 501, .. }) => Described::default(),
            Err(refusal) => return Err(self.refused(&refusal, Some(name))),
        };
        if described.etag().is_some() && described.size().is_some() {
            return Ok(described);
        }
        match self.ask_until_answered(name, || self.client.ask(Method::GET, &path, Some("bytes=0-0"), true))? {
            Ok(answer) => Ok(described.or(answer.described)),
            // An empty file has no first byte.
            Err(Refusal { status: 416, .. }) => Ok(described),
            Err(refusal) => Err(self.refused(&refusal, Some(name))),
        }
    }

    /// Returns the path of a file below the endpoint.
    fn address(&self, revision: &str, name: &str) -> String {
        format!("{}/resolve/{}/{}", self.repo.page(), encoded(revision, false), encoded(name, true))
    }

    /// Repeats a request until the server answers or refuses it.
    fn ask_until_answered(
        &self,
        name: &str,
        ask: impl Fn() -> Result<Answer, Trouble>,
    ) -> Result<Result<Answer, Refusal>> {
        let mut retries = Retries::new(self.quiet);
        loop {
            match ask() {
                Ok(answer) => return Ok(Ok(answer)),
                Err(Trouble::Refused(refusal)) => return Ok(Err(refusal)),
                Err(trouble) => retries.wait(trouble).map_err(|trouble| self.download_error(name, &trouble))?,
            }
        }
    }

    fn download_error(&self, name: &str, trouble: &Trouble) -> anyhow::Error {
        let model = self.repo.name();
        match trouble {
            Trouble::Refused(refusal) => self.refused(refusal, Some(name)),
            Trouble::Bad(problem) => anyhow!("{model}: {name}: {} {problem}", self.client.endpoint()),
            trouble => {
                anyhow!("{model}: downloading {name} broke: {trouble}; the same command resumes it")
            }
        }
    }

    /// Downloads the content of a file into its blob.
    fn transfer(&self, commit: &str, name: &str, described: &Described, etag: &str) -> Result<()> {
        let (path, incomplete, blob) = (self.address(commit, name), self.cache.incomplete(etag), self.cache.blob(etag));
        make_folder_of(&incomplete)?;
        let on_disk = || incomplete.display().to_string();
        let mut part = Part::open(&incomplete, described.sha256().is_some()).with_context(on_disk)?;
        let mut source = Source { hub: self, path: &path, name, size: described.size(), takes_ranges: true };
        let (mut retries, mut furthest, mut has_failed) = (Retries::new(self.quiet), part.length, false);
        loop {
            if source.size.is_some_and(|size| part.length > size) {
                part.empty().with_context(on_disk)?;
            }
            let brought = match source.size == Some(part.length) {
                true => Ok(()),
                false => source.take(&mut part).with_context(on_disk)?,
            };
            match brought {
                Ok(()) => {
                    let Some((found, wanted)) = part.sha256().zip(described.sha256()) else { break };
                    if found == wanted.to_ascii_lowercase() {
                        break;
                    }
                    // Either the earlier bytes or the new ones are wrong, so start again once.
                    part.empty().with_context(on_disk)?;
                    if has_failed {
                        let (model, endpoint) = (self.repo.name(), self.client.endpoint());
                        bail!("{model}: {name} came with the SHA-256 {found}, but {endpoint} says that it is {wanted}");
                    }
                    has_failed = true;
                }
                Err(trouble) => {
                    if part.length >= furthest + PROGRESS {
                        retries.forget();
                        furthest = part.length;
                    }
                    retries.wait(trouble).map_err(|trouble| self.download_error(name, &trouble))?;
                }
            }
        }
        part.finish().with_context(on_disk)?;
        match fs::rename(&incomplete, &blob) {
            // Another process downloaded the file first.
            Err(error) if error.kind() == io::ErrorKind::NotFound && blob.exists() => Ok(()),
            renamed => renamed.with_context(|| blob.display().to_string()),
        }
    }
}

/// Source of a file's bytes.
struct Source<'a> {
    hub: &'a Hub,
    path: &'a str,
    name: &'a str,
    /// Size of the whole file in bytes, if known.
    size: Option<u64>,
    /// Whether the server answers requests for a part of the file.
    takes_ranges: bool,
}

impl Source<'_> {
    /// Downloads the missing bytes of the part, as far as the connection holds. The outer error is an error of the
    /// disk.
    fn take(&mut self, part: &mut Part) -> io::Result<Result<(), Trouble>> {
        if !self.takes_ranges {
            part.restart()?;
        }
        let range = (part.length > 0).then(|| format!("bytes={}-", part.length));
        let answer = match self.hub.client.ask(Method::GET, self.path, range.as_deref(), true) {
            Ok(answer) => answer,
            // The server's file is shorter than the part, so the part belongs to another file.
            Err(Trouble::Refused(Refusal { status: 416, .. })) if range.is_some() => {
                part.empty()?;
                return Ok(Err(Trouble::Broken("the downloaded part does not belong to this file".into())));
            }
            Err(trouble) => return Ok(Err(trouble)),
        };
        if answer.status == 206 {
            let is_of_this_file = |total: Option<u64>| total.is_none() || self.size.is_none() || total == self.size;
            let fits = |range: ContentRange| range.first == Some(part.length) && is_of_this_file(range.total);
            if !answer.range.is_some_and(fits) {
                // The position of these bytes is unknown, so only the whole file helps.
                if !self.takes_ranges {
                    return Ok(Err(Trouble::Bad("sends a part of the file, but was asked for all of it".into())));
                }
                self.takes_ranges = false;
                return self.take(part);
            }
        } else {
            part.restart()?;
        }
        self.size = self.size.or(answer.described.size());
        self.copy(answer, part)
    }

    /// Copies the body of an answer to the current position of the part.
    fn copy(&self, answer: Answer, part: &mut Part) -> io::Result<Result<(), Trouble>> {
        let label = match self.hub.repo.kind {
            Kind::Model => format!("{} {}", self.hub.repo.id.repo, self.name),
            Kind::Dataset => format!("datasets/{} {}", self.hub.repo.id.repo, self.name),
        };
        let bar = ui::Progress::of_bytes(self.hub.quiet, label, self.size.unwrap_or(0));
        bar.inc(part.length);
        let mut reader = answer.reader();
        let mut buffer = vec![0; CHUNK];
        let ended = loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => break Err(Trouble::Broken(error.to_string())),
            };
            if let Some(size) = self.size.filter(|size| part.length + count as u64 > *size) {
                break Err(Trouble::Bad(format!("sends more than the {size} bytes that it speaks of")));
            }
            part.write(&buffer[..count])?;
            bar.inc(count as u64);
        };
        bar.finish();
        Ok(ended.and_then(|()| match self.size {
            Some(size) if part.length < size => {
                Err(Trouble::Broken(format!("the connection ended after {} of {size} bytes", part.length)))
            }
            _ => Ok(()),
        }))
    }
}

/// A partly downloaded file.
struct Part {
    file: File,
    /// Number of valid bytes. The file may be longer, with bytes of an earlier try.
    length: u64,
    /// Hash of these bytes, if it is needed.
    hasher: Option<Sha256>,
}

impl Part {
    /// Opens a part with the bytes that an earlier run left.
    fn open(path: &Path, needs_hash: bool) -> io::Result<Self> {
        let mut file = File::options().create(true).read(true).write(true).truncate(false).open(path)?;
        let mut hasher = needs_hash.then(Sha256::new);
        let mut length = 0;
        match &mut hasher {
            None => length = file.seek(SeekFrom::End(0))?,
            Some(hasher) => {
                let mut buffer = vec![0; CHUNK];
                loop {
                    match file.read(&mut buffer)? {
                        0 => break,
                        count => {
                            hasher.update(&buffer[..count]);
                            length += count as u64;
                        }
                    }
                }
            }
        }
        Ok(Self { file, length, hasher })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        Ok(())
    }

    /// Starts at the first byte again and keeps the file's length.
    fn restart(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.length = 0;
        self.hasher = self.hasher.take().map(|_| Sha256::new());
        Ok(())
    }

    /// Starts again with an empty file.
    fn empty(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.restart()
    }

    fn sha256(&self) -> Option<String> {
        self.hasher.clone().map(|hasher| hex(&hasher.finalize()))
    }

    fn finish(self) -> io::Result<()> {
        self.file.set_len(self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_resumes_with_its_hash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.incomplete");
        let mut part = Part::open(&path, true).unwrap();
        part.write(b"one ").unwrap();
        drop(part);
        let mut part = Part::open(&path, true).unwrap();
        assert_eq!(part.length, 4);
        part.write(b"two").unwrap();
        let whole = hex(&Sha256::digest(b"one two"));
        assert_eq!(part.sha256(), Some(whole.clone()));
        // The part is written again from the start and truncated at its new end.
        part.restart().unwrap();
        part.write(b"four").unwrap();
        assert_eq!(part.sha256(), Some(hex(&Sha256::digest(b"four"))));
        part.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"four");
        let mut part = Part::open(&path, false).unwrap();
        assert_eq!((part.length, part.sha256()), (4, None));
        part.empty().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }
}
