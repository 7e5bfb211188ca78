//! What an engine's scheduler says of each request: how much of it a cluster has, what is loaded where, what is saved. It promises
//! an engine only what its workers hold in their memory already, so that no promise depends on a cluster any more.

use crate::groups::Groups;
use crate::known::Known;
use crate::orders::{AskId, Order, Placed, Report, SaveId};
use crate::wishes::Wish;
use kvhive_protocol::Moment;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::time::Duration;
use thiserror::Error;

/// Saves whose end is waited for at most; those before count as kept.
const MOST_SAVES: usize = 4096;
/// How often one request is asked for while it waits for its turn: what it has of itself may shrink meanwhile.
const MOST_TRIES: u32 = 2;
/// Workers answer within their limit. Who has heard nothing for so much longer hears nothing any more.
const SILENCE: Duration = Duration::from_secs(60);
/// The block of an engine that holds nothing: it stands where layers have forgotten.
const NOTHING: u32 = 0;

/// How a planner plans.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlannerLimits {
    /// Workers that must agree.
    pub ranks: usize,
    /// How long a request waits, for its question to be put and for the answer.
    pub wait: Duration,
    /// Questions at once.
    pub asks: usize,
    /// Fewer missing tokens than this are computed without asking.
    pub least_tokens: u32,
    /// Whether anything is fetched.
    pub loads: bool,
    /// Whether anything is saved.
    pub saves: bool,
    /// How long a saved block counts as being there.
    pub known: Duration,
}

/// What is said of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Matched {
    /// Not known yet.
    Wait,
    /// So many tokens more than the engine has.
    Tokens(u32),
}

/// A request's part of a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scheduled<'a> {
    /// Which request.
    pub request: &'a str,
    /// Blocks of each group: its whole table, or what is new in it.
    pub blocks: Option<Vec<Vec<u32>>>,
    /// Whether it is the whole table.
    pub is_whole: bool,
    /// Tokens that are computed when the step has run.
    pub computed: u32,
}

/// An engine counts on tokens that it was not promised.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("request {request}: {tokens} tokens are to be loaded, and {promised} were promised")]
pub struct Unpromised {
    request: String,
    tokens: u32,
    promised: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Nobody was asked.
    New,
    /// Workers are asked.
    Asked { ask: AskId, end: u32 },
    /// All of them hold it.
    Held { ask: AskId, from: u32, end: u32, promised: Option<(u32, u32)> },
    /// There is nothing more to be had.
    Over,
}

#[derive(Debug)]
struct Request {
    hashes: Vec<Vec<u8>>,
    /// How many hashes the workers know.
    told: usize,
    stage: Stage,
    tries: u32,
    since: Moment,
    tables: Vec<Vec<u32>>,
    /// Blocks of each group that are looked at.
    passed: Vec<usize>,
}

#[derive(Debug)]
struct Asking {
    request: String,
    from: u32,
    first: Vec<u8>,
    since: Moment,
    answers: usize,
    least: u32,
    most: u32,
}

#[derive(Debug)]
struct Saving {
    names: Vec<(usize, Vec<u8>)>,
    answers: usize,
}

/// The scheduler's side.
#[derive(Debug)]
pub struct Planner {
    groups: Groups,
    limits: PlannerLimits,
    requests: HashMap<String, Request>,
    asks: BTreeMap<AskId, Asking>,
    saves: BTreeMap<SaveId, Saving>,
    known: Known,
    orders: Vec<Order>,
    next: u64,
}

impl Planner {
    /// Makes one that knows of no request.
    pub fn new(groups: Groups, limits: PlannerLimits) -> Planner {
        Planner {
            groups,
            known: Known::new(limits.known),
            limits,
            requests: HashMap::new(),
            asks: BTreeMap::new(),
            saves: BTreeMap::new(),
            orders: Vec::new(),
            next: 1,
        }
    }

    /// Returns how many of a request's hashes are known here.
    pub fn hashes(&self, request: &str) -> usize {
        self.requests.get(request).map_or(0, |known| known.hashes.len())
    }

    /// Takes in a request's hashes: it has `count`, of which these are the last.
    pub fn learn(&mut self, now: Moment, request: &str, count: usize, new: Vec<Vec<u8>>) {
        let groups = self.groups.len();
        let known = self.requests.entry(request.to_owned()).or_insert_with(|| Request {
            hashes: Vec::new(),
            told: 0,
            stage: Stage::New,
            tries: 0,
            since: now,
            tables: vec![Vec::new(); groups],
            passed: vec![0; groups],
        });
        known.hashes.truncate(count.saturating_sub(new.len()));
        known.told = known.told.min(known.hashes.len());
        known.hashes.extend(new);
    }

    /// Says how many tokens of a request there are beyond the first `local`, of `tokens` that it has. Its hashes were learned.
    pub fn matched(&mut self, now: Moment, request: &str, local: u32, tokens: u32) -> Matched {
        let Some(known) = self.requests.get_mut(request) else { return Matched::Tokens(0) };
        // The last token is computed in any case: what follows from it is what is asked of the engine.
        let end = self.groups.named(known.hashes.len()).min(tokens.saturating_sub(1));
        let end = self.groups.whole(end);
        let missing = end.saturating_sub(local);
        match known.stage {
            Stage::Over => Matched::Tokens(0),
            Stage::Asked { ask, end: asked } => {
                let since = self.asks.get(&ask).map(|asking| asking.since);
                let is_silent =
                    since.is_none_or(|since| now.since(since) >= self.limits.wait.saturating_add(SILENCE));
                if local < asked && !is_silent {
                    return Matched::Wait;
                }
                self.close(request);
                Matched::Tokens(0)
            }
            Stage::Held { ask, from, end: held, .. } => {
                if local < from && known.tries < MOST_TRIES {
                    known.stage = Stage::New;
                    self.drop_ask(ask);
                    return self.matched(now, request, local, tokens);
                }
                let is_of_use =
                    local >= from && local < held && held <= end && self.groups.whole(local) == local;
                if !is_of_use {
                    self.close(request);
                    return Matched::Tokens(0);
                }
                known.stage = Stage::Held { ask, from, end: held, promised: Some((local, held)) };
                Matched::Tokens(held - local)
            }
            Stage::New => {
                let is_aligned = self.groups.whole(local) == local;
                if !self.limits.loads || !is_aligned || missing == 0 || missing < self.limits.least_tokens {
                    known.stage = Stage::Over;
                    return Matched::Tokens(0);
                }
                let left = self.limits.wait.saturating_sub(now.since(known.since));
                if left.is_zero() {
                    known.stage = Stage::Over;
                    return Matched::Tokens(0);
                }
                let at = (local / self.groups.named(1)) as usize;
                let first = known.hashes[at].clone();
                let is_asked = self.asks.values().any(|asking| asking.from == local && asking.first == first);
                if is_asked || self.asks.len() >= self.limits.asks {
                    // Whoever asks for the same now has it for this one too, as the engine's own.
                    return Matched::Wait;
                }
                self.ask(now, request, first, local..end, left);
                Matched::Wait
            }
        }
    }

    fn ask(&mut self, now: Moment, request: &str, first: Vec<u8>, tokens: Range<u32>, left: Duration) {
        let Range { start: from, end } = tokens;
        // Never 0: a question that is put is answered.
        let left_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
        let ask = AskId(self.next);
        self.next += 1;
        self.tell(request);
        let known = self.requests.get_mut(request).expect("its hashes were just told");
        known.stage = Stage::Asked { ask, end };
        known.tries += 1;
        let request = request.to_owned();
        self.asks.insert(
            ask,
            Asking { request: request.clone(), from, first, since: now, answers: 0, least: end, most: from },
        );
        self.orders.push(Order::Ask { ask, request, from, end, left_ms });
    }

    /// Tells the workers what they do not know yet of a request's hashes.
    fn tell(&mut self, request: &str) {
        let Some(known) = self.requests.get_mut(request) else { return };
        if known.told < known.hashes.len() {
            let hashes = known.hashes[known.told..].to_vec();
            self.orders.push(Order::Names { request: request.to_owned(), from: known.told as u32, hashes });
            known.told = known.hashes.len();
        }
    }

    /// Ends whatever is under way to fetch a request.
    fn close(&mut self, request: &str) {
        let Some(known) = self.requests.get_mut(request) else { return };
        match std::mem::replace(&mut known.stage, Stage::Over) {
            Stage::Asked { ask, .. } | Stage::Held { ask, .. } => self.drop_ask(ask),
            Stage::New | Stage::Over => {}
        }
    }

    fn drop_ask(&mut self, ask: AskId) {
        self.asks.remove(&ask);
        self.orders.push(Order::Drop { ask });
    }

    /// Takes in that a request has been given blocks, into which `tokens` that it was promised are to be loaded.
    ///
    /// # Errors
    /// When it was promised something else: its blocks would be used without ever being written.
    pub fn allocated(
        &mut self,
        now: Moment,
        request: &str,
        tables: Vec<Vec<u32>>,
        tokens: u32,
    ) -> Result<(), Unpromised> {
        let stage = self.requests.get(request).map_or(Stage::Over, |known| known.stage);
        let unpromised = |promised| Unpromised { request: request.to_owned(), tokens, promised };
        if tokens == 0 {
            self.close(request);
            return Ok(());
        }
        let Stage::Held { ask, promised: Some((local, end)), .. } = stage else { return Err(unpromised(0)) };
        if end - local != tokens || tables.len() != self.groups.len() {
            return Err(unpromised(end - local));
        }
        let mut groups = Vec::with_capacity(tables.len());
        for (group, table) in tables.iter().enumerate() {
            let needed = self.groups.needed(group, local, end);
            let place = |at: usize| table.get(at).map(|block| Placed { at: at as u32, block: *block });
            let placed: Option<Vec<Placed>> = needed.map(place).collect();
            groups.push(placed.ok_or_else(|| unpromised(end - local))?);
        }
        let known = self.requests.get_mut(request).expect("it was found above");
        known.stage = Stage::Over;
        for (group, placed) in groups.iter().enumerate() {
            for Placed { at, .. } in placed {
                let hash = &known.hashes[self.groups.hash_of(group, *at as usize)];
                self.known.insert(now, group, hash);
            }
        }
        self.orders.push(Order::Load { ask, groups });
        Ok(())
    }

    /// Takes in a request's part of the step that comes: what becomes whole by it is saved.
    pub fn scheduled(&mut self, now: Moment, scheduled: Scheduled<'_>) {
        let Scheduled { request, blocks, is_whole, computed } = scheduled;
        let Some(known) = self.requests.get_mut(request) else { return };
        if is_whole {
            known.tables.iter_mut().for_each(Vec::clear);
            known.passed.fill(0);
        }
        for (table, new) in known.tables.iter_mut().zip(blocks.into_iter().flatten()) {
            table.extend(new);
        }
        if !self.limits.saves {
            return;
        }
        let named = self.groups.named(known.hashes.len()).min(computed);
        for group in 0..self.groups.len() {
            let known = self.requests.get_mut(request).expect("it was found above");
            let table = &known.tables[group];
            let whole = self.groups.blocks(group, named).min(table.len());
            let (mut placed, mut names) = (Vec::new(), Vec::new());
            for (at, block) in table.iter().enumerate().take(whole).skip(known.passed[group]) {
                let hash = &known.hashes[self.groups.hash_of(group, at)];
                if *block != NOTHING && !self.known.insert(now, group, hash) {
                    placed.push(Placed { at: at as u32, block: *block });
                    names.push((group, hash.clone()));
                }
            }
            known.passed[group] = known.passed[group].max(whole);
            if !placed.is_empty() {
                self.save(request, group, placed, names);
            }
        }
    }

    fn save(&mut self, request: &str, group: usize, blocks: Vec<Placed>, names: Vec<(usize, Vec<u8>)>) {
        self.tell(request);
        let save = SaveId(self.next);
        self.next += 1;
        if self.saves.len() >= MOST_SAVES {
            self.saves.pop_first();
        }
        self.saves.insert(save, Saving { names, answers: 0 });
        self.orders.push(Order::Save { save, request: request.to_owned(), group: group as u32, blocks });
    }

    /// Takes in that the engine has taken a request's blocks away; it comes again.
    pub fn preempted(&mut self, now: Moment, request: &str) {
        self.close(request);
        if let Some(known) = self.requests.get_mut(request) {
            known.stage = Stage::New;
            known.tries = 0;
            known.since = now;
            known.tables.iter_mut().for_each(Vec::clear);
            known.passed.fill(0);
        }
    }

    /// Takes in what is wished for a request's blocks, of which there are no more to come. Its hashes were learned.
    pub fn wished(&mut self, request: &str, wish: Wish) {
        if self.requests.contains_key(request) {
            self.tell(request);
            self.orders.push(Order::Wish { request: request.to_owned(), wish });
        }
    }

    /// Takes in that a request is over.
    pub fn finished(&mut self, request: &str) {
        self.close(request);
        if self.requests.remove(request).is_some_and(|known| known.told > 0) {
            self.orders.push(Order::Forget { request: request.to_owned() });
        }
    }

    /// Returns what the workers are told with the step that comes.
    pub fn orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders)
    }

    /// Takes in what one worker answered.
    pub fn heard(&mut self, reports: Vec<Report>) {
        for report in reports {
            match report {
                Report::Answered { ask, end } => self.answered(ask, end),
                Report::Saved { save } => self.saved(save, true),
                Report::Lost { save } => self.saved(save, false),
            }
        }
    }

    fn answered(&mut self, ask: AskId, end: u32) {
        let Some(asking) = self.asks.get_mut(&ask) else { return };
        asking.answers += 1;
        asking.least = asking.least.min(end);
        asking.most = asking.most.max(end);
        if asking.answers < self.limits.ranks {
            return;
        }
        let Asking { request, from, least, most, .. } = self.asks.remove(&ask).expect("it was found above");
        let end = self.groups.whole(least);
        // Layers that forget were fetched as they are at each worker's own end.
        let fits = !self.groups.any_forgets() || (least == most && end == least);
        let is_asked =
            |known: &&mut Request| matches!(known.stage, Stage::Asked { ask: own, .. } if own == ask);
        let Some(known) = self.requests.get_mut(&request).filter(is_asked) else { return };
        if end > from && fits {
            known.stage = Stage::Held { ask, from, end, promised: None };
            return;
        }
        known.stage = Stage::Over;
        if most > from {
            self.orders.push(Order::Drop { ask });
        }
    }

    fn saved(&mut self, save: SaveId, is_kept: bool) {
        let Some(saving) = self.saves.get_mut(&save) else { return };
        saving.answers += 1;
        if !is_kept {
            for (group, hash) in &saving.names {
                self.known.remove(*group, hash);
            }
        }
        if saving.answers >= self.limits.ranks {
            self.saves.remove(&save);
        }
    }
}
