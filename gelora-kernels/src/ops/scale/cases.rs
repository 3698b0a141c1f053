use super::{forward, in_place, reference};
use crate::verify::{Case, random};

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (n, c, by) in [(1, 1, 0.5), (3, 7, -3.0), (48, 63, 0.1), (257, 65, 1.7), (104, 1536, 1e-3)] {
        let (x, bytes) = (random([n, c], 1), 8.0 * (n * c) as f64);
        all.push(
            Case::new("scale", format!("{n}x{c} by {by}"))
                .inputs([x.clone()])
                .run(move |t| Ok(vec![forward(by, &t[0])?]))
                .reference(move |v| vec![reference::forward(by.into(), &v[0])])
                .bound(2e-7)
                .work((n * c) as f64, bytes),
        );
        all.push(
            Case::new("scale.in_place", format!("{n}x{c} by {by}"))
                .inputs([x])
                .run(move |t| {
                    let mut x = t[0].clone();
                    in_place(by, &mut x)?;
                    Ok(vec![x])
                })
                .reference(move |v| vec![reference::forward(by.into(), &v[0])])
                .bound(2e-7)
                .work((n * c) as f64, bytes),
        );
    }
    all
}
