//! By what the blocks of an engine's prompts are asked for in kvhive, where its own hashes name them.

use super::*;
use kvhive_control::routing::MAX_KNOWN_BLOCKS;
use kvhive_protocol::engines::EngineBlocks;
use kvhive_protocol::{Layout, TenantId};
use kvhive_runtime::BootClock;
use rmpv::Value;

fn engine(name: &str, named_by: NamedBy) -> Engine {
    Engine {
        name: name.to_owned(),
        model: "vllm#0123/0".to_owned(),
        tenant: TenantId(1),
        block_tokens: 4,
        events: "127.0.0.1:9".to_owned(),
        replay: None,
        topic: String::new(),
        node: None,
        blocks: Some(EngineBlocks { layout: Layout::opaque(4096, 4), rank: 0, named_by }),
    }
}

fn followed(named_by: NamedBy) -> One {
    let engine = engine("vllm-0", named_by);
    let hashes = is_named_by_hashes(&engine).then(|| Arc::new(Mutex::new(Hashes::new(MAX_KNOWN_BLOCKS))));
    One::new(engine, MAX_KNOWN_BLOCKS, None, hashes, Arc::default())
}

/// A batch that tells of two blocks by all of their hashes, of a prompt with a salt.
fn told() -> Vec<u8> {
    let text = |text: &str| Value::from(text);
    let hashes = vec![Value::Binary(vec![1; 32]), Value::Binary(vec![2; 32])];
    let event = Value::Map(vec![
        (text("type"), text("BlockStored")),
        (text("block_hashes"), Value::Array(hashes)),
        (text("parent_block_hash"), Value::Nil),
        (text("token_ids"), Value::Array((0..8).map(Value::from).collect())),
        (text("block_size"), 4.into()),
        (text("lora_name"), Value::Nil),
        (text("extra_keys"), Value::Array(vec![Value::Array(vec![text("mine")]), Value::Nil])),
    ]);
    let mut out = Vec::new();
    let batch = Value::Array(vec![Value::F64(1.0), Value::Array(vec![event])]);
    rmpv::encode::write_value(&mut out, &batch).expect("a vector takes all");
    out
}

fn salted() -> Prompt {
    Prompt::Tokens { tokens: (0..11).collect(), adapter: None, salt: Some("mine".to_owned()) }
}

fn whole() -> Prompt {
    Prompt::Hashes { hashes: vec![BlockHash(vec![1; 32]), BlockHash(vec![2; 32])], tokens: 0 }
}

#[test]
fn tokens_and_cut_hashes_are_asked_for_by_hashes_in_full() {
    let one = followed(NamedBy::Hashes);
    assert_eq!(*one.named(&salted()), salted(), "nothing was told yet");
    one.learn(&told());
    assert_eq!(*one.named(&salted()), whole());
    let cut = Prompt::Hashes { hashes: vec![BlockHash(vec![1; 8]), BlockHash(vec![2; 8])], tokens: 0 };
    assert_eq!(*one.named(&cut), whole());
}

#[test]
fn blocks_that_are_named_by_tokens_are_asked_for_by_tokens() {
    let one = followed(NamedBy::Tokens);
    one.learn(&told());
    assert_eq!(*one.named(&salted()), salted());
}

#[tokio::test]
async fn figures_say_how_many_hashes_are_remembered_may_be_and_were_forgotten() {
    let engines = Engines::new(Vec::new(), Vec::new(), None, None, Arc::new(BootClock));
    let wanted = |named: &[(&str, NamedBy)]| -> BTreeMap<String, Engine> {
        named.iter().map(|(name, named_by)| ((*name).to_owned(), engine(name, *named_by))).collect()
    };
    let mut lines = BTreeMap::new();
    let (one, two) = (("vllm-0", NamedBy::Hashes), ("vllm-1", NamedBy::Hashes));
    engines.follow(&wanted(&[one, two, ("vllm-2", NamedBy::Tokens)]), &mut lines);
    for name in ["vllm-0", "vllm-1", "vllm-2"] {
        engines.one(name).expect("it is followed").learn(&told());
    }
    // The two share a list, to which each brings its room; the third has none.
    let room = MAX_KNOWN_BLOCKS as u64;
    assert_eq!(engines.hash_figures(), HashFigures { known: 2, room: 2 * room, dropped: 0 });
    engines.one("vllm-0").expect("it is followed").change(|hashes| hashes.set_room(1));
    assert_eq!(engines.hash_figures(), HashFigures { known: 1, room: 1, dropped: 1 });
    engines.follow(&wanted(&[two]), &mut lines);
    assert_eq!(engines.hash_figures(), HashFigures { known: 1, room, dropped: 1 });
    engines.follow(&BTreeMap::new(), &mut lines);
    assert_eq!(engines.hash_figures(), HashFigures { known: 0, room: 0, dropped: 1 }, "it never goes down");
}
