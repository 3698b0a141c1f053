use super::*;
use crate::{Bytes, guard};

#[test]
fn writing_to_a_clone_leaves_the_original() -> Result<()> {
    let a = Tensor::from_vec(vec![1.0, 2.0], [2])?;
    let mut b = a.clone();
    b.as_mut_slice()?[0] = 9.0;
    assert_eq!((a.to_vec()?, b.to_vec()?), (vec![1.0, 2.0], vec![9.0, 2.0]));
    Ok(())
}

#[test]
fn empty_and_misshapen_are_errors() {
    assert!(Tensor::from_vec(vec![], [0, 3]).is_err());
    assert!(Tensor::from_vec(vec![1.0; 5], [2, 3]).is_err());
    assert!(Tensor::zeros([3, 0], &Device::Cpu).is_err());
    assert!(Tensor::output([0]).is_err());
}

#[test]
fn shared_bytes_are_not_copied_until_written_to() -> Result<()> {
    let words: Vec<u64> = vec![u64::from(1.5f32.to_bits()), u64::from(2.5f32.to_bits()), 0];
    let owner: SharedBytes = Arc::new(Words(words));
    let whole = |dtype, range, shape: &[usize]| Tensor::from_bytes(owner.clone(), range, dtype, shape);
    let a = whole(DType::F32, 0..16, &[2, 2])?;
    assert_eq!(a.bytes()?.as_ptr(), owner.bytes().as_ptr());
    let (mut b, kept) = (a.clone(), a.clone());
    b.as_mut_slice()?[3] = 9.0;
    assert_eq!((kept.to_vec()?, b.to_vec()?), (vec![1.5, 0.0, 2.5, 0.0], vec![1.5, 0.0, 2.5, 9.0]));
    drop((a, kept));
    let mut alone = whole(DType::F32, 8..12, &[1])?;
    alone.as_mut_slice()?[0] += 1.0;
    assert_eq!((alone.item()?, whole(DType::F32, 8..12, &[])?.item()?), (3.5, 2.5));
    let unaligned = whole(DType::F64, 4..12, &[1])?;
    assert_eq!(unaligned.to_vec_f64()?, [f64::from_bits(u64::from(2.5f32.to_bits()) << 32)]);
    assert_eq!(whole(DType::Bf16, 2..4, &[1])?.to_vec()?, [1.5]);
    for (dtype, range, shape) in [
        (DType::F32, 0..16, &[3][..]),
        (DType::F32, 0..15, &[3]),
        (DType::F32, 16..28, &[3]),
        (DType::F32, 0..0, &[0]),
        (DType::F32, 0..16, &[usize::MAX, 4]),
    ] {
        assert!(whole(dtype, range, shape).is_err(), "{shape:?}");
    }
    Ok(())
}

struct Words(Vec<u64>);

impl Bytes for Words {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

#[test]
fn large_outputs_are_handed_out_again_but_not_under_guards() -> Result<()> {
    let mut first = Tensor::output([300, 100])?;
    first.as_mut_slice()?.fill(7.0);
    let copy = { first.clone().as_mut_slice()?.to_vec() };
    let address = first.as_slice()?.as_ptr();
    drop(first);
    let again = Tensor::output([299, 100])?;
    // Tests beside this one may have taken the memory; if it is the same, so are its values.
    assert!(again.as_slice()?.as_ptr() != address || again.as_slice()? == &copy[..29_900]);
    let guarded = guard::guarded(|| Tensor::output([299, 100]))?;
    assert!(guarded.as_slice()?.iter().all(|v| v.is_nan()) && guarded.guards_hold()?);
    Ok(())
}

#[test]
fn dtypes_round_to_nearest() -> Result<()> {
    let t = Tensor::from_vec(vec![1.0, 1.0 + 1.0 / 256.0, -3.5], [3])?;
    assert_eq!(t.to_dtype(DType::Bf16)?.to_vec()?, [1.0, 1.0, -3.5]);
    assert_eq!(t.to_dtype(DType::F16)?.to_vec()?, t.to_vec()?);
    assert_eq!(t.to_dtype(DType::Bf16)?.bytes()?.len(), 6);
    Ok(())
}

#[test]
fn sizes_are_checked_before_memory_is_asked_for() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, &Device::Cpu).unwrap_err().to_string();
    for shape in [&[usize::MAX, 4][..], &[usize::MAX / 4 + 2, 4], &[1 << 62], &[3, 0]] {
        let message = zeros(shape);
        assert!(message.contains("at least one value, and no more than can be addressed"), "{shape:?}: {message}");
        assert!(Tensor::output(shape).is_err());
    }
    assert!(zeros(&[1 << 45]).contains("out of memory"), "{}", zeros(&[1 << 45]));
}
