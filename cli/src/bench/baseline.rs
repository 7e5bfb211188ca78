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
    let mut order = [0u8; 13];
    while stream.read_exact(&mut order).is_ok() {
        let total = u64::from_le_bytes(order[1..9].try_into()?);
        let piece = u32::from_le_bytes(order[9..13].try_into()?) as usize;
        let mut buffer = vec![0x5Au8; piece];
        match order[0] {
            BLAST => {
                for _ in 0..total / piece as u64 {
                    stream.write_all(&buffer)?;
                }
            }
            SINK => {
                for _ in 0..total / piece as u64 {
                    stream.read_exact(&mut buffer)?;
                }
                stream.write_all(&[1])?;
            }
            PING => {
                let mut ask = vec![0; (total & 0xFFFF_FFFF) as usize];
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

/// A running baseline server and a connection to it.
pub(crate) struct Baseline {
    child: Child,
    stream: TcpStream,
    buffer: Vec<u8>,
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
        Ok(Baseline { child, stream, buffer: vec![0x5A; 1 << 20] })
    }

    /// Returns the server's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn order(&mut self, what: u8, total: u64, piece: u32) -> Result<()> {
        let mut order = [0u8; 13];
        order[0] = what;
        order[1..9].copy_from_slice(&total.to_le_bytes());
        order[9..13].copy_from_slice(&piece.to_le_bytes());
        Ok(self.stream.write_all(&order)?)
    }

    /// Receives `count` pieces of `piece` bytes, each read whole into the same buffer.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) fn blast(&mut self, count: u64, piece: usize) -> Result<()> {
        self.order(BLAST, count * piece as u64, piece as u32)?;
        self.buffer.resize(piece, 0);
        for _ in 0..count {
            self.stream.read_exact(&mut self.buffer)?;
        }
        Ok(())
    }

    /// Sends `count` pieces of `piece` bytes and waits until the server has read them all.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) fn sink(&mut self, count: u64, piece: usize) -> Result<()> {
        self.order(SINK, count * piece as u64, piece as u32)?;
        self.buffer.resize(piece, 0);
        for _ in 0..count {
            self.stream.write_all(&self.buffer)?;
        }
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
        self.order(PING, u64::from(count) << 32 | u64::from(ask), answer as u32)?;
        let question = vec![0; ask as usize];
        self.buffer.resize(answer, 0);
        for _ in 0..count {
            let begun = std::time::Instant::now();
            self.stream.write_all(&question)?;
            self.stream.read_exact(&mut self.buffer)?;
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
