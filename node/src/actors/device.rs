//! The device actor, and the way to it. Its state is a core that one thread at a time may be in. The actor's own thread does
//! what comes by mailbox and by the clock; an asker that finds the core free goes in itself, and is spared two changes of
//! thread, which would cost more than the answer (docs/decisions/0009).

use crate::actors::core::{DeviceCore, DeviceMessage};
use crate::traffic::TrafficCounters;
use crate::work::WorkCounters;
use kvhive_gpu::cuda::CudaDevice;
use kvhive_runtime::{Actor, AskError, Context, NamedArbiter, Reply, Sender, Spawn};
use kvhive_spans::Span;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

/// How long askers have the core to themselves between two pieces of what the policies are told.
const BETWEEN_TELLS: Duration = Duration::from_millis(1);

/// The way to one device.
#[derive(Clone)]
pub(crate) struct Device {
    actor: Sender<DeviceMessage>,
    core: Arc<Mutex<DeviceCore>>,
    /// Whose memory its device tier is, if it is a GPU's.
    pub(crate) gpu: Option<Arc<CudaDevice>>,
    /// What is asked of it.
    pub(crate) work: Arc<WorkCounters>,
    /// What it is read and given.
    pub(crate) traffic: Arc<TrafficCounters>,
}

impl Device {
    /// Starts the actor of the core that `make` makes; `make` is called again after a panic. What can wait is done every
    /// `tend_every`.
    pub(crate) fn start(
        spawn: Spawn,
        arbiter: &NamedArbiter,
        tend_every: Duration,
        gpu: Option<Arc<CudaDevice>>,
        mut make: impl FnMut() -> DeviceCore + Send + 'static,
    ) -> Device {
        let core = Arc::new(Mutex::new(make()));
        let of_actor = core.clone();
        let actor = spawn.on(arbiter, move || {
            if of_actor.is_poisoned() {
                // What a panic has left half done is replaced before anybody can see it.
                *of_actor.lock().unwrap_or_else(|poison| poison.into_inner()) = make();
                of_actor.clear_poison();
            }
            DeviceActor { core: of_actor.clone(), tend_every, is_telling: false }
        });
        Device { actor, core, gpu, work: Arc::default(), traffic: Arc::default() }
    }

    /// Asks, by going in if nobody is, else by the mailbox.
    ///
    /// # Errors
    /// As [`Sender::ask`].
    pub(crate) async fn ask<T>(
        &self,
        limit: Duration,
        question: impl FnOnce(Reply<T>) -> DeviceMessage,
    ) -> Result<T, AskError> {
        if let Ok(core) = self.core.try_lock() {
            return answer_in(core, question);
        }
        self.actor.ask(limit, question).await
    }

    /// As [`Device::ask`]; of what is traced, how long it waited for the device and how long that took are parts of `span`.
    ///
    /// # Errors
    /// As [`Sender::ask`].
    pub(crate) async fn ask_traced<T>(
        &self,
        span: &Span,
        limit: Duration,
        question: impl FnOnce(Reply<T>) -> DeviceMessage,
    ) -> Result<T, AskError> {
        if !span.is_on() {
            return self.ask(limit, question).await;
        }
        let (asked, begun) = (Instant::now(), Arc::new(OnceLock::new()));
        let stamp = begun.clone();
        let stamped = |reply| DeviceMessage::Traced { message: Box::new(question(reply)), begun: stamp };
        let answer = self.ask(limit, stamped).await;
        let answered = Instant::now();
        // One that was not begun has waited all the time.
        let begun = begun.get().copied().unwrap_or(answered);
        span.past("queue", asked, begun);
        span.past("device", begun, answered);
        answer
    }

    /// Returns the actor's mailbox.
    #[cfg(test)]
    pub(crate) fn actor(&self) -> &Sender<DeviceMessage> {
        &self.actor
    }
}

fn answer_in<T>(
    mut core: MutexGuard<'_, DeviceCore>,
    question: impl FnOnce(Reply<T>) -> DeviceMessage,
) -> Result<T, AskError> {
    let (reply, mut answer) = Reply::channel();
    core.handle(question(reply));
    drop(core);
    answer.try_recv().map_err(|_| AskError::Closed)
}

/// One device's actor.
struct DeviceActor {
    core: Arc<Mutex<DeviceCore>>,
    tend_every: Duration,
    /// It comes back for what it has not told the policies yet.
    is_telling: bool,
}

impl Actor for DeviceActor {
    type Message = DeviceMessage;

    fn started(&mut self, ctx: &mut Context<'_, Self>) {
        ctx.run_interval(self.tend_every, || DeviceMessage::Tend);
    }

    fn handle(&mut self, message: DeviceMessage, ctx: &mut Context<'_, Self>) {
        let begins_to_tell = matches!(message, DeviceMessage::Tend) && !self.is_telling;
        let goes_on_telling = matches!(message, DeviceMessage::TellUses);
        // An asker has panicked inside: this actor ends here, and the next one has a new core.
        let mut core = self.core.lock().expect("a core is whole unless a panic has ended it");
        core.handle(message);
        if begins_to_tell || goes_on_telling {
            self.is_telling = core.has_untold();
            if self.is_telling {
                ctx.run_later(BETWEEN_TELLS, DeviceMessage::TellUses);
            }
        }
    }
}
