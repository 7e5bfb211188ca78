//! What an engine's scheduler tells its workers before a step, and what they answer after it. The two are of one version: the
//! scheduler's process starts the workers'.

use crate::wishes::Wish;
use kvhive_protocol::{WireError, codec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// One question for a request's blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct AskId(pub u64);

/// Blocks that are saved together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SaveId(pub u64);

/// A block of a request, and where it is in the engine's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Placed {
    /// Which block of the request, from its first token on.
    pub at: u32,
    /// The engine's number of it.
    pub block: u32,
}

/// What a worker is told. In this order within a step: names before what uses them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Order {
    /// The engine's names of a request's tokens go on like this.
    Names {
        /// Whose.
        request: String,
        /// How many there are before.
        from: u32,
        /// The next ones.
        hashes: Vec<Vec<u8>>,
    },
    /// Fetch what there is of the tokens from `from` to `end`, for a request that has those before.
    Ask {
        /// Its number.
        ask: AskId,
        /// For whom.
        request: String,
        /// The first token.
        from: u32,
        /// Past the last one.
        end: u32,
        /// How long the request waits still, in milliseconds.
        left_ms: u32,
    },
    /// Copy what was fetched into the engine's blocks, before the step runs.
    Load {
        /// What was fetched.
        ask: AskId,
        /// Blocks of each group.
        groups: Vec<Vec<Placed>>,
    },
    /// Nobody waits for this any more.
    Drop {
        /// What was asked for, or fetched.
        ask: AskId,
    },
    /// Save these blocks, which are whole when the step has run.
    Save {
        /// Its number.
        save: SaveId,
        /// Whose.
        request: String,
        /// Of which group.
        group: u32,
        /// Which.
        blocks: Vec<Placed>,
    },
    /// See that this becomes of a request's blocks.
    Wish {
        /// Which request.
        request: String,
        /// What is wished for.
        wish: Wish,
    },
    /// The request is over.
    Forget {
        /// Which.
        request: String,
    },
}

/// What a worker answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Report {
    /// It has the tokens of a question up to `end`; as many as were asked from, for none.
    Answered {
        /// Which question.
        ask: AskId,
        /// Past the last token.
        end: u32,
    },
    /// These blocks are in the cluster.
    Saved {
        /// Which.
        save: SaveId,
    },
    /// Some of these blocks are not.
    Lost {
        /// Which.
        save: SaveId,
    },
}

/// Returns what is handed from one process to the other.
///
/// # Errors
/// When it is larger than any message may be.
pub fn encode<T: Serialize>(messages: &[T]) -> Result<Vec<u8>, WireError> {
    codec::encode(&messages)
}

/// Reads what the other process handed over.
///
/// # Errors
/// When it is not that.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Vec<T>, WireError> {
    codec::decode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_arrive_as_they_were_given() {
        let orders = vec![
            Order::Names { request: "r".to_owned(), from: 3, hashes: vec![vec![1; 32], vec![2; 32]] },
            Order::Load { ask: AskId(7), groups: vec![vec![Placed { at: 3, block: 9 }], Vec::new()] },
        ];
        let bytes = encode(&orders).expect("small");
        assert_eq!(decode::<Order>(&bytes), Ok(orders));
        assert!(decode::<Order>(&bytes[1..]).is_err());
    }
}
