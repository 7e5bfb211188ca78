//! What this node and others of its host have of each other's memory: who may look at it or lend it some, the passes that they are given,
//! and the door at which they get what maps it, or show what they lend. Which blocks they are told the places of is the data plane's.

mod passes;
mod stages;

use crate::data::{Counters, count};
use crate::memory::Memory;
use kvhive_gpu::Arena;
use kvhive_protocol::handshake::Role;
use kvhive_protocol::share::{HostId, NotShared, Pass, ShareAnswer, ShareOffer};
use kvhive_runtime::{Runtime, stopped};
use kvhive_wire::{Door, Guest, Handed, this_host};
use passes::{Aim, Passes};
pub(crate) use stages::Staged;
use stages::Stages;
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tracing::{debug, warn};

/// Who comes in shows a pass and takes what there is within this.
const GUEST_LIMIT: Duration = Duration::from_secs(1);
/// Processes that look at a time, or are about to.
const MAX_GUESTS: usize = 1024;
/// Processes that were refused and told of, which are remembered: of more, each is told of again.
const MAX_TOLD: usize = 256;
/// After the socket has failed, as where descriptors have run out.
const REST: Duration = Duration::from_millis(100);

/// Who may look at a node's memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum ShareMemory {
    /// Nobody: it is memory of the node's own.
    Off,
    /// Other nodes.
    Nodes,
    /// Whoever may ask it for blocks.
    #[default]
    Clients,
}

impl ShareMemory {
    fn lets(self, role: Role) -> bool {
        match self {
            ShareMemory::Off => false,
            ShareMemory::Nodes => role == Role::Node,
            ShareMemory::Clients => true,
        }
    }
}

/// What a node shares.
pub(crate) struct Sharing {
    /// This start of the node: random, so that no other's is taken for it.
    start: u64,
    host: HostId,
    door: String,
    who: ShareMemory,
    arenas: Vec<Arena>,
    passes: Mutex<Passes>,
    guests: Arc<Semaphore>,
    stages: Stages,
}

impl Sharing {
    /// Opens the door to what of these memories can be shared, and for those who lend stages, if they may. None where nobody has anything to
    /// come for.
    fn open(who: ShareMemory, takes_stages: bool, memories: &[Memory]) -> Option<(Sharing, Door)> {
        let mut arenas: Vec<Arena> = memories.iter().flat_map(Memory::host_arenas).collect();
        if who == ShareMemory::Off || arenas.iter().all(|arena| arena.share().is_none()) {
            arenas.clear();
        }
        let stages = Stages::new(memories.iter().map(|memory| memory.gpu().filter(|_| takes_stages)));
        if arenas.is_empty() && stages.is_none() {
            return None;
        }
        let opened =
            this_host().zip(random()).map(|(host, start)| Door::open().map(|door| (host, start, door)));
        match opened {
            Some(Ok((host, start, door))) => {
                let sharing = Sharing {
                    start: u64::from_le_bytes(*start.0.first_chunk().expect("it has 32 bytes")),
                    host,
                    door: door.name().to_owned(),
                    who,
                    arenas,
                    passes: Mutex::default(),
                    guests: Arc::new(Semaphore::new(MAX_GUESTS)),
                    stages,
                };
                Some((sharing, door))
            }
            Some(Err(error)) => {
                warn!(%error, "nobody can look at this node's memory");
                None
            }
            None => {
                warn!("nobody can look at this node's memory: the system does not say which host this is");
                None
            }
        }
    }

    /// Returns which host this is.
    pub(crate) fn host(&self) -> HostId {
        self.host
    }

    /// Returns what this start of the node is called.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Says whether somebody may look, and how.
    pub(crate) fn offer(&self, role: Role, host: HostId) -> ShareAnswer {
        let refusal = match () {
            () if host != self.host => Some(NotShared::Elsewhere),
            () if self.arenas.is_empty() => Some(NotShared::Nothing),
            () => (!self.who.lets(role)).then_some(NotShared::Role),
        };
        refusal.map_or_else(|| self.let_in(Aim::Look), ShareAnswer::Not)
    }

    /// Says whether somebody may lend a stage to the device of this index, and how.
    pub(crate) fn offer_to_lend(&self, role: Role, host: HostId, device: u16) -> ShareAnswer {
        let refusal = match () {
            () if host != self.host => Some(NotShared::Elsewhere),
            () if !self.stages.are_of(device) => Some(NotShared::Nothing),
            () if role != Role::Client => Some(NotShared::Role),
            () => self.stages.is_full().then_some(NotShared::Full),
        };
        refusal.map_or_else(|| self.let_in(Aim::Lend(device)), ShareAnswer::Not)
    }

    /// Returns the stage that was lent to the device of this index by a pass, to be used for as long as somebody has what is returned.
    pub(crate) fn stage(&self, device: u16, pass: &Pass) -> Option<Staged> {
        self.stages.find(device, pass)
    }

    /// Returns how many stages are lent.
    pub(crate) fn stages(&self) -> usize {
        self.stages.count()
    }

    fn let_in(&self, aim: Aim) -> ShareAnswer {
        let pass = random().filter(|_| self.guests.available_permits() > 0);
        match pass.filter(|pass| self.passes().give(Instant::now(), *pass, aim)) {
            Some(pass) => {
                ShareAnswer::Offered(ShareOffer { start: self.start, door: self.door.clone(), pass })
            }
            None => ShareAnswer::Not(NotShared::Full),
        }
    }

    /// Returns how many processes look.
    pub(crate) fn guests(&self) -> usize {
        MAX_GUESTS - self.guests.available_permits()
    }

    fn passes(&self) -> std::sync::MutexGuard<'_, Passes> {
        // Nothing is left half-done under this lock.
        self.passes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets one in who shows a pass, and waits until it has gone.
    async fn receive(
        &self,
        guest: &mut Guest,
        counters: &Counters,
        mut stop: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let pass = guest.pass(GUEST_LIMIT).await?;
        let Some(aim) = self.passes().show(Instant::now(), &pass) else {
            count(&counters.share_refused_pass);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the pass is none, or no longer"));
        };
        if let Aim::Lend(device) = aim {
            // However it ends, the stage is let go of before the guest hears of that.
            return self.stages.receive(guest, device, pass, &mut stop).await;
        }
        let shared = self.arenas.iter().filter_map(Arena::share);
        let memory: Vec<_> =
            shared.map(|slab| Handed { number: slab.number, bytes: slab.bytes, file: slab.file }).collect();
        guest.hand(&memory, GUEST_LIMIT).await?;
        tokio::select! {
            () = guest.gone() => {}
            () = stopped(&mut stop) => {}
        }
        Ok(())
    }
}

/// Has others of this host look at these memories and lend some to their GPUs, if they may.
pub(crate) fn start(
    runtime: &Runtime,
    (who, takes_stages): (ShareMemory, bool),
    memories: &[Memory],
    counters: &Arc<Counters>,
    stopping: &watch::Receiver<bool>,
) -> Option<Arc<Sharing>> {
    // Where the door's socket is waited for.
    let _inside = runtime.io().enter();
    let (sharing, door) = Sharing::open(who, takes_stages, memories)?;
    let sharing = Arc::new(sharing);
    runtime.io().spawn(serve(door, sharing.clone(), counters.clone(), stopping.clone()));
    Some(sharing)
}

/// Stands at the door until `stop` turns true.
async fn serve(door: Door, sharing: Arc<Sharing>, counters: Arc<Counters>, mut stop: watch::Receiver<bool>) {
    let mut told = Told::default();
    loop {
        let came = tokio::select! {
            came = door.accept() => came,
            () = stopped(&mut stop) => return,
        };
        let mut guest = match came {
            Ok(guest) => guest,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                count(&counters.share_refused_user);
                // Once for each process: one that goes on trying would fill the log.
                if told.is_new(error.to_string()) {
                    warn!(%error, "memory not shared");
                }
                continue;
            }
            Err(error) => {
                debug!(%error, "nobody comes in");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        // Dropped where there is no place: it sees the door closed.
        let Ok(place) = sharing.guests.clone().try_acquire_owned() else { continue };
        let (sharing, counters, stop) = (sharing.clone(), counters.clone(), stop.clone());
        tokio::spawn(async move {
            if let Err(error) = sharing.receive(&mut guest, &counters, stop).await {
                debug!(%error, "memory neither handed over nor taken");
            }
            drop(place);
        });
    }
}

/// What was told lately.
#[derive(Default)]
struct Told(BTreeSet<String>);

impl Told {
    /// Says whether it was not told yet, and remembers it.
    fn is_new(&mut self, said: String) -> bool {
        if self.0.len() >= MAX_TOLD {
            self.0.clear();
        }
        self.0.insert(said)
    }
}

/// Draws 32 bytes; none where the system has none.
fn random() -> Option<Pass> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).ok()?;
    Some(Pass(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_and_what_is_remembered_is_bounded() {
        let mut told = Told::default();
        assert_eq!([1, 1, 2].map(|process| told.is_new(format!("process {process}"))), [true, false, true]);
        let fresh = (0..10 * MAX_TOLD).filter(|process| told.is_new(process.to_string())).count();
        assert_eq!(fresh, 10 * MAX_TOLD);
        assert!(told.0.len() <= MAX_TOLD && told.is_new("process 1".to_owned()));
    }

    #[test]
    fn who_may_look_is_the_nodes_to_say() {
        let roles = [Role::Client, Role::Node];
        let lets = |who: ShareMemory| roles.map(|role| who.lets(role));
        assert_eq!(lets(ShareMemory::Off), [false, false]);
        assert_eq!(lets(ShareMemory::Nodes), [false, true]);
        assert_eq!(lets(ShareMemory::Clients), [true, true]);
    }
}
