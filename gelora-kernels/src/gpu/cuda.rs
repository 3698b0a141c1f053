//! The search for a CUDA device, and its opening.
//!
//! CubeCL panics without a driver, without NVRTC, and without CUDA's headers, because kernels are compiled at run time.
//! So each is looked for first. The driver's C interface gives the devices and their names.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::sync::OnceLock;

use cubecl::prelude::*;
use cubecl_cuda::{CudaDevice, CudaRuntime};
use libloading::Library;

use super::{Gpu, failure, inject, settings};
use crate::{DeviceInfo, DeviceKind, Error, Result};

/// The names that CubeCL's CUDA bindings try.
const NVRTC: [&str; 6] =
    ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];

/// A device as the driver describes it.
struct Found {
    name: String,
    memory: u64,
    /// Compute capability.
    major: c_int,
    minor: c_int,
}

impl Found {
    fn info(self, kind: DeviceKind) -> DeviceInfo {
        let Self { name, memory, major, minor } = self;
        let mut features = vec![format!("compute capability {major}.{minor}")];
        if major >= 7 {
            features.push("f16 tensor cores".into());
        }
        if major >= 8 {
            features.push("bf16 tensor cores".into());
        }
        DeviceInfo { kind, name, hardware_gpu: true, memory: Some(memory), features, status: Ok(()) }
    }
}

/// All devices; the error says what is missing.
fn devices() -> Result<Vec<Found>, String> {
    // The names that CubeCL's CUDA bindings try.
    let driver = first_library(&["libcuda.so", "libcuda.so.1", "nvcuda.dll"])
        .ok_or("no NVIDIA driver (libcuda.so not found); install the driver of an NVIDIA GPU")?;
    let found = ask_driver(&driver)?;
    if found.is_empty() {
        return Err("the NVIDIA driver sees no GPU".into());
    }
    first_library(&NVRTC).ok_or("no CUDA run-time compiler (libnvrtc.so not found); install the CUDA toolkit")?;
    match cubecl_cuda::install::cuda_path() {
        Some(path) if path.join("include").is_dir() => Ok(found),
        Some(path) => {
            Err(format!("no CUDA headers in {}/include; point CUDA_PATH to the CUDA toolkit", path.display()))
        }
        None => Err("no CUDA toolkit found (its headers are needed); point CUDA_PATH to it".into()),
    }
}

/// The first library that loads.
fn first_library(names: &[&str]) -> Option<Library> {
    // SAFETY: the vendor's libraries are made to be loaded at run time, and their initializers have no preconditions.
    names.iter().find_map(|name| unsafe { Library::new(*name) }.ok())
}

/// The devices that the driver lists.
fn ask_driver(driver: &Library) -> Result<Vec<Found>, String> {
    type Init = unsafe extern "C" fn(c_uint) -> c_int;
    type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    type Memory = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
    type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    const CAPABILITY: [c_int; 2] = [75, 76];
    let broken = |e: libloading::Error| format!("the NVIDIA driver is damaged: {e}");
    let checked =
        |what: &str, code: c_int| if code == 0 { Ok(()) } else { Err(format!("{what} failed with CUDA error {code}")) };
    // SAFETY: the symbols have these types in every CUDA driver (cuda.h), the pointers are to live locals of the sizes
    // given, and cuDeviceGetName writes a string that ends in NUL within them.
    unsafe {
        let init = driver.get::<Init>(b"cuInit\0").map_err(broken)?;
        let count_of = driver.get::<Count>(b"cuDeviceGetCount\0").map_err(broken)?;
        let get = driver.get::<Get>(b"cuDeviceGet\0").map_err(broken)?;
        let name_of = driver.get::<Name>(b"cuDeviceGetName\0").map_err(broken)?;
        let memory_of = driver.get::<Memory>(b"cuDeviceTotalMem_v2\0").map_err(broken)?;
        let attribute_of = driver.get::<Attribute>(b"cuDeviceGetAttribute\0").map_err(broken)?;
        checked("cuInit", init(0))?;
        let mut count = 0;
        checked("cuDeviceGetCount", count_of(&mut count))?;
        let mut all = Vec::new();
        for index in 0..count {
            let (mut device, mut name, mut memory, mut capability) = (0, [0 as c_char; 256], 0, [0; 2]);
            checked("cuDeviceGet", get(&mut device, index))?;
            checked("cuDeviceGetName", name_of(name.as_mut_ptr(), 255, device))?;
            checked("cuDeviceTotalMem", memory_of(&mut memory, device))?;
            for (value, attribute) in capability.iter_mut().zip(CAPABILITY) {
                checked("cuDeviceGetAttribute", attribute_of(value, attribute, device))?;
            }
            let name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
            all.push(Found { name, memory: memory as u64, major: capability[0], minor: capability[1] });
        }
        Ok(all)
    }
}

/// The first device, opened once.
pub(crate) fn open() -> Result<Gpu<CudaRuntime>> {
    static OPENED: OnceLock<Result<Gpu<CudaRuntime>>> = OnceLock::new();
    OPENED.get_or_init(open_first).clone()
}

fn open_first() -> Result<Gpu<CudaRuntime>> {
    let failed = |reason| Error::Device { kind: DeviceKind::Cuda, reason };
    let Found { name, major, minor, .. } = devices().map_err(failed)?.swap_remove(0);
    inject::prepare(DeviceKind::Cuda)?;
    failure::watch();
    settings::set(Some(&format!("cuda-sm_{major}{minor}-nvrtc-{}", nvrtc_version())));
    // The device may still refuse to open, for example if another process uses it exclusively.
    let client = failure::answer(|| CudaRuntime::client(&CudaDevice::new(0))).ok_or_else(|| {
        let why = failure::of(DeviceKind::Cuda).map(|failure| format!(": {failure}")).unwrap_or_default();
        failed(format!("{name} was found but could not be opened{why}"))
    })?;
    Ok(Gpu::new(client, name))
}

/// The version of the compiler of kernels, if it tells.
fn nvrtc_version() -> String {
    type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
    let Some(library) = first_library(&NVRTC) else { return String::new() };
    let (mut major, mut minor) = (0, 0);
    // SAFETY: nvrtcVersion has this type in every NVRTC (nvrtc.h), and the pointers are to live locals.
    unsafe {
        if let Ok(version) = library.get::<Version>(b"nvrtcVersion\0") {
            version(&mut major, &mut minor);
        }
    }
    format!("{major}.{minor}")
}

/// All devices. Without any, one entry says why.
pub(crate) fn list() -> Vec<DeviceInfo> {
    let kind = DeviceKind::Cuda;
    match devices() {
        Ok(all) => all.into_iter().map(|found| found.info(kind)).collect(),
        Err(reason) => vec![DeviceInfo::none(kind, reason)],
    }
}
