//! dQ by cubes that own queries, dK and dV by cubes that own keys and take the query heads of a group in order: two kernels
//! that recompute the scores, and no sum is shared between cubes.

use cubecl::prelude::*;

use super::*;
use crate::Tensor;
use crate::gpu::mask::mask;
use crate::gpu::math::exp;
use crate::gpu::{ELEMENTWISE_UNITS, cubes, elementwise};
use crate::ops::attention::{Gradients, Saved};

/// delta_i = dO_i . O_i of each row and head: sum_k P_ik dP_ik, also with dropout.
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

/// P, dropped P and dS of one pair of blocks into shared memory: (query row, key).
#[cube]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn gradients_of_scores(
    s: &Array<f32>,
    dp: &Array<f32>,
    lse: &Array<f32>,
    delta: &Array<f32>,
    bias: &Array<f32>,
    added: &ByDistance,
    dropped: &mut SharedMemory<f32>,
    ds: &mut SharedMemory<f32>,
    dropout: &Mask,
    row: usize,
    head: usize,
    first: usize,
    start: usize,
    end: usize,
    longest: usize,
    window: usize,
    scale: f32,
    #[comptime] want_dropped: bool,
    #[comptime] plan: Plan,
) {
    let n = comptime!(plan.unit_rows());
    let pitch = comptime!(plan.block + 1);
    #[unroll]
    for i in 0..n {
        let r = UNIT_POS as usize / comptime!(SIDE) + comptime!(i * SIDE);
        let mut row_lse = 0.0f32;
        let mut row_delta = 0.0f32;
        if row + r < end {
            row_lse = lse[(row + r) * plan.heads + head];
            row_delta = delta[(row + r) * plan.heads + head];
        }
        #[unroll]
        for j in 0..n {
            let c = UNIT_POS as usize % comptime!(SIDE) + comptime!(j * SIDE);
            let mut p = 0.0f32;
            let seen = row + r < end && sees(row + r, first + c, end, window, plan);
            if seen {
                let product = s[comptime!(i * n + j)] + by_distance(added, row + r, head, first + c, seen, plan);
                p = exp(scale * product + bias_of(bias, row + r, head, first + c, seen, plan) - row_lse);
            }
            let kept = kept(dropout, row + r, head, first - start + c, longest, plan);
            if comptime!(want_dropped) {
                dropped[r * pitch + c] = p * kept;
            }
            ds[r * pitch + c] = scale * p * (dp[comptime!(i * n + j)] * kept - row_delta);
        }
    }
}

/// Copies dS of one pair of blocks to where their scores read A, or B if it is by key.
#[cube]
#[allow(clippy::too_many_arguments)] // a kernel has no other way to take them
fn store_by_distance(
    ds: &SharedMemory<f32>,
    out: &mut Array<f32>,
    width: usize,
    #[comptime] of_key: bool,
    row: usize,
    first: usize,
    end: usize,
    head: usize,
    #[comptime] plan: Plan,
) {
    let block = comptime!(plan.block);
    for at in range_stepped(UNIT_POS as usize, comptime!(block * block), comptime!(UNITS)) {
        let r = row + at / block;
        let c = first + at % block;
        if r < end && c < end {
            let mut of = r;
            if comptime!(of_key) {
                of = c;
            }
            out[distance_at(of, r, head, c, width, plan)] = ds[at / block * comptime!(plan.block + 1) + at % block];
        }
    }
}

/// Scores that no row sees are not visited: their gradients stay 0.
#[cube(launch)]
fn zero_kernel(out: &mut Array<f32>) {
    if ABSOLUTE_POS < out.len() {
        out[ABSOLUTE_POS] = 0.0f32;
    }
}

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
    lse: &Array<f32>,
    delta: &Array<f32>,
    bias: &Array<f32>,
    added: &ByDistance,
    blocks: &Array<u32>,
    dq: &mut Array<f32>,
    d_by_query: &mut Array<f32>,
    d_by_key: &mut Array<f32>,
    dropout: &Mask,
    count: usize,
    longest: usize,
    window: usize,
    scale: f32,
    #[comptime] plan: Plan,
) {
    let mut queries = room(plan);
    let mut d_outputs = room(plan);
    let mut keys = room(plan);
    let mut values = room(plan);
    let mut ds = score_room(plan);
    let mut unused = SharedMemory::<f32>::new(1usize);
    if CUBE_POS < count {
        let at = CUBE_POS / comptime!(plan.heads);
        let head = CUBE_POS % comptime!(plan.heads);
        let row = blocks[5 * at] as usize;
        let start = blocks[5 * at + 1] as usize;
        let end = blocks[5 * at + 2] as usize;
        let kv_head = head / comptime!(plan.group);
        load(q, &mut queries, row, end, head, plan.heads, plan);
        load(d_o, &mut d_outputs, row, end, head, plan.heads, plan);
        let mut sums = zeros(comptime!(plan.unit_rows() * plan.unit_channels()));
        for first in range_stepped(first_key(row, start, window, plan), last_key(row, end, plan), comptime!(plan.block))
        {
            sync_cube();
            load(k, &mut keys, first, end, kv_head, comptime!(plan.kv_heads()), plan);
            load(v, &mut values, first, end, kv_head, comptime!(plan.kv_heads()), plan);
            sync_cube();
            let s = scores(&queries, &keys, plan);
            let dp = scores(&d_outputs, &values, plan);
            gradients_of_scores(
                &s,
                &dp,
                lse,
                delta,
                bias,
                added,
                &mut unused,
                &mut ds,
                dropout,
                row,
                head,
                first,
                start,
                end,
                longest,
                window,
                scale,
                false,
                plan,
            );
            sync_cube();
            if comptime!(plan.by_query) {
                store_by_distance(&ds, d_by_query, added.width, false, row, first, end, head, plan);
            }
            if comptime!(plan.by_key) {
                store_by_distance(&ds, d_by_key, added.width, true, row, first, end, head, plan);
            }
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
    lse: &Array<f32>,
    delta: &Array<f32>,
    bias: &Array<f32>,
    added: &ByDistance,
    blocks: &Array<u32>,
    dk: &mut Array<f32>,
    dv: &mut Array<f32>,
    dropout: &Mask,
    count: usize,
    longest: usize,
    window: usize,
    scale: f32,
    #[comptime] plan: Plan,
) {
    let kv_heads = comptime!(plan.kv_heads());
    let mut queries = room(plan);
    let mut d_outputs = room(plan);
    let mut keys = room(plan);
    let mut values = room(plan);
    let mut dropped = score_room(plan);
    let mut ds = score_room(plan);
    if CUBE_POS < count {
        let at = CUBE_POS / kv_heads;
        let kv_head = CUBE_POS % kv_heads;
        let first = blocks[5 * at] as usize;
        let start = blocks[5 * at + 1] as usize;
        let end = blocks[5 * at + 2] as usize;
        load(k, &mut keys, first, end, kv_head, kv_heads, plan);
        load(v, &mut values, first, end, kv_head, kv_heads, plan);
        let mut dk_sums = zeros(comptime!(plan.unit_rows() * plan.unit_channels()));
        let mut dv_sums = zeros(comptime!(plan.unit_rows() * plan.unit_channels()));
        // Rows before the first key see none of these keys.
        let mut from = start;
        if comptime!(plan.causal) {
            from = first;
        }
        // Nor do rows whose windows begin after the last key.
        let mut to = end;
        if comptime!(plan.windowed) {
            to = (first + comptime!(plan.block) + window).min(end);
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
                gradients_of_scores(
                    &s,
                    &dp,
                    lse,
                    delta,
                    bias,
                    added,
                    &mut dropped,
                    &mut ds,
                    dropout,
                    row,
                    head,
                    first,
                    start,
                    end,
                    longest,
                    window,
                    scale,
                    true,
                    plan,
                );
                sync_cube();
                accumulate(&mut dk_sums, &ds, &queries, true, plan);
                accumulate(&mut dv_sums, &dropped, &d_outputs, true, plan);
            }
        }
        store(&dk_sums, dk, first, end, kv_head, kv_heads, plan);
        store(&dv_sums, dv, first, end, kv_head, kv_heads, plan);
    }
}

pub fn backward<R: Backend>(
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
    // SAFETY: the kernel compares rows and keys with the ends of their sequences before it reads or writes, and `Attention` has checked
    // the shapes.
    unsafe {
        d_query_kernel::launch_unchecked::<R>(
            gpu.client(),
            cubes(count * call.heads),
            CubeDim::new_1d(UNITS as u32),
            q.gpu(OP)?.arg(),
            k.gpu(OP)?.arg(),
            v.gpu(OP)?.arg(),
            d_o.gpu(OP)?.arg(),
            saved.lse.gpu(OP)?.arg(),
            delta.arg(),
            bias(OP, call, q)?.arg(),
            distances(OP, call, q)?,
            list.arg(),
            dq.gpu(OP)?.arg(),
            arg(&d_by_query)?,
            arg(&d_by_key)?,
            mask(call.dropout),
            count * call.heads,
            call.sequences.longest(),
            call.window.unwrap_or(0),
            call.scale,
            plan,
        )
    };
    let plan = Plan::new(gpu, call, d, 4, 2)?;
    let (list, count) = blocks(gpu, call, plan.block);
    let (dk, dv) = (gpu.output(k.shape())?, gpu.output(v.shape())?);
    // SAFETY: the kernel compares rows and keys with the ends of their sequences before it reads or writes, and `Attention` has checked
    // the shapes.
    unsafe {
        d_key_value_kernel::launch_unchecked::<R>(
            gpu.client(),
            cubes(count * call.kv_heads),
            CubeDim::new_1d(UNITS as u32),
            q.gpu(OP)?.arg(),
            k.gpu(OP)?.arg(),
            v.gpu(OP)?.arg(),
            d_o.gpu(OP)?.arg(),
            saved.lse.gpu(OP)?.arg(),
            delta.arg(),
            bias(OP, call, q)?.arg(),
            distances(OP, call, q)?,
            list.arg(),
            dk.gpu(OP)?.arg(),
            dv.gpu(OP)?.arg(),
            mask(call.dropout),
            count * call.kv_heads,
            call.sequences.longest(),
            call.window.unwrap_or(0),
            call.scale,
            plan,
        )
    };
    Ok(Gradients { dq, dk, dv, d_by_query, d_by_key })
}
