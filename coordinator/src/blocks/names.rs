//! How blocks are told of. Their keys say nothing to anybody outside: they are keyed by a tenant's secret. So what the followed
//! engines say of blocks is remembered by the key that kvhive has for the same block; one that no engine has told of, or so long ago
//! that it is forgotten, is told by its own key.

use crate::engines::raw::{RawBlocks, RawHash};
use kvhive_protocol::engines::NamedBy;
use kvhive_protocol::{BlockKey, NamespaceKey, TenantId};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Names remembered.
const MOST: usize = 1 << 18;
/// Tokens remembered of one block; the block of more is told without them.
const MOST_TOKENS: usize = 1024;

/// What a block is called.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Name {
    /// A number, as engines publish hashes unless told otherwise.
    Number(u64),
    /// All of a hash.
    Bytes(Vec<u8>),
}

impl Name {
    fn of(hash: &RawHash<'_>) -> Name {
        match hash {
            RawHash::Number(number) => Name::Number(*number),
            RawHash::Bytes(bytes) => Name::Bytes(bytes.to_vec()),
        }
    }
}

/// What readers are told of a block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Named {
    /// What it is called.
    pub(super) hash: Name,
    /// The block before it.
    pub(super) parent: Option<Name>,
    /// Its tokens; none where they are not known.
    pub(super) tokens: Vec<u32>,
    /// Its adapter.
    pub(super) adapter: Option<String>,
    /// How many blocks are before it.
    pub(super) depth: u32,
}

impl Named {
    /// A block that no engine has told of: the last eight bytes of its key, as engines cut theirs.
    pub(super) fn unknown(key: &BlockKey, depth: u32) -> Named {
        Named { hash: own_name(key), parent: None, tokens: Vec::new(), adapter: None, depth }
    }

    /// Says whether it is told of as nobody but kvhive calls it.
    pub(super) fn is_of_key(&self, key: &BlockKey) -> bool {
        self.hash == own_name(key)
    }
}

fn own_name(key: &BlockKey) -> Name {
    let tail = key.as_bytes().last_chunk().copied().expect("a key has 32 bytes");
    Name::Number(u64::from_be_bytes(tail))
}

/// Whose blocks an engine stores, and how kvhive names them.
pub(crate) struct Place {
    pub(crate) tenant: TenantId,
    pub(crate) key: NamespaceKey,
    pub(crate) named_by: NamedBy,
}

/// A block of an engine, as kvhive names it.
struct Known {
    tenant: TenantId,
    key: BlockKey,
    depth: u32,
    /// What else names every block of its prompt.
    salt: Option<Vec<u8>>,
}

/// Names by key.
#[derive(Default)]
pub(crate) struct Names {
    named: HashMap<(TenantId, BlockKey), Arc<Named>>,
    /// By engine and what that calls it.
    known: HashMap<(String, Name), Known>,
    order: VecDeque<(String, Name)>,
    /// Blocks that have got a name since somebody asked for these.
    fresh: Vec<(TenantId, BlockKey)>,
}

impl Names {
    /// Returns the blocks that have got a name since this was asked last.
    pub(super) fn fresh(&mut self) -> Vec<(TenantId, BlockKey)> {
        std::mem::take(&mut self.fresh)
    }

    /// Returns how a block is told of.
    pub(super) fn of(&self, tenant: TenantId, key: &BlockKey, depth: u32) -> Arc<Named> {
        self.named.get(&(tenant, *key)).cloned().unwrap_or_else(|| Arc::new(Named::unknown(key, depth)))
    }

    /// Remembers what an engine says of blocks that follow one another.
    pub(crate) fn learn(&mut self, engine: &str, place: &Place, blocks: &RawBlocks<'_>) {
        let mut parent = blocks.parent.as_ref().map(Name::of);
        let (mut before, mut depth, mut salt) = match &parent {
            None => (BlockKey::NONE, 0, None),
            Some(parent) => match self.known.get(&(engine.to_owned(), parent.clone())) {
                Some(known) => (known.key, known.depth + 1, known.salt.clone()),
                // Of a prompt whose begin nobody has heard here nothing can be named.
                None => return,
            },
        };
        let adapter = blocks.adapter.map(|adapter| String::from_utf8_lossy(adapter).into_owned());
        for (at, hash) in blocks.hashes.iter().enumerate() {
            let name = Name::of(hash);
            let tokens = blocks.tokens_of(at).filter(|tokens| tokens.len() <= MOST_TOKENS);
            let extras: Vec<&[u8]> =
                blocks.extras_of(at).filter(|one| Some(*one) != blocks.adapter).collect();
            match &extras[..] {
                [] => {}
                // A salt stands with the first block and counts for all.
                [one] if depth == 0 => salt = Some(one.to_vec()),
                // Media: their names here and there need not agree. In the engine's own hashes they are.
                _ if place.named_by == NamedBy::Tokens => return,
                _ => {}
            }
            let key = match (place.named_by, tokens) {
                (NamedBy::Hashes, _) => place.key.rekey(&before, &hash.bytes()),
                (NamedBy::Tokens, Some(tokens)) => {
                    let extras: Vec<&[u8]> = blocks.adapter.into_iter().chain(salt.as_deref()).collect();
                    place.key.block(&before, tokens, &extras)
                }
                (NamedBy::Tokens, None) => return,
            };
            let named = Named {
                hash: name.clone(),
                parent: parent.take(),
                tokens: tokens.unwrap_or_default().to_vec(),
                adapter: adapter.clone(),
                depth,
            };
            self.keep(engine, place.tenant, key, named, salt.clone());
            (before, depth, parent) = (key, depth + 1, Some(name));
        }
    }

    fn keep(&mut self, engine: &str, tenant: TenantId, key: BlockKey, named: Named, salt: Option<Vec<u8>>) {
        let at = (engine.to_owned(), named.hash.clone());
        let known = Known { tenant, key, depth: named.depth, salt };
        if self.known.insert(at.clone(), known).is_none() {
            self.order.push_back(at);
        }
        if self.named.insert((tenant, key), Arc::new(named)).is_none() {
            self.fresh.push((tenant, key));
        }
        while self.order.len() > MOST {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(known) = self.known.remove(&oldest) {
                self.named.remove(&(known.tenant, known.key));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::format;
    use kvhive_protocol::Layout;
    use rmpv::Value;

    const TENANT: TenantId = TenantId(1);

    fn place(named_by: NamedBy) -> Place {
        let namespace = kvhive_protocol::Namespace {
            tenant_secret: [7; 32],
            model: "tiny".into(),
            layout: Layout::opaque(4096, 4),
            rank: 0,
        };
        Place { tenant: TENANT, key: namespace.key(), named_by }
    }

    fn payload(hashes: &[u64], parent: Option<u64>, tokens: &[u32], adapter: Option<&str>) -> Vec<u8> {
        let text = |text: &str| Value::from(text);
        let event = Value::Map(vec![
            (text("type"), text("BlockStored")),
            (text("block_hashes"), hashes.iter().map(|hash| Value::from(*hash)).collect::<Vec<_>>().into()),
            (text("parent_block_hash"), parent.map_or(Value::Nil, Value::from)),
            (text("token_ids"), tokens.iter().map(|token| Value::from(*token)).collect::<Vec<_>>().into()),
            (text("block_size"), 4.into()),
            (text("lora_name"), adapter.map_or(Value::Nil, Value::from)),
        ]);
        let mut out = Vec::new();
        let batch = Value::Array(vec![Value::F64(1.0), Value::Array(vec![event])]);
        rmpv::encode::write_value(&mut out, &batch).expect("a vector takes all");
        out
    }

    fn learned(named_by: NamedBy, payloads: &[Vec<u8>]) -> Names {
        let (mut names, place) = (Names::default(), place(named_by));
        for payload in payloads {
            format::stored(payload, 4, |blocks| names.learn("vllm-0", &place, blocks))
                .expect("it is a batch");
        }
        names
    }

    #[test]
    fn a_block_is_told_by_what_its_engine_calls_it_with_its_tokens() {
        let tokens: Vec<u32> = (0..12).collect();
        let payloads = [
            payload(&[11, 22], None, &tokens[..8], Some("lora")),
            payload(&[33], Some(22), &tokens[8..], Some("lora")),
        ];
        let names = learned(NamedBy::Tokens, &payloads);
        let keys = place(NamedBy::Tokens).key.prefix(&tokens, 4, &[b"lora"]);
        let third = names.of(TENANT, &keys[2], 2);
        assert_eq!((&third.hash, &third.parent), (&Name::Number(33), &Some(Name::Number(22))));
        assert_eq!(
            (&third.tokens[..], third.adapter.as_deref(), third.depth),
            (&tokens[8..], Some("lora"), 2)
        );
        assert_eq!(names.of(TENANT, &keys[0], 0).parent, None);
        // Another tenant's block of that key is another block.
        assert_eq!(names.of(TenantId(2), &keys[0], 0).tokens, [0; 0]);
    }

    #[test]
    fn an_engine_whose_hashes_name_its_blocks_is_rekeyed_as_its_client_does() {
        let names = learned(NamedBy::Hashes, &[payload(&[11, 22], None, &[1; 8], None)]);
        let key = place(NamedBy::Hashes).key;
        let first = key.rekey(&BlockKey::NONE, &11u64.to_be_bytes());
        let second = key.rekey(&first, &22u64.to_be_bytes());
        assert_eq!(names.of(TENANT, &second, 1).hash, Name::Number(22));
    }

    #[test]
    fn what_cannot_be_named_for_sure_is_told_by_its_own_key() {
        // Its parent was told before anybody listened.
        let names = learned(NamedBy::Tokens, &[payload(&[33], Some(22), &[1; 4], None)]);
        let key = place(NamedBy::Tokens).key.prefix(&[1; 4], 4, &[])[0];
        let named = names.of(TENANT, &key, 0);
        let tail: [u8; 8] = key.as_bytes()[24..].try_into().expect("eight bytes");
        assert_eq!((&named.hash, named.tokens.len()), (&Name::Number(u64::from_be_bytes(tail)), 0));
    }
}
