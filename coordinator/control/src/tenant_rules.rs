//! What tenants' rules may say, alone and together: ranges, who may share with whom, how many tenants nodes keep apart; and
//! which tenant may get another secret or go.

use crate::registry::FIRST_TENANT;
use crate::validate::within;
use kvhive_protocol::engines::Engine;
use kvhive_protocol::{Change, ClusterMap, RulesChange, TenantId, TenantRules, WireError};

/// The most tenants with a strategy or a quota of their own: nodes rank the blocks of each apart.
pub(crate) const MAX_TENANTS_APART: usize = 1024;
/// The largest quota, in bytes: 1 EiB.
pub(crate) const MAX_QUOTA_BYTES: u64 = 1 << 60;
/// So many times what another tenant gets of a node one may get at most.
pub(crate) const MAX_WEIGHT: u16 = 1000;

/// Checks the rules that tenant `of` of this map would get; none for a new tenant.
pub(crate) fn check(map: &ClusterMap, of: Option<TenantId>, rules: &TenantRules) -> Result<(), WireError> {
    ranges(rules)?;
    let before = of.and_then(|of| map.tenants.get(&of)).map(|tenant| tenant.rules).unwrap_or_default();
    if let Some(with) = rules.shares_with {
        sharing(map, of, rules, with)?;
        if before.shares_with.is_none()
            && let Some(of) = of
            && let Some(other) = map.tenants.values().find(|other| other.rules.shares_with == Some(of))
        {
            return Err(WireError::rejected(format_args!(
                "shares_with: tenant {} shares the blocks of this tenant, which so cannot share another's: have it share \
                 with tenant {with} first",
                other.name
            )));
        }
    }
    if rules.is_kept_apart() && !before.is_kept_apart() {
        enough_places(map, 1)?;
    }
    Ok(())
}

/// Checks a change of a tenant's rules by a map: whether that would take it.
///
/// # Errors
/// Which rule says what, and what is allowed.
pub fn check_change(map: &ClusterMap, tenant: TenantId, change: &RulesChange) -> Result<(), WireError> {
    let known = map.tenants.get(&tenant).ok_or(WireError::UnknownTenant { tenant })?;
    let changed = change.apply(known.rules);
    if changed == known.rules { Ok(()) } else { check(map, Some(tenant), &changed) }
}

/// Checks what can be said of a change whatever the map and the tenant's rules are.
pub(crate) fn check_change_alone(tenant: TenantId, change: &RulesChange) -> Result<(), WireError> {
    check_rules(&change.apply(TenantRules::default()))?;
    match change.shares_with {
        Change::Set(with) if with == tenant => Err(with_itself()),
        _ => Ok(()),
    }
}

/// Checks what a change of a tenant's weight says, whatever the map is.
pub(crate) fn check_weight(weight: Change<u16>) -> Result<(), WireError> {
    let Change::Set(weight) = weight else { return Ok(()) };
    within("weight", u64::from(weight), 1..=u64::from(MAX_WEIGHT))
}

/// Returns what a tenant with these rules weighs that weighed so much before, when that is changed so.
pub(crate) fn weighs(rules: &TenantRules, before: u16, change: Change<u16>) -> Result<u16, WireError> {
    check_weight(change)?;
    match (change, rules.shares_with) {
        (Change::Set(_), Some(_)) => Err(WireError::rejected(format_args!(
            "a tenant that shares the blocks of another has no other rules, and no weight: set it there"
        ))),
        // It is of the other's share.
        (_, Some(_)) | (Change::Reset, None) => Ok(1),
        (Change::Keep, None) => Ok(before),
        (Change::Set(weight), None) => Ok(weight),
    }
}

/// Checks the weights of all tenants of a map.
pub(crate) fn check_weights(map: &ClusterMap) -> Result<(), WireError> {
    for (id, weight) in map.weights.iter() {
        let known = map.tenants.get(id).ok_or(WireError::UnknownTenant { tenant: *id })?;
        within("weight", u64::from(*weight), 2..=u64::from(MAX_WEIGHT))?;
        weighs(&known.rules, *weight, Change::Set(*weight))?;
    }
    Ok(())
}

/// Says whether a tenant may get this secret.
pub(crate) fn check_rotation(map: &ClusterMap, of: TenantId, secret: &[u8; 32]) -> Result<(), WireError> {
    let known = map.tenants.get(&of).ok_or(WireError::UnknownTenant { tenant: of })?;
    if known.secret == *secret {
        return Err(WireError::rejected(format_args!(
            "the secret of tenant {} is this one already: rotate to another",
            known.name
        )));
    }
    Ok(())
}

/// Says whether a tenant may go: it is not the first, nobody shares its blocks, no engine is followed in its name.
pub(crate) fn check_deletion<'a>(
    map: &ClusterMap,
    of: TenantId,
    mut engines: impl Iterator<Item = &'a Engine>,
) -> Result<(), WireError> {
    let name = &map.tenants.get(&of).ok_or(WireError::UnknownTenant { tenant: of })?.name;
    if of == FIRST_TENANT {
        return Err(WireError::rejected(format_args!(
            "tenant {name} is there as long as the cluster: clear it instead"
        )));
    }
    if let Some(other) = map.tenants.values().find(|other| other.rules.shares_with == Some(of)) {
        return Err(WireError::rejected(format_args!(
            "tenant {} shares the blocks of {name}: reset its shares_with, or delete it first",
            other.name
        )));
    }
    match engines.find(|engine| engine.tenant == of) {
        Some(engine) => Err(WireError::rejected(format_args!(
            "engine {} is followed for tenant {name}: remove it first, or follow it for another tenant",
            engine.name
        ))),
        None => Ok(()),
    }
}

/// Checks the rules of all tenants of a map.
pub(crate) fn check_all(map: &ClusterMap) -> Result<(), WireError> {
    enough_places(map, 0)?;
    check_weights(map)?;
    for (id, tenant) in &map.tenants {
        ranges(&tenant.rules)?;
        if let Some(with) = tenant.rules.shares_with {
            sharing(map, Some(*id), &tenant.rules, with)?;
        }
    }
    Ok(())
}

/// Checks what rules may say by themselves, whatever other tenants there are.
///
/// # Errors
/// Which rule says what, and what is allowed.
pub fn check_rules(rules: &TenantRules) -> Result<(), WireError> {
    ranges(rules)?;
    match rules.shares_with {
        Some(_) if rules.has_own() => Err(WireError::rejected(format_args!(
            "a tenant that shares the blocks of another has no other rules: set them there"
        ))),
        _ => Ok(()),
    }
}

fn ranges(rules: &TenantRules) -> Result<(), WireError> {
    for (name, quota) in [
        ("device_quota_bytes", rules.device_quota_bytes),
        ("host_quota_bytes", rules.host_quota_bytes),
        ("disk_quota_bytes", rules.disk_quota_bytes),
    ] {
        within(name, quota.unwrap_or(0), 0..=MAX_QUOTA_BYTES)?;
    }
    if let Some(bits) = rules.quantization_bits
        && ![4, 8, 16].contains(&bits)
    {
        return Err(WireError::rejected(format_args!(
            "quantization_bits is {bits}, allowed are 4, 8 and 16"
        )));
    }
    within("compression_per_mille", u64::from(rules.compression_per_mille.unwrap_or(1)), 1..=1000)
}

fn with_itself() -> WireError {
    WireError::rejected(format_args!(
        "shares_with is the tenant itself, allowed is another; without the rule it shares with nobody"
    ))
}

fn sharing(
    map: &ClusterMap,
    of: Option<TenantId>,
    rules: &TenantRules,
    with: TenantId,
) -> Result<(), WireError> {
    if of == Some(with) {
        return Err(with_itself());
    }
    let pool = map.tenants.get(&with).ok_or(WireError::UnknownTenant { tenant: with })?;
    if pool.rules.shares_with.is_some() {
        return Err(WireError::rejected(format_args!(
            "shares_with: tenant {} shares another's blocks itself: share with that one",
            pool.name
        )));
    }
    if rules.has_own() {
        return Err(WireError::rejected(format_args!(
            "a tenant that shares the blocks of {0} has no other rules: set them on {0}, and reset them here",
            pool.name
        )));
    }
    Ok(())
}

fn enough_places(map: &ClusterMap, more: usize) -> Result<(), WireError> {
    let apart = map.tenants.values().filter(|tenant| tenant.rules.is_kept_apart()).count() + more;
    if apart > MAX_TENANTS_APART {
        return Err(WireError::rejected(format_args!(
            "{apart} tenants would have a strategy or quota of their own, at most {MAX_TENANTS_APART} may: reset those of \
             others, or share one tenant's blocks"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_named_with_what_is_allowed() {
        let none = TenantRules::default();
        for bits in [4, 8, 16] {
            assert_eq!(check_rules(&TenantRules { quantization_bits: Some(bits), ..none }), Ok(()));
        }
        for (wrong, says) in [
            (
                TenantRules { quantization_bits: Some(7), ..none },
                "quantization_bits is 7, allowed are 4, 8 and 16",
            ),
            (
                TenantRules { compression_per_mille: Some(0), ..none },
                "compression_per_mille is 0, allowed is 1 to 1000",
            ),
            (
                TenantRules { compression_per_mille: Some(1001), ..none },
                "compression_per_mille is 1001, allowed is 1 to 1000",
            ),
            (TenantRules { host_quota_bytes: Some(u64::MAX), ..none }, "host_quota_bytes is"),
            (TenantRules { disk_quota_bytes: Some((1 << 60) + 1), ..none }, "disk_quota_bytes is"),
        ] {
            let error = check_rules(&wrong).expect_err("out of range").to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
