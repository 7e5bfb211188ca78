//! A node of today and clients that speak an older level: what such a build asked, to the byte, is answered and not taken for damage.

use super::{Setup, TOKEN};
use kvhive_protocol::data::{DataReply, DataRequest};
use kvhive_protocol::frame::{FRAME_HEADER_BYTES, Kind};
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_protocol::{Level, Levels, WireError, codec};
use kvhive_wire::{Connection, Fault, Identity};
use serde::ser::{Serialize, SerializeTuple, Serializer};
use std::time::Duration;

/// What each level said whose frames are read (`protocol/tests/levels.rs`).
const LEVELS: [(u16, &str); 6] = [
    (3, include_str!("../../../protocol/tests/levels/3.txt")),
    (4, include_str!("../../../protocol/tests/levels/4.txt")),
    (5, include_str!("../../../protocol/tests/levels/5.txt")),
    (6, include_str!("../../../protocol/tests/levels/6.txt")),
    (7, include_str!("../../../protocol/tests/levels/7.txt")),
    (8, include_str!("../../../protocol/tests/levels/8.txt")),
];
const LIMIT: Duration = Duration::from_secs(20);

/// A message that is written as these bytes.
struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut all = serializer.serialize_tuple(self.0.len())?;
        self.0.iter().try_for_each(|byte| all.serialize_element(byte))?;
        all.end()
    }
}

/// The messages of a level's golden requests.
fn requests(text: &'static str) -> impl Iterator<Item = Vec<u8>> {
    text.lines().filter_map(|line| line.strip_prefix("request ")).map(|digits| {
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("two digits");
        (2 * FRAME_HEADER_BYTES..digits.len()).step_by(2).map(byte).collect()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_builds_of_older_levels_ask_is_answered() {
    let (_coordinator, node) = Setup::default().one().await;
    for (level, text) in LEVELS {
        let identity = Identity {
            token: TokenKey::new(TOKEN),
            role: Role::Client,
            sender: 0,
            cluster: None,
            tls: None,
            levels: Levels::up_to(Level(level)),
        };
        let address = node.data_address().to_string();
        let mut asked = 0;
        for message in requests(text) {
            let request: DataRequest = codec::decode(&message).expect("protocol/tests/levels.rs reads it");
            let payload: u64 = match &request {
                DataRequest::Store(store) => {
                    store.blocks.iter().map(|block| block.header.payload_bytes).sum()
                }
                // Nobody answers that.
                DataRequest::Done(_) => continue,
                _ => 0,
            };
            asked += 1;
            // Each by itself: some of these contradict themselves, which ends a connection.
            let (mut connection, peer) =
                Connection::connect(&address, &identity, LIMIT).await.expect("it is let in");
            assert_eq!(peer.level, Level(level));
            let payload = vec![0; payload as usize];
            connection
                .send(Kind::DataRequest, asked, &Raw(&message), &[&payload])
                .await
                .expect("the connection stands");
            match connection.receive_answer::<DataReply>(Kind::DataReply, asked).await {
                Ok(_) => {}
                // It was read, and is refused for what it says.
                Err(Fault::Refused(WireError::Malformed { detail })) => {
                    assert!(!detail.contains("does not decode"), "level {level}: {request:?}: {detail}");
                }
                Err(Fault::Refused(_)) => {}
                Err(fault) => panic!("level {level}: {request:?} ends the connection: {fault}"),
            }
        }
        assert!(asked >= 4, "level {level} has {asked} requests");
    }
}
