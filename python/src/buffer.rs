//! Memory of Python objects as slices: taken by the buffer protocol or through DLPack, checked, held until the last use.
//!
//! The only file of this crate with unsafe code. What makes it sound: an object's memory stays where it is for as long as its
//! export is held; [`Regions`](crate::regions::Regions) refuses memory that another call uses; and what is checked here is checked
//! before a slice is made.
#![allow(unsafe_code)]

use crate::errors::{Failure, Kind};
use crate::regions::{Claim, Regions, Use};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict, PyList, PyMemoryView, PyTuple};
use std::ffi::{CStr, c_char, c_int, c_void};

/// The most objects that one call takes.
const MAX_OBJECTS: usize = 1 << 16;
/// Devices of DLPack whose memory this process reads and writes itself.
const READABLE_DEVICES: [(i32, &str); 2] = [(1, "CPU"), (3, "CUDA host")];

/// The memory of some Python objects, whole blocks each, for one call.
pub(crate) struct Lent {
    // Before what keeps the memory: a claim on memory that is gone would refuse somebody else's.
    _claim: Claim,
    regions: Vec<Region>,
    /// None: each object is one block, of its own length.
    block_bytes: Option<usize>,
    how: Use,
}

/// One object's memory.
struct Region {
    start: *mut u8,
    bytes: usize,
    _export: Export,
}

/// What keeps memory where it is; dropped, the object is free again.
enum Export {
    Buffer(#[allow(dead_code, reason = "held for its drop")] PyUntypedBuffer),
    Dlpack(#[allow(dead_code, reason = "held for its drop")] Managed),
}

// SAFETY: a region is plain memory that its export keeps in place; exports may be released on any thread, as both attach to the
// interpreter to do so.
unsafe impl Send for Region {}

impl Lent {
    /// Takes the memory of `given`: one object, or a list or tuple of objects, each with a whole number of blocks.
    ///
    /// # Errors
    /// When an object has no memory that can be used so, or that is in use by another call.
    pub(crate) fn take(given: &Bound<'_, PyAny>, block_bytes: u64, how: Use) -> PyResult<Lent> {
        let block_bytes = usize::try_from(block_bytes)
            .map_err(|_| wrong(format!("blocks of {block_bytes} bytes are too large")).raise(given.py()))?;
        Lent::take_all(given, Some(block_bytes), how)
    }

    /// Takes the memory of `given`, each object of which is one block, of whatever length.
    ///
    /// # Errors
    /// As [`Lent::take`], and when an object has no bytes.
    pub(crate) fn take_whole(given: &Bound<'_, PyAny>, how: Use) -> PyResult<Lent> {
        Lent::take_all(given, None, how)
    }

    fn take_all(given: &Bound<'_, PyAny>, block_bytes: Option<usize>, how: Use) -> PyResult<Lent> {
        let py = given.py();
        let mut objects = Vec::new();
        if given.is_instance_of::<PyList>() || given.is_instance_of::<PyTuple>() {
            let count = given.len()?;
            if count > MAX_OBJECTS {
                return Err(wrong(format!("{count} buffers in one call, at most {MAX_OBJECTS}")).raise(py));
            }
            for object in given.try_iter()? {
                objects.push(object?);
            }
        } else {
            objects.push(given.clone());
        }
        let mut regions = Vec::with_capacity(objects.len());
        for (at, object) in objects.iter().enumerate() {
            let region = take_one(object, at, block_bytes, how)?;
            if region.bytes == 0 && block_bytes.is_none() {
                return Err(wrong(format!("buffer {at} is empty")).raise(py));
            }
            // Memory of nothing may be nowhere.
            if region.bytes > 0 {
                regions.push(region);
            }
        }
        let ranges = regions.iter().map(|region| {
            let start = region.start.addr();
            start..start + region.bytes
        });
        let claim = Regions::claim(ranges.collect(), how).map_err(|failure| failure.raise(py))?;
        Ok(Lent { _claim: claim, regions, block_bytes, how })
    }

    /// Returns how many blocks they hold.
    pub(crate) fn blocks(&self) -> usize {
        self.regions.iter().map(|region| region.bytes / self.block_bytes.unwrap_or(region.bytes)).sum()
    }

    /// Returns one slice a block, to be read.
    pub(crate) fn slices(&self) -> Vec<&[u8]> {
        let pieces = self.regions.iter().flat_map(|region| {
            // SAFETY: `start` and `bytes` are of one exported, contiguous piece of memory, which the region holds for as long as
            // `self` is borrowed. The claim lets no call of this crate write to it; what other threads of the process write meanwhile
            // is theirs to prevent, as with every array that is read without the interpreter's lock, and then fails the digest.
            unsafe { std::slice::from_raw_parts(region.start.cast_const(), region.bytes) }
                .chunks_exact(self.block_bytes.unwrap_or(region.bytes))
        });
        pieces.collect()
    }

    /// Returns one slice a block, to be written.
    pub(crate) fn slices_mut(&mut self) -> Vec<&mut [u8]> {
        assert_eq!(self.how, Use::Write, "memory is written only where it was taken to be written");
        let block_bytes = self.block_bytes;
        let pieces = self.regions.iter_mut().flat_map(|region| {
            // SAFETY: as above, and the object says that it may be written. The claim was made for writing (asserted), so that no two regions
            // overlap, neither of this call nor of another: this is the only slice of this crate on the memory.
            unsafe { std::slice::from_raw_parts_mut(region.start, region.bytes) }
                .chunks_exact_mut(block_bytes.unwrap_or(region.bytes))
        });
        pieces.collect()
    }
}

fn take_one(object: &Bound<'_, PyAny>, at: usize, block_bytes: Option<usize>, how: Use) -> PyResult<Region> {
    let py = object.py();
    let what = || {
        format!(
            "buffer {at} ({})",
            object.get_type().name().map_or_else(|_| "?".to_owned(), |name| name.to_string())
        )
    };
    // Through a view, which says of every kind of memory how it is laid out; arrays of ctypes do not.
    let view = PyMemoryView::from(object);
    let region = match view.and_then(|view| PyUntypedBuffer::get(&view)) {
        Ok(buffer) => of_buffer(buffer, how).map_err(|why| wrong(format!("{}: {why}", what())).raise(py))?,
        Err(error) => {
            if !error.is_instance_of::<PyTypeError>(py) || !object.hasattr("__dlpack__")? {
                let has_none = error.is_instance_of::<PyTypeError>(py);
                let why = if has_none {
                    "it has neither a buffer nor __dlpack__".to_owned()
                } else {
                    error.value(py).to_string()
                };
                let raised = wrong(format!("{}: {why}", what())).raise(py);
                raised.set_cause(py, Some(error));
                return Err(raised);
            }
            of_dlpack(object, how).map_err(|trouble| match trouble {
                Trouble::Wrong(why) => wrong(format!("{}: {why}", what())).raise(py),
                Trouble::Raised(error) => {
                    let raised = wrong(format!("{}: {}", what(), error.value(py))).raise(py);
                    raised.set_cause(py, Some(error));
                    raised
                }
            })?
        }
    };
    if let Some(block_bytes) = block_bytes
        && region.bytes % block_bytes != 0
    {
        let bytes = region.bytes;
        return Err(wrong(format!(
            "{}: {bytes} bytes are no whole number of blocks of {block_bytes} bytes",
            what()
        ))
        .raise(py));
    }
    Ok(region)
}

fn of_buffer(buffer: PyUntypedBuffer, how: Use) -> Result<Region, String> {
    if how == Use::Write && buffer.readonly() {
        return Err("it is read-only".to_owned());
    }
    if !buffer.is_c_contiguous() {
        return Err("it is not contiguous in C order".to_owned());
    }
    // Pointers in it would be read as bytes, or written over.
    if buffer.format().to_bytes().iter().any(|letter| matches!(letter, b'O' | b'P' | b'&' | b'X')) {
        return Err(format!("it holds references, not numbers (format {:?})", buffer.format()));
    }
    Ok(Region { start: buffer.buf_ptr().cast(), bytes: buffer.len_bytes(), _export: Export::Buffer(buffer) })
}

/// Why a tensor cannot be used: by what it is, or because its owner refuses.
enum Trouble {
    Wrong(String),
    Raised(PyErr),
}

impl From<PyErr> for Trouble {
    fn from(error: PyErr) -> Trouble {
        Trouble::Raised(error)
    }
}

impl From<String> for Trouble {
    fn from(why: String) -> Trouble {
        Trouble::Wrong(why)
    }
}

fn of_dlpack(object: &Bound<'_, PyAny>, how: Use) -> Result<Region, Trouble> {
    let py = object.py();
    let (device, _): (i32, i32) = object.call_method0("__dlpack_device__")?.extract()?;
    readable(device)?;
    let versioned = PyDict::new(py);
    versioned.set_item("max_version", (1, 0))?;
    let capsule = match object.call_method("__dlpack__", (), Some(&versioned)) {
        // Older producers do not know the word.
        Err(error) if error.is_instance_of::<PyTypeError>(py) => object.call_method0("__dlpack__")?,
        given => given?,
    };
    let capsule = capsule.cast_into::<PyCapsule>().map_err(PyErr::from)?;
    let managed = Managed::take(&capsule)?;
    let (start, bytes) = managed.memory(how)?;
    Ok(Region { start, bytes, _export: Export::Dlpack(managed) })
}

fn readable(device: i32) -> Result<(), String> {
    if READABLE_DEVICES.iter().any(|(code, _)| *code == device) {
        return Ok(());
    }
    let names: Vec<&str> = READABLE_DEVICES.iter().map(|(_, name)| *name).collect();
    let device = if device == 2 { "CUDA".to_owned() } else { format!("DLPack device type {device}") };
    Err(format!("it is in memory of {device}, not of {}: copy it to the host first", names.join(" or ")))
}

/// `DLTensor` of DLPack's C interface.
#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

/// `DLManagedTensor`.
#[repr(C)]
struct Unversioned {
    tensor: Tensor,
    _context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Unversioned)>,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
struct Versioned {
    major: u32,
    _minor: u32,
    _context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Versioned)>,
    flags: u64,
    tensor: Tensor,
}

const READ_ONLY: u64 = 1;
const IS_COPIED: u64 = 2;
/// `kDLOpaqueHandle`: numbers that mean something to their owner alone.
const OPAQUE_HANDLE: u8 = 3;

/// A tensor that was taken out of its capsule: ours to delete.
enum Managed {
    Unversioned(*mut Unversioned),
    Versioned(*mut Versioned),
}

impl Managed {
    /// Takes the tensor out of `capsule`, which is used up by it.
    fn take(capsule: &Bound<'_, PyCapsule>) -> Result<Managed, Trouble> {
        for (name, used) in
            [(c"dltensor_versioned", c"used_dltensor_versioned"), (c"dltensor", c"used_dltensor")]
        {
            if !capsule.is_valid_checked(Some(name)) {
                continue;
            }
            let content = capsule.pointer_checked(Some(name))?;
            rename(capsule, used)?;
            if name == c"dltensor" {
                return Ok(Managed::Unversioned(content.as_ptr().cast()));
            }
            let managed = Managed::Versioned(content.as_ptr().cast());
            // SAFETY: a capsule of this name holds such a tensor; the places of version, context, deleter and flags are the same in
            // every version.
            let major = unsafe { (*content.as_ptr().cast::<Versioned>()).major };
            if major != 1 {
                return Err(format!("its DLPack version {major} is not known").into());
            }
            return Ok(managed);
        }
        Err("its __dlpack__ gave something else than an unused tensor".to_owned().into())
    }

    /// Returns the tensor's memory, if it is one plain piece that may be used so.
    fn memory(&self, how: Use) -> Result<(*mut u8, usize), String> {
        let (tensor, flags) = match self {
            // SAFETY: the pointer came from a capsule of this name, so its producer vouches for it until its deleter is called,
            // which only `drop` does.
            Managed::Unversioned(managed) => (unsafe { &(**managed).tensor }, 0),
            // SAFETY: as above.
            Managed::Versioned(managed) => unsafe { (&(**managed).tensor, (**managed).flags) },
        };
        readable(tensor.device_type)?;
        if how == Use::Write && flags & READ_ONLY != 0 {
            return Err("it is read-only".to_owned());
        }
        if how == Use::Write && flags & IS_COPIED != 0 {
            return Err("its __dlpack__ gave a copy, in which nothing would reach it".to_owned());
        }
        if tensor.code == OPAQUE_HANDLE {
            return Err("it holds handles, not numbers".to_owned());
        }
        let bits = u64::from(tensor.bits) * u64::from(tensor.lanes);
        if bits == 0 || bits % 8 != 0 {
            return Err(format!("its elements of {bits} bits are no whole bytes"));
        }
        let axes = usize::try_from(tensor.ndim).map_err(|_| "it has a negative number of axes".to_owned())?;
        if axes > 0 && tensor.shape.is_null() {
            return Err("it has no shape".to_owned());
        }
        let of = |from: *const i64| {
            // SAFETY: the producer vouches for `ndim` entries in shape and strides where they are not null.
            (0..axes).map(move |axis| unsafe { *from.add(axis) })
        };
        let shape: Vec<i64> = if axes == 0 { Vec::new() } else { of(tensor.shape).collect() };
        let strides =
            (axes > 0 && !tensor.strides.is_null()).then(|| of(tensor.strides).collect::<Vec<i64>>());
        let bytes = contiguous_elements(&shape, strides.as_deref())?
            .checked_mul(bits / 8)
            .and_then(|bytes| usize::try_from(bytes).ok())
            .filter(|bytes| isize::try_from(*bytes).is_ok())
            .ok_or("its size overflows")?;
        let offset = usize::try_from(tensor.byte_offset).map_err(|_| "its offset overflows".to_owned())?;
        if bytes > 0 && tensor.data.is_null() {
            return Err("it has no memory".to_owned());
        }
        Ok((tensor.data.cast::<u8>().wrapping_add(offset), bytes))
    }
}

/// Renames a capsule, by which its own destructor leaves what it holds alone.
fn rename(capsule: &Bound<'_, PyCapsule>, name: &'static CStr) -> PyResult<()> {
    // SAFETY: the object is a capsule, and the name lives for ever.
    let failed: c_int =
        unsafe { pyo3::ffi::PyCapsule_SetName(capsule.as_ptr(), name.as_ptr().cast::<c_char>()) };
    if failed == 0 { Ok(()) } else { Err(PyErr::fetch(capsule.py())) }
}

/// Returns the elements of a tensor whose last axis is the innermost and that has no gaps.
fn contiguous_elements(shape: &[i64], strides: Option<&[i64]>) -> Result<u64, String> {
    if shape.contains(&0) {
        return Ok(0);
    }
    let mut elements = 1u64;
    for (axis, length) in shape.iter().enumerate().rev() {
        let length = u64::try_from(*length).map_err(|_| format!("axis {axis} has a negative length"))?;
        let stride = strides.map(|strides| strides[axis]);
        // The stride of an axis of one element is never walked.
        if length > 1 && stride.is_some_and(|stride| u64::try_from(stride) != Ok(elements)) {
            return Err("it is not contiguous in C order".to_owned());
        }
        elements = elements.checked_mul(length).ok_or("its size overflows")?;
    }
    Ok(elements)
}

impl Drop for Managed {
    fn drop(&mut self) {
        // Producers may touch Python objects in their deleters. A process that ends frees it all.
        Python::try_attach(|_| match self {
            // SAFETY: taken out of its capsule, the tensor is ours, and nobody uses it any more.
            Managed::Unversioned(managed) => unsafe {
                if let Some(delete) = (**managed).deleter {
                    delete(*managed);
                }
            },
            // SAFETY: as above.
            Managed::Versioned(managed) => unsafe {
                if let Some(delete) = (**managed).deleter {
                    delete(*managed);
                }
            },
        });
    }
}

fn wrong(what: String) -> Failure {
    Failure::new(Kind::BadBuffer, what)
}
