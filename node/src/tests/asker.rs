//! A client that speaks the wire by hand, so that it can also misbehave.

use super::TOKEN;
use super::coordinator::TENANT;
use kvhive_protocol::block::{Codec, digest};
use kvhive_protocol::data::{
    About, Accept, Ack, DataReply, DataRequest, FetchRequest, Fetched, Hint, MatchRequest, ReleaseRequest,
    Run, StoreBlock, StoreRequest, Stored,
};
use kvhive_protocol::frame::Kind;
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_protocol::number::timed;
use kvhive_protocol::{
    BlockHeader, BlockKey, DeviceId, Epoch, Era, Layout, LayoutFingerprint, MemberId, Slot, TenantId,
    TraceContext, WireError,
};
use kvhive_wire::{Connection, Fault, Identity};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);

/// A block with bytes that say which it is.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Block {
    pub(super) header: BlockHeader,
    pub(super) bytes: Vec<u8>,
}

pub(super) fn key(number: u64) -> BlockKey {
    let mut bytes = [0x5A; 32];
    // Spread over the index, which takes a key's first bytes as uniform.
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    BlockKey::from_bytes(bytes)
}

impl Block {
    pub(super) fn new(number: u64, len: usize) -> Block {
        Block::in_era(number, len, Era(1))
    }

    pub(super) fn in_era(number: u64, len: usize, era: Era) -> Block {
        let bytes: Vec<u8> = (0..len).map(|at| (number as usize * 31 + at + at / 251) as u8).collect();
        let header = BlockHeader {
            key: key(number),
            fingerprint: LayoutFingerprint([3; 16]),
            tenant: TENANT,
            era,
            depth: 0,
            codec: Codec::Raw,
            payload_bytes: len as u64,
            digest: digest(&bytes),
        };
        Block { header, bytes }
    }
}

pub(super) fn kept(copies: u8) -> Stored {
    Stored::Kept { copies, already: false }
}

pub(super) fn already(copies: u8) -> Stored {
    Stored::Kept { copies, already: true }
}

pub(super) struct Asker {
    pub(super) connection: Connection,
    number: u64,
    /// How much time it says that there is for what it asks.
    pub(super) left: Option<Duration>,
    pub(super) device: DeviceId,
    pub(super) slot: Slot,
    pub(super) tenant: TenantId,
    pub(super) copy: bool,
    pub(super) layout: Option<Layout>,
    pub(super) accept: Accept,
    pub(super) about: About,
    pub(super) epoch: Epoch,
}

impl Asker {
    pub(super) async fn connect(address: &str, member: MemberId) -> Result<Asker, Fault> {
        Asker::connect_with(address, member, TOKEN).await
    }

    pub(super) async fn connect_with(address: &str, member: MemberId, token: &[u8]) -> Result<Asker, Fault> {
        Asker::connect_as(address, member, token, Role::Client).await
    }

    pub(super) async fn connect_as(
        address: &str,
        member: MemberId,
        token: &[u8],
        role: Role,
    ) -> Result<Asker, Fault> {
        let identity = Identity {
            token: TokenKey::new(token),
            role,
            sender: 0,
            cluster: None,
            tls: None,
            levels: Default::default(),
        };
        let (connection, _) = Connection::connect(address, &identity, LIMIT).await?;
        let device = DeviceId::new(member, 0);
        let (slot, tenant) = (Slot(9), TENANT);
        Ok(Asker {
            connection,
            number: 0,
            left: None,
            device,
            slot,
            tenant,
            copy: false,
            layout: None,
            accept: Accept::Stored,
            about: About::default(),
            epoch: Epoch(1),
        })
    }

    fn runs(&self, keys: usize) -> Vec<Run> {
        vec![Run { slot: self.slot, keys: keys as u32 }]
    }

    pub(super) fn fetch_request(&self, numbers: &[u64]) -> DataRequest {
        DataRequest::Fetch(FetchRequest {
            epoch: self.epoch,
            device: self.device,
            tenant: self.tenant,
            runs: self.runs(numbers.len()),
            keys: numbers.iter().map(|number| key(*number)).collect(),
            accept: self.accept,
        })
    }

    /// Stores a block that comes after another in its prefix.
    pub(super) async fn store_after(
        &mut self,
        block: &Block,
        parent: BlockKey,
    ) -> Result<Vec<Stored>, WireError> {
        let mut request = self.store_request(std::slice::from_ref(block), Ack::Primary);
        if let DataRequest::Store(store) = &mut request {
            store.blocks[0].parent = parent;
        }
        match self.exchange(&request, &[&block.bytes]).await {
            Ok(DataReply::Stored { blocks, .. }) => Ok(blocks),
            Err(Fault::Refused(error)) => Err(error),
            other => panic!("a store was answered by {other:?}"),
        }
    }

    pub(super) fn store_request(&self, blocks: &[Block], ack: Ack) -> DataRequest {
        DataRequest::Store(StoreRequest {
            epoch: self.epoch,
            device: self.device,
            tenant: self.tenant,
            ack,
            copy: self.copy,
            moved: false,
            layout: self.layout,
            about: self.about,
            runs: self.runs(blocks.len()),
            blocks: blocks
                .iter()
                .map(|block| StoreBlock { header: block.header, parent: BlockKey::NONE })
                .collect(),
        })
    }

    pub(super) async fn exchange(
        &mut self,
        request: &DataRequest,
        payload: &[&[u8]],
    ) -> Result<DataReply, Fault> {
        self.number += 1;
        let number = self.left.map_or(self.number, |left| timed(self.number, left));
        self.connection.send(Kind::DataRequest, number, request, payload).await?;
        self.connection.receive_answer(Kind::DataReply, number).await
    }

    /// Asks as a part of a trace.
    pub(super) async fn exchange_traced(
        &mut self,
        of: TraceContext,
        request: &DataRequest,
    ) -> Result<DataReply, Fault> {
        self.number += 1;
        self.connection.send(Kind::TracedRequest, self.number, &(of, request), &[]).await?;
        self.connection.receive_answer(Kind::DataReply, self.number).await
    }

    /// Stores; an error is the node's refusal of all of it.
    pub(super) async fn store(&mut self, blocks: &[Block], ack: Ack) -> Result<Vec<Stored>, WireError> {
        match self.try_store(blocks, ack).await {
            Ok(stored) => Ok(stored),
            Err(Fault::Refused(error)) => Err(error),
            Err(fault) => panic!("the connection failed: {fault}"),
        }
    }

    /// Stores; an error may also be the connection's.
    pub(super) async fn try_store(&mut self, blocks: &[Block], ack: Ack) -> Result<Vec<Stored>, Fault> {
        let request = self.store_request(blocks, ack);
        let payload: Vec<&[u8]> = blocks.iter().map(|block| &block.bytes[..]).collect();
        match self.exchange(&request, &payload).await? {
            DataReply::Stored { blocks, .. } => Ok(blocks),
            other => panic!("a store was answered by {other:?}"),
        }
    }

    /// Fetches, and checks what came against its header.
    pub(super) async fn fetch(&mut self, numbers: &[u64]) -> Result<Vec<Option<Vec<u8>>>, WireError> {
        let found = self.fetch_whole(numbers).await?;
        Ok(found.into_iter().map(|block| block.map(|block| block.bytes)).collect())
    }

    /// Fetches with headers.
    pub(super) async fn fetch_whole(&mut self, numbers: &[u64]) -> Result<Vec<Option<Block>>, WireError> {
        let request = self.fetch_request(numbers);
        let found = match self.exchange(&request, &[]).await {
            Ok(DataReply::Fetched { blocks, .. }) => blocks,
            Err(Fault::Refused(error)) => return Err(error),
            other => panic!("a fetch was answered by {other:?}"),
        };
        let mut blocks = Vec::new();
        for (number, one) in numbers.iter().zip(found) {
            blocks.push(match one {
                Fetched::Miss => None,
                Fetched::Hit(header) => {
                    assert_eq!(header.key, key(*number));
                    let mut bytes = vec![0; header.payload_bytes as usize];
                    let digest = self.connection.read_payload(&mut bytes).await.expect("the payload comes");
                    assert_eq!(digest, header.digest);
                    Some(Block { header, bytes })
                }
            });
        }
        Ok(blocks)
    }

    /// Says what is expected of the session of these; returns how many are here.
    pub(super) async fn release(&mut self, numbers: &[u64], hint: Hint) -> Result<u32, WireError> {
        let request = DataRequest::Release(ReleaseRequest {
            epoch: self.epoch,
            device: self.device,
            tenant: self.tenant,
            hint,
            runs: self.runs(numbers.len()),
            keys: numbers.iter().map(|number| key(*number)).collect(),
        });
        match self.exchange(&request, &[]).await {
            Ok(DataReply::Released { blocks, .. }) => Ok(blocks),
            Err(Fault::Refused(error)) => Err(error),
            other => panic!("a release was answered by {other:?}"),
        }
    }

    pub(super) fn match_request(&self, numbers: &[u64], hold_ms: u32) -> DataRequest {
        DataRequest::Match(MatchRequest {
            epoch: self.epoch,
            device: self.device,
            tenant: self.tenant,
            hold_ms,
            runs: self.runs(numbers.len()),
            keys: numbers.iter().map(|number| key(*number)).collect(),
        })
    }

    pub(super) async fn covered(&mut self, numbers: &[u64]) -> Result<u32, WireError> {
        self.hold(numbers, 0).await
    }

    /// As [`Asker::covered`], and has what is there stay for so long.
    pub(super) async fn hold(&mut self, numbers: &[u64], hold_ms: u32) -> Result<u32, WireError> {
        let request = self.match_request(numbers, hold_ms);
        match self.exchange(&request, &[]).await {
            Ok(DataReply::Matched { covered, .. }) => Ok(covered[0]),
            Err(Fault::Refused(error)) => Err(error),
            other => panic!("a match was answered by {other:?}"),
        }
    }
}
