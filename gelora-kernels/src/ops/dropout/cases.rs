use super::{Dropout, apply, reference};
use crate::random::key;
use crate::verify::{Case, random};

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (rows, cols, p) in [(1, 1, 0.5), (3, 7, 0.5), (64, 63, 0.1), (257, 65, 0.9), (512, 384, 0.05)] {
        let key = key(11, &[rows, cols]);
        let (rows, cols) = (rows as usize, cols as usize);
        all.push(
            Case::new("dropout", format!("{rows}x{cols} p={p}"))
                .inputs([random([rows, cols], 1)])
                .run(move |t| Ok(vec![apply(&t[0], Dropout { p, key })?]))
                .reference(move |v| vec![reference::apply(&v[0], p, key)])
                .bound(2e-7)
                .work((rows * cols) as f64, 8.0 * (rows * cols) as f64),
        );
    }
    all
}
