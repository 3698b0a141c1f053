use std::thread;
use std::time::{Duration, Instant};

use super::*;

/// Runs the same work in `world` threads. Returns the results in the order of ranks.
fn in_threads<T: Send>(world: usize, link: Link, work: impl Fn(Processes) -> T + Sync) -> Vec<T> {
    let engines = threads(world, link, Duration::from_secs(60));
    thread::scope(|scope| {
        let running: Vec<_> = engines.into_iter().map(|engine| scope.spawn(|| work(Processes::new(engine)))).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

#[test]
fn parts_of_any_length_come_back_in_order() {
    let part = |p: usize| vec![p as u8; (p * 7) % 5];
    for world in [1, 2, 3, 4, 8] {
        for parts in [0, 1, 2, 5, 8, 13] {
            let all = in_threads(world, Link::INSTANT, |processes| {
                let mine: Vec<Vec<u8>> = processes.share(parts).map(part).collect();
                processes.collect(parts, mine).expect("all answer")
            });
            let wanted: Vec<Vec<u8>> = (0..parts).map(part).collect();
            assert!(all.iter().all(|found| *found == wanted), "{parts} parts in {world} processes: {all:?}");
        }
    }
}

#[test]
fn every_process_gets_what_the_first_gives() {
    let all = in_threads(3, Link::INSTANT, |processes| {
        let (rank, bytes) = (processes.rank(), vec![processes.rank() as u8; processes.rank() + 2]);
        let first = processes.broadcast(bytes).expect("all answer");
        let any = [processes.any(rank == 2).expect("all answer"), processes.any(false).expect("all answer")];
        (first, any)
    });
    assert_eq!(all, vec![(vec![0, 0], [true, false]); 3]);
}

#[test]
fn a_difference_names_the_processes() {
    let said = in_threads(4, Link::INSTANT, |processes| {
        let same = processes.check_same("lr", Some(b"1e-3"));
        let rank = processes.rank();
        let text = if rank == 2 { "b" } else { "a" };
        let other = processes.check_same("train.jsonl", (rank != 0).then_some(text.as_bytes()));
        (same.is_ok(), other.expect_err("process 2 differs").to_string())
    });
    for (same, other) in said {
        assert!(same && other.contains("train.jsonl: differs") && other.contains("in process 2 it"), "{other}");
        assert!(other.contains("in process 1)"), "{other}");
    }
}

#[test]
fn parts_that_do_not_divide_name_what_does() {
    let engines = threads(4, Link::INSTANT, Duration::from_secs(1));
    let processes = Processes::new(engines[0].clone());
    assert!(processes.check_parts(8).is_ok());
    let problem = processes.check_parts(6).expect_err("6 parts, 4 processes").to_string();
    assert!(problem.contains("fits 1 or 2 or 3 or 6 processes") && problem.contains("a multiple of 4"), "{problem}");
}

#[test]
fn a_process_that_does_not_answer_is_named() {
    let engines = threads(3, Link::INSTANT, Duration::from_millis(50));
    let said = thread::scope(|scope| {
        let asked: Vec<_> =
            engines[..2].iter().map(|engine| scope.spawn(|| engine.barrier().expect_err("2 is silent"))).collect();
        asked.into_iter().map(|thread| thread.join().expect("no panic").to_string()).collect::<Vec<_>>()
    });
    assert!(said.iter().all(|said| said.contains("process 2 gave no answer for 50ms")), "{said:?}");
}

#[test]
fn the_link_takes_its_time() {
    let link = Link { delay: Duration::from_millis(2), bandwidth: 1e6 };
    assert_eq!(link.all_gather(4, 1000), Duration::from_millis(9));
    assert_eq!((link.broadcast(1, 1000), link.broadcast(5, 1000)), (Duration::ZERO, Duration::from_millis(9)));
    let began = Instant::now();
    in_threads(4, link, |processes| processes.all_gather(vec![0; 1000]).expect("all answer"));
    assert!(began.elapsed() >= Duration::from_millis(9));
}
