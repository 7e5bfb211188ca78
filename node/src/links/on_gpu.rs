//! From frames of a GPU: by a way that reads them where they are, to one target or to several at once. What is not carried so goes by the host's
//! memory, as any batch.

use super::nccl::NotCarried;
use super::{Links, NCCL_LIMIT, Parcel, lock};
use crate::data::OnGpu;
use kvhive_links::Ends;
use kvhive_links::pairs::Why;
use kvhive_protocol::DeviceId;
use kvhive_protocol::data::DataReply;
use kvhive_protocol::links::{PairState, TransportKind};
use kvhive_spans::Span;
use std::sync::Arc;
use tokio::time::Instant;

/// A batch was not carried out of frames of a GPU: it goes by the host's memory, and by this way there if that is said. The target may have it
/// all the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Instead(pub(crate) Option<TransportKind>);

impl Links {
    /// Has a batch get to its target out of frames of a GPU, if a way does that now and is the one to take; returns what the target says of it.
    ///
    /// # Errors
    /// [`Instead`]: by which way it goes then.
    pub(crate) async fn carry_on_gpu(&self, parcel: &Parcel<'_>) -> Result<DataReply, Instead> {
        let bytes = parcel.on_gpu.iter().map(|block| block.header().payload_bytes).sum();
        let is_within = parcel.source.member == parcel.target.member;
        let nccl = self.pair_state(parcel.source, parcel.target, true).filter(|_| !is_within);
        if !is_within && nccl.is_none() {
            return Err(Instead(None));
        }
        let by = match self.choose(parcel, bytes, false, nccl) {
            by @ (TransportKind::InProcess | TransportKind::Nccl) => by,
            TransportKind::SharedMemory | TransportKind::Tcp => return Err(Instead(None)),
        };
        let mut span = self.span(by, parcel, bytes);
        let parcel = Parcel { trace: span.context(), ..*parcel };
        let answer = self.carry_by(by, &parcel, bytes).await;
        answer.map_err(|error| {
            span.fail(&error);
            tracing::debug!(target = %parcel.target, %by, %error, "a batch goes by the host's memory");
            if by == TransportKind::InProcess {
                return Instead(None);
            }
            if !error.is_failure() {
                self.has_not_begun(&parcel, self.pair_state(parcel.source, parcel.target, true));
            }
            Instead(Some(TransportKind::Tcp))
        })
    }

    /// Has a batch of blocks that are on a GPU get to the GPUs of all parcels at once, if that is the way to take, and returns what becomes of it at
    /// each. One that was not carried is to go another way. The target may have it all the same.
    pub(crate) async fn carry_to_all(
        &self,
        parcels: &[Parcel<'_>],
        blocks: Vec<Arc<OnGpu>>,
        bytes: u64,
    ) -> Vec<Result<DataReply, NotCarried>> {
        let begun = Instant::now();
        let targets: Vec<DeviceId> = parcels.iter().map(|parcel| parcel.target).collect();
        let source = parcels.first().map(|parcel| parcel.source);
        let state = source.zip(self.nccl.as_ref()).and_then(|(source, nccl)| {
            let state = nccl.state_to_all(source, &targets)?;
            Some((nccl, state))
        });
        let Some((nccl, state)) = state else {
            return parcels.iter().map(|_| Err(NotCarried::Pair(Why::Without))).collect();
        };
        let stands = matches!(state, PairState::Ready | PairState::Busy);
        let choices = source.and_then(|source| self.choices.get(usize::from(source.index)));
        let now = self.view.now();
        let ends = parcels.iter().map(|parcel| {
            let nccl = self.pair_state(parcel.source, parcel.target, true);
            (parcel.target, Ends { both_gpu_tiers: nccl.is_some(), nccl, ..Ends::default() })
        });
        let ends: Vec<(DeviceId, Ends)> = ends.collect();
        let chosen = choices.map(|choices| lock(choices).choose_to_all(now, &ends, bytes, state));
        // Where none stands, what follows says that one is wanted: else none is made.
        if chosen.is_some_and(|chosen| !chosen.at_once && (stands || !chosen.is_wanted)) {
            return parcels.iter().map(|_| Err(NotCarried::Pair(Why::Without))).collect();
        }
        let mut spans: Vec<Span> = match stands {
            true => parcels.iter().map(|parcel| self.span(TransportKind::Nccl, parcel, bytes)).collect(),
            false => parcels.iter().map(|_| Span::NONE).collect(),
        };
        let traced = parcels.iter().zip(&spans).map(|(parcel, span)| {
            let trace = if stands { span.context() } else { parcel.trace };
            Parcel { trace, ..*parcel }
        });
        let traced: Vec<Parcel<'_>> = traced.collect();
        let deadline = begun + NCCL_LIMIT;
        let deadline = parcels.iter().map(|parcel| parcel.deadline).fold(deadline, Instant::min);
        let answers = nccl.carry_to_all(&traced, blocks, deadline).await;
        if let Some(choices) = choices.filter(|_| stands) {
            let have_all = answers.iter().all(Result::is_ok);
            let has_failed =
                answers.iter().filter_map(|answer| answer.as_ref().err()).any(NotCarried::is_failure);
            let how = (have_all || has_failed).then(|| if have_all { Ok(begun.elapsed()) } else { Err(()) });
            lock(choices).ended_to_all(self.view.now(), &targets, bytes, how);
        }
        for ((answer, parcel), span) in answers.iter().zip(&traced).zip(&mut spans) {
            match answer {
                // How fast it was says nothing of the pair of the two.
                Ok(_) => self.count(TransportKind::Nccl, bytes, true),
                Err(error) => {
                    span.fail(error);
                    tracing::debug!(target = %parcel.target, %error, "a batch does not go to several at once");
                    if error.is_failure() {
                        self.count(TransportKind::Nccl, bytes, false);
                    }
                }
            }
        }
        answers
    }
}
