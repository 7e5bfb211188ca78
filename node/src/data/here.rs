//! Copies between two devices of this node: stores like any other, whose bytes lie here already.

use crate::data::payload::Slices;
use crate::data::plane::DataPlane;
use crate::data::traced;
use kvhive_protocol::data::{DataReply, DataRequest};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::{Level, MemberId, TraceContext, WireError};
use kvhive_wire::{Fault, Peer};

impl DataPlane {
    /// Does a store that another device of this node, which is `member`, asks for.
    ///
    /// # Errors
    /// As if it had come from elsewhere.
    pub(crate) async fn store_here(
        &self,
        member: MemberId,
        (trace, request): (Option<TraceContext>, &DataRequest),
        payload: &[&[u8]],
    ) -> Result<DataReply, Fault> {
        let DataRequest::Store(store) = request else {
            return Err(Fault::Refused(WireError::malformed(format_args!("only stores are done here"))));
        };
        let level = Level::NEWEST;
        let sender = u64::from(member.0);
        let peer = Peer { role: Role::Node, sender, level, speaks: level, cluster: None };
        let mut span = traced::begin(self, peer, trace, request);
        let stored = self.store(&mut Slices::new(payload), peer, &span, store.clone()).await;
        let stored = stored.and_then(|stored| stored.map_err(Fault::Refused));
        match &stored {
            Ok(reply) => traced::answered(&mut span, reply),
            Err(fault) => span.fail(fault),
        }
        stored
    }
}
