//! Snapshots of a real node: what comes back, what is refused, what an interruption leaves.

use super::asker::Block;
use super::{KIB, Setup, eventually};
use crate::actors::core::DeviceMessage;
use crate::{Loaded, NodeHandle, PersistConfig, PersistError, Saved};
use kvhive_protocol::data::Ack;
use std::fs;
use std::path::Path;
use std::time::Duration;

pub(super) const BLOCKS: u64 = 12;

pub(super) fn blocks() -> Vec<Block> {
    (0..BLOCKS).map(|number| Block::new(number, 16 * KIB)).collect()
}

pub(super) async fn filled(setup: &Setup) -> (super::FakeCoordinator, NodeHandle) {
    let (coordinator, node) = setup.one().await;
    let stored = node.ask().await.store(&blocks(), Ack::Primary).await;
    assert_eq!(stored.map(|stored| stored.len()), Ok(BLOCKS as usize));
    (coordinator, node)
}

pub(super) fn save(node: &NodeHandle, path: &Path) -> Saved {
    let mut told = 0;
    let saved = node.persist(path, |progress| told = progress.blocks).expect("it is written");
    assert_eq!(told, BLOCKS, "progress ends at the end");
    saved
}

pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("readable");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Makes the node forget everything.
pub(super) async fn forget(node: &NodeHandle) {
    let times = node.counted(|counters| &counters.actor_restarts);
    node.devices[0].actor().try_send(DeviceMessage::Panic).expect("the mailbox has room");
    node.is_made_anew_for_the(times + 1).await;
    let holds = node.ask().await.fetch(&[1]).await.map(|blocks| blocks[0].is_some());
    assert_eq!(holds, Ok(false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_persisted_is_there_again_after_a_load() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let (_coordinator, node) = filled(&Setup::default()).await;
    let bytes = BLOCKS * 16 * KIB as u64;
    assert_eq!(save(&node, &path), Saved { blocks: BLOCKS, bytes, resumed: 0 });
    let again = node.load(&path, None, |_| {}).expect("it is whole");
    assert_eq!(again, Loaded { already: BLOCKS, ..Loaded::default() });
    forget(&node).await;
    let loaded = node.load(&path, None, |_| {}).expect("it is whole");
    assert_eq!(loaded, Loaded { blocks: BLOCKS, bytes, ..Loaded::default() });
    let numbers: Vec<u64> = (0..BLOCKS).collect();
    let found = node.ask().await.fetch(&numbers).await.expect("an answer");
    assert_eq!(found, blocks().into_iter().map(|block| Some(block.bytes)).collect::<Vec<_>>());
    assert_eq!(node.stats().device.blocks, BLOCKS);
    // A second one takes the place of the first as a whole.
    assert_eq!(save(&node, &path).blocks, BLOCKS);
    assert_eq!(names(folder.path()), ["snapshot", "snapshot.lock"], "nothing else is left beside it");
}

/// Has a snapshot begun at `path` and broken off after its first blocks; then puts a whole segment of `from` there.
pub(super) fn interrupt(node: &NodeHandle, path: &Path, from: &Path) {
    let broken = std::panic::AssertUnwindSafe(|| node.persist(path, |_| panic!("a test wants it so")));
    std::panic::catch_unwind(broken).expect_err("it breaks off");
    let shop = path.with_extension("partial");
    assert_eq!(names(&shop), ["000000.partial", "run.json"]);
    fs::copy(from.join("000000.seg"), shop.join("000000.seg")).expect("writable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_interrupted_run_has_written_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole, path) = (folder.path().join("whole"), folder.path().join("snapshot"));
    let (_coordinator, node) = filled(&Setup::default()).await;
    save(&node, &whole);
    interrupt(&node, &path, &whole);
    assert!(
        matches!(node.load(&path, None, |_| {}), Err(PersistError::Io { .. })),
        "half a snapshot is none"
    );
    assert_eq!(save(&node, &path).resumed, BLOCKS);
    forget(&node).await;
    assert_eq!(node.load(&path, None, |_| {}).expect("it is whole").blocks, BLOCKS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_run_has_written_before_a_clear_is_not_gone_on_with() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole, path) = (folder.path().join("whole"), folder.path().join("snapshot"));
    let (coordinator, node) = filled(&Setup::default()).await;
    save(&node, &whole);
    interrupt(&node, &path, &whole);
    let (era, epoch) = coordinator.clear();
    eventually("the node has heard of the clear", || {
        coordinator.has_confirmed(node.member().expect("it is a member"), epoch)
    })
    .await;
    // The same prompts under the same secret: the keys are the same.
    let again: Vec<Block> = (0..BLOCKS).map(|number| Block::in_era(number, 16 * KIB, era)).collect();
    let stored = node.ask().await.store(&again, Ack::Primary).await;
    assert_eq!(stored.map(|stored| stored.len()), Ok(BLOCKS as usize));
    assert_eq!(node.persist(&path, |_| {}).expect("it is written").resumed, 0);
    forget(&node).await;
    let loaded = node.load(&path, None, |_| {}).expect("it is whole");
    assert_eq!((loaded.blocks, loaded.ended), (BLOCKS, 0), "{loaded:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_snapshot_is_neither_written_over_nor_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_coordinator, node) = filled(&Setup::default()).await;
    for name in ["snapshot", "snapshot.partial", "snapshot.old"] {
        let other = folder.path().join(name);
        fs::create_dir(&other).expect("writable");
        fs::write(other.join("records-65536"), b"another's").expect("writable");
        let refused = node.persist(&folder.path().join("snapshot"), |_| {}).expect_err("it is another's");
        assert!(refused.to_string().contains(&*other.to_string_lossy()), "{refused}");
        assert_eq!(names(folder.path()), [name], "nothing was written");
        assert_eq!(names(&other), ["records-65536"]);
        fs::remove_dir_all(&other).expect("writable");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("nodes").join("snapshot");
    let (_coordinator, node) = filled(&Setup::default()).await;
    save(&node, &path);
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().expect("it has one"))), (0o700, 0o700));
    assert_eq!(names(&path), ["000000.seg", "manifest.json"]);
    for file in names(&path) {
        assert_eq!(mode(&path.join(&file)), 0o600, "{file}");
    }
    assert_eq!(mode(&path.with_extension("lock")), 0o600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_alone_writes_a_snapshot_and_nobody_reads_it_meanwhile() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let (_coordinator, node) = filled(&Setup::default()).await;
    save(&node, &path);
    let mut refused = None;
    let saved = node.persist(&path, |_| {
        refused.get_or_insert_with(|| {
            let lock = fs::File::open(path.with_extension("lock")).expect("it is there");
            lock.try_lock_shared().is_err()
        });
    });
    assert_eq!((saved.expect("it is written").blocks, refused), (BLOCKS, Some(true)));
    let lock = fs::File::open(path.with_extension("lock")).expect("it is there");
    lock.lock().expect("nobody has it");
    let refused = node.load(&path, None, |_| {}).expect_err("another writes it").to_string();
    assert!(refused.contains("being written or read by another"), "{refused}");
    drop(lock);
    assert_eq!(node.load(&path, None, |_| {}).expect("it is whole").already, BLOCKS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_of_a_segment_that_is_cut_or_gone_are_counted_misses() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let (_coordinator, node) = filled(&Setup::default()).await;
    save(&node, &path);
    forget(&node).await;
    let segment = path.join("000000.seg");
    let whole = fs::read(&segment).expect("readable");
    // At the end of a block: what is left looks whole.
    let block = whole.len() / BLOCKS as usize;
    fs::write(&segment, &whole[..5 * block]).expect("writable");
    let loaded = node.load(&path, None, |_| {}).expect("the rest is whole");
    assert_eq!((loaded.blocks, loaded.damaged), (5, BLOCKS - 5), "{loaded:?}");
    fs::remove_file(&segment).expect("writable");
    let loaded = node.load(&path, None, |_| {}).expect("its manifest is whole");
    assert_eq!(loaded, Loaded { damaged: BLOCKS, ..Loaded::default() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaves_for_what_is_loaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let (_coordinator, node) = filled(&Setup::default()).await;
    save(&node, &path);
    // Four blocks fill half of its frames; twelve of a quarter of a frame have fewer bytes than the rest.
    let (_other, small) = Setup { device_frames: 8, ..Setup::default() }.one().await;
    let own: Vec<Block> = (100..104).map(|number| Block::new(number, 16 * KIB)).collect();
    assert_eq!(small.ask().await.store(&own, Ack::Primary).await.map(|stored| stored.len()), Ok(4));
    let loaded = small.load(&path, None, |_| {}).expect("it is whole");
    assert_eq!((loaded.blocks, loaded.no_room), (4, BLOCKS - 4), "{loaded:?}");
    assert_eq!(small.shard_stats().await.evicted, 0);
    let found = small.ask().await.fetch(&[100, 101, 102, 103]).await.expect("an answer");
    assert!(found.iter().all(Option::is_some), "what was here before is here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_block_is_a_counted_miss_and_a_damaged_manifest_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let (_coordinator, node) = filled(&Setup::default()).await;
    save(&node, &path);
    let segment = path.join("000000.seg");
    let mut bytes = fs::read(&segment).expect("readable");
    // Within the last block's bytes.
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    fs::write(&segment, bytes).expect("writable");
    forget(&node).await;
    let loaded = node.load(&path, None, |_| {}).expect("the rest is whole");
    assert_eq!((loaded.blocks, loaded.damaged), (BLOCKS - 1, 1), "{loaded:?}");
    for block in node
        .ask()
        .await
        .fetch(&(0..BLOCKS).collect::<Vec<_>>())
        .await
        .expect("an answer")
        .iter()
        .zip(blocks())
    {
        assert!(block.0.as_ref().is_none_or(|bytes| *bytes == block.1.bytes), "never a wrong byte");
    }
    let manifest = path.join("manifest.json");
    let text = fs::read_to_string(&manifest).expect("readable");
    fs::write(&manifest, text.replace("\"blocks\": 12", "\"blocks\": 13")).expect("writable");
    assert!(matches!(node.load(&path, None, |_| {}), Err(PersistError::Damaged { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_layout_or_secret_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let (coordinator, node) = filled(&Setup::default()).await;
    save(&node, &path);
    let (_other, small) = Setup { frame_bytes: 8 * KIB, ..Setup::default() }.one().await;
    let refused = small.load(&path, None, |_| {}).expect_err("its frames are too small").to_string();
    assert!(refused.contains("16384") && refused.contains("8192") && refused.contains("layout"), "{refused}");
    coordinator.change(|map| {
        map.tenants.values_mut().for_each(|tenant| tenant.secret = [8; 32]);
    });
    eventually("the node has the new secret", || {
        node.plane
            .view
            .serving()
            .is_some_and(|serving| serving.map.tenants.values().all(|one| one.secret == [8; 32]))
    })
    .await;
    let refused = node.load(&path, None, |_| {}).expect_err("its keys name nothing").to_string();
    assert!(refused.contains("secret of tenant \"default\""), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_ended_in_order_begins_with_what_it_held() {
    let folder = tempfile::tempdir().expect("a folder");
    let persist = PersistConfig { folder: folder.path().join("snapshot"), every: None };
    let setup = Setup { persist: Some(persist), ..Setup::default() };
    let (coordinator, node) = filled(&setup).await;
    node.shutdown(Duration::from_secs(30));
    let again = setup.start("node-0", &coordinator);
    eventually("the snapshot is taken in", || {
        again.counted(|counters| &counters.snapshot_loaded_blocks) == BLOCKS
    })
    .await;
    let numbers: Vec<u64> = (0..BLOCKS).collect();
    let found = again.ask().await.fetch(&numbers).await.expect("an answer");
    assert_eq!(found, blocks().into_iter().map(|block| Some(block.bytes)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_begins_with_its_last_periodic_snapshot() {
    let folder = tempfile::tempdir().expect("a folder");
    let persist =
        PersistConfig { folder: folder.path().join("snapshot"), every: Some(Duration::from_millis(20)) };
    let setup = Setup { persist: Some(persist), ..Setup::default() };
    let (coordinator, node) = filled(&setup).await;
    let written = node.counted(|counters| &counters.snapshots);
    // The first to end may have begun before the last block came.
    eventually("a snapshot of all blocks", || node.counted(|counters| &counters.snapshots) >= written + 2)
        .await;
    drop(node);
    let again = setup.start("node-0", &coordinator);
    eventually("the snapshot is taken in", || {
        again.counted(|counters| &counters.snapshot_loaded_blocks) == BLOCKS
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_was_not_taken_in_is_not_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let persist = |every| Some(PersistConfig { folder: path.clone(), every });
    let setup = Setup { persist: persist(None), ..Setup::default() };
    let (coordinator, node) = filled(&setup).await;
    node.shutdown(Duration::from_secs(30));
    let manifest = fs::read(path.join("manifest.json")).expect("it was written");

    // Frames that are too small: every write and the end leave it as it is.
    let every = Some(Duration::from_millis(20));
    let small = Setup { frame_bytes: 8 * KIB, persist: persist(every), ..Setup::default() };
    let refused = small.start("node-0", &coordinator);
    eventually("it is refused, and the writes that would replace it", || {
        refused.counted(|counters| &counters.snapshot_failures) > 3
    })
    .await;
    let stored = refused.ask().await.store(&[Block::new(100, 4 * KIB)], Ack::Primary).await;
    assert_eq!(stored.map(|stored| stored.len()), Ok(1));
    refused.shutdown(Duration::from_secs(30));
    assert_eq!(fs::read(path.join("manifest.json")).expect("it stands"), manifest);

    // Another works on it, so that it is not taken in before the end.
    let lock = fs::File::open(path.with_extension("lock")).expect("it is there");
    lock.lock().expect("nobody has it");
    let hindered = setup.start("node-0", &coordinator);
    eventually("it waits for the other", || hindered.counted(|counters| &counters.snapshot_failures) > 0)
        .await;
    hindered.shutdown(Duration::from_secs(30));
    drop(lock);
    assert_eq!(fs::read(path.join("manifest.json")).expect("it stands"), manifest);

    let again = setup.start("node-0", &coordinator);
    eventually("the snapshot is taken in", || {
        again.counted(|counters| &counters.snapshot_loaded_blocks) == BLOCKS
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_was_made_anew_gets_its_blocks_back_from_the_snapshot() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let setup = Setup { persist: Some(PersistConfig { folder: path, every: None }), ..Setup::default() };
    let (coordinator, node) = filled(&setup).await;
    node.shutdown(Duration::from_secs(30));
    let again = setup.start("node-0", &coordinator);
    let loaded = |times: u64| again.counted(|counters| &counters.snapshot_loaded_blocks) == times * BLOCKS;
    eventually("the snapshot is taken in", || loaded(1)).await;
    again.devices[0].actor().try_send(DeviceMessage::Panic).expect("the mailbox has room");
    eventually("it is taken in once more", || loaded(2)).await;
}

/// Asks a node's own admin API and returns the status and the answer.
pub(super) async fn admin(
    node: &NodeHandle,
    method: &str,
    path: &str,
    token: &str,
    body: &str,
) -> (u16, serde_json::Value) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(node.metrics_address()).await.expect("it listens");
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: node\r\nauthorization: {token}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, serde_json::from_str(body).unwrap_or_default())
}

pub(super) fn bearer() -> String {
    format!("Bearer {}", String::from_utf8_lossy(super::TOKEN))
}

/// Waits until what was asked for has ended, and returns its outcome.
pub(super) async fn outcome(node: &NodeHandle) -> serde_json::Value {
    for _ in 0..4000 {
        let (_, job) = admin(node, "GET", "/v1/snapshot", &bearer(), "").await;
        if job["outcome"] != "running" {
            return job["outcome"].clone();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_has_a_running_node_write_a_snapshot_and_take_it_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let persist = PersistConfig { folder: folder.path().join("snapshot"), every: None };
    let setup = Setup { persist: Some(persist), ..Setup::default() };
    let (_coordinator, node) = filled(&setup).await;
    assert_eq!(admin(&node, "GET", "/v1/snapshot", &bearer(), "").await.0, 404, "nobody has asked yet");
    for body in ["{}", r#"{"name":"before-the_update2"}"#] {
        let (status, job) = admin(&node, "POST", "/v1/snapshot/persist", &bearer(), body).await;
        assert_eq!((status, job["verb"].as_str()), (202, Some("persist")), "{job}");
        assert_eq!(outcome(&node).await["persisted"]["blocks"], BLOCKS);
    }
    assert!(names(folder.path()).contains(&"snapshot@before-the_update2".to_owned()));
    admin(&node, "POST", "/v1/snapshot/load", &bearer(), "{}").await;
    assert_eq!(outcome(&node).await["loaded"]["already"], BLOCKS);
    admin(&node, "POST", "/v1/snapshot/load", &bearer(), r#"{"name":"other"}"#).await;
    let failed = outcome(&node).await["failed"].as_str().unwrap_or_default().to_owned();
    assert!(failed.contains("snapshot@other"), "{failed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_no_token_or_asks_for_a_path_has_no_snapshot_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let persist = PersistConfig { folder: folder.path().join("snapshot"), every: None };
    let (_coordinator, node) = filled(&Setup { persist: Some(persist), ..Setup::default() }).await;
    for token in ["", "Bearer", "Bearer wrong", &bearer()[..10]] {
        for (method, path) in
            [("GET", "/v1/snapshot"), ("POST", "/v1/snapshot/persist"), ("POST", "/v1/snapshot/load")]
        {
            let (status, answer) = admin(&node, method, path, token, "{}").await;
            assert_eq!((status, &answer["code"]), (401, &"unauthorized".into()), "{token:?}");
        }
    }
    for name in ["", "../other", "/etc", "a/b", "a.old", &"x".repeat(64)] {
        let body = serde_json::json!({ "name": name }).to_string();
        let (status, answer) = admin(&node, "POST", "/v1/snapshot/persist", &bearer(), &body).await;
        assert_eq!((status, &answer["code"]), (400, &"bad_request".into()), "{name:?}");
    }
    let large = format!(r#"{{"name":"{}"}}"#, "x".repeat(8192));
    assert_eq!(admin(&node, "POST", "/v1/snapshot/persist", &bearer(), &large).await.0, 413);
    assert_eq!(names(folder.path()), ["snapshot.keys"], "nothing was written");
    let (_other, bare) = filled(&Setup::default()).await;
    let (status, answer) = admin(&bare, "POST", "/v1/snapshot/persist", &bearer(), "{}").await;
    assert_eq!((status, &answer["code"]), (409, &"no_folder".into()));
    assert_eq!(
        super::life::get(bare.metrics_address(), "/healthz").await.lines().next(),
        Some("HTTP/1.1 200 OK")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_made_anew_while_the_snapshot_is_awaited_costs_no_later_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let every = Some(Duration::from_millis(20));
    let setup = Setup { persist: Some(PersistConfig { folder: path.clone(), every }), ..Setup::default() };
    let (coordinator, node) = filled(&setup).await;
    node.shutdown(Duration::from_secs(30));
    let lock = fs::File::open(path.with_extension("lock")).expect("it is there");
    lock.lock().expect("nobody has it");
    let again = setup.start("node-0", &coordinator);
    eventually("it waits for the other", || again.counted(|counters| &counters.snapshot_failures) > 0).await;
    again.devices[0].actor().try_send(DeviceMessage::Panic).expect("the mailbox has room");
    eventually("it is made anew", || again.counted(|counters| &counters.actor_restarts) == 1).await;
    drop(lock);
    let loaded = |node: &NodeHandle| node.counted(|counters| &counters.snapshot_loaded_blocks);
    eventually("the snapshot is taken in", || loaded(&again) >= BLOCKS && again.is_serving()).await;
    let one_more = again.ask().await.store(&[Block::new(BLOCKS, 16 * KIB)], Ack::Primary).await;
    assert_eq!(one_more.map(|stored| stored.len()), Ok(1));
    eventually("a new one is written", || again.counted(|counters| &counters.snapshots) > 0).await;
    again.shutdown(Duration::from_secs(30));
    let last = setup.start("node-0", &coordinator);
    eventually("the new one is taken in", || loaded(&last) == BLOCKS + 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_be_of_no_use_is_left_out_alone_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let (coordinator, node) = filled(&Setup::default()).await;
    let guest = kvhive_protocol::TenantId(2);
    coordinator.change(|map| {
        let mut tenant = map.tenants[&super::coordinator::TENANT].clone();
        (tenant.name, tenant.secret) = ("guest".to_owned(), [9; 32]);
        map.tenants.insert(guest, tenant);
    });
    let knows = |node: &NodeHandle, secret: [u8; 32]| {
        let serving = node.plane.view.serving();
        serving.and_then(|serving| serving.map.tenants.get(&guest).map(|one| one.secret)) == Some(secret)
    };
    eventually("the node knows the guest", || knows(&node, [9; 32])).await;
    let mut asker = node.ask().await;
    let large = asker.store(&[Block::new(50, 40 * KIB)], Ack::Primary).await;
    assert_eq!(large.map(|stored| stored.len()), Ok(1));
    let mut of_guest = Block::new(60, 16 * KIB);
    (of_guest.header.tenant, asker.tenant) = (guest, guest);
    assert_eq!(asker.store(&[of_guest], Ack::Primary).await.map(|stored| stored.len()), Ok(1));
    assert_eq!(node.persist(&path, |_| {}).expect("it is written").blocks, BLOCKS + 2);
    coordinator.change(|map| {
        map.tenants.get_mut(&guest).expect("it is there").secret = [8; 32];
    });
    eventually("the node has the new secret", || knows(&node, [8; 32])).await;
    forget(&node).await;
    let loaded = node.load(&path, None, |_| {}).expect("the rest is of use");
    assert_eq!((loaded.blocks, loaded.other_secret), (BLOCKS + 1, 1), "{loaded:?}");
    let (_other, small) = Setup { frame_bytes: 16 * KIB, ..Setup::default() }.one().await;
    let loaded = small.load(&path, None, |_| {}).expect("the rest fits");
    assert_eq!((loaded.blocks, loaded.too_large, loaded.ended), (BLOCKS, 1, 1), "{loaded:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_another_cluster_is_refused_and_not_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let persist = PersistConfig { folder: path.clone(), every: Some(Duration::from_millis(20)) };
    let (_first, node) = filled(&Setup::default()).await;
    save(&node, &path);
    node.shutdown(Duration::from_secs(30));
    // As fresh coordinators are: nobody has the number that the tenant of then had.
    let coordinator = super::FakeCoordinator::start().await;
    coordinator.change(|map| {
        map.cluster = kvhive_protocol::ClusterId(78);
        let mut tenants = std::mem::take(&mut map.tenants);
        let mut tenant = tenants.pop_first().expect("one tenant").1;
        (tenant.name, tenant.secret) = ("somebody".to_owned(), [8; 32]);
        map.tenants.insert(kvhive_protocol::TenantId(9), tenant);
    });
    let setup = Setup { persist: Some(persist), ..Setup::default() };
    let other = setup.start("node-0", &coordinator);
    eventually("the node serves the other cluster", || {
        let serving = other.plane.view.serving();
        other.is_serving() && serving.is_some_and(|serving| !serving.map.members.is_empty())
    })
    .await;
    let refused = other.load(&path, None, |_| {}).expect_err("its keys name nothing here").to_string();
    assert!(refused.contains("secret of tenant \"default\""), "{refused}");
    let before = fs::read(path.join("manifest.json")).expect("it is there");
    tokio::time::sleep(Duration::from_millis(300)).await;
    other.shutdown(Duration::from_secs(30));
    assert_eq!(fs::read(path.join("manifest.json")).expect("it is there"), before, "it was not replaced");
}
