//! The engines that the coordinators follow: part of the replicated state, so that each of them knows all. Not part of the map:
//! neither nodes nor clients need them. What their events say is every coordinator's own to know.

use crate::validate;
use kvhive_protocol::control::MAX_TENANTS;
use kvhive_protocol::engines::{Engine, MAX_BLOCK_TOKENS, MAX_ENGINES, MAX_TEXT_BYTES};
use kvhive_protocol::{ClusterMap, WireError};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What they take in a snapshot at most, in bytes.
pub(crate) const MAX_ENGINES_BYTES: usize = MAX_ENGINES * 2048;

/// Every engine, by name.
#[derive(Clone, Default)]
pub(crate) struct Engines {
    known: Arc<BTreeMap<String, Engine>>,
}

impl Engines {
    /// Takes back what [`Engines::all`] gave, or says what is wrong with it.
    pub(crate) fn restore(engines: Vec<Engine>, map: &ClusterMap) -> Result<Engines, String> {
        let count = engines.len();
        let mut known = BTreeMap::new();
        for engine in engines {
            check(&engine).and_then(|()| check_tenant(&engine, map)).map_err(|error| error.to_string())?;
            known.insert(engine.name.clone(), engine);
        }
        if known.len() != count || count > MAX_ENGINES {
            return Err(format!("{count} engines, of {} names", known.len()));
        }
        Ok(Engines { known: Arc::new(known) })
    }

    pub(crate) fn all(&self) -> &Arc<BTreeMap<String, Engine>> {
        &self.known
    }

    /// Follows an engine as it is described.
    pub(crate) fn set(&mut self, engine: Engine, map: &ClusterMap) -> Result<(), WireError> {
        check(&engine)?;
        check_tenant(&engine, map)?;
        if self.known.get(&engine.name) == Some(&engine) {
            return Ok(());
        }
        if !self.known.contains_key(&engine.name) && self.known.len() >= MAX_ENGINES {
            return Err(WireError::rejected(format_args!(
                "{MAX_ENGINES} engines are followed, which is the most: remove those that run no more"
            )));
        }
        Arc::make_mut(&mut self.known).insert(engine.name.clone(), engine);
        Ok(())
    }

    /// Follows an engine no longer.
    pub(crate) fn remove(&mut self, name: &str) -> Result<(), WireError> {
        if !self.known.contains_key(name) {
            let name: String = name.chars().take(64).collect();
            return Err(WireError::rejected(format_args!(
                "no engine is called {name:?}; GET /v1/engines lists those that are followed"
            )));
        }
        Arc::make_mut(&mut self.known).remove(name);
        Ok(())
    }
}

/// Checks what can be said of an engine without a map.
///
/// # Errors
/// [`WireError::Rejected`] with what was given and what is allowed.
pub(crate) fn check(engine: &Engine) -> Result<(), WireError> {
    validate::name("engine name", &engine.name)?;
    validate::address("events", &engine.events)?;
    if let Some(replay) = &engine.replay {
        validate::address("replay", replay)?;
    }
    if let Some(node) = &engine.node {
        validate::name("node name", node)?;
    }
    for (what, text) in [("model", &engine.model), ("topic", &engine.topic)] {
        if text.len() > MAX_TEXT_BYTES {
            return Err(WireError::rejected(format_args!(
                "{what} has {} bytes, allowed are {MAX_TEXT_BYTES}",
                text.len()
            )));
        }
    }
    if engine.model.is_empty() {
        return Err(WireError::rejected(format_args!("model is empty: say what the engine serves")));
    }
    let tokens = |what: &str, tokens: u32| {
        if (1..=MAX_BLOCK_TOKENS).contains(&tokens) {
            return Ok(());
        }
        Err(WireError::rejected(format_args!("{what} is {tokens}, allowed are 1 to {MAX_BLOCK_TOKENS}")))
    };
    tokens("block_tokens", engine.block_tokens)?;
    if let Some(blocks) = &engine.blocks {
        tokens("layout.tokens", blocks.layout.tokens)?;
        if blocks.layout.block_bytes().is_none_or(|bytes| bytes == 0) {
            return Err(WireError::rejected(format_args!(
                "a block of {:?} has no usable size",
                blocks.layout
            )));
        }
    }
    Ok(())
}

fn check_tenant(engine: &Engine, map: &ClusterMap) -> Result<(), WireError> {
    debug_assert!(map.tenants.len() <= MAX_TENANTS);
    if map.tenants.contains_key(&engine.tenant) {
        return Ok(());
    }
    Err(WireError::UnknownTenant { tenant: engine.tenant })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use kvhive_protocol::{Layout, TenantId, codec};

    pub(crate) fn engine(name: &str) -> Engine {
        Engine {
            name: name.to_owned(),
            model: "llama@1".to_owned(),
            tenant: TenantId(1),
            block_tokens: 16,
            events: "10.0.0.9:5557".to_owned(),
            replay: None,
            topic: String::new(),
            node: None,
            blocks: None,
        }
    }

    #[test]
    fn what_an_engine_may_not_be_is_named_with_what_is_allowed() {
        assert_eq!(check(&engine("vllm-0")), Ok(()));
        let blocks = kvhive_protocol::engines::EngineBlocks {
            layout: Layout::opaque(0, 16),
            rank: 0,
            named_by: kvhive_protocol::engines::NamedBy::Tokens,
        };
        for (wrong, says) in [
            (engine("VLLM"), "engine name"),
            (Engine { model: String::new(), ..engine("a") }, "model is empty"),
            (Engine { model: "x".repeat(257), ..engine("a") }, "model has 257 bytes"),
            (Engine { events: "nowhere".to_owned(), ..engine("a") }, "events"),
            (Engine { replay: Some("10.0.0.9:x".to_owned()), ..engine("a") }, "replay"),
            (Engine { block_tokens: 0, ..engine("a") }, "block_tokens is 0"),
            (Engine { blocks: Some(blocks), ..engine("a") }, "no usable size"),
        ] {
            let error = check(&wrong).expect_err("it may not be").to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_largest_engine_fits_its_part_of_a_snapshot() {
        let largest = Engine {
            name: "x".repeat(63),
            model: "x".repeat(MAX_TEXT_BYTES),
            topic: "x".repeat(MAX_TEXT_BYTES),
            events: "x".repeat(validate::MAX_ADDRESS_BYTES),
            replay: Some("x".repeat(validate::MAX_ADDRESS_BYTES)),
            node: Some("x".repeat(63)),
            ..engine("a")
        };
        let bytes = codec::encode(&largest).expect("it encodes").len() + 64;
        assert!(bytes * MAX_ENGINES <= MAX_ENGINES_BYTES, "{bytes}");
    }
}
