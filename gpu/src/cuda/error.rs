//! What goes wrong between this process and a GPU.

use super::nvml::Trouble;
use thiserror::Error;

/// Why CUDA did not do what it should.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CudaError {
    /// The driver's library is not on this machine.
    #[error("CUDA's driver is not on this machine: {reason}")]
    NoLibrary {
        /// What the loader says of it.
        reason: String,
    },
    /// The library lacks a function.
    #[error("{library} has no {symbol}: it is no driver of CUDA {wanted} or newer")]
    NoSymbol {
        /// The library.
        library: String,
        /// The function.
        symbol: &'static str,
        /// The oldest version with all that is used.
        wanted: Version,
    },
    /// The driver is older than what is used of it.
    #[error("the driver speaks CUDA {found}, and {wanted} is needed: install a newer driver")]
    TooOld {
        /// The driver's version.
        found: Version,
        /// The oldest that will do.
        wanted: Version,
    },
    /// There is no GPU of this number.
    #[error("there is no GPU {ordinal}: this process sees {count}")]
    NoSuchGpu {
        /// The number that was asked for, from 0.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// Too much is to be copied already.
    #[error("{bytes} bytes wait to be copied already")]
    Busy {
        /// How much may wait.
        bytes: u64,
    },
    /// A copy that was begun does not end.
    #[error("a copy has not ended for longer than any takes: the GPU hangs")]
    Stalled,
    /// The driver says that something befell the GPU by which what it holds is lost.
    #[error("{trouble}")]
    Befallen {
        /// What.
        trouble: Trouble,
    },
    /// Whoever copies has panicked.
    #[error("its thread has ended; why is in the log")]
    Ended,
    /// Bytes are not all of one allocation.
    #[error("{bytes} bytes at {offset} lie outside of an allocation of {length}")]
    Beyond {
        /// Where they were said to begin.
        offset: u64,
        /// How many they were said to be.
        bytes: u64,
        /// The size of the allocation.
        length: u64,
    },
    /// A call failed.
    #[error("{call}: {name} ({code}): {what}")]
    Failed {
        /// The driver's function.
        call: &'static str,
        /// `CUresult`.
        code: i32,
        /// The code's name.
        name: String,
        /// What the driver says of it.
        what: String,
    },
}

/// A version of CUDA.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
}

impl Version {
    /// Reads the number that the driver tells: 1000 times the first and 10 times the second.
    pub(super) fn of(told: i32) -> Version {
        let told = u32::try_from(told).unwrap_or(0);
        Version { major: told / 1000, minor: told % 1000 / 10 }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl CudaError {
    /// Says whether there is no such thing here, rather than that it does not work: no driver, no GPU, or not so many.
    pub fn is_absence(&self) -> bool {
        // `CUDA_ERROR_STUB_LIBRARY`, which machines have that build against CUDA, and `CUDA_ERROR_NO_DEVICE`.
        matches!(
            self,
            CudaError::NoLibrary { .. }
                | CudaError::NoSuchGpu { .. }
                | CudaError::Failed { code: 34 | 100, .. }
        )
    }

    /// Says whether the GPU had not that much memory, or the host none that can be pinned.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, CudaError::Failed { code: 2, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(Version::of(12080).to_string(), "12.8");
        assert!(Version::of(13000) > Version::of(12090));
        assert_eq!(Version::of(-1), Version { major: 0, minor: 0 });
    }
}
