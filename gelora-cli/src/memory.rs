//! Peak memory of this process.

/// Returns the largest resident set of this process so far, in bytes: `VmHWM` of /proc/self/status. None where the
/// system has no such file, which is everywhere but on Linux. Memory of a GPU is not part of it.
pub fn peak_resident_bytes() -> Option<u64> {
    vm_hwm(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// Returns `VmHWM` of the text of /proc/PID/status, in bytes. The kernel's kB are 1024 bytes.
fn vm_hwm(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read() {
        assert_eq!(vm_hwm("Name:\tgelora\nVmPeak:\t  900 kB\nVmHWM:\t    345 kB\nVmRSS:\t 1 kB\n"), Some(345 * 1024));
        assert_eq!(vm_hwm("VmHWM:\t345 MB\n"), None);
        assert_eq!(vm_hwm(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn it_grows_with_the_memory_in_use() {
        let before = peak_resident_bytes().expect("Linux tells it");
        let bytes = std::hint::black_box(vec![1_u8; 2 * before as usize]);
        assert!(peak_resident_bytes().expect("Linux tells it") > bytes.len() as u64);
    }
}
