//! What requests ask, and what is refused.

use super::*;
use std::time::Duration;

fn read(line: &str) -> Parsed {
    let args = line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
    Command::read(&Request { args, too_long: None }, UNIX_EPOCH + Duration::from_secs(100), 1000)
}

fn set(line: &str) -> (When, Life, Says) {
    match read(line) {
        Ok(Command::Values(Ask::Set(set))) => {
            assert_eq!((&set.name[..], &set.value[..]), (&b"k"[..], &b"v"[..]));
            (set.when, set.life, set.says)
        }
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn every_way_to_set_says_when_and_for_how_long() {
    for (line, expected) in [
        ("SET k v", (When::Always, Life::Open, Says::Done)),
        ("set k v ex 5", (When::Always, Life::Ms(5000), Says::Done)),
        ("SET k v PX 5 NX", (When::Absent, Life::Ms(5), Says::Done)),
        ("SET k v XX KEEPTTL", (When::Present, Life::Kept, Says::Done)),
        ("SET k v GET EXAT 102", (When::Always, Life::Ms(2000), Says::Before)),
        ("SET k v PXAT 99000", (When::Always, Life::Ms(1), Says::Done)),
        ("SETNX k v", (When::Absent, Life::Open, Says::Number)),
        ("SETEX k 5 v", (When::Always, Life::Ms(5000), Says::Done)),
        ("PSETEX k 5 v", (When::Always, Life::Ms(5), Says::Done)),
    ] {
        assert_eq!(set(line), expected, "{line}");
    }
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    for (line, says) in [
        ("FLUSHALL", "unknown command 'FLUSHALL'; see COMMAND for those that kvhive has"),
        ("GET", "wrong number of arguments for 'get' command"),
        ("GET a b", "wrong number of arguments for 'get' command"),
        ("MSET a 1 b", "wrong number of arguments for 'mset' command"),
        ("PING a b", "wrong number of arguments for 'ping' command"),
        ("SET k v EX 0", "invalid expire time in 'set' command"),
        ("SET k v EX x", "value is not an integer or out of range"),
        ("SET k v EX 9223372036854775807", "invalid expire time in 'set' command"),
        ("SET k v EX 1 PX 1", "syntax error"),
        ("SET k v EX 1 KEEPTTL", "syntax error"),
        ("SET k v NX XX", "syntax error"),
        ("SET k v EX", "syntax error"),
        ("SET k v IFEQ 1", "syntax error"),
        ("SCAN -1", "invalid cursor"),
        ("SCAN 0 COUNT 0", "value is not an integer or out of range"),
        ("SCAN 0 MATCH", "syntax error"),
        ("SELECT x", "value is not an integer or out of range"),
        ("CONFIG SET a b", "kvhive has no CONFIG SET with these arguments"),
        ("CLIENT KILL ID 1", "kvhive has no CLIENT KILL with these arguments"),
        ("HELLO three", "Protocol version is not an integer or out of range"),
        ("AUTH a b c", "syntax error"),
    ] {
        assert_eq!(read(line), Err(Reply::wrong(says)), "{line}");
    }
    let long = format!("GET {}", "x".repeat(MAX_NAME_BYTES + 1));
    assert_eq!(read(&long), Err(Reply::wrong("a key of 4097 bytes; allowed are 4096")));
    let too_long =
        Request { args: [&b"SET"[..], b"k", b""].map(Bytes::from_static).to_vec(), too_long: Some(2000) };
    let refused = Command::read(&too_long, UNIX_EPOCH, 1000);
    assert_eq!(refused, Err(Reply::wrong("an argument of 2000 bytes; allowed are 1000 (redis_max_value)")));
}

#[test]
fn scans_say_where_and_what() {
    let scan = |cursor, pattern: Option<&'static str>, count, nothing| {
        let pattern = pattern.map(|pattern| Bytes::from_static(pattern.as_bytes()));
        Ok(Command::Values(Ask::Scan(Scan { cursor, pattern, count, nothing })))
    };
    assert_eq!(read("SCAN 0"), scan(0, None, 10, false));
    assert_eq!(read("SCAN 7 MATCH a* COUNT 99999"), scan(7, Some("a*"), 1000, false));
    assert_eq!(read("SCAN 0 TYPE string"), scan(0, None, 10, false));
    assert_eq!(read("SCAN 0 TYPE hash"), scan(0, None, 10, true));
}

#[test]
fn every_command_of_the_table_is_read() {
    let mut names: Vec<&str> = COMMANDS.iter().map(|(name, _)| *name).collect();
    for (name, arity) in COMMANDS {
        let args = std::iter::once(*name).chain(std::iter::repeat_n("1", arity.unsigned_abs() as usize - 1));
        let line: Vec<&str> = args.collect();
        let refused = format!("{:?}", read(&line.join(" ")));
        assert!(!refused.contains("unknown command"), "{refused}");
        assert!(!refused.contains("wrong number"), "{refused}");
    }
    names.sort_unstable();
    assert!(names.iter().eq(COMMANDS.iter().map(|(name, _)| name)), "they are in order");
}
