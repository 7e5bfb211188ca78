//! Days of load made of a trace: it is played again and again, each time with sessions of its own, and of those as many as the
//! time of day brings. Within a session nothing is stretched or left out, so that what comes back comes back when it did. When a
//! session begins is drawn anew each time: a trace that fills up and runs dry, as one does that was put together from sessions,
//! would lay a rhythm of its own length over the days.

use super::sweep::{key, turn};
use crate::trace::Request;
use anyhow::{Result, bail};
use kvhive_cache::simulate::{Trace, Turn};
use kvhive_protocol::Moment;
use kvhive_protocol::scaling::OBSERVATION_SECONDS;
use std::collections::{BTreeMap, BTreeSet};
use std::f64::consts::TAU;
use std::time::Duration;

/// Seconds of a day.
const DAY_S: f64 = 86_400.0;

/// A block that one of so many sessions uses, at least, lasts. Any other is seen no more when the trace is played again: that would
/// come back after exactly as long.
const LASTING: usize = 100;

/// Tells the draw of when a session begins from that of whether it comes.
const BEGINS: u64 = 0xB361;

/// How load comes and goes. Between its least and its most it goes by one of these.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(super) enum Shape {
    /// A wave each day: least at midnight, most at noon
    Wave,
    /// From 9 to 18 as much as there can be, with an hour to come and to go, else the least
    Office,
    /// From 8 to 18 as much as there can be, all at once, else the least
    Square,
    /// Two peaks a day, at 10 and at 20, and the least at 3
    Peaks,
    /// A wave each day, and on the last two of seven days a third of it
    Week,
    /// The least for three fifths of the time, then all at once the most
    Step,
    /// From the least to the most over all days, without a daily rhythm
    Growth,
}

/// How load goes over days.
#[derive(Clone, Copy, Debug)]
pub(super) struct Days {
    /// How many.
    pub(super) days: u32,
    /// Load of the quietest minute, by that of the busiest.
    pub(super) night: f64,
    /// How it goes between that and the most.
    pub(super) shape: Shape,
    /// Which sessions come is drawn from this.
    pub(super) seed: u64,
    /// Tokens of a block.
    pub(super) block_tokens: u32,
}

/// One request, known by its session.
struct Told {
    at_s: f64,
    turn: Turn,
    session: usize,
    blocks: Vec<u64>,
}

/// A trace by sessions.
struct Sessions {
    requests: Vec<Told>,
    /// When each begins in the trace, in seconds.
    begins: Vec<f64>,
    /// Blocks that are the same whenever the trace is played: those of many sessions, as system prompts are.
    lasting: BTreeSet<u64>,
}

impl Days {
    /// Returns the load at a time, by that of the busiest minute.
    fn load(&self, at_s: f64) -> f64 {
        let hour = at_s % DAY_S / 3600.0;
        let wave = (1.0 - (at_s / DAY_S * TAU).cos()) / 2.0;
        let whole_s = f64::from(self.days) * DAY_S;
        // How near an hour is to that of a peak, from 0 to 1: four hours away there is nothing of it.
        let peak = |at: f64| {
            let away = (hour - at).abs().min(24.0 - (hour - at).abs());
            (1.0 + (away.min(4.0) / 4.0 * TAU / 2.0).cos()) / 2.0
        };
        let part = match self.shape {
            Shape::Wave => wave,
            Shape::Office => (hour - 8.0).min(19.0 - hour).clamp(0.0, 1.0),
            Shape::Square => f64::from(u8::from((8.0..18.0).contains(&hour))),
            Shape::Peaks => peak(10.0).max(peak(20.0)),
            Shape::Week if at_s / DAY_S % 7.0 >= 5.0 => wave / 3.0,
            Shape::Week => wave,
            Shape::Step => f64::from(u8::from(at_s >= 0.6 * whole_s)),
            Shape::Growth => at_s / whole_s,
        };
        self.night + (1.0 - self.night) * part
    }

    /// Returns how often load turns from more to less or back.
    pub(super) fn turns(&self) -> u32 {
        let steps = u64::from(self.days) * DAY_S as u64 / OBSERVATION_SECONDS;
        let (mut turns, mut before, mut rising) = (0, self.load(0.0), None);
        for step in 1..steps {
            let load = self.load((step * OBSERVATION_SECONDS) as f64);
            // A wave at its highest stands still for a moment.
            if (load - before).abs() > 1e-9 {
                turns += u32::from(rising.is_some_and(|rising| rising != (load > before)));
                rising = Some(load > before);
            }
            before = load;
        }
        turns
    }

    /// Returns one of so many of a trace's sessions.
    #[cfg(test)]
    pub(super) fn sample(&self, requests: Vec<Request>, one_in: u64) -> Vec<Request> {
        let sessions = Sessions::of(requests.clone(), self.block_tokens);
        let mut sorted = requests;
        sorted.sort_by(|one, other| one.timestamp.total_cmp(&other.timestamp));
        let is_drawn = |told: &Told| mix(self.seed, told.session as u64 + 1).is_multiple_of(one_in);
        sorted
            .into_iter()
            .zip(&sessions.requests)
            .filter(|(_, told)| is_drawn(told))
            .map(|(one, _)| one)
            .collect()
    }

    /// Lays the days' load over a trace.
    ///
    /// # Errors
    /// When it has no requests, or the days have too many.
    pub(super) fn lay_over(&self, requests: Vec<Request>) -> Result<Trace> {
        let sessions = Sessions::of(requests, self.block_tokens);
        let Some(last) = sessions.requests.last() else { bail!("the trace has no requests") };
        let stretch_s = OBSERVATION_SECONDS as f64;
        let first = sessions.begins.iter().copied().fold(last.at_s, f64::min);
        let newest = sessions.begins.iter().copied().fold(first, f64::max);
        // Sessions that began so late have their whole length after it: those of the next play begin beside them.
        let span_s = (((newest - first) / stretch_s).ceil() * stretch_s).max(stretch_s);
        let whole_s = f64::from(self.days) * DAY_S;
        let mut comes = Vec::new();
        for time in 0..(whole_s / span_s).ceil() as u64 {
            let begins: Vec<Option<f64>> = (0..sessions.begins.len() as u64)
                .map(|session| {
                    let at = (time as f64 + draw(self.seed ^ BEGINS, time, session)) * span_s;
                    (draw(self.seed, time, session) < self.load(at)).then_some(at)
                })
                .collect();
            for (number, told) in sessions.requests.iter().enumerate() {
                let Some(begin) = begins[told.session] else { continue };
                let at = begin + told.at_s - sessions.begins[told.session];
                if at < whole_s {
                    comes.push((at, time, number as u32));
                }
            }
        }
        comes.sort_unstable_by(|one, other| {
            one.0.total_cmp(&other.0).then((one.1, one.2).cmp(&(other.1, other.2)))
        });
        let mut trace = Trace::new();
        for (at, time, number) in comes {
            let told = &sessions.requests[number as usize];
            let turn = Turn { now: Moment::ZERO + Duration::from_secs_f64(at), ..told.turn };
            let own = |id: &u64| {
                if sessions.lasting.contains(id) { key(*id) } else { key(mix(*id, time + 1)) }
            };
            trace.push(turn, told.blocks.iter().map(own))?;
        }
        if trace.requests() == 0 {
            bail!("no session comes on these days: let the night have more load");
        }
        Ok(trace)
    }
}

impl Sessions {
    /// Tells sessions apart: by what the trace says, else a request goes on with the session whose last block it goes on from.
    fn of(mut requests: Vec<Request>, block_tokens: u32) -> Sessions {
        requests.sort_by(|one, other| one.timestamp.total_cmp(&other.timestamp));
        let mut sessions = Sessions { requests: Vec::new(), begins: Vec::new(), lasting: BTreeSet::new() };
        let mut users: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        let mut by_chat = BTreeMap::new();
        // Of each block: whose it is, and whether a block was seen after it.
        let mut owner: BTreeMap<u64, (usize, bool)> = BTreeMap::new();
        for request in requests {
            let turn = turn(&request, block_tokens);
            let full = request.hash_ids.len() - usize::from(turn.partial);
            let known = request.hash_ids[..full].iter().take_while(|id| owner.contains_key(id)).count();
            let tail = known.checked_sub(1).and_then(|at| owner.get(&request.hash_ids[at]));
            let goes_on = tail.filter(|(_, has_more)| !has_more).map(|(session, _)| *session);
            let fresh = sessions.begins.len();
            let session = match request.chat_id {
                Some(chat) => *by_chat.entry(chat).or_insert(fresh),
                None => goes_on.unwrap_or(fresh),
            };
            if session == fresh {
                sessions.begins.push(request.timestamp / 1e3);
            }
            for (at, id) in request.hash_ids.iter().enumerate() {
                owner.entry(*id).or_insert((session, false)).1 |= at + 1 < full;
                let (last, count) = users.entry(*id).or_insert((session, 1));
                *count += usize::from(*last != session);
                *last = session;
            }
            let at_s = request.timestamp / 1e3;
            sessions.requests.push(Told { at_s, turn, session, blocks: request.hash_ids });
        }
        let many = (sessions.begins.len() / LASTING).max(2);
        let lasting = users.into_iter().filter(|(_, (_, count))| *count >= many);
        sessions.lasting = lasting.map(|(id, _)| id).collect();
        sessions
    }
}

/// Mixes two numbers into one that looks random (the finalizer of SplitMix64: Steele et al., 2014).
fn mix(one: u64, other: u64) -> u64 {
    let mut mixed = one ^ other.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ mixed >> 31
}

/// Draws a number from 0 to 1.
fn draw(seed: u64, time: u64, session: u64) -> f64 {
    (mix(mix(seed, time), session.wrapping_add(1)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(timestamp: f64, hash_ids: &[u64]) -> Request {
        Request { timestamp, input_length: 0, output_length: 0, hash_ids: hash_ids.to_vec(), chat_id: None }
    }

    #[test]
    fn sessions_are_told_apart_by_what_they_go_on_from() {
        let requests = vec![
            request(0.0, &[1, 2, 3]),
            request(1000.0, &[1, 2, 9]),
            request(2000.0, &[1, 2, 3, 4]),
            request(3000.0, &[1, 2, 9, 10]),
            request(4000.0, &[7]),
        ];
        let sessions = Sessions::of(requests, 512);
        let of: Vec<usize> = sessions.requests.iter().map(|told| told.session).collect();
        assert_eq!(of, [0, 1, 0, 1, 2]);
        assert_eq!(sessions.lasting, BTreeSet::from([1, 2]));
    }

    #[test]
    fn a_night_has_the_share_of_the_load_that_was_asked_for() {
        let days = Days { days: 2, night: 0.2, shape: Shape::Wave, seed: 3, block_tokens: 512 };
        let requests = (0..4000_u64).map(|at| request(at as f64 * 900.0, &[at])).collect();
        let trace = days.lay_over(requests).expect("it has requests");
        let in_hour = |hour: u64| {
            let is_in = |at: &usize| trace.request(*at).0.now.as_nanos() / 3_600_000_000_000 % 24 == hour;
            (0..trace.requests()).filter(is_in).count() as f64
        };
        let share = in_hour(0) / in_hour(12);
        assert!((0.17..0.26).contains(&share), "{share}");
    }
}
