//! Files: reading and writing safetensors, and atomic writes.
//!
//! Reading maps the file and checks its header against its length before it uses any value. A damaged or hostile file
//! is an error that names the file. Writing fills a temporary file in the same folder, which replaces the old file only
//! when all of it is on the disk. A full disk or a crash therefore leaves the previous file unchanged.

mod atomic;
mod foreign;
#[allow(unsafe_code)] // mapping files
mod tensors;

pub(crate) use atomic::read_bytes;
pub use atomic::{is_temporary, write_atomic, write_with};
pub use foreign::check_downloaded;
pub use tensors::{Entry, map, read_entries, read_tensors, write_tensors};
