//! Whose request is next where more is asked than is done at a time. Decides by what it is told; the clock is its caller's.
//!
//! A place is taken for each request under way. While all are taken, requests wait by tenant, and the next place goes to the tenant that was
//! given the fewest bytes by its weight since it began to want any (start-time fair queueing: Goyal, Vin and Cheng 1996). So a tenant alone has all places, and
//! one that asks for little waits for a turn of the others and not for all that they ask. Who could not be served in time is told at once, by
//! how many bytes are ahead and how fast places are given back; and while some of a tenant go without, none of it wait long ([`Strain`]).
//!
//! A place that is held for too long is one no more: its peer is slow, and the others need not wait for that. What it brings counts all the same.

use kvhive_client::{Mean, Strain};
use kvhive_protocol::TenantId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// So long a place is held by whoever takes or gives nothing.
pub(crate) const LEAST_HOLD: Duration = Duration::from_millis(10);
/// Whoever takes or gives fewer bytes a second than this holds none.
const LEAST_RATE: f64 = 256.0 * 1024.0 * 1024.0;
/// A request counts as so many bytes at least: one that finds nothing takes a place, too.
const LEAST_BYTES: u64 = 16 * 1024;
/// A byte of a tenant of weight 1 is charged so much: parts of it are told apart where weights are large.
const CHARGED_A_BYTE: u128 = 1 << 20;
/// How many tenants may be remembered before those are forgotten that are owed nothing.
const FIRST_SWEEP: usize = 64;

/// Names a request that waits or holds a place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Ticket(u64);

/// A request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) tenant: TenantId,
    /// How many times as much its tenant is given as one that weighs 1.
    pub(crate) weight: u16,
    /// What it comes to; none where that shows later.
    pub(crate) bytes: Option<u64>,
    /// How much time there is for it.
    pub(crate) left: Duration,
    /// Somebody waits for it who has been let in already: it goes before the tenant's others.
    pub(crate) is_part: bool,
}

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Entered {
    /// It has a place.
    Goes(Ticket),
    /// It waits, so long at most.
    Waits(Ticket, Duration),
    /// It would be late.
    Late,
}

/// Requests of all tenants, each with what it takes to tell who asked that it may go.
pub(crate) struct Fair<W> {
    places: usize,
    tenants: BTreeMap<TenantId, Tenant<W>>,
    /// Tenants that wait, by what they were charged.
    order: BTreeSet<(u128, TenantId)>,
    /// Those that hold a place, longest first.
    held: Vec<Held>,
    /// Those whose place is one no more and who have not given it back yet.
    lapsed: BTreeMap<Ticket, Held>,
    waiting: usize,
    waiting_bytes: u64,
    /// What all tenants weigh that wait.
    waiting_weight: u64,
    /// What the tenant was charged that was let go last, when it was.
    clock: u128,
    /// The most that a tenant was charged.
    most: u128,
    next: u64,
    /// Seconds that a place is held while others wait, and bytes that go meanwhile.
    takes: Mean,
    brings: Mean,
    sweep_at: usize,
}

struct Tenant<W> {
    /// What it was charged for: bytes by its weight.
    given: u128,
    weight: u16,
    parts: VecDeque<Waiting<W>>,
    others: VecDeque<Waiting<W>>,
    waiting_bytes: u64,
    /// Bytes of its requests.
    usual: Mean,
    strain: Strain,
}

struct Waiting<W> {
    ticket: Ticket,
    bytes: u64,
    is_guess: bool,
    left: Duration,
    who: W,
}

struct Held {
    ticket: Ticket,
    tenant: TenantId,
    /// What its tenant weighed when it was charged.
    weight: u16,
    bytes: u64,
    /// What it comes to has not been said yet.
    is_guess: bool,
    since: Duration,
}

/// Returns what a tenant of this weight is charged for so many bytes.
fn charge(bytes: u64, weight: u16) -> u128 {
    u128::from(bytes) * CHARGED_A_BYTE / u128::from(weight.max(1))
}

impl Held {
    fn lapses_at(&self) -> Duration {
        self.since + LEAST_HOLD + Duration::from_secs_f64(self.bytes as f64 / LEAST_RATE)
    }
}

impl<W> Tenant<W> {
    fn new(given: u128) -> Tenant<W> {
        Tenant {
            given,
            weight: 1,
            parts: VecDeque::new(),
            others: VecDeque::new(),
            waiting_bytes: 0,
            usual: Mean::default(),
            strain: Strain::default(),
        }
    }

    fn waiting(&self) -> usize {
        self.parts.len() + self.others.len()
    }
}

impl<W> Fair<W> {
    pub(crate) fn new(places: usize) -> Fair<W> {
        Fair {
            places: places.max(1),
            tenants: BTreeMap::new(),
            order: BTreeSet::new(),
            held: Vec::new(),
            lapsed: BTreeMap::new(),
            waiting: 0,
            waiting_bytes: 0,
            waiting_weight: 0,
            clock: 0,
            most: 0,
            next: 0,
            takes: Mean::default(),
            brings: Mean::default(),
            sweep_at: FIRST_SWEEP,
        }
    }

    /// Returns how many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns how many have a place.
    #[cfg(test)]
    pub(crate) fn holding(&self) -> usize {
        self.held.len()
    }

    /// Takes a place for a request or has it wait for one. `who` is told when it may go.
    pub(crate) fn enter(&mut self, now: Duration, wanted: Wanted, who: impl FnOnce() -> W) -> Entered {
        if self.tenants.len() >= self.sweep_at {
            let clock = self.clock;
            self.tenants.retain(|_, one| one.waiting() > 0 || one.given > clock);
            self.sweep_at = (2 * self.tenants.len()).max(FIRST_SWEEP);
        }
        let clock = self.clock;
        let tenant = self.tenants.entry(wanted.tenant).or_insert_with(|| Tenant::new(clock));
        let weight = wanted.weight.max(1);
        let weighed = std::mem::replace(&mut tenant.weight, weight);
        if tenant.waiting() > 0 {
            self.waiting_weight = self.waiting_weight + u64::from(weight) - u64::from(weighed);
        }
        let (comes_to, is_guess) =
            (wanted.bytes.unwrap_or(tenant.usual.value() as u64), wanted.bytes.is_none());
        let bytes = comes_to.max(LEAST_BYTES);
        let ticket = Ticket(self.next);
        self.next += 1;
        if self.waiting == 0 && self.held.len() < self.places {
            let begins = tenant.given.max(clock);
            self.give(begins, Held { ticket, tenant: wanted.tenant, weight, bytes, is_guess, since: now });
            return Entered::Goes(ticket);
        }
        let (expected, turn) = self.expected(wanted.tenant, wanted.is_part);
        let own = self.takes.value() * self.of_usual(comes_to);
        let left = wanted.left.as_secs_f64();
        let Some(tenant) = self.tenants.get_mut(&wanted.tenant) else { return Entered::Late };
        // A part of what has been let in is not turned away to keep a queue short.
        let spare = left - own;
        let allowed = if wanted.is_part { spare } else { tenant.strain.allows(now, left, spare, turn) };
        if allowed <= 0.0 || expected > allowed {
            tenant.strain.went_without(now, left, tenant.waiting());
            return Entered::Late;
        }
        tenant.strain.waits(left);
        let waiting = Waiting { ticket, bytes, is_guess, left: wanted.left, who: who() };
        if tenant.waiting() == 0 {
            tenant.given = tenant.given.max(clock);
            self.order.insert((tenant.given, wanted.tenant));
            self.waiting_weight += u64::from(weight);
        }
        tenant.waiting_bytes += bytes;
        self.waiting_bytes += bytes;
        self.waiting += 1;
        if wanted.is_part {
            tenant.parts.push_back(waiting)
        } else {
            tenant.others.push_back(waiting)
        }
        Entered::Waits(ticket, Duration::from_secs_f64(allowed))
    }

    /// Notes what the request comes to that has a place, or had one for too long.
    pub(crate) fn measured(&mut self, ticket: Ticket, bytes: u64) {
        let held = self.held.iter_mut().find(|held| held.ticket == ticket);
        let Some(held) = held.or_else(|| self.lapsed.get_mut(&ticket)) else { return };
        let counts = bytes.max(LEAST_BYTES);
        let before = std::mem::replace(&mut held.bytes, counts);
        held.is_guess = false;
        let (id, weight) = (held.tenant, held.weight);
        self.recharge(id, weight, (before, counts));
        if let Some(tenant) = self.tenants.get_mut(&id) {
            tenant.usual.add(bytes as f64);
        }
    }

    /// Has a tenant's request that was charged by this weight count for so many bytes instead of what it counted for before.
    fn recharge(&mut self, id: TenantId, weight: u16, (before, counts): (u64, u64)) {
        let clock = self.clock;
        let tenant = self.tenants.entry(id).or_insert_with(|| Tenant::new(clock));
        let given = (tenant.given + charge(counts, weight)).saturating_sub(charge(before, weight));
        let was = std::mem::replace(&mut tenant.given, given);
        self.most = self.most.max(given);
        if self.order.remove(&(was, id)) {
            self.order.insert((given, id));
        }
    }

    /// Gives a place back, or waits no more; `was_late` where its time was up. Whoever may go now is in what [`Fair::next`] returns.
    pub(crate) fn leave(&mut self, now: Duration, id: TenantId, ticket: Ticket, was_late: bool) {
        let at = self.held.iter().position(|held| held.ticket == ticket);
        let has_place = at.is_some();
        if let Some(held) = at.map(|at| self.held.remove(at)).or_else(|| self.lapsed.remove(&ticket)) {
            if held.is_guess {
                // Nothing went: it is taken back, and says nothing of what others bring and how long they take.
                self.recharge(held.tenant, held.weight, (held.bytes, LEAST_BYTES));
            } else if has_place && self.waiting > 0 {
                self.takes.add(now.saturating_sub(held.since).as_secs_f64());
                self.brings.add(held.bytes as f64);
            }
            if self.held.is_empty() && self.waiting == 0 {
                // Nobody wants anything: nobody is owed anything.
                self.clock = self.most;
            }
            return;
        }
        let Some(tenant) = self.tenants.get_mut(&id) else { return };
        let Some(one) = taken(&mut tenant.parts, ticket).or_else(|| taken(&mut tenant.others, ticket)) else {
            return;
        };
        tenant.waiting_bytes -= one.bytes;
        self.waiting_bytes -= one.bytes;
        self.waiting -= 1;
        let others = tenant.waiting();
        if others == 0 {
            tenant.strain.ends(now);
            self.order.remove(&(tenant.given, id));
            self.waiting_weight -= u64::from(tenant.weight);
        } else if was_late {
            tenant.strain.went_without(now, one.left.as_secs_f64(), others);
        }
    }

    /// Returns the next one that has a place now.
    pub(crate) fn next(&mut self, now: Duration) -> Option<W> {
        self.lapse(now);
        if self.held.len() >= self.places {
            return None;
        }
        let (given, id) = self.order.pop_first()?;
        let tenant = self.tenants.get_mut(&id)?;
        let weight = tenant.weight;
        let one = tenant.parts.pop_front().or_else(|| tenant.others.pop_front())?;
        tenant.waiting_bytes -= one.bytes;
        self.waiting_bytes -= one.bytes;
        self.waiting -= 1;
        if tenant.waiting() == 0 {
            tenant.strain.ends(now);
            self.waiting_weight -= u64::from(weight);
        } else {
            self.order.insert((given + charge(one.bytes, weight), id));
        }
        let Waiting { ticket, bytes, is_guess, who, .. } = one;
        self.give(given, Held { ticket, tenant: id, weight, bytes, is_guess, since: now });
        Some(who)
    }

    /// Returns when the first place is one no more.
    pub(crate) fn lapses_at(&self) -> Option<Duration> {
        self.held.iter().map(Held::lapses_at).min()
    }

    /// Gives a place to one whose tenant was charged so much before.
    fn give(&mut self, given: u128, held: Held) {
        self.clock = self.clock.max(given);
        if let Some(tenant) = self.tenants.get_mut(&held.tenant) {
            tenant.given = given + charge(held.bytes, held.weight);
            self.most = self.most.max(tenant.given);
        }
        self.held.push(held);
    }

    /// Takes places from those that have held them for too long.
    fn lapse(&mut self, now: Duration) {
        if self.held.len() < self.places {
            return;
        }
        let over = self.held.extract_if(.., |held| held.lapses_at() <= now);
        self.lapsed.extend(over.map(|held| (held.ticket, held)));
    }

    /// Returns how long one more of a tenant is expected to wait, and how long it takes until the next place is the tenant's, in seconds; 0
    /// while nothing is known.
    fn expected(&self, id: TenantId, is_part: bool) -> (f64, f64) {
        let (takes, brings) = (self.takes.value(), self.brings.value());
        let Some(tenant) = self.tenants.get(&id) else { return (0.0, 0.0) };
        if brings == 0.0 {
            return (0.0, 0.0);
        }
        // Seconds a byte, with all places taken.
        let pace = takes / brings / self.places as f64;
        let own_weight = u64::from(tenant.weight);
        let all = self.waiting_weight + if tenant.waiting() == 0 { own_weight } else { 0 };
        // One byte of its own to so many of all that wait.
        let sharing = all as f64 / own_weight as f64;
        let of_parts: u64 = tenant.parts.iter().map(|one| one.bytes).sum();
        let own = if is_part { of_parts } else { tenant.waiting_bytes } as f64;
        // No more than all that waits is ahead of it, and no more than the others' shares beside its own.
        let ahead = (own * sharing).min(self.waiting_bytes as f64);
        // Nor is its next place farther than all that others wait for.
        let of_others = self.waiting_bytes.saturating_sub(tenant.waiting_bytes);
        let turn = (brings * sharing).min(brings + of_others as f64);
        ((ahead + brings) * pace, turn * pace)
    }

    /// Returns how many times as much so many bytes are as those are that go while a place is held.
    fn of_usual(&self, bytes: u64) -> f64 {
        let usual = self.brings.value();
        if bytes == 0 || usual == 0.0 { 1.0 } else { bytes as f64 / usual }
    }
}

/// Takes one out of a queue.
fn taken<W>(queue: &mut VecDeque<Waiting<W>>, ticket: Ticket) -> Option<Waiting<W>> {
    let at = queue.iter().position(|one| one.ticket == ticket)?;
    queue.remove(at)
}

#[cfg(test)]
#[path = "fair_test.rs"]
mod tests;
