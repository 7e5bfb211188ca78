//! The trouble that befalls everybody. Faults have numbers and a source of chance of their own, so that one can be left out while
//! the others stay as they are.

use super::{CLIENT, Event, Host, NODES, World};
use crate::Random;
use crate::breach::Holds;
use crate::coordinator::PEERS;

/// The faults of a seed.
pub(super) struct Faults {
    random: Random,
    count: u64,
    /// What happened, in words.
    pub(super) told: Vec<String>,
}

/// One fault.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// A coordinator loses power.
    CrashCoordinator(Host),
    CrashNode(usize),
    /// One host is cut off from all others, in one direction or both.
    CutOff {
        host: Host,
        hears: bool,
        is_heard: bool,
    },
    /// The coordinator that leads is cut off from the other coordinators, and from nobody else.
    CutLeader,
    /// Two nodes do not reach each other, and reach everybody else.
    CutNodes {
        one: usize,
        other: usize,
    },
    /// A node reaches no coordinator, and everybody else.
    CutLeases(usize),
    /// What carries blocks from node to node is late for a while.
    Slow {
        lasts: u64,
    },
    /// A majority of the coordinators loses power, or all do, for longer than leases last, or than those by which nodes serve.
    Outage {
        stays: Option<Host>,
        lasts: u64,
    },
    /// A process does nothing for a while, as one that is stopped or swapped out.
    Pause {
        host: Host,
        lasts: u64,
    },
    /// The disks of all coordinators but one do nothing for a while.
    Stall {
        spares: Host,
        lasts: u64,
    },
    /// A coordinator loses power and its disk.
    LoseDisk(Host),
    /// A bit of a block turns over.
    Rot {
        node: usize,
        which: usize,
        bit: u32,
    },
    /// A node's device dies, and the node goes on without it.
    LoseDevice(usize),
}

impl Faults {
    pub(super) fn of(seed: u64) -> Faults {
        Faults { random: Random(seed ^ 0x7261_6666_6C65_7321), count: 0, told: Vec::new() }
    }

    fn draw(&mut self) -> Fault {
        let random = &mut self.random;
        let mut below = |limit: u64| random.below(limit);
        let (coordinator, node) = (below(PEERS) as usize, below(NODES as u64) as usize);
        match below(23) {
            0 => Fault::CrashCoordinator(coordinator),
            1..=3 => Fault::CrashNode(node),
            4..=6 => {
                let (host, ways) = (below(CLIENT as u64) as usize, below(3));
                Fault::CutOff { host, hears: ways == 1, is_heard: ways == 2 }
            }
            7 => Fault::CutLeader,
            8 => {
                let stays = (below(2) == 0).then_some(coordinator);
                Fault::Outage { stays, lasts: 1200 + below(3000) }
            }
            9 | 10 => Fault::Pause { host: below(CLIENT as u64) as usize, lasts: 100 + below(3000) },
            11 => Fault::Stall { spares: coordinator, lasts: 200 + below(1500) },
            12 | 13 => Fault::LoseDisk(coordinator),
            14..=16 => Fault::Rot { node, which: below(1 << 16) as usize, bit: below(64) as u32 },
            17 | 18 => Fault::CutNodes { one: node, other: (node + 1) % NODES },
            19 | 20 => Fault::CutLeases(node),
            21 => Fault::Slow { lasts: 300 + below(2000) },
            _ => Fault::LoseDevice(node),
        }
    }
}

impl World {
    pub(super) fn trouble(&mut self) -> Holds {
        let pause = 50 + self.trouble.random.below(400);
        self.at(pause, Event::Trouble);
        match self.trouble.random.below(5) {
            0 => self.start_all(),
            1 => self.cut.clear(),
            _ => {
                let fault = self.trouble.draw();
                self.trouble.count += 1;
                let number = self.trouble.count;
                if !self.muted.faults.contains(&number) {
                    self.trouble.told.push(format!("{number}: at {} ms {fault:?}", self.now));
                    self.befall(fault)?;
                }
            }
        }
        Ok(())
    }

    fn befall(&mut self, fault: Fault) -> Holds {
        let peers = 0..PEERS as usize;
        match fault {
            Fault::CrashCoordinator(host) => self.crash_coordinator(host),
            Fault::CrashNode(node) => {
                self.paused.remove(&(PEERS as usize + node));
                self.outcome.crashes += u64::from(self.nodes[node].running.take().is_some());
            }
            Fault::CutOff { host, hears, is_heard } => {
                for other in 0..=CLIENT {
                    if !is_heard {
                        self.cut.insert((host, other));
                    }
                    if !hears {
                        self.cut.insert((other, host));
                    }
                }
            }
            Fault::CutLeader => {
                let Some((_, host)) = self.seen.leaders.last_key_value() else { return Ok(()) };
                let host = *host;
                peers.filter(|other| *other != host).for_each(|other| self.cut_between(host, other));
            }
            Fault::CutNodes { one, other } => self.cut_between(PEERS as usize + one, PEERS as usize + other),
            Fault::CutLeases(node) => peers.for_each(|host| self.cut_between(PEERS as usize + node, host)),
            Fault::Slow { lasts } => {
                self.outcome.slow += 1;
                self.slow_until = self.slow_until.max(self.now + lasts);
            }
            Fault::Outage { stays, lasts } => {
                if self.now >= self.outage_until {
                    self.outage_until = self.now + lasts;
                    self.outcome.outages += 1;
                    peers.filter(|host| Some(*host) != stays).for_each(|host| self.crash_coordinator(host));
                }
            }
            Fault::Pause { host, lasts } => {
                self.outcome.pauses += 1;
                self.paused.insert(host, self.now + lasts);
            }
            Fault::Stall { spares, lasts } => {
                let until = self.now + lasts;
                self.stalled.extend(peers.filter(|host| *host != spares).map(|host| (host, until)));
            }
            Fault::LoseDisk(host) => self.lose_disk(host),
            Fault::Rot { node, which, bit } => {
                if let Some(running) = &mut self.nodes[node].running {
                    self.outcome.rotten += u64::from(running.rot(which, bit));
                }
            }
            Fault::LoseDevice(node) => {
                if let Some(running) = &mut self.nodes[node].running {
                    running.lose_device()?;
                    self.outcome.devices_lost += 1;
                }
            }
        }
        Ok(())
    }

    fn cut_between(&mut self, one: Host, other: Host) {
        self.cut.extend([(one, other), (other, one)]);
    }

    fn crash_coordinator(&mut self, host: Host) {
        self.paused.remove(&host);
        let (machine, disk) = &mut self.coordinators[host];
        if machine.running.take().is_some() {
            self.outcome.crashes += 1;
            disk.lose_power(&mut self.trouble.random);
        }
    }

    /// Loses a coordinator's disk, if what every other has can be counted on: one that has lost its own is waited for.
    fn lose_disk(&mut self, host: Host) {
        let is_settled = |at: usize| {
            self.coordinators[at].0.running.as_ref().is_some_and(|coordinator| coordinator.is_settled())
        };
        self.diskless = self.diskless.filter(|at| !is_settled(*at));
        if self.diskless.is_some() || !(0..PEERS as usize).all(is_settled) {
            return;
        }
        self.crash_coordinator(host);
        self.coordinators[host].1.lose_all();
        self.diskless = Some(host);
        self.outcome.disks_lost += 1;
    }
}
