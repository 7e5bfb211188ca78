//! The socket between a node and its worker: whole messages, each with at most one descriptor. It has no name, and nobody else has it.

use super::message::MESSAGE_BYTES;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, recvmsg, sendmsg, shutdown,
    socketpair,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Descriptors that a message may have. There is room for more, so that they are closed and not left open unseen.
const FILES: usize = 1;

/// One end of it.
pub(super) struct Channel(OwnedFd);

/// A message that came.
pub(super) struct Received {
    pub(super) bytes: usize,
    pub(super) file: Option<OwnedFd>,
}

impl Channel {
    /// Makes both ends, of which no process that is started has one unless it is given.
    pub(super) fn pair() -> Result<(Channel, OwnedFd), Errno> {
        let (here, there) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel(here), there))
    }

    pub(super) fn over(socket: OwnedFd) -> Channel {
        Channel(socket)
    }

    /// Sends a message; waits for room, unless it shall not.
    ///
    /// # Errors
    /// `AGAIN` where there is no room and it shall not wait; `PIPE` and the like where nobody reads any more.
    pub(super) fn send(&self, bytes: &[u8], file: Option<BorrowedFd<'_>>, waits: bool) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
        if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(Errno::NOBUFS);
        }
        let mut flags = SendFlags::NOSIGNAL;
        if !waits {
            flags |= SendFlags::DONTWAIT;
        }
        // A datagram goes as a whole or not at all.
        retry_on_intr(|| sendmsg(&self.0, &[IoSlice::new(bytes)], &mut ancillary, flags)).map(|_| ())
    }

    /// Waits for a message; none, once the other end is closed.
    ///
    /// # Errors
    /// `MSGSIZE` where it is longer than any may be.
    pub(super) fn receive(&self, room: &mut [u8; MESSAGE_BYTES]) -> Result<Option<Received>, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(room)];
        let mut take =
            || retry_on_intr(|| recvmsg(&self.0, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC));
        // That the other end was closed with something unread in it is told once, before what it had sent.
        let got = match take() {
            Err(Errno::CONNRESET) => take(),
            got => got,
        };
        let got = got?;
        let mut file = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                file = files.last().or(file);
            }
        }
        if got.flags.contains(ReturnFlags::TRUNC) {
            return Err(Errno::MSGSIZE);
        }
        // No message is empty.
        Ok((got.bytes > 0).then_some(Received { bytes: got.bytes, file }))
    }

    /// Has both ends find it closed.
    pub(super) fn close(&self) {
        // It fails where it is closed already.
        let _ = shutdown(&self.0, Shutdown::Both);
    }
}

/// Returns room for a message.
pub(super) fn room() -> Box<[u8; MESSAGE_BYTES]> {
    vec![0; MESSAGE_BYTES].into_boxed_slice().try_into().expect("it was made of that length")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    #[test]
    fn messages_are_whole_and_bring_what_they_were_given() {
        let (here, there) = Channel::pair().expect("there are sockets");
        let there = Channel::over(there);
        let mut file = tempfile::tempfile().expect("a file can be made");
        file.write_all(b"lent").expect("there is room");
        here.send(&[7; 3000], Some(file.as_fd()), false).expect("there is room");
        here.send(&[8], None, false).expect("there is room");
        let mut room = room();
        let first = there.receive(&mut room).expect("it comes").expect("it is open");
        assert_eq!((first.bytes, &room[..3000]), (3000, &[7; 3000][..]));
        let mut lent = std::fs::File::from(first.file.expect("it was sent"));
        let mut text = String::new();
        lent.rewind().and_then(|()| lent.read_to_string(&mut text)).expect("it can be read");
        assert_eq!(text, "lent");
        let second = there.receive(&mut room).expect("it comes").expect("it is open");
        assert!(second.bytes == 1 && second.file.is_none());
        drop(here);
        assert!(there.receive(&mut room).expect("it is closed").is_none());
        assert!(there.send(&[1], None, true).is_err());
    }

    #[test]
    fn what_an_end_had_sent_before_it_went_is_read_though_it_had_not_read_all() {
        let (here, there) = Channel::pair().expect("there are sockets");
        let there = Channel::over(there);
        here.send(&[1], None, false).expect("there is room");
        there.send(&[2, 3], None, false).expect("there is room");
        drop(there);
        let mut room = room();
        let last = here.receive(&mut room).expect("it comes").expect("it was sent");
        assert_eq!(&room[..last.bytes], [2, 3]);
        assert!(here.receive(&mut room).expect("it is closed").is_none());
    }

    #[test]
    fn what_has_no_room_waits_for_nobody_and_what_is_too_long_is_refused() {
        let (here, there) = Channel::pair().expect("there are sockets");
        let refused = (0..10_000).find_map(|_| here.send(&[0; 60_000], None, false).err());
        assert_eq!(refused, Some(Errno::AGAIN));
        let (here, there) = (there, here);
        let here = Channel::over(here);
        here.send(&vec![0; MESSAGE_BYTES + 1], None, false).expect("there is room");
        assert_eq!(there.receive(&mut room()).err(), Some(Errno::MSGSIZE));
    }
}
