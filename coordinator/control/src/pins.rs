//! Pins in the cluster's memory of itself: what one may be, how many there are, and which have ended.

use crate::registry::{Outcome, Registry};
use crate::validate;
use kvhive_protocol::control::Command;
use kvhive_protocol::events::MAX_REASON_BYTES;
use kvhive_protocol::pins::{MAX_PIN_KEYS, MAX_PINNED_KEYS, MAX_PINS};
use kvhive_protocol::{ClusterMap, Pin, Reason, Slot, TenantId, WireError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What they take in a snapshot at most, in bytes.
pub(crate) const MAX_PINS_BYTES: usize = MAX_PINNED_KEYS * 32 + MAX_PINS * (MAX_REASON_BYTES + 256);

impl Registry {
    pub(crate) fn set_pin(&mut self, name: String, pin: Pin) -> Outcome {
        let map = self.map.as_ref().expect("execute has checked that there is a map");
        let pin = admit(map, &name, pin)?;
        if map.pins.get(&name) != Some(&pin) {
            Arc::make_mut(&mut self.change().pins).insert(name, pin);
        }
        Ok(self.unchanged())
    }

    pub(crate) fn remove_pin(&mut self, name: &str, ended_ms: Option<u64>) -> Outcome {
        let known = self.map.as_ref().and_then(|map| map.pins.get(name));
        // One that was to end may be gone already, or last longer now.
        if known.is_some_and(|pin| ended_ms.is_none_or(|wall_ms| pin.has_ended(wall_ms))) {
            Arc::make_mut(&mut self.change().pins).remove(name);
        } else if ended_ms.is_none() {
            let name: String = name.chars().take(64).collect();
            return Err(WireError::rejected(format_args!(
                "no pin is called {name:?}; GET /v1/pins lists those that there are"
            )));
        }
        Ok(self.unchanged())
    }

    /// Returns the map to change, as [`Registry::change`] does, where a tenant's blocks do not exist any more: nor do its pins.
    pub(crate) fn change_without_pins_of(&mut self, id: TenantId) -> &mut ClusterMap {
        let pins = self.map.as_ref().and_then(|map| without(map, id));
        let map = self.change();
        if let Some(pins) = pins {
            map.pins = Arc::new(pins);
        }
        map
    }
}

/// Checks what can be said of a pin without a map.
///
/// # Errors
/// [`WireError::Rejected`] with what was given and what is allowed.
pub(crate) fn check(name: &str, pin: &Pin) -> Result<(), WireError> {
    validate::name("pin name", name)?;
    validate::within("number of a pin's keys", pin.keys.len() as u64, 1..=MAX_PIN_KEYS as u64)
}

/// Returns the pin as it is kept: of the tenant whose blocks they are.
///
/// # Errors
/// When there is no such tenant, or there are as many pins or pinned keys as there may be.
pub(crate) fn admit(map: &ClusterMap, name: &str, pin: Pin) -> Result<Pin, WireError> {
    check(name, &pin)?;
    let (pool, _) = map.pool_of(pin.tenant).ok_or(WireError::UnknownTenant { tenant: pin.tenant })?;
    let others = || map.pins.iter().filter(|(other, _)| *other != name);
    if others().count() >= MAX_PINS {
        return Err(WireError::rejected(format_args!(
            "there are {MAX_PINS} pins, which is the most: remove those that nobody needs"
        )));
    }
    let keys = others().map(|(_, other)| other.keys.len()).sum::<usize>() + pin.keys.len();
    if keys > MAX_PINNED_KEYS {
        return Err(WireError::rejected(format_args!(
            "all pins together would have {keys} keys, allowed are {MAX_PINNED_KEYS}: remove others, or pin less of the prefix"
        )));
    }
    Ok(Pin { tenant: pool, ..pin })
}

/// Checks pins that were written down.
pub(crate) fn check_all(map: &ClusterMap) -> Result<(), String> {
    let keys: usize = map.pins.values().map(|pin| pin.keys.len()).sum();
    if map.pins.len() > MAX_PINS || keys > MAX_PINNED_KEYS {
        return Err(format!("{} pins with {keys} keys are too many", map.pins.len()));
    }
    for (name, pin) in map.pins.iter() {
        check(name, pin).map_err(|error| error.to_string())?;
        if !map.tenants.contains_key(&pin.tenant) {
            return Err(format!("pin {name} is of tenant {}, which does not exist", pin.tenant));
        }
    }
    Ok(())
}

/// Returns the pins without those of one tenant, if it has any.
pub(crate) fn without(map: &ClusterMap, tenant: TenantId) -> Option<BTreeMap<String, Pin>> {
    let has_any = map.pins.values().any(|pin| pin.tenant == tenant);
    let others = || map.pins.iter().filter(|(_, pin)| pin.tenant != tenant);
    has_any.then(|| others().map(|(name, pin)| (name.clone(), pin.clone())).collect())
}

/// Returns the slots of pinned blocks.
pub(crate) fn slots(map: &ClusterMap) -> BTreeSet<Slot> {
    map.pins.values().flat_map(|pin| pin.slots(map.settings.segment_blocks)).collect()
}

/// Asks to remove the pins that have ended by this time, in milliseconds since 1970.
pub fn ended_pins(map: &ClusterMap, wall_ms: u64) -> Vec<(Command, Reason)> {
    let ended = map.pins.iter().filter(|(_, pin)| pin.has_ended(wall_ms));
    let remove = |(name, _): (&String, &Pin)| {
        let command = Command::RemovePin { name: name.clone(), ended_ms: Some(wall_ms) };
        (command, Reason::new("it was pinned until now"))
    };
    ended.map(remove).collect()
}

#[cfg(test)]
#[path = "pins_test.rs"]
mod tests;
