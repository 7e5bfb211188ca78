//! Batches as engines of several releases write them, and bytes that no engine writes.

use super::*;
use kvhive_control::routing::{Asked, EngineHash, Index};
use kvhive_protocol::routing::Prompt;
use rmpv::Value;

fn s(text: &str) -> Value {
    Value::from(text)
}

fn list(values: impl IntoIterator<Item = Value>) -> Value {
    Value::Array(values.into_iter().collect())
}

fn map<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Map(pairs.into_iter().map(|(name, value)| (s(name), value)).collect())
}

fn encoded(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).expect("it encodes");
    bytes
}

fn read(events: impl IntoIterator<Item = Value>) -> (Batch, u64) {
    let bytes = encoded(&list([Value::from(12.5), list(events), Value::Nil]));
    batch(3, &bytes, 4).expect("it is a batch")
}

fn tokens(range: std::ops::Range<u32>) -> Value {
    list(range.map(Value::from))
}

/// How many blocks of eight tokens from 0 on are found after these events.
fn found(batch: &Batch, adapter: Option<&str>, salt: Option<&str>) -> u64 {
    let mut index = Index::new(100);
    for event in &batch.events {
        index.apply(event);
    }
    let (adapter, salt) = (adapter.map(str::to_owned), salt.map(str::to_owned));
    let asked = Asked::of(&Prompt::Tokens { tokens: (0..8).collect(), adapter, salt }, 4);
    index.covers(&asked).blocks()
}

#[test]
fn newest_and_older_releases_say_the_same() {
    let newest = map([
        ("type", s("BlockStored")),
        ("block_hashes", list([Value::Binary(vec![9; 32]), Value::Binary(vec![8; 32])])),
        ("parent_block_hash", Value::Nil),
        ("token_ids", tokens(0..8)),
        ("block_size", Value::from(4)),
        ("medium", s("GPU")),
        ("extra_keys", Value::Nil),
        ("group_idx", Value::from(0)),
        ("kv_cache_spec_kind", s("full_attention")),
        ("ownership", map([("of", list([Value::from(1), Value::Boolean(true)]))])),
    ]);
    let hash = |byte| Value::from(u64::from_be_bytes([byte; 8]));
    let older = list([
        s("BlockStored"),
        list([hash(9), hash(8)]),
        Value::Nil,
        tokens(0..8),
        Value::from(4),
        Value::Nil,
        s("GPU"),
    ]);
    let oldest = list([
        s("BlockStored"),
        list([Value::from(i64::from_be_bytes([9; 8])), hash(8)]),
        Value::Nil,
        tokens(0..8),
        Value::from(4),
        Value::Nil,
    ]);
    let (newest, ignored) = read([newest]);
    assert_eq!((newest.sequence, newest.at_us, ignored), (3, 12_500_000, 0));
    assert_eq!(read([older]).0, newest);
    assert_eq!(read([oldest]).0, newest);
    assert_eq!(found(&newest, None, None), 2);
    assert_eq!(found(&newest, Some("poet"), None), 0);
    let (gone, _) = read([
        map([("type", s("BlockRemoved")), ("block_hashes", list([hash(8)])), ("medium", s("CPU"))]),
        list([s("BlockRemoved"), list([hash(9)])]),
        map([("type", s("AllBlocksCleared"))]),
        list([s("AllBlocksCleared")]),
    ]);
    let removed = |byte, medium| CacheEvent::Removed {
        hashes: vec![EngineHash(u64::from_be_bytes([byte; 8]))],
        medium,
        group: 0,
    };
    assert_eq!(
        gone.events,
        [removed(8, Medium::Host), removed(9, Medium::Device), CacheEvent::Cleared, CacheEvent::Cleared]
    );
}

#[test]
fn adapters_and_salts_name_blocks_as_a_prompt_does() {
    let stored = |pairs: Vec<(&str, Value)>| {
        let mut all = vec![
            ("type", s("BlockStored")),
            ("block_hashes", list([Value::from(1), Value::from(2)])),
            ("parent_block_hash", Value::Nil),
            ("token_ids", tokens(0..8)),
            ("block_size", Value::from(4)),
        ];
        all.extend(pairs);
        read([Value::Map(all.into_iter().map(|(name, value)| (s(name), value)).collect())]).0
    };
    let keys = list([list([s("poet"), s("mine")]), list([s("poet")])]);
    let both = stored(vec![("lora_name", s("poet")), ("extra_keys", keys)]);
    assert_eq!(found(&both, Some("poet"), Some("mine")), 2);
    assert_eq!((found(&both, Some("poet"), None), found(&both, None, Some("mine"))), (0, 0));
    let salt = stored(vec![("extra_keys", list([list([s("mine")]), Value::Nil]))]);
    assert_eq!((found(&salt, None, Some("mine")), found(&salt, None, None)), (2, 0));
    let number = stored(vec![("lora_id", Value::from(7))]);
    assert_eq!((found(&number, Some("7"), None), found(&number, None, None)), (2, 0));
    let media = stored(vec![("extra_keys", list([list([list([s("image"), Value::from(3)])]), Value::Nil]))]);
    assert_eq!(found(&media, None, None), 0, "media are in hashes alone");
}

#[test]
fn what_is_not_known_or_not_whole_is_counted_and_left_out() {
    let stored = |group: u64, kind: &str, size: u64| {
        map([
            ("type", s("BlockStored")),
            ("block_hashes", list([Value::from(1), Value::from(2)])),
            ("token_ids", tokens(0..8)),
            ("block_size", Value::from(size)),
            ("group_idx", Value::from(group)),
            ("kv_cache_spec_kind", s(kind)),
        ])
    };
    let (batch, ignored) = read([
        stored(0, "sliding_window", 4),
        stored(8, "full_attention", 4),
        map([("type", s("BlockTouched")), ("when", Value::from(1))]),
        list([s("BlockTouched"), Value::from(1)]),
    ]);
    assert_eq!((batch.events.len(), ignored), (0, 4));
    // Blocks of another size have no names by tokens here, their hashes count all the same.
    let (batch, _) = read([stored(0, "full_attention", 8)]);
    assert_eq!(batch.events[0].blocks(), 2);
    assert_eq!(found(&batch, None, None), 0);
}

#[test]
fn bytes_that_no_engine_writes_are_refused_before_they_cost_anything() {
    let huge = |head: &[u8]| [&[0x93, 0xca, 0, 0, 0, 0][..], head].concat();
    let deep = [&[0x91; 200][..], &[0xc0]].concat();
    let field = |name: &str, value: &[u8]| {
        let mut bytes = huge(&[0x91, 0x82]);
        bytes.extend_from_slice(&encoded(&s("type")));
        bytes.extend_from_slice(&encoded(&s("BlockStored")));
        bytes.extend_from_slice(&encoded(&s(name)));
        bytes.extend_from_slice(value);
        bytes
    };
    for (bytes, says) in [
        (vec![], "cut short"),
        (vec![0x91, 0], "it has 1 parts"),
        (vec![0x80], "an array was expected"),
        (vec![0x92, 0xc0, 0x90], "a time was expected"),
        (huge(&[0xdd, 0xff, 0xff, 0xff, 0xff]), "4294967295 events"),
        (huge(&[0xdd, 0, 0, 0xff, 0xff, 0xc0]), "an event is Nil"),
        (huge(&[0x91, 0x90]), "an empty array"),
        (field("block_hashes", &[0xdd, 0xff, 0xff, 0xff, 0xff]), "more than 262144 blocks"),
        (field("token_ids", &[0xdd, 0xff, 0xff, 0xff, 0xff]), "4294967295 tokens"),
        (field("token_ids", &[0xdd, 0, 0, 0xff, 0xff, 1]), "cut short"),
        (field("extra_keys", &[0xdd, 0xff, 0xff, 0xff, 0xff]), "keys of 4294967295 blocks"),
        (field("extra_keys", &[0x91, 0xdd, 0xff, 0xff, 0xff, 0xff]), "extra keys"),
        (field("medium", &[0xdb, 0xff, 0xff, 0xff, 0xff]), "cut short"),
        (field("other", &deep), "nested deeper"),
        (field("other", &[0xdf, 0xff, 0xff, 0xff, 0xff]), "cut short"),
        (field("other", &[0xc1]), "means nothing"),
    ] {
        let error = batch(0, &bytes, 4).expect_err("it is none").to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
        let _ = batch(0, &bytes, 4);
        let _ = batch(0, &[&[0x92, 0x01, 0x91][..], &bytes].concat(), 4);
    }
}

#[test]
fn blocks_of_a_size_that_none_has_are_counted_and_have_no_names() {
    for size in [u64::MAX, u64::MAX / 2 + 1, 1 << 62, 0] {
        let event = map([
            ("type", s("BlockStored")),
            ("block_hashes", list([Value::from(7), Value::from(8), Value::from(9)])),
            ("token_ids", tokens(0..12)),
            ("block_size", Value::from(size)),
        ]);
        let (batch, ignored) = read([event]);
        assert_eq!((found(&batch, None, None), ignored, batch.events.len()), (0, 0, 1), "{size}");
    }
}
