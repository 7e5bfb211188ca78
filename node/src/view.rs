//! What every part of a node reads: the map served by, who this node is and how long it may serve, which only membership
//! writes, and the layouts of its blocks, which stores tell.

use crate::layouts::Layouts;
use kvhive_cache::Lapses;
use kvhive_protocol::block::Codec;
use kvhive_protocol::explain::Lapse;
use kvhive_protocol::{ClusterMap, Era, MemberId, Moment, TenantId, TenantRules, WireError};
use kvhive_runtime::Clock;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// A node's shared view of its cluster.
pub(crate) struct View {
    clock: Arc<dyn Clock>,
    serving: RwLock<Option<Serving>>,
    lease: AtomicU64,
    lapses: Mutex<Lapses>,
    pub(crate) layouts: Layouts,
}

/// The map served by, and this node's id in it.
#[derive(Clone)]
pub(crate) struct Serving {
    pub(crate) map: Arc<ClusterMap>,
    pub(crate) member: MemberId,
}

impl Serving {
    /// Returns every tenant's era.
    pub(crate) fn eras(&self) -> BTreeMap<TenantId, Era> {
        self.map.tenants.iter().map(|(id, tenant)| (*id, tenant.era)).collect()
    }
}

impl View {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> View {
        View {
            clock,
            serving: RwLock::new(None),
            lease: AtomicU64::new(0),
            lapses: Mutex::default(),
            layouts: Layouts::default(),
        }
    }

    pub(crate) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Takes over a map, unless a newer one is here already.
    pub(crate) fn adopt(&self, fresh: Serving) {
        let mut serving = self.serving.write().unwrap_or_else(|poison| poison.into_inner());
        let is_newer =
            |known: &Serving| known.map.cluster != fresh.map.cluster || known.map.epoch <= fresh.map.epoch;
        if serving.as_ref().is_none_or(is_newer) {
            *serving = Some(fresh);
        }
    }

    pub(crate) fn serving(&self) -> Option<Serving> {
        self.serving.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    /// Returns the rules of a tenant, none of its own where it is not known, and how this node stores blocks of those that ask for
    /// nothing.
    pub(crate) fn rules_of(&self, tenant: TenantId) -> (TenantRules, Codec) {
        let serving = self.serving.read().unwrap_or_else(|poison| poison.into_inner());
        let Some(Serving { map, member }) = &*serving else { return Default::default() };
        let rules = map.tenants.get(&tenant).map(|tenant| tenant.rules).unwrap_or_default();
        (rules, map.members.get(member).map(|own| own.codec).unwrap_or_default())
    }

    pub(crate) fn serve_until(&self, lease: Moment) {
        self.lease.store(lease.as_nanos(), Ordering::SeqCst);
        self.lapses.lock().unwrap_or_else(PoisonError::into_inner).serve_until(self.now(), lease);
    }

    pub(crate) fn lease(&self) -> Moment {
        Moment::from_nanos(self.lease.load(Ordering::SeqCst))
    }

    /// Returns when this node had no lease last.
    pub(crate) fn lapse(&self) -> Option<Lapse> {
        self.lapses.lock().unwrap_or_else(PoisonError::into_inner).last(self.now())
    }

    /// Returns by which map this node serves, if it has a lease to.
    pub(crate) fn leased(&self) -> Result<Serving, WireError> {
        let serving = self.serving().ok_or(WireError::NoLease)?;
        self.check_lease()?;
        Ok(serving)
    }

    /// Checks the lease; asked before the work and again before its answer leaves.
    pub(crate) fn check_lease(&self) -> Result<(), WireError> {
        if self.now() < self.lease() { Ok(()) } else { Err(WireError::NoLease) }
    }
}
