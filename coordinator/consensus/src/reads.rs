//! Linearizable reads: tickets are gathered while one read index is under way, and share the next.

use crate::types::Ticket;

/// Reads by the stage they are in.
#[derive(Default)]
pub(crate) struct Reads {
    /// Wait for the next read index.
    gathered: Vec<Ticket>,
    /// Share the read index that is under way, under this number.
    asked: Option<(u64, Vec<Ticket>)>,
    /// Confirmed; wait until this index is applied.
    confirmed: Vec<(u64, Vec<Ticket>)>,
    rounds: u64,
}

impl Reads {
    pub(crate) fn len(&self) -> usize {
        let confirmed: usize = self.confirmed.iter().map(|(_, tickets)| tickets.len()).sum();
        self.gathered.len() + self.asked.as_ref().map_or(0, |(_, tickets)| tickets.len()) + confirmed
    }

    pub(crate) fn gather(&mut self, ticket: Ticket) {
        self.gathered.push(ticket);
    }

    /// Begins a round for what was gathered, unless one is under way; returns its number.
    pub(crate) fn begin(&mut self) -> Option<u64> {
        if self.gathered.is_empty() || self.asked.is_some() {
            return None;
        }
        self.rounds += 1;
        self.asked = Some((self.rounds, std::mem::take(&mut self.gathered)));
        Some(self.rounds)
    }

    /// Raft confirmed leadership for a round: its reads may be served once `index` is applied.
    pub(crate) fn confirm(&mut self, round: u64, index: u64) {
        if let Some((_, tickets)) = self.asked.take_if(|(asked, _)| *asked == round) {
            self.confirmed.push((index, tickets));
        }
    }

    /// Returns the reads that may be served now.
    pub(crate) fn take_readable(&mut self, applied: u64) -> Vec<Ticket> {
        let mut readable = Vec::new();
        self.confirmed.retain_mut(|(index, tickets)| {
            if *index > applied {
                return true;
            }
            readable.append(tickets);
            false
        });
        readable
    }

    /// Returns every read that waits: leadership is lost.
    pub(crate) fn take_all(&mut self) -> Vec<Ticket> {
        let mut all = std::mem::take(&mut self.gathered);
        all.extend(self.asked.take().into_iter().flat_map(|(_, tickets)| tickets));
        all.extend(self.confirmed.drain(..).flat_map(|(_, tickets)| tickets));
        all
    }
}
