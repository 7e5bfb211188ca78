//! Failure domains: which members go down together because they share a zone, a rack or a host, and which device a slot may get
//! next so that its replicas share as little as can be. What a device's load may be is not asked here.

use crate::placement::Candidate;
use kvhive_protocol::{DeviceId, Member};
use std::collections::BTreeMap;

/// Labels that name failure domains, the widest first.
pub const DOMAIN_LABELS: [&str; 3] = ["zone", "rack", "host"];
/// Depth of the tree: the label's domains, and members below them.
const LEVELS: usize = DOMAIN_LABELS.len();

/// The domains that a member is in, numbered among the candidates of one map: zone, rack, host. A rack of one zone is none of
/// another's, whatever its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place(pub [u32; LEVELS]);

/// Numbers the domains of members as they come.
#[derive(Default)]
pub(crate) struct Numbering<'a>([BTreeMap<(u32, &'a str), u32>; LEVELS]);

impl<'a> Numbering<'a> {
    /// Returns the domains of a member. Those without a label share the one without a name, but for hosts: there the address of
    /// the data plane says which it is.
    pub(crate) fn place(&mut self, member: &'a Member) -> Place {
        let mut place = [0; LEVELS];
        let mut parent = 0;
        for (level, label) in DOMAIN_LABELS.into_iter().enumerate() {
            let labelled = member.labels.get(label).map(String::as_str);
            let name =
                labelled.unwrap_or_else(|| if label == "host" { host(&member.data_address) } else { "" });
            let next = self.0[level].len() as u32;
            parent = *self.0[level].entry((parent, name)).or_insert(next);
            place[level] = parent;
        }
        Place(place)
    }
}

fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

/// How many domains are inside of which, and how many members.
pub(crate) struct Domains {
    /// For each level and domain of it: domains of the next level, and members, in it.
    inside: [Vec<Inside>; LEVELS],
}

#[derive(Clone, Copy, Default)]
struct Inside {
    domains: u32,
    members: u32,
}

/// How many replicas of a slot share a device's zone, rack and host with it: the less, the better, zones first.
pub(crate) type Shared = [u32; LEVELS];

impl Domains {
    pub(crate) fn of(candidates: &[Candidate]) -> Domains {
        let mut domains = Domains { inside: [const { Vec::new() }; LEVELS] };
        for devices in candidates.chunk_by(|one, next| one.device.member == next.device.member) {
            let place = devices[0].place.0;
            for (level, at) in place.into_iter().enumerate() {
                let inside = &mut domains.inside[level];
                if inside.len() <= at as usize {
                    inside.resize(at as usize + 1, Inside::default());
                }
                inside[at as usize].members += 1;
                if inside[at as usize].members == 1 && level > 0 {
                    domains.inside[level - 1][place[level - 1] as usize].domains += 1;
                }
            }
        }
        domains
    }

    /// Returns the least that one more replica of a slot can share with those that it has; none if it is on every member.
    pub(crate) fn least(&self, set: &[Place]) -> Option<Shared> {
        let mut least = [0; LEVELS];
        let zones = self.inside[0].iter().filter(|zone| zone.members > 0).count();
        if distinct(set.iter().map(|place| place.0[0])) < zones {
            return Some(least);
        }
        // From here on every domain that counts has a replica: the least shared that is not full is among them.
        let mut within: Vec<Place> = set.to_vec();
        for (level, least_here) in least.iter_mut().enumerate() {
            let count =
                |place: &Place| set.iter().filter(|one| one.0[level] == place.0[level]).count() as u32;
            let has_room = |place: &Place| count(place) < self.inside[level][place.0[level] as usize].members;
            let fewest = within.iter().filter(|place| has_room(place)).map(count).min()?;
            *least_here = fewest;
            within.retain(|place| has_room(place) && count(place) == fewest);
            // A domain inside of it that has no replica yet shares nothing.
            let is_free = |place: &Place| {
                level + 1 < LEVELS && {
                    let alike = set.iter().filter(|one| one.0[level] == place.0[level]);
                    let used = distinct(alike.map(|one| one.0[level + 1]));
                    used < self.inside[level][place.0[level] as usize].domains as usize
                }
            };
            if within.iter().any(is_free) {
                break;
            }
        }
        Some(least)
    }

    /// Returns the first two of a set that share a domain although one more replica in place of the later could share less, and
    /// the name of what they share.
    pub(crate) fn needless(&self, set: &[(DeviceId, Place)]) -> Option<(DeviceId, DeviceId, &'static str)> {
        for (at, (device, place)) in set.iter().enumerate() {
            let others: Vec<Place> =
                set.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, one)| one.1).collect();
            let (shared, least) = (shared(&others, *place), self.least(&others)?);
            if let Some(level) = (0..LEVELS).find(|level| shared[*level] != least[*level])
                && shared[level] > least[level]
            {
                let is_alike =
                    |one: &&(DeviceId, Place)| one.0 != *device && one.1.0[level] == place.0[level];
                let other = set.iter().find(is_alike).map_or(*device, |(other, _)| *other);
                return Some((other, *device, DOMAIN_LABELS[level]));
            }
        }
        None
    }
}

/// Returns what one more replica at `place` would share with those of a set.
pub(crate) fn shared(set: &[Place], place: Place) -> Shared {
    std::array::from_fn(|level| set.iter().filter(|one| one.0[level] == place.0[level]).count() as u32)
}

/// Counts what is different among a few.
fn distinct(of: impl Iterator<Item = u32> + Clone) -> usize {
    let is_first = |(at, one): &(usize, u32)| !of.clone().take(*at).any(|before| before == *one);
    of.clone().enumerate().filter(is_first).count()
}
