//! Over the data plane's own connections: to any device, at any time.

use super::{NotCarried, Parcel, Transport};
use futures_util::future::BoxFuture;
use kvhive_client::{Lease, Pool};
use kvhive_protocol::data::{DataReply, DataRequest, Fetched};
use kvhive_protocol::frame::{FrameLimits, Kind};
use kvhive_protocol::share::{DoneRequest, Looked};
use kvhive_protocol::{ClusterMap, DeviceId, Epoch, MemberId, TraceContext, WireError};
use kvhive_wire::Fault;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Message bytes of an answer to a fetch, at most: of as many blocks as one names.
const FETCHED: FrameLimits = FrameLimits { message_bytes: 128 << 10, ..FrameLimits::OPEN };

/// An answer whose blocks are on their way.
pub(crate) struct Fetching {
    lease: Lease,
    blocks: Vec<Looked>,
    /// What the other end holds until it hears that this one is done with it; 0 for nothing.
    grant: u64,
}

impl Fetching {
    /// Returns what was answered of each block, once.
    pub(crate) fn take_blocks(&mut self) -> Vec<Looked> {
        std::mem::take(&mut self.blocks)
    }

    /// Takes the next bytes in, and returns their digest.
    ///
    /// # Errors
    /// When the connection fails, or has no so many.
    pub(crate) async fn read(&mut self, into: &mut [u8]) -> Result<u64, Fault> {
        self.lease.connection().read_payload(into).await
    }

    /// Passes over the next bytes.
    ///
    /// # Errors
    /// As [`Fetching::read`].
    pub(crate) async fn skip(&mut self, bytes: u64) -> Result<(), Fault> {
        self.lease.connection().skip_payload(bytes).await
    }

    /// Says that all has been looked at, and gives the connection back for others, when all bytes have come.
    ///
    /// # Errors
    /// When the connection fails.
    pub(crate) async fn end(mut self, epoch: Epoch) -> Result<(), Fault> {
        let connection = self.lease.connection();
        connection.set_limits(FrameLimits::OPEN);
        if self.grant > 0 {
            let done = DataRequest::Done(DoneRequest { epoch, grant: self.grant });
            connection.send(Kind::DataRequest, 0, &done, &[]).await?;
        }
        self.lease.give_back();
        Ok(())
    }
}

/// Connections to the nodes of the cluster.
pub(super) struct Tcp {
    pool: Pool,
    requests: AtomicU64,
}

impl Tcp {
    pub(super) fn new(pool: Pool) -> Tcp {
        Tcp { pool, requests: AtomicU64::new(1) }
    }

    /// Has connections be of this member.
    pub(super) fn speak_as(&self, member: MemberId) {
        self.pool.speak_as(u64::from(member.0));
    }

    /// Forgets connections to members that are not in the map.
    pub(super) fn keep(&self, map: &ClusterMap) {
        self.pool.retain(|address| map.members.values().any(|member| member.data_address == address));
    }

    /// Sends a request with its payload, and returns its answer.
    ///
    /// # Errors
    /// When there is no such device, its node is not reached or refuses, or `deadline` passes.
    pub(super) async fn exchange(
        &self,
        map: &ClusterMap,
        target: DeviceId,
        request: (Option<TraceContext>, &DataRequest),
        payload: &[&[u8]],
        deadline: Instant,
    ) -> Result<DataReply, Fault> {
        let (answer, lease) = self.asked(map, target, request, payload, FrameLimits::OPEN, deadline).await?;
        lease.give_back();
        Ok(answer)
    }

    /// Asks for blocks; what is returned has what was answered, and their bytes come next.
    ///
    /// # Errors
    /// As [`Tcp::exchange`].
    pub(super) async fn fetch(
        &self,
        map: &ClusterMap,
        target: DeviceId,
        request: (Option<TraceContext>, &DataRequest),
        deadline: Instant,
    ) -> Result<Fetching, Fault> {
        match self.asked(map, target, request, &[], FETCHED, deadline).await? {
            (DataReply::Looked { blocks, grant, .. }, lease) => Ok(Fetching { lease, blocks, grant }),
            (DataReply::Fetched { blocks, .. }, lease) => {
                let sent = |one| match one {
                    Fetched::Hit(header) => Looked::Sent(header),
                    Fetched::Miss => Looked::Miss,
                };
                Ok(Fetching { lease, blocks: blocks.into_iter().map(sent).collect(), grant: 0 })
            }
            _ => Err(Fault::Protocol(WireError::malformed(format_args!("a fetch was answered otherwise")))),
        }
    }

    /// Asks a device and returns its answer with the connection, on which the answer's payload is left.
    async fn asked(
        &self,
        map: &ClusterMap,
        target: DeviceId,
        request: (Option<TraceContext>, &DataRequest),
        payload: &[&[u8]],
        limits: FrameLimits,
        deadline: Instant,
    ) -> Result<(DataReply, Lease), Fault> {
        let Some(owner) = map.owner(target) else {
            return Err(Fault::Refused(WireError::WrongDevice { device: target }));
        };
        let limit = deadline.saturating_duration_since(Instant::now());
        let lease = self.pool.take(&owner.data_address, deadline).await?;
        let was_idle = lease.was_idle();
        match self.exchange_over((lease, limits), request, payload, (deadline, limit)).await {
            // The other end has gone since it was used last: started anew, or tired of waiting.
            Err(Fault::Closed | Fault::Io(_)) if was_idle => {
                let lease = self.pool.take_fresh(&owner.data_address, deadline).await?;
                self.exchange_over((lease, limits), request, payload, (deadline, limit)).await
            }
            answer => answer,
        }
    }

    async fn exchange_over(
        &self,
        (mut lease, limits): (Lease, FrameLimits),
        (trace, request): (Option<TraceContext>, &DataRequest),
        payload: &[&[u8]],
        (deadline, limit): (Instant, Duration),
    ) -> Result<(DataReply, Lease), Fault> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let exchange = async {
            let connection = lease.connection();
            connection.set_limits(limits);
            match trace {
                Some(trace) => {
                    connection.send(Kind::TracedRequest, number, &(trace, request), payload).await?
                }
                None => connection.send(Kind::DataRequest, number, request, payload).await?,
            }
            connection.receive_answer(Kind::DataReply, number).await
        };
        let answer = timeout_at(deadline, exchange).await.unwrap_or(Err(Fault::Timeout(limit)))?;
        Ok((answer, lease))
    }
}

impl Transport for Tcp {
    fn carry<'a>(&'a self, parcel: &'a Parcel<'a>) -> BoxFuture<'a, Result<DataReply, NotCarried>> {
        let Parcel { serving, trace, target, request, payload, deadline, .. } = *parcel;
        Box::pin(async move {
            Ok(self.exchange(&serving.map, target, (trace, request), payload, deadline).await?)
        })
    }
}
