//! One device's part of a fetch: requests over one connection, blocks into their places, each checked there.

use crate::codec;
use crate::fetch::{BYTES_PER_TRANSFER, FetchOutcome, Loaded, MissReason, blocks_per_transfer, senseless};
use crate::line::{Line, WINDOW};
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::rounds::Read;
use crate::route::{Job, split};
use crate::stats::count;
use crate::targets::Targets;
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{Accept, DataReply, DataRequest, FetchRequest, Fetched};
use kvhive_protocol::{BlockHeader, ClusterMap, DeviceId, HeaderError, KeyList};
use kvhive_wire::{Connection, Fault};
use std::collections::VecDeque;
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
        let mut left = VecDeque::from(split(job, blocks));
        let limit = read.deadline.saturating_duration_since(Instant::now());
        let exchange = async {
            let mut line = Line::open(self.shared(), read.map, device, read.trace, read.deadline).await?;
            loop {
                match self.fetch_over(&mut line, read, &mut left, begun, targets).await {
                    Err(fault) if !matches!(fault, Fault::Refused(_)) => line.revive(fault).await?,
                    ended => {
                        line.close();
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
        targets: &Targets<'_>,
    ) -> Result<(), Fault> {
        let mut arriving: Option<(Instant, u64)> = None;
        while !left.is_empty() {
            while let Some(job) = left.get(line.unanswered()).filter(|_| line.unanswered() < WINDOW) {
                line.ask(&self.fetch_request(read.map, read.prefix, job), &[], self.block_bytes).await?;
            }
            let reply = line.answer().await?;
            begun.store(true, Ordering::Relaxed);
            let (_, bytes) = arriving.get_or_insert_with(|| (Instant::now(), 0));
            let job = left.pop_front().expect("what was asked is left until it is answered");
            *bytes += self.take_part(line.connection(), read, &job, reply, targets).await?;
        }
        if let Some((since, bytes)) = arriving.filter(|(_, bytes)| *bytes >= LEAST_MEASURED) {
            self.shared().waits().arrived(bytes, self.shared().now(), since.elapsed());
        }
        Ok(())
    }

    fn fetch_request(&self, map: &ClusterMap, prefix: &Prefix, job: &Job) -> DataRequest {
        let keys: KeyList = job.positions.iter().map(|at| prefix.keys()[*at]).collect();
        DataRequest::Fetch(FetchRequest {
            epoch: map.epoch,
            device: job.device,
            tenant: self.tenant,
            runs: job.runs.clone(),
            keys,
            accept: if self.reads_raw() { Accept::Raw(self.layout()) } else { Accept::Stored },
        })
    }

    /// Takes the blocks of one answer in; returns their bytes.
    async fn take_part(
        &self,
        connection: &mut Connection,
        read: &Read<'_>,
        job: &Job,
        reply: DataReply,
        targets: &Targets<'_>,
    ) -> Result<u64, Fault> {
        let DataReply::Fetched { blocks, .. } = reply else {
            return Err(senseless("a fetch was answered otherwise"));
        };
        let announced: u64 = blocks.iter().map(payload_bytes).fold(0, u64::saturating_add);
        if blocks.len() != job.positions.len() || announced != connection.payload_left() {
            return Err(senseless("a fetch's answer does not fit its question or its payload"));
        }
        for (at, block) in job.positions.iter().zip(blocks) {
            let Fetched::Hit(header) = block else {
                targets.absent(*at, read.is_final(job.device, *at));
                continue;
            };
            let Some(mut claim) = targets.claim(*at) else {
                // Another replica was quicker.
                connection.skip_payload(header.payload_bytes).await?;
                continue;
            };
            let checked =
                self.receive(read.map, read.prefix, *at, &header, connection, claim.memory()).await?;
            claim.settle(checked.map_or_else(
                |error| {
                    count(&self.shared().counters.corrupt_blocks, 1);
                    tracing::warn!(key = ?read.prefix.keys()[*at], device = %job.device, %error, "block refused");
                    FetchOutcome::Missed(MissReason::Corrupt(error))
                },
                FetchOutcome::Loaded,
            ));
        }
        Ok(announced)
    }

    /// Reads one block into its place and checks it there, or decodes it to there when it was checked: the only maker of
    /// [`Loaded`].
    async fn receive(
        &self,
        map: &ClusterMap,
        prefix: &Prefix,
        at: usize,
        header: &BlockHeader,
        connection: &mut Connection,
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
            connection.skip_payload(header.payload_bytes).await?;
            return Ok(Err(error));
        }
        let loaded = Loaded { bytes: target.len() as u64, stored_bytes: header.payload_bytes };
        if header.codec == Codec::Raw {
            let digest = connection.read_payload(target).await?;
            return Ok(if digest == header.digest { Ok(loaded) } else { Err(HeaderError::Digest) });
        }
        let mut stored = vec![0; header.payload_bytes as usize];
        let digest = connection.read_payload(&mut stored).await?;
        if digest != header.digest {
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

fn payload_bytes(block: &Fetched) -> u64 {
    match block {
        Fetched::Hit(header) => header.payload_bytes,
        Fetched::Miss => 0,
    }
}
