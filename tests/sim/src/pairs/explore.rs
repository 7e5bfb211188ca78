//! Every interleaving of a few GPUs' pairs up to a bound: states are gone through breadth first, each once.
//!
//! Whatever is under way may happen next: a packet arrives, a machine hears what its worker said, something is wanted. Time passes
//! for one GPU where nothing else can happen, or as often as the bounds say before. Faults happen as often as the bounds say: a
//! packet is lost or comes twice, a worker dies or hangs, a process starts anew.
//!
//! From each state one schedule is followed, in which everything under way happens in turn, to a state where all is answered and
//! nothing is touched any more. Where there was no fault it must get there without that time passes.

use super::Flaw;
use super::rules::{Manners, Out, Packet, Rules};
use kvhive_links::pairs::{Event, Ticket, Tuning};
use kvhive_protocol::Moment;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// What is gone through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scenario {
    /// How many GPUs there are.
    pub gpus: usize,
    /// What is wanted by which GPU to go to which, to several at once perhaps, in the order of each.
    pub wants: Vec<(usize, Vec<usize>)>,
    /// Pairs that stand in the beginning, and who can send to several then.
    pub standing: Vec<(usize, Vec<usize>)>,
    /// The most communicators of one GPU.
    pub max_live: usize,
    /// What is sent leaves its sender before the receiver is there.
    pub is_eager: bool,
    /// A rule that is left out.
    pub flaw: Option<Flaw>,
}

/// How far.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Bounds {
    /// Packets that are lost.
    pub losses: u8,
    /// Packets that come twice.
    pub repeats: u8,
    /// Workers that die or hang, and processes that start anew.
    pub deaths: u8,
    /// Times that time passes while something else could happen.
    pub early: u8,
}

/// What was gone through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Explored {
    /// States.
    pub states: u64,
    /// Steps from one to the next.
    pub steps: u64,
    /// Steps of the longest shortest way to a state.
    pub depth: u64,
    /// Most of what was carried in one of them.
    pub carried: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct State {
    rules: Rules,
    /// A print of each GPU: what takes a step is one of them.
    prints: Vec<u64>,
    /// Each GPU's time.
    nows: Vec<Moment>,
    /// What is under way, in order.
    packets: Vec<Packet>,
    wants: Vec<(usize, Vec<usize>)>,
    tickets: u64,
    /// What may happen yet of what the bounds allow.
    left: Bounds,
}

fn print(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Choice {
    Want(usize),
    Hear(usize),
    Deliver(usize),
    Time { gpu: usize, is_early: bool },
    Lose(usize),
    Repeat(usize),
    KillWorker(usize),
    HangWorker(usize),
    Restart(usize),
}

impl State {
    fn begin(scenario: &Scenario, bounds: Bounds) -> Result<State, String> {
        let tuning = Tuning {
            max_live: scenario.max_live,
            make_after_bytes: 1,
            // Longer than everything else, so that time that passes ends one thing after the other.
            wait_for_pair: Duration::from_secs(100),
            grant_limit: Duration::from_secs(50),
            keep: Duration::ZERO,
            ..Tuning::default()
        };
        let manners = Manners {
            tuning,
            flaw: scenario.flaw,
            is_eager: scenario.is_eager,
            patience: Duration::from_secs(1000),
            lateness: Duration::ZERO,
        };
        let mut state = State {
            rules: Rules::new(scenario.gpus, manners),
            prints: vec![0; scenario.gpus],
            nows: vec![Moment::ZERO; scenario.gpus],
            packets: Vec::new(),
            wants: Vec::new(),
            tickets: 0,
            left: Bounds::default(),
        };
        for gpu in 0..scenario.gpus {
            state.rules.meet(gpu, Moment::ZERO)?;
        }
        state.wants.clone_from(&scenario.standing);
        while let Some(choice) = state.fair() {
            state.take(choice)?;
        }
        state.wants.clone_from(&scenario.wants);
        state.left = bounds;
        Ok(state)
    }

    fn print(&self) -> u64 {
        let State { rules, prints, nows, packets, wants, tickets, left } = self;
        print(&(prints, rules.ids(), nows, packets, wants, tickets, left))
    }

    /// Returns what happens next if everything does in its turn; none where all is over.
    fn fair(&self) -> Option<Choice> {
        if !self.wants.is_empty() {
            return Some(Choice::Want(0));
        }
        if let Some(gpu) = self.rules.gpus.iter().position(|gpu| !gpu.answers.is_empty()) {
            return Some(Choice::Hear(gpu));
        }
        if !self.packets.is_empty() {
            return Some(Choice::Deliver(0));
        }
        if self.rules.gpus.iter().all(|gpu| gpu.is_at_rest()) {
            return None;
        }
        self.soonest().map(|gpu| Choice::Time { gpu, is_early: false })
    }

    /// Returns whose time passes next where nothing else happens.
    fn soonest(&self) -> Option<usize> {
        let wakes = self.rules.gpus.iter().enumerate();
        let wakes = wakes.filter_map(|(at, gpu)| Some((gpu.machine.wakes()?.since(self.nows[at]), at)));
        wakes.min().map(|(_, at)| at)
    }

    fn choices(&self) -> Vec<Choice> {
        let gpus = 0..self.rules.gpus.len();
        let mut choices = Vec::new();
        for (at, (gpu, _)) in self.wants.iter().enumerate() {
            if self.wants[..at].iter().all(|(other, _)| other != gpu) {
                choices.push(Choice::Want(at));
            }
        }
        let speaking = gpus.clone().filter(|gpu| !self.rules.gpus[*gpu].answers.is_empty());
        choices.extend(speaking.map(Choice::Hear));
        let distinct =
            (0..self.packets.len()).filter(|at| *at == 0 || self.packets[at - 1] != self.packets[*at]);
        for at in distinct {
            choices.push(Choice::Deliver(at));
            // What the map says comes, and once.
            if !matches!(self.packets[at], Packet::Map { .. }) {
                choices.extend((self.left.losses > 0).then_some(Choice::Lose(at)));
                choices.extend((self.left.repeats > 0).then_some(Choice::Repeat(at)));
            }
        }
        if choices.is_empty() && !self.rules.gpus.iter().all(|gpu| gpu.is_at_rest()) {
            choices.extend(self.soonest().map(|gpu| Choice::Time { gpu, is_early: false }));
        } else if self.left.early > 0 {
            let wakes = gpus.clone().filter(|gpu| self.rules.gpus[*gpu].machine.wakes().is_some());
            choices.extend(wakes.map(|gpu| Choice::Time { gpu, is_early: true }));
        }
        if self.left.deaths > 0 {
            for gpu in gpus {
                if let Some(worker) = &self.rules.gpus[gpu].worker {
                    choices.push(Choice::KillWorker(gpu));
                    choices.extend((!worker.hangs).then_some(Choice::HangWorker(gpu)));
                }
                choices.push(Choice::Restart(gpu));
            }
        }
        choices
    }

    fn take(&mut self, choice: Choice) -> Result<(), String> {
        // Held, so that a GPU that changes is another one.
        let before = self.rules.gpus.clone();
        let outs = match choice {
            Choice::Want(at) => {
                let (gpu, peers) = self.wants.remove(at);
                self.tickets += 1;
                let deadline = self.nows[gpu] + Duration::from_secs(500);
                self.rules.want(gpu, self.nows[gpu], (Ticket(self.tickets), &peers, 1), deadline)?
            }
            Choice::Hear(gpu) => self.rules.hear(gpu, self.nows[gpu])?,
            Choice::Deliver(at) => {
                let packet = self.packets.remove(at);
                self.rules.deliver(self.nows[packet.to()], packet)?
            }
            Choice::Time { gpu, is_early } => {
                self.left.early -= u8::from(is_early);
                let wakes = self.rules.gpus[gpu].machine.wakes();
                self.nows[gpu] = wakes.map_or(self.nows[gpu], |wakes| wakes.max(self.nows[gpu]));
                self.rules.step(gpu, self.nows[gpu], Event::Tick)?
            }
            Choice::Lose(at) => {
                self.left.losses -= 1;
                self.packets.remove(at);
                Vec::new()
            }
            Choice::Repeat(at) => {
                self.left.repeats -= 1;
                vec![Out::Packet(self.packets[at].clone())]
            }
            Choice::KillWorker(gpu) => {
                self.left.deaths -= 1;
                self.rules.gpu(gpu).end_worker();
                Vec::new()
            }
            Choice::HangWorker(gpu) => {
                self.left.deaths -= 1;
                if let Some(worker) = &mut self.rules.gpu(gpu).worker {
                    worker.hangs = true;
                }
                Vec::new()
            }
            Choice::Restart(gpu) => {
                self.left.deaths -= 1;
                self.rules.restart(gpu, self.nows[gpu])?
            }
        };
        for out in outs {
            match out {
                Out::Packet(packet) => self.packets.push(packet),
                Out::Matched(id) => self.rules.complete(id)?,
            }
        }
        self.packets.sort_unstable();
        for (at, gpu) in self.rules.gpus.iter().enumerate() {
            if self.prints[at] == 0 || !Arc::ptr_eq(gpu, &before[at]) {
                self.prints[at] = print(gpu);
            }
        }
        Ok(())
    }

    fn carried(&self) -> usize {
        let wants = self.rules.gpus.iter().flat_map(|gpu| gpu.wants.values());
        wants.filter(|fate| fate.answer == Some(true)).count()
    }
}

/// What is known of a state that was reached.
struct Reached {
    /// The state that follows if everything happens in its turn, and whether time passes between.
    next: Option<(u64, bool)>,
    had_fault: bool,
    /// By which choice, from which state.
    from: Option<(u64, Choice)>,
}

/// Goes through every interleaving.
///
/// # Errors
/// What does not hold somewhere, and the way there.
pub fn explore(scenario: &Scenario, bounds: Bounds) -> Result<Explored, String> {
    let begin = State::begin(scenario, bounds)?;
    let first = begin.print();
    let all = begin.carried() + scenario.wants.len();
    let mut explored = Explored::default();
    let mut reached = HashMap::from([(first, Reached { next: None, had_fault: false, from: None })]);
    let mut queue = VecDeque::from([(first, begin, 0)]);
    while let Some((print, state, depth)) = queue.pop_front() {
        explored.states += 1;
        explored.depth = depth;
        explored.carried = explored.carried.max(state.carried());
        let had_fault = reached[&print].had_fault;
        let fair = state.fair();
        if fair.is_none() && !had_fault && state.carried() < all {
            return Err(way(&reached, print, "without a fault, something was not carried"));
        }
        for choice in state.choices() {
            let mut next = state.clone();
            next.take(choice).map_err(|broken| way(&reached, print, &format!("{choice:?}: {broken}")))?;
            explored.steps += 1;
            let to = next.print();
            if fair == Some(choice) {
                let passes = matches!(choice, Choice::Time { .. });
                if passes && !had_fault {
                    return Err(way(&reached, print, "a deadlock: nothing helps but time"));
                }
                reached.entry(print).and_modify(|state| state.next = Some((to, passes)));
            }
            let is_fault = !matches!(choice, Choice::Want(_) | Choice::Hear(_) | Choice::Deliver(_));
            reached.entry(to).or_insert_with(|| {
                queue.push_back((to, next, depth + 1));
                Reached { next: None, had_fault: had_fault || is_fault, from: Some((print, choice)) }
            });
        }
        if fair.is_some() && reached[&print].next.is_none() {
            return Err(way(&reached, print, "what is under way cannot happen"));
        }
    }
    ends(&reached)?;
    Ok(explored)
}

/// Follows from each state what happens if everything does in its turn: it must come to an end.
fn ends(reached: &HashMap<u64, Reached>) -> Result<(), String> {
    let mut good = HashSet::new();
    for start in reached.keys() {
        let (mut at, mut passed) = (*start, Vec::new());
        while let Some((next, _)) = reached[&at].next.filter(|_| !good.contains(&at)) {
            passed.push(at);
            if passed.len() > reached.len() {
                return Err(way(reached, *start, "it goes on for ever"));
            }
            at = next;
        }
        good.extend(passed);
        good.insert(at);
    }
    Ok(())
}

/// Tells how a state was reached, and what does not hold there.
fn way(reached: &HashMap<u64, Reached>, print: u64, broken: &str) -> String {
    let mut steps = Vec::new();
    let mut at = print;
    while let Some((from, choice)) = reached[&at].from {
        steps.push(format!("{choice:?}"));
        at = from;
    }
    steps.reverse();
    format!("{broken}\nafter {} steps: {}", steps.len(), steps.join(", "))
}

impl Scenario {
    /// GPUs that want something of each other and have no pairs yet.
    pub fn of(gpus: usize, wants: &[(usize, usize)]) -> Scenario {
        Scenario {
            gpus,
            wants: wants.iter().map(|(from, to)| (*from, vec![*to])).collect(),
            standing: Vec::new(),
            max_live: gpus,
            is_eager: false,
            flaw: None,
        }
    }

    /// As well, something is wanted to go to several at once.
    #[must_use]
    pub fn and_to_all(mut self, from: usize, to: &[usize]) -> Scenario {
        self.wants.push((from, to.to_vec()));
        Scenario { max_live: self.max_live + 1, ..self }
    }

    /// Their pairs stand in the beginning, and what goes to several at once has its communicator.
    #[must_use]
    pub fn standing(self) -> Scenario {
        let mut standing: Vec<(usize, Vec<usize>)> = Vec::new();
        for (from, to) in &self.wants {
            let one = match to[..] {
                [to] => (*from.min(&to), vec![*from.max(&to)]),
                _ => (*from, to.clone()),
            };
            if !standing.contains(&one) {
                standing.push(one);
            }
        }
        Scenario { standing, ..self }
    }
}
