//! Over the data plane's own connections: to any device, at any time.

use super::{Parcel, Transport};
use futures_util::future::BoxFuture;
use kvhive_client::{Lease, Pool};
use kvhive_protocol::data::{DataReply, DataRequest};
use kvhive_protocol::frame::Kind;
use kvhive_protocol::{ClusterMap, DeviceId, MemberId, TraceContext, WireError};
use kvhive_wire::Fault;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

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
        let Some(owner) = map.owner(target) else {
            return Err(Fault::Refused(WireError::WrongDevice { device: target }));
        };
        let limit = deadline.saturating_duration_since(Instant::now());
        let lease = self.pool.take(&owner.data_address, deadline).await?;
        let was_idle = lease.was_idle();
        match self.exchange_over(lease, request, payload, (deadline, limit)).await {
            // The other end has gone since it was used last: started anew, or tired of waiting.
            Err(Fault::Closed | Fault::Io(_)) if was_idle => {
                let lease = self.pool.take_fresh(&owner.data_address, deadline).await?;
                self.exchange_over(lease, request, payload, (deadline, limit)).await
            }
            answer => answer,
        }
    }

    async fn exchange_over(
        &self,
        mut lease: Lease,
        (trace, request): (Option<TraceContext>, &DataRequest),
        payload: &[&[u8]],
        (deadline, limit): (Instant, Duration),
    ) -> Result<DataReply, Fault> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let exchange = async {
            let connection = lease.connection();
            match trace {
                Some(trace) => {
                    connection.send(Kind::TracedRequest, number, &(trace, request), payload).await?
                }
                None => connection.send(Kind::DataRequest, number, request, payload).await?,
            }
            connection.receive_answer(Kind::DataReply, number).await
        };
        let answer = timeout_at(deadline, exchange).await.unwrap_or(Err(Fault::Timeout(limit)))?;
        lease.give_back();
        Ok(answer)
    }
}

impl Transport for Tcp {
    fn carry<'a>(&'a self, parcel: &'a Parcel<'a>) -> BoxFuture<'a, Result<DataReply, Fault>> {
        let Parcel { serving, trace, target, request, payload, deadline, .. } = *parcel;
        Box::pin(self.exchange(&serving.map, target, (trace, request), payload, deadline))
    }
}
