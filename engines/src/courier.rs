//! What a worker does for its scheduler: which questions are put to the cluster, how much memory what is on its way may take, and
//! what is answered. Every question is answered, whatever the cluster does.

use crate::figures::{Figures, NotSaved};
use crate::groups::Groups;
use crate::orders::{AskId, Order, Placed, Report, SaveId};
use crate::rest::Rest;
use crate::wishes::Wish;
use kvhive_protocol::Moment;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How much a worker takes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CourierLimits {
    /// The longest that a question takes.
    pub wait: Duration,
    /// Questions put to the cluster at once.
    pub asks: usize,
    /// Bytes of memory for what is on its way, either way.
    pub memory: u64,
    /// Bytes of a block of each group.
    pub block_bytes: Vec<u64>,
}

/// A request's names, as the engine gives them.
pub type Names = Arc<Vec<Vec<u8>>>;

/// What a worker hears.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// An order of its scheduler.
    Told(Order),
    /// A step has come: somebody looks whether there is anything.
    Looked,
    /// How many blocks of each group are in the cluster from where the question begins; none when it did not answer.
    Found {
        /// Which question.
        ask: AskId,
        /// Blocks of each group.
        blocks: Option<Vec<usize>>,
    },
    /// How many blocks of each group have come, without a gap.
    Fetched {
        /// Which question.
        ask: AskId,
        /// Blocks of each group.
        blocks: Vec<usize>,
        /// Whether the cluster was late.
        is_late: bool,
    },
    /// What was fetched is in the engine's blocks.
    Loaded(AskId),
    /// What became of a save.
    Stored {
        /// Which.
        save: SaveId,
        /// Blocks that are in the cluster now; none when it did not answer.
        kept: Option<usize>,
    },
    /// Nothing of a save was copied, or what was copied cannot be stored: nobody was asked to take it.
    Unsaved(SaveId),
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// See how much of these the cluster has, from the tokens `from` on.
    Find {
        /// For which question.
        ask: AskId,
        /// The request's names.
        names: Names,
        /// Blocks of each group that are asked for.
        groups: Vec<Range<usize>>,
        /// How long that may take.
        limit: Duration,
    },
    /// Fetch these blocks of each group.
    Fetch {
        /// For which question.
        ask: AskId,
        /// Blocks of each group.
        groups: Vec<Range<usize>>,
        /// How long that may take.
        limit: Duration,
    },
    /// Give up whatever is done or held for a question.
    Release(AskId),
    /// Copy what was fetched into these blocks, before the step runs.
    Load {
        /// Which question's.
        ask: AskId,
        /// Blocks of each group.
        groups: Vec<Vec<Placed>>,
    },
    /// Copy these blocks when the step has run, and store them.
    Save {
        /// Which.
        save: SaveId,
        /// The request's names.
        names: Names,
        /// Of which group.
        group: usize,
        /// Which blocks.
        blocks: Vec<Placed>,
    },
    /// Say why some blocks are not saved.
    NotSaved(NotSaved),
    /// See that this becomes of a request's blocks.
    Wish {
        /// The request's names.
        names: Names,
        /// How many blocks of each group it is about, from the first on.
        groups: Vec<usize>,
        /// What is wished for.
        wish: Wish,
    },
    /// Answer the scheduler.
    Report(Report),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Waits,
    Sought,
    Fetched,
    Held,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Asked {
    names: Names,
    from: u32,
    end: u32,
    until: Moment,
    stage: Stage,
    bytes: u64,
    blocks: u64,
    /// Tokens of it that go into the engine's blocks.
    loaded: u32,
}

/// The worker's side.
#[derive(Debug)]
pub struct Courier {
    groups: Groups,
    limits: CourierLimits,
    names: HashMap<String, Names>,
    asks: BTreeMap<AskId, Asked>,
    waiting: VecDeque<AskId>,
    /// Bytes and blocks of each save under way.
    saves: BTreeMap<SaveId, (u64, u64)>,
    used: u64,
    /// From questions, for which a request waits: who answers too late for these may well be in time for a save. An answered save does
    /// not end it.
    rest: Rest,
    /// From saves. An answered question does not end it.
    saves_rest: Rest,
    figures: Figures,
}

impl Courier {
    /// Makes one that has heard nothing.
    pub fn new(groups: Groups, limits: CourierLimits) -> Courier {
        assert_eq!(groups.len(), limits.block_bytes.len(), "every group has blocks of some size");
        Courier {
            groups,
            limits,
            names: HashMap::new(),
            asks: BTreeMap::new(),
            waiting: VecDeque::new(),
            saves: BTreeMap::new(),
            used: 0,
            rest: Rest::default(),
            saves_rest: Rest::default(),
            figures: Figures::default(),
        }
    }

    /// Returns what it has done.
    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// Returns the bytes of memory that are taken.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Says whether something is held or under way for a question.
    pub fn holds(&self, ask: AskId) -> bool {
        self.asks.contains_key(&ask)
    }

    /// Says whether saves are under way.
    pub fn is_saving(&self) -> bool {
        !self.saves.is_empty()
    }

    /// Returns how many blocks are being saved.
    pub fn saving(&self) -> u64 {
        self.saves.values().map(|(_, blocks)| blocks).sum()
    }

    /// Says whether the cluster is asked nothing for a while.
    pub fn is_resting(&self) -> bool {
        self.rest.is_resting()
    }

    /// Takes in what happened; says what is to be done.
    pub fn step(&mut self, now: Moment, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Told(order) => self.on_order(now, order, effects),
            Event::Looked => {}
            Event::Found { ask, blocks } => self.on_found(now, ask, blocks, effects),
            Event::Fetched { ask, blocks, is_late } => self.on_fetched(now, ask, &blocks, is_late, effects),
            Event::Loaded(ask) => self.on_loaded(ask),
            Event::Stored { save, kept } => self.on_stored(now, save, kept, effects),
            Event::Unsaved(save) => self.on_unsaved(save, effects),
        }
        self.go_on(now, effects);
    }

    fn on_order(&mut self, now: Moment, order: Order, effects: &mut Vec<Effect>) {
        match order {
            Order::Names { request, from, hashes } => {
                let names = Arc::make_mut(self.names.entry(request).or_default());
                names.truncate(from as usize);
                names.extend(hashes);
            }
            Order::Ask { ask, request, from, end, left_ms } => {
                self.figures.asks += 1;
                self.figures.tokens_asked += u64::from(end.saturating_sub(from));
                let names = self.names.get(&request).cloned().unwrap_or_default();
                let left = self.limits.wait.min(Duration::from_millis(u64::from(left_ms)));
                let (until, stage) = (now + left, Stage::Waits);
                let end = end.min(self.groups.whole(self.groups.named(names.len())));
                self.asks
                    .insert(ask, Asked { names, from, end, until, stage, bytes: 0, blocks: 0, loaded: 0 });
                self.waiting.push_back(ask);
            }
            Order::Load { ask, groups } => {
                // The engine may have come upon more of its own since it asked.
                let tokens = groups.iter().enumerate().map(|(group, placed)| {
                    u32::try_from(placed.len())
                        .unwrap_or(u32::MAX)
                        .saturating_mul(self.groups.block_tokens(group))
                });
                if let Some(asked) = self.asks.get_mut(&ask) {
                    asked.loaded = tokens.max().unwrap_or_default();
                }
                effects.push(Effect::Load { ask, groups });
            }
            Order::Drop { ask } => {
                self.waiting.retain(|waiting| *waiting != ask);
                if let Some(asked) = self.asks.remove(&ask) {
                    self.used -= asked.bytes;
                    if asked.stage != Stage::Held {
                        self.rest.gave_up();
                    }
                    self.figures.blocks_wasted += asked.blocks;
                    effects.push(Effect::Release(ask));
                }
            }
            Order::Save { save, request, group, blocks } => {
                self.on_save(now, save, &request, group as usize, blocks, effects);
            }
            Order::Wish { request, wish } => {
                let names = self.names.get(&request).cloned().unwrap_or_default();
                let most = if let Wish::Pin { tokens: Some(tokens), .. } = wish { tokens } else { u32::MAX };
                let end = self.groups.whole(self.groups.named(names.len()).min(most));
                let groups = (0..self.groups.len()).map(|group| self.groups.blocks(group, end)).collect();
                effects.push(Effect::Wish { names, groups, wish });
            }
            Order::Forget { request } => {
                self.names.remove(&request);
            }
        }
    }

    fn on_save(
        &mut self,
        now: Moment,
        save: SaveId,
        request: &str,
        group: usize,
        blocks: Vec<Placed>,
        effects: &mut Vec<Effect>,
    ) {
        let count = blocks.len() as u64;
        let last = blocks.iter().map(|placed| placed.at as usize).max().unwrap_or_default();
        let is_named =
            |names: &&Names| group < self.groups.len() && self.groups.hash_of(group, last) < names.len();
        let names = self.names.get(request).filter(is_named).cloned();
        let bytes = self.limits.block_bytes.get(group).map_or(0, |each| each.saturating_mul(count));
        let (has_room, is_known) = (bytes <= self.limits.memory - self.used, names.is_some());
        self.figures.no_memory += u64::from(!has_room);
        match names.filter(|_| has_room && self.saves_rest.lets(now)) {
            Some(names) => {
                self.used += bytes;
                self.saves.insert(save, (bytes, count));
                effects.push(Effect::Save { save, names, group, blocks });
            }
            None => {
                effects.push(Effect::NotSaved(match (has_room, is_known) {
                    (false, _) => NotSaved::NoMemory,
                    (true, false) => NotSaved::Unnamed,
                    (true, true) => NotSaved::Rests,
                }));
                self.lose(save, count, effects);
            }
        }
    }

    fn lose(&mut self, save: SaveId, blocks: u64, effects: &mut Vec<Effect>) {
        self.figures.blocks_lost += blocks;
        effects.push(Effect::Report(Report::Lost { save }));
    }

    /// Puts the questions that wait to the cluster, as far as it is asked.
    fn go_on(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        while let Some(ask) = self.waiting.front().copied() {
            let out =
                self.asks.values().filter(|asked| matches!(asked.stage, Stage::Sought | Stage::Fetched));
            let is_free = out.count() < self.limits.asks;
            let Some(asked) = self.asks.get_mut(&ask) else {
                self.waiting.pop_front();
                continue;
            };
            if now >= asked.until || asked.end <= asked.from {
                self.waiting.pop_front();
                self.answer(ask, None, effects);
                continue;
            }
            if !is_free {
                return;
            }
            self.waiting.pop_front();
            if !self.rest.lets(now) {
                self.figures.unasked += 1;
                self.answer(ask, None, effects);
                continue;
            }
            asked.stage = Stage::Sought;
            let groups = (0..self.groups.len())
                .map(|group| self.groups.blocks(group, asked.from)..self.groups.blocks(group, asked.end));
            let (groups, names) = (groups.collect(), asked.names.clone());
            effects.push(Effect::Find { ask, names, groups, limit: asked.until.since(now) });
        }
    }

    fn on_found(&mut self, now: Moment, ask: AskId, found: Option<Vec<usize>>, effects: &mut Vec<Effect>) {
        let Some(blocks) = found else {
            self.figures.late += 1;
            self.rest.failed(now);
            return self.answer(ask, None, effects);
        };
        self.rest.answered();
        let Some(asked) = self.asks.get_mut(&ask) else { return };
        let reaches = blocks.iter().enumerate().map(|(group, blocks)| {
            let blocks = u32::try_from(*blocks).unwrap_or(u32::MAX);
            asked.from.saturating_add(blocks.saturating_mul(self.groups.block_tokens(group)))
        });
        let end = self.groups.whole(reaches.min().unwrap_or_default().min(asked.end));
        let needs = |end: u32| -> Vec<Range<usize>> {
            (0..self.groups.len()).map(|group| self.groups.needed(group, asked.from, end)).collect()
        };
        let cost = |end: u32| -> u64 {
            let each = needs(end).into_iter().zip(&self.limits.block_bytes);
            each.map(|(range, bytes)| (range.len() as u64).saturating_mul(*bytes)).sum()
        };
        let room = self.limits.memory - self.used;
        let mut fits = end;
        while fits > asked.from && cost(fits) > room {
            fits = self.groups.whole(fits - 1);
        }
        if fits < end {
            self.figures.no_memory += 1;
        }
        if fits <= asked.from {
            return self.answer(ask, None, effects);
        }
        let groups = needs(fits);
        asked.end = fits;
        asked.bytes = cost(fits);
        asked.blocks = groups.iter().map(|range| range.len() as u64).sum();
        asked.stage = Stage::Fetched;
        self.used += asked.bytes;
        effects.push(Effect::Fetch { ask, groups, limit: asked.until.since(now) });
    }

    fn on_fetched(
        &mut self,
        now: Moment,
        ask: AskId,
        blocks: &[usize],
        is_late: bool,
        effects: &mut Vec<Effect>,
    ) {
        match is_late {
            true => self.rest.failed(now),
            false => self.rest.answered(),
        }
        self.figures.late += u64::from(is_late);
        let Some(asked) = self.asks.get_mut(&ask) else { return };
        let mut end = asked.end;
        for (group, blocks) in blocks.iter().enumerate() {
            let needed = self.groups.needed(group, asked.from, asked.end);
            if *blocks < needed.len() {
                let reach = (needed.start + blocks) as u32 * self.groups.block_tokens(group);
                // Of layers that forget, those that came are good for the very end alone.
                end = if self.groups.any_forgets() { asked.from } else { end.min(reach) };
            }
        }
        let end = self.groups.whole(end);
        if end <= asked.from {
            effects.push(Effect::Release(ask));
            return self.answer(ask, None, effects);
        }
        asked.stage = Stage::Held;
        asked.end = end;
        self.answer(ask, Some(end), effects);
    }

    /// Answers a question: with what is held for it, or with nothing.
    fn answer(&mut self, ask: AskId, held: Option<u32>, effects: &mut Vec<Effect>) {
        let end = match held {
            Some(end) => end,
            None => {
                let Some(asked) = self.asks.remove(&ask) else { return };
                self.used -= asked.bytes;
                self.figures.blocks_wasted += asked.blocks;
                asked.from
            }
        };
        effects.push(Effect::Report(Report::Answered { ask, end }));
    }

    fn on_loaded(&mut self, ask: AskId) {
        if let Some(asked) = self.asks.remove(&ask) {
            self.used -= asked.bytes;
            self.figures.tokens_loaded += u64::from(asked.loaded);
        }
    }

    fn on_stored(&mut self, now: Moment, save: SaveId, kept: Option<usize>, effects: &mut Vec<Effect>) {
        let Some((bytes, blocks)) = self.saves.remove(&save) else { return };
        self.used -= bytes;
        match kept {
            Some(_) => self.saves_rest.answered(),
            None => {
                self.rest.failed(now);
                self.saves_rest.failed(now);
            }
        }
        let kept = kept.unwrap_or(0) as u64;
        self.figures.blocks_saved += kept;
        self.figures.blocks_lost += blocks.saturating_sub(kept);
        let report = if kept >= blocks { Report::Saved { save } } else { Report::Lost { save } };
        effects.push(Effect::Report(report));
    }

    fn on_unsaved(&mut self, save: SaveId, effects: &mut Vec<Effect>) {
        let Some((bytes, blocks)) = self.saves.remove(&save) else { return };
        self.used -= bytes;
        // It may have been the one that was to see whether the cluster is back.
        self.saves_rest.gave_up();
        self.lose(save, blocks, effects);
    }
}
