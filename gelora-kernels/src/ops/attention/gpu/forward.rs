//! O and lse: a cube owns a block of queries, and corrects its sums whenever a row meets a larger score.

use cubecl::prelude::*;

use super::*;
use crate::Tensor;
use crate::gpu::cubes;
use crate::gpu::mask::mask;
use crate::gpu::math::exp;

#[cube(launch_unchecked)]
fn forward_kernel(
    q: &Array<f32>,
    k: &Array<f32>,
    v: &Array<f32>,
    bias: &Array<f32>,
    added: &ByDistance,
    blocks: &Array<u32>,
    o: &mut Array<f32>,
    lse: &mut Array<f32>,
    dropout: &Mask,
    count: usize,
    longest: usize,
    window: usize,
    scale: f32,
    #[comptime] plan: Plan,
) {
    let n = comptime!(plan.unit_rows());
    let channels = comptime!(plan.unit_channels());
    let pitch = comptime!(plan.block + 1);
    let unit_y = UNIT_POS as usize / comptime!(SIDE);
    let unit_x = UNIT_POS as usize % comptime!(SIDE);
    let mut queries = room(plan);
    let mut others = room(plan);
    let mut weights = score_room(plan);
    // Of each row: the largest score so far, and what sums so far are to be multiplied by.
    let mut peaks = SharedMemory::<f32>::new(comptime!(plan.block));
    let mut shrinks = SharedMemory::<f32>::new(comptime!(plan.block));
    if CUBE_POS < count {
        let at = CUBE_POS / comptime!(plan.heads);
        let head = CUBE_POS % comptime!(plan.heads);
        let row = blocks[5 * at] as usize;
        let end = blocks[5 * at + 2] as usize;
        let start = blocks[5 * at + 3] as usize;
        let key_end = blocks[5 * at + 4] as usize;
        let position = row + key_end - end;
        let kv_head = head / comptime!(plan.group);
        let own = UNIT_POS as usize; // the row whose softmax this unit computes, if there is one
        let mut denominator = 0.0f32;
        load(q, &mut queries, row, end, head, plan.heads, plan);
        if own < comptime!(plan.block) {
            peaks[own] = UNSEEN;
        }
        let mut sums = zeros(comptime!(n * channels));
        for first in range_stepped(
            first_key(position, start, window, plan),
            last_key(position, key_end, plan),
            comptime!(plan.block),
        ) {
            // Slower units may still read the values of the block before.
            sync_cube();
            load(k, &mut others, first, key_end, kv_head, comptime!(plan.kv_heads()), plan);
            sync_cube();
            let s = scores(&queries, &others, plan);
            #[unroll]
            for i in 0..n {
                #[unroll]
                for j in 0..n {
                    let r = unit_y + comptime!(i * SIDE);
                    let c = unit_x + comptime!(j * SIDE);
                    let seen = sees(position + r, first + c, key_end, window, plan);
                    // Rows beyond the last have no place in the biases.
                    let there = seen && row + r < end;
                    let product = s[comptime!(i * n + j)] + by_distance(added, row + r, head, first + c, there, plan);
                    let score = scale * product + bias_of(bias, position + r, head, first + c, there, plan);
                    let score = select(seen, score, UNSEEN);
                    weights[r * pitch + c] = score;
                }
            }
            sync_cube();
            load(v, &mut others, first, key_end, kv_head, comptime!(plan.kv_heads()), plan);
            if own < comptime!(plan.block) {
                let mut peak = peaks[own];
                for c in 0..comptime!(plan.block) {
                    let score = weights[own * pitch + c];
                    peak = select(score > peak, score, peak);
                }
                let shrink = exp(peaks[own] - peak);
                denominator *= shrink;
                for c in 0..comptime!(plan.block) {
                    let score = weights[own * pitch + c];
                    let p = select(score > UNSEEN, exp(score - peak), 0.0f32);
                    denominator += p;
                    weights[own * pitch + c] = p * kept(dropout, row + own, head, first - start + c, longest, plan);
                }
                shrinks[own] = shrink;
                peaks[own] = peak;
            }
            sync_cube();
            #[unroll]
            for i in 0..n {
                let shrink = shrinks[unit_y + comptime!(i * SIDE)];
                #[unroll]
                for c in 0..channels {
                    sums[comptime!(i * channels + c)] = sums[comptime!(i * channels + c)] * shrink;
                }
            }
            accumulate(&mut sums, &weights, &others, false, plan);
        }
        sync_cube();
        if own < comptime!(plan.block) {
            shrinks[own] = 1.0f32 / denominator;
            if row + own < end {
                lse[(row + own) * plan.heads + head] = peaks[own] + denominator.ln();
            }
        }
        sync_cube();
        #[unroll]
        for i in 0..n {
            let share = shrinks[unit_y + comptime!(i * SIDE)];
            #[unroll]
            for c in 0..channels {
                sums[comptime!(i * channels + c)] = sums[comptime!(i * channels + c)] * share;
            }
        }
        store(&sums, o, row, end, head, plan.heads, plan);
    }
}

/// (o, lse).
pub fn forward<R: Backend>(
    gpu: &Gpu<R>,
    call: &Attention<'_>,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "attention";
    let plan = Plan::new(gpu, call, q.cols() / call.heads, 2, 1)?;
    let (list, count) = blocks(gpu, call, plan.block);
    let (o, lse) = (gpu.output(q.shape())?, gpu.output([q.rows(), call.heads])?);
    // SAFETY: the kernel compares rows and keys with the ends of their sequences before it reads or writes, and `Attention` has checked
    // the shapes.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            gpu.client(),
            cubes(count * call.heads),
            CubeDim::new_1d(UNITS as u32),
            q.gpu(OP)?.arg(),
            k.gpu(OP)?.arg(),
            v.gpu(OP)?.arg(),
            bias(OP, call, q)?.arg(),
            distances(OP, call, q)?,
            list.arg(),
            o.gpu(OP)?.arg(),
            lse.gpu(OP)?.arg(),
            mask(call.dropout),
            count * call.heads,
            call.all_keys().longest(),
            call.window.unwrap_or(0),
            call.scale,
            plan,
        )
    };
    Ok((o, lse))
}
