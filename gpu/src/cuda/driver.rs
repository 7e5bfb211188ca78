//! The driver: found once, asked which GPUs there are.
#![allow(unsafe_code, reason = "calls CUDA's driver")]

use super::error::{CudaError, Version};
use super::gpu::Gpu;
use super::library::{OLDEST, Table, call};
use std::ffi::{CStr, OsStr, c_char, c_int};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// The driver's library by the names that it has on Linux; the second is that of machines where it is built against.
const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`, `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`.
const ATTRIBUTES: [c_int; 3] = [75, 76, 16];
/// Room for a name or a PCI address.
const TEXT_BYTES: usize = 256;

/// CUDA's driver, loaded and initialized.
pub struct Cuda {
    pub(super) table: Table,
    version: Version,
}

/// A GPU as it describes itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GpuInfo {
    /// Its number in this process, from 0; `CUDA_VISIBLE_DEVICES` chooses and orders them.
    pub ordinal: u32,
    /// Its product name.
    pub name: String,
    /// Its memory in bytes, all of it.
    pub memory_bytes: u64,
    /// Its compute capability, e.g. (9, 0).
    pub capability: (u32, u32),
    /// Its multiprocessors.
    pub processors: u32,
    /// Its address on the PCI bus, e.g. `0000:3b:00.0`.
    pub pci: String,
}

impl GpuInfo {
    /// Says what it is, without its number.
    pub fn facts(&self) -> String {
        let (major, minor) = self.capability;
        let gib = self.memory_bytes as f64 / f64::from(1 << 30);
        format!("{}, {gib:.1} GiB, sm_{major}{minor}, at {}", self.name, self.pci)
    }
}

impl std::fmt::Display for GpuInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GPU {}: {}", self.ordinal, self.facts())
    }
}

impl Cuda {
    /// Returns this machine's driver. It is looked for once; what is found then stands for as long as the process runs.
    ///
    /// # Errors
    /// Why there is none to use.
    pub fn find() -> Result<Arc<Cuda>, CudaError> {
        static FOUND: OnceLock<Result<Arc<Cuda>, CudaError>> = OnceLock::new();
        let look = || {
            let mut first = None;
            for name in NAMES {
                match Cuda::load(Path::new(name)) {
                    Err(error @ CudaError::NoLibrary { .. }) => first = first.or(Some(error)),
                    found => return found,
                }
            }
            Err(first.expect("at least one name was tried"))
        };
        FOUND.get_or_init(look).clone()
    }

    /// Loads the driver from a file, or by a name that the loader knows.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn load(library: &Path) -> Result<Arc<Cuda>, CudaError> {
        let table = Table::load(<OsStr as AsRef<OsStr>>::as_ref(library.as_os_str()))?;
        let mut told = 0;
        // SAFETY: the function writes one number and needs no initialization.
        unsafe { call!(&table, cuDriverGetVersion(&raw mut told)) }?;
        let version = Version::of(told);
        if version < OLDEST {
            return Err(CudaError::TooOld { found: version, wanted: OLDEST });
        }
        // SAFETY: initialization may be called any number of times, with 0.
        unsafe { call!(&table, cuInit(0)) }?;
        Ok(Arc::new(Cuda { table, version }))
    }

    /// Returns the version of CUDA that the driver speaks.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns how many GPUs this process sees.
    ///
    /// # Errors
    /// When the driver refuses to say.
    pub fn count(&self) -> Result<u32, CudaError> {
        let mut count = 0;
        // SAFETY: the function writes one number.
        unsafe { call!(&self.table, cuDeviceGetCount(&raw mut count)) }?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// Describes every GPU that this process sees.
    ///
    /// # Errors
    /// When one cannot be asked.
    pub fn gpus(&self) -> Result<Vec<GpuInfo>, CudaError> {
        (0..self.count()?).map(|ordinal| self.describe(ordinal)).collect()
    }

    /// Says whether one GPU reads and writes another's memory by itself.
    ///
    /// # Errors
    /// [`CudaError::NoSuchGpu`], or when the driver refuses to say.
    pub fn reaches(&self, from: u32, to: u32) -> Result<bool, CudaError> {
        let (from, to) = (self.device(from)?, self.device(to)?);
        let mut can = 0;
        // SAFETY: the function writes one number.
        unsafe { call!(&self.table, cuDeviceCanAccessPeer(&raw mut can, from, to)) }?;
        Ok(can != 0)
    }

    /// Opens a GPU in this process: with the context that everything else of the process uses on it too.
    ///
    /// # Errors
    /// [`CudaError::NoSuchGpu`], or why it cannot be used.
    pub fn open(self: &Arc<Self>, ordinal: u32) -> Result<Arc<Gpu>, CudaError> {
        let device = self.device(ordinal)?;
        Gpu::open(self.clone(), self.describe(ordinal)?, device)
    }

    fn device(&self, ordinal: u32) -> Result<c_int, CudaError> {
        let count = self.count()?;
        let at = c_int::try_from(ordinal).ok().filter(|_| ordinal < count);
        let at = at.ok_or(CudaError::NoSuchGpu { ordinal, count })?;
        let mut device = 0;
        // SAFETY: the function writes one number.
        unsafe { call!(&self.table, cuDeviceGet(&raw mut device, at)) }?;
        Ok(device)
    }

    fn describe(&self, ordinal: u32) -> Result<GpuInfo, CudaError> {
        let device = self.device(ordinal)?;
        let table = &self.table;
        let name = text(|room, bytes| {
            // SAFETY: the function writes at most so many bytes there, a 0 among them.
            unsafe { call!(table, cuDeviceGetName(room, bytes, device)) }
        })?;
        let pci = text(|room, bytes| {
            // SAFETY: as above.
            unsafe { call!(table, cuDeviceGetPCIBusId(room, bytes, device)) }
        })?;
        let mut memory_bytes = 0;
        // SAFETY: the function writes one number.
        unsafe { call!(table, cuDeviceTotalMem_v2(&raw mut memory_bytes, device)) }?;
        let mut told = [0; 3];
        for (told, attribute) in told.iter_mut().zip(ATTRIBUTES) {
            // SAFETY: as above.
            unsafe { call!(table, cuDeviceGetAttribute(&raw mut *told, attribute, device)) }?;
        }
        let [major, minor, processors] = told.map(|number| u32::try_from(number).unwrap_or(0));
        let (memory_bytes, capability) = (memory_bytes as u64, (major, minor));
        Ok(GpuInfo { ordinal, name, memory_bytes, capability, processors, pci })
    }
}

/// Has the driver write text, and reads it.
fn text(write: impl FnOnce(*mut c_char, c_int) -> Result<(), CudaError>) -> Result<String, CudaError> {
    let mut room = [0u8; TEXT_BYTES];
    write(room.as_mut_ptr().cast(), TEXT_BYTES as c_int)?;
    let text = CStr::from_bytes_until_nul(&room).map(CStr::to_string_lossy);
    Ok(text.map(|text| text.trim().to_owned()).unwrap_or_default())
}
