//! How kvhive's actors run: one enum of messages an actor, bounded senders, asks with a deadline, named threads, a clock,
//! supervision and shutdown in order. The only crate that names actix, so that it could be replaced here alone.
//!
//! ```
//! use kvhive_runtime::{Actor, Context, Reply, Runtime, RuntimeConfig, Spawn};
//! use std::time::Duration;
//!
//! struct Counter(u64);
//! enum Message {
//!     Add { amount: u64, total: Reply<u64> },
//! }
//! impl Actor for Counter {
//!     type Message = Message;
//!     fn handle(&mut self, message: Message, _ctx: &mut Context<'_, Self>) {
//!         let Message::Add { amount, total } = message;
//!         self.0 += amount;
//!         total.send(self.0);
//!     }
//! }
//!
//! let runtime = Runtime::new(RuntimeConfig { name: "example".into(), io_threads: 1 })?;
//! let arbiter = runtime.arbiter("counter")?;
//! let counter = Spawn::new("counter").mailbox(8).on(&arbiter, || Counter(0));
//! let total = runtime.io().block_on(async {
//!     counter.ask(Duration::from_secs(5), |total| Message::Add { amount: 3, total }).await
//! });
//! assert_eq!(total, Ok(3));
//! runtime.shutdown(Duration::from_secs(5));
//! # Ok::<(), kvhive_runtime::RuntimeError>(())
//! ```

mod accept;
mod actor;
mod clock;
mod door;
pub mod http;
mod places;
mod runtime;
mod sender;
mod shutdown;

pub use accept::accept;
pub use actor::{Actor, Context, RestartPolicy, Spawn};
pub use clock::{BootClock, Clock, ManualClock, wall_ms};
pub use door::{BoundedListener, BoundedStream, DoorLimits};
pub use places::{Place, Places};
pub use runtime::{NamedArbiter, Runtime, RuntimeConfig, RuntimeError};
pub use sender::{AskError, Reply, SendError, Sender};
pub use shutdown::{Shutdown, Stage, shutdown_signal, stopped};
