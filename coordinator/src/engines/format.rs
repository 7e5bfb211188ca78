//! vLLM's and SGLang's cache events: msgpack, read without building more than it says. Events are tagged maps, or arrays as
//! older releases have them. Everything is bounded before it is kept; what is not known is skipped and counted.

use super::raw::{RawBlocks, RawHash, adapter_of, made_of};
use kvhive_control::routing::{Batch, CacheEvent, Content, MAX_GROUPS, MAX_HELD_BLOCKS, Medium, StoredBlock};
use rmp::Marker;
use rmp::decode::{self, RmpRead};
use thiserror::Error;

/// The most events of one batch.
const MAX_EVENTS: usize = 65_536;
/// The most blocks that one batch names.
const MAX_BLOCKS: usize = MAX_HELD_BLOCKS;
/// The most tokens of one event.
const MAX_TOKENS: usize = 4 << 20;
/// The most extra keys of one batch.
const MAX_KEYS: usize = 1 << 20;
/// How deep what is skipped may be nested.
const MAX_DEPTH: usize = 32;

/// Why bytes are no batch of events.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("not a batch of cache events: {0}")]
pub(crate) struct FormatError(String);

fn wrong(what: impl Into<String>) -> FormatError {
    FormatError(what.into())
}

type Read<T> = Result<T, FormatError>;

/// Reads one batch. The second is how many of its events were not understood, or are of groups of layers that keep only a part
/// of a prompt.
pub(crate) fn batch(sequence: u64, payload: &[u8], block_tokens: u32) -> Read<(Batch, u64)> {
    let mut input = Input { rest: payload };
    let parts = input.array()?;
    if parts < 2 {
        return Err(wrong(format!("it has {parts} parts, needed are 2")));
    }
    let at_us = input.time_us()?;
    let count = input.array()?;
    if count > MAX_EVENTS {
        return Err(wrong(format!("it has {count} events, allowed are {MAX_EVENTS}")));
    }
    let mut reader = Reader { block_tokens, blocks: 0, keys: 0, ignored: 0 };
    let mut events = Vec::new();
    for _ in 0..count {
        if let Some(event) = reader.event(&mut input)? {
            events.push(event);
        }
    }
    for _ in 2..parts {
        input.skip(0)?;
    }
    Ok((Batch { sequence, at_us, events }, reader.ignored))
}

/// Tells of the blocks of whole prompts, in blocks of `block_tokens`, that a batch says are stored.
pub(crate) fn stored<'a>(
    payload: &'a [u8],
    block_tokens: u32,
    mut each: impl FnMut(&RawBlocks<'a>),
) -> Read<()> {
    let mut input = Input { rest: payload };
    if input.array()? < 2 {
        return Err(wrong("it has no events"));
    }
    input.time_us()?;
    let count = input.array()?;
    let mut reader = Reader { block_tokens, blocks: 0, keys: 0, ignored: 0 };
    for _ in 0..count.min(MAX_EVENTS) {
        let (tag, fields) = reader.fields(&mut input)?;
        let size = fields.block_size.unwrap_or(block_tokens.into());
        if tag != b"BlockStored" || fields.is_partial || fields.group > 0 || size != u64::from(block_tokens) {
            continue;
        }
        let Fields { hashes, parent, tokens, adapter, adapter_number, extras, .. } = fields;
        let size = block_tokens as usize;
        each(&RawBlocks { parent, hashes, adapter, adapter_number, tokens, size, extras });
    }
    Ok(())
}

/// What one event may say, as far as it matters here.
#[derive(Default)]
struct Fields<'a> {
    hashes: Vec<RawHash<'a>>,
    parent: Option<RawHash<'a>>,
    tokens: Vec<u32>,
    block_size: Option<u64>,
    medium: Option<&'a [u8]>,
    adapter: Option<&'a [u8]>,
    adapter_number: Option<u64>,
    /// Of each block: what else names it.
    extras: Vec<Vec<&'a [u8]>>,
    group: u64,
    /// Its group of layers keeps whole prompts.
    is_partial: bool,
}

/// The order of an event's fields where it is an array.
const STORED: [&str; 11] = [
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
];
const REMOVED: [&str; 3] = ["block_hashes", "medium", "group_idx"];

struct Reader {
    block_tokens: u32,
    blocks: usize,
    keys: usize,
    ignored: u64,
}

impl Reader {
    /// Reads an event: what kind it is, and what it says.
    fn fields<'a>(&mut self, input: &mut Input<'a>) -> Read<(&'a [u8], Fields<'a>)> {
        let mut fields = Fields::default();
        let mut tag: &[u8] = b"";
        match input.marker()? {
            Kind::Map(count) => {
                // The tag need not come first: a name says what its value is all the same.
                for _ in 0..count {
                    let name = input.text()?;
                    if name == b"type" {
                        tag = input.text()?;
                    } else {
                        self.field(&mut fields, name, input)?;
                    }
                }
            }
            Kind::Array(0) => return Err(wrong("an event is an empty array")),
            Kind::Array(count) => {
                tag = input.text()?;
                let names: &[&str] = match tag {
                    b"BlockStored" => &STORED,
                    b"BlockRemoved" => &REMOVED,
                    _ => &[],
                };
                for at in 0..count - 1 {
                    match names.get(at) {
                        Some(name) => self.field(&mut fields, name.as_bytes(), input)?,
                        None => input.skip(0)?,
                    }
                }
            }
            other => return Err(wrong(format!("an event is {other:?}"))),
        }
        Ok((tag, fields))
    }

    fn event(&mut self, input: &mut Input<'_>) -> Read<Option<CacheEvent>> {
        let (tag, fields) = self.fields(input)?;
        let event = match tag {
            b"AllBlocksCleared" => return Ok(Some(CacheEvent::Cleared)),
            b"BlockStored" => self.stored(fields),
            b"BlockRemoved" => removed(fields),
            _ => None,
        };
        self.ignored += u64::from(event.is_none());
        Ok(event)
    }

    fn field<'a>(&mut self, fields: &mut Fields<'a>, name: &[u8], input: &mut Input<'a>) -> Read<()> {
        match name {
            b"block_hashes" => {
                let count = input.array()?;
                self.blocks = self.blocks.saturating_add(count);
                if self.blocks > MAX_BLOCKS {
                    return Err(wrong(format!("it names more than {MAX_BLOCKS} blocks")));
                }
                for _ in 0..count {
                    let hash = input.hash()?.ok_or_else(|| wrong("a block's hash is nil"))?;
                    fields.hashes.push(hash);
                }
            }
            b"parent_block_hash" => fields.parent = input.hash()?,
            b"token_ids" => {
                let count = input.array()?;
                if count > MAX_TOKENS {
                    return Err(wrong(format!("it has {count} tokens, allowed are {MAX_TOKENS}")));
                }
                for _ in 0..count {
                    let token = input.integer()?.ok_or_else(|| wrong("a token is nil"))?;
                    fields.tokens.push(token as u32);
                }
            }
            b"block_size" => fields.block_size = input.integer()?,
            b"medium" => fields.medium = input.maybe_bytes()?,
            b"lora_id" => fields.adapter_number = input.integer()?,
            b"lora_name" => fields.adapter = input.maybe_bytes()?,
            b"group_idx" => fields.group = input.integer()?.unwrap_or(0),
            b"kv_cache_spec_kind" => {
                let kind = input.maybe_bytes()?.unwrap_or_default();
                let is_whole = kind.is_empty() || contains(kind, b"full") || contains(kind, b"mla");
                fields.is_partial = !is_whole;
            }
            b"extra_keys" => self.extras(fields, input)?,
            _ => input.skip(0)?,
        }
        Ok(())
    }

    fn extras<'a>(&mut self, fields: &mut Fields<'a>, input: &mut Input<'a>) -> Read<()> {
        let Kind::Array(count) = input.marker_or_nil()? else { return Ok(()) };
        if count > MAX_BLOCKS {
            return Err(wrong(format!("it has keys of {count} blocks, allowed are {MAX_BLOCKS}")));
        }
        for _ in 0..count {
            let mut keys = Vec::new();
            match input.marker_or_nil()? {
                Kind::Array(many) => {
                    self.keys = self.keys.saturating_add(many);
                    if self.keys > MAX_KEYS {
                        return Err(wrong(format!("it has more than {MAX_KEYS} extra keys")));
                    }
                    for _ in 0..many {
                        keys.push(input.raw()?);
                    }
                }
                Kind::Nil => {}
                other => return Err(wrong(format!("a block's keys are {other:?}"))),
            }
            fields.extras.push(keys);
        }
        Ok(())
    }

    fn stored(&self, fields: Fields<'_>) -> Option<CacheEvent> {
        let Fields { hashes, parent, tokens, block_size, medium, extras, group, is_partial, .. } = fields;
        if is_partial || group >= u64::from(MAX_GROUPS) {
            return None;
        }
        let size = block_size.unwrap_or(self.block_tokens.into()) as usize;
        // Tokens in blocks of another size than is asked by have names that nobody asks for: the hashes still count.
        let names =
            size == self.block_tokens as usize && size.checked_mul(hashes.len()) == Some(tokens.len());
        let adapter = adapter_of(fields.adapter, fields.adapter_number);
        let named = |at: usize| -> Option<Content> {
            // Only then is it a size of which so many are anything.
            let own = if names { tokens.get(at * size..(at + 1) * size)? } else { return None };
            let keys = extras.get(at).map(Vec::as_slice).unwrap_or_default();
            Some(made_of(own, adapter.as_deref(), keys.iter().copied()))
        };
        let block =
            |(at, hash): (usize, &RawHash<'_>)| StoredBlock { hash: hash.engine(), content: named(at) };
        let blocks = hashes.iter().enumerate().map(block).collect();
        let parent = parent.map(|parent| parent.engine());
        Some(CacheEvent::Stored { parent, blocks, medium: medium_of(medium), group: group as u8 })
    }
}

fn removed(fields: Fields<'_>) -> Option<CacheEvent> {
    let Fields { hashes, medium, group, .. } = fields;
    let hashes = hashes.iter().map(RawHash::engine).collect();
    let group = u8::try_from(group).ok().filter(|group| *group < MAX_GROUPS)?;
    Some(CacheEvent::Removed { hashes, medium: medium_of(medium), group })
}

/// Older releases say no medium: they know of none but the device.
fn medium_of(name: Option<&[u8]>) -> Medium {
    match name {
        None | Some(b"GPU" | b"gpu" | b"") => Medium::Device,
        Some(b"CPU" | b"cpu" | b"CPU_PINNED" | b"CPU_TIER1") => Medium::Host,
        Some(_) => Medium::Disk,
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Nil,
    Map(usize),
    Array(usize),
    Bytes(usize),
    Number(u64),
    Real(f64),
    Other,
}

/// Bytes that are still to be read. Nothing is set aside for what they only announce.
struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// Reads what comes next, as far as its length or, of a number, all of it.
    fn marker(&mut self) -> Read<Kind> {
        let short = |_| wrong("it is cut short");
        let marker = decode::read_marker(&mut self.rest).map_err(|_| wrong("it is cut short"))?;
        let rest = &mut self.rest;
        Ok(match marker {
            Marker::Null => Kind::Nil,
            Marker::FixMap(count) => Kind::Map(count.into()),
            Marker::Map16 => Kind::Map(rest.read_data_u16().map_err(short)?.into()),
            Marker::Map32 => Kind::Map(rest.read_data_u32().map_err(short)? as usize),
            Marker::FixArray(count) => Kind::Array(count.into()),
            Marker::Array16 => Kind::Array(rest.read_data_u16().map_err(short)?.into()),
            Marker::Array32 => Kind::Array(rest.read_data_u32().map_err(short)? as usize),
            Marker::FixStr(length) => Kind::Bytes(length.into()),
            Marker::Str8 | Marker::Bin8 => Kind::Bytes(rest.read_data_u8().map_err(short)?.into()),
            Marker::Str16 | Marker::Bin16 => Kind::Bytes(rest.read_data_u16().map_err(short)?.into()),
            Marker::Str32 | Marker::Bin32 => Kind::Bytes(rest.read_data_u32().map_err(short)? as usize),
            Marker::FixPos(value) => Kind::Number(value.into()),
            Marker::U8 => Kind::Number(rest.read_data_u8().map_err(short)?.into()),
            Marker::U16 => Kind::Number(rest.read_data_u16().map_err(short)?.into()),
            Marker::U32 => Kind::Number(rest.read_data_u32().map_err(short)?.into()),
            Marker::U64 => Kind::Number(rest.read_data_u64().map_err(short)?),
            // A hash may be a signed number: its bits are what counts.
            Marker::FixNeg(value) => Kind::Number(i64::from(value) as u64),
            Marker::I8 => Kind::Number(i64::from(rest.read_data_i8().map_err(short)?) as u64),
            Marker::I16 => Kind::Number(i64::from(rest.read_data_i16().map_err(short)?) as u64),
            Marker::I32 => Kind::Number(i64::from(rest.read_data_i32().map_err(short)?) as u64),
            Marker::I64 => Kind::Number(rest.read_data_i64().map_err(short)? as u64),
            Marker::F32 => Kind::Real(rest.read_data_f32().map_err(short)?.into()),
            Marker::F64 => Kind::Real(rest.read_data_f64().map_err(short)?),
            Marker::True | Marker::False => Kind::Other,
            Marker::FixExt1 => self.passed(2)?,
            Marker::FixExt2 => self.passed(3)?,
            Marker::FixExt4 => self.passed(5)?,
            Marker::FixExt8 => self.passed(9)?,
            Marker::FixExt16 => self.passed(17)?,
            Marker::Ext8 => {
                let length = rest.read_data_u8().map_err(short)?;
                self.passed(usize::from(length) + 1)?
            }
            Marker::Ext16 => {
                let length = rest.read_data_u16().map_err(short)?;
                self.passed(usize::from(length) + 1)?
            }
            Marker::Ext32 => {
                let length = rest.read_data_u32().map_err(short)?;
                self.passed(length as usize + 1)?
            }
            Marker::Reserved => return Err(wrong("it has a byte that means nothing")),
        })
    }

    fn passed(&mut self, length: usize) -> Read<Kind> {
        self.bytes(length).map(|_| Kind::Other)
    }

    fn bytes(&mut self, length: usize) -> Read<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or_else(|| wrong("it is cut short"))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array(&mut self) -> Read<usize> {
        match self.marker()? {
            Kind::Array(count) => Ok(count),
            other => Err(wrong(format!("an array was expected, not {other:?}"))),
        }
    }

    fn marker_or_nil(&mut self) -> Read<Kind> {
        match self.marker()? {
            kind @ (Kind::Nil | Kind::Array(_)) => Ok(kind),
            other => Err(wrong(format!("an array was expected, not {other:?}"))),
        }
    }

    fn text(&mut self) -> Read<&'a [u8]> {
        self.maybe_bytes()?.ok_or_else(|| wrong("a name is nil"))
    }

    fn maybe_bytes(&mut self) -> Read<Option<&'a [u8]>> {
        match self.marker()? {
            Kind::Nil => Ok(None),
            Kind::Bytes(length) => self.bytes(length).map(Some),
            other => Err(wrong(format!("a text was expected, not {other:?}"))),
        }
    }

    fn integer(&mut self) -> Read<Option<u64>> {
        match self.marker()? {
            Kind::Nil => Ok(None),
            Kind::Number(value) => Ok(Some(value)),
            other => Err(wrong(format!("a number was expected, not {other:?}"))),
        }
    }

    fn hash(&mut self) -> Read<Option<RawHash<'a>>> {
        match self.marker()? {
            Kind::Nil => Ok(None),
            Kind::Number(value) => Ok(Some(RawHash::Number(value))),
            Kind::Bytes(length) => Ok(Some(RawHash::Bytes(self.bytes(length)?))),
            other => Err(wrong(format!("a hash was expected, not {other:?}"))),
        }
    }

    fn time_us(&mut self) -> Read<u64> {
        match self.marker()? {
            Kind::Real(seconds) => Ok((seconds * 1e6).clamp(0.0, 1e18) as u64),
            Kind::Number(seconds) => Ok(seconds.saturating_mul(1_000_000)),
            other => Err(wrong(format!("a time was expected, not {other:?}"))),
        }
    }

    /// Returns a value's bytes: a text's own, of anything else as it is encoded.
    fn raw(&mut self) -> Read<&'a [u8]> {
        let before = self.rest;
        if let Kind::Bytes(length) = self.marker()? {
            return self.bytes(length);
        }
        self.rest = before;
        self.skip(0)?;
        Ok(&before[..before.len() - self.rest.len()])
    }

    fn skip(&mut self, depth: usize) -> Read<()> {
        if depth > MAX_DEPTH {
            return Err(wrong(format!("it is nested deeper than {MAX_DEPTH}")));
        }
        let values = match self.marker()? {
            Kind::Bytes(length) => return self.bytes(length).map(|_| ()),
            Kind::Array(count) => count,
            Kind::Map(count) => count.saturating_mul(2),
            Kind::Nil | Kind::Number(_) | Kind::Real(_) | Kind::Other => 0,
        };
        // Each takes a byte at least: what is only announced ends with the input.
        for _ in 0..values {
            self.skip(depth + 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "format_test.rs"]
mod tests;
