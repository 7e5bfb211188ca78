//! One device's part of a fetch: requests over one connection, blocks into their places, each checked there.

use crate::codec;
use crate::fetch::{BYTES_PER_TRANSFER, FetchOutcome, Loaded, MissReason, blocks_per_transfer, senseless};
use crate::line::{Line, WINDOW};
use crate::look::{self, Bytes};
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::queue::Work;
use crate::rounds::Read;
use crate::route::{Job, split};
use crate::stats::count;
use crate::targets::Targets;
use crate::windows::Opened;
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{Accept, DataReply, DataRequest, FetchRequest, GuestRequest};
use kvhive_protocol::share::{DoneRequest, LEAST_SHARED_BYTES, LookRequest};
use kvhive_protocol::{BlockHeader, ClusterMap, DeviceId, HeaderError, KeyList, Level};
use kvhive_wire::{Connection, Fault};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::time::Instant;

/// Bytes of one transfer from which on its speed says something.
const LEAST_MEASURED: u64 = 64 << 10;

impl NamespaceClient {
    /// Fetches what one device is asked for, in parts and in order; stops at the first part that fails as a whole. Raises
    /// `begun` when the first answer has come.
    pub(crate) async fn transfer(
        &self,
        read: &Read<'_>,
        job: Job,
        begun: &AtomicBool,
        targets: &Targets<'_>,
    ) -> Option<(DeviceId, Fault)> {
        let device = job.device;
        let blocks = blocks_per_transfer(BYTES_PER_TRANSFER, self.block_bytes);
        // Guests are not where others see them.
        let is_worth_it = self.block_bytes >= LEAST_SHARED_BYTES && !job.is_guest;
        let mut left = VecDeque::from(split(job, blocks));
        let limit = read.deadline.saturating_duration_since(Instant::now());
        let exchange = async {
            let mut opened = None;
            if is_worth_it {
                opened = self.shared().windows_of(read.map, device, read.trace, read.deadline).await;
            }
            let mut line =
                Line::open(self.shared(), read.map, device, Work::Blocks, read.trace, read.deadline).await?;
            loop {
                match self.fetch_over(&mut line, read, &mut left, begun, (targets, &mut opened)).await {
                    Err(fault) if !matches!(fault, Fault::Refused(_)) => line.revive(fault).await?,
                    ended => {
                        line.end().await;
                        return ended;
                    }
                }
            }
        };
        let ended =
            tokio::time::timeout_at(read.deadline, exchange).await.unwrap_or(Err(Fault::Timeout(limit)));
        ended.err().map(|fault| (device, fault))
    }

    /// Asks for the parts that are left and takes their blocks in. A part leaves `left` when its answer has begun.
    async fn fetch_over(
        &self,
        line: &mut Line<'_>,
        read: &Read<'_>,
        left: &mut VecDeque<Job>,
        begun: &AtomicBool,
        (targets, opened): (&Targets<'_>, &mut Option<Arc<Opened>>),
    ) -> Result<(), Fault> {
        let is_understood = line.connection().level() >= Level::LINKS;
        let seen = opened.clone().filter(|_| is_understood);
        let mut arriving: Option<(Instant, u64)> = None;
        while !left.is_empty() {
            while let Some(job) = left.get(line.unanswered()).filter(|_| line.unanswered() < WINDOW) {
                let fetch = self.fetch_request(read.map, read.prefix, job);
                let request = match opened.as_ref().filter(|_| is_understood) {
                    _ if job.is_guest => {
                        // Its answer takes time too.
                        let limit = read.deadline.saturating_duration_since(Instant::now()) / 2;
                        let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
                        DataRequest::Guest(Box::new(GuestRequest { fetch, limit_ms }))
                    }
                    Some(opened) => DataRequest::Look(LookRequest { start: opened.start(), fetch }),
                    None => DataRequest::Fetch(fetch),
                };
                line.ask(&request, &[], self.block_bytes).await?;
            }
            let reply = line.answer().await?;
            begun.store(true, Ordering::Relaxed);
            let (_, bytes) = arriving.get_or_insert_with(|| (Instant::now(), 0));
            let job = left.pop_front().expect("what was asked is left until it is answered");
            let part =
                self.take_part(line.connection(), read, &job, reply, (targets, seen.as_deref())).await?;
            *bytes += part.bytes;
            if part.grant > 0 {
                let done = DoneRequest { epoch: read.map.epoch, grant: part.grant };
                line.tell(&DataRequest::Done(done)).await?;
            }
            if part.is_torn {
                // Once more, over the connection: it says whether the block has gone or is damaged.
                self.shared().is_torn(read.map, job.device);
                *opened = None;
                left.push_back(job);
            }
        }
        if let Some((since, bytes)) = arriving.filter(|(_, bytes)| *bytes >= LEAST_MEASURED) {
            self.shared().waits().arrived(bytes, self.shared().now(), since.elapsed());
        }
        Ok(())
    }

    fn fetch_request(&self, map: &ClusterMap, prefix: &Prefix, job: &Job) -> FetchRequest {
        let keys: KeyList = job.positions.iter().map(|at| prefix.keys()[*at]).collect();
        FetchRequest {
            epoch: map.epoch,
            device: job.device,
            tenant: self.tenant,
            runs: job.runs.clone(),
            keys,
            accept: if self.reads_raw() { Accept::Raw(self.layout()) } else { Accept::Stored },
        }
    }

    /// Takes the blocks of one answer in.
    async fn take_part(
        &self,
        connection: &mut Connection,
        read: &Read<'_>,
        job: &Job,
        reply: DataReply,
        (targets, seen): (&Targets<'_>, Option<&Opened>),
    ) -> Result<Part, Fault> {
        let Some((blocks, grant)) = look::found(reply) else {
            return Err(senseless("a fetch was answered otherwise"));
        };
        let bytes = |is_sent: bool| {
            let of_kind = blocks.iter().flatten().filter(move |(_, at)| at.is_none() == is_sent);
            of_kind.map(|(header, _)| header.payload_bytes).fold(0, u64::saturating_add)
        };
        let (announced, shown) = (bytes(true), bytes(false));
        if blocks.len() != job.positions.len() || announced != connection.payload_left() {
            return Err(senseless("a fetch's answer does not fit its question or its payload"));
        }
        let mut part = Part { bytes: announced.saturating_add(shown), grant, is_torn: false };
        for (at, block) in job.positions.iter().zip(blocks) {
            let Some((header, shown_at)) = block else {
                targets.absent(*at, read.is_final(job.device, *at));
                continue;
            };
            let bytes = match (shown_at, seen) {
                (None, _) => Bytes::Sent,
                (Some(at), Some(opened)) => Bytes::Seen(opened, at),
                (Some(_), None) => return Err(senseless("a place was told to one who looks at none")),
            };
            let Some(mut claim) = targets.claim(*at) else {
                // Another replica was quicker.
                bytes.skip(connection, header.payload_bytes).await?;
                continue;
            };
            let checked = self.receive(read, *at, &header, (bytes, &mut *connection), claim.memory()).await?;
            if bytes.is_seen() && checked == Err(HeaderError::Digest) {
                part.is_torn = true;
                continue;
            }
            match checked {
                Ok(loaded) => claim.settle(FetchOutcome::Loaded(loaded)),
                Err(error) => {
                    self.note_refused(read, *at, job.device, error);
                    if job.is_guest {
                        // Replicas may have it right: they have not been asked.
                        drop(claim);
                        targets.absent(*at, false);
                    } else {
                        claim.settle(FetchOutcome::Missed(MissReason::Corrupt(error)));
                    }
                }
            }
        }
        if let Some(windows) = self.shared().windows.as_ref().filter(|_| shown > 0) {
            windows.copied(shown);
        }
        Ok(part)
    }

    fn note_refused(&self, read: &Read<'_>, at: usize, device: DeviceId, error: HeaderError) {
        count(&self.shared().counters.corrupt_blocks, 1);
        let key = read.prefix.keys()[at];
        match error {
            // A clear is under way: all that the tenant had comes back so, until the node has heard of it too.
            HeaderError::Era => tracing::debug!(?key, %device, %error, "block refused"),
            _ => tracing::warn!(?key, %device, %error, "block refused"),
        }
    }

    /// Reads one block into its place and checks it there, or decodes it to there when it was checked: the only maker of
    /// [`Loaded`].
    async fn receive(
        &self,
        Read { map, prefix, .. }: &Read<'_>,
        at: usize,
        header: &BlockHeader,
        (bytes, connection): (Bytes<'_>, &mut Connection),
        target: &mut [u8],
    ) -> Result<Result<Loaded, HeaderError>, Fault> {
        let checked = header.check(&prefix.keys()[at], self.fingerprint, self.tenant, self.era(map, prefix));
        let expected = match header.codec {
            Codec::Raw if header.payload_bytes == target.len() as u64 => Ok(()),
            Codec::Raw => Err(HeaderError::Length),
            codec if self.reads_raw() => Err(HeaderError::Codec(codec)),
            // No codec makes a block larger.
            _ if header.payload_bytes <= target.len() as u64 => Ok(()),
            _ => Err(HeaderError::Length),
        };
        if let Err(error) = checked.and(expected) {
            bytes.skip(connection, header.payload_bytes).await?;
            return Ok(Err(error));
        }
        let loaded = Loaded { bytes: target.len() as u64, stored_bytes: header.payload_bytes };
        if header.codec == Codec::Raw {
            let digest = bytes.read(connection, target).await?;
            return Ok(if digest == Some(header.digest) { Ok(loaded) } else { Err(HeaderError::Digest) });
        }
        let mut stored = vec![0; header.payload_bytes as usize];
        let digest = bytes.read(connection, &mut stored).await?;
        if digest != Some(header.digest) {
            return Ok(Err(HeaderError::Digest));
        }
        if let Err(error) = codec::decode(header.codec, &self.layout(), &stored, target) {
            tracing::debug!(%error, codec = header.codec.name(), "block not decoded");
            return Ok(Err(HeaderError::Codec(header.codec)));
        }
        count(&self.shared().counters.decoded_blocks, 1);
        Ok(Ok(loaded))
    }
}

/// What one answer came to.
struct Part {
    /// Bytes of its blocks.
    bytes: u64,
    /// What the node holds for this client until it is done; 0 for nothing.
    grant: u64,
    /// Something that was looked at is not what was to be there.
    is_torn: bool,
}
