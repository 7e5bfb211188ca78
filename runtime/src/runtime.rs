//! The threads of a process: one actix system, named arbiters, a pool for sockets; and their end.

use crate::shutdown::Shutdown;
use actix::System;
use actix_rt::{Arbiter, ArbiterHandle};
use std::ffi::CString;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Handle;

/// Linux keeps this many bytes of a thread's name.
const MAX_THREAD_NAME: usize = 15;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// How a process's threads are made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuntimeConfig {
    /// Begins the names of its threads.
    pub name: String,
    /// Threads that serve sockets.
    pub io_threads: usize,
}

/// Why threads could not be made.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// The system gives no more threads.
    #[error("cannot start thread {name}: {source}")]
    Thread {
        /// Which thread.
        name: String,
        /// What the system says.
        source: io::Error,
    },
    /// The actor system has ended.
    #[error("the actor system has ended")]
    Ended,
}

/// Owns a process's threads. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    io: Mutex<Option<tokio::runtime::Runtime>>,
    io_handle: Handle,
    system: System,
    system_thread: Mutex<Option<JoinHandle<()>>>,
    arbiters: Mutex<Vec<Arbiter>>,
    shutdown: Shutdown,
}

/// An arbiter: one named thread that runs actors.
#[derive(Clone, Debug)]
pub struct NamedArbiter {
    name: String,
    handle: ArbiterHandle,
}

impl NamedArbiter {
    /// Returns its thread's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a task on its thread, between its actors' messages: what such a task and an actor tell each other wakes no
    /// other thread. Dropped when the arbiter has ended.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(task);
    }

    pub(crate) fn handle(&self) -> &ArbiterHandle {
        &self.handle
    }
}

impl Runtime {
    /// Starts the actor system and the socket threads. May be called on any thread, also of another runtime.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn new(config: RuntimeConfig) -> Result<Runtime, RuntimeError> {
        let fail = |name: &str| {
            let name = name.to_owned();
            move |source| RuntimeError::Thread { name, source }
        };
        let io = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.io_threads.max(1))
            .thread_name(short(&format!("{}-io", config.name)))
            .enable_all()
            .build()
            .map_err(fail("io"))?;
        let (ready, system) = mpsc::channel();
        let system_thread = std::thread::Builder::new()
            .name(short(&format!("{}-system", config.name)))
            .spawn(move || {
                let runner = System::new();
                // The maker may have given up; then the system ends with its only sender.
                if ready.send(System::current()).is_ok()
                    && let Err(error) = runner.run()
                {
                    tracing::error!(%error, "the actor system failed");
                }
            })
            .map_err(fail("system"))?;
        let system = system.recv().map_err(|_| RuntimeError::Ended)?;
        Ok(Runtime {
            shared: Arc::new(Shared {
                name: config.name,
                io_handle: io.handle().clone(),
                io: Mutex::new(Some(io)),
                system,
                system_thread: Mutex::new(Some(system_thread)),
                arbiters: Mutex::new(Vec::new()),
                shutdown: Shutdown::default(),
            }),
        })
    }

    /// Starts an arbiter on a thread of this name (its first 15 bytes show in `ps -L`).
    ///
    /// # Errors
    /// When the actor system has ended.
    pub fn arbiter(&self, name: &str) -> Result<NamedArbiter, RuntimeError> {
        let (ready, made) = mpsc::channel();
        let thread_name = CString::new(short(name)).unwrap_or_default();
        let started = self.shared.system.arbiter().spawn_fn(move || {
            let arbiter = Arbiter::with_tokio_rt(move || {
                // Runs on the new thread. A thread without its name works as well.
                let _ = rustix::thread::set_name(&thread_name);
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a current-thread runtime needs nothing but file descriptors")
            });
            // The maker waits for it.
            let _ = ready.send(arbiter);
        });
        if !started {
            return Err(RuntimeError::Ended);
        }
        let arbiter = made.recv().map_err(|_| RuntimeError::Ended)?;
        let handle = arbiter.handle();
        lock(&self.shared.arbiters).push(arbiter);
        Ok(NamedArbiter { name: name.to_owned(), handle })
    }

    /// Returns the runtime that serves sockets.
    pub fn io(&self) -> &Handle {
        &self.shared.io_handle
    }

    /// Opens a listener that the socket threads serve, and says where it listens (port 0 takes a free one). May be called
    /// on any thread.
    ///
    /// # Errors
    /// When the address is not to be had.
    pub fn listen(&self, address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
        let _entered = self.io().enter();
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A process started again takes the address over from connections of the one before it that still linger.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    }

    /// Returns what is done, in which order, when the process ends.
    pub fn on_shutdown(&self) -> &Shutdown {
        &self.shared.shutdown
    }

    /// Runs the shutdown stages, then ends every arbiter, the system and the socket threads, all within `limit`. Must not
    /// be called on one of this runtime's own threads. Later calls do nothing.
    pub fn shutdown(&self, limit: Duration) {
        let Some(io) = lock(&self.shared.io).take() else { return };
        let begun = std::time::Instant::now();
        self.shared.shutdown.run(io.handle(), limit);
        let arbiters: Vec<Arbiter> = lock(&self.shared.arbiters).drain(..).collect();
        for arbiter in &arbiters {
            arbiter.stop();
        }
        let (system, system_thread) = (self.shared.system.clone(), lock(&self.shared.system_thread).take());
        let (joined, all_joined) = mpsc::channel();
        let name = self.shared.name.clone();
        // Joining cannot be given a limit; waiting for who joins can.
        let joiner = std::thread::Builder::new().name(short(&format!("{name}-end"))).spawn(move || {
            let panicked = arbiters.into_iter().filter_map(|arbiter| arbiter.join().err()).count();
            system.stop();
            let panicked = panicked + usize::from(system_thread.is_some_and(|thread| thread.join().is_err()));
            if panicked > 0 {
                tracing::error!(runtime = %name, panicked, "threads panicked");
            }
            // Whoever waits may have given up.
            let _ = joined.send(());
        });
        let left = limit.saturating_sub(begun.elapsed());
        if joiner.is_err() || all_joined.recv_timeout(left).is_err() {
            tracing::warn!(runtime = %self.shared.name, ?limit, "threads took too long and are left behind");
        }
        io.shutdown_timeout(limit.saturating_sub(begun.elapsed()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing is left half-done under these locks.
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

fn short(name: &str) -> String {
    let mut end = name.len().min(MAX_THREAD_NAME);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Not shut down in order: let the threads go without waiting, which also works on one of them.
        if let Some(io) = lock(&self.io).take() {
            for arbiter in lock(&self.arbiters).drain(..) {
                arbiter.stop();
            }
            self.system.stop();
            io.shutdown_background();
        }
    }
}
