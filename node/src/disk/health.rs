//! Whether a disk takes blocks: closed by what fails, opened again by a probe that works. Pure: time comes in with each call.

use kvhive_protocol::Moment;
use std::time::Duration;

/// Reads in a row whose failure closes the disk: one bad sector does not.
const MAX_BAD_READS: u32 = 4;

/// How long a closed disk is left alone before it is probed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ProbeWaits {
    /// After it was closed.
    pub(crate) least: Duration,
    /// Doubled up to this while probes fail, or while what a probe has opened fails at once.
    pub(crate) most: Duration,
}

impl Default for ProbeWaits {
    fn default() -> ProbeWaits {
        ProbeWaits { least: Duration::from_secs(1), most: Duration::from_secs(60) }
    }
}

/// The state of one disk.
#[derive(Debug)]
pub(crate) struct Health {
    waits: ProbeWaits,
    /// When it is probed, while it is closed.
    probe_at: Option<Moment>,
    wait: Duration,
    bad_reads: u32,
}

impl Health {
    /// Begins open.
    pub(crate) fn new(waits: ProbeWaits) -> Health {
        Health { waits, probe_at: None, wait: waits.least, bad_reads: 0 }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.probe_at.is_none()
    }

    /// A write of a block has ended, or what must be done before there can be one. Says whether that closed the disk.
    pub(crate) fn wrote(&mut self, now: Moment, worked: bool) -> bool {
        if worked {
            self.wait = self.waits.least;
            return false;
        }
        self.close(now)
    }

    /// A read of a block has ended. Says whether that closed the disk.
    pub(crate) fn read(&mut self, now: Moment, worked: bool) -> bool {
        self.bad_reads = if worked { 0 } else { self.bad_reads + 1 };
        self.bad_reads >= MAX_BAD_READS && self.close(now)
    }

    fn close(&mut self, now: Moment) -> bool {
        let was_open = self.is_open();
        if was_open {
            self.probe_at = Some(now + self.wait);
            self.wait = (self.wait * 2).min(self.waits.most);
        }
        was_open
    }

    /// Says whether a closed disk is to be probed now.
    pub(crate) fn is_due(&self, now: Moment) -> bool {
        self.probe_at.is_some_and(|at| at <= now)
    }

    /// A probe has ended. Says whether that opened the disk.
    pub(crate) fn probed(&mut self, now: Moment, worked: bool) -> bool {
        if self.is_open() {
            return false;
        }
        self.probe_at = (!worked).then_some(now + self.wait);
        if worked {
            self.bad_reads = 0;
        } else {
            self.wait = (self.wait * 2).min(self.waits.most);
        }
        worked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn health() -> Health {
        Health::new(ProbeWaits { least: Duration::from_millis(10), most: Duration::from_millis(35) })
    }

    #[test]
    fn a_write_that_fails_closes_and_a_probe_that_works_opens() {
        let mut health = health();
        assert!(health.wrote(at(0), false) && !health.is_open());
        assert!(!health.wrote(at(1), false), "closed once");
        assert!(!health.is_due(at(9)) && health.is_due(at(10)));
        assert!(health.probed(at(10), true) && health.is_open());
    }

    #[test]
    fn probes_that_fail_are_made_more_and_more_rarely() {
        let mut health = health();
        health.wrote(at(0), false);
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..4 {
            let begun = now;
            while !health.is_due(at(now)) {
                now += 1;
            }
            waits.push(now - begun);
            assert!(!health.probed(at(now), false));
        }
        assert_eq!(waits, [10, 20, 35, 35]);
        health.probed(at(now), true);
        health.wrote(at(now), false);
        assert!(!health.is_due(at(now + 34)), "what a probe opened and fails at once waits as long");
        health.probed(at(now), true);
        health.wrote(at(now), true);
        health.wrote(at(now), false);
        assert!(health.is_due(at(now + 10)), "a block that was written makes up for it");
    }

    #[test]
    fn a_bad_sector_closes_nothing_and_many_in_a_row_do() {
        let mut health = health();
        for _ in 0..10 {
            for _ in 1..MAX_BAD_READS {
                assert!(!health.read(at(0), false));
            }
            assert!(!health.read(at(0), true));
        }
        let closed = (0..MAX_BAD_READS).map(|_| health.read(at(0), false)).collect::<Vec<_>>();
        assert_eq!(closed, [false, false, false, true]);
    }
}
