//! What a GPU does with blocks on a stage: all of one request at once, on a thread that may block. Whatever becomes of whoever asked, frames
//! and stage are held until the GPU is done with them.

use crate::far::FarGuard;
use crate::frames::{Fresh, GpuFrame};
use crate::guards::{ReadGuard, WriteGuard};
use crate::share::Staged;
use kvhive_client::codec;
use kvhive_gpu::cuda::{GpuSlab, PagerError};
use kvhive_gpu::{ReadFrame, WriteFrame};
use kvhive_protocol::block::{Codec, digest, digest_of_pieces};
use kvhive_protocol::{BlockHeader, Layout};
use std::time::Duration;

/// Blocks that are taken from a stage.
pub(crate) struct Taking {
    staged: Staged,
    layout: Layout,
    blocks: Vec<(usize, WriteGuard, u64)>,
    present: Vec<(usize, FarGuard, GpuFrame)>,
}

/// What came of it: each block's guard and digest, and what was here already and is sound or not.
pub(crate) struct Took {
    pub(crate) written: Vec<(usize, WriteGuard, u64)>,
    pub(crate) present: Vec<(usize, FarGuard, bool)>,
}

/// A frame that is written, and where on the stage its block is.
type Into<'a> = (&'a mut WriteFrame<GpuSlab>, u64);

impl Taking {
    pub(crate) fn new(staged: Staged, layout: Layout) -> Taking {
        Taking { staged, layout, blocks: Vec::new(), present: Vec::new() }
    }

    /// Takes a block of this number to its frame.
    pub(crate) fn add(&mut self, number: usize, guard: WriteGuard, at: u64) {
        self.blocks.push((number, guard, at));
    }

    /// Looks at a block that is on the GPU.
    pub(crate) fn look_at(&mut self, number: usize, far: FarGuard) {
        if let Some(frame) = far.gpu_frame() {
            self.present.push((number, far, frame));
        }
    }

    pub(crate) fn limit(&self) -> Duration {
        self.staged.limit()
    }

    /// Does all of it.
    ///
    /// # Errors
    /// Why a GPU did not: nothing of it is under way any more.
    pub(crate) fn run(mut self) -> Result<Took, String> {
        let digests = self.take().map_err(|error| error.to_string())?;
        let frames: Vec<(&GpuFrame, &BlockHeader)> =
            self.present.iter().map(|(_, far, frame)| (frame, far.header())).collect();
        let sound = are_sound(&self.staged, &frames).map_err(|error| error.to_string())?;
        let present = self.present.into_iter().zip(sound).map(|((number, far, _), is_sound)| {
            if !is_sound {
                far.report_lost();
            }
            (number, far, is_sound)
        });
        let written =
            self.blocks.into_iter().zip(digests).map(|((number, guard, _), digest)| (number, guard, digest));
        Ok(Took { written: written.collect(), present: present.collect() })
    }

    /// Fills every frame, and returns the digest of each.
    fn take(&mut self) -> Result<Vec<u64>, PagerError> {
        let (ferry, layout) = (self.staged.ferry(), &self.layout);
        let mut digests = vec![0; self.blocks.len()];
        let mut on_gpu: [Vec<(usize, Into<'_>)>; Codec::ALL.len()] = Default::default();
        let mut here: Vec<(usize, Codec, &mut [u8], u64)> = Vec::new();
        for (number, (_, guard, at)) in self.blocks.iter_mut().enumerate() {
            let Some((frame, header)) = guard.parts_mut() else { continue };
            match frame {
                Fresh::Gpu(frame) => on_gpu[header.codec as usize].push((number, (frame.frame_mut(), *at))),
                Fresh::Host(frame) => here.push((number, header.codec, frame.bytes_mut(), *at)),
            }
        }
        for (codec, group) in Codec::ALL.into_iter().zip(on_gpu).filter(|(_, group)| !group.is_empty()) {
            let (numbers, mut blocks): (Vec<usize>, Vec<Into<'_>>) = group.into_iter().unzip();
            let pieces = match codec {
                Codec::Raw => ferry.take(&mut blocks)?,
                codec => {
                    let (codec, shape) = codec::on_gpu(codec, layout);
                    ferry.encode((codec, &shape), &mut blocks)?
                }
            };
            for ((number, (frame, _)), pieces) in numbers.into_iter().zip(&blocks).zip(pieces) {
                digests[number] = digest_of_pieces(&pieces, frame.len() as u64);
            }
        }
        // Frames of the host: what is not raw is encoded here, by way of memory of its own.
        let raw_bytes = layout.block_bytes().unwrap_or(0) as usize;
        let mut detours: Vec<Vec<u8>> = here
            .iter()
            .map(|(_, codec, ..)| if *codec == Codec::Raw { Vec::new() } else { vec![0; raw_bytes] })
            .collect();
        let mut blocks: Vec<(&mut [u8], u64)> = Vec::with_capacity(here.len());
        for ((_, codec, bytes, at), detour) in here.iter_mut().zip(&mut detours) {
            blocks.push((if *codec == Codec::Raw { bytes } else { detour }, *at));
        }
        if !blocks.is_empty() {
            ferry.take_down(&mut blocks)?;
        }
        let mut stored = Vec::new();
        for ((number, codec, bytes, _), detour) in here.into_iter().zip(detours) {
            if codec != Codec::Raw {
                let encoded = codec::encode(codec, layout, &detour, &mut stored);
                if encoded.is_err() || stored.len() != bytes.len() {
                    let (codec, _) = codec::on_gpu(codec, layout);
                    return Err(kvhive_gpu::pages::PagesError::Codec { codec }.into());
                }
                bytes.copy_from_slice(&stored);
            }
            digests[number] = digest(bytes);
        }
        Ok(digests)
    }
}

/// Blocks that are put on a stage.
pub(crate) struct Putting {
    staged: Staged,
    layout: Layout,
    far: Vec<(usize, FarGuard, GpuFrame, u64)>,
    near: Vec<(usize, ReadGuard, u64)>,
}

/// What came of it.
pub(crate) struct Put {
    /// What is there.
    pub(crate) there: Vec<(usize, BlockHeader)>,
    /// Blocks that are not what their headers say.
    pub(crate) damaged: u64,
}

impl Putting {
    pub(crate) fn new(staged: Staged, layout: Layout) -> Putting {
        Putting { staged, layout, far: Vec::new(), near: Vec::new() }
    }

    /// Puts a block there that is on the GPU.
    pub(crate) fn add_far(&mut self, number: usize, far: FarGuard, at: u64) {
        if let Some(frame) = far.gpu_frame() {
            self.far.push((number, far, frame, at));
        }
    }

    /// Puts a block there that is in the host's memory.
    pub(crate) fn add_near(&mut self, number: usize, guard: ReadGuard, at: u64) {
        self.near.push((number, guard, at));
    }

    pub(crate) fn limit(&self) -> Duration {
        self.staged.limit()
    }

    /// Does all of it.
    ///
    /// # Errors
    /// Why a GPU did not: nothing of it is under way any more.
    pub(crate) fn run(mut self) -> Result<Put, String> {
        let mut put = Put { there: Vec::new(), damaged: 0 };
        self.check(&mut put).map_err(|error| error.to_string())?;
        self.put(&mut put).map_err(|error| error.to_string())?;
        Ok(put)
    }

    /// Lets go of what is not what its header says: nobody looks at it again after this.
    fn check(&mut self, put: &mut Put) -> Result<(), PagerError> {
        let frames: Vec<(&GpuFrame, &BlockHeader)> =
            self.far.iter().map(|(_, far, frame, _)| (frame, far.header())).collect();
        let mut sound = are_sound(&self.staged, &frames)?.into_iter();
        let before = self.far.len() + self.near.len();
        self.far.retain(|(_, far, ..)| {
            let is_sound = sound.next().unwrap_or(false);
            if !is_sound {
                far.report_lost();
            }
            is_sound
        });
        self.near.retain(|(_, guard, _)| guard.check().is_ok());
        put.damaged += (before - self.far.len() - self.near.len()) as u64;
        Ok(())
    }

    fn put(&self, put: &mut Put) -> Result<(), PagerError> {
        let (ferry, layout) = (self.staged.ferry(), &self.layout);
        for codec in Codec::ALL {
            let of_codec = || self.far.iter().filter(|(_, far, ..)| far.header().codec == codec);
            let blocks: Vec<(&ReadFrame<GpuSlab>, u64)> =
                of_codec().map(|(_, _, frame, at)| (frame.frame(), *at)).collect();
            if blocks.is_empty() {
                continue;
            }
            match codec {
                Codec::Raw => ferry.put(&blocks)?,
                codec => {
                    let (codec, shape) = codec::on_gpu(codec, layout);
                    ferry.decode((codec, &shape), &blocks)?;
                }
            }
            put.there.extend(of_codec().map(|(number, far, ..)| (*number, *far.header())));
        }
        let mut decoded = Vec::new();
        for (number, guard, at) in &self.near {
            let header = guard.header();
            let raw = match header.codec {
                Codec::Raw => None,
                codec => {
                    let mut raw = vec![0; layout.block_bytes().unwrap_or(0) as usize];
                    // What does not decode is a miss: its asker has it as it is stored, and sees for itself.
                    if codec::decode(codec, layout, guard.bytes(), &mut raw).is_err() {
                        continue;
                    }
                    Some(raw)
                }
            };
            decoded.push((*number, guard, *at, raw));
        }
        let blocks: Vec<(&[u8], u64)> = decoded
            .iter()
            .map(|(_, guard, at, raw)| (raw.as_deref().unwrap_or(guard.bytes()), *at))
            .collect();
        if !blocks.is_empty() {
            ferry.put_up(&blocks)?;
        }
        put.there.extend(decoded.iter().map(|(number, guard, ..)| (*number, *guard.header())));
        Ok(())
    }
}

/// Says of each block on the GPU whether it is what its header says.
fn are_sound(staged: &Staged, blocks: &[(&GpuFrame, &BlockHeader)]) -> Result<Vec<bool>, PagerError> {
    if blocks.is_empty() {
        return Ok(Vec::new());
    }
    let frames: Vec<&ReadFrame<GpuSlab>> = blocks.iter().map(|(frame, _)| frame.frame()).collect();
    let digests = staged.ferry().digests(&frames)?;
    let is_sound = |(pieces, (_, header)): (Vec<u64>, &(&GpuFrame, &BlockHeader))| {
        digest_of_pieces(&pieces, header.payload_bytes) == header.digest
    };
    Ok(digests.into_iter().zip(blocks).map(is_sound).collect())
}
