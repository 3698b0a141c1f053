//! NVRTC, NVIDIA's run-time compiler, through its C interface.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use libloading::Library;

use super::Resources;

/// The variable with a folder that has lib/libnvrtc.so and include/. It is searched before the usual places.
const FOLDER: &str = "GELORA_NVRTC";

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;

/// The loaded compiler.
#[derive(Debug)]
pub(crate) struct Nvrtc {
    library: Library,
    /// Stays loaded, because the compiler loads it by its bare name.
    _builtins: Option<Library>,
    include: PathBuf,
}

/// The compiler of all compiling devices; the error says why there is none.
pub(crate) fn shared() -> &'static Result<Nvrtc, String> {
    static SHARED: OnceLock<Result<Nvrtc, String>> = OnceLock::new();
    SHARED.get_or_init(Nvrtc::find)
}

impl Nvrtc {
    fn find() -> Result<Self, String> {
        let named = [FOLDER, "CUDA_PATH"].into_iter().filter_map(|name| std::env::var_os(name).map(PathBuf::from));
        let folders: Vec<PathBuf> = named.chain(["/usr/local/cuda".into(), "/opt/cuda".into()]).collect();
        for folder in &folders {
            let Some(library) = library_in(folder, "libnvrtc.so") else { continue };
            let include = folder.join("include");
            if !include.join("cuda_fp16.h").is_file() {
                return Err(format!("no CUDA headers in {}", include.display()));
            }
            // SAFETY: the vendor's libraries are made to be loaded at run time, and their initializers have no
            // preconditions.
            let builtins = library_in(folder, "libnvrtc-builtins.so").and_then(|p| unsafe { Library::new(p) }.ok());
            // SAFETY: as above.
            let library = unsafe { Library::new(&library) }.map_err(|e| format!("{}: {e}", library.display()))?;
            return Ok(Self { library, _builtins: builtins, include });
        }
        Err(format!(
            "no CUDA run-time compiler (lib/libnvrtc.so) in {}; point {FOLDER} to a folder that has it, such as \
             nvidia/cu13 of the Python packages nvidia-cuda-nvrtc, nvidia-cuda-runtime, nvidia-cuda-crt and \
             nvidia-cuda-cccl",
            folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ")
        ))
    }

    /// Compiles CUDA C++ for an architecture, to machine code in a file of the linker (cubin).
    ///
    /// # Errors
    /// The compiler's message.
    pub(crate) fn compile(&self, source: &str, architecture: u32) -> Result<(Resources, Vec<u8>), String> {
        // As CubeCL compiles: from 9.0 on with the architecture-specific features.
        let suffix = if architecture >= 90 { "a" } else { "" };
        let options = [
            format!("--gpu-architecture=sm_{architecture}{suffix}"),
            format!("--include-path={}", self.include.display()),
            format!("--include-path={}", self.include.join("cccl").display()),
            "--ptxas-options=-v".into(),
        ];
        let strings = |e: std::ffi::NulError| e.to_string();
        let options = options.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>().map_err(strings)?;
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let source = CString::new(source).map_err(strings)?;
        let missing = |e: libloading::Error| format!("the CUDA run-time compiler is damaged: {e}");
        // SAFETY: the symbols have these types in every NVRTC (nvrtc.h); strings end in NUL and live through the calls,
        // and the log is read into a buffer of the size that NVRTC gives.
        let (code, log, binary) = unsafe {
            let create = self.library.get::<Create>(b"nvrtcCreateProgram\0").map_err(missing)?;
            let compile = self.library.get::<Compile>(b"nvrtcCompileProgram\0").map_err(missing)?;
            let log_size = self.library.get::<Size>(b"nvrtcGetProgramLogSize\0").map_err(missing)?;
            let get_log = self.library.get::<Text>(b"nvrtcGetProgramLog\0").map_err(missing)?;
            let binary_size = self.library.get::<Size>(b"nvrtcGetCUBINSize\0").map_err(missing)?;
            let get_binary = self.library.get::<Text>(b"nvrtcGetCUBIN\0").map_err(missing)?;
            let destroy = self.library.get::<Destroy>(b"nvrtcDestroyProgram\0").map_err(missing)?;
            let mut program: Program = null_mut();
            if create(&mut program, source.as_ptr(), null(), 0, null(), null()) != 0 {
                return Err("NVRTC took no source".into());
            }
            let code = compile(program, pointers.len() as c_int, pointers.as_ptr());
            let mut size = 0;
            log_size(program, &mut size);
            let mut log = vec![0 as c_char; size.max(1)];
            if size > 0 {
                get_log(program, log.as_mut_ptr());
            }
            let mut binary_bytes = 0;
            if code == 0 {
                binary_size(program, &mut binary_bytes);
            }
            let mut binary = vec![0_u8; binary_bytes];
            if binary_bytes > 0 {
                get_binary(program, binary.as_mut_ptr().cast());
            }
            destroy(&mut program);
            (code, CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned(), binary)
        };
        if code != 0 {
            return Err(first_error(&log));
        }
        let resources = resources(&log);
        let resources = resources.ok_or_else(|| format!("ptxas did not say what the kernel takes: {}", log.trim()))?;
        Ok((resources, binary))
    }
}

/// The first file in lib or lib64 whose name begins with `name`.
fn library_in(folder: &Path, name: &str) -> Option<PathBuf> {
    let files = ["lib", "lib64"].into_iter().filter_map(|lib| std::fs::read_dir(folder.join(lib)).ok()).flatten();
    let mut found: Vec<PathBuf> = files
        .flatten()
        .map(|file| file.path())
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(name)))
        .collect();
    found.sort();
    found.into_iter().next()
}

/// The first error in a log.
fn first_error(log: &str) -> String {
    let line = log.lines().find(|line| line.contains("error")).or_else(|| log.lines().next());
    line.unwrap_or("NVRTC failed without a word").trim().to_string()
}

/// The resources in ptxas's lines, such as `Used 10 registers, used 1 barriers, 256 bytes smem` and `0 bytes spill
/// stores`.
fn resources(log: &str) -> Option<Resources> {
    let before = |what: &str| -> Option<u32> {
        let (head, _) = log.split_once(what)?;
        head.split_whitespace().next_back()?.trim_end_matches(',').parse().ok()
    };
    Some(Resources {
        registers: before(" registers")?,
        shared: before(" bytes smem").unwrap_or(0),
        spills: before(" bytes spill stores").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_ptxas() {
        let log = "ptxas info    : Function properties for k\n\
            ptxas         .     8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n\
            ptxas info    : Used 10 registers, used 1 barriers, 256 bytes smem\n";
        assert_eq!(resources(log), Some(Resources { registers: 10, shared: 256, spills: 4 }));
        assert_eq!(resources("nothing"), None);
    }

    #[test]
    #[allow(clippy::print_stdout)] // that nothing was compiled must be seen
    fn what_is_wrong_is_an_error_and_what_is_right_takes_registers() {
        let nvrtc = match shared() {
            Ok(nvrtc) => nvrtc,
            Err(why) => return println!("skipped: {why}"),
        };
        let kernel = |body: &str| format!("extern \"C\" __global__ void k(float* x) {{ {body} }}");
        for architecture in super::super::ARCHITECTURES {
            let (resources, binary) = nvrtc.compile(&kernel("x[threadIdx.x] += 1.0f;"), architecture).unwrap();
            assert!(resources.registers > 0 && binary.starts_with(b"\x7fELF"));
            let problem = nvrtc.compile(&kernel("y[0] = 1.0f;"), architecture).unwrap_err();
            assert!(problem.contains("\"y\" is undefined"), "{problem}");
        }
    }
}
