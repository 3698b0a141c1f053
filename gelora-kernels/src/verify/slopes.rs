//! Finite differences, for the backward passes of references.

/// Checks a reference's backward pass against finite differences of its forward pass: `gradients` must be the slopes of
/// `loss` in every value of every input.
pub(crate) fn assert_slopes(inputs: &[Vec<f64>], gradients: &[Vec<f64>], loss: impl Fn(&[Vec<f64>]) -> f64) {
    const STEP: f64 = 1e-6;
    assert_eq!(inputs.len(), gradients.len());
    for (which, gradient) in gradients.iter().enumerate() {
        assert_eq!(inputs[which].len(), gradient.len());
        assert!(gradient.iter().any(|v| *v != 0.0), "input {which} has no gradient");
        for (i, slope) in gradient.iter().enumerate() {
            let (mut up, mut down) = (inputs.to_vec(), inputs.to_vec());
            up[which][i] += STEP;
            down[which][i] -= STEP;
            approx::assert_abs_diff_eq!((loss(&up) - loss(&down)) / (2.0 * STEP), slope, epsilon = 1e-7);
        }
    }
}
