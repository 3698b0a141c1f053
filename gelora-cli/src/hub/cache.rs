//! The folder of a repository in the cache, in the layout of Python's huggingface_hub, so that each program finds the
//! files of the other:
//!
//! ```text
//! models--org--name/refs/main             the commit that main stands for
//! models--org--name/blobs/ETAG            the files, by their content
//! models--org--name/snapshots/SHA/a/b     -> ../../../blobs/ETAG
//! .locks/models--org--name/ETAG.lock      held while ETAG is downloaded
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use gelora_lora::files;
use sha2::{Digest, Sha256};

use super::Kind;
use crate::ui;

/// Maximum length of an ETag that is used as a file name unchanged.
const MAX_NAME_LENGTH: usize = 128;

/// Cache folder of one repository.
#[derive(Clone, Debug)]
pub struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// Returns the cache of `repo` below the folder `root`.
    pub fn new(root: &Path, kind: Kind, repo: &str) -> Self {
        let name = format!("{}--{}", kind.plural(), repo.replace('/', "--"));
        Self { folder: root.join(&name), locks: root.join(".locks").join(name) }
    }

    /// Returns the folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Returns the path of a file of a commit.
    ///
    /// # Errors
    /// Returns an error if its name leads out of the folder.
    pub fn pointer(&self, commit: &str, name: &str) -> Result<PathBuf> {
        let is_part = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':', '\0']);
        if !is_plain(commit) {
            bail!("the hub calls its commit {commit:?}; expected a hash");
        }
        if !name.split('/').all(is_part) {
            bail!("the hub has a file called {name:?}, which would not lie in the cache's folder");
        }
        Ok(name.split('/').fold(self.snapshot(commit), |path, part| path.join(part)))
    }

    /// Returns the file name of the content with this ETag. An ETag that is no valid file name is hashed.
    fn blob_name(etag: &str) -> String {
        match is_plain(etag) && etag.len() <= MAX_NAME_LENGTH {
            true => etag.to_owned(),
            false => hex(&Sha256::digest(etag.as_bytes())),
        }
    }

    /// Returns the file of the content with this ETag.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(Self::blob_name(etag))
    }

    /// Returns the file of the content with this ETag during its download.
    pub fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{}.incomplete", Self::blob_name(etag)))
    }

    /// Returns the commit of a revision, as recorded by an earlier download.
    pub fn commit(&self, revision: &str) -> Option<String> {
        // A revision may be the commit itself.
        if is_commit(revision) && self.snapshot(revision).is_dir() {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.reference(revision)?).ok()?.trim().to_owned();
        is_plain(&commit).then_some(commit)
    }

    /// Records the commit of a revision.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn keep_commit(&self, revision: &str, commit: &str) -> Result<()> {
        let Some(path) = self.reference(revision).filter(|_| revision != commit) else { return Ok(()) };
        if fs::read_to_string(&path).is_ok_and(|text| text == commit) {
            return Ok(());
        }
        make_folder_of(&path)?;
        Ok(files::write_atomic(&path, commit.as_bytes())?)
    }

    /// Returns the file that records a revision's commit: `refs/main`, `refs/refs/pr/1`.
    fn reference(&self, revision: &str) -> Option<PathBuf> {
        let parts: Vec<&str> = revision.split('/').collect();
        parts
            .iter()
            .all(|part| is_plain(part))
            .then(|| parts.iter().fold(self.folder.join("refs"), |p, part| p.join(part)))
    }

    /// Links a file name of a commit to its blob.
    ///
    /// # Errors
    /// Returns an error if the link cannot be created.
    pub fn link(&self, etag: &str, commit: &str, name: &str) -> Result<()> {
        let pointer = self.pointer(commit, name)?;
        make_folder_of(&pointer)?;
        let up = "../".repeat(name.split('/').count() + 1);
        let target = PathBuf::from(format!("{up}blobs/{}", Self::blob_name(etag)));
        link(&target, &self.blob(etag), &pointer).with_context(|| pointer.display().to_string())
    }

    /// Returns the names of a commit's files in the cache, sorted.
    pub fn files(&self, commit: &str) -> Vec<String> {
        let root = self.snapshot(commit);
        let (mut folders, mut names) = (vec![root.clone()], Vec::new());
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if path.exists() {
                    let parts = path.strip_prefix(&root).unwrap_or(&path).components();
                    let parts: Vec<_> = parts.map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
                    names.push(parts.join("/"));
                }
            }
        }
        names.sort_unstable();
        names
    }

    /// Waits until no other process downloads the same content. The returned file holds the lock. It is `None` if the
    /// file system has no locks.
    ///
    /// # Errors
    /// Returns an error if the lock file cannot be created.
    pub fn lock(&self, etag: &str, quiet: bool) -> Result<Option<File>> {
        let path = self.locks.join(format!("{}.lock", Self::blob_name(etag)));
        make_folder_of(&path)?;
        let open = File::options().create(true).append(true).open(&path);
        let file = open.with_context(|| path.display().to_string())?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => {
                ui::note(quiet, format!("waiting for another process, which holds {}", path.display()));
                Ok(file.lock().is_ok().then_some(file))
            }
            Err(TryLockError::Error(_)) => Ok(None),
        }
    }
}

/// Creates the parent folder of a file.
///
/// # Errors
/// Returns an error if the folder cannot be created.
pub fn make_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).with_context(|| format!("{}: cannot be made", folder.display()))
}

/// Creates `link` as a symbolic link to `target`, or else as a hard link to `file`, or else as a copy of it.
///
/// # Errors
/// Returns an error if none of these succeeds.
pub fn link(target: &Path, file: &Path, link: &Path) -> io::Result<()> {
    if fs::read_link(link).is_ok_and(|present| present == target) {
        return Ok(());
    }
    // An existing link points elsewhere or to nothing.
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match symlink(target, link) {
        Ok(()) => return Ok(()),
        // Another process created the link first.
        Err(_) if fs::read_link(link).is_ok_and(|present| present == target) => return Ok(()),
        Err(_) => {}
    }
    fs::hard_link(file, link).or_else(|_| fs::copy(file, link).map(|_| ()))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

/// Returns true if a text is a valid file name.
fn is_plain(text: &str) -> bool {
    let is_known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && !text.starts_with('.') && text.chars().all(is_known)
}

/// Returns true if a revision is a commit hash rather than a branch or tag.
fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_folder() {
        let cache = RepoCache::new(Path::new("/c"), Kind::Dataset, "org/name");
        let pointer = |name: &str| cache.pointer("c0ffee", name).ok();
        assert_eq!(
            pointer("data/train.csv"),
            Some(PathBuf::from("/c/datasets--org--name/snapshots/c0ffee/data/train.csv"))
        );
        for no in ["", "/etc/passwd", "../a", "a/../../b", "a//b", "./a", "a\\..\\b", "c:a"] {
            assert_eq!(pointer(no), None, "{no}");
        }
        assert!(cache.pointer("../..", "a").is_err());
        assert_eq!(cache.reference("../../etc/passwd"), None);
        assert_eq!(cache.reference("refs/pr/1"), Some(PathBuf::from("/c/datasets--org--name/refs/refs/pr/1")));
        // ETags that are valid names are kept, as in Python's tools. Others are hashed, so they cannot lead out of the
        // folder.
        assert_eq!(cache.blob("abc-1"), PathBuf::from("/c/datasets--org--name/blobs/abc-1"));
        for etag in ["../../x", "a/b", ".", "..", &"a".repeat(500)] {
            let name = RepoCache::blob_name(etag);
            assert!(name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{etag}: {name}");
        }
    }

    #[test]
    fn a_commit_is_kept_by_its_revision() {
        let root = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(root.path(), Kind::Model, "gpt2");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(cache.commit("main"), None);
        cache.keep_commit("main", commit).unwrap();
        cache.keep_commit(commit, commit).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("models--gpt2/refs/main")).unwrap(), commit);
        assert!(!root.path().join("models--gpt2/refs").join(commit).exists(), "a commit needs no name of its own");
        assert_eq!(cache.commit("main").as_deref(), Some(commit));
        assert_eq!(cache.commit(commit), None);
        fs::create_dir_all(cache.snapshot(commit)).unwrap();
        assert_eq!(cache.commit(commit).as_deref(), Some(commit));
    }

    #[test]
    fn links_are_relative_and_replace_broken_links() {
        let root = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(root.path(), Kind::Model, "org/name");
        let blob = cache.blob("etag");
        make_folder_of(&blob).unwrap();
        fs::write(&blob, "content").unwrap();
        for name in ["config.json", "sub/folder/a.json"] {
            let pointer = cache.pointer("c0ffee", name).unwrap();
            make_folder_of(&pointer).unwrap();
            #[cfg(unix)]
            symlink(Path::new("nowhere"), &pointer).unwrap();
            cache.link("etag", "c0ffee", name).unwrap();
            cache.link("etag", "c0ffee", name).unwrap();
            assert_eq!(fs::read_to_string(&pointer).unwrap(), "content");
            #[cfg(unix)]
            assert!(fs::read_link(&pointer).unwrap().starts_with(".."));
        }
        assert_eq!(cache.files("c0ffee"), ["config.json", "sub/folder/a.json"]);
    }
}
