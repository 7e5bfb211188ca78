//! Frames of either kind of memory, as a device's tiers have them: the host's, and a GPU's, whose bytes only copies reach.

use crate::disk::Room;
use kvhive_gpu::cuda::{CudaDevice, GpuSlab, Staging};
use kvhive_gpu::worker::Extent;
use kvhive_gpu::{Device, DeviceError, ReadFrame, WriteFrame};
use kvhive_protocol::block::digest_of_pieces;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// A sealed frame.
#[derive(Clone)]
pub(crate) enum Frame {
    Host(ReadFrame),
    Gpu(GpuFrame),
}

/// A sealed frame of a GPU's memory, with the GPU.
#[derive(Clone)]
pub(crate) struct GpuFrame {
    device: Arc<CudaDevice>,
    frame: ReadFrame<GpuSlab>,
}

/// A frame that is being written.
pub(crate) enum Fresh {
    Host(WriteFrame),
    Gpu(FreshGpu),
}

/// A frame of a GPU's memory, and what is written to it, in the host's until it is whole.
pub(crate) struct FreshGpu {
    device: Arc<CudaDevice>,
    frame: WriteFrame<GpuSlab>,
    /// Taken when somebody begins to write.
    here: Option<Staging>,
}

/// Bytes of the host's memory that came from a GPU, in room that was waited for.
pub(crate) struct Brought {
    bytes: Staging,
    /// Given back when the memory is, whoever has it until then.
    _room: Option<Room>,
}

impl Brought {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl AsMut<[u8]> for Brought {
    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes.as_mut()
    }
}

/// What is being brought. The copy has it, and lets go of it after the frame.
struct Bringing<T> {
    brought: Brought,
    with: T,
}

impl<T> Bringing<T> {
    fn end(self) -> Brought {
        drop(self.with);
        self.brought
    }
}

impl<T> AsMut<[u8]> for Bringing<T> {
    fn as_mut(&mut self) -> &mut [u8] {
        self.brought.as_mut()
    }
}

impl Frame {
    /// Returns its bytes, copied from where they are if they must be; not where that must not block.
    ///
    /// # Errors
    /// When its GPU does not give them.
    pub(crate) fn read(&self) -> Result<Cow<'_, [u8]>, DeviceError> {
        match self {
            Frame::Host(frame) => Ok(Cow::Borrowed(frame.bytes())),
            Frame::Gpu(GpuFrame { device, frame }) => {
                let (tell, told) = channel();
                device.download(frame.clone(), vec![0; frame.len()], move |ended| {
                    // Whoever asked may be waiting no longer.
                    let _ = tell.send(ended);
                });
                told.recv_timeout(device.patience().copy)
                    .unwrap_or_else(|_| Err(late(device)))
                    .map(Cow::Owned)
            }
        }
    }

    /// Has it be wiped when it is free: what it holds is nobody's.
    pub(crate) fn call_stale(&self) {
        match self {
            Frame::Host(frame) => frame.call_stale(),
            Frame::Gpu(one) => one.frame.call_stale(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Frame::Host(frame) => frame.len(),
            Frame::Gpu(one) => one.frame.len(),
        }
    }

    /// Copies it into a fresh frame of another tier or of another device, of one GPU from another that it reaches, and calls `done` when that has ended, well or not; this one is let go of before. `block`
    /// has something be done where it may block.
    pub(crate) fn copy(
        self,
        to: Fresh,
        block: impl FnOnce(Box<dyn FnOnce() + Send>),
        done: impl FnOnce(Option<Frame>) + Send + 'static,
    ) {
        match (self, to) {
            (Frame::Host(from), Fresh::Host(mut to)) => block(Box::new(move || {
                to.bytes_mut().copy_from_slice(from.bytes());
                drop(from);
                done(Some(Frame::Host(to.seal())));
            })),
            (Frame::Host(from), Fresh::Gpu(to)) => {
                to.upload(from, (), |sent| done(sent.map(|(frame, ())| frame)))
            }
            (Frame::Gpu(from), Fresh::Host(to)) => {
                from.device.download(from.frame, to, move |ended| {
                    done(ended.ok().map(|frame| Frame::Host(frame.seal())));
                });
            }
            (Frame::Gpu(from), Fresh::Gpu(FreshGpu { device, frame, .. })) => {
                let own = device.clone();
                device.take(from.frame, frame, move |ended| {
                    done(ended.ok().map(|frame| Frame::Gpu(GpuFrame { device: own, frame: frame.seal() })));
                });
            }
        }
    }
}

impl GpuFrame {
    /// Returns the frame itself.
    pub(crate) fn frame(&self) -> &ReadFrame<GpuSlab> {
        &self.frame
    }

    /// Returns where it is in its GPU's slab.
    pub(crate) fn extent(&self) -> Extent {
        Extent { at: self.frame.offset() as u64, bytes: self.frame.len() as u64 }
    }

    /// Says whether its GPU does anything still.
    pub(crate) fn answers(&self) -> bool {
        self.device.loss().is_none()
    }

    /// Says whether a GPU reads it by itself.
    pub(crate) fn is_reached_by(&self, gpu: &CudaDevice) -> bool {
        gpu.reaches_frame(&self.frame).unwrap_or(false)
    }

    /// Has its bytes come to the host's memory. None when they do not come in time; the room is then given back when the GPU has let go of
    /// the memory.
    ///
    /// # Errors
    /// [`DeviceError::Lost`]: they are no more.
    pub(crate) async fn bring(self, room: Option<Room>) -> Result<Option<Brought>, DeviceError> {
        self.bring_with(room, ()).await
    }

    /// As [`GpuFrame::bring`]; `with` is dropped when the GPU has let go of the frame, however that ends and whoever waits.
    ///
    /// # Errors
    /// [`DeviceError::Lost`]: they are no more.
    pub(crate) async fn bring_with<T: Send + 'static>(
        self,
        room: Option<Room>,
        with: T,
    ) -> Result<Option<Brought>, DeviceError> {
        let (tell, told) = oneshot::channel();
        let limit = self.device.patience().copy;
        let brought = Brought { bytes: self.device.staging(self.frame.len()), _room: room };
        self.device.download(self.frame, Bringing { brought, with }, move |ended| {
            // Whoever asked may be waiting no longer.
            let _ = tell.send(ended.map(Bringing::end));
        });
        match timeout(limit, told).await {
            Ok(Ok(Err(error @ DeviceError::Lost { .. }))) => Err(error),
            Ok(Ok(brought)) => Ok(brought.ok()),
            _ => Ok(None),
        }
    }
}

/// Makes an error of a copy that did not end in time.
fn late(device: &CudaDevice) -> DeviceError {
    let limit = device.patience().copy;
    DeviceError::Failed { device: device.info().name, reason: format!("no copy within {limit:?}") }
}

impl Fresh {
    pub(crate) fn gpu(device: Arc<CudaDevice>, frame: WriteFrame<GpuSlab>) -> Fresh {
        Fresh::Gpu(FreshGpu { device, frame, here: None })
    }

    /// Returns the bytes to be written: of the frame itself, or of memory that goes to it when they are whole.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Fresh::Host(frame) => frame.bytes_mut(),
            Fresh::Gpu(FreshGpu { device, frame, here }) => {
                here.get_or_insert_with(|| device.staging(frame.len())).as_mut()
            }
        }
    }

    /// Writes as many bytes as it was taken for and seals it; not where that must not block. None when its GPU does not take them.
    pub(crate) fn filled(self, bytes: &[u8]) -> Option<Frame> {
        match self {
            Fresh::Host(mut frame) => {
                frame.bytes_mut().copy_from_slice(bytes);
                Some(Frame::Host(frame.seal()))
            }
            Fresh::Gpu(frame) => {
                let (tell, told) = channel();
                let limit = frame.limit();
                frame.upload(bytes.to_vec(), (), move |sent| {
                    let _ = tell.send(sent.map(|(frame, ())| frame));
                });
                told.recv_timeout(limit).ok().flatten()
            }
        }
    }
}

impl FreshGpu {
    /// Returns where it is in its GPU's slab.
    pub(crate) fn extent(&self) -> Extent {
        Extent { at: self.frame.offset() as u64, bytes: self.frame.len() as u64 }
    }

    /// Returns the frame itself, for what is written on its GPU.
    pub(crate) fn frame_mut(&mut self) -> &mut WriteFrame<GpuSlab> {
        &mut self.frame
    }

    /// Takes the digests of what frames of one GPU hold; not where that must not block. None when it does not give them.
    pub(crate) fn digests(frames: &[&FreshGpu]) -> Option<Vec<u64>> {
        let device = &frames.first()?.device;
        let written: Vec<&WriteFrame<GpuSlab>> = frames.iter().map(|frame| &frame.frame).collect();
        let pieces = device.digests(&written).ok()?;
        let of_block =
            |(pieces, frame): (Vec<u64>, &&FreshGpu)| digest_of_pieces(&pieces, frame.frame.len() as u64);
        Some(pieces.into_iter().zip(frames).map(of_block).collect())
    }

    /// Has a sealed frame's bytes come, of this GPU or of one that it reaches, and calls `done` when they are there, or are not; `with` is
    /// dropped after the frame.
    pub(crate) fn take<T: Send + 'static>(
        self,
        from: GpuFrame,
        with: T,
        done: impl FnOnce(Option<(FreshGpu, T)>) + Send + 'static,
    ) {
        let (device, own) = (self.device.clone(), self.device);
        device.take_with(from.frame, self.frame, with, move |ended| {
            done(ended.ok().map(|(frame, with)| (FreshGpu { device: own, frame, here: None }, with)));
        });
    }

    /// Is whole: what it holds was written on its GPU.
    pub(crate) fn written(self) -> Frame {
        Frame::Gpu(GpuFrame { device: self.device, frame: self.frame.seal() })
    }

    /// Says how long its GPU is waited for.
    pub(crate) fn limit(&self) -> Duration {
        self.device.patience().copy
    }

    /// Has what was written go to the GPU, and calls `done` when it is there, or is not; `with` is dropped after the frame.
    pub(crate) fn send<T: Send + 'static>(
        mut self,
        with: T,
        done: impl FnOnce(Option<(Frame, T)>) + Send + 'static,
    ) {
        let here = self.here.take().unwrap_or_else(|| self.device.staging(self.frame.len()));
        self.upload(here, with, done);
    }

    /// Has as many bytes as it was taken for go to the GPU. None when it does not take them.
    pub(crate) async fn sent(self, bytes: impl AsRef<[u8]> + Send + 'static) -> Option<Frame> {
        let (tell, told) = oneshot::channel();
        let limit = self.limit();
        self.upload(bytes, (), move |sent| {
            let _ = tell.send(sent.map(|(frame, ())| frame));
        });
        timeout(limit, told).await.ok()?.ok().flatten()
    }

    fn upload<T: Send + 'static>(
        self,
        bytes: impl AsRef<[u8]> + Send + 'static,
        with: T,
        done: impl FnOnce(Option<(Frame, T)>) + Send + 'static,
    ) {
        let (device, own) = (self.device.clone(), self.device);
        device.upload_with(bytes, self.frame, with, move |ended| {
            let sealed =
                |frame: WriteFrame<GpuSlab>| Frame::Gpu(GpuFrame { device: own, frame: frame.seal() });
            done(ended.ok().map(|(frame, with)| (sealed(frame), with)));
        });
    }
}
