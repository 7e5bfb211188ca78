//! Block events as vLLM publishes them: msgpack, a batch as an array, each event as a tagged map.

use super::ledger::{Medium, Told};
use super::names::{Name, Named};
use rmp::encode as put;
use std::sync::Arc;

/// Writing to memory fails for nobody.
const WRITES: &str = "memory takes what is written";

/// What is told, blocks that follow one another together.
enum Event<'a> {
    Stored(Vec<&'a Arc<Named>>, Medium),
    Removed(Vec<&'a Name>, Medium),
}

/// Encodes one batch: what happened, in its order. With `anew` it begins by saying that nothing is there.
pub(super) fn batch(at_us: u64, anew: bool, told: &[Told]) -> Vec<u8> {
    let events = gather(told);
    let mut out = Vec::with_capacity(64 + 96 * told.len());
    put::write_array_len(&mut out, 3).expect(WRITES);
    put::write_f64(&mut out, at_us as f64 / 1e6).expect(WRITES);
    put::write_array_len(&mut out, events.len() as u32 + u32::from(anew)).expect(WRITES);
    if anew {
        put::write_map_len(&mut out, 1).expect(WRITES);
        text(&mut out, "type");
        text(&mut out, "AllBlocksCleared");
    }
    for event in &events {
        match event {
            Event::Stored(blocks, medium) => stored(&mut out, blocks, *medium),
            Event::Removed(names, medium) => removed(&mut out, names, *medium),
        }
    }
    // The data-parallel rank: there is one of us.
    put::write_uint(&mut out, 0).expect(WRITES);
    out
}

fn gather(told: &[Told]) -> Vec<Event<'_>> {
    let mut events: Vec<Event<'_>> = Vec::new();
    for one in told {
        match (events.last_mut(), one) {
            (Some(Event::Stored(blocks, of)), Told::Stored(block, medium))
                if of == medium && blocks.last().is_some_and(|last| follows(last, block)) =>
            {
                blocks.push(block);
            }
            (Some(Event::Removed(names, of)), Told::Removed(name, medium)) if of == medium => {
                names.push(name)
            }
            (_, Told::Stored(block, medium)) => events.push(Event::Stored(vec![block], *medium)),
            (_, Told::Removed(name, medium)) => events.push(Event::Removed(vec![name], *medium)),
        }
    }
    events
}

/// Says whether one event can tell of both: the second is the child of the first, and as long.
fn follows(first: &Named, second: &Named) -> bool {
    second.parent.as_ref() == Some(&first.hash)
        && second.tokens.len() == first.tokens.len()
        && second.adapter == first.adapter
}

fn stored(out: &mut Vec<u8>, blocks: &[&Arc<Named>], medium: Medium) {
    let Some(first) = blocks.first() else { return };
    put::write_map_len(out, 9).expect(WRITES);
    text(out, "type");
    text(out, "BlockStored");
    text(out, "block_hashes");
    put::write_array_len(out, blocks.len() as u32).expect(WRITES);
    blocks.iter().for_each(|block| name(out, &block.hash));
    text(out, "parent_block_hash");
    match &first.parent {
        Some(parent) => name(out, parent),
        None => put::write_nil(out).expect(WRITES),
    }
    text(out, "token_ids");
    put::write_array_len(out, (blocks.len() * first.tokens.len()) as u32).expect(WRITES);
    for token in blocks.iter().flat_map(|block| &block.tokens) {
        put::write_uint(out, u64::from(*token)).expect(WRITES);
    }
    text(out, "block_size");
    put::write_uint(out, first.tokens.len() as u64).expect(WRITES);
    // vLLM's own reader wants both to be there, whatever they are.
    text(out, "lora_id");
    put::write_nil(out).expect(WRITES);
    text(out, "lora_name");
    match &first.adapter {
        Some(adapter) => text(out, adapter),
        None => put::write_nil(out).expect(WRITES),
    }
    place(out, medium);
}

fn removed(out: &mut Vec<u8>, names: &[&Name], medium: Medium) {
    put::write_map_len(out, 4).expect(WRITES);
    text(out, "type");
    text(out, "BlockRemoved");
    text(out, "block_hashes");
    put::write_array_len(out, names.len() as u32).expect(WRITES);
    names.iter().for_each(|one| name(out, one));
    place(out, medium);
}

fn place(out: &mut Vec<u8>, medium: Medium) {
    text(out, "medium");
    text(out, medium.name());
    text(out, "locality");
    text(out, "REMOTE");
}

fn name(out: &mut Vec<u8>, name: &Name) {
    match name {
        Name::Number(number) => {
            put::write_uint(out, *number).expect(WRITES);
        }
        Name::Bytes(bytes) => put::write_bin(out, bytes).expect(WRITES),
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    put::write_str(out, text).expect(WRITES);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::format;
    use kvhive_control::routing::{CacheEvent, EngineHash};

    fn block(hash: u64, parent: Option<u64>, depth: u32) -> Arc<Named> {
        let tokens = vec![depth; 4];
        let parent = parent.map(Name::Number);
        Arc::new(Named { hash: Name::Number(hash), parent, tokens, adapter: Some("a".into()), depth })
    }

    /// What our own reader of engines' events makes of it.
    fn read(anew: bool, told: &[Told]) -> Vec<CacheEvent> {
        let payload = batch(1_500_000, anew, told);
        let (batch, ignored) = format::batch(7, &payload, 4).expect("it is a batch");
        assert_eq!((batch.at_us, ignored), (1_500_000, 0));
        batch.events
    }

    #[test]
    fn what_is_told_is_read_as_an_engines_own_events_are() {
        let told = [
            Told::Stored(block(1, None, 0), Medium::Memory),
            Told::Stored(block(2, Some(1), 1), Medium::Memory),
            Told::Stored(block(2, Some(1), 1), Medium::Disk),
            Told::Removed(Name::Number(9), Medium::Memory),
            Told::Removed(Name::Bytes(vec![1, 2]), Medium::Memory),
        ];
        let events = read(true, &told);
        assert_eq!(events.len(), 4);
        assert_eq!(events[0], CacheEvent::Cleared);
        let CacheEvent::Stored { parent: None, blocks, .. } = &events[1] else { panic!("{events:?}") };
        let hashes: Vec<EngineHash> = blocks.iter().map(|block| block.hash).collect();
        assert_eq!(hashes, [EngineHash(1), EngineHash(2)]);
        assert!(blocks.iter().all(|block| block.content.is_some()), "their tokens are told");
        let CacheEvent::Stored { parent: Some(EngineHash(1)), .. } = &events[2] else { panic!("{events:?}") };
        let CacheEvent::Removed { hashes, .. } = &events[3] else { panic!("{events:?}") };
        assert_eq!(hashes[..], [EngineHash(9), EngineHash(0x0102)]);
    }

    #[test]
    fn a_batch_of_nothing_is_one_all_the_same() {
        assert_eq!(read(false, &[]), []);
    }
}
