//! What goes wrong between this process and NCCL.

use thiserror::Error;

/// Why NCCL did not do what it should.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum NcclError {
    /// The library is not on this machine, or not where it was said to be.
    #[error("NCCL is not on this machine: {reason}")]
    NoLibrary {
        /// What the loader says of it.
        reason: String,
    },
    /// The library lacks a function.
    #[error("{library} has no {symbol}: it is no NCCL {wanted} or newer")]
    NoSymbol {
        /// The library.
        library: String,
        /// The function.
        symbol: &'static str,
        /// The oldest version with all that is used.
        wanted: Version,
    },
    /// The library is older than what is used of it.
    #[error("this is NCCL {found}, and {wanted} is needed: install a newer one")]
    TooOld {
        /// The library's version.
        found: Version,
        /// The oldest that will do.
        wanted: Version,
    },
    /// A call failed, or a communicator has.
    #[error("{call}: {what} ({code}){}{last}", if last.is_empty() { "" } else { ": " })]
    Failed {
        /// NCCL's function.
        call: &'static str,
        /// Its result.
        code: Code,
        /// What NCCL says of that result.
        what: String,
        /// What NCCL says of its last error, if anything.
        last: String,
    },
}

impl NcclError {
    /// Says whether there is no such thing here, rather than that it does not work.
    pub fn is_absence(&self) -> bool {
        matches!(self, NcclError::NoLibrary { .. })
    }

    /// Returns the result that NCCL gave, if it was called at all.
    pub fn code(&self) -> Option<Code> {
        match self {
            NcclError::Failed { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// `ncclResult_t`, but for those that are no errors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Code {
    /// CUDA failed.
    #[error("unhandled CUDA error")]
    Cuda,
    /// The system failed: a socket, memory, a file.
    #[error("system error")]
    System,
    /// NCCL failed.
    #[error("internal error")]
    Internal,
    /// An argument was wrong.
    #[error("invalid argument")]
    Argument,
    /// Calls were made in an order, or together, as they may not be.
    #[error("invalid usage")]
    Usage,
    /// The other end has gone, or its network.
    #[error("remote error")]
    Remote,
    /// A code that a newer library gives.
    #[error("code {0}")]
    Other(i32),
}

impl Code {
    pub(crate) fn of(told: i32) -> Code {
        match told {
            1 => Code::Cuda,
            2 => Code::System,
            3 => Code::Internal,
            4 => Code::Argument,
            5 => Code::Usage,
            6 => Code::Remote,
            other => Code::Other(other),
        }
    }
}

/// A version of NCCL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
    /// The third.
    pub patch: u32,
}

impl Version {
    /// Reads the number that the library tells: up to 2.8 it is 1000 times the first number, since then 10,000 times.
    pub(crate) fn of(told: i32) -> Version {
        let told = u32::try_from(told).unwrap_or(0);
        let thousands = if told < 10_000 { 1000 } else { 10_000 };
        Version { major: told / thousands, minor: told % thousands / 100, patch: told % 100 }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(Version::of(22_809).to_string(), "2.28.9");
        assert_eq!(Version::of(2_804).to_string(), "2.8.4");
        assert!(Version::of(22_809) > Version::of(21_903));
        assert_eq!(Version::of(-1), Version { major: 0, minor: 0, patch: 0 });
    }

    #[test]
    fn an_error_says_which_call_and_what_the_library_adds() {
        let failed = |last: &str| NcclError::Failed {
            call: "ncclSend",
            code: Code::Remote,
            what: "remote process exited".to_owned(),
            last: last.to_owned(),
        };
        assert_eq!(failed("").to_string(), "ncclSend: remote process exited (remote error)");
        assert_eq!(failed("x").to_string(), "ncclSend: remote process exited (remote error): x");
        assert_eq!(failed("").code(), Some(Code::Remote));
    }
}
