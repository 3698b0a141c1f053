//! Files: safetensors in and out, and writing that never leaves half a file.
//!
//! Reading maps the file and checks its header against its length before anything is taken from it; a damaged or hostile
//! file is an error that names it. Writing goes to a temporary file in the same folder, which replaces the old file only
//! when all of it is on the disk: a full disk or a crash leaves the previous file as it was.

mod atomic;
mod foreign;
mod tensors;

pub(crate) use atomic::read_bytes;
pub use atomic::{is_temporary, write_atomic, write_with};
pub use foreign::check_downloaded;
pub use tensors::{Entry, map, read_entries, read_tensors, write_tensors};
