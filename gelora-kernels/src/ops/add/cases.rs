use super::{accumulate, forward, reference};
use crate::verify::{Case, random};

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (n, c) in [(1, 1), (7, 63), (257, 65), (64, 1536)] {
        let (x, z, bytes) = (random([n, c], 1), random([n, c], 2), 12.0 * (n * c) as f64);
        all.push(
            Case::new("add", format!("{n}x{c}"))
                .inputs([x.clone(), z.clone()])
                .run(|t| Ok(vec![forward(&t[0], &t[1])?]))
                .reference(|v| vec![reference::forward(&v[0], &v[1])])
                .bound(1e-6)
                .work((n * c) as f64, bytes),
        );
        all.push(
            Case::new("add.accumulate", format!("{n}x{c}"))
                .inputs([x, z])
                .run(|t| {
                    let mut acc = t[0].clone();
                    accumulate(&mut acc, &t[1])?;
                    Ok(vec![acc])
                })
                .reference(|v| vec![reference::forward(&v[0], &v[1])])
                .bound(1e-6)
                .work((n * c) as f64, bytes),
        );
    }
    all
}
