//! A serving engine as far as its cache events go, through ZeroMQ's own library, and a reader of such events as vLLM's users write one.

use kvhive_protocol::{AxisOrder, Dtype, Layout};
use rmpv::Value as Msg;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// Blocks of 16 KiB.
pub const LAYOUT: Layout = Layout {
    layers: 2,
    kv_heads: 2,
    head_dim: 64,
    tokens: 16,
    dtype: Dtype::F16,
    order: AxisOrder::LayersFirst,
};
/// vLLM's publisher in a few lines: PUB and ROUTER sockets of libzmq, batches kept for replays, all in one loop.
const PUBLISHER: &str = r#"
import json, sys, zmq
context = zmq.Context()
publisher, router = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
for socket in (publisher, router):
    socket.bind("tcp://127.0.0.1:*")
print(json.dumps([socket.getsockopt_string(zmq.LAST_ENDPOINT) for socket in (publisher, router)]), flush=True)
poller, ring = zmq.Poller(), []
poller.register(router, zmq.POLLIN)
poller.register(sys.stdin.fileno(), zmq.POLLIN)
while True:
    ready = dict(poller.poll())
    if router in ready:
        asker, _, start = router.recv_multipart()
        for number in range(int.from_bytes(start, "big"), len(ring)):
            router.send_multipart((asker, b"", number.to_bytes(8, "big"), ring[number]))
        router.send_multipart((asker, b"", (-1).to_bytes(8, "big", signed=True), b""))
    if sys.stdin.fileno() in ready:
        line = sys.stdin.buffer.raw.readline()
        if not line:
            break
        verb, payload = line.split()
        ring.append(bytes.fromhex(payload.decode()))
        if verb == b"publish":
            publisher.send_multipart((b"kv-events", (len(ring) - 1).to_bytes(8, "big"), ring[-1]))
"#;

/// An engine of another process. Dropped, it ends.
pub struct Engine {
    process: Child,
    words: Option<ChildStdin>,
    /// Where it publishes.
    pub events: String,
    /// Where it repeats.
    pub replay: String,
}

impl Engine {
    /// Starts one.
    ///
    /// # Panics
    /// Without Python and pyzmq.
    pub fn start() -> Engine {
        let mut process =
            python(PUBLISHER, &[]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it is there");
        let mut first = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut first).expect("it says where");
        let [events, replay]: [String; 2] = serde_json::from_str(&first).expect("two endpoints");
        let words = process.stdin.take();
        Engine { process, words, events, replay }
    }

    /// Has it publish a batch of events, or lose it.
    ///
    /// # Panics
    /// When it has ended.
    pub fn say(&mut self, verb: &str, events: Vec<Msg>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let mut payload = Vec::new();
        let batch = Msg::Array(vec![Msg::from(now), Msg::Array(events), Msg::from(0)]);
        rmpv::encode::write_value(&mut payload, &batch).expect("it encodes");
        let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        let words = self.words.as_mut().expect("it runs");
        writeln!(words, "{verb} {hex}").expect("it listens");
        words.flush().expect("it listens");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.words.take());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the tokens of so many blocks.
pub fn tokens(blocks: u32) -> Vec<u32> {
    (0..blocks * LAYOUT.tokens).collect()
}

fn hashes(blocks: std::ops::Range<u32>) -> Msg {
    Msg::Array(blocks.map(|at| Msg::Binary(vec![at as u8 + 1; 32])).collect())
}

/// Returns the event of these blocks.
pub fn stored(blocks: std::ops::Range<u32>) -> Msg {
    let own = tokens(blocks.end)[(blocks.start * LAYOUT.tokens) as usize..].to_vec();
    let pairs = [
        ("type", Msg::from("BlockStored")),
        ("block_hashes", hashes(blocks)),
        ("parent_block_hash", Msg::Nil),
        ("token_ids", Msg::Array(own.into_iter().map(Msg::from).collect())),
        ("block_size", Msg::from(LAYOUT.tokens)),
        ("lora_id", Msg::Nil),
        ("medium", Msg::from("GPU")),
    ];
    Msg::Map(pairs.into_iter().map(|(name, value)| (Msg::from(name), value)).collect())
}

/// Returns the event that a block is gone.
pub fn removed(at: u32) -> Msg {
    // As releases before the maps say it.
    Msg::Array(vec![Msg::from("BlockRemoved"), hashes(at..at + 1), Msg::from("GPU")])
}

fn python(program: &str, words: &[&str]) -> Command {
    let mut python =
        Command::new(std::env::var_os("KVHIVE_PYTHON").expect("scripts/test engines says which"));
    python.args(["-c", program]).args(words);
    python
}

/// A reader of cache events as vLLM documents one: its own structs by msgspec, a SUB socket, and replays.
const READER: &str = r#"
import json, sys, zmq, msgspec
Hash = bytes | int
class Event(msgspec.Struct, omit_defaults=True, tag=True): pass
class BlockStored(Event):
    block_hashes: list[Hash]
    parent_block_hash: Hash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
class BlockRemoved(Event):
    block_hashes: list[Hash]
    medium: str | None
class AllBlocksCleared(Event): pass
class Batch(msgspec.Struct, array_like=True, omit_defaults=True):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None
decoder = msgspec.msgpack.Decoder(Batch)
context = zmq.Context()
live, asker = context.socket(zmq.SUB), context.socket(zmq.DEALER)
live.connect(sys.argv[1])
live.setsockopt_string(zmq.SUBSCRIBE, sys.argv[3])
asker.connect(sys.argv[2])
def show(hash): return hash.hex() if isinstance(hash, bytes) else hash
def say(how, number, payload):
    for event in decoder.decode(payload).events:
        fields = msgspec.structs.asdict(event)
        fields["type"] = type(event).__name__
        if "block_hashes" in fields: fields["block_hashes"] = [show(hash) for hash in fields["block_hashes"]]
        if fields.get("parent_block_hash") is not None: fields["parent_block_hash"] = show(fields["parent_block_hash"])
        print(json.dumps([how, number, fields]), flush=True)
poller = zmq.Poller()
for socket in (live, asker): poller.register(socket, zmq.POLLIN)
poller.register(sys.stdin.fileno(), zmq.POLLIN)
while True:
    ready = dict(poller.poll())
    if live in ready:
        topic, number, payload = live.recv_multipart()
        say("live", int.from_bytes(number, "big"), payload)
    if asker in ready:
        _, topic, number, payload = asker.recv_multipart()
        if number == (-1).to_bytes(8, "big", signed=True): print(json.dumps(["end", 0, None]), flush=True)
        elif not topic.decode().startswith(sys.argv[3]): sys.exit(f"a replay of {topic!r}")
        else: say("replay", int.from_bytes(number, "big"), payload)
    if sys.stdin.fileno() in ready:
        line = sys.stdin.buffer.raw.readline()
        if not line: break
        asker.send_multipart((b"", int(line).to_bytes(8, "big")))
"#;

/// A reader of another process. Dropped, it ends.
pub struct Reader {
    process: Child,
    words: Option<ChildStdin>,
    says: BufReader<ChildStdout>,
}

impl Reader {
    /// Starts one that subscribes to a topic.
    ///
    /// # Panics
    /// Without Python, pyzmq and msgspec.
    pub fn start(events: &str, replay: &str, topic: &str) -> Reader {
        let mut python = python(READER, &[events, replay, topic]);
        let mut process = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it is there");
        let words = process.stdin.take();
        let says = BufReader::new(process.stdout.take().expect("piped"));
        Reader { process, words, says }
    }

    /// Asks for everything from a number on.
    ///
    /// # Panics
    /// When it has ended.
    pub fn ask(&mut self, from: u64) {
        let words = self.words.as_mut().expect("it runs");
        writeln!(words, "{from}").expect("it listens");
        words.flush().expect("it listens");
    }

    /// Returns what it reads next: `live`, `replay` or `end`, the batch's number, and the event.
    ///
    /// # Panics
    /// When it has ended.
    pub fn read(&mut self) -> (String, u64, serde_json::Value) {
        let mut line = String::new();
        self.says.read_line(&mut line).expect("it says something");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.words.take());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
