use super::{forward, reference};
use crate::ops::linear::cases::QUANTIZED;
use crate::ops::{add, pool};
use crate::random::Stream;
use crate::verify::{Case, random, random_quantized};
use crate::{DType, Offsets};

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (n, c, v) in [(1, 1, 1), (7, 3, 65), (257, 63, 100), (70_001, 1, 104), (64, 384, 3000)] {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let mut stream = Stream::new(9);
            let words: Vec<u32> = (0..n).map(|_| stream.below(v) as u32).collect();
            let types: Vec<u32> = (0..n).map(|_| stream.below(2) as u32).collect();
            let (words_want, types_want) = (words.clone(), types.clone());
            let Ok(table) = random([v, c], 1).to_dtype(dtype) else { continue };
            all.push(
                Case::new("embedding", format!("{n}x{c} of {v} + 2"))
                    .dtype(dtype)
                    .inputs([table, random([2, c], 2)])
                    .run(move |t| Ok(vec![forward(&[(&t[0], &words), (&t[1], &types)])?]))
                    .reference(move |v| vec![reference::forward(&[(&v[0], &words_want), (&v[1], &types_want)], c)])
                    .bound(1e-6)
                    .work((n * c) as f64, (dtype.bytes(n * c) + n * c * 8) as f64),
            );
        }
    }
    for dtype in QUANTIZED {
        let ids = [4, 0, 2, 2];
        all.push(
            Case::new("embedding", "4x512 of 5")
                .dtype(dtype)
                .inputs([random_quantized([5, 512], dtype, 3)])
                .run(move |t| Ok(vec![forward(&[(&t[0], &ids)])?]))
                .reference(move |v| vec![reference::forward(&[(&v[0], &ids)], 512)])
                .bound(1e-6)
                .work(0.0, (dtype.bytes(4 * 512) + 4 * 4 * 512) as f64),
        );
    }
    // Three tables of three types, if the device stores them.
    for second in [DType::F16, DType::Bf16] {
        let ids: Vec<u32> = (0..48).collect();
        let want = ids.clone();
        let (Ok(b), Ok(c)) = (random([65, 48], 2).to_dtype(second), random([48, 48], 3).to_dtype(DType::F16)) else {
            continue;
        };
        all.push(
            Case::new("embedding", "48x48 of 50 + 65 + 48")
                .dtype(second)
                .inputs([random([50, 48], 1), b, c])
                .run(move |t| Ok(vec![forward(&[(&t[0], &ids), (&t[1], &ids), (&t[2], &ids)])?]))
                .reference(move |v| vec![reference::forward(&[(&v[0], &want), (&v[1], &want), (&v[2], &want)], 48)])
                .bound(1e-6)
                .work(2.0 * 48.0 * 48.0, 12.0 * 48.0 * 48.0),
        );
    }
    all.extend([500_001, 600_001].map(near_the_limits));
    all
}

/// Matrices with more rows than a launch has cubes in one dimension, and of just below and of more than 128 MiB, the
/// buffer size that WebGPU guarantees. They are made of a small table, summed with themselves and pooled, so that the
/// host keeps little.
fn near_the_limits(n: usize) -> Case {
    let (c, sequences) = (60, n.div_ceil(1000));
    let ids = move || (0..n as u32).map(|i| i % 7).collect::<Vec<u32>>();
    let lengths = [vec![1000; n / 1000], vec![1]].concat();
    Case::new("embedding", format!("{n}x{c} of 7, + itself, mean of {sequences}"))
        .near_limit()
        .inputs([random([7, c], 1)])
        .run(move |t| {
            let x = forward(&[(&t[0], &ids())])?;
            let mut sum = add::forward(&x, &x)?;
            add::accumulate(&mut sum, &x)?;
            Ok(vec![pool::mean(&sum, &Offsets::from_lengths(&lengths)?)?])
        })
        .reference(move |v| {
            let mean = |rows: std::ops::Range<usize>, channel: usize| {
                let len = rows.len() as f64;
                rows.map(|i| 3.0 * v[0][i % 7 * c + channel]).sum::<f64>() / len
            };
            let starts = (0..n).step_by(1000);
            vec![starts.flat_map(|s| (0..c).map(move |j| (s, j))).map(|(s, j)| mean(s..(s + 1000).min(n), j)).collect()]
        })
        .bound(1e-5)
        .work((3 * n * c) as f64, (36 * n * c + 4 * sequences * c) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_outside_the_table_is_named() {
        let e = forward(&[(&random([4, 2], 1), &[0, 4])]).unwrap_err().to_string();
        assert_eq!(e, "embedding: id 4 at 1 is not below the table's 4 rows");
        assert!(forward(&[]).is_err());
        assert!(forward(&[(&random([4, 2], 1), &[])]).is_err());
    }
}
