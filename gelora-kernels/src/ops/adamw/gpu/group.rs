//! Parameters, moments and gradients of a group, in one buffer each. The gradients are copied into their buffer, many
//! in one launch; the step itself is one launch for all.

use std::ops::Range;

use cubecl::prelude::*;

use super::{root, squares, step_all};
use crate::gpu::{Backend, ELEMENTWISE_UNITS, Gpu, GpuBuffer, elementwise};
use crate::ops::adamw::{AdamW, Factors, Member};
use crate::{Error, Result, Tensor};

const OP: &str = "adamw";

/// The most tensors that one launch copies. On most devices the limit on bound buffers is lower.
const COPIED: usize = 64;
/// The most cubes that copy one tensor.
const CUBES: usize = 64;

/// The members of one set of buffers.
#[derive(Debug)]
struct Flat {
    /// The members, as a range of the group's members.
    members: Range<usize>,
    /// Their factors.
    factors: Factors,
    parameters: GpuBuffer,
    first: GpuBuffer,
    second: GpuBuffer,
    gradients: GpuBuffer,
    /// The start of each member in the buffers, on the host and on the device.
    starts: Vec<usize>,
    uploaded: GpuBuffer,
    /// Parameter and moments of each member, as parts of the buffers.
    parts: Vec<[GpuBuffer; 3]>,
}

/// to[starts[first + y]..] = sources[y]. Cubes with the same CUBE_POS_Y copy one source.
#[cube(launch)]
fn gather_kernel(
    sources: &Sequence<Array<f32>>,
    to: &mut Array<f32>,
    starts: &Array<u32>,
    first: usize,
    #[comptime] count: usize,
) {
    let which = CUBE_POS_Y as usize;
    let start = starts[first + which] as usize;
    #[unroll]
    for k in 0..count {
        if which == k {
            let source = sources.index(k);
            let unit = CUBE_POS_X as usize * ELEMENTWISE_UNITS as usize + UNIT_POS as usize;
            for i in range_stepped(unit, source.len(), CUBE_COUNT_X as usize * ELEMENTWISE_UNITS as usize) {
                to[start + i] = source[i];
            }
        }
    }
}

#[cube(launch)]
fn zero_kernel(to: &mut Array<f32>) {
    if ABSOLUTE_POS < to.len() {
        to[ABSOLUTE_POS] = 0.0f32;
    }
}

/// The buffers of a group, in as few sets as the device allows.
#[derive(Debug, Default)]
pub(crate) struct FlatGroup {
    flats: Vec<Flat>,
}

impl FlatGroup {
    /// One step of all members; see [`Group::step`](crate::ops::adamw::Group::step), which checks the arguments.
    pub(crate) fn step<R: Backend>(
        &mut self,
        gpu: &Gpu<R>,
        settings: &AdamW,
        t: u64,
        max_norm: f32,
        members: &mut [Member<'_>],
    ) -> Result<Tensor> {
        let fit = |flats: &[Flat]| {
            flats.last().is_some_and(|flat| flat.members.end == members.len())
                && flats.iter().all(|flat| flat.holds(&members[flat.members.clone()]))
        };
        if !fit(&self.flats) {
            let flats = layout(gpu, members).into_iter().map(|range| Flat::new(gpu, range, members));
            self.flats = flats.collect::<Result<_>>()?;
        }
        for flat in &self.flats {
            let gradients: Vec<&GpuBuffer> =
                members[flat.members.clone()].iter().map(|member| member.gradient.gpu(OP)).collect::<Result<_>>()?;
            flat.gather(gpu, &gradients, &flat.gradients);
        }
        let all: Vec<&GpuBuffer> = self.flats.iter().map(|flat| &flat.gradients).collect();
        let norm = root(gpu, &squares(gpu, &all)?)?;
        for flat in &self.flats {
            let buffers = [&flat.parameters, &flat.first, &flat.second, &flat.gradients, norm.gpu(OP)?];
            step_all(gpu, &settings.scaled(flat.factors), t, max_norm, buffers);
        }
        Ok(norm)
    }
}

/// The distance of tensors of this length in a buffer: a multiple of the device's alignment, so that a part can be
/// bound on its own.
fn aligned<R: Backend>(gpu: &Gpu<R>, len: usize) -> usize {
    len.next_multiple_of((gpu.client().properties().memory.alignment as usize).div_ceil(4).max(64))
}

/// Ranges of members with the same factors, as few as the largest buffer of the device allows.
fn layout<R: Backend>(gpu: &Gpu<R>, members: &[Member<'_>]) -> Vec<Range<usize>> {
    let (mut ranges, mut len) = (Vec::new(), 0);
    ranges.push(0..0);
    for (index, member) in members.iter().enumerate() {
        let more = aligned(gpu, member.gradient.len());
        let other = index > 0 && members[index - 1].factors != member.factors;
        if len > 0 && (other || len + more > gpu.max_scratch()) {
            ranges.push(index..index);
            len = 0;
        }
        len += more;
        if let Some(last) = ranges.last_mut() {
            last.end = index + 1;
        }
    }
    ranges
}

impl Flat {
    /// Moves the parameters and moments of the members in `range` into new buffers.
    fn new<R: Backend>(gpu: &Gpu<R>, range: Range<usize>, members: &mut [Member<'_>]) -> Result<Self> {
        let members = &mut members[range.clone()];
        let (mut starts, mut len) = (Vec::with_capacity(members.len()), 0);
        for member in &*members {
            starts.push(len);
            len += aligned(gpu, member.gradient.len());
        }
        let zeros = || {
            let buffer = gpu.scratch(len)?;
            zero_kernel::launch::<R>(gpu.client(), elementwise(len), CubeDim::new_1d(ELEMENTWISE_UNITS), buffer.arg());
            Ok::<_, Error>(buffer)
        };
        let mut flat = Self {
            members: range,
            factors: members.first().map_or_else(Factors::default, |member| member.factors),
            parameters: zeros()?,
            first: zeros()?,
            second: zeros()?,
            gradients: zeros()?,
            uploaded: gpu.upload_indices(&starts),
            starts,
            parts: Vec::with_capacity(members.len()),
        };
        let buffers = [&flat.parameters, &flat.first, &flat.second];
        for (which, buffer) in buffers.into_iter().enumerate() {
            let old: Vec<&GpuBuffer> =
                members.iter().map(|member| tensors(member)[which].gpu(OP)).collect::<Result<_>>()?;
            flat.gather(gpu, &old, buffer);
        }
        for (member, start) in members.iter_mut().zip(&flat.starts) {
            let len = member.gradient.len();
            let parts = buffers.map(|buffer| buffer.part(*start, len));
            let Member { parameter, moments, .. } = member;
            for (tensor, part) in [&mut **parameter, &mut moments.m, &mut moments.v].into_iter().zip(&parts) {
                *tensor = Tensor::from_gpu(tensor.shape().to_vec(), R::device(gpu.clone()), part.clone());
            }
            flat.parts.push(parts);
        }
        Ok(flat)
    }

    /// Whether the tensors of these members are the parts of the buffers, without clones.
    fn holds(&self, members: &[Member<'_>]) -> bool {
        members.len() == self.parts.len()
            && members.iter().zip(&self.parts).all(|(member, parts)| {
                if member.factors != self.factors {
                    return false;
                }
                tensors(member).into_iter().zip(parts).all(|(tensor, part)| {
                    tensor.gpu(OP).is_ok_and(|buffer| buffer.len() == part.len() && buffer.is_only_other(part))
                })
            })
    }

    /// Copies the source of each member to the member's place in `to`.
    fn gather<R: Backend>(&self, gpu: &Gpu<R>, sources: &[&GpuBuffer], to: &GpuBuffer) {
        let bound = gpu.client().properties().hardware.max_bindings as usize;
        let count = bound.saturating_sub(3).clamp(1, COPIED);
        for (chunk, sources) in sources.chunks(count).enumerate() {
            let longest = sources.iter().map(|source| source.len()).max().unwrap_or(1);
            let cubes = longest.div_ceil(ELEMENTWISE_UNITS as usize).min(CUBES);
            gather_kernel::launch::<R>(
                gpu.client(),
                CubeCount::Static(cubes as u32, sources.len() as u32, 1),
                CubeDim::new_1d(ELEMENTWISE_UNITS),
                sources.iter().map(|source| source.arg()).collect(),
                to.arg(),
                self.uploaded.arg(),
                chunk * count,
                sources.len(),
            );
        }
    }
}

/// The tensors that persist from step to step.
fn tensors<'m>(member: &'m Member<'_>) -> [&'m Tensor; 3] {
    [&*member.parameter, &member.moments.m, &member.moments.v]
}
