//! Memory that one process of a host lets another have: a local socket, a pass, and what lies behind. Who looks at memory is handed
//! descriptors of it; who lends a stage shows by what it is opened. The socket stands for as long as either goes on, so that each end hears
//! of the other's end.

use kvhive_protocol::share::{HostId, MAX_DOOR_BYTES, MAX_SHARED, Pass, ShareOffer};
use kvhive_protocol::stage::{STAGE_LOAN_BYTES, StageLoan};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg, sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// What is told of one piece of memory: its number, its bytes, and how many pieces come after it.
const LABEL_BYTES: usize = 24;

/// Memory that is handed over.
#[derive(Clone, Copy, Debug)]
pub struct Handed<F> {
    /// Its number in the process that it is of.
    pub number: u64,
    /// Its size.
    pub bytes: u64,
    /// What it is mapped by.
    pub file: F,
}

/// Returns which host this is; none where the system does not say.
pub fn this_host() -> Option<HostId> {
    let start = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let network = std::fs::metadata("/proc/self/ns/net").ok()?;
    Some(HostId::new(start.trim(), (network.dev(), network.ino())))
}

/// What is said of a stage that is taken.
const TAKEN: u8 = 1;

/// Says whether a process of this user may be let look by one of that: the same, or the system's own.
fn may_look(user: u32, owner: u32) -> bool {
    user == owner || user == 0
}

/// The end that has the memory.
pub struct Door {
    listener: UnixListener,
    name: String,
}

impl Door {
    /// Opens a door of a random name.
    ///
    /// # Errors
    /// When the system has no random bytes or no such socket.
    pub fn open() -> io::Result<Door> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
        let name: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("kvhive-{name}");
        let listener = UnixListener::bind(format!("\0{name}"))?;
        Ok(Door { listener, name })
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets the next one in who is of this process's user, or the system's own.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] where it is neither; else when the socket fails.
    pub async fn accept(&self) -> io::Result<Guest> {
        let (stream, _) = self.listener.accept().await?;
        let peer = sockopt::socket_peercred(&stream)?;
        let (user, process) = (peer.uid.as_raw(), peer.pid.as_raw_nonzero());
        if !may_look(user, rustix::process::geteuid().as_raw()) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("process {process} of user {user} is not let look"),
            ));
        }
        Ok(Guest { stream })
    }
}

/// Somebody behind the door.
pub struct Guest {
    stream: UnixStream,
}

impl Guest {
    /// Hears the pass.
    ///
    /// # Errors
    /// When none comes within `limit`.
    pub async fn pass(&mut self, limit: Duration) -> io::Result<Pass> {
        let mut pass = [0; 32];
        timeout(limit, self.stream.read_exact(&mut pass)).await??;
        Ok(Pass(pass))
    }

    /// Hears what it lends.
    ///
    /// # Errors
    /// When that does not come within `limit`, or is no stage.
    pub async fn loan(&mut self, limit: Duration) -> io::Result<StageLoan> {
        let mut loan = [0; STAGE_LOAN_BYTES];
        timeout(limit, self.stream.read_exact(&mut loan)).await??;
        StageLoan::of_bytes(&loan).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Says that its stage is taken.
    ///
    /// # Errors
    /// When that is not heard within `limit`.
    pub async fn take(&mut self, limit: Duration) -> io::Result<()> {
        timeout(limit, self.stream.write_all(&[TAKEN])).await?
    }

    /// Hands the memory over.
    ///
    /// # Errors
    /// When it is not taken within `limit`.
    pub async fn hand(&mut self, memory: &[Handed<BorrowedFd<'_>>], limit: Duration) -> io::Result<()> {
        timeout(limit, async {
            for (at, one) in memory.iter().enumerate() {
                let left = (memory.len() - at - 1) as u64;
                let label = label(one.number, one.bytes, left);
                let send = || {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    let files = [one.file];
                    control.push(SendAncillaryMessage::ScmRights(&files));
                    let sent =
                        sendmsg(&self.stream, &[IoSlice::new(&label)], &mut control, SendFlags::NOSIGNAL);
                    sent.map_err(io::Error::from)
                };
                // A label is far smaller than what such a socket takes at once.
                if self.stream.async_io(Interest::WRITABLE, send).await? != LABEL_BYTES {
                    return Err(io::ErrorKind::WriteZero.into());
                }
            }
            Ok(())
        })
        .await?
    }

    /// Waits until it has gone. It says nothing more before.
    pub async fn gone(&mut self) {
        // An error is an end too.
        let _ = self.stream.read(&mut [0]).await;
    }
}

/// The end that looks. While it lives the other end counts it.
pub struct Visit {
    stream: UnixStream,
}

impl Visit {
    /// Shows the pass at a door and takes what is handed over.
    ///
    /// # Errors
    /// When there is no such door, it stays closed, or not all comes within `limit`.
    pub async fn pay(offer: &ShareOffer, limit: Duration) -> io::Result<(Visit, Vec<Handed<OwnedFd>>)> {
        timeout(limit, async {
            let stream = Visit::enter(offer).await?;
            let mut handed = Vec::new();
            loop {
                let (one, left) = take(&stream).await?;
                handed.push(one);
                if handed.len() as u64 + left > MAX_SHARED as u64 {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "too much is handed over"));
                }
                if left == 0 {
                    return Ok((Visit { stream }, handed));
                }
            }
        })
        .await?
    }

    /// Shows the pass at a door, and a stage. From then on the other end may have it open, until it goes.
    ///
    /// # Errors
    /// When there is no such door, or it does not listen within `limit`.
    pub async fn lend(offer: &ShareOffer, loan: &StageLoan, limit: Duration) -> io::Result<Visit> {
        timeout(limit, async {
            let mut stream = Visit::enter(offer).await?;
            stream.write_all(&loan.to_bytes()).await?;
            Ok(Visit { stream })
        })
        .await?
    }

    /// Waits until the other end has taken the stage.
    ///
    /// # Errors
    /// When it does not, or not within `limit`.
    pub async fn taken(&mut self, limit: Duration) -> io::Result<()> {
        match timeout(limit, self.stream.read_u8()).await?? {
            TAKEN => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Goes, and waits until the other end has let go of what was lent to it: it may use that until then.
    pub async fn take_back(mut self) {
        // The other end may have gone already.
        let _ = self.stream.shutdown().await;
        self.ended().await;
    }

    async fn enter(offer: &ShareOffer) -> io::Result<UnixStream> {
        if offer.door.is_empty() || offer.door.len() > MAX_DOOR_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no door has such a name"));
        }
        let mut stream = UnixStream::connect(format!("\0{}", offer.door)).await?;
        stream.write_all(&offer.pass.0).await?;
        Ok(stream)
    }

    /// Waits until the other end has gone: its memory is nobody's then but who looks at it. What it says is no end.
    pub async fn ended(&mut self) {
        // An error is an end too.
        while self.stream.read(&mut [0; 64]).await.is_ok_and(|bytes| bytes > 0) {}
    }
}

fn label(number: u64, bytes: u64, left: u64) -> [u8; LABEL_BYTES] {
    let mut label = [0; LABEL_BYTES];
    for (place, value) in label.chunks_exact_mut(8).zip([number, bytes, left]) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    label
}

/// Takes one piece of memory, and how many come after it.
async fn take(stream: &UnixStream) -> io::Result<(Handed<OwnedFd>, u64)> {
    let mut label = [0; LABEL_BYTES];
    let (count, files) = stream
        .async_io(Interest::READABLE, || {
            // Room for more than is to come, so that more shows.
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(&mut label)];
            let received = recvmsg(stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            let files: Vec<OwnedFd> = control
                .drain()
                .filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(files) => Some(files),
                    _ => None,
                })
                .flatten()
                .collect();
            Ok((received.bytes, files))
        })
        .await?;
    if count == 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the door stays closed"));
    }
    let Ok([file]) = <[OwnedFd; 1]>::try_from(files) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "one descriptor was to come"));
    };
    if count != LABEL_BYTES {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let field = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&label[at * 8..at * 8 + 8]);
        u64::from_le_bytes(bytes)
    };
    Ok((Handed { number: field(0), bytes: field(1), file }, field(2)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;

    const LIMIT: Duration = Duration::from_secs(5);

    fn offer(door: &Door) -> ShareOffer {
        ShareOffer { start: 1, door: door.name().to_owned(), pass: Pass([7; 32]) }
    }

    #[tokio::test]
    async fn memory_is_handed_over_in_order_and_each_end_hears_of_the_others_end() {
        let door = Door::open().expect("sockets are to be had");
        let offer = offer(&door);
        let visiting = tokio::spawn(async move { Visit::pay(&offer, LIMIT).await });
        let mut guest = door.accept().await.expect("it is of the same user");
        assert_eq!(guest.pass(LIMIT).await.expect("it shows one"), Pass([7; 32]));
        let name = File::open("/proc/self/comm").expect("Linux has it");
        let limits = File::open("/proc/self/limits").expect("Linux has it");
        let handed = [&name, &limits].map(AsFd::as_fd);
        let handed: Vec<_> =
            (1..).zip(handed).map(|(number, file)| Handed { number, bytes: number * 10, file }).collect();
        guest.hand(&handed, LIMIT).await.expect("it takes them");
        let (visit, taken) = visiting.await.expect("it ends").expect("all has come");
        assert_eq!(taken.iter().map(|one| (one.number, one.bytes)).collect::<Vec<_>>(), [(1, 10), (2, 20)]);
        let mut text = String::new();
        let second = taken.into_iter().nth(1).expect("there are two");
        File::from(second.file).read_to_string(&mut text).expect("it is the file");
        assert!(text.starts_with("Limit"), "{text}");
        drop(visit);
        guest.gone().await;

        let again = super::tests::offer(&door);
        let visiting = tokio::spawn(async move { Visit::pay(&again, LIMIT).await });
        let mut guest = door.accept().await.expect("it is of the same user");
        guest.pass(LIMIT).await.expect("it shows one");
        guest.hand(&handed[..1], LIMIT).await.expect("it takes it");
        let (mut visit, _) = visiting.await.expect("it ends").expect("all has come");
        drop(guest);
        visit.ended().await;
    }

    #[tokio::test]
    async fn a_door_that_stays_closed_or_is_none_is_no_way_in() {
        let door = Door::open().expect("sockets are to be had");
        let offer = offer(&door);
        let asked = offer.clone();
        let visiting = tokio::spawn(async move { Visit::pay(&asked, LIMIT).await.map(|_| ()) });
        let mut guest = door.accept().await.expect("it is of the same user");
        guest.pass(LIMIT).await.expect("it shows one");
        drop(guest);
        let refused = visiting.await.expect("it ends").expect_err("nothing was handed over");
        assert!(
            matches!(refused.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ConnectionReset),
            "{refused:?}"
        );
        drop(door);
        for door in [offer.door.clone(), String::new(), "x".repeat(MAX_DOOR_BYTES + 1)] {
            let offer = ShareOffer { door, ..offer.clone() };
            assert!(Visit::pay(&offer, LIMIT).await.is_err(), "{:?}", offer.door);
        }
    }

    #[tokio::test]
    async fn who_brings_no_descriptor_or_too_many_pieces_is_not_believed() {
        let lies = [(label(1, 10, 0), false), (label(1, 10, MAX_SHARED as u64), true)];
        for (told, with_file) in lies {
            let door = Door::open().expect("sockets are to be had");
            let offer = offer(&door);
            let visiting = tokio::spawn(async move { Visit::pay(&offer, LIMIT).await.map(|_| ()) });
            let mut guest = door.accept().await.expect("it is of the same user");
            guest.pass(LIMIT).await.expect("it shows one");
            if with_file {
                let file = File::open("/proc/self/comm").expect("Linux has it");
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let files = [file.as_fd()];
                control.push(SendAncillaryMessage::ScmRights(&files));
                sendmsg(&guest.stream, &[IoSlice::new(&told)], &mut control, SendFlags::NOSIGNAL)
                    .expect("it is taken");
            } else {
                guest.stream.write_all(&told).await.expect("it is taken");
            }
            let refused = visiting.await.expect("it ends").expect_err("it is no memory");
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{refused:?}");
        }
    }

    #[tokio::test]
    async fn a_stage_is_shown_and_taken_back_when_the_other_end_has_let_go_of_it() {
        let door = Door::open().expect("sockets are to be had");
        let offer = offer(&door);
        let loan = StageLoan { handle: [3; 64], offset: 1, bytes: 2 };
        let lending = tokio::spawn(async move {
            let mut visit = Visit::lend(&offer, &loan, LIMIT).await?;
            visit.taken(LIMIT).await.map(|()| visit)
        });
        let mut guest = door.accept().await.expect("it is of the same user");
        assert_eq!(guest.pass(LIMIT).await.expect("it shows one"), Pass([7; 32]));
        assert_eq!(guest.loan(LIMIT).await.expect("it shows it"), loan);
        guest.take(LIMIT).await.expect("it listens");
        let visit = lending.await.expect("it ends").expect("it is taken");
        let taking = tokio::spawn(visit.take_back());
        guest.gone().await;
        assert!(!taking.is_finished(), "what was lent may be used still");
        drop(guest);
        taking.await.expect("it ends");
    }

    #[tokio::test]
    async fn a_stage_that_is_taken_after_its_lender_has_gone_is_waited_for() {
        let door = Door::open().expect("sockets are to be had");
        let offer = offer(&door);
        let loan = StageLoan { handle: [3; 64], offset: 1, bytes: 2 };
        let lending = tokio::spawn(async move { Visit::lend(&offer, &loan, LIMIT).await });
        let mut guest = door.accept().await.expect("it is of the same user");
        guest.pass(LIMIT).await.expect("it shows one");
        guest.loan(LIMIT).await.expect("it shows it");
        let mut visit = lending.await.expect("it ends").expect("it is shown");
        guest.take(LIMIT).await.expect("it listens");
        let waited = timeout(Duration::from_millis(50), visit.ended()).await;
        waited.expect_err("that it is taken is no end");
        drop(guest);
        visit.take_back().await;
    }

    #[tokio::test]
    async fn a_stage_that_is_not_taken_or_is_none_is_not_lent() {
        let loan = StageLoan { handle: [3; 64], offset: 1, bytes: 2 };
        for bytes in [2, 0] {
            let door = Door::open().expect("sockets are to be had");
            let offer = offer(&door);
            let loan = StageLoan { bytes, ..loan };
            let lending = tokio::spawn(async move {
                let mut visit = Visit::lend(&offer, &loan, LIMIT).await?;
                visit.taken(LIMIT).await
            });
            let mut guest = door.accept().await.expect("it is of the same user");
            guest.pass(LIMIT).await.expect("it shows one");
            assert_eq!(guest.loan(LIMIT).await.is_ok(), bytes > 0);
            drop(guest);
            lending.await.expect("it ends").expect_err("it was not taken");
        }
    }

    #[test]
    fn the_same_user_and_the_systems_own_may_look() {
        let answers = [(1000, 1000), (0, 1000), (1001, 1000), (1000, 0)].map(|(a, b)| may_look(a, b));
        assert_eq!(answers, [true, true, false, false]);
    }

    #[test]
    fn a_host_is_one_start_and_one_network() {
        assert_eq!(this_host(), this_host());
        let hosts = [("a", (1, 2)), ("a", (2, 1)), ("b", (1, 2))].map(|(start, net)| HostId::new(start, net));
        assert!(hosts[0] != hosts[1] && hosts[0] != hosts[2] && hosts[1] != hosts[2]);
    }
}
