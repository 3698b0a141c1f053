//! Work in several threads, each with cores of its own.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use anyhow::Result;

/// Does `work` on every item, `jobs` at a time, and hands each result to `finished` as it comes.
///
/// A job has a thread pool of cores / jobs threads, in which everything that `work` calls is parallel: two jobs of one
/// thread finish more small trainings an hour than one job of two.
///
/// # Errors
/// The first of `work` or `finished`. No further item is begun then, and those that are worked on are finished first.
pub fn in_jobs<T: Sync, R: Send>(
    items: &[T],
    jobs: usize,
    work: impl Fn(&T) -> Result<R> + Sync,
    mut finished: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    let jobs = jobs.clamp(1, items.len().max(1));
    let threads = (rayon::current_num_threads() / jobs).max(1);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, receiver) = mpsc::channel();
    let one_job = |sender: mpsc::Sender<Result<R>>| {
        while !stop.load(Ordering::Relaxed)
            && let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed))
        {
            let result = work(item);
            stop.fetch_or(result.is_err(), Ordering::Relaxed);
            if sender.send(result).is_err() {
                return;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..jobs {
            let (sender, one_job) = (sender.clone(), &one_job);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
            scope.spawn(move || pool.install(|| one_job(sender)));
        }
        drop(sender);
        let mut outcome = Ok(());
        for result in receiver {
            let kept = result.and_then(&mut finished);
            stop.fetch_or(kept.is_err(), Ordering::Relaxed);
            outcome = outcome.and(kept);
        }
        outcome
    })
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn every_item_is_done_once_in_a_pool_of_its_own() {
        let items: Vec<usize> = (0..50).collect();
        let mut done = Vec::new();
        let work = |item: &usize| Ok((*item, rayon::current_num_threads()));
        in_jobs(&items, rayon::current_num_threads(), work, |result| {
            done.push(result);
            Ok(())
        })
        .unwrap();
        done.sort_unstable();
        assert_eq!(done, items.into_iter().map(|item| (item, 1)).collect::<Vec<_>>());
        in_jobs(&[0; 0], 4, |_: &i32| Ok(()), |()| bail!("nothing is done")).unwrap();
    }

    #[test]
    fn an_error_ends_the_work_and_keeps_what_is_done() {
        let items: Vec<usize> = (0..1000).collect();
        let mut done = 0;
        let work = |item: &usize| if *item == 3 { bail!("item 3") } else { Ok(()) };
        let error = in_jobs(&items, 1, work, |()| {
            done += 1;
            Ok(())
        });
        assert_eq!((error.unwrap_err().to_string().as_str(), done), ("item 3", 3));
        let full = in_jobs(&items, 2, |_| Ok(()), |()| bail!("the disk is full")).unwrap_err();
        assert_eq!(full.to_string(), "the disk is full");
    }
}
