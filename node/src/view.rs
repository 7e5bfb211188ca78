//! What every part of a node reads: the map served by, who this node is and how long it may serve, which only membership
//! writes, the layouts of its blocks, which stores tell, and the names that it answers for.

use crate::book::{Guest, GuestBook};
use crate::layouts::Layouts;
use kvhive_cache::{Lapses, Names, Tenancy};
use kvhive_protocol::block::Codec;
use kvhive_protocol::explain::Lapse;
use kvhive_protocol::handshake::Role;
use kvhive_protocol::{ClusterMap, Era, MemberId, Moment, TenantId, TenantRules, WireError};
use kvhive_runtime::Clock;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// A node's shared view of its cluster.
pub(crate) struct View {
    clock: Arc<dyn Clock>,
    serving: RwLock<Option<Serving>>,
    lease: AtomicU64,
    serving_lease: AtomicU64,
    lapses: Mutex<Lapses>,
    pub(crate) layouts: Layouts,
    names: Mutex<Names>,
    refusal: Mutex<Option<WireError>>,
    /// Others' blocks that are here for clients; none where none are.
    pub(crate) guests: Option<GuestBook>,
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
    pub(crate) fn new(clock: Arc<dyn Clock>, names_bytes: u64, guest_bytes: u64) -> View {
        View {
            clock,
            serving: RwLock::new(None),
            lease: AtomicU64::new(0),
            serving_lease: AtomicU64::new(0),
            lapses: Mutex::default(),
            layouts: Layouts::default(),
            names: Mutex::new(Names::within(names_bytes)),
            refusal: Mutex::default(),
            guests: GuestBook::within(guest_bytes),
        }
    }

    pub(crate) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Takes over a map, unless a newer one is here already. Returns the guests that end by it, for the caller to drop where that may take
    /// long: all that a node answers waits for the map that is taken over here.
    #[must_use]
    pub(crate) fn adopt(&self, fresh: Serving) -> Vec<Arc<Guest>> {
        let mut ended = Vec::new();
        let mut serving = self.serving.write().unwrap_or_else(|poison| poison.into_inner());
        let is_newer =
            |known: &Serving| known.map.cluster != fresh.map.cluster || known.map.epoch <= fresh.map.epoch;
        if serving.as_ref().is_none_or(is_newer) {
            // The lease is renewed when a map is taken over, so that one which has lapsed shows here.
            let lapsed = self.check_lease().is_err();
            self.names().adopt(self.now(), &fresh.map, fresh.member, lapsed);
            if let Some(guests) = &self.guests {
                ended = guests.adopt(&fresh.map, fresh.member);
            }
            *serving = Some(fresh);
        }
        ended
    }

    /// Returns the names that this node answers for; never held for longer than a question.
    pub(crate) fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Returns what a tenant weighs where several share this node.
    pub(crate) fn weight_of(&self, tenant: TenantId) -> u16 {
        let serving = self.serving.read().unwrap_or_else(|poison| poison.into_inner());
        serving.as_ref().map_or(1, |serving| serving.map.weight(tenant))
    }

    pub(crate) fn serve_until(&self, tenancy: Tenancy) {
        let Tenancy { lease, serving } = tenancy;
        self.lease.store(lease.as_nanos(), Ordering::SeqCst);
        self.serving_lease.store(serving.as_nanos(), Ordering::SeqCst);
        self.lapses.lock().unwrap_or_else(PoisonError::into_inner).serve_until(self.now(), serving);
    }

    /// Notes why coordinators refused the last registration; none once one was accepted. Says whether that is news.
    pub(crate) fn note_refusal(&self, error: Option<WireError>) -> bool {
        let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *refusal != error;
        *refusal = error;
        is_news
    }

    /// Returns why coordinators refused the last registration, if they did.
    pub(crate) fn refusal(&self) -> Option<WireError> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns how long this node is a member for everybody, and how long it answers reads.
    pub(crate) fn tenancy(&self) -> Tenancy {
        let read = |of: &AtomicU64| Moment::from_nanos(of.load(Ordering::SeqCst));
        Tenancy { lease: read(&self.lease), serving: read(&self.serving_lease) }
    }

    /// Returns when this node served nothing last.
    pub(crate) fn lapse(&self) -> Option<Lapse> {
        self.lapses.lock().unwrap_or_else(PoisonError::into_inner).last(self.now())
    }

    /// Returns by which map this node is a member for everybody, if its lease holds: what it says of its blocks counts for
    /// acknowledgements and moves.
    pub(crate) fn leased(&self) -> Result<Serving, WireError> {
        let serving = self.serving().ok_or(WireError::NoLease)?;
        self.check_lease()?;
        Ok(serving)
    }

    /// Checks the lease; asked before the work and again before its answer leaves.
    pub(crate) fn check_lease(&self) -> Result<(), WireError> {
        if self.now() < self.tenancy().lease { Ok(()) } else { Err(WireError::NoLease) }
    }

    /// Returns by which map this node answers whom: other nodes while its lease holds, as its answers to them count, everybody else
    /// while its serving lease does.
    pub(crate) fn serves(&self, role: Role) -> Result<Serving, WireError> {
        let serving = self.serving().ok_or(WireError::NoLease)?;
        self.check_serves(role)?;
        Ok(serving)
    }

    /// Checks the lease by which somebody is answered; asked before the work and again before the answer leaves.
    pub(crate) fn check_serves(&self, role: Role) -> Result<(), WireError> {
        match role {
            Role::Node => self.check_lease(),
            Role::Client | Role::Coordinator => self.check_serving_lease(),
        }
    }

    pub(crate) fn check_serving_lease(&self) -> Result<(), WireError> {
        if self.now() < self.tenancy().serving { Ok(()) } else { Err(WireError::NoLease) }
    }

    /// Says whether this node serves though no coordinator has renewed its lease.
    pub(crate) fn is_alone(&self) -> bool {
        self.check_lease().is_err() && self.check_serving_lease().is_ok()
    }
}
