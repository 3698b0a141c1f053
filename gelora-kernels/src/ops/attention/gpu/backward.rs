//! Two kernels that recompute the scores: cubes of the first own queries and compute dQ, cubes of the second own keys
//! and compute dK and dV, taking the query heads of a group in order. No sum is shared between cubes.

use cubecl::prelude::*;

use super::*;
use crate::Tensor;
use crate::gpu::mask::mask;
use crate::gpu::math::exp;
use crate::gpu::{ELEMENTWISE_UNITS, cubes, elementwise};
use crate::ops::attention::{Gradients, Saved};

/// delta_i = dO_i . O_i for each row and head. It equals sum_k P_ik dP_ik, also with dropout.
#[cube(launch)]
fn delta_kernel(d_o: &Array<f32>, o: &Array<f32>, delta: &mut Array<f32>, d: usize) {
    if ABSOLUTE_POS < delta.len() {
        let mut sum = 0.0f32;
        for channel in 0..d {
            sum += d_o[ABSOLUTE_POS * d + channel] * o[ABSOLUTE_POS * d + channel];
        }
        delta[ABSOLUTE_POS] = sum;
    }
}

/// The values of each query row and head that the scores are recomputed with.
#[derive(CubeType, CubeLaunch)]
struct SavedRows {
    lse: Array<f32>,
    delta: Array<f32>,
}

/// A block of query rows and a block of keys of one head: their first rows, and the first row and the end of the
/// sequence.
#[derive(CubeType, Clone, Copy)]
struct Pair {
    row: usize,
    head: usize,
    key: usize,
    start: usize,
    end: usize,
}

/// Writes dropped P (if wanted) and scale dS of a pair of blocks to shared memory, as (query row, key).
#[cube]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn gradients_of_scores(
    s: &Array<f32>,
    dp: &Array<f32>,
    saved: &SavedRows,
    terms: &Terms,
    dropped: &mut SharedMemory<f32>,
    ds: &mut SharedMemory<f32>,
    dropout: &Mask,
    pair: &Pair,
    call: &Numbers,
    #[comptime] want_dropped: bool,
    #[comptime] plan: Plan,
) {
    let (row, head, first, end) = (pair.row, pair.head, pair.key, pair.end);
    let scale = call.scale;
    let n = comptime!(plan.unit_rows());
    let pitch = comptime!(plan.block + 1);
    #[unroll]
    for i in 0..n {
        let r = UNIT_POS as usize / comptime!(SIDE) + comptime!(i * SIDE);
        let mut row_lse = 0.0f32;
        let mut row_delta = 0.0f32;
        if row + r < end {
            row_lse = saved.lse[(row + r) * plan.heads + head];
            row_delta = saved.delta[(row + r) * plan.heads + head];
        }
        #[unroll]
        for j in 0..n {
            let c = UNIT_POS as usize % comptime!(SIDE) + comptime!(j * SIDE);
            // P = exp(S - lse).
            let mut p = 0.0f32;
            let seen = row + r < end && sees(row + r, first + c, end, call.window, plan);
            if seen {
                let product = s[comptime!(i * n + j)] + by_distance(terms, row + r, head, first + c, seen, plan);
                p = exp(scale * product + bias_of(terms, row + r, head, first + c, seen, plan) - row_lse);
            }
            // dS = P (dP - delta), with dP through the dropout mask.
            let kept = kept(dropout, row + r, head, first - pair.start + c, call.longest, plan);
            if comptime!(want_dropped) {
                dropped[r * pitch + c] = p * kept;
            }
            ds[r * pitch + c] = scale * p * (dp[comptime!(i * n + j)] * kept - row_delta);
        }
    }
}

/// Writes scale dS of a pair of blocks to dA or, if `by_key` is set, dB: to the values that the scores read.
#[cube]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn store_by_distance(
    ds: &SharedMemory<f32>,
    out: &mut Array<f32>,
    width: usize,
    #[comptime] by_key: bool,
    row: usize,
    first: usize,
    end: usize,
    head: usize,
    #[comptime] plan: Plan,
) {
    let block = comptime!(plan.block);
    for copied in range_stepped(UNIT_POS as usize, comptime!(block * block), comptime!(UNITS)) {
        let r = row + copied / block;
        let c = first + copied % block;
        if r < end && c < end {
            let mut owner = r;
            if comptime!(by_key) {
                owner = c;
            }
            out[distance_index(owner, r, head, c, width, plan)] =
                ds[copied / block * comptime!(plan.block + 1) + copied % block];
        }
    }
}

/// out = 0. The gradients of scores that no row sees are not written otherwise.
#[cube(launch)]
fn zero_kernel(out: &mut Array<f32>) {
    if ABSOLUTE_POS < out.len() {
        out[ABSOLUTE_POS] = 0.0f32;
    }
}

/// A tensor of zeros in the shape of `like`, if there is one.
fn zeros_like<R: Backend>(gpu: &Gpu<R>, op: &'static str, like: Option<&Tensor>) -> Result<Option<Tensor>> {
    let Some(like) = like else { return Ok(None) };
    let out = gpu.output(like.shape())?;
    let units = CubeDim::new_1d(ELEMENTWISE_UNITS);
    zero_kernel::launch::<R>(gpu.client(), elementwise(like.len()), units, out.gpu(op)?.arg());
    Ok(Some(out))
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn d_query_kernel(
    q: &Array<f32>,
    k: &Array<f32>,
    v: &Array<f32>,
    d_o: &Array<f32>,
    saved: &SavedRows,
    terms: &Terms,
    blocks: &Array<u32>,
    dq: &mut Array<f32>,
    d_by_query: &mut Array<f32>,
    d_by_key: &mut Array<f32>,
    dropout: &Mask,
    call: &Numbers,
    #[comptime] plan: Plan,
) {
    let mut queries = row_block(plan);
    let mut d_outputs = row_block(plan);
    let mut keys = row_block(plan);
    let mut values = row_block(plan);
    let mut ds = score_block(plan);
    let mut unused = SharedMemory::<f32>::new(1usize);
    if CUBE_POS < call.count {
        let block = CUBE_POS / comptime!(plan.heads);
        let head = CUBE_POS % comptime!(plan.heads);
        let row = blocks[5 * block] as usize;
        let start = blocks[5 * block + 1] as usize;
        let end = blocks[5 * block + 2] as usize;
        let kv_head = head / comptime!(plan.group);
        load(q, &mut queries, row, end, head, plan.heads, plan);
        load(d_o, &mut d_outputs, row, end, head, plan.heads, plan);
        let mut sums = zeros(comptime!(plan.unit_rows() * plan.unit_channels()));
        for first in
            range_stepped(first_key(row, start, call.window, plan), last_key(row, end, plan), comptime!(plan.block))
        {
            sync_cube();
            load(k, &mut keys, first, end, kv_head, comptime!(plan.kv_heads()), plan);
            load(v, &mut values, first, end, kv_head, comptime!(plan.kv_heads()), plan);
            sync_cube();
            let s = scores(&queries, &keys, plan);
            let dp = scores(&d_outputs, &values, plan);
            let pair = Pair { row, head, key: first, start, end };
            gradients_of_scores(&s, &dp, saved, terms, &mut unused, &mut ds, dropout, &pair, call, false, plan);
            sync_cube();
            if comptime!(plan.by_query) {
                store_by_distance(&ds, d_by_query, terms.width, false, row, first, end, head, plan);
            }
            if comptime!(plan.by_key) {
                store_by_distance(&ds, d_by_key, terms.width, true, row, first, end, head, plan);
            }
            // dQ += scale dS K.
            accumulate(&mut sums, &ds, &keys, false, plan);
        }
        store(&sums, dq, row, end, head, plan.heads, plan);
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn d_key_value_kernel(
    q: &Array<f32>,
    k: &Array<f32>,
    v: &Array<f32>,
    d_o: &Array<f32>,
    saved: &SavedRows,
    terms: &Terms,
    blocks: &Array<u32>,
    dk: &mut Array<f32>,
    dv: &mut Array<f32>,
    dropout: &Mask,
    call: &Numbers,
    #[comptime] plan: Plan,
) {
    let kv_heads = comptime!(plan.kv_heads());
    let mut queries = row_block(plan);
    let mut d_outputs = row_block(plan);
    let mut keys = row_block(plan);
    let mut values = row_block(plan);
    let mut dropped = score_block(plan);
    let mut ds = score_block(plan);
    if CUBE_POS < call.count {
        let block = CUBE_POS / kv_heads;
        let kv_head = CUBE_POS % kv_heads;
        let first = blocks[5 * block] as usize;
        let start = blocks[5 * block + 1] as usize;
        let end = blocks[5 * block + 2] as usize;
        load(k, &mut keys, first, end, kv_head, kv_heads, plan);
        load(v, &mut values, first, end, kv_head, kv_heads, plan);
        let mut dk_sums = zeros(comptime!(plan.unit_rows() * plan.unit_channels()));
        let mut dv_sums = zeros(comptime!(plan.unit_rows() * plan.unit_channels()));
        // With a causal mask, rows before the first key see none of these keys.
        let mut from = start;
        if comptime!(plan.causal) {
            from = first;
        }
        // Neither do rows whose windows begin after the last key.
        let mut to = end;
        if comptime!(plan.windowed) {
            to = (first + comptime!(plan.block) + call.window).min(end);
        }
        for member in 0..comptime!(plan.group) {
            let head = kv_head * comptime!(plan.group) + member;
            for row in range_stepped(from, to, comptime!(plan.block)) {
                sync_cube();
                load(q, &mut queries, row, end, head, plan.heads, plan);
                load(d_o, &mut d_outputs, row, end, head, plan.heads, plan);
                sync_cube();
                let s = scores(&queries, &keys, plan);
                let dp = scores(&d_outputs, &values, plan);
                let pair = Pair { row, head, key: first, start, end };
                gradients_of_scores(&s, &dp, saved, terms, &mut dropped, &mut ds, dropout, &pair, call, true, plan);
                sync_cube();
                // dK += scale dS^T Q and dV += drop(P)^T dO.
                accumulate(&mut dk_sums, &ds, &queries, true, plan);
                accumulate(&mut dv_sums, &dropped, &d_outputs, true, plan);
            }
        }
        store(&dk_sums, dk, first, end, kv_head, kv_heads, plan);
        store(&dv_sums, dv, first, end, kv_head, kv_heads, plan);
    }
}

pub(crate) fn backward<R: Backend>(
    gpu: &Gpu<R>,
    call: &Attention<'_>,
    d_o: &Tensor,
    [q, k, v]: [&Tensor; 3],
    saved: &Saved,
) -> Result<Gradients> {
    const OP: &str = "attention.backward";
    let d = q.cols() / call.heads;
    let delta = gpu.scratch(q.rows() * call.heads)?;
    delta_kernel::launch::<R>(
        gpu.client(),
        elementwise(q.rows() * call.heads),
        CubeDim::new_1d(ELEMENTWISE_UNITS),
        d_o.gpu(OP)?.arg(),
        saved.o.gpu(OP)?.arg(),
        delta.arg(),
        d,
    );
    let plan = Plan::new(gpu, call, d, 4, 1)?;
    let (list, count) = blocks(gpu, call, plan.block);
    let dq = gpu.output(q.shape())?;
    let (d_by_query, d_by_key) = (zeros_like(gpu, OP, call.by_query)?, zeros_like(gpu, OP, call.by_key)?);
    let unused = gpu.scratch(1)?;
    let arg = |t: &Option<Tensor>| match t {
        Some(t) => Ok::<_, Error>(t.gpu(OP)?.arg()),
        None => Ok(unused.arg()),
    };
    // SAFETY: the kernel compares rows and keys with the ends of their sequences before it reads or writes, and
    // `Attention` has checked the shapes.
    unsafe {
        d_query_kernel::launch_unchecked::<R>(
            gpu.client(),
            cubes(count * call.heads),
            CubeDim::new_1d(UNITS as u32),
            q.gpu(OP)?.arg(),
            k.gpu(OP)?.arg(),
            v.gpu(OP)?.arg(),
            d_o.gpu(OP)?.arg(),
            SavedRowsLaunch::new(saved.lse.gpu(OP)?.arg(), delta.arg()),
            terms(OP, call, q)?,
            list.arg(),
            dq.gpu(OP)?.arg(),
            arg(&d_by_query)?,
            arg(&d_by_key)?,
            mask(call.dropout),
            numbers(call, count * call.heads),
            plan,
        )
    };
    let plan = Plan::new(gpu, call, d, 4, 2)?;
    let (list, count) = blocks(gpu, call, plan.block);
    let (dk, dv) = (gpu.output(k.shape())?, gpu.output(v.shape())?);
    // SAFETY: as above.
    unsafe {
        d_key_value_kernel::launch_unchecked::<R>(
            gpu.client(),
            cubes(count * call.kv_heads),
            CubeDim::new_1d(UNITS as u32),
            q.gpu(OP)?.arg(),
            k.gpu(OP)?.arg(),
            v.gpu(OP)?.arg(),
            d_o.gpu(OP)?.arg(),
            SavedRowsLaunch::new(saved.lse.gpu(OP)?.arg(), delta.arg()),
            terms(OP, call, q)?,
            list.arg(),
            dk.gpu(OP)?.arg(),
            dv.gpu(OP)?.arg(),
            mask(call.dropout),
            numbers(call, count * call.kv_heads),
            plan,
        )
    };
    Ok(Gradients { dq, dk, dv, d_by_query, d_by_key })
}
