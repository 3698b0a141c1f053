//! One pass over the keys. A cube owns a block of queries (forward, dQ) or of keys (dK and dV) of one head. It goes
//! over the blocks of the other side through shared memory and holds its sums in registers. Scores exist for one pair
//! of blocks.
//!
//! A cube has 8 x 8 units. A unit owns every eighth row and column of a block of scores, and every eighth row and
//! channel of a block of outputs, so adjacent units read adjacent banks and write adjacent values.

mod backward;
mod forward;

pub(crate) use backward::backward;
pub(crate) use forward::forward;

use std::ops::Range;

use cubecl::prelude::*;

use super::Attention;
use crate::gpu::mask::{Mask, factor};
use crate::gpu::{Backend, Gpu, GpuBuffer};
use crate::guard::forced_shape;
use crate::{Error, Result, Tensor};

/// Units of a cube along each side.
const SIDE: usize = 8;
const UNITS: usize = SIDE * SIDE;

/// Rows of a block of queries or keys, the preferred size first.
const BLOCKS: [usize; 3] = [32, 16, 8];

/// The score of a key that a row does not see. It is finite, because shaders may not know infinities.
const UNSEEN: f32 = -1e30;

/// The comptime settings of every kernel here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    /// Rows of a block of queries and of a block of keys.
    block: usize,
    /// Head size.
    d: usize,
    /// Query heads of a key head.
    group: usize,
    heads: usize,
    causal: bool,
    windowed: bool,
    biased: bool,
    by_query: bool,
    by_key: bool,
    dropped: bool,
}

impl Plan {
    /// The plan with the largest block for which `matrices` matrices of a head and `scores` blocks of scores fit into
    /// shared memory.
    fn new<R: Backend>(gpu: &Gpu<R>, call: &Attention<'_>, d: usize, matrices: usize, scores: usize) -> Result<Self> {
        let most = gpu.client().properties().hardware.max_shared_memory_size;
        let size = |block: usize| 4 * (matrices * block * (d + 1) + scores * block * (block + 1) + 2 * block);
        let fits = |block: &usize| size(*block) <= most && d * block <= 2048;
        let chosen = match forced_shape() {
            None => BLOCKS.into_iter().find(fits),
            Some(place) => BLOCKS.get(place).copied().filter(fits),
        };
        let Some(block) = chosen else {
            let what = "heads of this size, in the shared memory of this device";
            return Err(Error::Unsupported { op: "attention", device: R::KIND, what });
        };
        let (heads, group) = (call.heads, call.heads / call.kv_heads);
        Ok(Self {
            block,
            d,
            group,
            heads,
            causal: call.causal,
            windowed: call.window.is_some(),
            biased: call.bias.is_some(),
            by_query: call.by_query.is_some(),
            by_key: call.by_key.is_some(),
            dropped: call.dropout.is_some(),
        })
    }

    /// Rows of a block in one unit.
    const fn unit_rows(&self) -> usize {
        self.block / SIDE
    }

    /// Channels in one unit.
    const fn unit_channels(&self) -> usize {
        self.d.div_ceil(SIDE)
    }

    const fn kv_heads(&self) -> usize {
        self.heads / self.group
    }
}

/// Shared memory for a block of rows of one head. Rows are one value longer than the head, against bank conflicts.
#[cube]
fn row_block(#[comptime] plan: Plan) -> SharedMemory<f32> {
    SharedMemory::<f32>::new(comptime!(plan.block * (plan.d + 1)))
}

#[cube]
fn score_block(#[comptime] plan: Plan) -> SharedMemory<f32> {
    SharedMemory::<f32>::new(comptime!(plan.block * (plan.block + 1)))
}

#[cube]
fn zeros(#[comptime] len: usize) -> Array<f32> {
    let mut all = Array::<f32>::new(len);
    #[unroll]
    for i in 0..len {
        all[i] = 0.0f32;
    }
    all
}

/// Copies the rows of a head from row `first` on into shared memory. Rows from `end` on become 0.
#[cube]
fn load(
    source: &Array<f32>,
    rows: &mut SharedMemory<f32>,
    first: usize,
    end: usize,
    head: usize,
    #[comptime] heads: usize,
    #[comptime] plan: Plan,
) {
    for copied in range_stepped(UNIT_POS as usize, comptime!(plan.block * plan.d), comptime!(UNITS)) {
        let row = copied / comptime!(plan.d);
        let channel = copied % comptime!(plan.d);
        let mut value = 0.0f32;
        if first + row < end {
            value = source[((first + row) * heads + head) * comptime!(plan.d) + channel];
        }
        rows[row * comptime!(plan.d + 1) + channel] = value;
    }
}

/// left right^T, for the rows and columns of this unit.
#[cube]
fn scores(left: &SharedMemory<f32>, right: &SharedMemory<f32>, #[comptime] plan: Plan) -> Array<f32> {
    let n = comptime!(plan.unit_rows());
    let pitch = comptime!(plan.d + 1);
    let unit_y = UNIT_POS as usize / comptime!(SIDE);
    let unit_x = UNIT_POS as usize % comptime!(SIDE);
    let mut sums = zeros(comptime!(n * n));
    for channel in 0..comptime!(plan.d) {
        let mut column = Array::<f32>::new(n);
        #[unroll]
        for i in 0..n {
            column[i] = left[(unit_y + comptime!(i * SIDE)) * pitch + channel];
        }
        #[unroll]
        for j in 0..n {
            let other = right[(unit_x + comptime!(j * SIDE)) * pitch + channel];
            #[unroll]
            for i in 0..n {
                sums[comptime!(i * n + j)] += column[i] * other;
            }
        }
    }
    sums
}

/// sums += weights values, with weights (block, block) or, if `transposed`, its transpose.
#[cube]
fn accumulate(
    sums: &mut Array<f32>,
    weights: &SharedMemory<f32>,
    values: &SharedMemory<f32>,
    #[comptime] transposed: bool,
    #[comptime] plan: Plan,
) {
    let n = comptime!(plan.unit_rows());
    let channels = comptime!(plan.unit_channels());
    let pitch = comptime!(plan.block + 1);
    let unit_y = UNIT_POS as usize / comptime!(SIDE);
    let unit_x = UNIT_POS as usize % comptime!(SIDE);
    for k in 0..comptime!(plan.block) {
        let mut column = Array::<f32>::new(n);
        #[unroll]
        for i in 0..n {
            let row = unit_y + comptime!(i * SIDE);
            if comptime!(transposed) {
                column[i] = weights[k * pitch + row];
            } else {
                column[i] = weights[row * pitch + k];
            }
        }
        #[unroll]
        for c in 0..channels {
            // The last channel of a unit may be beyond the head. Its sums are not used.
            let channel = (unit_x + comptime!(c * SIDE)).min(comptime!(plan.d - 1));
            let value = values[k * comptime!(plan.d + 1) + channel];
            #[unroll]
            for i in 0..n {
                sums[comptime!(i * channels + c)] += column[i] * value;
            }
        }
    }
}

/// Writes the sums of [`accumulate`] to the rows of a head from row `first` on.
#[cube]
fn store(
    sums: &Array<f32>,
    out: &mut Array<f32>,
    first: usize,
    end: usize,
    head: usize,
    #[comptime] heads: usize,
    #[comptime] plan: Plan,
) {
    let channels = comptime!(plan.unit_channels());
    #[unroll]
    for i in 0..comptime!(plan.unit_rows()) {
        let row = first + UNIT_POS as usize / comptime!(SIDE) + comptime!(i * SIDE);
        #[unroll]
        for c in 0..channels {
            let channel = UNIT_POS as usize % comptime!(SIDE) + comptime!(c * SIDE);
            if row < end && channel < comptime!(plan.d) {
                out[(row * heads + head) * comptime!(plan.d) + channel] = sums[comptime!(i * channels + c)];
            }
        }
    }
}

/// Whether the row at key position `position` sees `key`, in a sequence whose keys end at `end`.
#[cube]
fn sees(position: usize, key: usize, end: usize, window: usize, #[comptime] plan: Plan) -> bool {
    let mut seen = key < end;
    if comptime!(plan.causal) {
        seen = seen && key <= position;
    }
    if comptime!(plan.windowed) {
        seen = seen && key + window > position;
    }
    seen
}

/// The first key visible to the block of queries starting at `position`.
#[cube]
fn first_key(position: usize, start: usize, window: usize, #[comptime] plan: Plan) -> usize {
    let mut first = start;
    if comptime!(plan.windowed) {
        // The later of the window's start and the sequence's start.
        first = (position + 1).max(start + window) - window;
    }
    first
}

/// The end of the keys visible to the block of queries starting at `position`.
#[cube]
fn last_key(position: usize, end: usize, #[comptime] plan: Plan) -> usize {
    let mut last = end;
    if comptime!(plan.causal) {
        last = (position + comptime!(plan.block)).min(end);
    }
    last
}

/// The bias of the score of a key, if the row at `position` sees the key; else 0.
#[cube]
fn bias_of(terms: &Terms, position: usize, head: usize, key: usize, seen: bool, #[comptime] plan: Plan) -> f32 {
    let mut value = 0.0f32;
    if comptime!(plan.biased) {
        let width = terms.bias.len() / comptime!(plan.heads);
        if seen {
            value = terms.bias[head * width + key + width / 2 - position];
        }
    }
    value
}

/// The terms of A and B in the product of a query row and a key, if the row sees the key; else 0. Both are rows of the
/// batch.
#[cube]
fn by_distance(terms: &Terms, row: usize, head: usize, key: usize, seen: bool, #[comptime] plan: Plan) -> f32 {
    let mut value = 0.0f32;
    if seen {
        if comptime!(plan.by_query) {
            value += terms.by_query[distance_index(row, row, head, key, terms.width, plan)];
        }
        if comptime!(plan.by_key) {
            value += terms.by_key[distance_index(key, row, head, key, terms.width, plan)];
        }
    }
    value
}

/// The index in A or B of the term of a query row and a key; `owner` is the row for A, the key for B.
#[cube]
fn distance_index(owner: usize, row: usize, head: usize, key: usize, width: usize, #[comptime] plan: Plan) -> usize {
    (owner * comptime!(plan.heads) + head) * width + key + width / 2 - row
}

/// The terms that are added to the scores. Any memory stands in for a term that the call does not have.
#[derive(CubeType, CubeLaunch)]
struct Terms {
    bias: Array<f32>,
    /// A.
    by_query: Array<f32>,
    /// B.
    by_key: Array<f32>,
    /// Columns of A or B that belong to a head.
    width: usize,
}

/// The launch argument of the terms; `other` stands in for missing terms.
fn terms<R: Backend>(op: &'static str, call: &Attention<'_>, other: &Tensor) -> Result<TermsLaunch<R>> {
    let width = call.by_query.or(call.by_key).map_or(0, |t| t.cols() / call.heads);
    let arg = |t: Option<&Tensor>| Ok::<_, Error>(t.unwrap_or(other).gpu(op)?.arg());
    Ok(TermsLaunch::new(arg(call.bias)?, arg(call.by_query)?, arg(call.by_key)?, width))
}

/// The numbers of a launch.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Numbers {
    /// Blocks with work: more cubes may run.
    count: usize,
    /// Keys of the longest sequence, for the index of dropout.
    longest: usize,
    window: usize,
    scale: f32,
}

/// The launch argument of the numbers.
fn numbers<R: Backend>(call: &Attention<'_>, count: usize) -> NumbersLaunch<R> {
    NumbersLaunch::new(count, call.all_keys().longest(), call.window.unwrap_or(0), call.scale)
}

/// The dropout factor of P for a row, a head and a key.
#[cube]
fn kept(dropout: &Mask, row: usize, head: usize, key: usize, longest: usize, #[comptime] plan: Plan) -> f32 {
    let mut kept = 1.0f32;
    if comptime!(plan.dropped) {
        kept = factor(dropout, ((row * plan.heads + head) * longest + key) as u32);
    }
    kept
}

/// The list of blocks of queries of all sequences, on the device, and the number of blocks. A block is (its first row,
/// the first row and the end of its sequence, the first key and the end of the sequence's keys).
fn blocks<R: Backend>(gpu: &Gpu<R>, call: &Attention<'_>, block: usize) -> (GpuBuffer, usize) {
    let count = call.sequences.ranges().map(|rows| rows.len().div_ceil(block)).sum();
    let upload = || {
        let entries = |(rows, keys): (Range<usize>, Range<usize>)| {
            let ends = [rows.start, rows.end, keys.start, keys.end].map(|end| end as u32);
            rows.step_by(block).flat_map(move |row| [row as u32, ends[0], ends[1], ends[2], ends[3]])
        };
        gpu.upload_u32(&call.parts().flat_map(entries).collect::<Vec<u32>>())
    };
    // Separate keys change with every token, so their list is not kept.
    let list = if call.keys.is_some() { upload() } else { call.sequences.on_gpu(R::KIND, block, upload) };
    (list, count)
}
