//! The library: loaded once, every function of it that is used looked up at once.
#![allow(unsafe_code, reason = "loads a shared library and names the types of its functions")]
#![allow(non_snake_case, reason = "the functions have NCCL's own names")]

use crate::error::{Code, NcclError, Version};
use libloading::Library;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};

/// The oldest version with all that is used here. Before 2.19.1 an abort could hang where some ranks alone aborted.
pub(crate) const OLDEST: Version = Version { major: 2, minor: 19, patch: 3 };

/// `ncclSuccess` and `ncclInProgress`.
pub(crate) const SUCCESS: c_int = 0;
pub(crate) const IN_PROGRESS: c_int = 7;

/// `ncclComm_t` and `cudaStream_t`: what the libraries alone look into.
pub(crate) type Handle = *mut c_void;

/// `ncclUniqueId`, which is passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawId(pub(crate) [u8; 128]);

/// `ncclConfig_t` as of 2.28. An older library reads as much of it as it knows, a newer one has defaults for what came later.
#[repr(C)]
pub(crate) struct RawConfig {
    pub(crate) size: usize,
    pub(crate) magic: u32,
    pub(crate) version: u32,
    pub(crate) blocking: c_int,
    pub(crate) cga_cluster_size: c_int,
    pub(crate) min_ctas: c_int,
    pub(crate) max_ctas: c_int,
    pub(crate) net_name: *const c_char,
    pub(crate) split_share: c_int,
    pub(crate) traffic_class: c_int,
    pub(crate) comm_name: *const c_char,
    pub(crate) collnet_enable: c_int,
    pub(crate) cta_policy: c_int,
    pub(crate) shrink_share: c_int,
    pub(crate) nvls_ctas: c_int,
    pub(crate) channels_per_net_peer: c_int,
    pub(crate) nvlink_centric_sched: c_int,
}

impl Default for RawConfig {
    fn default() -> RawConfig {
        // `NCCL_CONFIG_UNDEF_INT`: the library's own choice.
        let undefined = c_int::MIN;
        RawConfig {
            size: size_of::<RawConfig>(),
            magic: 0xcafe_beef,
            version: 22_809,
            blocking: undefined,
            cga_cluster_size: undefined,
            min_ctas: undefined,
            max_ctas: undefined,
            net_name: std::ptr::null(),
            split_share: undefined,
            traffic_class: undefined,
            comm_name: std::ptr::null(),
            collnet_enable: undefined,
            cta_policy: undefined,
            shrink_share: undefined,
            nvls_ctas: undefined,
            channels_per_net_peer: undefined,
            nvlink_centric_sched: undefined,
        }
    }
}

macro_rules! table {
    (
        results { $($name:ident: fn($($argument:ty),*);)* }
        texts { $($text:ident: fn($($of:ty),*);)* }
    ) => {
        /// The library's functions, by their names. Most return an `ncclResult_t`, taken as the number that it is: a newer library may
        /// return one that nobody here knows.
        pub(crate) struct Table {
            $(pub(crate) $name: unsafe extern "C" fn($($argument),*) -> c_int,)*
            $(pub(crate) $text: unsafe extern "C" fn($($of),*) -> *const c_char,)*
            pub(crate) version: Version,
            /// After the functions, which are its own.
            _library: Library,
        }

        impl Table {
            /// Loads the library of this name or path.
            ///
            /// # Errors
            /// [`NcclError::NoLibrary`], [`NcclError::NoSymbol`] and [`NcclError::TooOld`]; [`NcclError::Failed`] where it does not tell its version.
            pub(crate) fn load(name: &OsStr) -> Result<Table, NcclError> {
                // SAFETY: loading NCCL runs its initializers, which ask nothing of the caller.
                let library = unsafe { Library::new(name) }
                    .map_err(|error| NcclError::NoLibrary { reason: reason(&error) })?;
                let missing = |symbol| {
                    NcclError::NoSymbol { library: name.to_string_lossy().into_owned(), symbol, wanted: OLDEST }
                };
                // The version first: what an old library lacks is no news.
                // SAFETY: the function of this name has had this signature since NCCL 2.3.
                let ask: unsafe extern "C" fn(*mut c_int) -> c_int = *unsafe { library.get(b"ncclGetVersion\0") }
                    .map_err(|_| missing("ncclGetVersion"))?;
                let mut told = 0;
                // SAFETY: the function writes one number.
                let code = unsafe { ask(&raw mut told) };
                if code != SUCCESS {
                    let (call, what) = ("ncclGetVersion", "it does not tell its version".to_owned());
                    return Err(NcclError::Failed { call, code: Code::of(code), what, last: String::new() });
                }
                let version = Version::of(told);
                if version < OLDEST {
                    return Err(NcclError::TooOld { found: version, wanted: OLDEST });
                }
                $(
                    // SAFETY: the function of this name has had this signature since before the oldest version that is taken.
                    let $name = *unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }
                        .map_err(|_| missing(stringify!($name)))?;
                )*
                $(
                    // SAFETY: as above.
                    let $text = *unsafe { library.get(concat!(stringify!($text), "\0").as_bytes()) }
                        .map_err(|_| missing(stringify!($text)))?;
                )*
                Ok(Table { $($name,)* $($text,)* version, _library: library })
            }
        }
    };
}

table! {
    results {
        ncclGetUniqueId: fn(*mut RawId);
        ncclCommInitRankConfig: fn(*mut Handle, c_int, RawId, c_int, *mut RawConfig);
        ncclCommGetAsyncError: fn(Handle, *mut c_int);
        ncclCommFinalize: fn(Handle);
        ncclCommDestroy: fn(Handle);
        ncclCommAbort: fn(Handle);
        ncclGroupStart: fn();
        ncclGroupEnd: fn();
        ncclSend: fn(*const c_void, usize, c_int, c_int, Handle, Handle);
        ncclRecv: fn(*mut c_void, usize, c_int, c_int, Handle, Handle);
        ncclBroadcast: fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Handle);
    }
    texts {
        ncclGetErrorString: fn(c_int);
        ncclGetLastError: fn(Handle);
    }
}

/// Returns what the loader itself says.
fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

impl Table {
    /// Makes an error of what a call returned, unless it was 0 or says that the call goes on.
    pub(crate) fn check(&self, call: &'static str, code: c_int) -> Result<(), NcclError> {
        match code {
            SUCCESS | IN_PROGRESS => Ok(()),
            code => Err(self.error(call, code)),
        }
    }

    /// Makes an error of a result, with what the library says of it.
    pub(crate) fn error(&self, call: &'static str, code: c_int) -> NcclError {
        let said = |text: *const c_char| {
            if text.is_null() {
                return String::new();
            }
            // SAFETY: both functions return text of the library's own, or of this thread, that ends with 0.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
        };
        // SAFETY: the function takes any number.
        let what = said(unsafe { (self.ncclGetErrorString)(code) });
        // SAFETY: the function takes null where it is not asked of one communicator.
        let last = said(unsafe { (self.ncclGetLastError)(std::ptr::null_mut()) });
        NcclError::Failed { call, code: Code::of(code), what, last }
    }
}

/// Calls a function of the table; an error names it.
macro_rules! call {
    ($table:expr, $name:ident($($argument:expr),* $(,)?)) => {{
        let table: &crate::library::Table = $table;
        let code = (table.$name)($($argument),*);
        table.check(stringify!($name), code)
    }};
}
pub(crate) use call;
