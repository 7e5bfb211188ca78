//! Actors and their supervision. actix drops an actor that panics and leaves its senders behind; here the panic is
//! caught, a new actor is made in its place, and the messages that were waiting are served by it.

use crate::runtime::NamedArbiter;
use crate::sender::Sender;
use actix::{Actor as _, ActorContext, AsyncContext, SpawnHandle};
use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use tracing::error;

/// Something that owns state and handles one message at a time on one thread.
pub trait Actor: Sized + Unpin + 'static {
    /// Everything it can be told; questions carry their [`crate::Reply`].
    type Message: Send + 'static;

    /// Runs before the first message, also of one made after a panic.
    fn started(&mut self, ctx: &mut Context<'_, Self>) {
        let _ = ctx;
    }

    /// Handles one message. Must not block for long: the thread's other actors wait.
    fn handle(&mut self, message: Self::Message, ctx: &mut Context<'_, Self>);

    /// Runs when the actor ends in order (not after a panic).
    fn stopping(&mut self) {}
}

/// How often an actor may panic before it is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestartPolicy {
    /// Restarts allowed within `within`.
    pub max_restarts: usize,
    /// The span in which they are counted.
    pub within: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        RestartPolicy { max_restarts: 5, within: Duration::from_secs(60) }
    }
}

/// How an actor is started.
pub struct Spawn {
    name: String,
    mailbox: usize,
    policy: RestartPolicy,
    on_restart: Box<dyn FnMut() + Send>,
    on_give_up: Box<dyn FnOnce() + Send>,
}

/// Messages that wait at most, unless [`Spawn::mailbox`] says otherwise.
const MAILBOX: usize = 256;

impl Spawn {
    /// Begins with the actor's name, for logs.
    pub fn new(name: impl Into<String>) -> Self {
        Spawn {
            name: name.into(),
            mailbox: MAILBOX,
            policy: RestartPolicy::default(),
            on_restart: Box::new(|| {}),
            on_give_up: Box::new(|| {}),
        }
    }

    /// Bounds the messages that wait.
    #[must_use]
    pub fn mailbox(mut self, messages: usize) -> Self {
        self.mailbox = messages;
        self
    }

    /// Bounds the restarts.
    #[must_use]
    pub fn policy(mut self, policy: RestartPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Runs on the actor's thread after each panic that leads to a restart.
    #[must_use]
    pub fn on_restart(mut self, hook: impl FnMut() + Send + 'static) -> Self {
        self.on_restart = Box::new(hook);
        self
    }

    /// Runs on the actor's thread when it is given up; its senders are closed from then on.
    #[must_use]
    pub fn on_give_up(mut self, hook: impl FnOnce() + Send + 'static) -> Self {
        self.on_give_up = Box::new(hook);
        self
    }

    /// Starts the actor that `make` makes, on the arbiter's thread; `make` is called again after a panic.
    pub fn on<A: Actor>(
        self,
        arbiter: &NamedArbiter,
        make: impl FnMut() -> A + Send + 'static,
    ) -> Sender<A::Message> {
        let address = Host::start_in_arbiter(arbiter.handle(), move |ctx| {
            ctx.set_mailbox_capacity(self.mailbox);
            Host {
                actor: None,
                make: Box::new(make),
                name: self.name,
                policy: self.policy,
                panics: VecDeque::new(),
                intervals: Vec::new(),
                on_restart: self.on_restart,
                on_give_up: Some(self.on_give_up),
            }
        });
        Sender::new(address.recipient())
    }
}

/// A message as actix carries it.
pub(crate) struct Deliver<M>(pub(crate) M);

impl<M: Send + 'static> actix::Message for Deliver<M> {
    type Result = ();
}

/// What actix runs: an [`Actor`], and what it takes to make another.
struct Host<A: Actor> {
    actor: Option<A>,
    make: Box<dyn FnMut() -> A>,
    name: String,
    policy: RestartPolicy,
    panics: VecDeque<Instant>,
    intervals: Vec<SpawnHandle>,
    on_restart: Box<dyn FnMut() + Send>,
    on_give_up: Option<Box<dyn FnOnce() + Send>>,
}

impl<A: Actor> Host<A> {
    /// Makes an actor if there is none and lets `work` have it; a panic in either costs the actor.
    fn guard(&mut self, ctx: &mut actix::Context<Self>, work: impl FnOnce(&mut A, &mut Context<'_, A>)) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let fresh = self.actor.is_none();
            let actor = self.actor.get_or_insert_with(&mut self.make);
            let mut context = Context { inner: ctx, intervals: &mut self.intervals };
            if fresh {
                actor.started(&mut context);
            }
            work(actor, &mut context);
        }));
        if let Err(panic) = outcome {
            self.panicked(ctx, panic.as_ref());
        }
    }

    fn panicked(&mut self, ctx: &mut actix::Context<Self>, panic: &(dyn Any + Send)) {
        let what = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        let broken = self.actor.take();
        // The broken actor's own drop may panic too; it is gone either way.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(broken)));
        for interval in self.intervals.drain(..) {
            ctx.cancel_future(interval);
        }
        let now = Instant::now();
        self.panics.push_back(now);
        while self.panics.front().is_some_and(|first| now.duration_since(*first) > self.policy.within) {
            self.panics.pop_front();
        }
        if self.panics.len() > self.policy.max_restarts {
            error!(actor = %self.name, panic = %what, "actor panicked too often and is given up");
            ctx.stop();
            if let Some(hook) = self.on_give_up.take() {
                hook();
            }
        } else {
            error!(actor = %self.name, panic = %what, "actor panicked and is made anew");
            (self.on_restart)();
            // Made at once, so that its timers run even if no message comes.
            self.guard(ctx, |_, _| {});
        }
    }
}

impl<A: Actor> actix::Actor for Host<A> {
    type Context = actix::Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.guard(ctx, |_, _| {});
    }

    fn stopped(&mut self, _ctx: &mut Self::Context) {
        if let Some(mut actor) = self.actor.take() {
            let _ = catch_unwind(AssertUnwindSafe(|| actor.stopping()));
        }
    }
}

impl<A: Actor> actix::Handler<Deliver<A::Message>> for Host<A> {
    type Result = ();

    fn handle(&mut self, Deliver(message): Deliver<A::Message>, ctx: &mut Self::Context) {
        self.guard(ctx, |actor, context| actor.handle(message, context));
    }
}

/// What an actor may do with its own running.
pub struct Context<'a, A: Actor> {
    inner: &'a mut actix::Context<Host<A>>,
    intervals: &'a mut Vec<SpawnHandle>,
}

impl<A: Actor> Context<'_, A> {
    /// Handles `message` after `delay`, past the mailbox's bound.
    pub fn run_later(&mut self, delay: Duration, message: A::Message) {
        self.inner.run_later(delay, move |host, ctx| {
            host.guard(ctx, |actor, context| actor.handle(message, context))
        });
    }

    /// Handles a message every `period`, past the mailbox's bound, until this actor ends; one made after a panic begins
    /// its own. A time that was missed, as the thread was held up for longer than a period, is not made up for.
    pub fn run_interval(&mut self, period: Duration, mut message: impl FnMut() -> A::Message + 'static) {
        let mut due = Instant::now();
        let handle = self.inner.run_interval(period, move |host, ctx| {
            // actix makes up for all of them at once, each in its turn.
            due += period;
            if due.elapsed() < period {
                host.guard(ctx, |actor, context| actor.handle(message(), context));
            }
        });
        self.intervals.push(handle);
    }

    /// Ends this actor after the present message.
    pub fn stop(&mut self) {
        self.inner.stop();
    }
}
