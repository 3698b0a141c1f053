//! One pass over the keys. A cube owns a block of queries (forward, dQ) or of keys (dK and dV) of one head, streams over the
//! blocks of the other side through shared memory, and holds its sums in registers; scores exist for one pair of blocks.
//!
//! A cube is 8 x 8 units. Of a block of scores a unit has every eighth row and every eighth column, of a block of outputs
//! every eighth row and every eighth channel, so that adjacent units read adjacent banks and write adjacent values.

mod backward;
mod forward;

pub use backward::backward;
pub use forward::forward;

use cubecl::prelude::*;

use super::Attention;
use crate::gpu::mask::{Mask, factor};
use crate::gpu::{Backend, Gpu, GpuBuffer};
use crate::guard::forced_shape;
use std::ops::Range;

use crate::{Error, Result};

/// Units of a cube side by side, and one above the other.
const SIDE: usize = 8;
const UNITS: usize = SIDE * SIDE;

/// Rows of a block of queries or keys, the best first.
const BLOCKS: [usize; 3] = [32, 16, 8];

/// The score of a key that a row does not see. Finite: shaders need not know infinities.
const UNSEEN: f32 = -1e30;

/// The comptime settings of every kernel here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    /// Rows of a block of queries and of a block of keys.
    block: usize,
    /// Head size.
    d: usize,
    /// Query heads to a key head.
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
    /// The largest blocks of which `rooms` matrices of a head and `scores` blocks of scores fit into shared memory.
    fn new<R: Backend>(gpu: &Gpu<R>, call: &Attention<'_>, d: usize, rooms: usize, scores: usize) -> Result<Self> {
        let most = gpu.client().properties().hardware.max_shared_memory_size;
        let size = |block: usize| 4 * (rooms * block * (d + 1) + scores * block * (block + 1) + 2 * block);
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

    /// Rows of a block that a unit has.
    const fn unit_rows(&self) -> usize {
        self.block / SIDE
    }

    /// Channels that a unit has.
    const fn unit_channels(&self) -> usize {
        self.d.div_ceil(SIDE)
    }

    const fn kv_heads(&self) -> usize {
        self.heads / self.group
    }
}

/// Rows of one head in shared memory, and their distance: one value more than there are channels, against bank conflicts.
#[cube]
fn room(#[comptime] plan: Plan) -> SharedMemory<f32> {
    SharedMemory::<f32>::new(comptime!(plan.block * (plan.d + 1)))
}

#[cube]
fn score_room(#[comptime] plan: Plan) -> SharedMemory<f32> {
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

/// Copies the rows from `first` of a head into shared memory; rows at or beyond `end` become 0.
#[cube]
fn load(
    source: &Array<f32>,
    room: &mut SharedMemory<f32>,
    first: usize,
    end: usize,
    head: usize,
    #[comptime] heads: usize,
    #[comptime] plan: Plan,
) {
    for at in range_stepped(UNIT_POS as usize, comptime!(plan.block * plan.d), comptime!(UNITS)) {
        let row = at / comptime!(plan.d);
        let channel = at % comptime!(plan.d);
        let mut value = 0.0f32;
        if first + row < end {
            value = source[((first + row) * heads + head) * comptime!(plan.d) + channel];
        }
        room[row * comptime!(plan.d + 1) + channel] = value;
    }
}

/// left right^T of this unit's rows and columns.
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

/// sums += weights values: weights (block, block), or their transpose, times the rows in `values`.
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
            // The last channels of a unit may be beyond the head; their sums are not used.
            let channel = (unit_x + comptime!(c * SIDE)).min(comptime!(plan.d - 1));
            let value = values[k * comptime!(plan.d + 1) + channel];
            #[unroll]
            for i in 0..n {
                sums[comptime!(i * channels + c)] += column[i] * value;
            }
        }
    }
}

/// Writes what [`accumulate`] summed to the rows from `first` of a head.
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

/// Whether the row that stands where key `position` stands sees `key`, in a sequence whose keys end at `end`.
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

/// Where the keys begin that a block of queries from `position` on sees.
#[cube]
fn first_key(position: usize, start: usize, window: usize, #[comptime] plan: Plan) -> usize {
    let mut first = start;
    if comptime!(plan.windowed) {
        // Of the window's start and the sequence's start, the later.
        first = (position + 1).max(start + window) - window;
    }
    first
}

/// Where the keys end that a block of queries from `position` on sees.
#[cube]
fn last_key(position: usize, end: usize, #[comptime] plan: Plan) -> usize {
    let mut last = end;
    if comptime!(plan.causal) {
        last = (position + comptime!(plan.block)).min(end);
    }
    last
}

/// What is added to the score of a key that the row at `position` sees.
#[cube]
fn bias_of(bias: &Array<f32>, position: usize, head: usize, key: usize, seen: bool, #[comptime] plan: Plan) -> f32 {
    let mut value = 0.0f32;
    if comptime!(plan.biased) {
        let width = bias.len() / comptime!(plan.heads);
        if seen {
            value = bias[head * width + key + width / 2 - position];
        }
    }
    value
}

/// What A and B add to the product of a query row and a key that it sees; both count rows of the batch.
#[cube]
fn by_distance(added: &ByDistance, row: usize, head: usize, key: usize, seen: bool, #[comptime] plan: Plan) -> f32 {
    let mut value = 0.0f32;
    if seen {
        if comptime!(plan.by_query) {
            value += added.by_query[distance_at(row, row, head, key, added.width, plan)];
        }
        if comptime!(plan.by_key) {
            value += added.by_key[distance_at(key, row, head, key, added.width, plan)];
        }
    }
    value
}

/// Where the score of a query row and a key reads row `of` of A or B.
#[cube]
fn distance_at(of: usize, row: usize, head: usize, key: usize, width: usize, #[comptime] plan: Plan) -> usize {
    (of * comptime!(plan.heads) + head) * width + key + width / 2 - row
}

/// A and B, or any memory in place of one that is not there.
#[derive(CubeType, CubeLaunch)]
struct ByDistance {
    by_query: Array<f32>,
    by_key: Array<f32>,
    /// Columns of a head.
    width: usize,
}

/// A and B as a kernel takes them.
fn distances<R: Backend>(op: &'static str, call: &Attention<'_>, other: &crate::Tensor) -> Result<ByDistanceLaunch<R>> {
    let width = call.by_query.or(call.by_key).map_or(0, |t| t.cols() / call.heads);
    let arg = |t: Option<&crate::Tensor>| Ok::<_, Error>(t.unwrap_or(other).gpu(op)?.arg());
    Ok(ByDistanceLaunch::new(arg(call.by_query)?, arg(call.by_key)?, width))
}

/// What P of a row, a head and a key is multiplied by.
#[cube]
fn kept(dropout: &Mask, row: usize, head: usize, key: usize, longest: usize, #[comptime] plan: Plan) -> f32 {
    let mut kept = 1.0f32;
    if comptime!(plan.dropped) {
        kept = factor(dropout, ((row * plan.heads + head) * longest + key) as u32);
    }
    kept
}

/// The blocks of queries of all sequences on the device, each as (first row, first row and end of its sequence, first key and end of
/// the sequence's keys), and how many there are.
fn blocks<R: Backend>(gpu: &Gpu<R>, call: &Attention<'_>, block: usize) -> (GpuBuffer, usize) {
    let count = call.sequences.ranges().map(|rows| rows.len().div_ceil(block)).sum();
    let upload = || {
        let of = |(rows, keys): (Range<usize>, Range<usize>)| {
            let at = [rows.start, rows.end, keys.start, keys.end].map(|at| at as u32);
            rows.step_by(block).flat_map(move |row| [row as u32, at[0], at[1], at[2], at[3]])
        };
        gpu.upload_u32(&call.parts().flat_map(of).collect::<Vec<u32>>())
    };
    // Keys of their own change with every token.
    let list = if call.keys.is_some() { upload() } else { call.sequences.on_gpu(R::KIND, block, upload) };
    (list, count)
}

/// The bias on the device, or any memory where there is none.
fn bias<'t>(op: &'static str, call: &Attention<'t>, other: &'t crate::Tensor) -> Result<&'t GpuBuffer> {
    call.bias.unwrap_or(other).gpu(op)
}
