//! Connections within TLS: who gets in, and what those are told who do not.

use kvhive_protocol::WireError;
use kvhive_protocol::frame::Kind;
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_tls::Folder;
use kvhive_wire::{Connection, Fault, Identity, Listening, Peer, Tls, TlsFault, TlsFiles};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

const PATIENCE: Duration = Duration::from_secs(20);
const DAY: Duration = Duration::from_secs(86_400);

type End = Result<(Connection, Peer), Fault>;

fn folder(at: &Path, name: &str) -> Folder {
    Folder::create(&at.join(name), name, DAY).expect("it is new")
}

fn member(folder: &Folder, name: &str, host: &str) -> TlsFiles {
    folder.issue(name, &[host.to_owned()], DAY).expect("it is new")
}

fn load(files: TlsFiles) -> Tls {
    Tls::load(files).expect("it holds")
}

fn identity(tls: Option<&Tls>) -> Identity {
    let token = TokenKey::new(b"the right token");
    Identity {
        token,
        role: Role::Node,
        sender: 5,
        cluster: None,
        tls: tls.cloned(),
        levels: Default::default(),
    }
}

/// Lets one that connects in, or does not.
async fn meet(tls: Option<&Tls>, connecting: impl AsyncFnOnce(String) -> End) -> (End, End) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let listening = Listening {
        token: TokenKey::new(b"the right token"),
        cluster: None,
        tls: tls.cloned(),
        levels: Default::default(),
    };
    let accept = async {
        let (stream, _) = listener.accept().await.expect("somebody connects");
        Connection::accept(stream, &listening, PATIENCE).await
    };
    tokio::join!(connecting(address), accept)
}

async fn both(tls: Option<&Tls>, identity: &Identity) -> (End, End) {
    meet(tls, async |address| Connection::connect(&address, identity, PATIENCE).await).await
}

fn fault(end: End) -> Fault {
    end.map(|_| ()).expect_err("it is not let in")
}

#[tokio::test]
async fn members_of_one_authority_talk_and_large_payloads_pass_whole() {
    let temp = tempfile::tempdir().expect("a folder");
    let ours = folder(temp.path(), "ours");
    let server = load(member(&ours, "server", "127.0.0.1"));
    let client = load(ours.issue("client", &[], DAY).expect("it is new"));
    let (connecting, accepting) = both(Some(&server), &identity(Some(&client))).await;
    let (mut near, _) = connecting.expect("let in");
    let (mut far, peer) = accepting.expect("lets in");
    assert_eq!((peer.role, peer.sender), (Role::Node, 5));
    // More than sockets and TLS hold between them, so that both ends work at it together.
    let block: Vec<u8> = (0..8 << 20).map(|at: u32| (at / 7) as u8).collect();
    let halves = block.split_at(3_000_001);
    let received = async {
        let frame = far.receive().await.expect("it was sent");
        assert_eq!(frame.payload_bytes as usize, block.len());
        let mut bytes = vec![0; block.len()];
        far.read_payload(&mut bytes).await.expect("it was sent");
        bytes
    };
    let slices = [halves.0, halves.1];
    let (sent, received) = tokio::join!(near.send(Kind::DataRequest, 7, &"take", &slices), received);
    sent.expect("it is read");
    assert!(received == block, "as it was sent");
    // A process that ends says nothing: no more than without TLS.
    drop(near);
    assert!(matches!(far.receive().await, Err(Fault::Closed)));
}

#[tokio::test]
async fn who_shows_no_certificate_or_a_foreign_one_is_told_so_and_counted() {
    let temp = tempfile::tempdir().expect("a folder");
    let (ours, theirs) = (folder(temp.path(), "ours"), folder(temp.path(), "theirs"));
    let server = load(member(&ours, "server", "127.0.0.1"));
    let trusts_ours = |mut files: TlsFiles| {
        // Its own certificate is signed by nobody here, which it would notice: it trusts both.
        let both = temp.path().join("both.pem");
        let read = |path: &Path| std::fs::read_to_string(path).expect("it was written");
        std::fs::write(&both, read(&ours.authorities()) + &read(&theirs.authorities())).expect("written");
        files.authorities = both;
        load(files)
    };
    let foreign = trusts_ours(theirs.issue("client", &[], DAY).expect("it is new"));
    let (connecting, accepting) = both(Some(&server), &identity(Some(&foreign))).await;
    let told = fault(connecting);
    assert!(matches!(told, Fault::Tls(TlsFault::Refused(_))), "{told}");
    assert!(matches!(fault(accepting), Fault::Tls(TlsFault::Untrusted(_))));
    assert_eq!(server.figures().refused_untrusted, 1);

    // Anything that speaks TLS without a certificate of its own.
    let roots = kvhive_tls::authorities(&ours.authorities()).expect("it is there");
    let bare = async |address: String| {
        let stream = TcpStream::connect(&address).await.expect("it listens");
        let mut stream = trusting(roots).connect(loopback(), stream).await.expect("the server's holds");
        Err(stream.read(&mut [0; 1]).await.expect_err("it is turned away").into())
    };
    let (connecting, accepting) = meet(Some(&server), bare).await;
    let told = fault(connecting);
    assert!(matches!(told, Fault::Tls(TlsFault::NoCertificate)), "{told}");
    assert!(matches!(fault(accepting), Fault::Tls(TlsFault::NoCertificate)));
    assert_eq!(server.figures().refused_without_certificate, 1);

    let stranger = load(member(&theirs, "server", "127.0.0.1"));
    let own = load(ours.issue("client", &[], DAY).expect("it is new"));
    let (connecting, _) = both(Some(&stranger), &identity(Some(&own))).await;
    let told = fault(connecting);
    assert!(matches!(told, Fault::Tls(TlsFault::Untrusted(_))), "{told}");
}

/// One that has no certificate of its own.
fn trusting(authorities: Vec<CertificateDer<'static>>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities);
    let config = ClientConfig::builder_with_provider(kvhive_tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("it is spoken")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

fn loopback() -> ServerName<'static> {
    ServerName::try_from("127.0.0.1").expect("it is an address")
}

#[tokio::test]
async fn a_member_elsewhere_is_not_taken_for_the_one_that_was_dialled() {
    let temp = tempfile::tempdir().expect("a folder");
    let ours = folder(temp.path(), "ours");
    let elsewhere = load(member(&ours, "elsewhere", "10.9.9.9"));
    let own = load(ours.issue("client", &[], DAY).expect("it is new"));
    let (connecting, _) = both(Some(&elsewhere), &identity(Some(&own))).await;
    let told = fault(connecting);
    assert!(matches!(&told, Fault::Tls(TlsFault::Untrusted(why)) if why.contains("127.0.0.1")), "{told}");
}

#[tokio::test]
async fn plain_and_tls_do_not_mix_and_each_is_told() {
    let temp = tempfile::tempdir().expect("a folder");
    let ours = folder(temp.path(), "ours");
    let server = load(member(&ours, "server", "127.0.0.1"));
    let (connecting, accepting) = both(Some(&server), &identity(None)).await;
    assert!(matches!(fault(connecting), Fault::Refused(WireError::TlsRequired)));
    assert!(matches!(fault(accepting), Fault::Tls(TlsFault::NotTls)));
    assert_eq!(server.figures().refused_plain, 1);
    let (connecting, accepting) = both(None, &identity(Some(&server))).await;
    assert!(matches!(fault(connecting), Fault::Tls(TlsFault::NotTls)));
    assert!(matches!(fault(accepting), Fault::Protocol(WireError::Malformed { .. })));
}

#[tokio::test]
async fn a_handshake_that_is_not_gone_on_with_ends_in_time() {
    let temp = tempfile::tempdir().expect("a folder");
    let server = load(member(&folder(temp.path(), "ours"), "server", "127.0.0.1"));
    let listening = Listening {
        token: TokenKey::new(b"t"),
        cluster: None,
        tls: Some(server),
        levels: Default::default(),
    };
    for begun in [&b""[..], &[0x16, 3, 1, 2, 0, 1]] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut caller = TcpStream::connect(address).await.expect("it listens");
        caller.write_all(begun).await.expect("it is open");
        let (stream, _) = listener.accept().await.expect("somebody connects");
        let ended = Connection::accept(stream, &listening, Duration::from_millis(100)).await;
        assert!(matches!(fault(ended), Fault::Timeout(_)));
    }
}

#[tokio::test]
async fn new_certificates_are_shown_by_the_next_connection_and_others_stand() {
    let temp = tempfile::tempdir().expect("a folder");
    let (ours, next) = (folder(temp.path(), "ours"), folder(temp.path(), "next"));
    let files = member(&ours, "server", "127.0.0.1");
    let server = load(files.clone());
    let old = load(ours.issue("client", &[], DAY).expect("it is new"));
    let new = load(next.issue("client", &[], DAY).expect("it is new"));
    let (connecting, accepting) = both(Some(&server), &identity(Some(&old))).await;
    let (mut near, mut far) = (connecting.expect("let in").0, accepting.expect("lets in").0);
    assert!(both(Some(&server), &identity(Some(&new))).await.0.is_err());

    let replaced = member(&next, "server", "127.0.0.1");
    for (from, to) in [
        (replaced.certificate, files.certificate),
        (replaced.key, files.key),
        (replaced.authorities, files.authorities),
    ] {
        std::fs::copy(from, to).expect("it is written");
    }
    server.refresh(false).expect("they are whole");
    let (connecting, accepting) = both(Some(&server), &identity(Some(&new))).await;
    connecting.and(accepting).expect("let in");
    assert!(both(Some(&server), &identity(Some(&old))).await.0.is_err(), "its authority is gone");
    near.send(Kind::DataRequest, 1, &"still here", &[]).await.expect("it stands");
    far.receive().await.expect("it was sent");
}
