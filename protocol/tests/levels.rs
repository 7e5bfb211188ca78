//! What builds of older levels say is read by this one. Under `levels/` is what such a build's own code wrote, before the next level was made: the
//! golden requests, answers, commands and blocks' headers that its tests had. These files never change; a new level gets the one of the level before
//! it (the header of each says from where, and what it has otherwise than there).

use kvhive_protocol::block::HEADER_BYTES;
use kvhive_protocol::control::Command;
use kvhive_protocol::data::{DataReply, DataRequest};
use kvhive_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameLimits, Kind};
use kvhive_protocol::map::Tenant;
use kvhive_protocol::{BlockHeader, Level, codec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// What builds of the first levels said, whose frames were of version 1. A later build speaks these levels in frames of version 2.
const OLDER_FRAMES: [(Level, &str); 2] =
    [(Level(1), include_str!("levels/1.txt")), (Level(2), include_str!("levels/2.txt"))];

/// What each level after them said, as a build of it wrote it.
const LEVELS: [(Level, &str); 6] = [
    (Level(3), include_str!("levels/3.txt")),
    (Level(4), include_str!("levels/4.txt")),
    (Level(5), include_str!("levels/5.txt")),
    (Level(6), include_str!("levels/6.txt")),
    (Level(7), include_str!("levels/7.txt")),
    (Level(8), include_str!("levels/8.txt")),
];

/// The messages of a level: what each is, and its bytes.
fn messages(text: &'static str) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| {
        let (what, digits) = line.split_once(' ').expect("a word and digits");
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("two digits");
        (what, (0..digits.len()).step_by(2).map(byte).collect())
    })
}

/// Reads a message, and what this build writes of it.
fn read<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8], whence: &str) {
    let message: T = codec::decode(bytes).unwrap_or_else(|error| panic!("{whence}: {error}"));
    let written = codec::encode(&message).expect("it was small");
    assert_eq!(codec::decode::<T>(&written).as_ref(), Ok(&message), "{whence}");
    // Structs may have grown since: an older build passes over what they have more. Nothing is said in fewer bytes.
    assert!(written.len() >= bytes.len(), "{whence}");
}

#[test]
fn every_level_that_is_spoken_has_what_it_said() {
    let there: Vec<u16> = OLDER_FRAMES.iter().chain(&LEVELS).map(|(level, _)| level.0).collect();
    let spoken: Vec<u16> = (Level::OLDEST.0..Level::NEWEST.0).collect();
    assert_eq!(there, spoken, "the golden messages of the level before the newest are to be kept");
    for (level, text) in LEVELS {
        let count = |word: &str| messages(text).filter(|(what, _)| *what == word).count();
        let few = ["request", "reply", "command", "tenant", "header"].map(count);
        assert!(few.iter().all(|count| *count > 0), "level {level}: {few:?}");
    }
}

#[test]
fn a_build_whose_frames_are_of_another_version_is_told_so() {
    for (level, text) in OLDER_FRAMES {
        let (_, bytes) = messages(text).next().expect("a request");
        let head = bytes.first_chunk().expect("a header");
        let refused = FrameHeader::decode(head, FrameLimits::OPEN).expect_err("it is of another version");
        let said = refused.to_string();
        assert!(said.contains("frame of version 1, this build speaks 2"), "level {level}: {said}");
    }
}

#[test]
fn what_older_levels_said_is_read_as_it_was_meant() {
    for (level, text) in LEVELS {
        for (at, (what, bytes)) in messages(text).enumerate() {
            let whence = format!("level {level}, message {at}, a {what}");
            match what {
                "request" | "reply" => {
                    let (head, message) =
                        bytes.split_first_chunk::<FRAME_HEADER_BYTES>().expect("a header and a message");
                    let header = FrameHeader::decode(head, FrameLimits::OPEN).expect(&whence);
                    header.verify(head, message).expect(&whence);
                    match header.kind {
                        Kind::DataRequest => read::<DataRequest>(message, &whence),
                        Kind::DataReply => read::<DataReply>(message, &whence),
                        kind => panic!("{whence} is a {kind:?}"),
                    }
                }
                "command" => read::<Command>(&bytes, &whence),
                "tenant" => read::<Tenant>(&bytes, &whence),
                "header" => {
                    let bytes: &[u8; HEADER_BYTES] = bytes[..].try_into().expect("it has its length");
                    assert_eq!(BlockHeader::decode(bytes).expect(&whence).encode(), *bytes, "{whence}");
                }
                other => panic!("{whence}: what is a {other:?}"),
            }
        }
    }
}
