//! Restoring and recovering, on folders alone.

use super::*;
use crate::backup::tests::backup;
use kvhive_protocol::Epoch;
use kvhive_steps::at_each;

fn place(folder: &std::path::Path, peer: u64) -> Place {
    let own = PeerConfig {
        peer,
        name: format!("coord-{peer}"),
        raft_address: format!("127.0.0.1:{peer}"),
        admin_address: format!("127.0.0.1:{}", peer + 10),
    };
    Place { data_dir: folder.join(&own.name), own }
}

fn refused<T>(done: Result<T, OfflineError>) -> String {
    done.err().expect("it is refused").to_string()
}

#[test]
fn a_backup_goes_into_empty_folders_of_its_own_cluster_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (place(folder.path(), 1), place(folder.path(), 2));
    let none = Cleared::Tenants(&[]);
    let restored = |voters: &[Place], cluster: &str| restore(&backup(), cluster, voters, &[], none);
    let said = refused(restored(std::slice::from_ref(&one), "theirs"));
    assert!(said.contains("the backup is of cluster \"ours\""), "{said}");

    let begun = restored(std::slice::from_ref(&one), "ours").expect("it is empty");
    assert_eq!((begun.index, begun.term), (5, 3), "where the backup was taken, in a later term");
    let said = refused(restored(&[two.clone(), one.clone()], "ours"));
    assert!(said.contains("holds a log already"), "{said}");
    let said = refused(Recovery::open("ours", &two));
    assert!(said.contains("holds nothing to go on from"), "nothing was written there: {said}");

    // An empty log, as a coordinator leaves it that never heard of the others.
    drop(LogStore::open(&two.data_dir).expect("room"));
    restored(std::slice::from_ref(&two), "ours").expect("there is nothing in it");
}

#[test]
fn what_is_restored_can_be_gone_on_from_by_its_owner_while_nobody_else_has_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (place(folder.path(), 1), place(folder.path(), 2));
    let (before, named) = (backup(), ["team".to_owned()]);
    let begun = restore(&before, "ours", &[one.clone(), two.clone()], &[], Cleared::Tenants(&named));
    let begun = begun.expect("both are empty");
    assert!(begun.epoch > before.head().epoch);

    let recovery = Recovery::open("ours", &one).expect("it holds a state");
    assert_eq!((recovery.last, recovery.committed, recovery.undecided), (5, 5, 0));
    assert_eq!(recovery.others, std::slice::from_ref(&two.own));
    assert!(!recovery.is_behind && recovery.newest_event_ms.is_some());
    let map = recovery.registry.map().expect("the cluster was started");
    assert_eq!(map.epoch, Epoch(begun.epoch));
    let eras: Vec<bool> = map.tenants.values().map(|tenant| tenant.era.0 > begun.epoch).collect();
    assert_eq!(eras, [false, true], "the one that was cleared begins anew");
    let said = refused(Recovery::open("ours", &one));
    assert!(said.contains("is used by another process"), "{said}");
    let again = recovery.go_on().expect("it is locked");
    assert!(again.epoch > begun.epoch && again.term > begun.term);
    assert_eq!(Recovery::open("ours", &one).expect("it holds a state").others, [], "it is alone");

    let stranger = Place { data_dir: one.data_dir.clone(), ..two };
    let said = refused(Recovery::open("ours", &stranger));
    assert!(said.contains("holds the log of coordinator coord-1 (peer 1)"), "{said}");
}

#[test]
fn a_restore_that_ends_anywhere_leaves_each_folder_empty_or_whole() {
    let owner = ["owner: make", "owner: write", "owner: sync", "owner: name", "owner: sync name"];
    let log = [
        "log: make segment",
        "log: size segment",
        "log: zero segment",
        "log: write header",
        "log: write anchor",
        "log: sync segment",
        "log: name segment",
        "log: sync name",
        "log: sync parent",
        "log: write record",
        "log: sync record",
    ];
    let snapshot = [
        "snapshot: make",
        "snapshot: write header",
        "snapshot: write state",
        "snapshot: sync",
        "snapshot: name",
        "snapshot: sync name",
    ];
    let held = |place: &Place| LogStore::open(&place.data_dir).expect("it opens").1;
    at_each(&[&owner[..], &log, &snapshot].concat(), |ends| {
        let folder = tempfile::tempdir().expect("a folder");
        let places = [place(folder.path(), 1), place(folder.path(), 2)];
        let again = |places: &[Place]| restore(&backup(), "ours", places, &[], Cleared::Tenants(&[]));
        let restored = ends.run(|| again(&places));
        assert_eq!(restored.is_ok(), ends.before().is_none(), "{restored:?}");
        let taken = places.iter().filter(|place| held(place) != Restored::default()).count();
        for place in places.iter().filter(|place| held(place) == Restored::default()) {
            assert!(Recovery::open("ours", place).is_err(), "{ends:?}: nobody goes on from an empty one");
        }
        if taken == 0 {
            again(&places).expect("nothing is in the way");
        } else if restored.is_err() {
            assert!(refused(again(&places)).contains("holds a log already"), "{ends:?}");
            // What was made is whole: whoever gives it up begins once more.
            for place in &places {
                std::fs::remove_dir_all(&place.data_dir).expect("it is there");
            }
            again(&places).expect("nothing is in the way");
        }
        let recovery = Recovery::open("ours", &places[0]).expect("it holds a state");
        assert_eq!((recovery.last, recovery.others.len()), (5, 1), "{ends:?}");
    });
}
