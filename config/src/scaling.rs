//! `[scaling]`: how many nodes there are to be, and who starts and ends them. The policy is what a cluster begins with; the
//! coordinators' log has it from then on.

use crate::keys::{Absent, Key, Rule};
use crate::ledger::Ledger;
use crate::parse;
use crate::section::Section;
use std::time::Duration;

/// How a cluster's size may change when it is first started, and by whom processes are started and ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScalingSettings {
    /// What is made of a recommended size.
    pub mode: ScalingMode,
    /// The fewest nodes.
    pub floor: u32,
    /// The most nodes; not fewer than `floor`.
    pub ceiling: u32,
    /// How much of what the most nodes would cover is to be covered, in thousandths.
    pub keep_per_mille: u16,
    /// The least time between a change and one to more nodes; whole seconds.
    pub up_cooldown: Duration,
    /// How long fewer nodes must have been enough; whole seconds.
    pub down_cooldown: Duration,
    /// How far ahead load is foreseen; whole seconds.
    pub look_ahead: Duration,
    /// How long requests may wait for their device, on average.
    pub max_queue: Duration,
    /// Who starts and ends nodes.
    pub executor: Executor,
}

/// What is made of a recommended size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ScalingMode {
    /// None is made.
    Off,
    /// It is shown: a dry run.
    Advise,
    /// Whoever follows it gives the cluster that size.
    Act,
}

impl ScalingMode {
    const ALL: [ScalingMode; 3] = [ScalingMode::Off, ScalingMode::Advise, ScalingMode::Act];

    /// Returns the word for it in the cluster file.
    pub const fn as_str(self) -> &'static str {
        match self {
            ScalingMode::Off => "off",
            ScalingMode::Advise => "advise",
            ScalingMode::Act => "act",
        }
    }
}

/// Who starts and ends nodes for `kvhive scale`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Executor {
    /// The supervisor of a cluster on this machine.
    Local,
    /// Kubernetes: `NAMESPACE/NAME` or `NAME` of a StatefulSet.
    StatefulSet(String),
    /// A program and its words.
    Program(Vec<String>),
}

/// The most words of a program, and bytes of each.
const MAX_WORDS: usize = 64;
const DAY_MS: u64 = 24 * 3_600_000;

macro_rules! key {
    ($name:literal, $rule:expr, $absent:expr, $meaning:literal) => {
        Key { name: $name, rule: $rule, absent: $absent, meaning: $meaning }
    };
}

/// `[scaling]`.
pub(crate) const SCALING: &[Key] = &[
    key!(
        "mode",
        Rule::Choice(&["off", "advise", "act"]),
        Absent::Value("off"),
        "What is made of the size that the load asks for: nothing, it is shown (a dry run), or `kvhive scale follow` gives the cluster that \
         size."
    ),
    key!("floor", Rule::Whole { min: 1, max: 1024 }, Absent::Value("1"), "The fewest nodes."),
    key!(
        "ceiling",
        Rule::Whole { min: 1, max: 1024 },
        Absent::Value("16"),
        "The most nodes; at least `floor`."
    ),
    key!(
        "keep",
        Rule::Share { min: 500, max: 1000 },
        Absent::Value("0.95"),
        "The fewest nodes are recommended that cover, over a day, this share of what `ceiling` nodes would."
    ),
    key!(
        "up_cooldown",
        Rule::Time { min: 0, max: DAY_MS },
        Absent::Value("600s"),
        "The least time between a change and one to more nodes, in whole seconds."
    ),
    key!(
        "down_cooldown",
        Rule::Time { min: 0, max: DAY_MS },
        Absent::Value("3600s"),
        "How long fewer nodes must have been enough before they are recommended, in whole seconds; also the least time since a change. \
         Three times as long after a change to more."
    ),
    key!(
        "look_ahead",
        Rule::Time { min: 0, max: DAY_MS },
        Absent::Value("1800s"),
        "How far ahead load is foreseen, in whole seconds: what it takes to start a node and fill it."
    ),
    key!(
        "max_queue",
        Rule::Time { min: 1, max: 60_000 },
        Absent::Value("20ms"),
        "Requests that wait for longer for their device, on average, ask for more nodes."
    ),
    key!(
        "statefulset",
        Rule::StatefulSet,
        Absent::Derived("the supervisor of a local cluster, or `program`"),
        "The StatefulSet whose size `kvhive scale to|follow --config FILE` changes by the Kubernetes API; looked at there alone, and whenever \
         that is run."
    ),
    key!(
        "program",
        Rule::Words { most: MAX_WORDS },
        Absent::Derived("none; see `statefulset`"),
        "Program that starts and ends nodes for `kvhive scale to|follow --config FILE`, and its words, of which `{count}` stands for the size \
         and `{name}` for a node that comes or leaves. No shell reads them."
    ),
];

impl ScalingSettings {
    pub(crate) fn read(section: &Section<'_>, ledger: &mut Ledger) -> ScalingSettings {
        let whole = |name, ledger: &mut Ledger| {
            let number = section.read(ledger, name, parse::whole).unwrap_or(1);
            u32::try_from(number).expect("the key's rule bounds it by 1024")
        };
        let seconds =
            |name, ledger: &mut Ledger| section.read(ledger, name, parse::seconds).unwrap_or_default();
        let mode =
            section.read(ledger, "mode", parse::choice).map_or(ScalingMode::Off, |at| ScalingMode::ALL[at]);
        let (floor, ceiling) = (whole("floor", ledger), whole("ceiling", ledger));
        let key = "scaling.ceiling";
        if ceiling < floor && ledger.is_good(key) && ledger.is_good("scaling.floor") {
            ledger.conflict(key, format!("allowed is at least scaling.floor, which is {floor}"));
        }
        let set = section.read(ledger, "statefulset", parse::statefulset);
        let program = section.read(ledger, "program", parse::words);
        if set.is_some() && program.is_some() {
            ledger.conflict(
                "scaling.program",
                "scaling.statefulset says already who starts nodes; allowed is one of them".to_owned(),
            );
        }
        let executor = match (set, program) {
            (Some(set), _) => Executor::StatefulSet(set),
            (None, Some(program)) => Executor::Program(program),
            (None, None) => Executor::Local,
        };
        ScalingSettings {
            mode,
            floor,
            ceiling,
            keep_per_mille: section.read(ledger, "keep", parse::share).unwrap_or_default(),
            up_cooldown: seconds("up_cooldown", ledger),
            down_cooldown: seconds("down_cooldown", ledger),
            look_ahead: seconds("look_ahead", ledger),
            max_queue: section.read(ledger, "max_queue", parse::time).unwrap_or_default(),
            executor,
        }
    }
}
