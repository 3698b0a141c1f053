use super::{append, columns, reference, rows, split_columns};
use crate::verify::{Case, random};

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (n, widths) in [(1, [1, 1, 1]), (7, [64, 3, 17]), (130, [48, 48, 48])] {
        let c: usize = widths.iter().sum();
        let bytes = 8.0 * (n * c) as f64;
        let shape = format!("{n} x {widths:?}");
        all.push(
            Case::new("concat.columns", &shape)
                .inputs([0, 1, 2].map(|i| random([n, widths[i]], 1 + i as u64)))
                .run(|t| Ok(vec![columns(&[&t[0], &t[1], &t[2]])?]))
                .reference(move |v| {
                    vec![reference::columns(&[(&v[0], widths[0]), (&v[1], widths[1]), (&v[2], widths[2])], n)]
                })
                .bound(1e-7)
                .work(0.0, bytes),
        );
        all.push(
            Case::new("concat.split_columns", &shape)
                .inputs([random([n, c], 4)])
                .run(move |t| split_columns(&t[0], &widths))
                .reference(move |v| {
                    let firsts = [0, widths[0], widths[0] + widths[1]];
                    [0, 1, 2].map(|i| reference::columns_of(&v[0], c, firsts[i], widths[i])).to_vec()
                })
                .bound(1e-7)
                .work(0.0, bytes),
        );
        all.push(
            Case::new("concat.rows", format!("{widths:?} x {n}"))
                .inputs([0, 1, 2].map(|i| random([widths[i], n], 5 + i as u64)))
                .run(|t| Ok(vec![rows(&[&t[0], &t[1], &t[2]])?]))
                .reference(|v| vec![reference::rows(&[&v[0], &v[1], &v[2]])])
                .bound(1e-7)
                .work(0.0, bytes),
        );
        all.push(
            Case::new("concat.append", format!("{widths:?} x {n}"))
                .inputs([0, 1, 2].map(|i| random([widths[i], n], 5 + i as u64)))
                .run(|t| {
                    let mut all = t[0].clone();
                    append(&mut all, &t[1])?;
                    append(&mut all, &t[2])?;
                    Ok(vec![all])
                })
                .reference(|v| vec![reference::rows(&[&v[0], &v[1], &v[2]])])
                .bound(1e-7)
                .work(0.0, 8.0 * ((widths[1] + widths[2]) * n) as f64),
        );
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clone keeps its values. Without a clone, values stay in place while there is capacity.
    #[test]
    fn rows_are_appended_in_place_unless_another_tensor_has_them() {
        let (mut x, more) = (random([3, 4], 1), random([1, 4], 2));
        let first = x.clone();
        append(&mut x, &more).unwrap();
        assert_eq!((first.shape(), x.shape()), (&[3, 4][..], &[4, 4][..]));
        assert_eq!(x.to_vec().unwrap()[..12], first.to_vec().unwrap());
        let place = x.as_slice().unwrap().as_ptr();
        append(&mut x, &more).unwrap();
        assert_eq!((x.as_slice().unwrap().as_ptr(), x.rows()), (place, 5));
        assert!(append(&mut x, &random([1, 5], 3)).is_err());
        assert_eq!(x.rows(), 5);
    }

    #[test]
    fn misfits_are_errors() {
        let (x, z) = (random([3, 4], 1), random([2, 5], 1));
        assert!(columns(&[&x, &z]).unwrap_err().to_string().contains("x must be [3, 5]"));
        assert!(rows(&[&x, &z]).unwrap_err().to_string().contains("x must be [2, 4]"));
        assert!(columns(&[]).unwrap_err().to_string().contains("at least one matrix"));
        let widths = split_columns(&x, &[3, 2]).unwrap_err().to_string();
        assert!(widths.contains("widths [3, 2] do not make up 4 columns"), "{widths}");
    }
}
