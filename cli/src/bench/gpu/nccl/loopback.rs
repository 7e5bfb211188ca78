//! The same bytes over TCP: from a GPU to pinned memory, by a loopback connection to pinned memory, and from there to a GPU, 1 MiB at a time.

use anyhow::{Context, Result, ensure};
use kvhive_gpu::cuda::{Between, Copier, Gpu, GpuMemory, Part, Pinned, Timer};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::LARGEST;

/// Bytes that are copied and sent as one.
const PIECE: usize = 1 << 20;
/// What goes before the first: how many bytes come, and whether they are to be sent back.
const HEAD: usize = 16;

/// One end of it; the other is a thread, which ends with the connection.
pub(super) struct Loopback {
    stream: Option<TcpStream>,
    end: End,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What copies between a GPU and pinned memory, which has room for a head before its piece.
struct End {
    copier: Copier,
    timer: Timer,
    here: Pinned,
}

/// Makes a connection over loopback, and returns how long that took.
///
/// # Errors
/// When a socket fails.
pub(super) fn connect() -> Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let begun = Instant::now();
    let _stream = TcpStream::connect(listener.local_addr()?)?;
    let _accepted = listener.accept()?;
    Ok(begun.elapsed())
}

impl Loopback {
    /// Starts the other end, at the second of two GPUs.
    ///
    /// # Errors
    /// When a socket or a GPU fails.
    pub(super) fn start(first: &Arc<Gpu>, second: &Arc<Gpu>) -> Result<Loopback> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        let (accepted, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        accepted.set_nodelay(true)?;
        let (end, mut other) = (End::new(first)?, End::new(second)?);
        let mut to = GpuMemory::new(second, LARGEST)?;
        let thread = std::thread::Builder::new().name("loopback".to_owned());
        let thread = thread.spawn(move || other.serve(accepted, &mut to))?;
        Ok(Loopback { stream: Some(stream), end, thread: Some(thread) })
    }

    /// Has so many bytes be at the other GPU, and returns how long that took.
    ///
    /// # Errors
    /// When the connection or a GPU fails.
    pub(super) fn send(&mut self, from: &GpuMemory, bytes: usize) -> Result<Duration> {
        let begun = Instant::now();
        self.push(from, bytes, false)?;
        Ok(begun.elapsed())
    }

    fn push(&mut self, from: &GpuMemory, bytes: usize, is_returned: bool) -> Result<()> {
        let Loopback { stream: Some(stream), end, .. } = self else { return Ok(()) };
        let head = [bytes as u64, u64::from(is_returned)];
        for (at, word) in head.iter().enumerate() {
            end.here.bytes_mut()[at * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
        for at in (0..bytes).step_by(PIECE) {
            let piece = PIECE.min(bytes - at);
            end.down(from, at, piece)?;
            // The head goes with the first.
            let begin = if at == 0 { 0 } else { HEAD };
            stream.write_all(&end.here.bytes()[begin..HEAD + piece])?;
        }
        let mut done = [0];
        stream.read_exact(&mut done).context("the other end of the loopback connection has failed")
    }

    /// Checks that so many bytes are at the other GPU as they were at this one.
    ///
    /// # Errors
    /// When they are not, or something fails.
    pub(super) fn is_exact(&mut self, from: &mut GpuMemory, bytes: usize) -> Result<()> {
        let mut sent = vec![0; bytes];
        SmallRng::seed_from_u64(!(bytes as u64)).fill_bytes(&mut sent);
        for (at, piece) in (0..bytes).step_by(PIECE).zip(sent.chunks(PIECE)) {
            self.end.here.bytes_mut()[HEAD..][..piece.len()].copy_from_slice(piece);
            self.end.up(from, at, piece.len())?;
        }
        self.push(from, bytes, true)?;
        let mut back = vec![0; bytes];
        if let Some(stream) = &mut self.stream {
            stream.read_exact(&mut back)?;
        }
        ensure!(back == sent, "of {bytes} bytes some came over TCP as others");
        Ok(())
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.stream = None;
        // What it failed of was told where it was missed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl End {
    fn new(gpu: &Arc<Gpu>) -> Result<End> {
        Ok(End { copier: Copier::new(gpu)?, timer: Timer::new(gpu)?, here: Pinned::new(gpu, HEAD + PIECE)? })
    }

    fn down(&mut self, from: &GpuMemory, at: usize, bytes: usize) -> Result<()> {
        let part = Part { from: at, to: HEAD, bytes };
        self.copier.timed(&self.timer, Between::ToHost(from, &mut self.here), &[part], 1)?;
        Ok(())
    }

    fn up(&mut self, to: &mut GpuMemory, at: usize, bytes: usize) -> Result<()> {
        let part = Part { from: HEAD, to: at, bytes };
        self.copier.timed(&self.timer, Between::ToGpu(&self.here, to), &[part], 1)?;
        Ok(())
    }

    fn serve(&mut self, mut stream: TcpStream, to: &mut GpuMemory) -> Result<()> {
        let mut head = [0; HEAD];
        while stream.read_exact(&mut head).is_ok() {
            let (bytes, is_returned) = (u64::from_le_bytes(head[..8].try_into()?), head[8] == 1);
            let bytes = usize::try_from(bytes)?.min(to.len());
            for at in (0..bytes).step_by(PIECE) {
                let piece = PIECE.min(bytes - at);
                stream.read_exact(&mut self.here.bytes_mut()[HEAD..HEAD + piece])?;
                self.up(to, at, piece)?;
            }
            stream.write_all(&[1])?;
            if is_returned {
                for at in (0..bytes).step_by(PIECE) {
                    let piece = PIECE.min(bytes - at);
                    self.down(to, at, piece)?;
                    stream.write_all(&self.here.bytes()[HEAD..HEAD + piece])?;
                }
            }
        }
        Ok(())
    }
}
