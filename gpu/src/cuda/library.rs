//! The driver's library: loaded once, every function of it that is used looked up at once.
#![allow(unsafe_code, reason = "loads a shared library and names the types of its functions")]
#![allow(non_snake_case, reason = "the functions have CUDA's own names")]

use super::error::{CudaError, Version};
use libloading::Library;
use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};

/// The oldest version with all that is used here, kernels in PTX 8.4 among it.
pub(super) const OLDEST: Version = Version { major: 12, minor: 4 };

/// `CUcontext`, `CUstream`, `CUevent`: what the driver alone looks into.
pub(super) type Handle = *mut c_void;
/// `CUdeviceptr`: an address that is a GPU's, or the host's as the GPU sees it.
pub(super) type Address = u64;

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Location {
    pub(super) kind: c_int,
    pub(super) id: c_int,
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Properties {
    pub(super) kind: c_int,
    pub(super) handles: c_int,
    pub(super) location: Location,
    /// Of Windows.
    pub(super) attributes: *mut c_void,
    /// Compression, RDMA, use, and what is reserved.
    pub(super) flags: [u8; 8],
}

impl Default for Properties {
    fn default() -> Properties {
        Properties {
            kind: 0,
            handles: 0,
            location: Location::default(),
            attributes: std::ptr::null_mut(),
            flags: [0; 8],
        }
    }
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub(super) location: Location,
    pub(super) flags: c_int,
}

/// `CUipcMemHandle`: passed by its value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct IpcHandle(pub(super) [u8; 64]);

macro_rules! table {
    ($($name:ident: fn($($argument:ty),*);)*) => {
        /// The driver's functions, by their names. Each returns a `CUresult`, taken as the number that it is: a newer driver may
        /// return one that nobody here knows.
        pub(super) struct Table {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> c_int,)*
            /// After the functions, which are its own.
            _library: Library,
        }

        impl Table {
            /// Loads the library of this name or path.
            ///
            /// # Errors
            /// [`CudaError::NoLibrary`] and [`CudaError::NoSymbol`].
            pub(super) fn load(name: &OsStr) -> Result<Table, CudaError> {
                // SAFETY: loading CUDA's driver runs its initializers, which ask nothing of the caller.
                let library = unsafe { Library::new(name) }
                    .map_err(|error| CudaError::NoLibrary { reason: reason(&error) })?;
                let missing = |symbol| {
                    CudaError::NoSymbol { library: name.to_string_lossy().into_owned(), symbol, wanted: OLDEST }
                };
                $(
                    // SAFETY: the function of this name has had this signature in CUDA's driver API since its version began.
                    let $name = *unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }
                        .map_err(|_| missing(stringify!($name)))?;
                )*
                Ok(Table { $($name,)* _library: library })
            }
        }
    };
}

table! {
    cuInit: fn(c_uint);
    cuDriverGetVersion: fn(*mut c_int);
    cuGetErrorName: fn(c_int, *mut *const c_char);
    cuGetErrorString: fn(c_int, *mut *const c_char);
    cuDeviceGetCount: fn(*mut c_int);
    cuDeviceGet: fn(*mut c_int, c_int);
    cuDeviceGetName: fn(*mut c_char, c_int, c_int);
    cuDeviceTotalMem_v2: fn(*mut usize, c_int);
    cuDeviceGetAttribute: fn(*mut c_int, c_int, c_int);
    cuDeviceCanAccessPeer: fn(*mut c_int, c_int, c_int);
    cuDeviceGetPCIBusId: fn(*mut c_char, c_int, c_int);
    cuDevicePrimaryCtxRetain: fn(*mut Handle, c_int);
    cuDevicePrimaryCtxRelease_v2: fn(c_int);
    cuCtxPushCurrent_v2: fn(Handle);
    cuCtxPopCurrent_v2: fn(*mut Handle);
    cuMemGetInfo_v2: fn(*mut usize, *mut usize);
    cuMemAlloc_v2: fn(*mut Address, usize);
    cuMemFree_v2: fn(Address);
    cuMemHostAlloc: fn(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost: fn(*mut c_void);
    cuMemHostRegister_v2: fn(*mut c_void, usize, c_uint);
    cuMemHostUnregister: fn(*mut c_void);
    cuMemGetAllocationGranularity: fn(*mut usize, *const Properties, c_int);
    cuMemCreate: fn(*mut u64, usize, *const Properties, u64);
    cuMemRelease: fn(u64);
    cuMemAddressReserve: fn(*mut Address, usize, usize, Address, u64);
    cuMemAddressFree: fn(Address, usize);
    cuMemMap: fn(Address, usize, usize, u64, u64);
    cuMemUnmap: fn(Address, usize);
    cuMemSetAccess: fn(Address, usize, *const Access, usize);
    cuMemExportToShareableHandle: fn(*mut c_void, u64, c_int, u64);
    cuMemImportFromShareableHandle: fn(*mut u64, *mut c_void, c_int);
    cuMemGetAddressRange_v2: fn(*mut Address, *mut usize, Address);
    cuIpcGetMemHandle: fn(*mut IpcHandle, Address);
    cuIpcOpenMemHandle_v2: fn(*mut Address, IpcHandle, c_uint);
    cuIpcCloseMemHandle: fn(Address);
    cuStreamCreate: fn(*mut Handle, c_uint);
    cuStreamDestroy_v2: fn(Handle);
    cuStreamSynchronize: fn(Handle);
    cuMemcpyHtoDAsync_v2: fn(Address, *const c_void, usize, Handle);
    cuMemcpyDtoHAsync_v2: fn(*mut c_void, Address, usize, Handle);
    cuMemcpyDtoDAsync_v2: fn(Address, Address, usize, Handle);
    cuModuleLoadData: fn(*mut Handle, *const c_void);
    cuModuleUnload: fn(Handle);
    cuModuleGetFunction: fn(*mut Handle, Handle, *const c_char);
    cuLaunchKernel: fn(
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
    );
    cuEventCreate: fn(*mut Handle, c_uint);
    cuEventDestroy_v2: fn(Handle);
    cuEventRecord: fn(Handle, Handle);
    cuEventQuery: fn(Handle);
    cuEventElapsedTime: fn(*mut f32, Handle, Handle);
}

/// Returns what the loader itself says.
pub(super) fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

impl Table {
    /// Makes an error of what a call returned, unless it was 0.
    pub(super) fn check(&self, call: &'static str, code: c_int) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        let say = |ask: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut said = std::ptr::null();
            // SAFETY: the function writes one pointer, to text of its own that stays, or leaves null.
            if unsafe { ask(code, &raw mut said) } != 0 || said.is_null() {
                return "unknown to this driver".to_owned();
            }
            // SAFETY: as above, the text ends with 0.
            unsafe { CStr::from_ptr(said) }.to_string_lossy().into_owned()
        };
        Err(CudaError::Failed {
            call,
            code,
            name: say(self.cuGetErrorName),
            what: say(self.cuGetErrorString),
        })
    }
}

/// Calls a function of the table; an error names it.
macro_rules! call {
    ($table:expr, $name:ident($($argument:expr),* $(,)?)) => {{
        let table: &super::library::Table = $table;
        let code = (table.$name)($($argument),*);
        table.check(stringify!($name), code)
    }};
}
pub(super) use call;
