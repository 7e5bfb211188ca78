//! Where the bytes of a store come from: off a socket, or from frames of this process.

use kvhive_protocol::WireError;
use kvhive_protocol::block::BlockDigest;
use kvhive_wire::{Connection, Fault};

/// Bytes that are copied at once, so that they are hashed while the CPU's cache still holds them.
const COPY_BYTES: usize = 256 * 1024;

/// Blocks' bytes, one block after the other.
pub(crate) trait Payload: Send {
    /// Returns the bytes that were neither read nor skipped.
    fn left(&self) -> u64;

    /// Fills `into` with the next bytes and returns their digest ([`kvhive_protocol::block::digest`]).
    ///
    /// # Errors
    /// When there are fewer or their source fails: `into` is undefined then.
    fn read(&mut self, into: &mut [u8]) -> impl Future<Output = Result<u64, Fault>> + Send;

    /// Passes over bytes.
    ///
    /// # Errors
    /// As [`Payload::read`].
    fn skip(&mut self, bytes: u64) -> impl Future<Output = Result<(), Fault>> + Send;
}

impl Payload for Connection {
    fn left(&self) -> u64 {
        self.payload_left()
    }

    async fn read(&mut self, into: &mut [u8]) -> Result<u64, Fault> {
        self.read_payload(into).await
    }

    async fn skip(&mut self, bytes: u64) -> Result<(), Fault> {
        self.skip_payload(bytes).await
    }
}

/// Bytes that lie in this process's memory.
pub(super) struct Slices<'a> {
    slices: std::slice::Iter<'a, &'a [u8]>,
    /// What is left of the one that is being read.
    present: &'a [u8],
    left: u64,
}

impl<'a> Slices<'a> {
    pub(super) fn new(slices: &'a [&'a [u8]]) -> Slices<'a> {
        let left = slices.iter().map(|slice| slice.len() as u64).sum();
        Slices { slices: slices.iter(), present: &[], left }
    }

    /// Takes the next bytes, as many as `bytes` where they lie together.
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Fault> {
        while self.present.is_empty() {
            let next = self.slices.next();
            self.present = next.ok_or_else(|| {
                Fault::Protocol(WireError::malformed(format_args!("fewer payload bytes than were announced")))
            })?;
        }
        let (taken, rest) = self.present.split_at(bytes.min(self.present.len()));
        self.present = rest;
        self.left -= taken.len() as u64;
        Ok(taken)
    }
}

impl Payload for Slices<'_> {
    fn left(&self) -> u64 {
        self.left
    }

    async fn read(&mut self, into: &mut [u8]) -> Result<u64, Fault> {
        let mut digest = BlockDigest::default();
        let mut filled = 0;
        while filled < into.len() {
            let taken = self.take(COPY_BYTES.min(into.len() - filled))?;
            into[filled..filled + taken.len()].copy_from_slice(taken);
            filled += taken.len();
            digest.advance(&into[..filled]);
        }
        Ok(digest.finish(into))
    }

    async fn skip(&mut self, bytes: u64) -> Result<(), Fault> {
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        while left > 0 {
            left -= self.take(left)?.len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::block::digest;

    #[tokio::test]
    async fn slices_are_read_as_one_run_of_bytes_and_no_further() {
        let bytes: Vec<u8> =
            (0..1_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let slices = [&bytes[..3], &[], &bytes[3..700_000], &bytes[700_000..]];
        let mut payload = Slices::new(&slices);
        let mut into = vec![0; 400_000];
        assert_eq!(payload.read(&mut into).await.expect("there are as many"), digest(&bytes[..400_000]));
        assert_eq!(into, bytes[..400_000]);
        payload.skip(400_000).await.expect("there are as many");
        assert_eq!(payload.left(), 200_000);
        let mut rest = vec![0; 200_000];
        assert_eq!(payload.read(&mut rest).await.expect("there are as many"), digest(&bytes[800_000..]));
        assert_eq!(rest, bytes[800_000..]);
        let more = payload.read(&mut [0]).await;
        assert!(matches!(more, Err(Fault::Protocol(WireError::Malformed { .. }))), "{more:?}");
        assert_eq!(payload.read(&mut []).await.expect("nothing is asked for"), digest(&[]));
    }
}
