//! Which requests were applied and what they came to, so that a repeat happens once (M3). Part of the replicated state:
//! every coordinator forgets the same requests at the same log index.

use kvhive_planted::{Bug, is};
use kvhive_protocol::control::CommandReply;
use kvhive_protocol::{Level, RequestId, WireError, codec};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Askers whose requests are remembered: those that were heard last.
pub const MAX_CLIENTS: usize = 4096;
/// How far an asker's sequences reach back from its greatest one. A request below that is refused, never applied twice: an asker
/// has fewer under way at a time, or asks under several names.
pub const REPLY_WINDOW: u64 = 64;
/// What all remembered outcomes may take in a snapshot, in bytes: four times what that many askers come to who are
/// mostly not refused. A snapshot must fit into one raft message, however long the refusals are.
pub const MAX_REPLY_BYTES: usize = 32 << 20;

/// The remembered requests.
#[derive(Clone, Default)]
pub(crate) struct Dedupe {
    clients: BTreeMap<u128, Client>,
    /// Asker by the log index that heard it last; an index hears one asker.
    by_age: BTreeMap<u64, u128>,
    /// What the outcomes take in a snapshot.
    bytes: usize,
}

/// What one asker asked.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Client {
    heard_at: u64,
    /// Ascending sequences, all within [`REPLY_WINDOW`] of the last.
    replies: VecDeque<(u64, CommandReply)>,
}

/// What is known of a request.
pub(crate) enum Seen {
    /// It was never applied.
    New,
    /// It was applied and came to this.
    Before(CommandReply),
    /// It may have been applied, and nobody knows any more; or its name is another's.
    Refused(WireError),
}

impl Dedupe {
    /// Says what is known of a request. Prints say something from [`Level::CHECKED`] on: before it, not every coordinator goes by them.
    pub(crate) fn look(&self, request: RequestId, level: Level) -> Seen {
        if request.sequence == 0 {
            return Seen::Refused(WireError::rejected(format_args!(
                "request sequence is 0, they count from 1"
            )));
        }
        let Some(client) = self.clients.get(&request.client) else { return Seen::New };
        if let Ok(at) = client.find(request.sequence)
            && !is(Bug::RepeatsHappen)
        {
            return Seen::Before(client.replies[at].1.clone());
        }
        if request.has_print() && level >= Level::CHECKED {
            return client.asked_otherwise(request.client);
        }
        let newest = client.newest();
        if newest.saturating_sub(request.sequence) >= REPLY_WINDOW {
            return Seen::Refused(WireError::rejected(format_args!(
                "request sequence {} is more than {REPLY_WINDOW} behind this asker's newest, {newest}: its outcome is no \
                 longer known; read the map, then ask under a new sequence",
                request.sequence
            )));
        }
        Seen::New
    }

    /// Remembers that the entry at `index` was this request.
    pub(crate) fn record(&mut self, index: u64, request: RequestId, reply: CommandReply) {
        let client = self
            .clients
            .entry(request.client)
            .or_insert_with(|| Client { heard_at: index, replies: VecDeque::new() });
        if let Err(at) = client.find(request.sequence) {
            self.bytes += bytes_of(&reply);
            client.replies.insert(at, (request.sequence, reply));
        }
        let newest = client.newest();
        while client.replies.front().is_some_and(|(sequence, _)| newest - sequence >= REPLY_WINDOW) {
            self.bytes -= client.replies.pop_front().map_or(0, |(_, reply)| bytes_of(&reply));
        }
        self.touch(index, request.client);
        // One asker's window is far below the limit of bytes: the one just heard stays.
        while self.clients.len() > MAX_CLIENTS || self.bytes > MAX_REPLY_BYTES {
            let (_, oldest) = self.by_age.pop_first().expect("each remembered asker has an age");
            let forgotten = self.clients.remove(&oldest).expect("each age is of a remembered asker");
            self.bytes -= forgotten.bytes();
        }
    }

    /// Remembers that the entry at `index` was heard from this asker.
    pub(crate) fn touch(&mut self, index: u64, client: u128) {
        if let Some(known) = self.clients.get_mut(&client) {
            self.by_age.remove(&known.heard_at);
            known.heard_at = index;
            self.by_age.insert(index, client);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&u128, &Client)> {
        self.clients.iter()
    }

    /// Takes back what [`Dedupe::iter`] gave, or says what is wrong with it.
    pub(crate) fn restore(clients: Vec<(u128, Client)>, applied: u64) -> Result<Self, String> {
        if clients.len() > MAX_CLIENTS {
            return Err(format!("{} askers are remembered, allowed are {MAX_CLIENTS}", clients.len()));
        }
        let mut dedupe = Dedupe::default();
        for (id, client) in clients {
            let ascending = client.replies.iter().zip(client.replies.iter().skip(1)).all(|(a, b)| a.0 < b.0);
            let first = client.replies.front().map_or(0, |(sequence, _)| *sequence);
            if first == 0
                || !ascending
                || client.newest() - first >= REPLY_WINDOW
                || client.heard_at > applied
            {
                return Err(format!("the remembered requests of asker {id:032x} contradict each other"));
            }
            dedupe.bytes += client.bytes();
            if dedupe.by_age.insert(client.heard_at, id).is_some()
                || dedupe.clients.insert(id, client).is_some()
            {
                return Err(format!("asker {id:032x} is remembered twice, or two at one log index"));
            }
        }
        Ok(dedupe)
    }
}

/// Returns what an outcome and its sequence take in a snapshot.
fn bytes_of(reply: &CommandReply) -> usize {
    8 + codec::encode(reply).expect("errors are bounded, and so is every outcome").len()
}

impl Client {
    fn bytes(&self) -> usize {
        self.replies.iter().map(|(_, reply)| bytes_of(reply)).sum()
    }

    /// Says what a request is of which this asker's name is known and the print is not.
    fn asked_otherwise(&self, client: u128) -> Seen {
        match self.replies.back() {
            // From before there were prints: nobody knows what was asked, as nobody did then.
            Some((sequence, reply)) if !(RequestId { client, sequence: *sequence }).has_print() => {
                Seen::Before(reply.clone())
            }
            _ => Seen::Refused(WireError::AskedOtherwise),
        }
    }

    fn newest(&self) -> u64 {
        self.replies.back().map_or(0, |(sequence, _)| *sequence)
    }

    fn find(&self, sequence: u64) -> Result<usize, usize> {
        // Nearly every request is its asker's newest.
        if self.newest() < sequence {
            return Err(self.replies.len());
        }
        self.replies.binary_search_by_key(&sequence, |(sequence, _)| *sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::Epoch;

    fn request(client: u128, sequence: u64) -> RequestId {
        RequestId { client, sequence }
    }

    fn reply(epoch: u64) -> CommandReply {
        CommandReply::Applied { epoch: Epoch(epoch) }
    }

    fn is_new(dedupe: &Dedupe, request: RequestId) -> bool {
        matches!(dedupe.look(request, Level::NEWEST), Seen::New)
    }

    fn before(dedupe: &Dedupe, request: RequestId) -> Option<CommandReply> {
        match dedupe.look(request, Level::NEWEST) {
            Seen::Before(reply) => Some(reply),
            _ => None,
        }
    }

    #[test]
    fn a_request_that_was_overtaken_is_still_new() {
        let mut dedupe = Dedupe::default();
        dedupe.record(1, request(7, 5), reply(1));
        assert!(is_new(&dedupe, request(7, 3)));
        dedupe.record(2, request(7, 3), reply(2));
        assert_eq!(before(&dedupe, request(7, 3)), Some(reply(2)));
        assert_eq!(before(&dedupe, request(7, 5)), Some(reply(1)));
        assert!(is_new(&dedupe, request(7, 4)));
    }

    #[test]
    fn below_the_window_nothing_is_applied() {
        let mut dedupe = Dedupe::default();
        for sequence in 1..=REPLY_WINDOW + 1 {
            dedupe.record(sequence, request(7, sequence), reply(sequence));
        }
        assert!(matches!(
            dedupe.look(request(7, 1), Level::NEWEST),
            Seen::Refused(WireError::Rejected { .. })
        ));
        assert_eq!(before(&dedupe, request(7, 2)), Some(reply(2)));
        assert_eq!(dedupe.clients[&7].replies.len() as u64, REPLY_WINDOW);
        assert!(matches!(dedupe.look(request(7, 0), Level::NEWEST), Seen::Refused(_)));
        assert!(matches!(dedupe.look(request(8, 0), Level::NEWEST), Seen::Refused(_)));
        dedupe.record(100, request(7, u64::MAX >> 1), reply(9));
        assert_eq!(dedupe.clients[&7].replies.len(), 1);
    }

    #[test]
    fn a_name_is_of_what_was_asked_under_it_first() {
        let mut dedupe = Dedupe::default();
        let (asked, other) = (RequestId::named(7, 1), RequestId::named(7, 1 << 40));
        dedupe.record(1, asked, reply(1));
        assert_eq!(before(&dedupe, asked), Some(reply(1)));
        let refused = |request, level| match dedupe.look(request, level) {
            Seen::Refused(error) => Some(error),
            Seen::New | Seen::Before(_) => None,
        };
        assert_eq!(refused(other, Level::NEWEST), Some(WireError::AskedOtherwise));
        // Not what a coordinator that knows nothing of prints would come to.
        assert_eq!(refused(other, Level::CORDONS), None);
        // It is kept over restarts.
        let clients = dedupe.iter().map(|(id, client)| (*id, client.clone())).collect();
        let again = Dedupe::restore(clients, 1).expect("it is whole");
        assert!(matches!(again.look(other, Level::NEWEST), Seen::Refused(WireError::AskedOtherwise)));
        assert_eq!(before(&again, asked), Some(reply(1)));
    }

    #[test]
    fn what_was_asked_before_there_were_prints_is_answered_by_its_name_alone() {
        let mut dedupe = Dedupe::default();
        dedupe.record(1, request(7, 1), reply(1));
        assert_eq!(before(&dedupe, RequestId::named(7, 5)), Some(reply(1)));
        assert!(is_new(&dedupe, RequestId::named(8, 5)));
    }

    #[test]
    fn the_asker_not_heard_for_longest_is_forgotten() {
        let mut dedupe = Dedupe::default();
        for client in 0..MAX_CLIENTS as u128 {
            dedupe.record(client as u64 + 1, request(client, 1), reply(1));
        }
        dedupe.touch(5000, 0);
        dedupe.record(5001, request(9999, 1), reply(1));
        assert_eq!(dedupe.clients.len(), MAX_CLIENTS);
        assert_eq!(dedupe.by_age.len(), MAX_CLIENTS);
        assert!(before(&dedupe, request(0, 1)).is_some());
        assert!(is_new(&dedupe, request(1, 1)));
    }

    #[test]
    fn long_refusals_shorten_the_memory_and_not_the_limit() {
        let refusal = CommandReply::Rejected(WireError::rejected(format_args!("{}", "x".repeat(10_000))));
        let mut dedupe = Dedupe::default();
        let mut index = 0;
        for client in 0..MAX_CLIENTS as u128 {
            for sequence in 1..=REPLY_WINDOW {
                index += 1;
                dedupe.record(index, request(client, sequence), refusal.clone());
            }
        }
        let held: usize = dedupe.clients.values().map(Client::bytes).sum();
        assert_eq!(dedupe.bytes, held);
        assert!(held <= MAX_REPLY_BYTES, "{held} bytes");
        assert!(held + (1 << 20) > MAX_REPLY_BYTES, "no more is forgotten than must be: {held} bytes");
        assert_eq!(dedupe.by_age.len(), dedupe.clients.len());
        let newest = MAX_CLIENTS as u128 - 1;
        assert_eq!(before(&dedupe, request(newest, 1)), Some(refusal));
        assert!(is_new(&dedupe, request(0, REPLY_WINDOW)));
        let clients = dedupe.iter().map(|(id, client)| (*id, client.clone())).collect();
        assert_eq!(Dedupe::restore(clients, index).map(|restored| restored.bytes), Ok(held));
    }
}
