//! How long devices let their readers wait, and what follows from it: which replica is asked, when a second one is asked as
//! well, and how fast blocks arrive. Decides by what it is told; the clock is its caller's.
//!
//! Sources: peak-sensitive averages of waits, as Finagle's balancer has them; the better of two choices (Mitzenmacher 2001);
//! a second request to another replica, for a bounded share of requests (Dean and Barroso, "The tail at scale", 2013); how
//! long an answer usually takes at most, by mean and deviation (Jacobson and Karels 1988, RFC 6298).

use crate::route::Segment;
use kvhive_protocol::{BlockKey, DeviceId, Generation, MemberId};
use std::collections::HashMap;
use std::time::Duration;

/// What was seen so long ago counts for a third.
const MEMORY: f64 = 10.0;
/// No device is expected to let anybody wait longer than this, in seconds.
const LONGEST: f64 = 1.0;
/// How long the first answer of a device that nothing is known of is awaited alone, in seconds.
const UNKNOWN_PATIENCE: f64 = 0.02;
/// Nobody asks a second replica earlier than this, in seconds: below it is what a scheduler's turn takes.
const LEAST_PATIENCE: f64 = 0.002;
/// Second requests for each first one, in the long run.
const HEDGES_A_REQUEST: f64 = 0.1;
/// Repeats of requests to busy nodes for each answer, in the long run.
const REPEATS_A_REQUEST: f64 = 0.1;
/// Repeats that may come at once.
const MAX_REPEATS: f64 = 100.0;
/// Second requests that may come at once.
const MAX_CREDIT: f64 = 10.0;
/// After so many seconds without blocks twice the speed is expected.
const HOPE: f64 = 30.0;
/// Requests at a time of a device that has just come, while another replica is known: each answer allows one more (slow start: Jacobson
/// 1988), so that their number doubles with every round.
const FIRST_AT_ONCE: u32 = 2;
/// After so many answers it has come.
const ANSWERS_TO_COME: u32 = 62;
/// Devices that are remembered; a map has fewer that one client reads from.
const MAX_DEVICES: usize = 65_536;

/// How much shorter the wait at another replica must be before it is asked instead: `times` as short, and `seconds` besides; and
/// whether it spares those that have just come; and whether a replica that is near is asked rather than the primary.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sway {
    times: f64,
    seconds: f64,
    spares: bool,
    nears: bool,
}

impl Sway {
    /// For fetches: what a replica does not have after all is asked of the primary.
    pub(crate) const FETCH: Sway = Sway { times: 1.5, seconds: 0.000_5, spares: true, nears: true };
    /// For matches: what a replica does not have is taken to be nowhere, so only a primary that is really slow is passed over.
    pub(crate) const MATCH: Sway = Sway { times: 3.0, seconds: 0.005, spares: false, nears: false };
}

/// The node that a client is near.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Near {
    pub(crate) member: MemberId,
    /// Its device that is asked for what none of its devices is a replica of; none where it does not understand that.
    pub(crate) host: Option<DeviceId>,
}

/// What is known of one device.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// The expected wait of one request, in seconds: jumps up at once, comes down slowly.
    wait: f64,
    /// When that was, in seconds.
    at: f64,
    /// Mean and mean deviation of the waits that ended with an answer; none before the first.
    usual: Option<(f64, f64)>,
    /// Requests without an answer.
    under_way: u32,
    /// Which start of its member it is of, and answers since, up to [`ANSWERS_TO_COME`].
    generation: Generation,
    answers: u32,
    /// It is not asked for guests before that, in seconds.
    hosts_from: f64,
}

impl Known {
    fn wait_at(&self, now: f64) -> f64 {
        self.wait * (-(now - self.at).max(0.0) / MEMORY).exp()
    }

    /// Says whether it has answered often enough to be asked as much as the others.
    fn has_come(&self) -> bool {
        self.answers >= ANSWERS_TO_COME
    }

    /// Says whether it has just come and as many requests are under way as it is to have now.
    fn is_to_be_spared(&self) -> bool {
        !self.has_come() && self.under_way >= FIRST_AT_ONCE + self.answers
    }
}

/// What one client knows of its devices' waits.
#[derive(Debug)]
pub(crate) struct Waits {
    devices: HashMap<DeviceId, Known>,
    /// Second requests that may be made.
    credit: f64,
    /// Requests to a busy node that may be made again.
    repeats: f64,
    /// Bytes a second in which blocks arrive, and when that was seen last, in seconds; none before the first.
    rate: Option<(f64, f64)>,
    /// What tells this client from others where readers are to be spread.
    seed: u64,
    draws: u64,
}

impl Waits {
    /// Knows nothing yet. Clients with different seeds spread over replicas.
    pub(crate) fn new(seed: u64) -> Waits {
        Waits {
            devices: HashMap::new(),
            credit: MAX_CREDIT,
            repeats: MAX_REPEATS,
            rate: None,
            seed,
            draws: 0,
        }
    }

    /// Says that a request to `device`, of this start of its member, is under way. Of another start nothing is known.
    pub(crate) fn begin(&mut self, device: DeviceId, generation: Generation) {
        if self.devices.len() >= MAX_DEVICES && !self.devices.contains_key(&device) {
            self.devices.retain(|_, known| known.under_way > 0);
        }
        let known = self.devices.entry(device).or_default();
        if known.generation < generation {
            *known = Known { generation, under_way: known.under_way, ..Known::default() };
        }
        known.under_way += 1;
    }

    /// Says that a request to `device` is over, be it answered or not.
    pub(crate) fn end(&mut self, device: DeviceId) {
        if let Some(known) = self.devices.get_mut(&device) {
            known.under_way = known.under_way.saturating_sub(1);
        }
    }

    /// Says how long an answer of `device` took.
    pub(crate) fn answered(&mut self, device: DeviceId, now: Duration, took: Duration) {
        let (now, took) = (now.as_secs_f64(), took.as_secs_f64().min(LONGEST));
        let Some(known) = self.devices.get_mut(&device) else { return };
        known.answers = (known.answers + 1).min(ANSWERS_TO_COME);
        let fades = (-(now - known.at).max(0.0) / MEMORY).exp();
        // A busy client would otherwise need seconds to see that a wait is over.
        let fades = fades.min(0.9);
        let so_far = known.wait_at(now);
        known.wait = if took > so_far { took } else { so_far * fades + took * (1.0 - fades) };
        known.at = now;
        known.usual = Some(match known.usual {
            None => (took, took / 2.0),
            Some((mean, deviation)) => {
                (mean + (took - mean) / 8.0, deviation + ((took - mean).abs() - deviation) / 4.0)
            }
        });
    }

    /// Says that another replica was quicker than `device`, which had not answered after `waited`. How long it would have
    /// taken nobody knows: it is taken to be twice as slow as thought.
    pub(crate) fn overtaken(&mut self, device: DeviceId, now: Duration, waited: Duration) {
        let (now, waited) = (now.as_secs_f64(), waited.as_secs_f64());
        if let Some(known) = self.devices.get_mut(&device) {
            known.wait = (2.0 * known.wait_at(now).max(waited)).min(LONGEST);
            known.at = now;
        }
    }

    /// Returns how long a new request to `device` is expected to wait, in seconds; 0 of one that nothing is known of.
    pub(crate) fn expected(&self, device: DeviceId, now: Duration) -> f64 {
        let known = self.known(device);
        known.wait_at(now.as_secs_f64()) * f64::from(known.under_way + 1)
    }

    /// Returns how long an answer of `device` is awaited before another replica is asked as well.
    pub(crate) fn patience(&self, device: DeviceId) -> Duration {
        let usual = self.devices.get(&device).and_then(|known| known.usual);
        let seconds = usual.map_or(UNKNOWN_PATIENCE, |(mean, deviation)| mean + 4.0 * deviation);
        Duration::from_secs_f64(seconds.clamp(LEAST_PATIENCE, LONGEST))
    }

    /// Says that a request was made that a second one may follow.
    pub(crate) fn earn(&mut self) {
        self.credit = (self.credit + HEDGES_A_REQUEST).min(MAX_CREDIT);
    }

    /// Says whether a second request may be made, and counts it.
    pub(crate) fn spend(&mut self) -> bool {
        let may = self.credit >= 1.0;
        self.credit -= f64::from(u8::from(may));
        may
    }

    /// Says that a request was answered.
    pub(crate) fn earn_repeat(&mut self) {
        self.repeats = (self.repeats + REPEATS_A_REQUEST).min(MAX_REPEATS);
    }

    /// Says whether a request to a node that was busy may be made again, and counts it: as many in the long run as a tenth of those that
    /// are answered.
    pub(crate) fn repeat(&mut self) -> bool {
        let may = self.repeats >= 1.0;
        self.repeats -= f64::from(u8::from(may));
        may
    }

    /// Says that so many bytes of blocks arrived in this time.
    pub(crate) fn arrived(&mut self, bytes: u64, now: Duration, took: Duration) {
        if bytes == 0 || took.is_zero() {
            return;
        }
        let seen = bytes as f64 / took.as_secs_f64();
        let rate = self.rate.map_or(seen, |(rate, _)| rate + (seen - rate) / 8.0);
        self.rate = Some((rate, now.as_secs_f64()));
    }

    /// Returns the bytes a second in which blocks are expected to arrive, once some have. Whoever has not fetched for a while
    /// expects more, so that what was slow once is tried again.
    pub(crate) fn rate(&self, now: Duration) -> Option<f64> {
        let (rate, at) = self.rate?;
        Some(rate * ((now.as_secs_f64() - at).max(0.0) / HOPE).exp2())
    }

    /// Chooses whom to ask for the segment at `home`: of the slot's replicas one of the member that is near, or that member as one that has it
    /// fetched; else the primary, or where more of them stand than the
    /// cluster's `replicas` ask for, one that is this client's own choice for that segment, so that clients spread; instead
    /// of it another one, drawn at random, if the wait there is so much shorter. Those in `avoid` never, and those that lack
    /// older blocks only if nobody else is left; and while another is known well, one that has just come is asked little at first.
    pub(crate) fn choose(
        &mut self,
        segment: &Segment<'_>,
        near: Option<Near>,
        sway: Sway,
        now: Duration,
    ) -> Option<DeviceId> {
        let whole: Vec<DeviceId> = segment.whole().collect();
        let near = near.filter(|_| sway.nears);
        if let Some(Near { member, host: Some(host) }) = near
            && !whole.is_empty()
            && segment.set.0.iter().all(|device| device.member != member)
            && self.known(host).hosts_from <= now.as_secs_f64()
        {
            return Some(host);
        }
        let near = near.and_then(|near| segment.of(near.member));
        let preferred = match (&whole[..], near) {
            ([], _) => return segment.left().next(),
            ([only], _) => return Some(*only),
            (_, Some(near)) => near,
            _ if segment.set.0.len() > segment.replicas => self.own_choice(segment.home, &whole)?,
            _ => whole[0],
        };
        let others: Vec<DeviceId> = whole.into_iter().filter(|device| *device != preferred).collect();
        if sway.spares && self.known(preferred).is_to_be_spared() {
            let has_come = |device: &DeviceId| self.known(*device).has_come();
            let come: Vec<DeviceId> = others.iter().copied().filter(has_come).collect();
            if !come.is_empty() {
                return Some(come[self.draw(come.len())]);
            }
        }
        let other = others[self.draw(others.len())];
        if sway.spares && self.known(preferred).has_come() && self.known(other).is_to_be_spared() {
            return Some(preferred);
        }
        let is_swayed = self.expected(other, now) * sway.times + sway.seconds < self.expected(preferred, now);
        Some(if is_swayed { other } else { preferred })
    }

    /// Says that a device did not give what it is no replica of: for `rest` it is not asked for any.
    pub(crate) fn turned_away(&mut self, device: DeviceId, now: Duration, rest: Duration) {
        if let Some(known) = self.devices.get_mut(&device) {
            known.hosts_from = (now + rest).as_secs_f64();
        }
    }

    fn known(&self, device: DeviceId) -> Known {
        self.devices.get(&device).copied().unwrap_or_default()
    }

    /// Rendezvous hashing over the replicas: a replica that comes or goes changes few choices.
    fn own_choice(&self, home: &BlockKey, whole: &[DeviceId]) -> Option<DeviceId> {
        let head = home.as_bytes().first_chunk::<8>().map_or(0, |head| u64::from_le_bytes(*head));
        let height = |device: &DeviceId| {
            let place = u64::from(device.member.0) << 16 | u64::from(device.index);
            mixed(mixed(self.seed ^ head).wrapping_add(place))
        };
        whole.iter().copied().max_by_key(|device| (height(device), *device))
    }

    fn draw(&mut self, among: usize) -> usize {
        self.draws = self.draws.wrapping_add(1);
        (mixed(self.seed.wrapping_add(self.draws)) % among.max(1) as u64) as usize
    }
}

/// SplitMix64's output function (Steele, Lea and Flood 2014).
fn mixed(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
#[path = "waits_test.rs"]
mod tests;
