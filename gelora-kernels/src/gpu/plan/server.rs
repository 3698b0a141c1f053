//! A CubeCL server whose pages do not exist.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cubecl::ir::features::{MmaConfig, Plane, TypeUsage};
use cubecl::ir::{
    AddressType, DeviceProperties, ElemType, FloatKind, HardwareProperties, IntKind, MemoryDeviceProperties,
    StorageType, UIntKind, VectorSize,
};
use cubecl::prelude::{CubeCount, ExecutionMode, KernelDefinition};
use cubecl::server::{
    Binding, ComputeServer, CopyDescriptor, IoError, KernelArguments, ProfileError, ProfilingToken,
    ServerCommunication, ServerError, ServerUtilities,
};
use cubecl::{CompilationError, Compiler, CubeTask, MemoryConfiguration};
use cubecl_common::backtrace::BackTrace;
use cubecl_common::bytes::Bytes;
use cubecl_common::device::{DeviceId, DeviceService, ServerUtilitiesHandle};
use cubecl_common::future::DynFut;
use cubecl_common::profile::{ProfileDuration, TimingMethod};
use cubecl_common::stream_id::StreamId;
use cubecl_runtime::allocator::ContiguousMemoryLayoutPolicy;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::{
    ManagedMemoryHandle, MemoryAllocationMode, MemoryManagement, MemoryManagementOptions, MemoryUsage,
};
use cubecl_runtime::storage::{ComputeStorage, ManagedResource, StorageHandle, StorageId, StorageUtilization};

use super::{Planned, planned};
use crate::DeviceKind;

/// The compiler of a runtime that launches nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct NoCompiler;

impl Compiler for NoCompiler {
    type Representation = String;
    type CompilationOptions = ();

    fn compile(
        &mut self,
        _: KernelDefinition,
        (): &(),
        _: ExecutionMode,
        _: StorageType,
    ) -> Result<String, CompilationError> {
        Err(CompilationError::Generic { reason: "a plan compiles nothing".into(), backtrace: BackTrace::capture() })
    }

    fn elem_size(&self, elem: ElemType) -> usize {
        elem.size()
    }

    fn extension(&self) -> &'static str {
        "txt"
    }
}

/// Pages that do not exist.
#[derive(Debug)]
pub(crate) struct Pages {
    alignment: usize,
    pages: Vec<(StorageId, u64)>,
    reserved: u64,
    most: Arc<AtomicU64>,
}

impl ComputeStorage for Pages {
    type Resource = ();

    fn alignment(&self) -> usize {
        self.alignment
    }

    fn get(&mut self, _: &StorageHandle) {}

    fn alloc(&mut self, size: u64) -> Result<StorageHandle, IoError> {
        let id = StorageId::new();
        self.pages.push((id, size));
        self.reserved += size;
        self.most.fetch_max(self.reserved, Ordering::Relaxed);
        Ok(StorageHandle::new(id, StorageUtilization { offset: 0, size }))
    }

    fn dealloc(&mut self, id: StorageId) {
        if let Some(at) = self.pages.iter().position(|(page, _)| *page == id) {
            self.reserved -= self.pages.swap_remove(at).1;
        }
    }

    fn flush(&mut self) {}
}

/// The server of one planned device.
#[derive(Debug)]
pub(crate) struct PlanServer {
    memory: MemoryManagement<Pages>,
    utilities: Arc<ServerUtilities<Self>>,
}

impl DeviceService for PlanServer {
    fn init(id: DeviceId) -> Self {
        // `open` enters a device before it asks for its client.
        let properties = planned()[usize::from(id.index_id)].properties.clone();
        let most = Arc::new(AtomicU64::new(0));
        let alignment = properties.memory.alignment as usize;
        let pages = Pages { alignment, pages: Vec::new(), reserved: 0, most: Arc::clone(&most) };
        let logger = Arc::new(ServerLogger::default());
        let memory = MemoryManagement::from_configuration(
            pages,
            &properties.memory,
            MemoryConfiguration::default(),
            Arc::clone(&logger),
            MemoryManagementOptions::new("Planned memory"),
        );
        let policy = ContiguousMemoryLayoutPolicy::new(alignment);
        Self { memory, utilities: Arc::new(ServerUtilities::new(properties, logger, Most(most), policy)) }
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        Arc::clone(&self.utilities) as ServerUtilitiesHandle
    }
}

/// The properties of a planned device: those of this machine's device of its kind, or else usual ones. For CUDA, those
/// are of an architecture with matrix units for bf16.
pub(super) fn properties(Planned { kind, memory }: Planned, machine: Option<DeviceProperties>) -> DeviceProperties {
    if let Some(mut properties) = machine {
        if kind == DeviceKind::Cuda {
            properties.memory.max_page_size = memory / 4;
        }
        return properties;
    }
    let is_cuda = kind == DeviceKind::Cuda;
    let hardware = HardwareProperties {
        load_width: 128,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: if is_cuda { 1024 } else { 8 },
        max_shared_memory_size: if is_cuda { 101_376 } else { 32_768 },
        max_cube_count: (u32::from(u16::MAX), u32::from(u16::MAX), u32::from(u16::MAX)),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: None,
        num_tensor_cores: None,
        min_tensor_cores_dim: None,
        num_cpu_cores: None,
        max_vector_size: VectorSize::MAX,
    };
    let page = match kind {
        DeviceKind::Cuda => memory / 4,
        DeviceKind::Wgpu => memory.min(2 << 30),
        _ => u64::MAX >> 16,
    };
    let memory = MemoryDeviceProperties { max_page_size: page, alignment: if is_cuda { 512 } else { 256 } };
    let mut all = DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::System);
    all.register_address_type(AddressType::U32);
    let mut types = vec![
        ElemType::UInt(UIntKind::U32),
        ElemType::Int(IntKind::I32),
        ElemType::Float(FloatKind::F32),
        ElemType::Bool,
        ElemType::Float(FloatKind::F16),
    ];
    if kind != DeviceKind::Wgpu {
        types.push(ElemType::Float(FloatKind::BF16));
    }
    for element in types {
        all.register_type_usage(element, TypeUsage::all());
    }
    all.features.plane.insert(Plane::Ops);
    if is_cuda {
        let storage = |kind| StorageType::Scalar(ElemType::Float(kind));
        let (factor, sum) = (storage(FloatKind::BF16), storage(FloatKind::F32));
        let config = |n| MmaConfig { a_type: factor, b_type: factor, cd_type: sum, m: 16, n, k: 16 };
        all.features.matmul.cmma.insert(config(16));
        all.features.matmul.mma.insert(config(8));
        all.features.matmul.ldmatrix.insert(factor);
        all.features.copy_async = true;
    }
    all
}

/// The most bytes of pages so far.
#[derive(Debug)]
pub(crate) struct Most(pub(super) Arc<AtomicU64>);

impl ServerCommunication for PlanServer {
    const SERVER_COMM_ENABLED: bool = false;
}

impl ComputeServer for PlanServer {
    type Kernel = Box<dyn CubeTask<NoCompiler>>;
    type Info = Most;
    type MemoryLayoutPolicy = ContiguousMemoryLayoutPolicy;
    type Storage = Pages;

    fn initialize_memory(&mut self, memory: ManagedMemoryHandle, size: u64, _: StreamId) {
        // As CubeCL's own servers do: the panic is kept as the failure of the device.
        let reserved = self.memory.reserve(size).unwrap_or_else(|e| std::panic::panic_any(format!("{e:?}")));
        if let Err(e) = self.memory.bind(reserved, memory, 0) {
            std::panic::panic_any(format!("{e:?}"));
        }
    }

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

    fn get_resource(&mut self, _: Binding, _: StreamId) -> Result<ManagedResource<()>, ServerError> {
        Err(IoError::UnsupportedIoOperation { backtrace: BackTrace::capture() }.into())
    }

    unsafe fn launch(&mut self, _: Self::Kernel, _: CubeCount, _: KernelArguments, _: ExecutionMode, _: StreamId) {}

    fn flush(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn memory_usage(&mut self, _: StreamId) -> Result<MemoryUsage, ServerError> {
        Ok(self.memory.memory_usage())
    }

    fn memory_cleanup(&mut self, _: StreamId) {
        self.memory.cleanup(true);
        let pages = self.memory.storage();
        pages.most.store(pages.reserved, Ordering::Relaxed);
    }

    fn start_profile(&mut self, _: StreamId) -> Result<ProfilingToken, ServerError> {
        Err(IoError::UnsupportedIoOperation { backtrace: BackTrace::capture() }.into())
    }

    fn end_profile(&mut self, _: StreamId, _: ProfilingToken) -> Result<ProfileDuration, ProfileError> {
        Err(ProfileError::NotRegistered { backtrace: BackTrace::capture() })
    }

    fn allocation_mode(&mut self, mode: MemoryAllocationMode, _: StreamId) {
        self.memory.mode(mode);
    }
}
