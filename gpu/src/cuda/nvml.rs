//! NVIDIA's management library, found at run time: which GPUs are linked by NVLink, and what befalls one (Xid, ECC), told by a thread as soon
//! as the driver knows it.
#![allow(unsafe_code, reason = "loads a shared library and calls it")]
#![allow(non_snake_case, reason = "the functions have the library's own names")]

use libloading::Library;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use thiserror::Error;

const NAME: &str = "libnvidia-ml.so.1";
/// `NVML_P2P_CAPS_INDEX_NVLINK`.
const NVLINK: c_int = 2;
/// `NVML_ERROR_TIMEOUT` and `NVML_ERROR_GPU_IS_LOST`.
const TIMEOUT: c_int = 10;
const GPU_IS_LOST: c_int = 15;
/// `nvmlEventTypeDoubleBitEccError` and `nvmlEventTypeXidCriticalError`.
const ECC: c_ulonglong = 2;
const XID: c_ulonglong = 8;
/// Xids after which no context of the GPU does anything more, or nothing that it holds can be trusted: memory that cannot be corrected (48, 95),
/// rows that could not be replaced (64), a halted controller (62), off the bus (79), firmware that does not answer (119, 120), and an
/// unrecovered error of memory (140). Others are a program's own mistakes, or of those who made them.
const FATAL: [u64; 8] = [48, 62, 64, 79, 95, 119, 120, 140];
/// How often the thread that waits looks whether it is to end.
const TURN_MS: c_uint = 250;
/// How long its end is waited for.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How busy a GPU is of which nobody tells it.
const UNKNOWN: u32 = u32::MAX;
const TEXT_BYTES: usize = 128;

type Handle = *mut c_void;

/// `nvmlEventData_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Event {
    device: Handle,
    kind: c_ulonglong,
    data: c_ulonglong,
    _instances: [c_uint; 2],
}

/// Why the library did not do what it should.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum NvmlError {
    /// It is not on this machine.
    #[error("NVML is not on this machine: {reason}")]
    NoLibrary {
        /// What the loader says of it.
        reason: String,
    },
    /// It lacks a function.
    #[error("NVML has no {symbol}: its driver is too old")]
    NoSymbol {
        /// The function.
        symbol: &'static str,
    },
    /// A call failed.
    #[error("{call}: {what} ({code})")]
    Failed {
        /// The library's function.
        call: &'static str,
        /// `nvmlReturn_t`.
        code: i32,
        /// What the library says of it.
        what: String,
    },
    /// The system has no more threads.
    #[error("no thread could be made: {reason}")]
    Thread {
        /// What the system says.
        reason: String,
    },
}

/// How two GPUs are connected, from the shortest way on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Topology {
    /// On one board.
    Board,
    /// Below one switch of the PCI bus.
    Switch,
    /// Below several switches.
    Switches,
    /// By the host's own bridge.
    Bridge,
    /// Within one NUMA node.
    Node,
    /// From one NUMA node to another.
    System,
}

/// `nvmlUtilization_t`, in percent.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Utilization {
    gpu: c_uint,
    _memory: c_uint,
}

/// What befell a GPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// The driver noted this Xid.
    Xid(u64),
    /// An error of memory that could not be corrected.
    Ecc,
    /// The driver does not find the GPU any more.
    Gone,
}

impl Trouble {
    /// Says whether what the GPU holds is lost by it.
    pub fn is_fatal(&self) -> bool {
        match self {
            Trouble::Xid(number) => FATAL.contains(number),
            Trouble::Ecc | Trouble::Gone => true,
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Xid(number) => write!(f, "Xid {number}"),
            Trouble::Ecc => write!(f, "an ECC error that could not be corrected"),
            Trouble::Gone => write!(f, "the driver does not find it any more"),
        }
    }
}

macro_rules! table {
    ($($name:ident: fn($($argument:ty),*) -> $result:ty;)*) => {
        struct Table {
            $($name: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// After the functions, which are its own.
            _library: Library,
        }

        impl Table {
            fn load(name: &OsStr) -> Result<Table, NvmlError> {
                // SAFETY: the library's initializers ask nothing of the caller.
                let library = unsafe { Library::new(name) }
                    .map_err(|error| NvmlError::NoLibrary { reason: super::library::reason(&error) })?;
                $(
                    // SAFETY: the function of this name has had this signature since its version began.
                    let $name = *unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }
                        .map_err(|_| NvmlError::NoSymbol { symbol: stringify!($name) })?;
                )*
                Ok(Table { $($name,)* _library: library })
            }
        }
    };
}

table! {
    nvmlInit_v2: fn() -> c_int;
    nvmlShutdown: fn() -> c_int;
    nvmlErrorString: fn(c_int) -> *const c_char;
    nvmlSystemGetDriverVersion: fn(*mut c_char, c_uint) -> c_int;
    nvmlDeviceGetHandleByPciBusId_v2: fn(*const c_char, *mut Handle) -> c_int;
    nvmlDeviceGetP2PStatus: fn(Handle, Handle, c_int, *mut c_int) -> c_int;
    nvmlDeviceGetTopologyCommonAncestor: fn(Handle, Handle, *mut c_int) -> c_int;
    nvmlDeviceGetUtilizationRates: fn(Handle, *mut Utilization) -> c_int;
    nvmlEventSetCreate: fn(*mut Handle) -> c_int;
    nvmlEventSetFree: fn(Handle) -> c_int;
    nvmlDeviceRegisterEvents: fn(Handle, c_ulonglong, Handle) -> c_int;
    nvmlEventSetWait_v2: fn(Handle, *mut Event, c_uint) -> c_int;
}

/// The library, loaded and initialized.
pub struct Nvml {
    table: Table,
}

macro_rules! call {
    ($nvml:expr, $name:ident($($argument:expr),* $(,)?)) => {{
        let nvml: &Nvml = $nvml;
        let code = (nvml.table.$name)($($argument),*);
        nvml.check(stringify!($name), code)
    }};
}

impl Nvml {
    /// Returns this machine's. It is looked for once; what is found then stands for as long as the process runs.
    ///
    /// # Errors
    /// Why there is none to use.
    pub fn find() -> Result<Arc<Nvml>, NvmlError> {
        static FOUND: OnceLock<Result<Arc<Nvml>, NvmlError>> = OnceLock::new();
        FOUND.get_or_init(|| Nvml::load(Path::new(NAME))).clone()
    }

    /// Loads it from a file, or by a name that the loader knows.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn load(library: &Path) -> Result<Arc<Nvml>, NvmlError> {
        let nvml = std::mem::ManuallyDrop::new(Nvml { table: Table::load(library.as_os_str())? });
        // SAFETY: initialization may be called any number of times; what was not initialized is not shut down.
        unsafe { call!(&nvml, nvmlInit_v2()) }?;
        Ok(Arc::new(std::mem::ManuallyDrop::into_inner(nvml)))
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<(), NvmlError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the function returns text of its own that stays, or null.
        let said = unsafe { (self.table.nvmlErrorString)(code) };
        let what = if said.is_null() {
            "unknown to this library".to_owned()
        } else {
            // SAFETY: as above, the text ends with 0.
            unsafe { CStr::from_ptr(said) }.to_string_lossy().into_owned()
        };
        Err(NvmlError::Failed { call, code, what })
    }

    /// Returns the version of the driver, e.g. `580.95.05`.
    ///
    /// # Errors
    /// When it does not say.
    pub fn driver_version(&self) -> Result<String, NvmlError> {
        let mut room = [0u8; TEXT_BYTES];
        // SAFETY: the function writes at most so many bytes there, a 0 among them.
        unsafe { call!(self, nvmlSystemGetDriverVersion(room.as_mut_ptr().cast(), TEXT_BYTES as c_uint)) }?;
        let text = CStr::from_bytes_until_nul(&room).map(CStr::to_string_lossy);
        Ok(text.map(|text| text.trim().to_owned()).unwrap_or_default())
    }

    /// Says whether two GPUs, named by their addresses on the PCI bus, are linked by NVLink, and how they lie to each other.
    ///
    /// # Errors
    /// When it does not know one of them, or does not say.
    pub fn between(&self, one: &str, other: &str) -> Result<(bool, Topology), NvmlError> {
        let (one, other) = (self.device(one)?, self.device(other)?);
        let (mut status, mut level) = (-1, 50);
        // SAFETY: both handles are the library's own; each function writes one number.
        unsafe {
            call!(self, nvmlDeviceGetP2PStatus(one, other, NVLINK, &raw mut status))?;
            call!(self, nvmlDeviceGetTopologyCommonAncestor(one, other, &raw mut level))?;
        }
        let topology = match level {
            0 => Topology::Board,
            10 => Topology::Switch,
            20 => Topology::Switches,
            30 => Topology::Bridge,
            40 => Topology::Node,
            _ => Topology::System,
        };
        Ok((status == 0, topology))
    }

    /// Returns in how much of the last moment, in percent, the GPU at an address of the PCI bus ran a kernel, whosever that was. How long that
    /// moment is, is the driver's: up to a second.
    ///
    /// # Errors
    /// When it does not know the GPU, or does not say this of it, as where it is parted (MIG).
    pub fn busy_percent(&self, pci: &str) -> Result<u32, NvmlError> {
        let device = self.device(pci)?;
        let mut told = Utilization::default();
        // SAFETY: the handle is the library's own; the function writes two numbers.
        unsafe { call!(self, nvmlDeviceGetUtilizationRates(device, &raw mut told)) }?;
        Ok(told.gpu.min(100))
    }

    fn device(&self, pci: &str) -> Result<Handle, NvmlError> {
        let name = CString::new(pci).unwrap_or_default();
        let mut device = std::ptr::null_mut();
        // SAFETY: the function reads text up to its 0, and writes one handle.
        unsafe { call!(self, nvmlDeviceGetHandleByPciBusId_v2(name.as_ptr(), &raw mut device)) }?;
        Ok(device)
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        // SAFETY: it was initialized once, and nothing of it is used any more.
        let _ = unsafe { call!(self, nvmlShutdown()) };
    }
}

/// A thread that hears what befalls a GPU; it ends when this is dropped.
pub struct Watch {
    is_over: Arc<AtomicBool>,
    busy: Arc<AtomicU32>,
    ended: Mutex<Receiver<()>>,
}

/// What a driver's events come by.
struct Events {
    nvml: Arc<Nvml>,
    set: Handle,
}

// SAFETY: the library may be called from any thread, and locks what it shares.
unsafe impl Send for Events {}

impl Watch {
    /// Has `tell` hear on a thread of its own what befalls the GPU at an address of the PCI bus, until that is gone.
    ///
    /// # Errors
    /// When the driver does not tell such things of this GPU.
    pub fn start(
        nvml: &Arc<Nvml>,
        pci: &str,
        mut tell: impl FnMut(Trouble) + Send + 'static,
    ) -> Result<Watch, NvmlError> {
        let device = nvml.device(pci)?;
        let mut events = Events { nvml: nvml.clone(), set: std::ptr::null_mut() };
        // SAFETY: the function writes one handle; the second is told two handles of the library's own. Dropping `events` frees the set.
        unsafe {
            call!(nvml, nvmlEventSetCreate(&raw mut events.set))?;
            call!(nvml, nvmlDeviceRegisterEvents(device, ECC | XID, events.set))?;
        }
        let (is_over, busy) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(UNKNOWN)));
        let (over, (ends, ended)) = (is_over.clone(), channel());
        let (is_busy, nvml, pci) = (busy.clone(), nvml.clone(), pci.to_owned());
        let hand = move || {
            while !over.load(Ordering::Relaxed) {
                is_busy.store(nvml.busy_percent(&pci).unwrap_or(UNKNOWN), Ordering::Relaxed);
                match events.next() {
                    Ok(Some(trouble)) => tell(trouble),
                    Ok(None) => {}
                    Err(NvmlError::Failed { code: GPU_IS_LOST, .. }) => {
                        tell(Trouble::Gone);
                        break;
                    }
                    // It says nothing more.
                    Err(_) => break,
                }
            }
            is_busy.store(UNKNOWN, Ordering::Relaxed);
            drop((events, tell, nvml));
            drop::<std::sync::mpsc::Sender<()>>(ends);
        };
        let thread = std::thread::Builder::new().name("gpu-events".to_owned()).spawn(hand);
        thread.map_err(|error| NvmlError::Thread { reason: error.to_string() })?;
        Ok(Watch { is_over, busy, ended: Mutex::new(ended) })
    }

    /// Returns in how much of the last moment, in percent, the GPU ran a kernel, as the thread has heard last; none where that is not told. Asks
    /// no driver, which may hang.
    pub fn busy_percent(&self) -> Option<u32> {
        Some(self.busy.load(Ordering::Relaxed)).filter(|busy| *busy != UNKNOWN)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // A driver that hangs keeps its thread.
        let _ = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner).recv_timeout(END_LIMIT);
    }
}

impl Events {
    /// Waits a while for something to befall the GPU.
    fn next(&self) -> Result<Option<Trouble>, NvmlError> {
        let mut event = Event { device: std::ptr::null_mut(), kind: 0, data: 0, _instances: [0; 2] };
        // SAFETY: the set is this one's own, and the function writes one event.
        match unsafe { call!(&self.nvml, nvmlEventSetWait_v2(self.set, &raw mut event, TURN_MS)) } {
            Err(NvmlError::Failed { code: TIMEOUT, .. }) => Ok(None),
            Err(error) => Err(error),
            Ok(()) if event.kind == XID => Ok(Some(Trouble::Xid(event.data))),
            Ok(()) if event.kind == ECC => Ok(Some(Trouble::Ecc)),
            Ok(()) => Ok(None),
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if !self.set.is_null() {
            // SAFETY: the set is this one's own, and nobody waits for its events any more.
            let _ = unsafe { call!(&self.nvml, nvmlEventSetFree(self.set)) };
        }
    }
}
