//! DLPack: tensors of other libraries, by where their memory is and how it is laid out.
#![allow(unsafe_code, reason = "reads structures that others wrote")]

use super::Place;
use crate::regions::Use;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};
use std::ffi::{CStr, c_char, c_int, c_void};

/// DLPack's numbers of devices whose memory is the host's, which this process reads and writes itself.
const HOST_DEVICES: [i32; 2] = [1, 3];
/// `kDLCUDA`.
const CUDA_DEVICE: i32 = 2;

/// Why a tensor cannot be used: by what it is, or because its owner refuses.
pub(super) enum Trouble {
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

/// Says where a tensor's memory is.
pub(super) fn place(object: &Bound<'_, PyAny>) -> Result<Place, Trouble> {
    let (device, number): (i32, i32) = object.call_method0("__dlpack_device__")?.extract()?;
    Ok(place_of(device, number)?)
}

fn place_of(device: i32, number: i32) -> Result<Place, String> {
    match (device, u32::try_from(number)) {
        (host, _) if HOST_DEVICES.contains(&host) => Ok(Place::Host),
        (CUDA_DEVICE, Ok(ordinal)) => Ok(Place::Gpu(ordinal)),
        _ => Err(format!(
            "it is in memory of DLPack device type {device}, not of CPU, CUDA host or CUDA: copy it to the host first"
        )),
    }
}

/// Takes a tensor's memory, at the place that it has said. `stream`: that of the GPU on which it is used next, before which whatever its
/// owner does with it is done.
pub(super) fn take(
    object: &Bound<'_, PyAny>,
    place: Place,
    stream: Option<usize>,
    how: Use,
) -> Result<(Managed, *mut u8, usize), Trouble> {
    let py = object.py();
    let words = PyDict::new(py);
    if let Some(stream) = stream {
        words.set_item("stream", stream)?;
    }
    let versioned = words.copy()?;
    versioned.set_item("max_version", (1, 0))?;
    let capsule = match object.call_method("__dlpack__", (), Some(&versioned)) {
        // Older producers do not know the word.
        Err(error) if error.is_instance_of::<PyTypeError>(py) => {
            object.call_method("__dlpack__", (), Some(&words))?
        }
        given => given?,
    };
    let capsule = capsule.cast_into::<PyCapsule>().map_err(PyErr::from)?;
    let managed = Managed::take(&capsule)?;
    let (start, bytes) = managed.memory(place, how)?;
    Ok((managed, start, bytes))
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
pub(super) struct Managed(Form);

enum Form {
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
                return Ok(Managed(Form::Unversioned(content.as_ptr().cast())));
            }
            let managed = Managed(Form::Versioned(content.as_ptr().cast()));
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
    fn memory(&self, place: Place, how: Use) -> Result<(*mut u8, usize), String> {
        let (tensor, flags) = match &self.0 {
            // SAFETY: the pointer came from a capsule of this name, so its producer vouches for it until its deleter is called,
            // which only `drop` does.
            Form::Unversioned(managed) => (unsafe { &(**managed).tensor }, 0),
            // SAFETY: as above.
            Form::Versioned(managed) => unsafe { (&(**managed).tensor, (**managed).flags) },
        };
        if place_of(tensor.device_type, tensor.device_id)? != place {
            return Err("its memory is not on the device that it said".to_owned());
        }
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
        Python::try_attach(|_| match &self.0 {
            // SAFETY: taken out of its capsule, the tensor is ours, and nobody uses it any more.
            Form::Unversioned(managed) => unsafe {
                if let Some(delete) = (**managed).deleter {
                    delete(*managed);
                }
            },
            // SAFETY: as above.
            Form::Versioned(managed) => unsafe {
                if let Some(delete) = (**managed).deleter {
                    delete(*managed);
                }
            },
        });
    }
}
