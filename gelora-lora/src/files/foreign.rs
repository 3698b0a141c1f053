//! Detects files that were not downloaded: a Git LFS pointer, or a web page, in place of the file.

use std::path::Path;

use crate::{Error, Result};

/// Checks by the first bytes of a file that it was downloaded. `git clone` without Git LFS leaves a pointer in place of
/// a model or data file, and a browser may save the page of a hub instead of the file.
///
/// # Errors
/// If the bytes are those of a pointer or a web page. The message says what to do.
///
/// ```
/// use gelora_lora::files::check_downloaded;
///
/// let pointer = b"version https://git-lfs.github.com/spec/v1\noid ...";
/// let error = check_downloaded("model.safetensors".as_ref(), pointer).unwrap_err();
/// assert!(error.to_string().starts_with("model.safetensors: is a pointer of Git LFS"));
/// assert!(check_downloaded("config.json".as_ref(), b"{}").is_ok());
/// ```
pub fn check_downloaded(path: &Path, bytes: &[u8]) -> Result<()> {
    let start = &bytes[..bytes.len().min(1024)];
    if start.starts_with(b"version https://git-lfs.github.com/spec/") {
        let problem = "is a pointer of Git LFS, not the file itself; `git lfs pull` in its folder fetches the file";
        return Err(Error::file(path, problem));
    }
    let text = String::from_utf8_lossy(start).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    if ["<!doctype html", "<html", "<head", "<?xml"].iter().any(|tag| text.starts_with(tag)) {
        let problem =
            "is a web page, not the file itself; on the hub the file is behind `resolve`, the page behind `blob`";
        return Err(Error::file(path, problem));
    }
    if ["entry not found", "repository not found", "invalid username or password", "access to model"]
        .iter()
        .any(|answer| text.starts_with(answer))
    {
        let first = text.lines().next().unwrap_or_default().to_owned();
        return Err(Error::file(path, format!("is what a hub answers ({first:?}), not the file itself")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_downloaded_is_told_from_files() {
        let says = |bytes: &[u8]| check_downloaded("m.bin".as_ref(), bytes).map_err(|e| e.to_string());
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 90868376\n";
        assert!(says(pointer).is_err_and(|said| said.starts_with("m.bin: is a pointer of Git LFS")));
        for page in
            [&b"<!DOCTYPE html>\n<html>"[..], b"\xef\xbb\xbf  <html lang=\"en\">", b"<?xml version=\"1.0\"?><Error>"]
        {
            assert!(says(page).is_err_and(|said| said.starts_with("m.bin: is a web page")));
        }
        assert!(says(b"Entry not found").is_err_and(|said| said.contains("\"entry not found\"")));
        for file in [
            &b""[..],
            b"GGUF",
            b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ",
            b"{\"a\": 1}",
            b"PK\x03\x04",
            b"[PAD]\n[UNK]",
        ] {
            assert_eq!(says(file), Ok(()));
        }
    }
}
