//! NCCL: found once, asked for its version and for ids.
#![allow(unsafe_code, reason = "calls NCCL")]

use crate::error::{NcclError, Version};
use crate::library::{RawId, Table, call};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// The library by the names that it has on Linux: NVIDIA's packages have the first alone.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// The environment variable with a path of the library, which is then the only one that is tried.
const PLACE: &str = "KVHIVE_NCCL";

/// NCCL, loaded.
pub struct Nccl {
    pub(crate) table: Table,
}

/// What all members of a communicator are told, so that they find each other. It leads to the process that made it, which must be one
/// of them and live until all have joined.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(pub [u8; UniqueId::BYTES]);

impl UniqueId {
    /// Its size in bytes.
    pub const BYTES: usize = 128;
}

impl std::fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UniqueId(..)")
    }
}

impl Nccl {
    /// Returns this machine's NCCL: that of `KVHIVE_NCCL`, else what the loader knows. It is looked for once; what is found then stands for as
    /// long as the process runs.
    ///
    /// # Errors
    /// Why there is none to use.
    pub fn find() -> Result<Arc<Nccl>, NcclError> {
        static FOUND: OnceLock<Result<Arc<Nccl>, NcclError>> = OnceLock::new();
        FOUND.get_or_init(|| Nccl::look(std::env::var_os(PLACE))).clone()
    }

    fn look(place: Option<OsString>) -> Result<Arc<Nccl>, NcclError> {
        if let Some(place) = place {
            return Nccl::load(Path::new(&place));
        }
        let mut first = None;
        for name in NAMES {
            match Nccl::load(Path::new(name)) {
                Err(error @ NcclError::NoLibrary { .. }) => first = first.or(Some(error)),
                found => return found,
            }
        }
        Err(first.expect("at least one name was tried"))
    }

    /// Loads the library from a file, or by a name that the loader knows.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn load(library: &Path) -> Result<Arc<Nccl>, NcclError> {
        let table = Table::load(<OsStr as AsRef<OsStr>>::as_ref(library.as_os_str()))?;
        Ok(Arc::new(Nccl { table }))
    }

    /// Returns the library's version.
    pub fn version(&self) -> Version {
        self.table.version
    }

    /// Makes an id, by which others find this process.
    ///
    /// # Errors
    /// When there is no network interface that NCCL may use.
    pub fn unique_id(&self) -> Result<UniqueId, NcclError> {
        let mut id = RawId([0; UniqueId::BYTES]);
        // SAFETY: the function writes one id.
        unsafe { call!(&self.table, ncclGetUniqueId(&raw mut id)) }?;
        Ok(UniqueId(id.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_named_is_the_only_one() {
        let nowhere = Nccl::look(Some("/nowhere/libnccl.so.2".into())).err().expect("it is not there");
        assert!(nowhere.is_absence(), "{nowhere}");
        assert!(nowhere.to_string().contains("/nowhere/libnccl.so.2"), "{nowhere}");
    }
}
