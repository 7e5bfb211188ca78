//! Up to six GPUs' pairs through trouble that follows from a seed: packets are lost, late, repeated and reordered, links are cut,
//! workers die and hang, NCCL fails, processes start anew, members leave the map and come back, clocks step. Then it is calm, and
//! everybody must reach everybody by NCCL, and all at once in a ring.

use super::Flaw;
use super::gpu::device;
use super::rules::{Manners, Out, Packet, Rules};
use crate::random::Random;
use kvhive_links::pairs::{Answer, Event, Ticket, Tuning};
use kvhive_protocol::Moment;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Simulated milliseconds of trouble, and of quiet after it.
const TROUBLE_MS: u64 = 3000;
const QUIET_MS: u64 = 3500;
/// How late a hand may be to tell its machine of the time.
const LATE_MS: u64 = 10;
/// When it is calm: tries to reach a GPU, and milliseconds between two.
const TRIES: u64 = 60;
const TRY_MS: u64 = 150;

enum What {
    Deliver(Packet),
    /// The machine hears what its worker has said first.
    Hear(usize),
    Complete(usize),
    Tick(usize),
    Want,
    Trouble,
    /// The watchdog of a worker that hung in this life of its GPU's.
    Watchdog(usize, u64),
    Mend(usize, usize),
    Return(usize),
}

impl What {
    fn tag(&self) -> u64 {
        match self {
            What::Deliver(packet) => 0x100 + packet.to() as u64,
            What::Hear(gpu) => 0x200 + *gpu as u64,
            What::Complete(id) => 0x300 + *id as u64,
            What::Tick(gpu) => 0x400 + *gpu as u64,
            What::Want => 0x500,
            What::Trouble => 0x600,
            What::Watchdog(gpu, _) => 0x700 + *gpu as u64,
            What::Mend(from, to) => 0x800 + (*from * 8 + *to) as u64,
            What::Return(gpu) => 0x900 + *gpu as u64,
        }
    }
}

/// What a seed came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Calm {
    /// Events.
    pub events: u64,
    /// Transfers that went by NCCL while there was trouble.
    pub carried: u64,
    /// Those that went by TCP.
    pub by_tcp: u64,
    /// Those whose bytes were in their receiver's frames.
    pub arrived: u64,
    /// Workers that died or hung, and processes that started anew.
    pub deaths: u64,
    /// Communicators for which an id was made.
    pub made: u64,
    /// A print of everything that happened.
    pub trace: u64,
}

/// One seed's GPUs.
pub struct Storm {
    random: Random,
    rules: Rules,
    now: u64,
    next: u64,
    heap: BTreeMap<(u64, u64), What>,
    /// By how much each GPU's clock is ahead, and when it is next told of the time.
    ahead: Vec<u64>,
    ticks: Vec<Option<u64>>,
    /// Whether a machine is about to hear its worker.
    hears: Vec<bool>,
    /// Lives of each GPU's worker that were ended by a watchdog or hung.
    hung: u64,
    cut: BTreeSet<(usize, usize)>,
    tickets: u64,
    /// Tickets that were carried lately.
    carried: BTreeSet<Ticket>,
    calm: Calm,
    has_trouble: bool,
}

impl Storm {
    /// Makes the GPUs of this seed and lets them run.
    ///
    /// # Errors
    /// What did not hold, and when.
    pub fn run(seed: u64, flaw: Option<Flaw>) -> Result<Calm, String> {
        let mut random = Random(seed);
        let count = 2 + random.below(5) as usize;
        let ms = Duration::from_millis;
        let tuning = Tuning {
            max_live: 1 + random.below(count as u64) as usize,
            max_transfers: 4 + random.below(12) as usize,
            make_after_bytes: 32,
            wanted_within: ms(10_000),
            keep: ms(100),
            wait_for_pair: if random.one_in(2) { ms(200) } else { Duration::ZERO },
            grant_limit: ms(400),
            go_limit: ms(150),
            offer_limit: ms(200),
            join_limit: ms(300),
            abort_limit: ms(200),
            start_limit: ms(300),
            rest_least: ms(20),
            rest_most: ms(400),
        };
        let is_eager = random.one_in(3);
        let manners = Manners { tuning, flaw, is_eager, patience: ms(600), lateness: ms(LATE_MS) };
        let mut storm = Storm {
            random,
            rules: Rules::new(count, manners),
            now: 1000,
            next: 0,
            heap: BTreeMap::new(),
            ahead: vec![0; count],
            ticks: vec![None; count],
            hears: vec![false; count],
            hung: 0,
            cut: BTreeSet::new(),
            tickets: 0,
            carried: BTreeSet::new(),
            calm: Calm { trace: seed, ..Calm::default() },
            has_trouble: true,
        };
        storm.all().map_err(|broken| format!("seed {seed} at {} ms: {broken}", storm.now))?;
        storm.calm.made = storm.rules.ids().len() as u64;
        Ok(storm.calm)
    }

    fn all(&mut self) -> Result<(), String> {
        for gpu in 0..self.count() {
            self.rules.meet(gpu, self.clock(gpu))?;
        }
        self.at(0, What::Want);
        self.at(300, What::Trouble);
        self.until(self.now + TROUBLE_MS)?;
        self.has_trouble = false;
        self.cut.clear();
        self.until(self.now + QUIET_MS)?;
        if let Some(gpu) = self.rules.gpus.iter().find(|gpu| !gpu.is_at_rest()) {
            return Err(format!("it is calm, and not all is answered: {gpu:?}"));
        }
        let counts = (self.calm.carried, self.calm.by_tcp);
        for from in 0..self.count() {
            for to in (0..self.count()).filter(|to| *to != from) {
                self.reach(from, &[to])?;
            }
        }
        self.ring()?;
        (self.calm.carried, self.calm.by_tcp) = counts;
        Ok(())
    }

    fn count(&self) -> usize {
        self.rules.gpus.len()
    }

    /// Tries to reach GPUs by NCCL, all at once, until they are.
    fn reach(&mut self, from: usize, to: &[usize]) -> Result<(), String> {
        for _ in 0..TRIES {
            let ticket = self.want(from, to, 64, 1000)?;
            let until = self.now + TRY_MS;
            self.until(until)?;
            while self.rules.gpus[from].wants.contains_key(&ticket) {
                self.until(self.now + TRY_MS)?;
            }
            if self.carried.remove(&ticket) {
                return Ok(());
            }
        }
        let report = |gpu: usize| self.rules.gpus[gpu].machine.snapshot(self.clock(gpu));
        let (own, theirs) = (report(from), to.iter().map(|to| report(*to)).collect::<Vec<_>>());
        Err(format!("it is calm, and GPU {from} does not reach GPU {to:?}:\n{own:?}\n{theirs:?}"))
    }

    /// All send to the next at once, each of which receives from the one before, and one or two send to all others, where there may be so
    /// many communicators.
    fn ring(&mut self) -> Result<(), String> {
        let (count, most) = (self.count(), self.rules.manners.tuning.max_live);
        let of_ring = 2.min(count - 1);
        if most < of_ring {
            return Ok(());
        }
        let next = |from: usize| (from, vec![(from + 1) % count]);
        let to_all = |from: usize| (from, (0..count).filter(|to| *to != from).collect::<Vec<_>>());
        let mut wants: Vec<(usize, Vec<usize>)> = (0..count).map(next).collect();
        if count > 2 {
            wants.extend((0..(most - of_ring).min(2)).map(to_all));
        }
        for (from, to) in &wants {
            self.reach(*from, to)?;
        }
        self.until(self.now + 2000)?;
        let mut tickets = Vec::new();
        for (from, to) in wants.iter().rev() {
            tickets.push(self.want(*from, to, 64, 2000)?);
        }
        self.until(self.now + 2500)?;
        match tickets.iter().all(|ticket| self.carried.contains(ticket)) {
            true => Ok(()),
            false => Err("all send at once, and stand in each other's way".to_owned()),
        }
    }

    fn clock(&self, gpu: usize) -> Moment {
        Moment::from_millis(self.now + self.ahead[gpu])
    }

    fn at(&mut self, delay: u64, what: What) {
        self.next += 1;
        self.heap.insert((self.now + delay, self.next), what);
    }

    fn until(&mut self, end: u64) -> Result<(), String> {
        while let Some(entry) = self.heap.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((time, _), what) = entry.remove_entry();
            self.now = time;
            self.calm.events += 1;
            self.calm.trace =
                self.calm.trace.rotate_left(7).wrapping_mul(0x100_0000_01b3) ^ (time << 12) ^ what.tag();
            self.happen(what)?;
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, what: What) -> Result<(), String> {
        match what {
            What::Deliver(packet) => {
                let gpu = packet.to();
                let is_refused = self.has_trouble && self.random.one_in(40);
                let packet = match packet {
                    Packet::Store { transfer, ticket, .. } if is_refused => {
                        let (sender, generation) = (transfer.sender, transfer.generation);
                        self.send(gpu, Packet::Refuse { ticket, sender, generation });
                        return Ok(());
                    }
                    // What it is asked to store is not what is proposed.
                    Packet::Store { transfer, ticket, peer, bytes }
                        if self.has_trouble && self.random.one_in(200) =>
                    {
                        Packet::Store { transfer, ticket, peer, bytes: bytes + 1 }
                    }
                    packet => packet,
                };
                let outs = self.rules.deliver(self.clock(gpu), packet)?;
                self.after(gpu, outs)
            }
            What::Hear(gpu) => {
                self.hears[gpu] = false;
                let outs = self.rules.hear(gpu, self.clock(gpu))?;
                self.after(gpu, outs)
            }
            What::Complete(id) => {
                let ends = self.rules.ends(id);
                if ends.iter().any(|one| ends.iter().any(|other| self.cut.contains(&(*one, *other)))) {
                    self.at(20, What::Complete(id));
                    return Ok(());
                }
                self.rules.complete(id)?;
                ends.into_iter().try_for_each(|gpu| self.after(gpu, Vec::new()))
            }
            What::Tick(gpu) => {
                self.ticks[gpu] = None;
                let outs = self.rules.step(gpu, self.clock(gpu), Event::Tick)?;
                self.after(gpu, outs)
            }
            What::Want => {
                let from = self.random.below(self.count() as u64) as usize;
                let to = (from + 1 + self.random.below(self.count() as u64 - 1) as usize) % self.count();
                let (bytes, deadline) = (1 + self.random.below(64), 20 + self.random.below(500));
                let others: Vec<usize> = (0..self.count()).filter(|other| *other != from).collect();
                match others.len() > 1 && self.random.one_in(3) {
                    true if self.random.one_in(2) => self.want(from, &others[..2], bytes, deadline)?,
                    true => self.want(from, &others, bytes, deadline)?,
                    false => self.want(from, &[to], bytes, deadline)?,
                };
                let wait = self.random.below(20);
                if self.has_trouble {
                    self.at(wait, What::Want);
                }
                Ok(())
            }
            What::Trouble if !self.has_trouble => Ok(()),
            What::Trouble => {
                let wait = 20 + self.random.below(400);
                self.at(wait, What::Trouble);
                self.trouble()
            }
            What::Watchdog(gpu, hung) => {
                let worker = self.rules.gpus[gpu].worker.as_ref();
                if worker.is_some_and(|worker| worker.hangs) && self.hung == hung {
                    self.rules.gpu(gpu).end_worker();
                }
                self.after(gpu, Vec::new())
            }
            What::Mend(from, to) => {
                self.cut.remove(&(from, to));
                Ok(())
            }
            What::Return(gpu) => {
                let generation = self.rules.gpus[gpu].generation;
                for to in (0..self.count()).filter(|to| *to != gpu) {
                    self.send(gpu, Packet::Map { to: device(to), device: device(gpu), generation });
                }
                Ok(())
            }
        }
    }

    fn trouble(&mut self) -> Result<(), String> {
        let gpu = self.random.below(self.count() as u64) as usize;
        let other = (gpu + 1 + self.random.below(self.count() as u64 - 1) as usize) % self.count();
        match self.random.below(9) {
            0 => {
                self.calm.deaths += u64::from(self.rules.gpus[gpu].worker.is_some());
                self.rules.gpu(gpu).end_worker();
                self.after(gpu, Vec::new())
            }
            1 | 2 => {
                if let Some(worker) = &mut self.rules.gpu(gpu).worker {
                    worker.hangs = true;
                    self.calm.deaths += 1;
                    self.hung += 1;
                    if self.random.one_in(2) {
                        let limit = self.random.below(300);
                        self.at(limit, What::Watchdog(gpu, self.hung));
                    }
                }
                Ok(())
            }
            3 => {
                self.calm.deaths += 1;
                let outs = self.rules.restart(gpu, self.clock(gpu))?;
                self.after(gpu, outs)
            }
            4 | 5 => {
                let lasts = self.random.below(500);
                for (from, to) in [(gpu, other), (other, gpu)] {
                    self.cut.insert((from, to));
                    self.at(lasts, What::Mend(from, to));
                }
                Ok(())
            }
            6 => {
                let step = self.random.below(400);
                self.ahead[gpu] += step;
                // What it was to do meanwhile it could not.
                let wants = self.rules.gpu(gpu).wants.values_mut();
                wants.for_each(|fate| fate.deadline = fate.deadline + Duration::from_millis(step));
                self.ticks[gpu] = None;
                self.after(gpu, Vec::new())
            }
            7 => {
                let gpus = self.rules.gpu(gpu);
                let communicators = gpus.worker.iter().flat_map(|worker| worker.ends.keys());
                if let Some(communicator) = communicators.min().copied() {
                    gpus.answers.push_back(Answer::Failed { communicator });
                }
                self.after(gpu, Vec::new())
            }
            _ => {
                for to in (0..self.count()).filter(|to| *to != gpu) {
                    self.send(gpu, Packet::Left { to: device(to), device: device(gpu) });
                }
                let wait = 20 + self.random.below(300);
                self.at(wait, What::Return(gpu));
                Ok(())
            }
        }
    }

    fn want(&mut self, from: usize, to: &[usize], bytes: u64, deadline_ms: u64) -> Result<Ticket, String> {
        self.tickets += 1;
        let (ticket, now) = (Ticket(self.tickets), self.clock(from));
        let outs =
            self.rules.want(from, now, (ticket, to, bytes), now + Duration::from_millis(deadline_ms))?;
        self.after(from, outs)?;
        Ok(ticket)
    }

    /// Sends a packet: late, lost, twice, or not at all over a cut link. What the map says comes, and in order.
    fn send(&mut self, from: usize, packet: Packet) {
        if matches!(packet, Packet::Map { .. } | Packet::Left { .. }) {
            return self.at(5, What::Deliver(packet));
        }
        let trouble = self.has_trouble;
        if self.cut.contains(&(from, packet.to())) || (trouble && self.random.one_in(50)) {
            return;
        }
        if trouble && self.random.one_in(40) {
            let delay = 1 + self.random.below(400);
            self.at(delay, What::Deliver(packet.clone()));
        }
        let spread = if trouble && self.random.one_in(20) { 150 } else { 4 };
        let delay = 1 + self.random.below(spread);
        self.at(delay, What::Deliver(packet));
    }

    /// Sends what a step has led to, counts what is over, and sees to it that the GPU is told what it is to be told.
    fn after(&mut self, gpu: usize, outs: Vec<Out>) -> Result<(), String> {
        for out in outs {
            match out {
                Out::Packet(packet) => self.send(gpu, packet),
                Out::Matched(id) => {
                    let takes = 1 + self.random.below(8);
                    self.at(takes, What::Complete(id));
                }
            }
        }
        for (ticket, by_nccl) in self.rules.forget_wants(gpu) {
            match by_nccl {
                true => self.calm.carried += 1,
                false => self.calm.by_tcp += 1,
            }
            if by_nccl && !self.has_trouble {
                self.carried.insert(ticket);
            }
        }
        self.calm.arrived += self.rules.forget_rooms(gpu);
        for gpu in 0..self.count() {
            if !self.hears[gpu] && !self.rules.gpus[gpu].answers.is_empty() {
                self.hears[gpu] = true;
                let delay = 1 + self.random.below(6);
                self.at(delay, What::Hear(gpu));
            }
        }
        let Some(wakes) = self.rules.gpus[gpu].machine.wakes() else { return Ok(()) };
        let wakes = (wakes.as_nanos() / 1_000_000).saturating_sub(self.ahead[gpu]).max(self.now);
        if self.ticks[gpu].is_none_or(|tick| tick > wakes + LATE_MS) {
            let late = self.random.below(LATE_MS);
            self.ticks[gpu] = Some(wakes + late);
            self.at(wakes + late - self.now, What::Tick(gpu));
        }
        Ok(())
    }
}
