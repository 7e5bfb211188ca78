//! A serving engine as far as its cache events go: publishes batches in vLLM's wire format over ZMTP and repeats them. That ours
//! also hears ZeroMQ's own library is `tests/tests/engines.rs`'s to show.

use rmpv::Value;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Tokens of one of its blocks.
pub(crate) const BLOCK_TOKENS: usize = 16;

/// One engine. Dropped, its process ends.
pub(crate) struct FakeEngine {
    pub(crate) events: SocketAddr,
    pub(crate) replay: SocketAddr,
    shared: Arc<Shared>,
    doors: Vec<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    ring: Mutex<Vec<Vec<u8>>>,
    listeners: Mutex<Vec<TcpStream>>,
    ends: AtomicBool,
    /// Replays that are yet to break off.
    breaks: AtomicU32,
}

impl FakeEngine {
    /// Starts one on free ports.
    pub(crate) fn start() -> FakeEngine {
        FakeEngine::on([0, 1].map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")))
    }

    /// Ends this one, and starts another in its place.
    pub(crate) fn restarted(self) -> FakeEngine {
        let places = [self.events, self.replay];
        drop(self);
        FakeEngine::on(places.map(|place| TcpListener::bind(place).expect("its port is free again")))
    }

    fn on([events, replay]: [TcpListener; 2]) -> FakeEngine {
        let shared = Arc::new(Shared::default());
        let address = |listener: &TcpListener| listener.local_addr().expect("it is bound");
        let places = [address(&events), address(&replay)];
        let doors = [(events, publisher as Door), (replay, repeater as Door)].map(|(listener, door)| {
            let shared = shared.clone();
            std::thread::spawn(move || {
                listener.set_nonblocking(true).expect("a listener can");
                while !shared.ends.load(Ordering::Relaxed) {
                    match listener.accept() {
                        // Who leaves half-way is nobody's trouble.
                        Ok((stream, _)) => drop(door(stream, &shared)),
                        Err(_) => std::thread::sleep(Duration::from_millis(5)),
                    }
                }
            })
        });
        FakeEngine { events: places[0], replay: places[1], shared, doors: doors.into() }
    }

    /// Publishes some events.
    pub(crate) fn publish(&self, events: Vec<Value>) {
        let (number, payload) = self.keep(events);
        let message = message(&[b"kv@engine", &number.to_be_bytes(), &payload]);
        let mut listeners = self.shared.listeners.lock().expect("nobody panics here");
        listeners.retain_mut(|listener| listener.write_all(&message).is_ok());
    }

    /// Has some events happen that nobody hears of until they are repeated.
    pub(crate) fn lose(&self, events: Vec<Value>) {
        self.keep(events);
    }

    /// Has the next replays break off before anything of them is said.
    pub(crate) fn break_off(&self, replays: u32) {
        self.shared.breaks.store(replays, Ordering::Relaxed);
    }

    /// Returns how many of those have yet to be asked for.
    pub(crate) fn left_to_break_off(&self) -> u32 {
        self.shared.breaks.load(Ordering::Relaxed)
    }

    fn keep(&self, events: Vec<Value>) -> (u64, Vec<u8>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let batch = Value::Array(vec![Value::from(now), Value::Array(events), Value::Nil]);
        let mut payload = Vec::new();
        rmpv::encode::write_value(&mut payload, &batch).expect("it encodes");
        let mut ring = self.shared.ring.lock().expect("nobody panics here");
        ring.push(payload.clone());
        (ring.len() as u64 - 1, payload)
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        for door in self.doors.drain(..) {
            let _ = door.join();
        }
    }
}

type Door = fn(TcpStream, &Shared) -> io::Result<()>;

fn publisher(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    greet(&mut stream, b"PUB")?;
    assert_eq!(frame(&mut stream)?.1, b"\x01kv@", "it subscribes to its topic");
    shared.listeners.lock().expect("nobody panics here").push(stream);
    Ok(())
}

fn repeater(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    greet(&mut stream, b"ROUTER")?;
    assert_eq!(frame(&mut stream)?, (1, Vec::new()), "a separator, more to come");
    let from = frame(&mut stream)?.1;
    let from = u64::from_be_bytes(from.try_into().expect("eight bytes"));
    if shared.breaks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        return Ok(());
    }
    let ring = shared.ring.lock().expect("nobody panics here").clone();
    for (number, payload) in (0..).zip(&ring).skip(from as usize) {
        stream.write_all(&message(&[b"", &u64::to_be_bytes(number), payload]))?;
    }
    stream.write_all(&message(&[b"", &[0xff; 8], b""]))?;
    // Until the asker has read it all and leaves.
    stream.read_to_end(&mut Vec::new()).map(|_| ())
}

fn greet(stream: &mut TcpStream, kind: &[u8]) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    stream.write_all(&greeting)?;
    stream.read_exact(&mut greeting)?;
    let ready = [b"\x05READY\x0bSocket-Type\0\0\0", &[kind.len() as u8][..], kind].concat();
    stream.write_all(&[&[4, ready.len() as u8], &ready[..]].concat())?;
    frame(stream).map(|_| ())
}

/// Reads one short frame: its flags and its body.
fn frame(stream: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    let mut body = vec![0; head[1].into()];
    stream.read_exact(&mut body)?;
    Ok((head[0], body))
}

/// Makes a message of these parts.
fn message(parts: &[&[u8]]) -> Vec<u8> {
    let mut message = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        message.push(2 | u8::from(at + 1 < parts.len()));
        message.extend_from_slice(&(part.len() as u64).to_be_bytes());
        message.extend_from_slice(part);
    }
    message
}

/// The tokens of `blocks` blocks of a prompt.
pub(crate) fn tokens(prompt: u32, blocks: usize) -> Vec<u32> {
    (0..(blocks * BLOCK_TOKENS) as u32).map(|token| prompt * 100_000 + token).collect()
}

/// The engine's hash of block `at` of a prompt.
pub(crate) fn hash(prompt: u32, at: usize) -> Vec<u8> {
    [[prompt as u8; 24].as_slice(), &((u64::from(prompt) << 32) | (at as u64 + 1)).to_be_bytes()].concat()
}

/// Blocks of a prompt are stored, as the newest releases say it.
pub(crate) fn stored(prompt: u32, blocks: std::ops::Range<usize>) -> Value {
    let all = tokens(prompt, blocks.end);
    let parent = blocks.start.checked_sub(1).map_or(Value::Nil, |at| Value::Binary(hash(prompt, at)));
    let own = all[blocks.start * BLOCK_TOKENS..].iter().map(|token| Value::from(*token)).collect();
    let hashes = blocks.map(|at| Value::Binary(hash(prompt, at))).collect();
    map([
        ("type", Value::from("BlockStored")),
        ("block_hashes", Value::Array(hashes)),
        ("parent_block_hash", parent),
        ("token_ids", Value::Array(own)),
        ("block_size", Value::from(BLOCK_TOKENS)),
        ("medium", Value::from("GPU")),
    ])
}

/// A block is gone.
pub(crate) fn removed(prompt: u32, at: usize) -> Value {
    map([
        ("type", Value::from("BlockRemoved")),
        ("block_hashes", Value::Array(vec![Value::Binary(hash(prompt, at))])),
        ("medium", Value::from("GPU")),
    ])
}

fn map<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Map(pairs.into_iter().map(|(name, value)| (Value::from(name), value)).collect())
}
