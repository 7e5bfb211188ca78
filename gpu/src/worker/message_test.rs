//! Messages are read as they were written, and nothing else is read at all.

use super::*;
use proptest::prelude::*;

const PAIR: PairId = PairId(7);
const SOON: Duration = Duration::from_millis(250);

fn commands() -> Vec<Command> {
    let extents = vec![Extent { at: 4096, bytes: 5 }, Extent { at: 0, bytes: 1 << 20 }];
    let (pair, transfer, within, packing) = (PAIR, TransferId(9), SOON, Packing::Together);
    vec![
        Command::MakeId { pair },
        Command::Join { pair, id: UniqueId([3; 128]), rank: Rank { at: 1, of: 2 }, within },
        Command::Send { pair, transfer, to: 1, within, packing, extents: extents.clone() },
        Command::Receive {
            pair,
            transfer,
            from: 0,
            within,
            packing: Packing::Apart,
            extents: extents.clone(),
        },
        Command::Broadcast { pair, transfer, root: 2, within, packing, extents },
        Command::Abort { pair },
        Command::Close { pair, within },
        Command::End,
    ]
}

fn answers() -> Vec<Answer> {
    let failed = |transfer, why| Answer::Failed { pair: PAIR, transfer, why, said: "why".to_owned() };
    let mut all = vec![
        Answer::Started { nccl: "2.28.9".to_owned() },
        Answer::Unfit { is_lasting: true, said: "no GPU".to_owned() },
        Answer::IdMade { pair: PAIR, id: UniqueId([5; 128]) },
        Answer::Ready { pair: PAIR },
        Answer::Done { pair: PAIR, transfer: TransferId(1), took: SOON },
        failed(None, Why::Late),
        Answer::Closed { pair: PAIR },
    ];
    all.extend(WHYS.map(|why| failed(Some(TransferId(0)), why)));
    all
}

#[test]
fn messages_are_read_as_they_were_written() {
    for command in commands() {
        let bytes = command.encode().expect("it may be sent");
        assert_eq!(Command::decode(&bytes), Ok(command));
    }
    for answer in answers() {
        assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
    }
    let setup = Setup { gpu: 3, slab_bytes: 5, ctas: (1, 4), buffer_bytes: None, ..Setup::default() };
    assert_eq!(Setup::decode(&setup.encode()), Ok(setup));
}

#[test]
fn what_is_cut_or_goes_on_is_no_message() {
    let mut all: Vec<Vec<u8>> = commands().iter().filter_map(Command::encode).collect();
    for bytes in &mut all {
        for end in 0..bytes.len() {
            assert_eq!(Command::decode(&bytes[..end]), Err(Garbled { bytes: end }));
        }
        bytes.push(0);
        assert!(Command::decode(bytes).is_err());
    }
    for answer in answers() {
        let mut bytes = answer.encode();
        assert!((0..bytes.len()).all(|end| Answer::decode(&bytes[..end]).is_err()));
        bytes.push(0);
        assert!(Answer::decode(&bytes).is_err());
    }
}

#[test]
fn what_is_too_much_is_not_sent() {
    let send = |within, extents| {
        let (pair, transfer, packing) = (PAIR, TransferId(0), Packing::Together);
        Command::Send { pair, transfer, to: 0, within, packing, extents }
    };
    let one = Extent { at: 0, bytes: 1 };
    assert!(send(SOON, vec![one; EXTENTS]).encode().is_some_and(|bytes| bytes.len() <= MESSAGE_BYTES));
    assert_eq!(send(SOON, vec![one; EXTENTS + 1]).encode(), None);
    assert_eq!(send(SOON, vec![]).encode(), None);
    assert_eq!(send(SOON, vec![Extent { at: 5, bytes: 0 }]).encode(), None);
    assert_eq!(send(SOON, vec![Extent { at: u64::MAX, bytes: 2 }]).encode(), None);
    assert_eq!(send(SOON, vec![Extent { at: 0, bytes: TRANSFER_BYTES }, one]).encode(), None);
    assert_eq!(send(LONGEST + SOON, vec![one]).encode(), None);
    let join =
        |at, of| Command::Join { pair: PAIR, id: UniqueId([0; 128]), rank: Rank { at, of }, within: SOON };
    assert_eq!(join(2, 2).encode(), None);
    assert_eq!(join(0, RANKS + 1).encode(), None);
    let long = "é".repeat(SAID_BYTES);
    let cut = Answer::decode(&Answer::Unfit { is_lasting: false, said: long }.encode());
    assert!(
        matches!(cut, Ok(Answer::Unfit { said, .. }) if said.starts_with("éé") && said.len() <= SAID_BYTES + 3)
    );
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_fall_over(bytes in prop::collection::vec(any::<u8>(), 0..400), kind in 0u8..13) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = kind;
        }
        let _ = Setup::decode(&bytes);
        if let Ok(command) = Command::decode(&bytes) {
            prop_assert_eq!(command.encode(), Some(bytes.clone()));
        }
        let _ = Answer::decode(&bytes);
    }
}
