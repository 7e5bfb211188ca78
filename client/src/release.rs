//! Release: what an engine expects of a session, said without storing anything.

use crate::error::ClientError;
use crate::fetch::{run_all, senseless};
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::rounds::{Read, Rounds};
use crate::route::{Job, every_replica, split};
use kvhive_protocol::DeviceId;
use kvhive_protocol::data::{DataReply, DataRequest, Hint, MAX_KEYS_PER_RELEASE, ReleaseRequest};
use kvhive_wire::Fault;
use std::collections::BTreeSet;

/// Who has heard a hint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReleaseReport {
    /// Copies of the blocks that it was told of, on all devices.
    pub copies: u64,
    /// Devices that were told.
    pub told: usize,
    /// Devices that could not be told: what they hold is kept as if nothing had been said.
    pub unreachable: usize,
}

impl NamespaceClient {
    /// Tells every replica of the blocks of `prefix` what the engine expects of their session: that it is over, that a tool call
    /// is pending, when it comes back. It is a hint: it decides what is worth keeping and where, and loses nothing that is
    /// asked for. Holds that matches have taken stay until they are over; they are nobody's own.
    ///
    /// # Errors
    /// [`ClientError::Misuse`] for a prefix of more than 65,536 blocks. Devices that cannot be reached are in the report.
    pub async fn release(&self, prefix: &Prefix, hint: Hint) -> Result<ReleaseReport, ClientError> {
        self.check_length(prefix, "release")?;
        let call = self.call("release prefix", prefix.len());
        let mut report = ReleaseReport::default();
        let mut told: BTreeSet<DeviceId> = BTreeSet::new();
        let mut rounds = Rounds::new(self);
        loop {
            let map = self.shared().map();
            let mut jobs = every_replica(&map, prefix);
            jobs.retain(|job| !told.contains(&job.device) && !rounds.avoid.contains(&job.device));
            let devices: Vec<DeviceId> = jobs.iter().map(|job| job.device).collect();
            let read = rounds.read(&map, prefix, call.trace);
            let tasks = jobs.into_iter().map(|job| self.tell(&read, job, hint)).collect();
            let mut failed = Vec::new();
            for (device, answer) in devices.into_iter().zip(run_all(tasks).await) {
                match answer {
                    Ok(copies) => {
                        report.copies += copies;
                        told.insert(device);
                    }
                    Err(fault) => failed.push((device, fault)),
                }
            }
            let lacking: BTreeSet<DeviceId> =
                rounds.avoid.iter().copied().chain(failed.iter().map(|(device, _)| *device)).collect();
            if failed.is_empty() || !rounds.mend(&map, &failed).await {
                report.told = told.len();
                report.unreachable = lacking.difference(&told).count();
                return Ok(report);
            }
        }
    }

    /// Tells one device, from the end of the prefix to its head; returns how many of the blocks it has.
    async fn tell(&self, read: &Read<'_>, job: Job, hint: Hint) -> Result<u64, Fault> {
        let mut copies = 0;
        for part in split(job, MAX_KEYS_PER_RELEASE).into_iter().rev() {
            let request = DataRequest::Release(ReleaseRequest {
                epoch: read.map.epoch,
                device: part.device,
                tenant: self.tenant,
                hint,
                keys: part.positions.iter().map(|at| read.prefix.keys()[*at]).collect(),
                runs: part.runs,
            });
            match self.shared().call(read.map, part.device, &request, read.trace, read.deadline).await? {
                DataReply::Released { blocks, .. } if blocks as usize <= part.positions.len() => {
                    copies += u64::from(blocks);
                }
                _ => return Err(senseless("a release was answered otherwise")),
            }
        }
        Ok(copies)
    }
}
