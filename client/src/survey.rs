//! Survey: what a cluster has of a prefix and where, for somebody who decides where a request goes. Nothing is held, used or
//! counted by it.

use crate::error::ClientError;
use crate::fetch::{run_all, senseless};
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::rounds::{Read, Rounds};
use crate::route::Job;
use crate::waits::Sway;
use kvhive_protocol::data::{DataReply, DataRequest};
use kvhive_protocol::survey::{SurveyRequest, Surveyed};
use kvhive_protocol::{DeviceId, KeyList, MemberId};
use kvhive_wire::Fault;
use std::collections::BTreeMap;

/// Consecutive blocks that one node has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// How many.
    pub blocks: usize,
    /// How many of them are in its memory; the others are on its disk.
    pub in_memory: usize,
    /// Whose they are.
    pub member: MemberId,
}

/// What a cluster has of a prefix, from its first block on, without a gap.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    /// Stretch after stretch.
    pub stretches: Vec<Stretch>,
    /// The prefix may be covered further: nobody could be asked for what follows.
    pub is_cut_short: bool,
}

impl Survey {
    /// Returns how many blocks are covered.
    pub fn covered(&self) -> usize {
        self.stretches.iter().map(|stretch| stretch.blocks).sum()
    }
}

/// What one device said of a run: how many blocks it was asked for, and what of them it has.
type Found = BTreeMap<usize, (usize, Surveyed, DeviceId)>;

impl NamespaceClient {
    /// Says what the cluster has of `prefix`, and where.
    ///
    /// # Errors
    /// [`ClientError::Misuse`] for a prefix of more than 65,536 blocks. Devices that cannot be reached cut the answer short.
    pub async fn survey(&self, prefix: &Prefix) -> Result<Survey, ClientError> {
        self.check_length(prefix, "survey")?;
        let call = self.call("survey prefix", prefix.len());
        let mut known = vec![false; prefix.len()];
        let mut found = Found::new();
        let mut rounds = Rounds::new(self);
        loop {
            let map = self.shared().map();
            let open = (0..prefix.len()).filter(|at| !known[*at]);
            let plan = rounds.plan(&map, prefix, open, Sway::MATCH);
            let read = rounds.read(&map, prefix, call.trace);
            let tasks = plan.jobs.into_iter().map(|job| self.survey_job(&read, job)).collect();
            let mut failed = Vec::new();
            for (job, answer) in run_all(tasks).await {
                let surveyed = match answer {
                    Ok(surveyed) => surveyed,
                    Err(fault) => {
                        failed.push((job.device, fault));
                        continue;
                    }
                };
                let mut from = 0;
                for (run, surveyed) in job.runs.iter().zip(surveyed) {
                    let positions = &job.positions[from..from + run.keys as usize];
                    from += positions.len();
                    found.insert(positions[0], (positions.len(), surveyed, job.device));
                    for at in positions {
                        known[*at] = true;
                    }
                }
            }
            if failed.is_empty() || !rounds.mend(&map, &failed).await {
                return Ok(together(&found, prefix.len()));
            }
        }
    }

    async fn survey_job(&self, read: &Read<'_>, job: Job) -> (Job, Result<Vec<Surveyed>, Fault>) {
        let keys: KeyList = job.positions.iter().map(|at| read.prefix.keys()[*at]).collect();
        let request = DataRequest::Survey(SurveyRequest {
            epoch: read.map.epoch,
            device: job.device,
            tenant: self.tenant,
            runs: job.runs.clone(),
            keys,
        });
        let answer = match self.shared().call(read.map, job.device, &request, read.trace, read.deadline).await
        {
            Ok(DataReply::Surveyed { runs, .. }) if fits(&job, &runs) => Ok(runs),
            Ok(_) => Err(senseless("a survey's answer does not fit its question")),
            Err(fault) => Err(fault),
        };
        (job, answer)
    }
}

fn fits(job: &Job, answer: &[Surveyed]) -> bool {
    let sound = |(run, one): (&kvhive_protocol::data::Run, &Surveyed)| {
        one.covered <= run.keys && one.in_memory <= one.covered
    };
    job.runs.len() == answer.len() && job.runs.iter().zip(answer).all(sound)
}

/// Lays runs end to end, up to the first gap.
fn together(found: &Found, blocks: usize) -> Survey {
    let mut survey = Survey::default();
    let mut at = 0;
    while at < blocks {
        let Some((asked, surveyed, device)) = found.get(&at) else {
            survey.is_cut_short = true;
            break;
        };
        if surveyed.covered > 0 {
            survey.stretches.push(Stretch {
                blocks: surveyed.covered as usize,
                in_memory: surveyed.in_memory as usize,
                member: device.member,
            });
        }
        if (surveyed.covered as usize) < *asked {
            break;
        }
        at += asked;
    }
    survey
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(member: u32) -> DeviceId {
        DeviceId::new(MemberId(member), 0)
    }

    fn said(covered: u32, in_memory: u32) -> Surveyed {
        Surveyed { covered, in_memory }
    }

    #[test]
    fn runs_end_where_the_first_gap_is() {
        let all = [
            (0, (4, said(4, 1), device(1))),
            (4, (4, said(4, 4), device(2))),
            (8, (4, said(2, 0), device(1))),
            (12, (4, said(4, 4), device(2))),
        ];
        let stretch = |blocks, in_memory, member| Stretch { blocks, in_memory, member: MemberId(member) };
        let survey = together(&Found::from(all), 16);
        assert_eq!(survey.stretches, [stretch(4, 1, 1), stretch(4, 4, 2), stretch(2, 0, 1)]);
        assert_eq!((survey.covered(), survey.is_cut_short), (10, false));
        let some = Found::from([all[0], all[2]]);
        let survey = together(&some, 16);
        assert_eq!((survey.covered(), survey.is_cut_short), (4, true));
        assert_eq!(together(&Found::new(), 0), Survey::default());
        assert!(together(&Found::new(), 3).is_cut_short);
    }
}
