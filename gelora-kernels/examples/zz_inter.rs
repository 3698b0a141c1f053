//! scratch
use gelora_kernels::{Tensor, random::Stream, ops::pairwise, cpu::{View, gemm}};
use std::time::Instant;
fn main() {
    let (n, d) = (4096usize, 384usize);
    let mut s = Stream::new(1);
    let x: Vec<f32> = (0..n*d).map(|_| s.normal() as f32).collect();
    let t = Tensor::from_vec(x.clone(), [n,d]).unwrap();
    let mut out = vec![0.0; n*n];
    let (mut a, mut b) = (vec![], vec![]);
    for _ in 0..80 {
        let t0 = Instant::now(); pairwise::nearest(&t, 2).unwrap(); a.push(t0.elapsed().as_secs_f64()*1e3);
        let t0 = Instant::now(); gemm(&mut out, n, 0.0, -2.0, View::new(&x, n, d), View::new(&x, n, d).t()); b.push(t0.elapsed().as_secs_f64()*1e3);
    }
    a.sort_by(f64::total_cmp); b.sort_by(f64::total_cmp);
    println!("nearest min {:.1} q10 {:.1} median {:.1}; plain product min {:.1} q10 {:.1} median {:.1}", a[0], a[8], a[40], b[0], b[8], b[40]);
}
