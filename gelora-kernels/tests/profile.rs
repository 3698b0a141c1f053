//! Alone in its process, because what is counted is counted for all threads.

use gelora_kernels::{Device, profile, verify};

/// A case's operations and bytes are those that its operator opens a span with.
#[test]
fn spans_say_what_cases_say() {
    let mut compared = 0;
    for case in verify::cases() {
        let inputs = case.prepare(&Device::Cpu).unwrap();
        profile::start();
        case.launch(&inputs).unwrap();
        let entries = profile::stop();
        // Dropout of nothing is the identity, and rooms may call each other.
        let Some(entry) = entries.iter().find(|e| e.op == case.op) else { continue };
        compared += 1;
        assert_eq!((entry.calls, entry.flops, entry.bytes), (1, case.flops, case.bytes), "{case:?}");
    }
    assert!(compared > 100, "{compared} cases have a span");
}
