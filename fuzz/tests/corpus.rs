//! What the fuzzer begins with and what it found so far, read without it. Each input here went somewhere that no other did, or once broke
//! something.

use kvhive_control::{Registry, STATE_VERSION};
use kvhive_coordinator::BackupHead;
use kvhive_fuzz::{TARGETS, target};
use kvhive_protocol::block::Codec;
use kvhive_protocol::control::{Command, Proposal};
use kvhive_protocol::data::Ack;
use kvhive_protocol::map::Settings;
use kvhive_protocol::{
    BlockHeader, BlockKey, ClusterId, Era, LayoutFingerprint, Level, Pin, PinMode, Reason, RequestId,
    TenantId, TenantRules, codec,
};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of all inputs.
const MOST_BYTES: u64 = 1 << 20;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    entries.sort_unstable();
    entries
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    let name = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).expect("text").to_owned();
    let folders: BTreeSet<String> = entries(&corpus()).iter().map(name).collect();
    let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(folders, targets);
    let size = |path: PathBuf| fs::metadata(path).expect("readable").len();
    let bytes: u64 = entries(&corpus()).iter().flat_map(|folder| entries(folder)).map(size).sum();
    assert!(bytes <= MOST_BYTES, "the corpus has {bytes} bytes: minimize it (docs/fuzzing.md)");
}

#[test]
fn every_input_of_the_corpus_is_read_as_it_should_be() {
    let mut unread = Vec::new();
    for folder in entries(&corpus()) {
        let name = folder.file_name().and_then(|name| name.to_str()).expect("text");
        let target = target(name).expect("it was looked for before");
        let inputs = entries(&folder);
        let mut is_read = false;
        for input in inputs {
            let bytes = fs::read(&input).expect("readable");
            let read = std::panic::catch_unwind(|| target.check(&bytes));
            is_read |= read.unwrap_or_else(|_| panic!("{} breaks {name}", input.display()));
        }
        unread.extend((!is_read).then(|| name.to_owned()));
    }
    assert!(unread.is_empty(), "{unread:?} have nothing to begin with that they read as something");
}

#[test]
fn damaged_inputs_are_read_as_nothing_or_as_they_should_be() {
    for target in TARGETS {
        for input in entries(&corpus().join(target.name)).into_iter().take(8) {
            let whole = fs::read(&input).expect("readable");
            for at in (0..whole.len()).step_by(whole.len() / 64 + 1) {
                let mut changed = whole.clone();
                changed[at] ^= 0x81;
                target.check(&changed);
                target.check(&whole[..at]);
            }
        }
    }
}

/// Compares a file of the corpus with what it should be; with `UPDATE` it is written.
fn begins_with(target: &str, name: &str, bytes: &[u8]) {
    let file = corpus().join(target).join(name);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, bytes).expect("writable");
    }
    assert!(
        fs::read(&file).is_ok_and(|kept| kept == bytes),
        "{} is another: UPDATE=1 writes it",
        file.display()
    );
    let read = self::target(target).expect("there is one").check(bytes);
    assert!(read, "{target} does not read what it begins with");
}

#[test]
fn headers_of_blocks_begin_with_those_of_a_block() {
    let header = BlockHeader {
        key: BlockKey::from_bytes([1; 32]),
        fingerprint: LayoutFingerprint([2; 16]),
        tenant: TenantId(1),
        era: Era(3),
        depth: 4,
        codec: Codec::Raw,
        payload_bytes: 64,
        digest: 5,
    };
    let header = header.encode();
    begins_with("fixed", "golden-header", &[&[0][..], &header].concat());
    // The block before it, its slot, and the sum that is made good.
    begins_with("snapshot_block", "golden-block", &[&header[..], &[6; 32], &[7, 0], &[0; 8]].concat());
    // And what opens it where it is encrypted.
    let sealed = [&header[..], &[6; 32], &[7, 0], &[9; 64], &[0; 8]].concat();
    begins_with("snapshot_block", "golden-sealed-block", &sealed);
    for (version, name) in [(1u32, "golden-page"), (2, "golden-sealed-page")] {
        let frame = 4096u64.to_le_bytes();
        let front = [&b"KVRECORD"[..], &version.to_le_bytes(), &[8, 0, 0, 0], &frame, &[9; 8], &[10; 48]];
        let front = [&front.concat()[..], &[7, 0], &[0; 6]].concat();
        // Behind the header of one that is sealed: salt, what is hidden, and its tag.
        let sealed = if version == 2 { [11; 64].as_slice() } else { &[] };
        begins_with("disk_record", name, &[&front[..], &header, sealed].concat());
    }
}

#[test]
fn states_and_commands_begin_with_those_of_a_cluster() {
    let settings = Settings {
        replicas: 2,
        segment_blocks: 16,
        ack: Ack::Primary,
        lease_ms: 2000,
        heartbeat_ms: 500,
        serving_lease_ms: 2000,
    };
    let pin = Pin {
        tenant: TenantId(1),
        keys: Default::default(),
        mode: PinMode::Soft { until_ms: 9 },
        reason: Reason::default(),
    };
    let commands = [
        Command::Bootstrap {
            cluster: ClusterId(7),
            name: "ours".to_owned(),
            settings,
            default_secret: [1; 32],
            scaling: Default::default(),
            coordinators: vec!["a:1".to_owned()],
            level: Level::NEWEST,
        },
        Command::CreateTenant { name: "team".into(), secret: [2; 32], rules: TenantRules::default() },
        Command::ClearTenant { tenant: TenantId(1) },
        Command::SetPin { name: "prompt".into(), pin: Box::new(pin) },
        Command::SetCoordinators { addresses: vec!["b:1".into(), "c:1".into()] },
    ];
    let mut registry = Registry::new();
    for (at, command) in commands.into_iter().enumerate() {
        let request = RequestId { client: 1, sequence: at as u64 + 1 };
        let proposal = Proposal { request, command };
        let bytes = codec::encode(&proposal).expect("small");
        begins_with("proposal", &format!("golden-{at}"), &bytes);
        registry.apply(at as u64 + 2, proposal);
    }
    let state = registry.snapshot();
    begins_with("state", "golden-cluster", &state);
    let map = registry.map().expect("it was started");
    let head = BackupHead {
        state_version: STATE_VERSION,
        cluster: map.cluster.to_string(),
        name: map.name.clone(),
        epoch: map.epoch.0,
        term: 2,
        index: registry.applied(),
        at_ms: 99,
        members: 0,
        tenants: 2,
    };
    let head = serde_json::to_vec(&head).expect("plain data");
    let length = (head.len() as u32).to_le_bytes();
    let backup = [&b"kvhiveBU"[..], &1u32.to_le_bytes(), &length, &head, &state, &[0; 32]].concat();
    let read = kvhive_coordinator::fuzz::backup(&backup);
    assert!(read.is_some(), "what the fuzzer begins with is a backup");
    begins_with("backup", "golden-cluster", &backup);
}
