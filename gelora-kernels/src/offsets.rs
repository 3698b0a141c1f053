//! Offsets of the sequences in an unpadded batch.

use crate::{Error, Result};

/// Lists on GPUs, by kind of device and block size; see [`Offsets::on_gpu`].
#[cfg(any(feature = "wgpu", feature = "cuda"))]
type OnGpu = std::sync::Mutex<Vec<((crate::DeviceKind, usize), crate::gpu::GpuBuffer)>>;

/// The rows at which the sequences of an unpadded batch begin: sequence `b` is the rows `starts[b]..starts[b + 1]`.
///
/// ```
/// let offsets = gelora_kernels::Offsets::from_lengths(&[3, 1, 2])?;
/// assert_eq!((offsets.sequences(), offsets.tokens(), offsets.longest()), (3, 6, 3));
/// assert_eq!(offsets.range(2), 4..6);
/// # Ok::<(), gelora_kernels::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Offsets {
    starts: Vec<usize>,
    /// Lists on GPUs, made on first use and shared by clones.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    on_gpu: std::sync::Arc<OnGpu>,
}

impl PartialEq for Offsets {
    fn eq(&self, other: &Self) -> bool {
        self.starts == other.starts
    }
}

impl Eq for Offsets {}

impl Offsets {
    /// The offsets of sequences of these lengths, stored one after the other.
    ///
    /// # Errors
    /// If there is no sequence, or a sequence is empty.
    pub fn from_lengths(lengths: &[usize]) -> Result<Self> {
        if lengths.is_empty() || lengths.contains(&0) {
            return Err(Error::Value {
                op: "offsets",
                message: format!(
                    "a batch needs at least one sequence and each at least one token, got lengths {lengths:?}"
                ),
            });
        }
        let mut starts = Vec::with_capacity(lengths.len() + 1);
        let mut start = 0;
        starts.push(start);
        for length in lengths {
            start += length;
            starts.push(start);
        }
        Ok(Self {
            starts,
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            on_gpu: Default::default(),
        })
    }

    /// A list on a kind of device that is derived from these offsets, uploaded on first use: the starts themselves if
    /// `block` is 0, else the list of blocks of `block` rows.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(crate) fn on_gpu(
        &self,
        kind: crate::DeviceKind,
        block: usize,
        upload: impl FnOnce() -> crate::gpu::GpuBuffer,
    ) -> crate::gpu::GpuBuffer {
        let mut lists = self.on_gpu.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, list)) = lists.iter().find(|(key, _)| *key == (kind, block)) {
            return list.clone();
        }
        let list = upload();
        lists.push(((kind, block), list.clone()));
        list
    }

    /// The starts as u32 on a GPU; see [`Offsets::starts`]. They are uploaded once for each batch.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(crate) fn starts_on_gpu<R: crate::gpu::Backend>(
        &self,
        gpu: &crate::gpu::Gpu<R>,
    ) -> Result<crate::gpu::GpuBuffer> {
        gpu.check_len(self.tokens())?;
        Ok(self.on_gpu(R::KIND, 0, || gpu.upload_indices(&self.starts)))
    }

    /// Number of sequences, B.
    pub fn sequences(&self) -> usize {
        self.starts.len() - 1
    }

    /// Number of tokens of all sequences, N.
    pub fn tokens(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// Number of tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        (0..self.sequences()).map(|b| self.range(b).len()).max().unwrap_or(0)
    }

    /// The rows of sequence `b`.
    ///
    /// # Panics
    /// If there is no sequence `b`.
    pub fn range(&self, b: usize) -> std::ops::Range<usize> {
        self.starts[b]..self.starts[b + 1]
    }

    /// The rows of every sequence, in order.
    pub fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.starts.windows(2).map(|w| w[0]..w[1])
    }

    /// The first row of every sequence, then the number of all rows: B + 1 values.
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }
}
