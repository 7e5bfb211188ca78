//! Ids, versions and counters as types of their own, so that two of them never swap places in a call.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter! {
    /// A node of the cluster, numbered by the coordinators when its name first registers.
    MemberId, u32
}
counter! {
    /// A tenant, numbered by the coordinators at creation. Tenant 1 is `default`.
    TenantId, u32
}
counter! {
    /// The cluster map's version. Grows by every change that members or clients can see, never goes back.
    Epoch, u64
}
counter! {
    /// A tenant's counter; clearing a tenant raises it, and blocks of an older era do not exist.
    Era, u64
}
counter! {
    /// One start of one member, numbered by the coordinators at registration, never by a clock.
    Generation, u64
}
counter! {
    /// The unit of placement: `hash(home key) mod SLOTS`.
    Slot, u16
}

impl Epoch {
    /// Returns the epoch after this one.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl Era {
    /// Returns the era after this one.
    #[must_use]
    pub fn next(self) -> Era {
        Era(self.0 + 1)
    }
}

impl Generation {
    /// Returns the generation after this one.
    #[must_use]
    pub fn next(self) -> Generation {
        Generation(self.0 + 1)
    }
}

impl Slot {
    /// Returns every slot, in order.
    pub fn all() -> impl Iterator<Item = Slot> {
        (0..crate::SLOTS).map(Slot)
    }
}

/// One device (a GPU, or host memory standing in for one) of a member, owned by one device actor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct DeviceId {
    /// The node it belongs to.
    pub member: MemberId,
    /// Its position on that node, from 0.
    pub index: u16,
}

impl DeviceId {
    /// Names device `index` of `member`.
    pub const fn new(member: MemberId, index: u16) -> Self {
        DeviceId { member, index }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.member, self.index)
    }
}

/// A cluster's random identity; two clusters can never mix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Names one control request, so that a repeat of it happens once and its outcome can be asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct RequestId {
    /// The asker's random identity, fresh at each start.
    pub client: u128,
    /// The asker's counter, from 1. Of an asker that asks once it may be a print of what it asks: see [`RequestId::named`].
    pub sequence: u64,
}

impl RequestId {
    /// Sequences from this one on are prints: no counter gets here.
    const PRINTS: u64 = 1 << 63;

    /// Names a change by what was drawn for it alone, and by a print of what is asked: under one name, two of other prints are two
    /// changes, of which one at most can be meant. From [`Level::CHECKED`](crate::Level::CHECKED) on.
    pub fn named(drawn: u128, print: u64) -> RequestId {
        RequestId { client: drawn, sequence: print | Self::PRINTS }
    }

    /// Says whether the sequence is a print of what is asked.
    pub fn has_print(&self) -> bool {
        self.sequence >= Self::PRINTS
    }
}
