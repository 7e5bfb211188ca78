//! One connection: requests are taken in, answers sent, and room is held for what is on its way in.

use super::parse::{Parser, STRANGERS};
use super::reply::Reply;
use super::serve::{Door, READ_BYTES, SENT_BYTES, STALL, kib};
use super::session::{Session, Step};
use crate::data::count;
use bytes::BytesMut;
use kvhive_runtime::{Place, stopped};
use kvhive_tls::Stream;
use std::io;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;

/// How long a stranger may take to show one.
const STRANGER_LIMIT: Duration = Duration::from_secs(60);
/// A connection without a request for this long is closed; clients keep theirs in pools.
const IDLE_LIMIT: Duration = Duration::from_secs(3600);
/// Requests that are taken in before they are answered.
const MAX_PIPELINED: usize = 64;

/// One connection.
pub(super) struct Caller {
    stream: Stream,
    parser: Parser,
    buf: BytesMut,
    out: Vec<u8>,
    session: Session,
    /// For the request under way.
    room: Option<OwnedSemaphorePermit>,
    /// Its place among strangers, until it has shown a token.
    stranger: Option<Place>,
    let_in: Option<OwnedSemaphorePermit>,
}

/// What is being answered.
pub(super) struct Sending<'a> {
    stream: &'a mut Stream,
    pub(super) out: &'a mut Vec<u8>,
}

impl Sending<'_> {
    /// Sends what was written.
    pub(super) async fn send(&mut self) -> io::Result<()> {
        for piece in self.out.chunks(SENT_BYTES) {
            timeout(STALL, self.stream.write_all(piece)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        }
        timeout(STALL, self.stream.flush()).await.map_err(|_| io::ErrorKind::TimedOut)??;
        self.out.clear();
        self.out.shrink_to(SENT_BYTES);
        Ok(())
    }
}

impl Caller {
    /// Makes one of a stranger.
    pub(super) fn new(stream: Stream, session: Session, place: Place) -> Caller {
        Caller {
            stream,
            parser: Parser::new(STRANGERS),
            buf: BytesMut::new(),
            out: Vec::new(),
            session,
            room: None,
            stranger: Some(place),
            let_in: None,
        }
    }

    /// Serves it to its end.
    pub(super) async fn serve(&mut self, door: &Door, mut stop: watch::Receiver<bool>) -> io::Result<()> {
        loop {
            let tenant = self.session.tenant().to_owned();
            let steps = self.take(door);
            let is_over = matches!(steps.last(), Some((Step::End(_), _)));
            let is_more = steps.len() == MAX_PIPELINED || self.session.tenant() != tenant;
            let mut sending = Sending { stream: &mut self.stream, out: &mut self.out };
            door.answer(&tenant, &steps, &mut sending).await?;
            if is_over {
                return self.end().await;
            }
            if is_more {
                continue;
            }
            sending.send().await?;
            if let Err(refusal) = self.make_room(door).await {
                refusal.encode(self.session.speaks_resp3(), &mut self.out);
                return self.end().await;
            }
            if !self.read(&mut stop).await? {
                return Ok(());
            }
        }
    }

    /// Takes the requests that are whole, and what becomes of each; with it, whether its answer is RESP3.
    fn take(&mut self, door: &Door) -> Vec<(Step, bool)> {
        let mut steps = Vec::new();
        let tenant = self.session.tenant().to_owned();
        let serving = door.view.serving();
        // Before there is a map, nobody knows which tenants there are.
        let has = |name: &str| serving.as_ref().is_none_or(|serving| serving.map.tenant(name).is_some());
        while steps.len() < MAX_PIPELINED && self.session.tenant() == tenant {
            let step = match self.parser.next(&mut self.buf) {
                Ok(Some(request)) => self.session.step(&request, SystemTime::now(), has),
                Ok(None) => break,
                Err(wrong) => Step::End(Reply::wrong(wrong)),
            };
            let step = self.let_in(door, step);
            let is_over = matches!(step, Step::End(_));
            steps.push((step, self.session.speaks_resp3()));
            if is_over {
                break;
            }
        }
        steps
    }

    /// Gives one that has shown a token its place among those who have, if there is one.
    fn let_in(&mut self, door: &Door, step: Step) -> Step {
        if !self.session.is_known() || self.let_in.is_some() {
            return step;
        }
        let Ok(permit) = door.connections.clone().try_acquire_owned() else {
            count(&door.counters.redis_refused);
            return Step::End(Reply::wrong("max number of clients reached"));
        };
        self.let_in = Some(permit);
        self.stranger = None;
        self.parser.set_bounds(door.bounds());
        step
    }

    /// Holds room for what the request under way takes, beyond what every connection may have.
    async fn make_room(&mut self, door: &Door) -> Result<(), Reply> {
        let wants = self.parser.wants();
        if wants <= READ_BYTES {
            self.room = None;
            return Ok(());
        }
        let held = self.room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let lacks = (kib(wants as u64) as usize).saturating_sub(held);
        if lacks > 0 {
            let more = door.room(lacks as u64 * 1024).await?;
            match &mut self.room {
                Some(room) => room.merge(more),
                None => self.room = Some(more),
            }
        }
        Ok(())
    }

    /// Reads what has come; false when nothing more is to.
    async fn read(&mut self, stop: &mut watch::Receiver<bool>) -> io::Result<bool> {
        let limit = match (&self.stranger, self.parser.is_idle()) {
            (Some(_), _) => STRANGER_LIMIT,
            (None, true) => IDLE_LIMIT,
            (None, false) => STALL,
        };
        self.buf.reserve(self.parser.lacks(self.buf.len()).max(READ_BYTES));
        let turned_out = async {
            match &mut self.stranger {
                Some(place) => place.turned_out().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            read = timeout(limit, self.stream.read_buf(&mut self.buf)) => match read {
                Ok(read) => Ok(read? > 0),
                Err(_) => Ok(false),
            },
            () = turned_out => Ok(false),
            () = stopped(stop) => Ok(false),
        }
    }

    /// Sends the last answer and ends.
    async fn end(&mut self) -> io::Result<()> {
        Sending { stream: &mut self.stream, out: &mut self.out }.send().await?;
        self.stream.shutdown().await
    }
}
