//! A peer's announcements cost no memory: what is held grows with what has come. A counting allocator is the witness, so
//! this is a program of its own with one test.

#![allow(unsafe_code, reason = "an allocator that counts can only be an unsafe implementation")]

use kvhive_protocol::frame::{self, FRAME_HEADER_BYTES, FrameLimits, Kind};
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_wire::{Connection, Fault, Identity, Listening};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; the counters do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), SeqCst) + layout.size();
        PEAK.fetch_max(held, SeqCst);
        // SAFETY: the caller keeps the contract of this very function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller keeps the contract of this very function.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PATIENCE: Duration = Duration::from_secs(20);
/// What one connection may hold before anything large has come.
const SMALL: usize = 256 * 1024;

fn token() -> TokenKey {
    TokenKey::new(b"the right token")
}

fn identity() -> Identity {
    Identity {
        token: token(),
        role: Role::Client,
        sender: 0,
        cluster: None,
        tls: None,
        levels: Default::default(),
    }
}

/// The header of a frame that announces a message of so many bytes.
fn announcing(message_bytes: u32) -> Vec<u8> {
    let mut header = Vec::new();
    frame::encode_frame(Kind::DataRequest, 1, &(), 0, &mut header).expect("a small frame");
    header.truncate(FRAME_HEADER_BYTES);
    let at = header.len() - FRAME_HEADER_BYTES + MESSAGE_BYTES_AT;
    header[at..at + 4].copy_from_slice(&message_bytes.to_le_bytes());
    header
}

/// Where the header says how long the message is (docs/protocol.md).
const MESSAGE_BYTES_AT: usize = 16;

/// Returns the bytes allocated at most, beyond what was held before, while `work` ran.
async fn peak_of(work: impl Future<Output = ()>) -> usize {
    let before = HELD.load(SeqCst);
    PEAK.store(before, SeqCst);
    work.await;
    PEAK.load(SeqCst) - before
}

/// Passes bytes between a client that greets properly and the listening end, then writes its own.
async fn after_the_greeting(bytes: Vec<u8>) -> Result<(), Fault> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let accept = async {
        let (stream, _) = listener.accept().await.expect("somebody connects");
        let (mut connection, _) = Connection::accept(
            stream,
            &Listening { token: token(), cluster: None, tls: None, levels: Default::default() },
            PATIENCE,
        )
        .await?;
        connection.receive().await.map(|_| ())
    };
    let ask = async {
        let proxy = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let front = proxy.local_addr().expect("bound").to_string();
        let identity = identity();
        let greet = Connection::connect(&front, &identity, PATIENCE);
        let relay = async {
            let (mut inner, _) = proxy.accept().await.expect("the client connects");
            let mut outer = TcpStream::connect(address).await.expect("it listens");
            // The greeting is over when the client has what it waits for.
            let mut from_client = [0u8; 2048];
            let mut from_server = [0u8; 2048];
            loop {
                tokio::select! {
                    count = inner.read(&mut from_client) => match count {
                        Ok(0) | Err(_) => break,
                        Ok(count) => outer.write_all(&from_client[..count]).await.expect("passed on"),
                    },
                    count = outer.read(&mut from_server) => match count {
                        Ok(0) | Err(_) => break,
                        Ok(count) => inner.write_all(&from_server[..count]).await.expect("passed on"),
                    },
                }
            }
            outer.write_all(&bytes).await.expect("it listens still");
            outer.shutdown().await.expect("closed in order");
        };
        let greeted = async {
            let connection = greet.await.expect("let in");
            drop(connection);
        };
        tokio::join!(relay, greeted);
    };
    tokio::join!(accept, ask).0
}

#[tokio::test]
async fn what_a_peer_announces_costs_nothing_until_it_comes() {
    // Once, so that what is allocated once for all is there.
    let ended = after_the_greeting(Vec::new()).await;
    assert!(matches!(ended, Err(Fault::Closed)), "{ended:?}");

    let largest = FrameLimits::OPEN.message_bytes;
    assert!(largest as usize > 4 * SMALL, "the largest message is worth announcing");
    let mut outcome = Ok(());
    let peak = peak_of(Box::pin(async { outcome = after_the_greeting(announcing(largest)).await })).await;
    assert!(matches!(outcome, Err(Fault::Io(_))), "it was believed and awaited: {outcome:?}");
    assert!(peak < SMALL, "{peak} bytes for a message of {largest} that never came");

    let peak = peak_of(Box::pin(async { outcome = after_the_greeting(announcing(largest + 1)).await })).await;
    assert!(matches!(outcome, Err(Fault::Protocol(_))), "too much is refused unread: {outcome:?}");
    assert!(peak < SMALL, "{peak} bytes for a message that is refused");

    // The measure works: what does come is held.
    let mut whole = announcing(largest);
    whole.extend(std::iter::repeat_n(0u8, largest as usize));
    let peak = peak_of(Box::pin(async { outcome = after_the_greeting(whole).await })).await;
    assert!(matches!(outcome, Err(Fault::Protocol(_))), "its checksum is wrong: {outcome:?}");
    assert!(peak >= largest as usize, "{peak}");
}
