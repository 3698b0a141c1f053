//! The most memory that a process had at once.

use std::process::{Child, ExitStatus};

use anyhow::Result;

/// Of this process, in MB (2^20 bytes), where the system says.
///
/// Linux's own figure of the address space: that of getrusage would include the program that started this one.
pub fn own_peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix("kB")?;
    Some(kib.trim().parse::<f64>().ok()? / 1024.0)
}

/// Waits for a child; (how it ended, its peak in MB).
#[cfg(unix)]
pub fn wait(child: Child) -> Result<(ExitStatus, Option<f64>)> {
    use std::os::unix::process::ExitStatusExt;

    let pid = libc::pid_t::try_from(child.id())?;
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both places are ours to write; the child has not been waited for, since waiting takes it by value.
    while unsafe { libc::wait4(pid, &mut status, 0, &mut usage) } < 0 {
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error.into());
        }
    }
    // KiB, but bytes on macOS.
    let per_mb = if cfg!(target_os = "macos") { 1024.0 * 1024.0 } else { 1024.0 };
    Ok((ExitStatus::from_raw(status), Some(usage.ru_maxrss as f64 / per_mb)))
}

/// Waits for a child; how it ended.
#[cfg(not(unix))]
pub fn wait(mut child: Child) -> Result<(ExitStatus, Option<f64>)> {
    Ok((child.wait()?, None))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_of_the_process_asked_for() {
        let before = own_peak_mb().unwrap();
        assert!((0.5..4096.0).contains(&before), "{before}");
        let held = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(own_peak_mb().unwrap() > 64.0, "{}", held.len());
        let child = std::process::Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let (status, peak) = wait(child).unwrap();
        assert_eq!(status.code(), Some(3));
        assert!(peak.unwrap() > 0.1);
    }
}
