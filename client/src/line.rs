//! Requests to one node over one connection. The next may be sent before the last is answered, so that neither end waits for
//! the other between two parts of a long transfer; answers come in the order of the questions.

use crate::call::answer_limits;
use crate::client::Shared;
use crate::pool::Lease;
use crate::queue::Work;
use crate::stats::count;
use kvhive_protocol::data::{DataReply, DataRequest};
use kvhive_protocol::frame::{FrameLimits, Kind};
use kvhive_protocol::number::timed;
use kvhive_protocol::trace::SpanKind;
use kvhive_protocol::{ClusterMap, DeviceId, Generation, Level, TraceContext, WireError};
use kvhive_spans::Span;
use kvhive_wire::{Connection, Fault};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::time::Instant;

/// Requests of one transfer that are under way at a time.
pub(crate) const WINDOW: usize = 3;

/// One connection to the member of one device, for the time of a transfer.
pub(crate) struct Line<'a> {
    shared: &'a Arc<Shared>,
    address: &'a str,
    lease: Lease,
    /// Requests that are not answered, oldest first.
    asked: VecDeque<Asked>,
    has_answered: bool,
    /// The member said of something that there was not time enough for it.
    was_late: bool,
    deadline: Instant,
    /// Whose part its requests are.
    trace: Option<TraceContext>,
    presence: Presence<'a>,
}

/// A request that is not answered.
struct Asked {
    number: u64,
    limits: FrameLimits,
    /// When it was asked, if nothing but the device keeps its answer waiting.
    at: Option<Instant>,
    span: Span,
}

/// The time for which a device has a request of this client.
struct Presence<'a> {
    shared: &'a Shared,
    device: DeviceId,
}

impl<'a> Presence<'a> {
    fn new(shared: &'a Shared, device: DeviceId, generation: Generation) -> Presence<'a> {
        shared.waits().begin(device, generation);
        Presence { shared, device }
    }
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        self.shared.waits().end(self.device);
    }
}

impl<'a> Line<'a> {
    /// Takes a connection to the member that owns `device`.
    ///
    /// # Errors
    /// When the map has no such device, or the member cannot be reached.
    pub(crate) async fn open(
        shared: &'a Arc<Shared>,
        map: &'a ClusterMap,
        device: DeviceId,
        work: Work,
        trace: Option<TraceContext>,
        deadline: Instant,
    ) -> Result<Line<'a>, Fault> {
        let owner = map.owner(device).ok_or(Fault::Refused(WireError::WrongDevice { device }))?;
        let address = &owner.data_address;
        let presence = Presence::new(shared, device, owner.generation);
        let lease = shared.pool.take_in_time(address, work, deadline).await?;
        let asked = VecDeque::new();
        let (has_answered, was_late) = (false, false);
        Ok(Line { shared, address, lease, asked, has_answered, was_late, deadline, trace, presence })
    }

    /// Sends one request. The answer's payload is at most `block_bytes` for each block that a fetch names.
    ///
    /// # Errors
    /// When it passes a limit or the socket fails.
    pub(crate) async fn ask(
        &mut self,
        request: &DataRequest,
        payload: &[&[u8]],
        block_bytes: u64,
    ) -> Result<(), Fault> {
        count(&self.shared.counters.requests, 1);
        let left = self.deadline.saturating_duration_since(Instant::now());
        let number = timed(self.shared.requests.fetch_add(1, Ordering::Relaxed), left);
        let mut span = self.shared.config.tracer.under(self.trace, SpanKind::Asked, request.name());
        if span.is_on() {
            span.note("kvhive.device", self.presence.device);
            span.note("server.address", self.address);
        }
        let connection = self.lease.connection();
        match span.context().or(self.trace) {
            Some(trace) => connection.send(Kind::TracedRequest, number, &(trace, request), payload).await?,
            None => connection.send(Kind::DataRequest, number, request, payload).await?,
        }
        let is_read = matches!(request, DataRequest::Match(_) | DataRequest::Fetch(_) | DataRequest::Look(_));
        let at = (is_read && self.asked.is_empty()).then(Instant::now);
        self.asked.push_back(Asked { number, limits: answer_limits(request, block_bytes), at, span });
        Ok(())
    }

    /// Tells something that is not answered.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) async fn tell(&mut self, what: &DataRequest) -> Result<(), Fault> {
        let number = self.shared.requests.fetch_add(1, Ordering::Relaxed);
        self.lease.connection().send(Kind::DataRequest, number, what, &[]).await
    }

    /// Receives the answer to the oldest request that has none yet; its payload is to be read before the next call.
    ///
    /// # Errors
    /// [`Fault::Refused`] when the member said no: the line stands. After any other error it is dead.
    pub(crate) async fn answer(&mut self) -> Result<DataReply, Fault> {
        let mut asked = self.asked.pop_front().expect("an answer is awaited after a question");
        let connection = self.lease.connection();
        connection.set_limits(asked.limits);
        let answer: Result<DataReply, Fault> = connection.receive_answer(Kind::DataReply, asked.number).await;
        if let Err(fault) = &answer {
            asked.span.fail(fault);
            self.was_late |= matches!(fault, Fault::Refused(WireError::Deadline));
        }
        if let (Ok(_), Some(at)) = (&answer, asked.at) {
            self.shared.waits().answered(self.presence.device, self.shared.now(), at.elapsed());
        }
        self.has_answered |= matches!(answer, Ok(_) | Err(Fault::Refused(_)));
        if let Ok(reply) = &answer {
            self.shared.waits().earn_repeat();
            self.shared.notice(reply.epoch());
        }
        answer
    }

    /// Returns how many requests have no answer yet.
    pub(crate) fn unanswered(&self) -> usize {
        self.asked.len()
    }

    /// Returns the connection, for the payload of the last answer.
    pub(crate) fn connection(&mut self) -> &mut Connection {
        self.lease.connection()
    }

    /// Dials anew when `fault` says no more than that a member closes what lies idle for long, or was restarted meanwhile;
    /// what was asked is then to be asked again.
    ///
    /// # Errors
    /// `fault` when it says more, or why the dial failed.
    pub(crate) async fn revive(&mut self, fault: Fault) -> Result<(), Fault> {
        let is_stale =
            self.lease.was_idle() && !self.has_answered && matches!(fault, Fault::Closed | Fault::Io(_));
        if !is_stale {
            return Err(fault);
        }
        self.asked.clear();
        self.shared.pool.renew(&mut self.lease, self.address, self.deadline).await
    }

    /// Gives the connection back for others, also where the member says of all that was asked that there is not time enough for it.
    pub(crate) async fn end(mut self) {
        while self.was_late && !self.asked.is_empty() {
            if !matches!(self.answer().await, Err(Fault::Refused(WireError::Deadline))) {
                break;
            }
        }
        self.close();
    }

    /// Gives the connection back for others.
    pub(crate) fn close(self) {
        match self.asked.is_empty() {
            true if self.was_late => self.lease.give_back_late(),
            true => self.lease.give_back(),
            false => {}
        }
    }
}

impl Shared {
    /// Sends one request without payload to the member of `device` and returns its answer, which has none either.
    ///
    /// # Errors
    /// When the member refused it, or did not answer by `deadline`.
    pub(crate) async fn call(
        self: &Arc<Self>,
        map: &ClusterMap,
        device: DeviceId,
        request: &DataRequest,
        trace: Option<TraceContext>,
        deadline: Instant,
    ) -> Result<DataReply, Fault> {
        let answer = self.call_from(Level::OLDEST, map, device, request, trace, deadline).await?;
        Ok(answer.expect("every member speaks the oldest level"))
    }

    /// As [`Shared::call`], what members of this level on understand; none where the member is of an older one.
    ///
    /// # Errors
    /// As [`Shared::call`].
    pub(crate) async fn call_from(
        self: &Arc<Self>,
        level: Level,
        map: &ClusterMap,
        device: DeviceId,
        request: &DataRequest,
        trace: Option<TraceContext>,
        deadline: Instant,
    ) -> Result<Option<DataReply>, Fault> {
        let limit = deadline.saturating_duration_since(Instant::now());
        let exchange = async {
            let mut line = Line::open(self, map, device, Work::Words, trace, deadline).await?;
            loop {
                if line.connection().level() < level {
                    line.close();
                    return Ok(None);
                }
                let answer = match line.ask(request, &[], 0).await {
                    Ok(()) => line.answer().await,
                    Err(fault) => Err(fault),
                };
                match answer {
                    Err(fault) if !matches!(fault, Fault::Refused(_)) => line.revive(fault).await?,
                    answer => {
                        line.close();
                        return answer.map(Some);
                    }
                }
            }
        };
        tokio::time::timeout_at(deadline, exchange).await.unwrap_or(Err(Fault::Timeout(limit)))
    }
}
