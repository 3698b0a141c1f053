use super::{mean, mean_backward, reference, rows, rows_backward};
use crate::Offsets;
use crate::verify::{Case, random};

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    // One unit sums a sequence, and Mesa's lavapipe stops a unit after 65,535 turns of its loops.
    for (lengths, c) in
        [(&[1][..], 1), (&[3, 7, 1], 63), (&[65, 64, 257], 7), (&[20, 33, 11], 384), (&[35_001, 104, 35_048], 1)]
    {
        let Ok(sequences) = Offsets::from_lengths(lengths) else { continue };
        let (n, b) = (sequences.tokens(), sequences.sequences());
        let shape = format!("{lengths:?} x{c}");
        let bytes = 4.0 * ((n + b) * c) as f64;
        let starts = sequences.starts().to_vec();
        // A row that is neither the first nor the last of its sequence, if the sequence is long enough.
        let chosen: Vec<usize> = sequences.ranges().map(|rows| rows.start + rows.len() / 2).collect();
        let (s, want) = (sequences.clone(), starts.clone());
        all.push(
            Case::new("pool.mean", &shape)
                .inputs([random([n, c], 1)])
                .run(move |t| Ok(vec![mean(&t[0], &s)?]))
                .reference(move |v| vec![reference::mean(&v[0], &want, c)])
                .bound(1e-6)
                .work((n * c) as f64, bytes),
        );
        all.push(
            Case::new("pool.mean_backward", &shape)
                .inputs([random([b, c], 2)])
                .run(move |t| Ok(vec![mean_backward(&t[0], &sequences)?]))
                .reference(move |v| vec![reference::mean_backward(&v[0], &starts, c)])
                .bound(1e-6)
                .work((n * c) as f64, bytes),
        );
        let (run, want) = (chosen.clone(), chosen.clone());
        all.push(
            Case::new("pool.rows", &shape)
                .inputs([random([n, c], 3)])
                .run(move |t| Ok(vec![rows(&t[0], &run)?]))
                .reference(move |v| vec![want.iter().flat_map(|i| v[0][i * c..(i + 1) * c].to_vec()).collect()])
                .bound(1e-6)
                .work(0.0, 8.0 * (b * c) as f64),
        );
        let want = chosen.clone();
        all.push(
            Case::new("pool.rows_backward", &shape)
                .inputs([random([b, c], 4)])
                .run(move |t| Ok(vec![rows_backward(&t[0], &chosen, n)?]))
                .reference(move |v| {
                    let mut dx = vec![0.0; n * c];
                    for (k, i) in want.iter().enumerate() {
                        for j in 0..c {
                            dx[i * c + j] += v[0][k * c + j];
                        }
                    }
                    vec![dx]
                })
                .bound(1e-6)
                .work(0.0, bytes),
        );
    }
    all
}
