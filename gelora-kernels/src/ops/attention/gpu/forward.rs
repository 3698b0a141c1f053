//! O and lse. A cube owns a block of queries and goes over the keys once, with an online softmax: it rescales its sums
//! whenever a row meets a larger score.

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
    terms: &Terms,
    blocks: &Array<u32>,
    o: &mut Array<f32>,
    lse: &mut Array<f32>,
    dropout: &Mask,
    call: &Numbers,
    #[comptime] plan: Plan,
) {
    let (longest, window, scale) = (call.longest, call.window, call.scale);
    let n = comptime!(plan.unit_rows());
    let channels = comptime!(plan.unit_channels());
    let pitch = comptime!(plan.block + 1);
    let unit_y = UNIT_POS as usize / comptime!(SIDE);
    let unit_x = UNIT_POS as usize % comptime!(SIDE);
    let mut queries = row_block(plan);
    let mut others = row_block(plan);
    let mut weights = score_block(plan);
    // For each row: the largest score so far, and the factor that rescales the sums so far.
    let mut peaks = SharedMemory::<f32>::new(comptime!(plan.block));
    let mut shrinks = SharedMemory::<f32>::new(comptime!(plan.block));
    if CUBE_POS < call.count {
        let block = CUBE_POS / comptime!(plan.heads);
        let head = CUBE_POS % comptime!(plan.heads);
        let row = blocks[5 * block] as usize;
        let end = blocks[5 * block + 2] as usize;
        let start = blocks[5 * block + 3] as usize;
        let key_end = blocks[5 * block + 4] as usize;
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
            // The keys of the block. Slower units may still read the values of the block before.
            sync_cube();
            load(k, &mut others, first, key_end, kv_head, comptime!(plan.kv_heads()), plan);
            sync_cube();
            // S = scale Q K^T and the added terms, into `weights`.
            let s = scores(&queries, &others, plan);
            #[unroll]
            for i in 0..n {
                #[unroll]
                for j in 0..n {
                    let r = unit_y + comptime!(i * SIDE);
                    let c = unit_x + comptime!(j * SIDE);
                    let seen = sees(position + r, first + c, key_end, window, plan);
                    // Rows beyond the last have no added terms.
                    let has_terms = seen && row + r < end;
                    let product =
                        s[comptime!(i * n + j)] + by_distance(terms, row + r, head, first + c, has_terms, plan);
                    let score = scale * product + bias_of(terms, position + r, head, first + c, has_terms, plan);
                    let score = select(seen, score, UNSEEN);
                    weights[r * pitch + c] = score;
                }
            }
            sync_cube();
            // The values of the block, and meanwhile the softmax of each row: the peak, P = exp(S - peak), and the
            // denominator.
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
                // The sums so far shrink to the new peak; then O += P V.
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
            // O is divided by the denominator, and lse = peak + ln denominator.
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
pub(crate) fn forward<R: Backend>(
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
    // SAFETY: the kernel compares rows and keys with the ends of their sequences before it reads or writes, and
    // `Attention` has checked the shapes.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            gpu.client(),
            cubes(count * call.heads),
            CubeDim::new_1d(UNITS as u32),
            q.gpu(OP)?.arg(),
            k.gpu(OP)?.arg(),
            v.gpu(OP)?.arg(),
            terms(OP, call, q)?,
            list.arg(),
            o.gpu(OP)?.arg(),
            lse.gpu(OP)?.arg(),
            mask(call.dropout),
            numbers(call, count * call.heads),
            plan,
        )
    };
    Ok((o, lse))
}
