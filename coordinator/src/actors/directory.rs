//! Who the coordinators are and where: what the log says of those in the group, and, as long as it says nothing, what the
//! cluster file does. Lines to them are opened and closed as they come and go.

use crate::config::PeerConfig;
use crate::peers::{self, Lanes, Line};
use kvhive_consensus::{Group, PeerId};
use kvhive_protocol::raft::Seat;
use kvhive_protocol::{WireError, codec};
use std::collections::BTreeMap;
use tokio::sync::{mpsc, watch};

/// Of how many that are of the group no more it is remembered where they were.
const MAX_LEFT: usize = 32;
/// The longest that the log says of one, in bytes.
const MAX_SEAT_BYTES: usize = kvhive_consensus::MAX_ABOUT_BYTES;

/// Whom this coordinator knows.
pub(crate) struct Directory {
    us: PeerId,
    /// As the cluster file has them.
    named: BTreeMap<PeerId, Seat>,
    known: BTreeMap<PeerId, Seat>,
    /// Who is of the group no more. One that was away when it was removed is told when it comes back.
    left: BTreeMap<PeerId, Seat>,
    lines: BTreeMap<PeerId, (String, Lanes)>,
    /// Where those are that vote, by number; none while some vote on their way out, or one is known by its number alone.
    voting: Option<Vec<String>>,
    dialler: mpsc::UnboundedSender<Line>,
    told: watch::Sender<Vec<PeerConfig>>,
}

impl Directory {
    /// Begins with what the cluster file says; lines go to `dialler`, and everybody known to `told`.
    pub(crate) fn new(
        us: PeerId,
        named: BTreeMap<PeerId, Seat>,
        dialler: mpsc::UnboundedSender<Line>,
        told: watch::Sender<Vec<PeerConfig>>,
    ) -> Directory {
        let (known, left, lines) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Directory { us, named, known, left, lines, voting: None, dialler, told }
    }

    /// Takes in who is of the group now.
    pub(crate) fn follow(&mut self, group: &Group) {
        let seats = self.seats(group);
        let address = |peer| seats.get(peer).map(|seat: &Seat| seat.raft_address.clone());
        let voting: Option<Vec<String>> = group.voters.iter().map(address).collect();
        // Whoever listens on any free port is known by no address that others could use.
        let is_known =
            |voting: &Vec<String>| !voting.is_empty() && !voting.iter().any(|one| one.ends_with(":0"));
        self.voting = voting.filter(|voting| group.outgoing.is_empty() && is_known(voting));
        // Whoever is not of a group, or not that it knew, has its file as well to find one by.
        let named = if group.contains(self.us) { BTreeMap::new() } else { self.named.clone() };
        self.left.extend(std::mem::replace(&mut self.known, named));
        self.known.extend(seats);
        let known = &self.known;
        self.left.retain(|peer, _| !known.contains_key(peer));
        while self.left.len() > MAX_LEFT {
            self.left.pop_first();
        }
        self.lines
            .retain(|peer, (address, _)| known.get(peer).is_some_and(|seat| seat.raft_address == *address));
        for (peer, seat) in known.iter().filter(|(peer, _)| **peer != self.us) {
            self.lines.entry(*peer).or_insert_with(|| {
                let (lanes, outgoing) = peers::lanes();
                // Nobody dials any more when this process ends.
                let _ = self.dialler.send((*peer, seat.clone(), outgoing));
                (seat.raft_address.clone(), lanes)
            });
        }
        let all = known.iter().map(|(peer, seat)| PeerConfig::of(*peer, seat.clone()));
        self.told.send_replace(all.collect());
    }

    fn seats(&self, group: &Group) -> BTreeMap<PeerId, Seat> {
        let all = group.voters.iter().chain(&group.outgoing).chain(&group.learners);
        let seat = |peer: &PeerId| {
            let logged = group.about.get(peer).and_then(|bytes| decode(bytes));
            let named = self.named.get(peer);
            let seat = match (logged, named) {
                // A coordinator may move: the file of today knows better where it is than the log of then.
                (Some(logged), Some(named)) if logged.name == named.name => named.clone(),
                (Some(logged), _) => logged,
                (None, Some(named)) => named.clone(),
                (None, None) => return None,
            };
            Some((*peer, seat))
        };
        all.filter_map(seat).collect()
    }

    /// Returns where those are that vote, as nodes and clients are to know them; none while that changes.
    pub(crate) fn voting(&self) -> Option<&[String]> {
        self.voting.as_deref()
    }

    /// Queues a message; false when it was dropped. Who is of the group no more is dialled for each anew: what it asks is rare, and
    /// farewell is all that it is told.
    pub(crate) fn send(&self, to: PeerId, bytes: Vec<u8>) -> bool {
        if let Some((_, lanes)) = self.lines.get(&to) {
            return lanes.try_send(bytes);
        }
        let Some(seat) = self.left.get(&to).or_else(|| self.named.get(&to)) else { return false };
        let (lanes, outgoing) = peers::lanes();
        lanes.try_send(bytes) && self.dialler.send((to, seat.clone(), outgoing)).is_ok()
    }

    /// Returns what is known of a peer.
    pub(crate) fn get(&self, peer: PeerId) -> Option<&Seat> {
        self.known.get(&peer)
    }

    /// Returns what a peer is called.
    pub(crate) fn name(&self, peer: PeerId) -> String {
        self.get(peer).map_or_else(|| format!("peer {}", peer.0), |seat| seat.name.clone())
    }

    /// Finds a peer by its name.
    pub(crate) fn find(&self, name: &str) -> Option<PeerId> {
        self.known.iter().find(|(_, seat)| seat.name == name).map(|(peer, _)| *peer)
    }

    /// Refuses a seat by which two coordinators would be one.
    pub(crate) fn check_room(&self, peer: PeerId, seat: &Seat) -> Result<(), WireError> {
        let is_taken = |(other, known): &(&PeerId, &Seat)| {
            **other != peer && (known.name == seat.name || known.raft_address == seat.raft_address)
        };
        match self.known.iter().find(is_taken) {
            Some((other, known)) => Err(WireError::rejected(format_args!(
                "{} (peer {}) has that name or address already",
                known.name, other.0
            ))),
            None => Ok(()),
        }
    }

    /// Returns everybody known.
    pub(crate) fn all(&self) -> &BTreeMap<PeerId, Seat> {
        &self.known
    }
}

/// Encodes what the log is to say of a coordinator.
pub(crate) fn encode(seat: &Seat) -> Vec<u8> {
    codec::encode(seat).expect("a seat is three short texts")
}

/// Decodes what [`encode`] gave; none when it makes no sense.
pub(crate) fn decode(bytes: &[u8]) -> Option<Seat> {
    (bytes.len() <= MAX_SEAT_BYTES).then(|| codec::decode(bytes).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(name: &str, address: &str) -> Seat {
        Seat { name: name.to_owned(), raft_address: address.to_owned(), admin_address: "admin:1".to_owned() }
    }

    struct Scene {
        directory: Directory,
        dialled: mpsc::UnboundedReceiver<Line>,
        told: watch::Receiver<Vec<PeerConfig>>,
    }

    fn scene() -> Scene {
        let named = [(1, seat("a", "a:1")), (2, seat("b", "b:1")), (3, seat("c", "c:1"))];
        let named = named.into_iter().map(|(peer, seat)| (PeerId(peer), seat)).collect();
        let (dialler, dialled) = mpsc::unbounded_channel();
        let (told, telling) = watch::channel(Vec::new());
        Scene { directory: Directory::new(PeerId(1), named, dialler, told), dialled, told: telling }
    }

    impl Scene {
        fn dialled(&mut self) -> Vec<(u64, String)> {
            std::iter::from_fn(|| self.dialled.try_recv().ok())
                .map(|(peer, seat, _)| (peer.0, seat.raft_address))
                .collect()
        }
    }

    fn group(voters: &[(u64, Option<Seat>)]) -> Group {
        let about = voters.iter().filter_map(|(peer, seat)| Some((PeerId(*peer), encode(seat.as_ref()?))));
        let voters = voters.iter().map(|(peer, _)| PeerId(*peer)).collect();
        Group { voters, about: about.collect(), ..Group::default() }
    }

    #[test]
    fn the_file_is_believed_until_the_log_says_who_is_there() {
        let mut scene = scene();
        scene.directory.follow(&Group::default());
        assert_eq!(scene.dialled(), [(2, "b:1".to_owned()), (3, "c:1".to_owned())]);
        assert_eq!(scene.directory.voting(), None);
        // Somebody took the place of c; b has moved since the log said where it is; of a nothing is said yet.
        let now = group(&[(1, None), (2, Some(seat("b", "b:old"))), (4, Some(seat("d", "d:1")))]);
        scene.directory.follow(&now);
        assert_eq!(scene.dialled(), [(4, "d:1".to_owned())]);
        assert_eq!(scene.directory.voting(), Some(&["a:1", "b:1", "d:1"].map(str::to_owned)[..]));
        let leaving = Group { outgoing: vec![PeerId(3)], ..now.clone() };
        scene.directory.follow(&leaving);
        assert_eq!(scene.directory.voting(), None, "some vote on their way out");
        scene.directory.follow(&now);
        scene.dialled();
        let told: Vec<(u64, String)> =
            scene.told.borrow().iter().map(|peer| (peer.peer, peer.name.clone())).collect();
        assert_eq!(told, [(1, "a".to_owned()), (2, "b".to_owned()), (4, "d".to_owned())]);
        assert!(
            scene.directory.send(PeerId(3), vec![1]),
            "its line is closed, and another opened for a farewell"
        );
        assert_eq!(scene.dialled(), [(3, "c:1".to_owned())]);
        assert!(!scene.directory.send(PeerId(9), vec![1]), "nobody knows where it is");
        assert_eq!(scene.directory.find("d"), Some(PeerId(4)));
        for (peer, name, address, is_refused) in
            [(5, "d", "e:1", true), (5, "e", "d:1", true), (4, "d", "d:2", false), (5, "e", "e:1", false)]
        {
            let checked = scene.directory.check_room(PeerId(peer), &seat(name, address));
            assert_eq!(checked.is_err(), is_refused, "{peer} {name} {address}");
        }
        // A number that another has now: what the file says of it is of somebody else.
        let other = group(&[(1, None), (2, Some(seat("x", "x:1")))]);
        scene.directory.follow(&other);
        assert_eq!(scene.dialled(), [(2, "x:1".to_owned())]);
        // Not of the group any more: the file is what is left to find one by.
        scene.directory.follow(&group(&[(2, Some(seat("x", "x:1")))]));
        assert_eq!(scene.directory.name(PeerId(3)), "c");
    }
}
