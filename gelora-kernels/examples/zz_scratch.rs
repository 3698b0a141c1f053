//! scratch
use gelora_kernels::{Tensor, random::Stream, ops::pairwise};
fn main() {
    for (n, d) in [(4096usize, 384usize), (10000, 768), (4096,32)] {
        let mut s = Stream::new(1);
        let t = Tensor::from_vec((0..n*d).map(|_| s.normal() as f32).collect(), [n,d]).unwrap();
        let mut best = f64::MAX;
        for _ in 0..(if n<5000 {40} else {6}) { let t0 = std::time::Instant::now(); let r = pairwise::nearest(&t, 2).unwrap(); best = best.min(t0.elapsed().as_secs_f64()); assert!(r.k==2); }
        println!("nearest {n}x{d}: {:.1} ms", best*1e3);
        let mut best = f64::MAX;
        if n < 5000 { for _ in 0..3 { let t0 = std::time::Instant::now(); let r = pairwise::distances(&t, &t, false).unwrap(); best = best.min(t0.elapsed().as_secs_f64()); assert!(r.len()>0); }
        println!("distances {n}x{d}: {:.1} ms", best*1e3);}
    }
}
