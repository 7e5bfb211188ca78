//! Blocks of which something is promised: they are stored until every replica has acknowledged them, and looked for.

use super::load::{AGAIN, DEPTH, KEPT, LOOK_LIMIT, Load, PREFIXES};
use kvhive_protocol::data::Ack;
use std::time::{Duration, Instant};

impl Load {
    /// Stores what is not promised of a kept prefix, each block by itself: another's loss is not to be covered by it. Says
    /// whether all of it is promised.
    pub(super) async fn keep(&self, name: u32) -> bool {
        for at in 0..DEPTH {
            let may_be = self.shared.oracle().may_promise(KEPT, name, at as u16);
            if may_be {
                self.store(KEPT, name, at..at + 1, Ack::All).await;
            }
        }
        let oracle = self.shared.oracle();
        (0..DEPTH).all(|at| oracle.is_promised(KEPT, name, at as u16))
    }

    /// Keeps what was promised and is no more, because too much was broken at a time.
    pub(super) async fn keeps(self) {
        while !self.shared.is_ending() {
            for name in 0..PREFIXES[usize::from(KEPT)] {
                self.keep(name).await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Looks for every promised block. What is promised has all of its copies.
    pub(super) async fn check_promises(&self) {
        let promised = self.shared.oracle().promised();
        let ended = self.shared.oracle().voided();
        self.shared.figures().promises_ended = ended;
        let mut names: Vec<u32> = promised.iter().map(|(_, name, _)| *name).collect();
        names.dedup();
        for name in names {
            let (begun, mut came) = (Instant::now(), self.fetch(KEPT, name).await);
            while self.is_short(name, &came) && begun.elapsed() < LOOK_LIMIT {
                tokio::time::sleep(AGAIN * 10).await;
                came = self.fetch(KEPT, name).await;
            }
            for at in 0..DEPTH as u16 {
                if !self.shared.oracle().is_promised(KEPT, name, at) {
                    continue;
                }
                self.shared.figures().promises_checked += 1;
                if !came[usize::from(at)] {
                    self.shared.figures().lost += 1;
                    self.shared.oracle().loses(KEPT, name, at);
                    self.shared.found(format!(
                        "block {at} of prefix {name} was acknowledged by every replica and is gone"
                    ));
                }
            }
        }
    }
}
