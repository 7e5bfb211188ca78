//! Explanations in words: what happened to a block, and what to do about it.

use super::{BlockExplained, Explanation, Silence, Verdict};
use kvhive_protocol::DeviceId;
use kvhive_protocol::explain::{Departure, Explained, Since};
use kvhive_protocol::watch::{BlockTier, Gone};

/// Nodes of a kind that are named; of more, their number is told.
const NAMED: usize = 8;
/// More memory, or another choice of what stays.
const KEEP_MORE: &str = "more memory or a disk tier keeps more, a quota keeps more of this tenant; `kvhive simulate` tells what other \
    sizes and strategies would hit";

impl Verdict {
    /// Returns its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Here => "here",
            Verdict::Coming => "coming",
            Verdict::OtherLayout(_) => "other-layout",
            Verdict::Unplaced => "unplaced",
            Verdict::Stray(_) => "stray",
            Verdict::Gone(_, departure) => departure.why.as_str(),
            Verdict::Unheard => "unheard",
            Verdict::Filling => "filling",
            Verdict::Never { since: Since::Began, .. } => "never-stored",
            Verdict::Never { since: Since::Placed, .. } => "slot-moved",
            Verdict::Never { since: Since::Forgotten, .. } => "forgotten",
        }
    }
}

impl Explanation {
    /// Says why a block of it is there, or not.
    pub fn why(&self, block: &BlockExplained) -> String {
        match block.verdict {
            Verdict::Here => "it is there".to_owned(),
            Verdict::Coming => "it is being written".to_owned(),
            Verdict::OtherLayout(fingerprint) => {
                format!("it is there in another layout, of fingerprint {fingerprint}")
            }
            Verdict::Unplaced => {
                "no node is left that its slot is placed on: what they held is gone, or comes back with them"
                    .to_owned()
            }
            Verdict::Stray(device) => format!(
                "it lies on {} alone, which its slot has left; where the slot is now it was not brought",
                self.name(device)
            ),
            Verdict::Gone(device, departure) => self.gone(device, departure),
            Verdict::Unheard => format!("whoever may have it did not answer: {}", self.silent(block)),
            Verdict::Filling => {
                "its slot has just been placed on a device that does not have its blocks yet".to_owned()
            }
            Verdict::Never { since, for_s } => {
                let ago = ago(for_s);
                match since {
                    Since::Began => {
                        format!("it was never stored: it has not come since its replicas began, {ago} ago")
                    }
                    Since::Placed => format!(
                        "its slot came to its replicas {ago} ago, and the block has not come since: it was not brought, or never \
                         stored"
                    ),
                    Since::Forgotten => format!(
                        "it has neither come nor gone for {ago}; what went before that its replicas do not remember"
                    ),
                }
            }
        }
    }

    /// Says what to do about a block that is not there.
    pub fn what_to_do(&self, block: &BlockExplained) -> &'static str {
        match block.verdict {
            Verdict::Here => "nothing",
            Verdict::Coming => "ask again in a moment",
            Verdict::OtherLayout(_) => {
                "let whoever stores and whoever reads agree on layers, heads, tokens of a block, dtype and order of axes"
            }
            Verdict::Unplaced => {
                "start the nodes that are down (`kvhive nodes`); with `replicas = 2` a slot outlives a node"
            }
            Verdict::Stray(_) => {
                "it is a hit again once it is stored again; `kvhive events` tells when the slot moved"
            }
            Verdict::Gone(_, departure) => match departure.why {
                Gone::Evicted | Gone::Declined => KEEP_MORE,
                Gone::Over => {
                    "let the engine say `pending`, or when a session returns, of those that come back"
                }
                Gone::NotAdmitted => {
                    "more memory keeps it until its first use; only what was used once is put on disk"
                }
                Gone::Cleared => {
                    "nothing: who clears a tenant wants this; it is a hit again once it is stored again"
                }
                Gone::Lost => {
                    "look at the node's log and its disk; with `replicas = 2` another copy is read meanwhile"
                }
                Gone::TakenBack | Gone::Unwritten => {
                    "look at the log of who stored it: its requests end too early, or its connection does"
                }
                Gone::NoRoom => "more memory, shorter holds of matched blocks, or fewer stores at a time",
                Gone::TooLarge => "give the nodes frames as large as this layout's blocks",
            },
            Verdict::Unheard => {
                "`kvhive status` tells which nodes live and hold leases; with `replicas = 2` another answers"
            }
            Verdict::Filling => "wait until the slot is filled (`kvhive slots`)",
            Verdict::Never { since: Since::Began, .. } => {
                "see that the engine stores it, under this tenant, model, rank and layout; what a node held before a restart is kept by \
                 a disk tier or a snapshot"
            }
            Verdict::Never { since: Since::Placed, .. } => {
                "`kvhive events` tells why the slot moved; with `replicas = 2` its blocks outlive the node that they were on"
            }
            Verdict::Never { since: Since::Forgotten, .. } => KEEP_MORE,
        }
    }

    /// Returns what a device says of a block, in a few words.
    pub fn said(&self, said: &Result<Explained, Silence>) -> String {
        match said {
            Ok(Explained::Here { tier, codec, pinned, .. }) => {
                let pinned = if *pinned { ", pinned" } else { "" };
                format!("{} ({}{pinned})", tier_name(*tier), codec.name())
            }
            Ok(Explained::Coming) => "is being written".to_owned(),
            Ok(Explained::Gone(departure)) => {
                let from =
                    departure.from.map_or_else(String::new, |tier| format!(" from {}", tier_name(tier)));
                format!("{}{from} {} ago", departure.why.as_str(), ago(departure.ago_s))
            }
            Ok(Explained::Unknown { since, for_s }) => {
                let ago = ago(*for_s);
                match since {
                    Since::Began => format!("nothing since it began {ago} ago"),
                    Since::Placed => format!("nothing since the slot came {ago} ago"),
                    Since::Forgotten => format!("nothing within {ago}"),
                }
            }
            Err(silence) => silence.to_string(),
        }
    }

    /// Returns a device's name: its node and its number there.
    pub fn name(&self, device: DeviceId) -> String {
        let node = self.nodes.get(&device).map_or("?", String::as_str);
        format!("{node}/{}", device.index)
    }

    /// Says what else may have made misses.
    pub fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = Vec::new();
        for (device, lapse) in &self.lapses {
            let node = self.nodes.get(device).map_or("?", String::as_str);
            let note = format!(
                "{node} had no serving lease for {:.1} s until {} ago: what it holds was a miss then",
                lapse.for_ms as f64 / 1000.0,
                ago(lapse.ago_s)
            );
            // Once a node, whatever devices it has.
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        if !self.down.is_empty() && self.covered() < self.blocks.len() {
            let (named, more) = self.down.split_at(self.down.len().min(NAMED));
            let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
            notes.push(format!(
                "down: {}{more}; what nobody else held is gone, or comes back with them from disk or snapshot",
                named.join(", ")
            ));
        }
        if self.not_asked > 0 {
            notes.push(format!("{} more devices may have had it and were not asked", self.not_asked));
        }
        notes
    }

    fn gone(&self, device: DeviceId, departure: Departure) -> String {
        let Departure { why, from, strategy, ago_s } = departure;
        let (who, ago) = (self.name(device), ago(ago_s));
        let from = from.map_or("", tier_name);
        match why {
            Gone::Evicted => {
                format!("{who} evicted it from its {from} tier {ago} ago: `{strategy}` let it go for others")
            }
            Gone::Over => format!(
                "{who} let it go from its {from} tier {ago} ago: its session was over, or had not come back for long"
            ),
            Gone::NotAdmitted => format!(
                "{who} let it go from its {from} tier {ago} ago: it had to leave memory, and was never used, so it was not put on disk"
            ),
            Gone::Cleared => format!("the tenant was cleared; {who} dropped it {ago} ago"),
            Gone::Lost => format!("{who} lost it {ago} ago: it could not be read any more, or was damaged"),
            Gone::TakenBack => {
                format!("{who} took it back {ago} ago: whoever stored it was not there to hear of it")
            }
            Gone::Declined => format!(
                "{who} declined it {ago} ago: `{strategy}` found all that would have left for it worth more"
            ),
            Gone::NoRoom => format!(
                "{who} had no room for it {ago} ago: every frame of its size was read, held or being written"
            ),
            Gone::TooLarge => format!("{who} has no frame that is large enough for it"),
            Gone::Unwritten => {
                format!("{who} never got all of it: its store ended, or did not match its header, {ago} ago")
            }
        }
    }

    fn silent(&self, block: &BlockExplained) -> String {
        let silent = block.replicas.iter().filter_map(|one| Some((one.device, one.said.as_ref().err()?)));
        silent
            .map(|(device, silence)| format!("{} {silence}", self.name(device)))
            .collect::<Vec<_>>()
            .join("; ")
    }
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Silence::NoLease => write!(f, "has no lease, and serves nothing by this map"),
            Silence::Late(limit) => write!(f, "did not answer within {:.1} s", limit.as_secs_f64()),
            Silence::Unreachable(why) => write!(f, "cannot be reached ({why})"),
            Silence::Refused(why) => write!(f, "refused ({why})"),
            Silence::NotAsked => write!(f, "was not asked in time"),
        }
    }
}

/// Returns a tier's name in reports.
fn tier_name(tier: BlockTier) -> &'static str {
    match tier {
        BlockTier::Device => "device",
        BlockTier::Host => "host",
        BlockTier::Disk => "disk",
    }
}

/// Writes a number of seconds in the unit that fits it.
fn ago(seconds: u32) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Place, Replica, fold};
    use super::*;
    use kvhive_protocol::explain::Lapse;
    use kvhive_protocol::{BlockKey, MemberId, Strategy};
    use std::collections::BTreeMap;

    fn device(member: u32) -> DeviceId {
        DeviceId::new(MemberId(member), 0)
    }

    fn explanation(said: Vec<Result<Explained, Silence>>) -> Explanation {
        let replicas: Vec<Replica> = (1..)
            .zip(said)
            .map(|(member, said)| Replica { device: device(member), place: Place::Whole, said })
            .collect();
        let nodes = replicas.iter().map(|one| (one.device, format!("node-{}", one.device.member))).collect();
        let verdict = fold(&replicas, None);
        let block = BlockExplained { key: BlockKey::NONE, slot: None, replicas, verdict };
        Explanation { blocks: vec![block], lapses: BTreeMap::new(), nodes, down: Vec::new(), not_asked: 0 }
    }

    fn why(said: Vec<Result<Explained, Silence>>) -> String {
        let explanation = explanation(said);
        explanation.why(&explanation.blocks[0])
    }

    #[test]
    fn who_did_what_and_when_is_in_one_sentence() {
        let departure = Departure {
            why: Gone::Evicted,
            from: Some(BlockTier::Host),
            strategy: Strategy::S3Fifo,
            ago_s: 300,
        };
        let evicted = "node-1/0 evicted it from its host tier 5 min ago: `s3-fifo` let it go for others";
        assert_eq!(why(vec![Ok(Explained::Gone(departure))]), evicted);
        let since = |since| vec![Ok(Explained::Unknown { since, for_s: 7300 })];
        assert!(why(since(Since::Began)).starts_with("it was never stored"), "{}", why(since(Since::Began)));
        assert!(why(since(Since::Placed)).contains("its slot came to its replicas 2 h ago"));
        assert!(why(since(Since::Forgotten)).contains("neither come nor gone for 2 h"));
        let silent = why(vec![Err(Silence::NoLease), Err(Silence::Unreachable("refused".to_owned()))]);
        assert_eq!(
            silent,
            "whoever may have it did not answer: node-1/0 has no lease, and serves nothing by this map; node-2/0 cannot be reached (refused)"
        );
    }

    #[test]
    fn every_reason_has_words_and_advice_of_its_own() {
        let mut sentences = std::collections::BTreeSet::new();
        for why in Gone::ALL {
            let departure = Departure { why, from: Some(BlockTier::Host), strategy: Strategy::Lru, ago_s: 9 };
            let explanation = explanation(vec![Ok(Explained::Gone(departure))]);
            let block = &explanation.blocks[0];
            assert_eq!(block.verdict.name(), why.as_str());
            assert!(!explanation.what_to_do(block).is_empty());
            sentences.insert(explanation.why(block));
        }
        assert_eq!(sentences.len(), Gone::ALL.len());
    }

    #[test]
    fn nodes_that_are_down_are_named_where_something_is_missing() {
        let mut explanation = explanation(vec![Ok(Explained::Coming)]);
        explanation.down = (1..=NAMED + 2).map(|number| format!("n{number}")).collect();
        assert!(explanation.notes()[0].starts_with("down: n1, n2, n3, n4, n5, n6, n7, n8 and 2 more;"));
        explanation.blocks.clear();
        assert_eq!(explanation.notes(), [""; 0], "nothing is missing");
    }

    #[test]
    fn a_time_without_lease_is_noted_once_a_node() {
        let mut explanation = explanation(vec![Ok(Explained::Coming)]);
        let second = DeviceId::new(MemberId(1), 1);
        explanation.nodes.insert(second, "node-1".to_owned());
        let lapse = Lapse { ago_s: 30, for_ms: 2500 };
        explanation.lapses = BTreeMap::from([(device(1), lapse), (second, lapse)]);
        assert_eq!(
            explanation.notes(),
            ["node-1 had no serving lease for 2.5 s until 30 s ago: what it holds was a miss then"]
        );
    }
}
