//! Commands as builds of older levels wrote them down are read from the log and applied by this one.

use kvhive_control::Registry;
use kvhive_protocol::control::{Command, Proposal};
use kvhive_protocol::data::Ack;
use kvhive_protocol::map::Settings;
use kvhive_protocol::{ClusterId, Level, MemberState, RequestId, codec};

/// What each level said whose frames are read (`protocol/tests/levels.rs`).
const LEVELS: [(u16, &str); 6] = [
    (3, include_str!("../../../protocol/tests/levels/3.txt")),
    (4, include_str!("../../../protocol/tests/levels/4.txt")),
    (5, include_str!("../../../protocol/tests/levels/5.txt")),
    (6, include_str!("../../../protocol/tests/levels/6.txt")),
    (7, include_str!("../../../protocol/tests/levels/7.txt")),
    (8, include_str!("../../../protocol/tests/levels/8.txt")),
];

fn commands(text: &'static str) -> impl Iterator<Item = Command> {
    text.lines().filter_map(|line| line.strip_prefix("command ")).map(|digits| {
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("two digits");
        let bytes: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
        codec::decode(&bytes).expect("protocol/tests/levels.rs reads it")
    })
}

#[test]
fn what_older_levels_wrote_to_the_log_is_applied() {
    for (level, text) in LEVELS {
        let begin = Command::Bootstrap {
            cluster: ClusterId(42),
            name: "laptop".into(),
            settings: Settings {
                replicas: 1,
                segment_blocks: 16,
                ack: Ack::Primary,
                lease_ms: 1000,
                heartbeat_ms: 200,
                serving_lease_ms: 1000,
            },
            default_secret: [7; 32],
            scaling: Default::default(),
            coordinators: Vec::new(),
            level: Level(level),
        };
        let mut registry = Registry::new();
        let all = std::iter::once(begin).chain(commands(text));
        for (at, command) in (1u64..).zip(all) {
            let request = RequestId { client: 1, sequence: at };
            registry.apply(at, Proposal { request, command });
        }
        let map = registry.map().expect("it was started");
        let member = map.members.values().find(|member| member.name == "node-a").expect("it has registered");
        assert_eq!(member.state, MemberState::Up, "level {level}");
        let snapshot = registry.snapshot();
        let again = Registry::restore(&snapshot).expect("it was written by this build");
        assert_eq!(again.snapshot(), snapshot, "level {level}");
    }
}
