use super::{backward_input, backward_table, forward, reference};
use crate::verify::{Case, random};

/// (N, R, H, D).
const SHAPES: [[usize; 4]; 8] = [
    [1, 1, 1, 1],
    [3, 7, 2, 3],
    [7, 3, 1, 64],
    [63, 65, 3, 7],
    [65, 63, 2, 33],
    [257, 1, 2, 16],
    [1, 257, 4, 8],
    [300, 127, 12, 64],
];

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for [n, r, heads, d] in SHAPES {
        let (x, table, dy) = (random([n, heads * d], 1), random([r, heads * d], 2), random([n, heads * r], 3));
        let case = |op| {
            let bytes = (4 * heads * (n * d + r * d + n * r)) as f64;
            Case::new(op, format!("{n}x{r} {heads}x{d}")).bound(2e-6).work((2 * n * r * heads * d) as f64, bytes)
        };
        all.push(
            case("head_product")
                .inputs([x.clone(), table.clone()])
                .run(move |t| Ok(vec![forward(&t[0], &t[1], heads)?]))
                .reference(move |v| vec![reference::forward(&v[0], &v[1], heads, d)]),
        );
        all.push(
            case("head_product.backward_input")
                .inputs([dy.clone(), x.clone(), table.clone()])
                .run(move |t| Ok(vec![backward_input(&t[0], &t[2], heads)?]))
                .reference(move |v| vec![reference::backward(&v[0], &v[1], &v[2], heads, d).0]),
        );
        all.push(
            case("head_product.backward_table")
                .inputs([dy, x, table])
                .run(move |t| Ok(vec![backward_table(&t[0], &t[1], heads)?]))
                .reference(move |v| vec![reference::backward(&v[0], &v[1], &v[2], heads, d).1]),
        );
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::assert_slopes;

    #[test]
    fn backward_matches_finite_differences() {
        let (heads, d) = (2, 3);
        let values = |shape: [usize; 2], seed| random(shape, seed).to_vec_f64().unwrap_or_default();
        let inputs = [values([4, 6], 1), values([5, 6], 2)];
        let dy = values([4, 10], 3);
        let loss = |v: &[Vec<f64>]| -> f64 {
            reference::forward(&v[0], &v[1], heads, d).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
        };
        let (dx, dt) = reference::backward(&dy, &inputs[0], &inputs[1], heads, d);
        assert_slopes(&inputs, &[dx, dt], loss);
    }

    #[test]
    fn misfits_are_errors() {
        let (x, table) = (random([2, 6], 1), random([3, 6], 2));
        let message = |r: crate::Result<crate::Tensor>| r.unwrap_err().to_string();
        assert!(message(forward(&x, &table, 4)).contains("4 heads do not divide 6 channels"));
        assert!(message(forward(&x, &random([3, 4], 2), 2)).contains("table must be [3, 6]"));
        assert!(message(backward_input(&random([2, 5], 3), &table, 2)).contains("dy must be [2, 6]"));
        assert!(message(backward_table(&random([2, 5], 3), &x, 2)).contains("2 heads do not divide the 5 columns"));
        assert!(message(backward_table(&random([4, 6], 3), &x, 2)).contains("dy must be [2, 6]"));
    }
}
