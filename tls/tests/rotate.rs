//! Another authority without a moment at which two that speak with each other do not trust each other.

use kvhive_steps::at_each;
use kvhive_tls::{Folder, FolderError, Rotation, Stage, Tls, TlsFiles};
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn hosts(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A folder with certificates of a host, of two addresses, of any below a name, of a client, and one that another authority has signed.
fn folder(at: &Path) -> PathBuf {
    let path = at.join("tls");
    let folder = Folder::create(&path, "a test's authority", YEAR).expect("it is new");
    for names in [&["a.example"][..], &["10.0.0.1", "fd00::1"], &["*.b.example"], &[]] {
        let name = names.first().unwrap_or(&"client");
        folder.issue(name, &hosts(names), YEAR).expect("it is new");
    }
    let other = Folder::create(&at.join("other"), "another", YEAR).expect("it is new");
    let foreign = other.issue("foreign", &hosts(&["b.example"]), YEAR).expect("it is new");
    fs::copy(foreign.certificate, path.join("foreign.pem")).expect("there is room");
    fs::copy(foreign.key, path.join("foreign.key")).expect("there is room");
    path
}

fn step(path: &Path) -> Rotation {
    Folder::rotate(path, "a test's next authority", YEAR).expect("it goes on")
}

/// Makes these the files of a folder.
fn put(path: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) {
    for file in contents(path).into_keys() {
        fs::remove_file(file).expect("it is there");
    }
    for (file, bytes) in files {
        fs::write(file, bytes).expect("there is room");
    }
}

/// The files of a folder with what is in them.
fn contents(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(path).expect("it is there").map(|entry| entry.expect("it can be read").path());
    files.map(|file| (file.clone(), fs::read(&file).expect("it can be read"))).collect()
}

/// Whether who trusts `authorities` takes the certificate of this name and host of `path`.
fn is_trusted(path: &Path, name: &str, host: Option<&str>, authorities: &Path) -> bool {
    let file = |ending: &str| path.join(format!("{name}.{ending}"));
    let files = TlsFiles {
        certificate: file("pem"),
        key: file("key"),
        authorities: authorities.to_owned(),
        host: host.map(str::to_owned),
    };
    Tls::load(files).is_ok()
}

#[test]
fn whoever_is_one_step_behind_is_trusted_and_trusts() {
    let temp = tempfile::tempdir().expect("a folder");
    let path = folder(temp.path());
    let members = [
        ("a.example", Some("a.example")),
        ("10.0.0.1", Some("fd00::1")),
        ("_.b.example", Some("x.b.example")),
    ];
    let mut before = temp.path().join("step-0");
    let keep = |at: &Path| {
        fs::create_dir(at).expect("it is new");
        for (file, text) in contents(&path) {
            fs::write(at.join(file.file_name().expect("it has a name")), text).expect("there is room");
        }
    };
    keep(&before);
    for (number, stage) in [Stage::Trusted, Stage::Issued, Stage::Finished].into_iter().enumerate() {
        assert_eq!(Folder::next_stage(&path).expect("it is there"), stage);
        let rotation = step(&path);
        assert_eq!(rotation.stage, stage);
        let (issued, others) =
            if stage == Stage::Issued { (4, vec![path.join("foreign.pem")]) } else { (0, vec![]) };
        assert_eq!((rotation.issued.len(), rotation.others), (issued, others));
        let now = temp.path().join(format!("step-{}", number + 1));
        keep(&now);
        for (name, host) in members.into_iter().chain([("client", None)]) {
            for from in [&before, &now] {
                for to in [&before, &now] {
                    let trusted = is_trusted(from, name, host, &to.join("authority.pem"));
                    assert!(trusted, "{name} of {} at {}", from.display(), to.display());
                }
            }
        }
        before = now;
    }
    // What was stolen before is of no use, and nothing is left of the way.
    let old = temp.path().join("step-0");
    assert!(!is_trusted(&old, "client", None, &path.join("authority.pem")));
    let names: Vec<_> = contents(&path).into_keys().collect();
    assert_eq!(
        names,
        contents(&old).into_keys().map(|file| path.join(file.file_name().unwrap())).collect::<Vec<_>>()
    );
    assert_eq!(fs::read(path.join("foreign.pem")).unwrap(), fs::read(old.join("foreign.pem")).unwrap());
    // The folder goes on with the new one, and another time.
    let folder = Folder::open(&path).expect("it is there");
    folder.issue("late", &hosts(&["late.example"]), YEAR).expect("it is new");
    assert!(is_trusted(&path, "late", Some("late.example"), &path.join("authority.pem")));
    assert_eq!(step(&path).stage, Stage::Trusted);
}

/// After each file that a step writes, renames or removes it may end: the next call goes on, and what the files say by then is never less
/// than what they said before.
#[test]
fn a_step_that_ends_anywhere_is_gone_again() {
    let temp = tempfile::tempdir().expect("a folder");
    let path = folder(temp.path());
    let put = |files: &BTreeMap<PathBuf, Vec<u8>>| put(&path, files);
    let client_is_trusted = || is_trusted(&path, "client", None, &path.join("authority.pem"));
    let mut all = vec![contents(&path)];
    for _ in 0..3 {
        step(&path);
        all.push(contents(&path));
    }
    let [start, trusted, issued, finished] = &all[..] else { panic!("three steps") };
    let at = |name: &str| path.join(name);

    // A key of an authority that nobody has heard of.
    let mut half = start.clone();
    half.insert(at("authority.next.key"), trusted[&at("authority.next.key")].clone());
    put(&half);
    assert_eq!(step(&path).stage, Stage::Trusted);
    assert!(client_is_trusted());
    // Its certificate too, which nobody trusts yet.
    half.insert(at("authority.next.pem"), trusted[&at("authority.next.pem")].clone());
    put(&half);
    assert_eq!(step(&path).stage, Stage::Trusted);
    assert_eq!(step(&path).stage, Stage::Issued);
    assert!(client_is_trusted());

    // Some certificates are of the new one, and it does not sign yet.
    let mut half = trusted.clone();
    half.insert(at("authority.last.pem"), issued[&at("authority.last.pem")].clone());
    for name in ["client.pem", "client.key"] {
        half.insert(at(name), issued[&at(name)].clone());
    }
    put(&half);
    let rotation = step(&path);
    assert_eq!((rotation.stage, rotation.issued.len()), (Stage::Issued, 4), "all of them are to be carried");
    assert!(client_is_trusted());
    // It is named first, and its key has not been moved.
    half.insert(at("authority.pem"), issued[&at("authority.pem")].clone());
    put(&half);
    let rotation = step(&path);
    assert_eq!((rotation.stage, rotation.issued.len()), (Stage::Issued, 4));
    assert!(client_is_trusted() && is_trusted(&path, "a.example", Some("a.example"), &at("authority.pem")));
    // Its key has been moved, and nobody was told which certificates are to be carried.
    let mut half = issued.clone();
    half.insert(at("authority.next.pem"), trusted[&at("authority.next.pem")].clone());
    put(&half);
    let rotation = step(&path);
    assert_eq!((rotation.stage, rotation.issued.len(), rotation.others.len()), (Stage::Issued, 4, 1));
    assert_eq!(contents(&path), *issued);
    assert_eq!(step(&path).stage, Stage::Finished);
    assert_eq!(contents(&path), *finished);
    // The old one is not trusted any more, and still known.
    let mut half = finished.clone();
    half.insert(at("authority.last.pem"), issued[&at("authority.last.pem")].clone());
    put(&half);
    assert_eq!(step(&path).stage, Stage::Finished);
    assert_eq!(contents(&path), *finished);
}

/// The same for every step that there is of making it, the ones within a file too.
#[test]
fn a_rotation_that_ends_anywhere_goes_on_to_its_end() {
    let temp = tempfile::tempdir().expect("a folder");
    let path = folder(temp.path());
    let put = |files: &BTreeMap<PathBuf, Vec<u8>>| put(&path, files);
    let written = ["tls: make file", "tls: write file", "tls: sync file", "tls: name file", "tls: sync name"];
    let kept = ["tls: keep owner", "tls: keep mode"];
    let of_stage = [
        (Stage::Trusted, &[][..]),
        (Stage::Issued, &["tls: move key", "tls: remove file"][..]),
        (Stage::Finished, &["tls: remove file"][..]),
    ];
    for (stage, more) in of_stage {
        let before = contents(&path);
        at_each(&[&written[..], &kept, more].concat(), |ends| {
            put(&before);
            let rotated = ends.run(|| Folder::rotate(&path, "a test's next authority", YEAR));
            assert_eq!(rotated.is_ok(), ends.before().is_none(), "{rotated:?}");
            // What is there serves on, but for a pair of which one half is new: that is made good by the next call.
            let trusts = Tls::load(TlsFiles {
                certificate: path.join("foreign.pem"),
                key: path.join("foreign.key"),
                authorities: temp.path().join("other").join("authority.pem"),
                host: Some("b.example".to_owned()),
            });
            assert!(trusts.is_ok(), "{ends:?}: what another has signed is as it was");
            while Folder::next_stage(&path).expect("it is whole") == stage && rotated.is_err() {
                assert_eq!(step(&path).stage, stage, "{ends:?}");
            }
            for (name, host) in [("client", None), ("a.example", Some("a.example"))] {
                assert!(is_trusted(&path, name, host, &path.join("authority.pem")), "{ends:?}: {name}");
            }
            let left =
                contents(&path).into_keys().filter(|file| file.extension().is_some_and(|end| end == "new"));
            assert_eq!(left.count(), 0, "{ends:?}: nothing unfinished is left");
        });
    }
    assert_eq!(Folder::next_stage(&path).expect("it is there"), Stage::Trusted, "it came to its end");
}

#[test]
fn files_keep_their_modes_and_one_process_at_a_time_goes_on() {
    let temp = tempfile::tempdir().expect("a folder");
    let path = folder(temp.path());
    let key = path.join("client.key");
    let mode = || fs::metadata(&key).expect("it is there").permissions().mode() & 0o777;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("it is ours");
    step(&path);
    let locked = fs::File::open(&path).expect("it is there");
    flock(&locked, FlockOperation::LockExclusive).expect("nobody has it");
    let busy = Folder::rotate(&path, "next", YEAR).map(|_| ());
    assert!(matches!(busy, Err(FolderError::Busy(_))), "{busy:?}");
    drop(locked);
    let before = fs::read(&key).expect("it is there");
    assert_eq!(step(&path).stage, Stage::Issued);
    assert_ne!(fs::read(&key).expect("it is there"), before);
    assert_eq!(mode(), 0o640);
}

#[test]
fn what_is_no_authority_is_not_rotated() {
    let temp = tempfile::tempdir().expect("a folder");
    let none = Folder::rotate(temp.path(), "none", YEAR).map(|_| ());
    assert!(matches!(none, Err(FolderError::Io { what: "read", .. })), "{none:?}");
    let path = folder(temp.path());
    fs::write(path.join("client.pem"), "no certificate").expect("there is room");
    assert_eq!(step(&path).stage, Stage::Trusted);
    let before = contents(&path);
    let told = Folder::rotate(&path, "next", YEAR).map(|_| ()).expect_err("it is none").to_string();
    assert!(told.contains("client.pem holds no TLS certificate"), "{told}");
    let after = contents(&path);
    assert_eq!(before[&path.join("authority.key")], after[&path.join("authority.key")]);
}
