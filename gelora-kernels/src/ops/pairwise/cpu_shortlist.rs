//! Shortlists: the columns that may be among a row's nearest, from bounds on their distances.

use crate::cpu::{Vector, by_vector};

/// The capacity of a row's candidates: a constant, and a number for each neighbor.
const CAPACITY: (usize, usize) = (24, 4);

/// For each row of a block, the columns that may be among its k nearest.
pub(crate) struct Shortlist {
    /// The first row of the block.
    first: usize,
    k: usize,
    /// The capacity of a row's candidates.
    capacity: usize,
    /// (rows, k): the least upper bounds, ascending.
    least: Vec<f32>,
    /// A column with a lower bound above the limit is not among the k nearest. Negative infinity marks a row with too
    /// many candidates.
    pub(crate) limit: Vec<f32>,
    /// The width of the row's own bound, added to the limit.
    width: Vec<f32>,
    /// (rows, capacity): lower bounds and columns, in no order.
    candidates: Vec<(f32, u32)>,
    /// Number of candidates of each row.
    found: Vec<usize>,
}

impl Shortlist {
    /// Empty shortlists of rows with these widths.
    pub(crate) fn new(first: usize, width: &[f32], k: usize) -> Self {
        let (rows, capacity) = (width.len(), CAPACITY.0 + CAPACITY.1 * k);
        Self {
            first,
            k,
            capacity,
            least: vec![f32::INFINITY; rows * k],
            limit: vec![f32::MAX; rows],
            width: width.to_vec(),
            candidates: vec![(0.0, 0); rows * capacity],
            found: vec![0; rows],
        }
    }

    /// Adds a column with a lower bound within the limit.
    #[inline(always)]
    fn insert(&mut self, i: usize, bound: f32, column_width: f32, column: usize) {
        let least = &mut self.least[i * self.k..][..self.k];
        // The k least upper bounds, by insertion.
        let upper = bound + column_width;
        if upper < least[self.k - 1] {
            let mut place = self.k - 1;
            while place > 0 && least[place - 1] > upper {
                least[place] = least[place - 1];
                place -= 1;
            }
            least[place] = upper;
            self.limit[i] = (least[self.k - 1] + self.width[i]).min(f32::MAX);
        }
        let candidates = &mut self.candidates[i * self.capacity..][..self.capacity];
        candidates[self.found[i]] = (bound, column as u32);
        self.found[i] += 1;
        if self.found[i] == self.capacity {
            self.prune(i);
        }
    }

    /// Drops candidates above the limit. Gives the row up if most of them stay.
    #[cold]
    fn prune(&mut self, i: usize) {
        let candidates = &mut self.candidates[i * self.capacity..][..self.capacity];
        let mut kept = 0;
        for index in 0..self.capacity {
            if candidates[index].0 <= self.limit[i] {
                candidates[kept] = candidates[index];
                kept += 1;
            }
        }
        self.found[i] = kept;
        if 4 * kept > 3 * self.capacity {
            self.limit[i] = f32::NEG_INFINITY;
        }
    }

    /// The candidates of row `i`; None if there were too many.
    pub(crate) fn candidates(&self, i: usize) -> Option<impl Iterator<Item = u32>> {
        let limit = self.limit[i];
        let all = &self.candidates[i * self.capacity..][..self.found[i]];
        (limit != f32::NEG_INFINITY).then(|| all.iter().filter(move |c| c.0 <= limit).map(|c| c.1))
    }
}

/// A mask with a bit for each value: whether value + addend <= limit.
///
/// # Safety
/// As of [`Vector`].
#[inline(always)]
unsafe fn at_most<V: Vector>(values: &[f32], addend: V, limit: V) -> u32 {
    // SAFETY: by the contract.
    let mask = unsafe { load::<V>(values).add(addend).at_most(limit) };
    mask & (u32::MAX >> (32 - values.len()))
}

/// A vector of a slice, with zeros if the slice is shorter.
///
/// # Safety
/// As of [`Vector`].
#[inline(always)]
unsafe fn load<V: Vector>(values: &[f32]) -> V {
    // SAFETY: by the contract; no more is read than there is.
    unsafe {
        if values.len() == V::LANES { V::load(values.as_ptr()) } else { V::load_first(values.as_ptr(), values.len()) }
    }
}

/// The positions of the set bits, ascending.
fn bits(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(bit)
    })
}

by_vector! {
    /// Merges a tile into the lists of its rows: the lower bound of row i and column j is `products[i][j] + lower[j]`.
    pub(crate) fn keep_for_rows(
        products: &[f32],
        lower: &[f32],
        width: &[f32],
        first_column: usize,
        list: &mut Shortlist,
    ) = for_rows
}

by_vector! {
    /// Merges a tile into the lists of its columns: the lower bound of column j and row i is `products[i][j] +
    /// lower[i]`.
    pub(crate) fn keep_for_columns(
        products: &[f32],
        lower: &[f32],
        width: &[f32],
        first_row: usize,
        list: &mut Shortlist,
    ) = for_columns
}

/// [`keep_for_rows`]. Nearly all columns are too far, and one comparison skips a whole vector of them.
#[inline(always)]
unsafe fn for_rows<V: Vector>(
    products: &[f32],
    lower: &[f32],
    width: &[f32],
    first_column: usize,
    list: &mut Shortlist,
) {
    let cols = lower.len();
    for (i, products) in products.chunks_exact(cols).enumerate() {
        let own = (list.first + i).wrapping_sub(first_column);
        for (group, (products, lower)) in products.chunks(V::LANES).zip(lower.chunks(V::LANES)).enumerate() {
            // SAFETY: by the contract of `by_vector`.
            let hits = unsafe {
                let limit = V::splat(list.limit[i]);
                at_most(products, load::<V>(lower), limit)
            };
            for l in bits(hits) {
                let (j, bound) = (group * V::LANES + l, products[l] + lower[l]);
                if bound <= list.limit[i] && j != own {
                    list.insert(i, bound, width[j], first_column + j);
                }
            }
        }
    }
}

/// [`keep_for_columns`]. Each column of the tile has its own list.
#[inline(always)]
unsafe fn for_columns<V: Vector>(
    products: &[f32],
    lower: &[f32],
    width: &[f32],
    first_row: usize,
    list: &mut Shortlist,
) {
    let cols = list.limit.len();
    for (i, (products, &lower)) in products.chunks_exact(cols).zip(lower).enumerate() {
        for (group, products) in products.chunks(V::LANES).enumerate() {
            let first = group * V::LANES;
            // SAFETY: by the contract of `by_vector`.
            let hits = unsafe {
                let limit = load::<V>(&list.limit[first..first + products.len()]);
                at_most(products, V::splat(lower), limit)
            };
            for l in bits(hits) {
                list.insert(first + l, products[l] + lower, width[i], first_row + i);
            }
        }
    }
}
