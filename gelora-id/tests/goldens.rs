//! The numbers of scikit-dimension 0.5 and DADApy 0.3 on the points of `fixtures/points`, which
//! `fixtures/make_goldens.py` made.
//!
//! It reads fixtures/ of the repository, so it is not part of the package.

use std::fs;
use std::path::PathBuf;

use approx::assert_relative_eq;
use gelora_id::estimators::corr_dim::CorrDim;
use gelora_id::estimators::gride::Gride;
use gelora_id::estimators::levina_bickel::LevinaBickel;
use gelora_id::estimators::local_pca::LocalPca;
use gelora_id::estimators::two_nn_bayes::TwoNnBayes;
use gelora_id::estimators::two_nn_mle::TwoNnMle;
use gelora_id::estimators::two_nn_trimmed::TwoNnTrimmed;
use gelora_id::{Estimate, Estimator, Neighborhood, Options, estimate, estimate_from_neighbors};
use gelora_kernels::{DType, Tensor};
use serde_json::Value;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

/// A .npy matrix in C order: 10 bytes, the last two of which are the length of the header text, then the values.
fn points(name: &str, golden: &Value) -> Result<Tensor> {
    let bytes = fs::read(fixtures().join("points").join(format!("{name}.npy")))?;
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert!(str::from_utf8(&bytes[10..header])?.contains("'fortran_order': False"));
    let (dim, data) = (golden["dim"].as_u64().ok_or("dim")? as usize, &bytes[header..]);
    let rows = |len: usize| [len / dim, dim];
    Ok(match golden["dtype"].as_str() {
        Some("float64") => {
            let values: Vec<f64> = data.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect();
            Tensor::from_f64(values.clone(), rows(values.len()))?
        }
        _ => {
            let values: Vec<f32> = data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            Tensor::from_vec(values.clone(), rows(values.len()))?
        }
    })
}

/// r1 and r2 by brute force, twins and all.
fn distances(points: &Tensor) -> Result<(Vec<f64>, Vec<f64>)> {
    let (values, dim) = (points.to_vec_f64()?, points.cols());
    let squared = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum::<f64>();
    let rows: Vec<&[f64]> = values.chunks_exact(dim).collect();
    let nearest = |i: usize| {
        let mut all: Vec<f64> = (0..rows.len()).filter(|&j| j != i).map(|j| squared(rows[i], rows[j]).sqrt()).collect();
        all.sort_by(f64::total_cmp);
        (all[0], all[1])
    };
    Ok((0..rows.len()).map(nearest).unzip())
}

fn goldens() -> Result<Vec<(String, Value, Tensor)>> {
    let golden: Value = serde_json::from_str(&fs::read_to_string(fixtures().join("two_nn.golden.json"))?)?;
    let all = golden.as_object().ok_or("golden")?;
    all.iter().map(|(name, value)| Ok((name.clone(), value.clone(), points(name, value)?))).collect()
}

fn both() -> [(Options, [&'static str; 2]); 2] {
    let mle = Options { estimator: TwoNnMle.into(), ..Options::default() };
    [(Options::default(), ["skdim_fit", "dadapy_base"]), (mle, ["skdim_mle", "dadapy_ml"])]
}

fn check(name: &str, got: &Estimate, want: &Value, keys: [&str; 2]) -> Result {
    for key in keys {
        let want = want[key].as_f64().ok_or(key)?;
        let off = (got.id / want - 1.0).abs();
        assert!(off < 1e-6, "{name}: {} is {}, {key} is {want}", got.estimator, got.id);
    }
    assert!(got.interval[0] < got.id && got.id < got.interval[1], "{got:?}");
    Ok(())
}

/// From distances, twins are left out, as the golden script leaves them out.
#[test]
fn distances_give_the_ids_of_scikit_dimension_and_dadapy() -> Result {
    for (name, golden, points) in goldens()? {
        let (r1, r2) = distances(&points)?;
        for (options, keys) in both() {
            let got = estimate_from_neighbors(&r1, &r2, &options)?;
            let want = &golden["without_duplicates"];
            check(&name, &got, want, keys)?;
            assert_eq!(got.n as u64, want["n"].as_u64().ok_or("n")?);
            assert_eq!(got.duplicates as u64, golden["duplicates"].as_u64().ok_or("duplicates")?);
        }
    }
    Ok(())
}

/// From points, where no two are the same, it is what the packages say of the points.
#[test]
fn points_give_the_ids_of_scikit_dimension_and_dadapy() -> Result {
    let mut checked = 0;
    for (name, golden, points) in goldens()? {
        if golden["duplicates"] != 0 {
            continue;
        }
        for (options, keys) in both() {
            let got = estimate(&points, &options)?;
            check(&name, &got, &golden["as_is"], keys)?;
            assert_eq!((got.n, got.duplicates), (points.rows(), 0));
            checked += 1;
        }
    }
    assert!(checked >= 4);
    Ok(())
}

/// From points, of 10 pairs of twins one of each stays: what the packages say of `np.unique(points, axis=0)`, in f64.
#[test]
fn merged_points_give_the_ids_of_unique_points() -> Result {
    let name = "gaussian_n300_d64_f32_dup10";
    let (_, _, points) = goldens()?.into_iter().find(|(n, _, _)| n == name).ok_or(name)?;
    let want = [MERGED_FIT, MERGED_MLE];
    for ((options, _), want) in both().into_iter().zip(want) {
        let got = estimate(&points, &options)?;
        assert_eq!((got.n, got.duplicates), (290, 10));
        assert_relative_eq!(got.id, want, max_relative = 1e-6);
    }
    Ok(())
}

/// scikit-dimension 0.5: TwoNN(), and TwoNN(method="mle", discard_fraction=0).
const MERGED_FIT: f64 = 31.69151883736928;
const MERGED_MLE: f64 = 32.998703859756404;

#[test]
fn json_has_the_agreed_fields() -> Result {
    let points = Tensor::from_f64(vec![0.0, 1.0, 3.0, 7.5, 7.5], [5, 1])?;
    let estimate = estimate(&points, &Options::default())?;
    let json = serde_json::to_value(&estimate)?;
    let mut fields: Vec<&str> = json.as_object().ok_or("object")?.keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["confidence", "duplicates", "estimator", "id", "interval", "n", "near_copies"]);
    assert_eq!((&json["estimator"], &json["n"], &json["duplicates"]), (&"two-nn-fit".into(), &4.into(), &1.into()));
    assert_eq!(serde_json::from_value::<Estimate>(json)?, estimate);
    Ok(())
}

/// The other estimators, whose numbers `fixtures/estimators.py` made, of the points of the same files.
#[test]
fn other_estimators_are_those_of_the_packages() -> Result {
    let two_nn = goldens()?;
    let all: Value = serde_json::from_str(&fs::read_to_string(fixtures().join("estimators.golden.json"))?)?;
    let mut compared = 0;
    for (name, golden) in all.as_object().ok_or("golden")? {
        let points = match two_nn.iter().find(|(n, ..)| n == name) {
            Some((_, _, points)) => points.to_dtype(DType::F64)?,
            None => return Err(format!("{name} has no points").into()),
        };
        let cloud = Neighborhood::with_neighbors(&points, 64)?;
        let mut check = |estimator: Estimator, want: &Value, tolerance: f64| -> Result {
            let want = want.as_f64().ok_or("a number")?;
            let got = cloud.estimate(&Options { estimator, confidence: 0.95 })?;
            assert!((got.id / want - 1.0).abs() < tolerance, "{name}: {estimator:?} is {}, not {want}", got.id);
            assert!(got.interval[0] <= got.id && got.id <= got.interval[1], "{got:?}");
            assert_eq!(got.n as u64, golden["n"].as_u64().ok_or("n")?);
            compared += 1;
            Ok(())
        };
        check(TwoNnTrimmed { discard: 0.1 }.into(), &golden["two-nn-trimmed"], 1e-12)?;
        check(TwoNnBayes { shape: 2.0, rate: 5.0 }.into(), &golden["two-nn-bayes"]["2,5"], 1e-9)?;
        check(TwoNnBayes { shape: 1.0, rate: 1.0 }.into(), &golden["two-nn-bayes"]["1,1"], 1e-9)?;
        for order in [1, 2, 4, 8, 16, 32] {
            check(Gride { order }.into(), &golden["gride"][order.to_string()], 1e-6)?;
        }
        for k in [5, 10, 20] {
            check(LevinaBickel { k }.into(), &golden["mle"][k.to_string()], 1e-9)?;
        }
        check(CorrDim { inner: 5, outer: 10 }.into(), &golden["corr-dim"]["5,10"], 1e-9)?;
        check(CorrDim { inner: 10, outer: 20 }.into(), &golden["corr-dim"]["10,20"], 1e-9)?;
        for k in [20, 50] {
            check(LocalPca { k, threshold: 0.05 }.into(), &golden["local-pca"][k.to_string()], 1e-9)?;
        }
    }
    assert_eq!(compared, 3 * 16);
    Ok(())
}
