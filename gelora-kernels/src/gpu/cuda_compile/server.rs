//! A CubeCL server without a device. Its memory holds nothing, and a launch compiles the kernel.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cubecl::ir::{
    DeviceProperties, ElemType, FloatKind, HardwareProperties, MemoryDeviceProperties, VectorSize, features::Plane,
};
use cubecl::prelude::{CubeCount, ExecutionMode};
use cubecl::server::{
    Binding, ComputeServer, CopyDescriptor, IoError, KernelArguments, ProfileError, ProfilingToken,
    ServerCommunication, ServerError, ServerUtilities,
};
use cubecl_common::backtrace::BackTrace;
use cubecl_common::bytes::Bytes;
use cubecl_common::device::{DeviceId, DeviceService, ServerUtilitiesHandle};
use cubecl_common::future::DynFut;
use cubecl_common::profile::{ProfileDuration, TimingMethod};
use cubecl_common::stream_id::StreamId;
use cubecl_cpp::cuda::arch::CudaArchitecture;
use cubecl_cpp::cuda::mma::CudaWmmaCompiler;
use cubecl_cpp::shared::{CompilationOptions, CppSupportedFeatures, register_mma_features, register_wmma_features};
use cubecl_cpp::{DialectWmmaCompiler, register_supported_types};
use cubecl_cuda::CudaCompiler;
use cubecl_runtime::allocator::ContiguousMemoryLayoutPolicy;
use cubecl_runtime::compiler::CubeTask;
use cubecl_runtime::id::KernelId;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::{ManagedMemoryHandle, MemoryAllocationMode, MemoryUsage};
use cubecl_runtime::storage::{BytesResource, BytesStorage, ManagedResource};

use super::{ARCHITECTURES, ORDERS, Resources, Variant, nvrtc, outcomes};

/// Bytes of memory that the devices report.
const MEMORY: u64 = 80 << 30;

/// The server of one architecture.
#[derive(Debug)]
pub(crate) struct CompileServer {
    architecture: u32,
    options: CompilationOptions,
    utilities: Arc<ServerUtilities<Self>>,
    /// The kernels that were launched before.
    launched: HashSet<KernelId>,
    /// Machine code by hash of the source: instances may have the same.
    sources: HashMap<u64, Variant>,
}

impl CompileServer {
    /// Every variant of a kernel that its compiler gives.
    fn variants(
        &mut self,
        kernel: &<Self as ComputeServer>::Kernel,
        mode: ExecutionMode,
    ) -> Result<Vec<Variant>, String> {
        let (address, mut tried, mut variants) = (kernel.address_type(), HashSet::new(), Vec::new());
        for _ in 0..ORDERS.load(Ordering::Relaxed) {
            let compiled = kernel.compile(&mut Default::default(), &self.options, mode, address);
            let compiled = compiled.map_err(|problem| problem.to_string())?;
            let mut hasher = DefaultHasher::new();
            compiled.source.hash(&mut hasher);
            let source = hasher.finish();
            if tried.insert(source) {
                let shared = compiled.repr.map_or(0, |repr| repr.shared_memory_size() as u32);
                variants.push(self.variant(source, &compiled.source, shared)?);
            }
        }
        Ok(variants)
    }

    fn variant(&mut self, hash: u64, source: &str, shared: u32) -> Result<Variant, String> {
        if let Some(variant) = self.sources.get(&hash) {
            return Ok(variant.clone());
        }
        let nvrtc = nvrtc::shared().as_ref().map_err(Clone::clone)?;
        let (resources, binary) = nvrtc.compile(source, self.architecture)?;
        let most = self.utilities.properties.hardware.max_shared_memory_size as u32;
        if shared > most {
            return Err(format!("{shared} bytes of shared memory; the device has {most}"));
        }
        // CubeCL sets the size of shared memory at the launch, where ptxas does not see it.
        let resources = Resources { shared: shared.max(resources.shared), ..resources };
        let variant = Variant { resources, binary: binary.into() };
        self.sources.insert(hash, variant.clone());
        Ok(variant)
    }
}

impl DeviceService for CompileServer {
    fn init(id: DeviceId) -> Self {
        let architecture = ARCHITECTURES[usize::from(id.index_id).min(ARCHITECTURES.len() - 1)];
        let utilities =
            ServerUtilities::new(properties(architecture), Arc::default(), (), ContiguousMemoryLayoutPolicy::new(512));
        Self {
            architecture,
            options: options(architecture),
            utilities: Arc::new(utilities),
            launched: HashSet::new(),
            sources: HashMap::new(),
        }
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        Arc::clone(&self.utilities) as ServerUtilitiesHandle
    }
}

/// The properties that CubeCL's CUDA runtime reports for the architecture, as far as kernels here ask for them.
fn properties(architecture: u32) -> DeviceProperties {
    let hardware = HardwareProperties {
        load_width: 128,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: cubecl_cuda::CUDA_MAX_BINDINGS,
        max_shared_memory_size: if architecture >= 90 { 232_448 } else { 166_912 },
        max_cube_count: (i32::MAX as u32, u32::from(u16::MAX), u32::from(u16::MAX)),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: Some(if architecture >= 90 { 132 } else { 108 }),
        num_tensor_cores: Some(4),
        min_tensor_cores_dim: Some(8),
        num_cpu_cores: None,
        max_vector_size: VectorSize::MAX,
    };
    let memory = MemoryDeviceProperties { max_page_size: MEMORY / 4, alignment: 512 };
    let mut all = DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::System);
    register_supported_types(&mut all);
    let arch = CudaArchitecture { version: architecture };
    register_wmma_features(CudaWmmaCompiler::supported_wmma_combinations(&arch), &mut all);
    register_mma_features(CudaWmmaCompiler::supported_mma_combinations(&arch), &mut all);
    for kind in [FloatKind::F16, FloatKind::BF16] {
        all.features.matmul.ldmatrix.insert(ElemType::Float(kind).into());
    }
    all.features.copy_async = true;
    all.features.memory_reinterpret = true;
    all.features.alignment = true;
    all.features.plane.insert(Plane::Sync);
    all.features.plane.insert(Plane::Ops);
    all.features.plane.insert(Plane::NonUniformControlFlow);
    all
}

/// The compile options of CubeCL's CUDA runtime.
fn options(architecture: u32) -> CompilationOptions {
    let hopper = architecture >= 90;
    CompilationOptions {
        supports_features: CppSupportedFeatures {
            fast_math: true,
            fast_tanh: true,
            grid_constants: true,
            clusters: hopper,
            elect_sync: hopper,
            ..Default::default()
        },
        warp_size: 32,
        ..Default::default()
    }
}

/// The short name of a kernel, such as `attention::gpu::forward::forward_kernel`, from the full name of its type.
fn short_name(full: &str) -> String {
    let path = full.split('<').next().unwrap_or(full);
    let (module, _) = path.rsplit_once("::").unwrap_or((path, ""));
    let inside = module.strip_prefix("gelora_kernels::").unwrap_or(module);
    inside.strip_prefix("ops::").unwrap_or(inside).to_string()
}

/// The FNV-1a hash of a text, which is the same in every build.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl ServerCommunication for CompileServer {
    const SERVER_COMM_ENABLED: bool = false;
}

impl ComputeServer for CompileServer {
    type Kernel = Box<dyn CubeTask<CudaCompiler>>;
    type Info = ();
    type MemoryLayoutPolicy = ContiguousMemoryLayoutPolicy;
    type Storage = BytesStorage;

    fn initialize_memory(&mut self, _: ManagedMemoryHandle, _: u64, _: StreamId) {}

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities<Self>> {
        self.utilities.clone()
    }

    fn read(&mut self, all: Vec<CopyDescriptor>, _: StreamId) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        let zeros = |d: CopyDescriptor| {
            let end = d.handle.size - d.handle.offset_end.unwrap_or(0);
            Bytes::from_bytes_vec(vec![0; (end - d.handle.offset_start.unwrap_or(0)) as usize])
        };
        let bytes = all.into_iter().map(zeros).collect();
        Box::pin(async move { Ok(bytes) })
    }

    fn write(&mut self, _: Vec<(CopyDescriptor, Bytes)>, _: StreamId) {}

    fn sync(&mut self, _: StreamId) -> DynFut<Result<(), ServerError>> {
        Box::pin(async move { Ok(()) })
    }

    fn get_resource(&mut self, _: Binding, _: StreamId) -> Result<ManagedResource<BytesResource>, ServerError> {
        Err(IoError::UnsupportedIoOperation { backtrace: BackTrace::capture() }.into())
    }

    unsafe fn launch(
        &mut self,
        kernel: Self::Kernel,
        _: CubeCount,
        _: KernelArguments,
        mode: ExecutionMode,
        _: StreamId,
    ) {
        let mut id = kernel.id();
        id.mode(mode);
        let settings = id.stable_format();
        if !self.launched.insert(id) {
            return;
        }
        let (name, instance) = (short_name(kernel.name()), format!("{:012x}", fnv(&settings) >> 16));
        let variants = self.variants(&kernel, mode);
        outcomes().insert((name, self.architecture, instance), variants);
    }

    fn flush(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn memory_usage(&mut self, _: StreamId) -> Result<MemoryUsage, ServerError> {
        Ok(MemoryUsage { number_allocs: 0, bytes_in_use: 0, bytes_padding: 0, bytes_reserved: 0 })
    }

    fn memory_cleanup(&mut self, _: StreamId) {}

    fn start_profile(&mut self, _: StreamId) -> Result<ProfilingToken, ServerError> {
        Err(IoError::UnsupportedIoOperation { backtrace: BackTrace::capture() }.into())
    }

    fn end_profile(&mut self, _: StreamId, _: ProfilingToken) -> Result<ProfileDuration, ProfileError> {
        Err(ProfileError::NotRegistered { backtrace: BackTrace::capture() })
    }

    fn allocation_mode(&mut self, _: MemoryAllocationMode, _: StreamId) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_definition() {
        assert_eq!((fnv(""), fnv("a")), (0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c));
    }

    #[test]
    fn kernels_are_named_by_their_place() {
        let full = "gelora_kernels::ops::attention::gpu::forward::forward_kernel::ForwardKernel<f32>";
        assert_eq!(short_name(full), "attention::gpu::forward::forward_kernel");
        assert_eq!(short_name("gelora_kernels::gpu::copy_kernel::CopyKernel"), "gpu::copy_kernel");
    }
}
