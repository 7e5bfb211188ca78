//! Memory of Python objects as slices: taken by the buffer protocol or through DLPack, checked, held until the last use. Memory of a GPU
//! passes through the host's, some blocks at a time.
//!
//! The only module of this crate with unsafe code. What makes it sound: an object's memory stays where it is for as long as its
//! export is held; [`Regions`](crate::regions::Regions) refuses memory that another call uses; and what is checked here is checked
//! before a slice is made, or an address copied from or to.
#![allow(unsafe_code)]

mod dlpack;
mod passage;

use crate::errors::{Failure, Kind};
use crate::regions::{Claim, Regions, Use};
use dlpack::{Managed, Trouble};
use kvhive_client::StageLease;
use kvhive_gpu::cuda::Gpu;
use passage::Passage;
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyMemoryView, PyTuple};
use std::ops::Range;
use std::sync::Arc;

/// The most objects that one call takes.
const MAX_OBJECTS: usize = 1 << 16;

/// The memory of some Python objects, whole blocks each, for one call.
pub(crate) struct Lent {
    // Before what keeps the memory: a claim on memory that is gone would refuse somebody else's.
    _claim: Claim,
    regions: Vec<Region>,
    how: Use,
    /// Where the memory is a GPU's: what it passes through.
    passage: Option<Passage>,
}

/// One object's memory.
struct Region {
    start: *mut u8,
    bytes: usize,
    block_bytes: usize,
    _export: Export,
}

/// Where memory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// The host's, which this process reads and writes itself.
    Host,
    /// That of the GPU of this number.
    Gpu(u32),
}

/// What keeps memory where it is; dropped, the object is free again.
enum Export {
    Buffer(#[allow(dead_code, reason = "held for its drop")] PyUntypedBuffer),
    Dlpack(#[allow(dead_code, reason = "held for its drop")] Managed),
}

// SAFETY: a region is plain memory that its export keeps in place; exports may be released on any thread, as both attach to the
// interpreter to do so.
unsafe impl Send for Region {}

/// What the objects of one call have in common, as they are taken one by one.
struct Taking {
    /// None: each object is one block, of its own length.
    block_bytes: Option<usize>,
    how: Use,
    may_be_of_a_gpu: bool,
    place: Option<Place>,
    passage: Option<Passage>,
}

impl Lent {
    /// Takes the host's memory of `given`: one object, or a list or tuple of objects, each with a whole number of blocks.
    ///
    /// # Errors
    /// When an object has no memory that can be used so, or that is in use by another call.
    pub(crate) fn take(given: &Bound<'_, PyAny>, block_bytes: u64, how: Use) -> PyResult<Lent> {
        Lent::take_all(given, Some(block_bytes), how, false)
    }

    /// Takes the host's memory of `given`, each object of which is one block, of whatever length.
    ///
    /// # Errors
    /// As [`Lent::take`], and when an object has no bytes.
    pub(crate) fn take_whole(given: &Bound<'_, PyAny>, how: Use) -> PyResult<Lent> {
        Lent::take_all(given, None, how, false)
    }

    /// Takes memory that may also be a GPU's: to be used by [`Lent::windows`].
    ///
    /// # Errors
    /// As for [`Lent::take`]; also where some of it is the host's, or of two GPUs.
    pub(crate) fn take_anywhere(given: &Bound<'_, PyAny>, block_bytes: u64, how: Use) -> PyResult<Lent> {
        Lent::take_all(given, Some(block_bytes), how, true)
    }

    fn take_all(
        given: &Bound<'_, PyAny>,
        block_bytes: Option<u64>,
        how: Use,
        may_be_of_a_gpu: bool,
    ) -> PyResult<Lent> {
        let py = given.py();
        let block_bytes = block_bytes.map(usize::try_from).transpose().map_err(|_| {
            wrong("blocks of so many bytes are too large for this machine".to_owned()).raise(py)
        })?;
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
        let mut taking = Taking { block_bytes, how, may_be_of_a_gpu, place: None, passage: None };
        let mut regions = Vec::with_capacity(objects.len());
        for (at, object) in objects.iter().enumerate() {
            let region = taking.take_one(object, at)?;
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
        Ok(Lent { _claim: claim, regions, how, passage: taking.passage })
    }

    /// Returns how many blocks they hold.
    pub(crate) fn blocks(&self) -> usize {
        self.regions.iter().map(Region::blocks).sum()
    }

    /// Returns one slice a block, to be read.
    pub(crate) fn slices(&self) -> Vec<&[u8]> {
        assert!(self.passage.is_none(), "slices are of the host's memory");
        let pieces = self.regions.iter().flat_map(|region| {
            // SAFETY: `start` and `bytes` are of one exported, contiguous piece of the host's memory, which the region holds for as long
            // as `self` is borrowed. The claim lets no call of this crate write to it; what other threads of the process write meanwhile
            // is theirs to prevent, as with every array that is read without the interpreter's lock, and then fails the digest.
            unsafe { std::slice::from_raw_parts(region.start.cast_const(), region.bytes) }
                .chunks_exact(region.block_bytes)
        });
        pieces.collect()
    }

    /// Returns one slice a block, to be written.
    pub(crate) fn slices_mut(&mut self) -> Vec<&mut [u8]> {
        assert_eq!(self.how, Use::Write, "memory is written only where it was taken to be written");
        assert!(self.passage.is_none(), "slices are of the host's memory");
        let pieces = self.regions.iter_mut().flat_map(|region| {
            // SAFETY: as above, and the object says that it may be written. The claim was made for writing (asserted), so that no two regions
            // overlap, neither of this call nor of another: this is the only slice of this crate on the memory.
            unsafe { std::slice::from_raw_parts_mut(region.start, region.bytes) }
                .chunks_exact_mut(region.block_bytes)
        });
        pieces.collect()
    }

    /// Returns the size of each block, where all have the same.
    fn block_bytes(&self) -> usize {
        self.regions.first().map_or(1, |region| region.block_bytes)
    }

    /// Returns which of some blocks are worked on at a time: all of them where the memory is the host's, else as many as pass through it.
    pub(crate) fn windows(&self, blocks: Range<usize>) -> Vec<Range<usize>> {
        match &self.passage {
            Some(passage) if !blocks.is_empty() => {
                let windows = passage.windows(blocks.len(), self.block_bytes());
                windows.iter().map(|part| blocks.start + part.start..blocks.start + part.end).collect()
            }
            _ => vec![blocks],
        }
    }

    /// Returns the GPU whose memory it is, if it is one's.
    pub(crate) fn gpu(&self) -> Option<&Arc<Gpu>> {
        self.passage.as_ref().map(Passage::gpu)
    }

    /// Copies the blocks of a window to a stage, one after the other from its first byte on.
    ///
    /// # Errors
    /// When the stage has not so much room, or the GPU does not copy.
    pub(crate) fn put_on(&mut self, stage: &StageLease, window: &Range<usize>) -> Result<(), Failure> {
        let (block_bytes, addresses) = (self.block_bytes(), addresses(&self.regions, window));
        let on_stage = places(stage, addresses.len(), block_bytes)?;
        let Some(passage) = &mut self.passage else { return Ok(()) };
        // SAFETY: the addresses are of blocks of the passage's GPU, whole ones, in memory that `self` holds; the claim lets no call of this crate
        // write to it. The stage was taken of the same GPU, is one call's alone, and has room for them.
        unsafe { passage.within(addresses.into_iter().zip(on_stage), block_bytes) }
    }

    /// Copies those blocks of a window from a stage that are there.
    ///
    /// # Errors
    /// As for [`Lent::put_on`].
    pub(crate) fn take_off(
        &mut self,
        stage: &StageLease,
        window: &Range<usize>,
        is_there: impl Fn(usize) -> bool,
    ) -> Result<(), Failure> {
        assert_eq!(self.how, Use::Write, "memory is written only where it was taken to be written");
        let (block_bytes, addresses) = (self.block_bytes(), addresses(&self.regions, window));
        let on_stage = places(stage, addresses.len(), block_bytes)?;
        let Some(passage) = &mut self.passage else { return Ok(()) };
        let both = on_stage.zip(addresses).enumerate().filter(|(at, _)| is_there(*at)).map(|(_, both)| both);
        // SAFETY: as above, and the claim was made for writing (asserted): nobody else of this crate uses the memory.
        unsafe { passage.within(both, block_bytes) }
    }

    /// Returns one slice for each block of a window, with what is in it.
    ///
    /// # Errors
    /// When a GPU does not copy.
    pub(crate) fn read(&mut self, window: &Range<usize>) -> Result<Vec<&[u8]>, Failure> {
        if self.passage.is_none() {
            return Ok(self.slices().into_iter().skip(window.start).take(window.len()).collect());
        }
        let (block_bytes, addresses) = (self.block_bytes(), addresses(&self.regions, window));
        let passage = self.passage.as_mut().expect("it was just looked at");
        // SAFETY: the addresses are of blocks of the passage's GPU, whole ones, in memory that `self` holds; the claim lets no call of this
        // crate write to it.
        unsafe { passage.fetch(&addresses, block_bytes) }
    }

    /// Returns one slice for each block of a window, to be written.
    ///
    /// # Errors
    /// When a GPU's driver has no memory for what passes through.
    pub(crate) fn begin_writing(&mut self, window: &Range<usize>) -> Result<Vec<&mut [u8]>, Failure> {
        if self.passage.is_none() {
            return Ok(self.slices_mut().into_iter().skip(window.start).take(window.len()).collect());
        }
        let block_bytes = self.block_bytes();
        let passage = self.passage.as_mut().expect("it was just looked at");
        passage.slices(window.len(), block_bytes)
    }

    /// Has those blocks of a window be where they belong that were written.
    ///
    /// # Errors
    /// When a GPU does not copy.
    pub(crate) fn end_writing(
        &mut self,
        window: &Range<usize>,
        is_written: impl Fn(usize) -> bool,
    ) -> Result<(), Failure> {
        assert_eq!(self.how, Use::Write, "memory is written only where it was taken to be written");
        let (block_bytes, addresses) = (self.block_bytes(), addresses(&self.regions, window));
        match &mut self.passage {
            // SAFETY: as for `read`, and the claim was made for writing (asserted): nobody else of this crate uses the memory.
            Some(passage) => unsafe { passage.send(&addresses, block_bytes, is_written) },
            None => Ok(()),
        }
    }
}

impl Region {
    fn blocks(&self) -> usize {
        self.bytes / self.block_bytes
    }
}

/// Returns where so many blocks are on a stage.
fn places(
    stage: &StageLease,
    blocks: usize,
    block_bytes: usize,
) -> Result<impl Iterator<Item = u64> + use<>, Failure> {
    if (blocks * block_bytes) as u64 > stage.bytes() {
        return Err(wrong(format!("a stage of {} bytes has no room for {blocks} blocks", stage.bytes())));
    }
    Ok((stage.address()..).step_by(block_bytes))
}

/// Returns where the blocks of a window are.
fn addresses(regions: &[Region], window: &Range<usize>) -> Vec<u64> {
    let blocks = regions.iter().flat_map(|region| {
        let start = region.start.addr();
        (start..start + region.bytes).step_by(region.block_bytes)
    });
    blocks.skip(window.start).take(window.len()).map(|address| address as u64).collect()
}

impl Taking {
    fn take_one(&mut self, object: &Bound<'_, PyAny>, at: usize) -> PyResult<Region> {
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
            Ok(buffer) => {
                self.of_buffer(buffer).map_err(|why| wrong(format!("{}: {why}", what())).raise(py))?
            }
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
                self.of_tensor(object).map_err(|trouble| match trouble {
                    Trouble::Wrong(why) => wrong(format!("{}: {why}", what())).raise(py),
                    Trouble::Raised(error) => {
                        let raised = wrong(format!("{}: {}", what(), error.value(py))).raise(py);
                        raised.set_cause(py, Some(error));
                        raised
                    }
                })?
            }
        };
        if region.bytes % region.block_bytes != 0 {
            let Region { bytes, block_bytes, .. } = region;
            return Err(wrong(format!(
                "{}: {bytes} bytes are no whole number of blocks of {block_bytes} bytes",
                what()
            ))
            .raise(py));
        }
        Ok(region)
    }

    fn of_buffer(&mut self, buffer: PyUntypedBuffer) -> Result<Region, String> {
        self.is_at(Place::Host)?;
        if self.how == Use::Write && buffer.readonly() {
            return Err("it is read-only".to_owned());
        }
        if !buffer.is_c_contiguous() {
            return Err("it is not contiguous in C order".to_owned());
        }
        // Pointers in it would be read as bytes, or written over.
        if buffer.format().to_bytes().iter().any(|letter| matches!(letter, b'O' | b'P' | b'&' | b'X')) {
            return Err(format!("it holds references, not numbers (format {:?})", buffer.format()));
        }
        Ok(self.region(buffer.buf_ptr().cast(), buffer.len_bytes(), Export::Buffer(buffer)))
    }

    fn of_tensor(&mut self, object: &Bound<'_, PyAny>) -> Result<Region, Trouble> {
        let place = dlpack::place(object)?;
        self.is_at(place)?;
        if let (Place::Gpu(ordinal), None) = (place, &self.passage) {
            self.passage = Some(Passage::open(ordinal)?);
        }
        let stream = self.passage.as_ref().map(Passage::stream);
        let (managed, start, bytes) = dlpack::take(object, place, stream, self.how)?;
        Ok(self.region(start, bytes, Export::Dlpack(managed)))
    }

    fn region(&self, start: *mut u8, bytes: usize, export: Export) -> Region {
        Region { start, bytes, block_bytes: self.block_bytes.unwrap_or(bytes).max(1), _export: export }
    }

    /// Checks that a further object's memory is where that of those before it is.
    fn is_at(&mut self, place: Place) -> Result<(), String> {
        if !self.may_be_of_a_gpu && place != Place::Host {
            return Err("it is in memory of CUDA: copy it to the host first".to_owned());
        }
        if *self.place.get_or_insert(place) != place {
            return Err("its memory is elsewhere than that of those before it (host, or another GPU): make a call for each".to_owned());
        }
        Ok(())
    }
}

fn wrong(what: String) -> Failure {
    Failure::new(Kind::BadBuffer, what)
}
