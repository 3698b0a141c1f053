//! The gradient of a step from those of its parts, which the processes share.
//!
//! Every part has gradients of its own, and they are added in the order of the parts, whoever computed them:
//!
//! ```text
//! g = ((g_0 + g_1) + g_2) + .. + g_{P-1}
//! ```
//!
//! What a process sends for a part is one vector: the gradients in the order of their names, the loss, and the number
//! of tokens. Its last value says whether the process is asked to stop.

use gelora_kernels::ops::add;
use gelora_kernels::{Device, Pending, Tensor};

use crate::distributed::{Processes, bytes_of, floats_of};
use crate::linear::accumulate;
use crate::{Error, Grads, Result};

/// The gradients and the loss of a part.
#[derive(Debug)]
pub(super) struct Part {
    pub grads: Grads,
    pub loss: Tensor,
    pub tokens: usize,
}

/// The parts of a step that a process computes, of `accumulate` in all.
#[derive(Clone, Debug)]
pub(super) struct Share {
    pub processes: Processes,
    pub accumulate: usize,
}

impl Share {
    /// Number of rows of a part, of a step of `rows` rows. The last part may have fewer.
    pub(super) fn size(&self, rows: usize) -> usize {
        rows.div_ceil(self.accumulate)
    }

    /// Whether this process computes the row at `position` of a step of `rows` rows.
    pub(super) fn has(&self, position: usize, rows: usize) -> bool {
        position / self.size(rows) % self.processes.world() == self.processes.rank()
    }
}

/// Names and shapes of the gradients, in the order in which they stand in a vector.
pub(super) type Layout = Vec<(String, Vec<usize>)>;

/// What all parts of a step add up to.
#[derive(Debug)]
pub(super) struct Sum {
    pub grads: Grads,
    /// The loss of each part.
    pub losses: Vec<Tensor>,
    pub tokens: usize,
    /// Whether a process is asked to stop.
    pub stops: bool,
}

/// Adds the gradients of another part to `sum`.
pub(super) fn add(sum: &mut Grads, part: Grads) -> Result<()> {
    part.into_iter().try_for_each(|(name, gradient)| accumulate(sum, name, gradient))
}

/// Gathers the parts of a step from all processes and adds them in order. `mine` are those of this process, of `count`
/// in all. `layout` is made at the first step.
pub(super) fn gathered(
    processes: &Processes,
    count: usize,
    mine: Vec<Part>,
    stops: bool,
    layout: &mut Option<Layout>,
    device: &Device,
) -> Result<Sum> {
    let layout = match layout {
        Some(layout) => layout,
        empty => empty.insert(common_layout(processes, mine.first())?),
    };
    let length = 2 + layout.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>();
    // One vector for each part; a process with fewer parts than others sends zeros that nobody reads.
    let (world, slots) = (processes.world(), count.div_ceil(processes.world()));
    let mut values = Vec::with_capacity(slots * length + 1);
    let tensors: Vec<&Tensor> = mine.iter().flat_map(|part| part.grads.values().chain([&part.loss])).collect();
    let mut read = if tensors.is_empty() { Vec::new() } else { Pending::read(&tensors)?.wait()? }.into_iter();
    for part in &mine {
        read.by_ref().take(part.grads.len() + 1).for_each(|tensor| values.extend(tensor));
        values.push(part.tokens as f32);
    }
    if values.len() != mine.len() * length {
        return Err(Error::Process("the gradients of a part are not those of the first one".into()));
    }
    values.resize(slots * length, 0.0);
    values.push(f32::from(u8::from(stops)));
    let sent = values.len() * size_of::<f32>();
    let all = processes.all_gather(bytes_of(&values))?;
    // Add the parts in order, on the device: part p is the vector p / W of process p mod W.
    let (mut sum, mut losses, mut tokens): (Option<Tensor>, _, _) = (None, Vec::with_capacity(count), 0);
    for part in 0..count {
        let start = part % world * sent + part / world * length * size_of::<f32>();
        let mut gradient = floats_of(&all[start..start + length * size_of::<f32>()]);
        tokens += gradient.pop().unwrap_or(0.0) as usize;
        let loss = gradient.pop().unwrap_or(f32::NAN);
        losses.push(Tensor::from_vec(vec![loss], [1])?.to_device(device)?);
        let gradient = Tensor::from_vec(gradient, [length - 2])?.to_device(device)?;
        match &mut sum {
            Some(sum) => add::accumulate(sum, &gradient)?,
            None => sum = Some(gradient),
        }
    }
    let sum = sum.map_or_else(|| Ok(Vec::new()), |sum| sum.to_vec())?;
    let (mut grads, mut rest) = (Grads::new(), &sum[..]);
    for (name, shape) in layout.iter() {
        let (values, after) = rest.split_at(shape.iter().product());
        grads.insert(name.clone(), Tensor::from_vec(values.to_vec(), shape.clone())?.to_device(device)?);
        rest = after;
    }
    let stops = all.chunks(sent).any(|of_process| floats_of(&of_process[sent - 4..]) != [0.0]);
    Ok(Sum { grads, losses, tokens, stops })
}

/// The layout of process 0, which always has a part. Every process that has one checks that it is the same.
fn common_layout(processes: &Processes, part: Option<&Part>) -> Result<Layout> {
    let own: Option<Layout> =
        part.map(|part| part.grads.iter().map(|(name, t)| (name.clone(), t.shape().to_vec())).collect());
    let problem = |e: serde_json::Error| Error::Process(format!("names of gradients: {e}"));
    let sent = serde_json::to_vec(&own.as_ref().unwrap_or(&Layout::new())).map_err(problem)?;
    let first: Layout = serde_json::from_slice(&processes.broadcast(sent)?).map_err(problem)?;
    match own {
        Some(own) if own != first => Err(Error::Process(format!(
            "process {} trains other parameters than process 0; expected the same options in all",
            processes.rank()
        ))),
        _ => Ok(first),
    }
}
