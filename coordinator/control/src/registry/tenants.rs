//! What commands make of tenants: there is one more, one less, or another era, secret or rules.

use super::{Outcome, Registry, next_id};
use crate::{again, tenant_rules, validate};
use kvhive_protocol::control::{CommandReply, MAX_TENANTS};
use kvhive_protocol::{Change, RulesChange, Tenant, TenantId, TenantRules, WireError};
use std::sync::Arc;

impl Registry {
    pub(super) fn create_tenant(&mut self, name: String, secret: [u8; 32], rules: TenantRules) -> Outcome {
        validate::name("tenant name", &name)?;
        if let Some(id) = self.index.tenants.get(&name) {
            return Err(WireError::rejected(format_args!(
                "tenant {name} exists already as number {id}: use it, or choose another name"
            )));
        }
        let map = self.map.as_ref().expect("execute has checked that there is a map");
        tenant_rules::check(map, None, &rules)?;
        let id = TenantId(next_id(map.tenants.len(), self.last.tenant.0, MAX_TENANTS, "tenants")?);
        let tenant = Tenant { name, era: again::first_era(map.epoch), secret, rules };
        self.index.take(validate::tenant_bytes(&tenant), 0)?;
        self.index.tenants.insert(tenant.name.clone(), id);
        self.last.tenant = id;
        let map = self.change();
        map.tenants.insert(id, tenant);
        Ok(CommandReply::TenantCreated { tenant: id, epoch: map.epoch })
    }

    pub(super) fn clear_tenant(&mut self, id: TenantId) -> Outcome {
        if !self.map.as_ref().is_some_and(|map| map.tenants.contains_key(&id)) {
            return Err(WireError::UnknownTenant { tenant: id });
        }
        let map = self.change_without_pins_of(id);
        // Its own era also where it shares another's blocks: it may have some of its own from before, or through a client
        // that had it open. What it shares is the other's to clear.
        let tenant = map.tenants.get_mut(&id).ok_or(WireError::UnknownTenant { tenant: id })?;
        tenant.era = tenant.era.next();
        Ok(CommandReply::TenantCleared { era: tenant.era, epoch: map.epoch })
    }

    pub(super) fn rotate_secret(&mut self, id: TenantId, secret: [u8; 32]) -> Outcome {
        let map = self.map.as_ref().expect("execute has checked that there is a map");
        tenant_rules::check_rotation(map, id, &secret)?;
        let map = self.change_without_pins_of(id);
        let tenant = map.tenants.get_mut(&id).ok_or(WireError::UnknownTenant { tenant: id })?;
        tenant.secret = secret;
        tenant.era = tenant.era.next();
        Ok(CommandReply::TenantCleared { era: tenant.era, epoch: map.epoch })
    }

    pub(super) fn delete_tenant(&mut self, id: TenantId) -> Outcome {
        let map = self.map.as_ref().expect("execute has checked that there is a map");
        tenant_rules::check_deletion(map, id, self.engines.all().values())?;
        let map = self.change_without_pins_of(id);
        let (gone, epoch) = (map.tenants.remove(&id), map.epoch);
        Arc::make_mut(&mut map.weights).remove(&id);
        if let Some(tenant) = gone {
            self.index.tenants.remove(&tenant.name);
            self.index.bytes -= validate::tenant_bytes(&tenant);
        }
        Ok(CommandReply::TenantDeleted { epoch })
    }

    pub(super) fn rule_tenant(&mut self, id: TenantId, change: &RulesChange, weight: Change<u16>) -> Outcome {
        let map = self.map.as_ref().expect("execute has checked that there is a map");
        let tenant = map.tenants.get(&id).ok_or(WireError::UnknownTenant { tenant: id })?;
        let changed = Tenant { rules: change.apply(tenant.rules), ..tenant.clone() };
        let before = map.weight(id);
        let weighs = tenant_rules::weighs(&changed.rules, before, weight)?;
        if changed == *tenant && weighs == before {
            return Ok(self.unchanged());
        }
        tenant_rules::check_change(map, id, change)?;
        self.index.take(validate::tenant_bytes(&changed), validate::tenant_bytes(tenant))?;
        let map = self.change();
        map.tenants.insert(id, changed);
        if weighs != before {
            let weights = Arc::make_mut(&mut map.weights);
            match weighs {
                1 => weights.remove(&id),
                weighs => weights.insert(id, weighs),
            };
        }
        Ok(self.unchanged())
    }
}
