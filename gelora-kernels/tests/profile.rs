//! The profile counts the calls of all threads, so this test has a process of its own.

use gelora_kernels::{Device, profile, verify};

/// The operations and bytes of a case are those of the spans that its run opens.
#[test]
fn spans_say_what_cases_say() {
    let mut compared = 0;
    let mut wrong = Vec::new();
    for case in verify::cases() {
        let inputs = case.prepare(&Device::Cpu).unwrap();
        profile::start();
        case.launch(&inputs).unwrap();
        let entries = profile::stop();
        // A dropout rate of 0 opens no span.
        if entries.is_empty() {
            continue;
        }
        compared += 1;
        let spans = (entries.iter().map(|e| e.flops).sum(), entries.iter().map(|e| e.bytes).sum());
        if spans != (case.flops, case.bytes) {
            wrong.push(format!("{case:?}: {:?} in the case, {spans:?} in its spans", (case.flops, case.bytes)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared > 100, "{compared} cases have a span");
}
