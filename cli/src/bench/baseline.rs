//! The baselines: what TCP itself does on this machine. A process of its own serves them, so that its CPU time counts
//! as a server's does.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

/// What the connecting end asks for: `b'B'` bytes from the server, `b'S'` bytes to it, `b'P'` ping-pong.
const BLAST: u8 = b'B';
const SINK: u8 = b'S';
const PING: u8 = b'P';
/// What, total bytes, bytes of a piece, bytes of memory that the server walks over.
const ORDER_BYTES: usize = 21;

/// Serves baselines on a free loopback port, which it prints, until standard input ends. A hidden verb of the command.
///
/// # Errors
/// When a socket fails.
pub(crate) fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    std::thread::spawn(|| {
        // The parent's end of the pipe closes when it ends, however it ends.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            // An end of the stream is how each of them ends.
            let _ = answer(stream);
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut order = [0u8; ORDER_BYTES];
    let mut memory = Vec::new();
    while stream.read_exact(&mut order).is_ok() {
        let total = u64::from_le_bytes(order[1..9].try_into()?);
        let piece = u32::from_le_bytes(order[9..13].try_into()?) as usize;
        let span = u64::from_le_bytes(order[13..21].try_into()?) as usize;
        match order[0] {
            BLAST => send(&mut stream, &mut memory, total / piece as u64, piece, span)?,
            SINK => {
                receive(&mut stream, &mut memory, total / piece as u64, piece, span)?;
                stream.write_all(&[1])?;
            }
            PING => {
                let mut ask = vec![0; (total & 0xFFFF_FFFF) as usize];
                let buffer = vec![0x5Au8; piece];
                for _ in 0..total >> 32 {
                    stream.read_exact(&mut ask)?;
                    stream.write_all(&buffer)?;
                }
            }
            other => bail!("unknown order {other}"),
        }
    }
    Ok(())
}

/// Sends `count` pieces out of `span` bytes of memory, one place after the other.
fn send(
    stream: &mut TcpStream,
    memory: &mut Vec<u8>,
    count: u64,
    piece: usize,
    span: usize,
) -> std::io::Result<()> {
    memory.resize(memory.len().max(span.max(piece)), 0x5A);
    let places = memory[..span.max(piece)].chunks_exact(piece).cycle();
    places.take(count as usize).try_for_each(|place| stream.write_all(place))
}

/// Receives `count` pieces into `span` bytes of memory, one place after the other.
fn receive(
    stream: &mut TcpStream,
    memory: &mut Vec<u8>,
    count: u64,
    piece: usize,
    span: usize,
) -> std::io::Result<()> {
    let places = (span / piece).max(1);
    memory.resize(memory.len().max(places * piece), 0x5A);
    for at in 0..count as usize {
        let from = at % places * piece;
        stream.read_exact(&mut memory[from..from + piece])?;
    }
    Ok(())
}

/// A running baseline server and a connection to it.
pub(crate) struct Baseline {
    child: Child,
    stream: TcpStream,
    memory: Vec<u8>,
}

impl Baseline {
    /// Starts the server as a process and connects.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start() -> Result<Baseline> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("bench-baseline")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the baseline server")?;
        let mut address = String::new();
        BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut address)?;
        let stream = TcpStream::connect(address.trim())?;
        stream.set_nodelay(true)?;
        Ok(Baseline { child, stream, memory: Vec::new() })
    }

    /// Returns the server's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn order(&mut self, what: u8, total: u64, piece: u32, span: usize) -> Result<()> {
        let mut order = [0u8; ORDER_BYTES];
        order[0] = what;
        order[1..9].copy_from_slice(&total.to_le_bytes());
        order[9..13].copy_from_slice(&piece.to_le_bytes());
        order[13..21].copy_from_slice(&(span as u64).to_le_bytes());
        Ok(self.stream.write_all(&order)?)
    }

    /// Receives `count` pieces of `piece` bytes, each read whole; both ends walk over `span` bytes of memory.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) fn blast(&mut self, count: u64, piece: usize, span: usize) -> Result<()> {
        self.order(BLAST, count * piece as u64, piece as u32, span)?;
        Ok(receive(&mut self.stream, &mut self.memory, count, piece, span)?)
    }

    /// Sends `count` pieces of `piece` bytes out of `span` bytes of memory, and waits until the server has read them all into
    /// `far_span` bytes of its own.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) fn sink(&mut self, count: u64, piece: usize, span: usize, far_span: usize) -> Result<()> {
        self.order(SINK, count * piece as u64, piece as u32, far_span)?;
        send(&mut self.stream, &mut self.memory, count, piece, span)?;
        self.stream.read_exact(&mut [0])?;
        Ok(())
    }

    /// Asks with `ask` bytes and gets `answer` bytes, `count` times in turn; `each` is told what each took.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) fn ping(
        &mut self,
        count: u32,
        ask: u32,
        answer: usize,
        mut each: impl FnMut(std::time::Duration),
    ) -> Result<()> {
        self.order(PING, u64::from(count) << 32 | u64::from(ask), answer as u32, 0)?;
        let question = vec![0; ask as usize];
        let mut reply = vec![0; answer];
        for _ in 0..count {
            let begun = std::time::Instant::now();
            self.stream.write_all(&question)?;
            self.stream.read_exact(&mut reply)?;
            each(begun.elapsed());
        }
        Ok(())
    }
}

impl Drop for Baseline {
    fn drop(&mut self) {
        // Fails only when it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
