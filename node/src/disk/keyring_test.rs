//! Keys of the disk tiers: whose there are, and what a crash at any step of a change of their files leaves.

use super::super::key_folder::Step;
use super::*;
use kvhive_protocol::{Era, TenantId};
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn name(tenant: u32, era: u64) -> KeyName {
    KeyName { tenant: TenantId(tenant), era: Era(era), mark: [tenant as u8; 16] }
}

fn open(folder: &Path) -> Result<Arc<Keyring>, DiskError> {
    Keyring::open(&KeyPlaces::of(folder, None), Duration::ZERO)
}

/// Has these alone be allowed from this epoch on.
fn go_by(ring: &Keyring, epoch: u64, names: &[KeyName]) {
    ring.go_by((ClusterId(1), Epoch(epoch)), names.iter().copied().collect());
}

/// The files of data keys that a folder has.
fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join(FOLDER)).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("tenant-")).collect();
    names.sort();
    names
}

fn bytes(key: &DataKey) -> [u8; 32] {
    *key.bytes()
}

#[test]
fn keys_are_made_once_found_after_a_start_and_encrypted_where_they_lie() {
    let folder = tempfile::tempdir().expect("a folder");
    let ring = open(folder.path()).expect("a folder");
    assert!(ring.make(name(1, 1)).is_err(), "no map allows it yet");
    go_by(&ring, 1, &[name(1, 1), name(2, 1)]);
    let keys = [1, 2].map(|tenant| bytes(&ring.make(name(tenant, 1)).expect("it may be")));
    assert_ne!(keys[0], keys[1], "each tenant has its own");
    assert_eq!(bytes(&ring.make(name(1, 1)).expect("it may be")), keys[0]);
    assert!(matches!(open(folder.path()), Err(DiskError::Shared { .. })), "one node has them");
    drop(ring);
    for file in files(folder.path()) {
        let path = folder.path().join(FOLDER).join(file);
        let text = fs::read(&path).expect("readable");
        assert!(
            keys.iter().all(|key| !text.windows(32).any(|part| part == key)),
            "a key lies there as it is"
        );
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o077, 0);
    }
    for path in [MASTER, FOLDER] {
        let mode = fs::metadata(folder.path().join(path)).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{path} {mode:o}");
    }
    let ring = open(folder.path()).expect("a folder");
    let found = [1, 2].map(|tenant| ring.find(&name(tenant, 1)).map(|key| bytes(&key)));
    assert_eq!(found, keys.map(Some));
}

#[test]
fn what_ends_is_found_no_more_at_once_and_is_gone_from_disk_when_that_has_been_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let ring = open(folder.path()).expect("a folder");
    go_by(&ring, 1, &[name(1, 1), name(2, 1)]);
    let first = [1, 2].map(|tenant| bytes(&ring.make(name(tenant, 1)).expect("it may be")));
    // The one is cleared, the other stays.
    go_by(&ring, 2, &[name(1, 2), name(2, 1)]);
    assert!(ring.find(&name(1, 1)).is_none() && ring.has_ended_keys() && files(folder.path()).len() == 2);
    assert!(ring.make(name(1, 1)).is_err(), "what is on its way is under no ended key");
    // A map from before that comes late brings nothing back.
    go_by(&ring, 1, &[name(1, 1), name(2, 1)]);
    assert!(ring.make(name(1, 1)).is_err());
    ring.destroy_ended().expect("a disk");
    assert!(!ring.has_ended_keys());
    assert_eq!((files(folder.path()).len(), ring.count()), (1, (1, 1)));
    let second = bytes(&ring.make(name(1, 2)).expect("it may be"));
    assert!(!first.contains(&second));
    drop(ring);
    // A node that was away learns of what ended with its first map.
    let ring = open(folder.path()).expect("a folder");
    go_by(&ring, 5, &[name(2, 1)]);
    assert!(ring.find(&name(1, 2)).is_none() && ring.find(&name(2, 1)).is_some());
    ring.destroy_ended().expect("a disk");
    drop(ring);
    assert_eq!(open(folder.path()).expect("a folder").count(), (1, 0));
}

#[test]
fn another_clusters_tenant_of_the_same_number_has_another_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let ring = open(folder.path()).expect("a folder");
    go_by(&ring, 7, &[name(1, 1)]);
    let first = bytes(&ring.make(name(1, 1)).expect("it may be"));
    let others = KeyName { mark: [9; 16], ..name(1, 1) };
    ring.go_by((ClusterId(2), Epoch(1)), BTreeSet::from([others]));
    assert!(ring.find(&name(1, 1)).is_none());
    // It comes back before the disk was asked: with a key of its own, whose file that of before is not taken for.
    ring.go_by((ClusterId(1), Epoch(8)), BTreeSet::from([name(1, 1)]));
    let second = bytes(&ring.make(name(1, 1)).expect("it may be"));
    assert_ne!(first, second);
    ring.destroy_ended().expect("a disk");
    drop(ring);
    let ring = open(folder.path()).expect("a folder");
    assert_eq!(ring.find(&name(1, 1)).map(|key| bytes(&key)), Some(second));
}

#[test]
fn a_crash_at_any_step_of_making_a_key_leaves_a_whole_one_or_none() {
    for (step, is_there) in [
        (Step::Write, false),
        (Step::SyncWritten, false),
        (Step::Rename, false),
        // Renamed, and not known to be on disk: this process's file system has it.
        (Step::SyncRenamed, true),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let ring = open(folder.path()).expect("a folder");
        go_by(&ring, 1, &[name(1, 1)]);
        *ring.files.ends_before.lock().expect("whole") = Some(step);
        assert!(
            ring.make(name(1, 1)).is_err() && ring.find(&name(1, 1)).is_none(),
            "{step:?}: no block is under it"
        );
        drop(ring);
        let ring = open(folder.path()).expect("a folder");
        assert_eq!(
            (ring.find(&name(1, 1)).is_some(), files(folder.path()).len() == 1),
            (is_there, is_there),
            "{step:?}"
        );
        go_by(&ring, 1, &[name(1, 1)]);
        let key = bytes(&ring.make(name(1, 1)).expect("a disk"));
        drop(ring);
        let again = open(folder.path()).expect("a folder").find(&name(1, 1)).map(|key| bytes(&key));
        assert_eq!(again, Some(key), "{step:?}");
    }
}

#[test]
fn a_crash_at_any_step_of_destroying_a_key_is_made_good_before_anything_is_confirmed() {
    for step in [Step::Overwrite, Step::SyncOverwritten, Step::Delete, Step::SyncDeleted] {
        let folder = tempfile::tempdir().expect("a folder");
        let ring = open(folder.path()).expect("a folder");
        go_by(&ring, 1, &[name(1, 1), name(2, 1)]);
        let keys = [1, 2].map(|tenant| bytes(&ring.make(name(tenant, 1)).expect("it may be")));
        go_by(&ring, 2, &[name(2, 1)]);
        *ring.files.ends_before.lock().expect("whole") = Some(step);
        assert!(ring.destroy_ended().is_err() && ring.has_ended_keys(), "{step:?}: nothing is confirmed");
        assert!(ring.find(&name(1, 1)).is_none());
        drop(ring);
        let ring = open(folder.path()).expect("a folder");
        go_by(&ring, 2, &[name(2, 1)]);
        assert!(ring.find(&name(1, 1)).is_none(), "{step:?}: it is not found again");
        ring.destroy_ended().expect("a disk");
        assert_eq!(files(folder.path()).len(), 1, "{step:?}");
        assert_eq!(ring.find(&name(2, 1)).map(|key| bytes(&key)), Some(keys[1]), "the other's stays");
    }
}

#[test]
fn a_disk_that_did_not_destroy_a_key_is_asked_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let ring = open(folder.path()).expect("a folder");
    go_by(&ring, 1, &[name(1, 1)]);
    ring.make(name(1, 1)).expect("it may be");
    go_by(&ring, 2, &[]);
    *ring.files.ends_before.lock().expect("whole") = Some(Step::SyncOverwritten);
    assert!(ring.destroy_ended().is_err() && ring.has_ended_keys());
    *ring.files.ends_before.lock().expect("whole") = None;
    ring.destroy_ended().expect("a disk");
    assert!(!ring.has_ended_keys() && files(folder.path()).is_empty());
}

#[test]
fn a_key_that_cannot_be_destroyed_costs_no_other_its_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let ring = open(folder.path()).expect("a folder");
    go_by(&ring, 1, &[name(1, 1), name(2, 1)]);
    for tenant in [1, 2] {
        ring.make(name(tenant, 1)).expect("it may be");
    }
    let all = files(folder.path());
    let first = folder.path().join(FOLDER).join(&all[0]);
    fs::remove_file(&first).expect("a file");
    fs::create_dir(&first).expect("writable");
    go_by(&ring, 2, &[]);
    assert!(ring.destroy_ended().is_err() && ring.has_ended_keys());
    assert_eq!(files(folder.path()), all[..1], "the second's is gone");
    fs::remove_dir(&first).expect("an empty folder");
    ring.destroy_ended().expect("a disk");
    assert_eq!((ring.has_ended_keys(), ring.count()), (false, (0, 2)));
}

#[test]
fn a_key_whose_file_may_have_been_made_is_destroyed_with_its_era_or_before_another_is_made() {
    for comes_back in [false, true] {
        let folder = tempfile::tempdir().expect("a folder");
        let ring = open(folder.path()).expect("a folder");
        go_by(&ring, 1, &[name(1, 1)]);
        *ring.files.ends_before.lock().expect("whole") = Some(Step::SyncRenamed);
        assert!(ring.make(name(1, 1)).is_err());
        *ring.files.ends_before.lock().expect("whole") = None;
        assert_eq!(files(folder.path()).len(), 1);
        if comes_back {
            let key = bytes(&ring.make(name(1, 1)).expect("it may be"));
            ring.destroy_ended().expect("a disk");
            drop(ring);
            let found = open(folder.path()).expect("a folder").find(&name(1, 1)).map(|key| bytes(&key));
            assert_eq!(found, Some(key));
        } else {
            go_by(&ring, 2, &[]);
            ring.destroy_ended().expect("a disk");
            assert!(files(folder.path()).is_empty());
        }
    }
}

#[test]
fn a_key_that_is_made_while_its_era_ends_is_destroyed_before_that_is_done() {
    for step in [Step::Write, Step::SyncWritten, Step::Rename, Step::SyncRenamed] {
        let folder = tempfile::tempdir().expect("a folder");
        let ring = open(folder.path()).expect("a folder");
        go_by(&ring, 1, &[name(1, 1), name(2, 1)]);
        let (tell, reached) = std::sync::mpsc::channel();
        let (go_on, goes_on) = std::sync::mpsc::channel();
        *ring.files.hangs_before.lock().expect("whole") = Some((step, tell, goes_on));
        std::thread::scope(|threads| {
            let maker = threads.spawn(|| ring.make(name(1, 1)).map(|_| ()).map_err(|error| error.kind()));
            reached.recv().expect("it is being made");
            // The disk hangs. A map that ends nothing that was written waits for nothing.
            go_by(&ring, 2, &[name(1, 1)]);
            assert!(!ring.has_ended_keys());
            ring.destroy_ended().expect("nothing to do");
            // One that ends the era itself does.
            go_by(&ring, 3, &[]);
            assert!(ring.has_ended_keys() && ring.find(&name(1, 1)).is_none());
            let ends = threads.spawn(|| ring.destroy_ended());
            go_on.send(()).expect("it waits");
            assert_eq!(maker.join().expect("no panic"), Err(io::ErrorKind::NotFound), "{step:?}");
            ends.join().expect("no panic").expect("a disk");
        });
        assert!(!ring.has_ended_keys() && files(folder.path()).is_empty(), "{step:?}");
    }
}

#[tokio::test]
async fn one_at_a_time_has_the_turn_to_change_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let ring = open(folder.path()).expect("a folder");
    let turn = ring.turn().await;
    assert!(ring.turns.clone().try_acquire_owned().is_err(), "the second waits");
    drop(turn);
    let _turn = ring.turn().await;
}

#[test]
fn a_damaged_key_is_no_key_and_costs_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let ring = open(folder.path()).expect("a folder");
    go_by(&ring, 1, &[name(1, 1), name(2, 1)]);
    for tenant in [1, 2] {
        ring.make(name(tenant, 1)).expect("it may be");
    }
    drop(ring);
    let path = folder.path().join(FOLDER).join(&files(folder.path())[0]);
    let whole = fs::read(&path).expect("readable");
    let changed = (0..whole.len()).map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        bytes
    });
    let cut = (0..whole.len()).map(|len| whole[..len].to_vec());
    let longer = [[&whole[..], b"x"].concat()];
    for (at, bytes) in changed.chain(cut).chain(longer).enumerate() {
        fs::write(&path, bytes).expect("writable");
        let ring = open(folder.path()).expect("one damaged key stops no node");
        assert!(ring.find(&name(1, 1)).is_none() && ring.find(&name(2, 1)).is_some(), "{at}");
        assert_eq!(files(folder.path()).len(), 1, "{at}: what is left of it is destroyed");
    }
}

#[test]
fn a_key_is_of_its_name_alone_also_when_the_checksum_is_made_to_hold() {
    let folder = tempfile::tempdir().expect("a folder");
    let ring = open(folder.path()).expect("a folder");
    go_by(&ring, 1, &[name(1, 1)]);
    ring.make(name(1, 1)).expect("it may be");
    drop(ring);
    let path = folder.path().join(FOLDER).join(&files(folder.path())[0]);
    let whole = fs::read(&path).expect("readable");
    let end = whole.len() - 32;
    // Tenant, era, mark, salt, key and tag.
    for at in 12..end {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        let sum = blake3::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(sum.as_bytes());
        fs::write(&path, &bytes).expect("writable");
        assert!(matches!(open(folder.path()), Err(DiskError::MasterKey { .. })), "byte {at}");
    }
    // A later version's.
    let mut bytes = whole.clone();
    bytes[8] = 2;
    let sum = blake3::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(sum.as_bytes());
    fs::write(&path, &bytes).expect("writable");
    assert!(matches!(open(folder.path()), Err(DiskError::Form { .. })));
    // A whole one under another's name.
    fs::rename(&path, path.with_file_name("tenant-2-1-02020202")).expect("writable");
    fs::write(path.with_file_name("tenant-2-1-02020202"), &whole).expect("writable");
    assert_eq!(open(folder.path()).expect("a folder").count().0, 0);
}

#[test]
fn a_master_key_is_made_only_where_nothing_needs_the_old_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let elsewhere = folder.path().join("elsewhere");
    let master = elsewhere.join("key");
    let places = KeyPlaces::of(folder.path(), Some(&master));
    let open = || Keyring::open(&places, Duration::ZERO);
    // As before something is mounted there.
    for is_there in [false, true] {
        assert_eq!(elsewhere.exists(), is_there);
        match open() {
            Err(DiskError::MasterKey { why, .. }) => {
                assert!(why.contains("as the place of a mount"), "{why}")
            }
            other => panic!("{:?}", other.map(|_| ())),
        }
        fs::create_dir_all(&elsewhere).expect("writable");
    }
    assert!(!master.exists());
    fs::write(elsewhere.join("cluster.toml"), "").expect("writable");
    drop(open().expect("it is made"));
    fs::rename(&master, elsewhere.join("away")).expect("writable");
    match open() {
        Err(DiskError::MasterKey { why, .. }) => {
            assert!(why.starts_with("it is not there, and it was"), "{why}")
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
    assert!(!master.exists(), "no second one is made, though nothing is encrypted by the first yet");
    fs::rename(elsewhere.join("away"), &master).expect("writable");
    let ring = open().expect("it is there again");
    go_by(&ring, 1, &[name(1, 1)]);
    ring.make(name(1, 1)).expect("it may be");
    drop(ring);
    assert!(!folder.path().join(MASTER).exists(), "the file that is named is the one");
    let text = fs::read_to_string(&master).expect("readable");
    let refused = || match open() {
        Err(DiskError::MasterKey { why, path }) => {
            (path == master).then_some(why).expect("it names the file")
        }
        other => panic!("{:?}", other.map(|_| ())),
    };
    fs::remove_file(&master).expect("a file");
    assert!(refused().starts_with("it is not there"));
    assert!(!master.exists(), "none is made over what it would not open");
    for wrong in ["", "key", &text[1..], &format!("{}x", text.trim()), &"g".repeat(64), &"0".repeat(2000)] {
        fs::write(&master, wrong).expect("writable");
        fs::set_permissions(&master, fs::Permissions::from_mode(0o600)).expect("its own");
        assert_eq!(refused(), "it is not 64 hexadecimal digits", "{wrong:?}");
    }
    fs::write(&master, "0".repeat(64)).expect("writable");
    assert!(refused().starts_with("it did not encrypt the keys in"));
    fs::write(&master, text.to_uppercase()).expect("writable");
    fs::set_permissions(&master, fs::Permissions::from_mode(0o604)).expect("its own");
    assert!(refused().starts_with("everybody may use it"));
    fs::set_permissions(&master, fs::Permissions::from_mode(0o640)).expect("its own");
    assert!(open().expect("it is the one").find(&name(1, 1)).is_some());
}

#[test]
fn who_encrypts_no_more_has_no_keys_left() {
    let folder = tempfile::tempdir().expect("a folder");
    destroy_keys(folder.path(), Duration::ZERO).expect("nothing to do");
    let ring = open(folder.path()).expect("a folder");
    go_by(&ring, 1, &[name(1, 1)]);
    ring.make(name(1, 1)).expect("it may be");
    assert!(matches!(destroy_keys(folder.path(), Duration::ZERO), Err(DiskError::Shared { .. })));
    go_by(&ring, 2, &[name(1, 2)]);
    ring.close();
    assert!(ring.make(name(1, 2)).is_err() && ring.destroy_ended().is_err(), "the folder is not its own");
    assert_eq!(files(folder.path()).len(), 1);
    destroy_keys(folder.path(), Duration::ZERO).expect("a disk");
    assert!(files(folder.path()).is_empty());
}
