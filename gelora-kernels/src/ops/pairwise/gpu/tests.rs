//! The search in two steps against the direct search, bit by bit, and against brute force.

use proptest::prelude::*;

use super::super::reference;
use super::*;
use crate::Device;
use crate::device::WgpuDevice;
use crate::random::Stream;
use crate::verify::random;

const SMALL: Shape = Shape { per_unit: 4, depth: 8, buffers: 2 };
/// What fits into 32 KiB.
const LARGE: Shape = Shape { per_unit: 8, depth: 8, buffers: 1 };

type Wgpu = Gpu<cubecl_wgpu::WgpuRuntime>;

fn device() -> Option<(Device, Wgpu)> {
    let device = crate::verify::wgpu()?;
    match device.clone() {
        Device::Wgpu(WgpuDevice(gpu)) => Some((device, gpu)),
        _ => None,
    }
}

/// The rows that were searched directly, after a comparison of all rows with the direct search.
fn open_rows(points: Tensor, k: usize, shape: Shape, tiles: usize) -> Result<Option<Vec<u32>>> {
    let Some((device, gpu)) = device() else { return Ok(None) };
    let (n, dim, points) = (points.rows(), points.cols(), points.to_device(&device)?);
    let found = search(&gpu, &points, k, shape, tiles)?;
    let rows: Vec<u32> = (0..n as u32).collect();
    let (squared, indices) = direct::nearest(&gpu, &points, &rows, k)?;
    for index in 0..n * k {
        let (got, want) = ((found.squared[index], found.indices[index]), (squared[index], indices[index]));
        assert_eq!(got, want, "{n} x {dim}, row {}, neighbor {}", index / k, index % k);
    }
    Ok(Some(found.open))
}

fn cloud(n: usize, dim: usize, f: impl Fn(usize, usize, f64) -> f64) -> Tensor {
    let mut s = Stream::new((n + dim) as u64);
    let values = (0..n * dim).map(|i| f(i / dim, i % dim, s.normal()) as f32).collect();
    Tensor::from_vec(values, [n, dim]).expect("as many values")
}

#[test]
fn clouds_are_proved_and_as_the_direct_search_has_them() -> Result<()> {
    let sizes = [(2, 1, 1), (3, 3, 2), (7, 7, 5), (63, 48, 2), (64, 7, 16), (65, 104, 2), (257, 3, 5), (300, 16, 2)];
    for (i, (n, dim, k)) in sizes.into_iter().enumerate() {
        let (shape, tiles) = [(SMALL, 1), (LARGE, 4096)][i % 2];
        let open = open_rows(random([n, dim], n as u64), k, shape, tiles)?.unwrap_or_default();
        assert!(open.is_empty() || dim < 4, "{n} x {dim}: {open:?}");
    }
    Ok(())
}

#[test]
fn blocks_of_every_number_meet_once() -> Result<()> {
    // Blocks of 64: 1 to 9 of them, the last of any size, in launches of 1 lap and of all.
    for n in [17, 64, 128, 129, 192, 256, 257, 321, 400, 512, 520] {
        for tiles in [1, 12, 4096] {
            let open = open_rows(random([n, 8], 3), 2, SMALL, tiles)?.unwrap_or_default();
            assert!(open.is_empty(), "{n}: {open:?}");
        }
    }
    Ok(())
}

#[test]
fn where_the_cloud_is_makes_no_difference() -> Result<()> {
    for far in [1e3, 1e4] {
        let open = open_rows(cloud(130, 48, |_, _, z| far + z), 2, SMALL, 4096)?.unwrap_or_default();
        assert!(open.is_empty(), "{open:?}");
    }
    // The outlier's own bounds are as coarse as it is far; the others have their own.
    let outlier = cloud(130, 48, |row, _, z| if row == 70 { 1e6 } else { z });
    let open = open_rows(outlier, 2, SMALL, 4096)?.unwrap_or_default();
    assert!(open.len() <= 1, "{open:?}");
    Ok(())
}

#[test]
fn rows_that_cannot_be_proved_are_searched_directly() -> Result<()> {
    if device().is_none() {
        return Ok(());
    }
    // The corners of a simplex, which are as far from one another, and beside it a cloud.
    let points = cloud(200, 100, |row, c, z| match row {
        0..100 => f64::from(u8::from(row == c)),
        _ => 3.0 + z,
    });
    let open = open_rows(points, 2, SMALL, 4096)?.unwrap_or_default();
    assert_eq!(open, (0..100).collect::<Vec<u32>>());
    // Clusters, each of one point or, but for that around the center, so small that products cannot tell its points
    // apart.
    for (spread, least) in [(0.0, 100), (1e-6, 66)] {
        for shape in [SMALL, LARGE] {
            let clusters = cloud(100, 8, |row, c, z| (row % 3 * 7 + c) as f64 + spread * z);
            let open = open_rows(clusters, 2, shape, 4096)?.unwrap_or_default();
            assert!(open.len() >= least, "{open:?}");
        }
    }
    assert_eq!(open_rows(cloud(100, 7, |_, c, _| c as f64), 2, SMALL, 4096)?.map(|open| open.len()), Some(100));
    // Where there is but one, the center is in it, and they can.
    assert_eq!(open_rows(cloud(100, 7, |_, c, z| c as f64 + 1e-4 * z), 2, SMALL, 4096)?, Some(vec![]));
    // Each point four times: as many as a list has room for.
    let open = open_rows(cloud(120, 8, |row, c, _| ((row / 4 * 31 + c * 17) % 97) as f64), 3, SMALL, 1)?;
    assert_eq!(open, Some(vec![]));
    // Squares that vanish, and a point that products should not meet.
    assert_eq!(open_rows(cloud(80, 8, |_, _, z| 1e-25 * z), 2, SMALL, 1)?.map(|open| open.len()), Some(80));
    let wild = cloud(80, 8, |row, _, z| if row == 5 { 3e15 + 1e13 * z } else { z });
    assert_eq!(open_rows(wild, 2, SMALL, 1)?.map(|open| open.len()), Some(80));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Points on a coarse grid, whose squared distances f32 has exactly: many duplicates, many ties, and an outlier.
    #[test]
    fn neighbors_are_those_of_brute_force(
        n in 2usize..200, dim in 1usize..9, seed in any::<u64>(), far in 0u32..2, large in any::<bool>(),
    ) {
        let Some((device, gpu)) = device() else { return Ok(()) };
        let k = 2.min(n - 1);
        let mut s = Stream::new(seed);
        let mut values: Vec<f64> = (0..n * dim).map(|_| s.below(5) as f64).collect();
        values[0] += 1000.0 * f64::from(far);
        let points = Tensor::from_f64(values.clone(), [n, dim]).unwrap().to_dtype(crate::DType::F32).unwrap();
        let shape = if large { LARGE } else { SMALL };
        let found = search(&gpu, &points.to_device(&device).unwrap(), k, shape, 3).unwrap();
        let (distances, indices) = reference::nearest(&values, dim, k);
        for index in 0..n * k {
            prop_assert_eq!(found.indices[index], indices[index], "row {}, neighbor {}", index / k, index % k);
            prop_assert_eq!(f64::from(found.squared[index]).sqrt(), distances[index]);
        }
    }
}

/// More column blocks than a launch has cubes side by side.
#[test]
fn distances_to_many_points() -> Result<()> {
    let Some((device, _)) = device() else { return Ok(()) };
    let m = 65_535 * SETTINGS.tile.cols + 70;
    let x = Tensor::from_vec(vec![1.0, 2.0], [2, 1])?.to_device(&device)?;
    let y = Tensor::from_vec((0..m).map(|i| i as f32).collect(), [m, 1])?.to_device(&device)?;
    let d = super::super::distances(&x, &y, false)?.to_vec()?;
    let wrong = (0..2 * m).find(|&i| d[i] != ((i % m) as f32 - (i / m + 1) as f32).abs());
    assert_eq!(wrong, None);
    Ok(())
}
