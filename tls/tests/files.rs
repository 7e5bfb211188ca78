//! Certificates from files: what is refused before anybody is asked, and what a change does.

use kvhive_tls::{Folder, FolderError, Tls, TlsError, TlsFiles};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn hosts(host: &str) -> Vec<String> {
    vec![host.to_owned()]
}

fn folder(at: &Path, name: &str) -> Folder {
    Folder::create(&at.join(name), "a test's authority", YEAR).expect("it is new")
}

fn load(files: &TlsFiles) -> Result<Tls, TlsError> {
    Tls::load(files.clone())
}

#[test]
fn an_authority_is_made_once_and_goes_on_later() {
    let temp = tempfile::tempdir().expect("a folder");
    let made = folder(temp.path(), "tls");
    let first = made.issue("a.example", &hosts("a.example"), YEAR).expect("it is new");
    load(&first).expect("it holds");
    for secret in [&first.key, &temp.path().join("tls/authority.key")] {
        let mode = fs::metadata(secret).expect("it was written").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", secret.display());
    }
    let again = Folder::create(&temp.path().join("tls"), "another", YEAR).map(|_| ());
    assert!(matches!(again, Err(FolderError::Exists(_))), "{again:?}");
    let opened = Folder::open(&temp.path().join("tls")).expect("it is there");
    let twice = opened.issue("a.example", &hosts("a.example"), YEAR);
    assert!(matches!(twice, Err(FolderError::Exists(_))), "{twice:?}");
    // What the opened one signs is taken by who trusts the first.
    load(&opened.issue("client", &[], YEAR).expect("it is new")).expect("it holds");
    let wrong = opened.issue("x", &hosts("no host"), YEAR);
    assert!(matches!(wrong, Err(FolderError::Host(_))), "{wrong:?}");
}

#[test]
fn what_cannot_be_made_is_known_before_anything_is() {
    let temp = tempfile::tempdir().expect("a folder");
    let path = temp.path().join("tls");
    let (a, wrong) = (hosts("a.example"), hosts("no host"));
    Folder::check(&path, &[("a.example", &a), ("client", &[])]).expect("all of it can be made");
    let refused = Folder::check(&path, &[("a.example", &a), ("no host", &wrong)]);
    assert!(matches!(refused, Err(FolderError::Host(_))), "{refused:?}");
    let refused = Folder::check(&path, &[("a.example", &a), ("a.example", &a)]);
    assert!(matches!(refused, Err(FolderError::Twice(_))), "{refused:?}");
    assert!(!path.exists(), "it was looked at and no more");
    let made = folder(temp.path(), "tls");
    let refused = Folder::check(&path, &[("a.example", &a)]);
    assert!(matches!(refused, Err(FolderError::Exists(_))), "{refused:?}");
    made.issue("a.example", &a, YEAR).expect("it is new");
}

#[test]
fn what_the_others_would_refuse_is_refused_at_the_start() {
    let temp = tempfile::tempdir().expect("a folder");
    let (ours, theirs) = (folder(temp.path(), "ours"), folder(temp.path(), "theirs"));
    let good = ours.issue("a", &hosts("10.0.0.1"), YEAR).expect("it is new");
    let other = theirs.issue("a", &hosts("10.0.0.1"), YEAR).expect("it is new");
    load(&good).expect("it holds");
    let said = |files: TlsFiles| load(&files).map(|_| ()).expect_err("it is wrong").to_string();

    let mixed = said(TlsFiles { key: other.key.clone(), ..good.clone() });
    assert!(mixed.contains("is not that of the certificate"), "{mixed}");
    let foreign = said(TlsFiles { authorities: other.authorities.clone(), ..good.clone() });
    assert!(foreign.contains("the others would refuse the certificate"), "{foreign}");
    let elsewhere = said(TlsFiles { host: Some("10.0.0.2".to_owned()), ..good.clone() });
    assert!(elsewhere.contains("is not valid for \"10.0.0.2\", by which others reach"), "{elsewhere}");
    let none = said(TlsFiles { certificate: temp.path().join("none"), ..good.clone() });
    assert!(none.starts_with("cannot read the TLS certificate from "), "{none}");
    let swapped = said(TlsFiles { certificate: good.key.clone(), ..good.clone() });
    assert!(swapped.contains("there is no CERTIFICATE in it"), "{swapped}");
    let large = temp.path().join("large");
    fs::write(&large, vec![b'-'; 2 << 20]).expect("it is written");
    assert!(said(TlsFiles { key: large, ..good.clone() }).contains("larger than 1 MiB"));

    // An hour of slack for clocks behind has passed by its end: nothing of it is left.
    let short = ours.issue("short", &hosts("10.0.0.1"), Duration::ZERO).expect("it is new");
    let late = ours.issue("late", &[], Duration::ZERO).expect("it is new");
    std::thread::sleep(Duration::from_millis(1100));
    assert!(said(short).contains("xpired"));
    assert!(said(late).contains("xpired"));
}

#[test]
fn new_files_are_taken_and_bad_ones_change_nothing() {
    let temp = tempfile::tempdir().expect("a folder");
    let made = folder(temp.path(), "tls");
    let files = made.issue("a", &hosts("a.example"), YEAR).expect("it is new");
    let next = made.issue("next", &hosts("a.example"), 2 * YEAR).expect("it is new");
    let tls = load(&files).expect("it holds");
    let expires = tls.figures().expires;
    tls.refresh(false).expect("nothing has changed");
    assert_eq!(tls.figures().reloads, 0);

    // The certificate comes before its key, as two files do: not a pair, so the old pair stays.
    fs::copy(&next.certificate, &files.certificate).expect("it is written");
    tls.refresh(false).expect_err("the key is of another");
    tls.refresh(false).expect("told once as long as nothing changes");
    assert_eq!((tls.figures().failed_reloads, tls.figures().expires), (1, expires));
    assert!(tls.figures().files_refused);
    fs::copy(&next.key, &files.key).expect("it is written");
    tls.refresh(false).expect("they are a pair again");
    assert!(!tls.figures().files_refused);
    assert_eq!((tls.figures().reloads, tls.figures().failed_reloads), (1, 1));
    assert!(tls.figures().expires > expires);

    fs::remove_file(&files.authorities).expect("it is there");
    tls.refresh(false).expect_err("there is none");
    assert_eq!((tls.figures().reloads, tls.figures().failed_reloads), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn files_are_looked_at_until_nobody_uses_them() {
    let temp = tempfile::tempdir().expect("a folder");
    let made = folder(temp.path(), "tls");
    let files = made.issue("a", &hosts("a.example"), YEAR).expect("it is new");
    let next = made.issue("next", &hosts("a.example"), YEAR).expect("it is new");
    let tls = load(&files).expect("it holds");
    let ended = tokio::spawn(tls.clone().keep_fresh());
    tokio::task::yield_now().await;
    ended.abort();
    assert!(ended.await.expect_err("it was ended").is_cancelled());
    let looking = tokio::spawn(tls.clone().keep_fresh());
    tokio::task::yield_now().await;
    tls.clone().keep_fresh().await;
    fs::copy(&next.key, &files.key).expect("it is written");
    fs::copy(&next.certificate, &files.certificate).expect("it is written");
    while tls.figures().reloads == 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    drop(tls);
    looking.await.expect("it ends");
}
