//! Names: what they mean and shall mean, where this node answers for them. By its lease alone: while others may have taken over,
//! two nodes would say different things.

use crate::data::check;
use crate::data::counters::{add, count};
use crate::data::plane::DataPlane;
use crate::view::Serving;
use kvhive_protocol::data::DataReply;
use kvhive_protocol::names::{
    MAX_NAME_BYTES, MAX_NAMES_PER_REQUEST, NameOp, NameVerb, NamesAnswer, NamesAsk, NamesRequest,
};
use kvhive_protocol::{DeviceId, WireError};

/// Does what a request asks of names, all of it or nothing.
pub(super) fn answer(plane: &DataPlane, request: NamesRequest) -> Result<DataReply, WireError> {
    let view = &plane.view;
    let NamesRequest { epoch, device, tenant, ask } = request;
    let serving = view.leased()?;
    check::admits(&serving, epoch, device, tenant, &[])?;
    let (now, map) = (view.now(), &serving.map);
    let answer = match ask {
        NamesAsk::Do(ops) => {
            if ops.len() > MAX_NAMES_PER_REQUEST {
                return Err(WireError::TooLarge {
                    bytes: ops.len() as u64,
                    limit: MAX_NAMES_PER_REQUEST as u64,
                });
            }
            let mut names = view.names();
            for op in &ops {
                check_op(&serving, device, op)?;
                if names.answers_for(now, &op.key).is_err() {
                    return Err(WireError::busy(
                        "the name's slot has come lately, its former primary may answer still",
                    ));
                }
            }
            add(&plane.counters.name_asks, ops.len() as u64);
            NamesAnswer::Done(ops.iter().map(|op| names.act(now, map, tenant, op)).collect())
        }
        NamesAsk::List { from, limit } => {
            count(&plane.counters.name_lists);
            let (names, next) = view.names().list(now, map, tenant, from, limit as usize);
            NamesAnswer::Listed { names, next }
        }
        NamesAsk::Count => {
            count(&plane.counters.name_lists);
            NamesAnswer::Counted(view.names().count(now, map, tenant))
        }
    };
    // A newer map may have come since: what was done by the older one counts for nobody.
    if view.leased()?.map.epoch != map.epoch {
        return Err(WireError::StaleEpoch { epoch: map.epoch });
    }
    Ok(DataReply::Named { epoch: map.epoch, answer })
}

fn check_op(serving: &Serving, device: DeviceId, op: &NameOp) -> Result<(), WireError> {
    if serving.map.replicas(op.key.slot()).primary() != Some(device) {
        return Err(WireError::StaleEpoch { epoch: serving.map.epoch });
    }
    match &op.verb {
        NameVerb::Set { name, .. } if name.len() > MAX_NAME_BYTES => {
            Err(WireError::TooLarge { bytes: name.len() as u64, limit: MAX_NAME_BYTES as u64 })
        }
        _ => Ok(()),
    }
}
