//! Actors as their users meet them: bounded, asked with a deadline, made anew after a panic, ended in order.

use kvhive_runtime::{
    Actor, AskError, Clock, Context, ManualClock, Reply, RestartPolicy, Runtime, RuntimeConfig, SendError,
    Sender, Spawn, Stage,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Worker {
    sum: u64,
    ticks: u64,
}

enum Message {
    Add(u64),
    Sum(Reply<u64>),
    Panic,
    /// Says that it is being handled, then waits until the other end of `until` goes.
    Hold {
        begun: mpsc::Sender<()>,
        until: mpsc::Receiver<()>,
    },
    TickEvery(Duration),
    Tick,
    Ticks(Reply<u64>),
    Swallow(#[expect(dead_code, reason = "dropped unanswered")] Reply<u64>),
    Later(Duration, u64),
    Stop,
}

impl Actor for Worker {
    type Message = Message;

    fn handle(&mut self, message: Message, ctx: &mut Context<'_, Self>) {
        match message {
            Message::Add(amount) => self.sum += amount,
            Message::Sum(reply) => reply.send(self.sum),
            Message::Panic => panic!("asked to"),
            Message::Hold { begun, until } => {
                begun.send(()).expect("the test waits");
                let _ = until.recv();
            }
            Message::TickEvery(period) => ctx.run_interval(period, || Message::Tick),
            Message::Tick => self.ticks += 1,
            Message::Ticks(reply) => reply.send(self.ticks),
            Message::Swallow(_) => {}
            Message::Later(delay, amount) => ctx.run_later(delay, Message::Add(amount)),
            Message::Stop => ctx.stop(),
        }
    }
}

fn runtime() -> Runtime {
    Runtime::new(RuntimeConfig { name: "test".into(), io_threads: 2 }).expect("threads are to be had")
}

fn worker(runtime: &Runtime, mailbox: usize) -> Sender<Message> {
    let arbiter = runtime.arbiter("worker").expect("the system runs");
    Spawn::new("worker").mailbox(mailbox).on(&arbiter, Worker::default)
}

fn sum(runtime: &Runtime, worker: &Sender<Message>) -> Result<u64, AskError> {
    runtime.io().block_on(worker.ask(PATIENCE, Message::Sum))
}

/// Makes the worker wait until the returned end is dropped.
fn hold(worker: &Sender<Message>) -> mpsc::Sender<()> {
    let (begun, has_begun) = mpsc::channel();
    let (release, until) = mpsc::channel();
    worker.try_send(Message::Hold { begun, until }).expect("there is room");
    has_begun.recv_timeout(PATIENCE).expect("it is handled");
    release
}

#[test]
fn messages_are_handled_in_order_and_questions_answered_from_any_thread() {
    let runtime = runtime();
    let worker = worker(&runtime, 64);
    for amount in 1..=10 {
        worker.try_send(Message::Add(amount)).expect("there is room");
    }
    assert_eq!(sum(&runtime, &worker), Ok(55));
    let asked_elsewhere = {
        let (worker, io) = (worker.clone(), runtime.io().clone());
        std::thread::spawn(move || io.block_on(worker.ask(PATIENCE, Message::Sum)))
    };
    assert_eq!(asked_elsewhere.join().expect("no panic"), Ok(55));
    runtime.shutdown(PATIENCE);
    assert_eq!(worker.try_send(Message::Add(1)), Err(SendError::Closed));
}

#[test]
fn a_full_mailbox_refuses_at_once() {
    let runtime = runtime();
    let worker = worker(&runtime, 4);
    let release = hold(&worker);
    let taken = (0..100).filter(|_| worker.try_send(Message::Add(1)).is_ok()).count();
    assert!((4..=5).contains(&taken), "{taken} of 100 fit into a mailbox of 4");
    assert_eq!(sum(&runtime, &worker), Err(AskError::Full));
    drop(release);
    while sum(&runtime, &worker) != Ok(taken as u64) {
        std::thread::yield_now();
    }
    runtime.shutdown(PATIENCE);
}

#[test]
fn times_that_were_missed_are_not_made_up_for() {
    let runtime = runtime();
    let worker = worker(&runtime, 64);
    let period = Duration::from_millis(40);
    let ticks = || runtime.io().block_on(worker.ask(PATIENCE, Message::Ticks)).expect("it answers");
    worker.try_send(Message::TickEvery(period)).expect("there is room");
    while ticks() == 0 {
        std::thread::yield_now();
    }
    let begun = Instant::now();
    let before = ticks();
    let release = hold(&worker);
    let until_held = begun.elapsed();
    std::thread::sleep(period * 25);
    let released = Instant::now();
    drop(release);
    let mut after = ticks();
    while after < before + 2 {
        std::thread::yield_now();
        after = ticks();
    }
    // The last that was due, and those before and since, however slow this machine is.
    let free = until_held + released.elapsed();
    let most = 3 + free.as_millis() / period.as_millis();
    assert!(u128::from(after - before) <= most, "{} ticks where {most} are allowed", after - before);
    runtime.shutdown(PATIENCE);
}

#[test]
fn a_question_has_a_deadline_and_a_dropped_one_is_told() {
    let runtime = runtime();
    let worker = worker(&runtime, 4);
    assert_eq!(runtime.io().block_on(worker.ask(PATIENCE, Message::Swallow)), Err(AskError::Closed));
    let release = hold(&worker);
    let short = Duration::from_millis(5);
    assert_eq!(runtime.io().block_on(worker.ask(short, Message::Sum)), Err(AskError::Deadline));
    drop(release);
    runtime.shutdown(PATIENCE);
}

#[test]
fn an_actor_that_panics_is_made_anew_and_serves_what_waited() {
    let runtime = runtime();
    let restarts = Arc::new(AtomicUsize::new(0));
    let arbiter = runtime.arbiter("worker").expect("the system runs");
    let worker = {
        let restarts = restarts.clone();
        Spawn::new("worker")
            .on_restart(move || {
                restarts.fetch_add(1, Ordering::SeqCst);
            })
            .on(&arbiter, Worker::default)
    };
    worker.try_send(Message::Add(5)).expect("there is room");
    let release = hold(&worker);
    worker.try_send(Message::Panic).expect("there is room");
    worker.try_send(Message::Add(7)).expect("there is room");
    drop(release);
    assert_eq!(sum(&runtime, &worker), Ok(7), "the new actor begins empty and serves what waited");
    assert_eq!(restarts.load(Ordering::SeqCst), 1);
    runtime.shutdown(PATIENCE);
}

#[test]
fn an_actor_that_panics_too_often_is_given_up() {
    let runtime = runtime();
    let (gave_up, told) = mpsc::channel();
    let arbiter = runtime.arbiter("worker").expect("the system runs");
    let worker = Spawn::new("worker")
        .policy(RestartPolicy { max_restarts: 2, within: Duration::from_secs(3600) })
        .on_give_up(move || gave_up.send(()).expect("the test waits"))
        .on(&arbiter, Worker::default);
    for _ in 0..3 {
        worker.try_send(Message::Panic).expect("there is room");
    }
    told.recv_timeout(PATIENCE).expect("it is given up");
    while worker.try_send(Message::Add(1)) != Err(SendError::Closed) {
        std::thread::yield_now();
    }
    runtime.shutdown(PATIENCE);
}

#[test]
fn intervals_tick_until_the_actor_panics() {
    let runtime = runtime();
    let worker = worker(&runtime, 16);
    let ticks = || runtime.io().block_on(worker.ask(PATIENCE, Message::Ticks)).expect("it lives");
    worker.try_send(Message::TickEvery(Duration::from_millis(1))).expect("there is room");
    while ticks() < 3 {
        std::thread::yield_now();
    }
    worker.try_send(Message::Panic).expect("there is room");
    worker.try_send(Message::Later(Duration::from_millis(30), 1)).expect("there is room");
    while sum(&runtime, &worker) != Ok(1) {
        std::thread::yield_now();
    }
    assert_eq!(ticks(), 0, "the interval ended with the actor that began it");
    worker.try_send(Message::Stop).expect("there is room");
    while worker.try_send(Message::Add(1)) != Err(SendError::Closed) {
        std::thread::yield_now();
    }
    runtime.shutdown(PATIENCE);
}

#[test]
fn arbiters_bear_their_names() {
    let runtime = runtime();
    let arbiter = runtime.arbiter("device-0 of many").expect("the system runs");
    let worker = Spawn::new("worker").on(&arbiter, Worker::default);
    assert_eq!(sum(&runtime, &worker), Ok(0));
    let names: Vec<String> = std::fs::read_dir("/proc/self/task")
        .expect("Linux")
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .collect();
    assert!(names.iter().any(|name| name.trim() == "device-0 of man"), "{names:?}");
    runtime.shutdown(PATIENCE);
}

#[test]
fn shutdown_runs_its_stages_in_order_and_leaves_behind_what_hangs() {
    let runtime = runtime();
    let done: Arc<Mutex<Vec<&str>>> = Arc::default();
    for (stage, name) in [
        (Stage::CloseDisks, "disks"),
        (Stage::DrainRequests, "requests"),
        (Stage::StopAccepting, "listeners"),
    ] {
        let done = done.clone();
        runtime.on_shutdown().at(stage, name, async move { done.lock().expect("no panic").push(name) });
    }
    runtime.on_shutdown().at(Stage::DrainRequests, "hangs", std::future::pending());
    runtime.shutdown(Duration::from_secs(2));
    assert_eq!(*done.lock().expect("no panic"), ["listeners", "requests", "disks"]);
}

#[test]
fn a_thread_that_hangs_is_left_behind() {
    let runtime = runtime();
    let worker = worker(&runtime, 4);
    let release = hold(&worker);
    // Returns although the worker's thread does not end.
    runtime.shutdown(Duration::from_millis(200));
    drop(release);
}

#[test]
fn a_manual_clock_moves_only_by_hand() {
    let clock = ManualClock::default();
    let before = clock.now();
    clock.advance(Duration::from_secs(3));
    assert_eq!(clock.now().since(before), Duration::from_secs(3));
    let boot = kvhive_runtime::BootClock;
    assert!(boot.now() <= boot.now());
}
