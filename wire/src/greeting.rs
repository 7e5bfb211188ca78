//! Both ends of the handshake over a socket (`kvhive_protocol::handshake` says what is exchanged and why): TLS first where the
//! cluster has it, then the token.

use crate::connection::Connection;
use crate::fault::Fault;
use kvhive_protocol::error::WireError;
use kvhive_protocol::frame::{self, Kind};
use kvhive_protocol::handshake::{self, Challenge, Hello, Proof, Role, TokenKey, Welcome};
use kvhive_protocol::ids::{ClusterId, MemberId};
use kvhive_protocol::{Level, Levels};
use kvhive_tls::{Callers, Refusal, Stream, Tls};
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Who this process is when it connects.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The cluster's token.
    pub token: TokenKey,
    /// Its role.
    pub role: Role,
    /// Its peer number or member id, 0 if it has none.
    pub sender: u64,
    /// The cluster it belongs to, if it knows.
    pub cluster: Option<ClusterId>,
    /// Its certificate and whom it trusts; none speaks without TLS.
    pub tls: Option<Tls>,
    /// What it speaks, and asks of members that it connects to.
    pub levels: Levels,
}

/// What a listening process checks of those who connect.
#[derive(Clone, Debug)]
pub struct Listening {
    /// The cluster's token.
    pub token: TokenKey,
    /// The cluster it belongs to, if it knows.
    pub cluster: Option<ClusterId>,
    /// Its certificate and whom it trusts: those who connect must show one too. None speaks without TLS.
    pub tls: Option<Tls>,
    /// What it speaks, and asks of members that connect.
    pub levels: Levels,
}

/// Who is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its role.
    pub role: Role,
    /// Its peer number or member id, 0 if it has none.
    pub sender: u64,
    /// The level that both ends speak.
    pub level: Level,
    /// The newest level that the other end speaks; on the connecting end, as far as it shows.
    pub speaks: Level,
    /// The cluster of the listening end, if it knows; on the connecting end only.
    pub cluster: Option<ClusterId>,
}

impl Peer {
    /// Says whether the other end has said that it is this member.
    pub fn is_of(&self, member: MemberId) -> bool {
        self.sender == u64::from(member.0)
    }
}

impl Connection {
    /// Connects to `address` (`host:port`) and shakes hands within `limit`.
    ///
    /// # Errors
    /// [`Fault::Refused`] with the listening end's reason, [`Fault::Impostor`] when that end does not know the token,
    /// [`Fault::Tls`] when one end does not take the other's certificate or speaks no TLS.
    pub async fn connect(
        address: &str,
        identity: &Identity,
        limit: Duration,
    ) -> Result<(Connection, Peer), Fault> {
        timeout(limit, async {
            let stream = TcpStream::connect(address).await?;
            let stream = match &identity.tls {
                None => Stream::Plain(stream),
                Some(tls) => tls.connect(stream, address).await?,
            };
            let mut connection = Connection::new(stream)?;
            let peer = connection.greet(identity).await?;
            connection.open(peer.level);
            Ok((connection, peer))
        })
        .await
        .map_err(|_| Fault::Timeout(limit))?
    }

    /// Shakes hands with whoever connected, within `limit`. Nothing but greetings is read before the proof holds.
    ///
    /// # Errors
    /// Why the peer was turned away; it has been told already.
    pub async fn accept(
        stream: TcpStream,
        listening: &Listening,
        limit: Duration,
    ) -> Result<(Connection, Peer), Fault> {
        timeout(limit, async {
            let stream = match &listening.tls {
                None => Stream::Plain(stream),
                Some(tls) => match tls.accept(stream, Callers::Members).await {
                    Ok(stream) => stream,
                    Err(refusal) => return Err(turn_away(refusal).await),
                },
            };
            let mut connection = Connection::new(stream)?;
            match connection.admit(listening).await {
                Ok(peer) => {
                    connection.open(peer.level);
                    Ok((connection, peer))
                }
                Err(Fault::Protocol(error)) => {
                    // Told for the log at the other end; it may be gone or no kvhive at all.
                    let _ = connection.refuse(0, &error).await;
                    Err(Fault::Protocol(error))
                }
                Err(fault) => Err(fault),
            }
        })
        .await
        .map_err(|_| Fault::Timeout(limit))?
    }

    async fn greet(&mut self, identity: &Identity) -> Result<Peer, Fault> {
        let token = bound(&identity.token, self.binding()?);
        let hello = Hello::new(identity.role, identity.sender, identity.cluster, nonce()?, identity.levels);
        self.send(Kind::Hello, 0, &hello, &[]).await?;
        let challenge: Challenge = self.receive_answer(Kind::Challenge, 0).await?;
        if !(hello.version_min..=hello.version_max).contains(&challenge.version) {
            return Err(Fault::Protocol(WireError::malformed(format_args!(
                "level {} was not offered",
                challenge.version
            ))));
        }
        let level = Level(challenge.version);
        handshake::check_member(identity.role, level, identity.levels).map_err(Fault::Protocol)?;
        let proof = Proof { proof: token.client_proof(&hello, &challenge) };
        self.send(Kind::Proof, 0, &proof, &[]).await?;
        let welcome: Welcome = self.receive_answer(Kind::Welcome, 0).await?;
        if !TokenKey::same(&token.server_proof(&hello, &challenge), &welcome.proof) {
            return Err(Fault::Impostor);
        }
        if let (Some(ours), Some(theirs)) = (identity.cluster, challenge.cluster)
            && ours != theirs
        {
            return Err(Fault::Refused(WireError::WrongCluster));
        }
        Ok(Peer { role: identity.role, sender: 0, level, speaks: level, cluster: challenge.cluster })
    }

    async fn admit(&mut self, listening: &Listening) -> Result<Peer, Fault> {
        let token = bound(&listening.token, self.binding()?);
        let frame = self.receive().await?;
        self.expect(frame, Kind::Hello)?;
        let hello: Hello = self.message()?;
        let level = handshake::agree(&hello, listening.levels).map_err(Fault::Protocol)?;
        let challenge = Challenge { version: level.0, cluster: listening.cluster, nonce: nonce()? };
        self.send(Kind::Challenge, 0, &challenge, &[]).await?;
        let frame = self.receive().await?;
        self.expect(frame, Kind::Proof)?;
        let proof: Proof = self.message()?;
        if !TokenKey::same(&token.client_proof(&hello, &challenge), &proof.proof) {
            return Err(Fault::Protocol(WireError::Unauthorized));
        }
        // The challenge has told it which cluster this is, a random number and no secret; what this end thinks of the peer's
        // own is for those who know the token.
        if let (Some(ours), Some(theirs)) = (listening.cluster, hello.cluster)
            && ours != theirs
        {
            return Err(Fault::Protocol(WireError::WrongCluster));
        }
        let welcome = Welcome { proof: token.server_proof(&hello, &challenge) };
        self.send(Kind::Welcome, 0, &welcome, &[]).await?;
        let speaks = Level(hello.version_max);
        Ok(Peer { role: hello.role, sender: hello.sender, level, speaks, cluster: hello.cluster })
    }
}

/// Within TLS a proof holds for this channel alone: shown to one who stands between, it is of no use to that one.
fn bound(token: &TokenKey, channel: Option<[u8; 32]>) -> TokenKey {
    channel.map_or_else(|| token.clone(), |channel| token.bound_to(&channel))
}

/// Lets one go whose TLS handshake failed; one that does not speak TLS is told so in frames.
async fn turn_away(refusal: Refusal) -> Fault {
    let mut answer = Vec::new();
    // A greeting's answer is far below every limit.
    let encoded = frame::encode_frame(Kind::Refused, 0, &WireError::TlsRequired, 0, &mut answer);
    match encoded {
        Ok(()) => refusal.say(&answer).await.into(),
        Err(error) => Fault::Protocol(error),
    }
}

fn nonce() -> Result<[u8; 32], Fault> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(nonce)
}
