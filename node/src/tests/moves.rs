//! Slots on their way to another node.

use super::asker::{Asker, Block, kept, key};
use super::coordinator::{FakeCoordinator, TENANT};
use super::{KIB, Setup, eventually};
use crate::actors::core::{DeviceMessage, Reserved};
use crate::data::{Content, Item, Origin, Verdict};
use crate::fill::{Filler, Giving};
use crate::guards::Lent;
use crate::pace::Pacer;
use crate::view::Serving;
use crate::{DeviceMemory, MoveLimits, NodeHandle};
use kvhive_cache::Pass;
use kvhive_protocol::data::{About, Ack, StoreBlock};
use kvhive_protocol::emptying::{Displaced, Given};
use kvhive_protocol::load::SlotGiven;
use kvhive_protocol::map::ReplicaSet;
use kvhive_protocol::{BlockKey, DeviceId, Epoch, Filling, Pin, PinMode, Reason, Slot, WireError};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// Places a slot and says who lacks its blocks.
pub(super) fn place(coordinator: &FakeCoordinator, slot: Slot, set: &[DeviceId], lacking: &[DeviceId]) {
    coordinator.change(|map| {
        Arc::make_mut(&mut map.slots)[usize::from(slot.0)] = ReplicaSet(set.to_vec());
        let filling = Arc::make_mut(&mut map.filling);
        filling.remove(&slot);
        if !lacking.is_empty() {
            filling.insert(slot, Filling { devices: lacking.to_vec(), streams: true });
        }
    });
}

async fn serve_it(coordinator: &FakeCoordinator, nodes: &[NodeHandle]) {
    let epoch = coordinator.epoch();
    eventually("every node serves by the map", || {
        nodes.iter().all(|node| node.member().is_some_and(|member| coordinator.has_confirmed(member, epoch)))
    })
    .await;
}

/// Two nodes and a slot that is on the first alone, with a client of its primary.
pub(super) async fn one_of_two(setup: Setup) -> (FakeCoordinator, Vec<NodeHandle>, Asker, [DeviceId; 2]) {
    let (coordinator, nodes) = setup.several(2).await;
    let client = nodes[0].ask().await;
    let devices = [0, 1].map(|at: usize| device_of(&nodes[at]));
    place(&coordinator, client.slot, &devices[..1], &[]);
    serve_it(&coordinator, &nodes).await;
    (coordinator, nodes, client, devices)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_is_served_by_the_old_node_until_the_new_one_has_every_block() {
    let (coordinator, nodes, mut client, [old, new]) = one_of_two(Setup::default()).await;
    let blocks: Vec<Block> = (0..20).map(|number| Block::new(number, 4 * KIB)).collect();
    assert_eq!(client.store(&blocks, Ack::Primary).await, Ok(vec![kept(1); 20]));
    place(&coordinator, client.slot, &[old, new], &[new]);
    eventually("it is given", || coordinator.is_filled(client.slot, new)).await;
    let gone = [SlotGiven { slot: client.slot, moved_blocks: 20, moved_bytes: 20 * 4 * KIB as u64 }];
    eventually("what has gone is told", || coordinator.moving(old.member) == gone).await;
    let numbers: Vec<u64> = (0..20).collect();
    assert_eq!(client.covered(&numbers).await, Ok(20));
    place(&coordinator, client.slot, &[new], &[]);
    serve_it(&coordinator, &nodes).await;
    assert!(matches!(client.covered(&numbers).await, Err(WireError::StaleEpoch { .. })));
    let mut after = nodes[1].ask().await;
    let expected: Vec<_> = blocks.into_iter().map(|block| Some(block.bytes)).collect();
    assert!(after.fetch(&numbers).await == Ok(expected));
    assert_eq!(nodes[0].counted(|counters| &counters.moved_blocks), 20);
    assert_eq!(nodes[0].counted(|counters| &counters.replicated_blocks), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_there_already_is_not_sent_and_other_slots_stay() {
    let (coordinator, nodes, mut client, [old, new]) = one_of_two(Setup::default()).await;
    let slot = client.slot;
    let blocks: Vec<Block> = (0..6).map(|number| Block::new(number, 4 * KIB)).collect();
    assert_eq!(client.store(&blocks[..3], Ack::Primary).await, Ok(vec![kept(1); 3]));
    client.slot = Slot(slot.0 + 1);
    place(&coordinator, client.slot, &[old], &[]);
    serve_it(&coordinator, &nodes).await;
    assert_eq!(client.store(&blocks[3..], Ack::Primary).await, Ok(vec![kept(1); 3]));
    place(&coordinator, slot, &[old, new], &[new]);
    eventually("it is given", || coordinator.is_filled(slot, new)).await;
    nodes[1].settles("three blocks came", |stats| stats.blocks() == 3).await;
    // The primary was another for a while: what is given once more is known.
    let before = nodes[1].counted(|counters| &counters.stored_bytes);
    place(&coordinator, slot, &[old, new], &[]);
    serve_it(&coordinator, &nodes).await;
    place(&coordinator, slot, &[old, new], &[new]);
    serve_it(&coordinator, &nodes).await;
    eventually("it is given again", || nodes[0].plane.replicator.giving.left() == 0).await;
    assert_eq!(nodes[1].counted(|counters| &counters.stored_bytes), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_that_come_while_a_slot_moves_are_on_both_sides() {
    let setup = Setup { move_rate: 64 << 10, ..Setup::default() };
    let (coordinator, nodes, mut client, [old, new]) = one_of_two(setup).await;
    let blocks: Vec<Block> = (0..12).map(|number| Block::new(number, 4 * KIB)).collect();
    assert_eq!(client.store(&blocks[..10], Ack::Primary).await, Ok(vec![kept(1); 10]));
    place(&coordinator, client.slot, &[old, new], &[new]);
    serve_it(&coordinator, &nodes).await;
    assert_eq!(client.store(&blocks[10..11], Ack::All).await, Ok(vec![kept(2)]));
    // It may be gone from here a moment later: the new node has it before it is acknowledged.
    assert_eq!(client.store(&blocks[11..], Ack::Primary).await, Ok(vec![kept(2)]));
    eventually("it is given", || coordinator.is_filled(client.slot, new)).await;
    nodes[1].settles("all came", |stats| stats.blocks() == 12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_be_reached_is_given_nothing_and_asked_again() {
    let (coordinator, mut nodes, mut client, [old, new]) = one_of_two(Setup::default()).await;
    assert_eq!(client.store(&[Block::new(1, KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    drop(nodes.remove(1));
    place(&coordinator, client.slot, &[old, new], &[new]);
    eventually("it was tried", || nodes[0].counted(|counters| &counters.move_failures) >= 2).await;
    assert!(!coordinator.is_filled(client.slot, new));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_answer_holds_up_no_other() {
    let (coordinator, nodes) = Setup::default().several(3).await;
    let mut client = nodes[0].ask().await;
    let [old, silent, other] = [0, 1, 2].map(|at: usize| device_of(&nodes[at]));
    let slots = [client.slot, Slot(client.slot.0 + 1)];
    slots.iter().for_each(|slot| place(&coordinator, *slot, &[old], &[]));
    serve_it(&coordinator, &nodes).await;
    for (slot, number) in slots.into_iter().zip(1..) {
        client.slot = slot;
        assert_eq!(client.store(&[Block::new(number, KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    }
    // It is connected to, and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    coordinator.change(|map| {
        let member = map.members.get_mut(&silent.member).expect("it is a member");
        member.data_address = address;
    });
    place(&coordinator, slots[0], &[old, silent], &[silent]);
    let held = listener.accept().await.expect("it is asked");
    place(&coordinator, slots[1], &[old, other], &[other]);
    eventually("the other is given", || coordinator.is_filled(slots[1], other)).await;
    assert_eq!(nodes[0].counted(|counters| &counters.move_failures), 0, "the first is still awaited");
    drop(held);
}

fn device_of(node: &NodeHandle) -> DeviceId {
    DeviceId::new(node.member().expect("it is a member"), 0)
}

/// Says that a member is being emptied.
fn empty(coordinator: &FakeCoordinator, device: DeviceId) {
    coordinator.change(|map| map.members.get_mut(&device.member).expect("it is one").drains = true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptying_a_node_tells_what_moved_what_was_there_and_what_left_for_it() {
    let (coordinator, nodes, mut client, [old, new]) = one_of_two(Setup::default()).await;
    let slot = client.slot;
    let blocks: Vec<Block> = (0..50).map(|number| Block::new(number, 4 * KIB)).collect();
    // Five it has already, from when it was a replica.
    place(&coordinator, slot, &[old, new], &[]);
    serve_it(&coordinator, &nodes).await;
    assert_eq!(client.store(&blocks[..5], Ack::All).await, Ok(vec![kept(2); 5]));
    place(&coordinator, slot, &[old], &[]);
    serve_it(&coordinator, &nodes).await;
    assert_eq!(client.store(&blocks[5..20], Ack::Primary).await, Ok(vec![kept(1); 15]));
    // It has 32 frames, the others of which hold blocks of a slot of its own.
    let mut other = nodes[1].ask().await;
    other.slot = Slot(slot.0 + 1);
    place(&coordinator, other.slot, &[new], &[]);
    serve_it(&coordinator, &nodes).await;
    assert_eq!(other.store(&blocks[20..47], Ack::Primary).await, Ok(vec![kept(1); 27]));
    empty(&coordinator, old);
    place(&coordinator, slot, &[old, new], &[new]);
    eventually("it is given", || coordinator.is_filled(slot, new)).await;
    let given =
        Given { moved_blocks: 15, moved_bytes: 15 * 4 * KIB as u64, there_blocks: 5, ..Given::default() };
    let displaced = Displaced { blocks: 15, lost_blocks: 15, lost_bytes: 15 * 4 * KIB as u64 };
    eventually("both have told", || coordinator.emptying(old.member) == (given, displaced)).await;
    // It is told until the emptying is over, also when the slot has gone.
    place(&coordinator, slot, &[new], &[]);
    serve_it(&coordinator, &nodes).await;
    assert_eq!(coordinator.emptying(old.member), (given, displaced));
    coordinator.change(|map| map.members.get_mut(&old.member).expect("it is one").drains = false);
    let nothing = (Given::default(), Displaced::default());
    eventually("it is over", || coordinator.emptying(old.member) == nothing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_without_room_is_lost_with_who_is_emptied_and_a_pinned_one_keeps_its_slot_there() {
    let (coordinator, nodes, mut client, [old, new]) = one_of_two(Setup::default()).await;
    let slot = client.slot;
    let blocks: Vec<Block> = (0..40).map(|number| Block::new(number, 4 * KIB)).collect();
    assert_eq!(client.store(&blocks[..4], Ack::Primary).await, Ok(vec![kept(1); 4]));
    let mut other = nodes[1].ask().await;
    other.slot = Slot(slot.0 + 1);
    place(&coordinator, other.slot, &[new], &[]);
    serve_it(&coordinator, &nodes).await;
    assert_eq!(other.store(&blocks[8..40], Ack::Primary).await, Ok(vec![kept(1); 32]));
    // Held, none of them can leave.
    let numbers: Vec<u64> = (8..40).collect();
    assert_eq!(other.hold(&numbers, 30_000).await, Ok(32));
    let held = tokio::spawn(async move {
        // As long as this lasts: a hold ends by itself.
        while other.hold(&numbers, 30_000).await == Ok(32) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    coordinator.change(|map| {
        let pin = Pin {
            tenant: super::coordinator::TENANT,
            keys: [key(1)].iter().collect(),
            mode: PinMode::Hard,
            reason: Reason::default(),
        };
        Arc::make_mut(&mut map.pins).insert("one".to_owned(), pin);
    });
    empty(&coordinator, old);
    place(&coordinator, slot, &[old, new], &[new]);
    eventually("the pinned one waits", || coordinator.emptying(old.member).0.waiting_blocks == 1).await;
    assert!(!coordinator.is_filled(slot, new));
    coordinator.change(|map| Arc::make_mut(&mut map.pins).clear());
    eventually("without the pin it is given as far as there is room", || coordinator.is_filled(slot, new))
        .await;
    let given = Given { declined_blocks: 4, ..Given::default() };
    eventually("it has told", || coordinator.emptying(old.member) == (given, Displaced::default())).await;
    // Whether anybody holds them is asked when nobody can give them any more.
    place(&coordinator, slot, &[new], &[]);
    let lost = Displaced { blocks: 0, lost_blocks: 4, lost_bytes: 16 * KIB as u64 };
    eventually("they are lost", || coordinator.emptying(old.member) == (given, lost)).await;
    assert!(!held.is_finished(), "all were held to the end");
    held.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinned_block_stays_where_as_much_is_pinned_as_may_be() {
    let (coordinator, nodes, mut client, [old, new]) = one_of_two(Setup::default()).await;
    let slot = client.slot;
    let blocks: Vec<Block> = (0..20).map(|number| Block::new(number, 4 * KIB)).collect();
    assert_eq!(client.store(&blocks[..4], Ack::Primary).await, Ok(vec![kept(1); 4]));
    let mut other = nodes[1].ask().await;
    other.slot = Slot(slot.0 + 1);
    place(&coordinator, other.slot, &[new], &[]);
    serve_it(&coordinator, &nodes).await;
    // Half of its frames.
    assert_eq!(other.store(&blocks[4..20], Ack::Primary).await, Ok(vec![kept(1); 16]));
    let pin = |name: &str, numbers: std::ops::Range<u64>| {
        coordinator.change(|map| {
            let pin = Pin {
                tenant: super::coordinator::TENANT,
                keys: numbers.map(key).collect::<Vec<_>>().iter().collect(),
                mode: PinMode::Hard,
                reason: Reason::default(),
            };
            Arc::make_mut(&mut map.pins).insert(name.to_owned(), pin);
        });
    };
    pin("there", 4..20);
    nodes[1].settles("half of it is pinned", |stats| stats.pinned_blocks == 16).await;
    pin("here", 0..2);
    serve_it(&coordinator, &nodes).await;
    empty(&coordinator, old);
    place(&coordinator, slot, &[old, new], &[new]);
    let told = || coordinator.emptying(old.member).0;
    eventually("both wait, and the others are there", || {
        (told().waiting_blocks, told().moved_blocks) == (2, 2)
    })
    .await;
    assert!(!coordinator.is_filled(slot, new));
    coordinator.change(|map| {
        Arc::make_mut(&mut map.pins).remove("there");
    });
    eventually("there is room to pin", || coordinator.is_filled(slot, new)).await;
    nodes[1].settles("they are pinned there", |stats| stats.pinned_blocks == 2).await;
}

/// A hand that gives what `node` has to give, beside the node's own.
fn filler(node: &NodeHandle, rate: u64, listed: usize) -> Filler {
    let mut replicator = node.plane.replicator.clone();
    replicator.giving = Giving::default();
    let (view, counters) = (node.view.clone(), node.plane.counters.clone());
    let devices = node.devices.clone();
    let pacer =
        Arc::new(Pacer::new(MoveLimits { rate, slowdown_percent: 150 }, devices.clone(), view.clone()));
    Filler { devices, replicator, view, counters, pacer, listed }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_over_a_device_that_is_made_anew_meanwhile_is_no_whole_one() {
    // The node's own hand gives eight, then rests.
    let (coordinator, nodes, mut client, [old, new]) =
        one_of_two(Setup { move_rate: 1, ..Setup::default() }).await;
    let blocks: Vec<Block> = (0..12).map(|number| Block::new(number, 4 * KIB)).collect();
    assert_eq!(client.store(&blocks, Ack::Primary).await, Ok(vec![kept(1); 12]));
    place(&coordinator, client.slot, &[old, new], &[new]);
    serve_it(&coordinator, &nodes).await;
    let moved = || nodes[0].counted(|counters| &counters.moved_blocks);
    eventually("eight are there", || moved() == 8).await;
    let asked = || nodes[1].counted(|counters| &counters.matches);
    let before = asked();
    let other = filler(&nodes[0], 1, 1 << 10);
    // Whatever it has to send waits for this.
    other.pacer.pass(1).await;
    let pass = tokio::spawn(async move { other.pass().await });
    eventually("the other hand has asked for the first eight and rests", || asked() > before).await;
    nodes[0].devices[0].actor().try_send(DeviceMessage::Panic).expect("the mailbox has room");
    assert_eq!(pass.await.expect("it ends"), Some(Pass::Partial));
    assert_eq!(
        filler(&nodes[0], 1 << 40, 1 << 10).pass().await,
        Some(Pass::Whole),
        "nothing is left to give"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_goes_on_while_maps_of_other_things_come_that_the_target_has_not_heard_of() {
    // The node's own hand gives eight, then rests.
    let (coordinator, nodes, mut client, [old, new]) =
        one_of_two(Setup { move_rate: 1, ..Setup::default() }).await;
    let blocks: Vec<Block> = (0..24).map(|number| Block::new(number, 4 * KIB)).collect();
    assert_eq!(client.store(&blocks, Ack::Primary).await, Ok(vec![kept(1); 24]));
    place(&coordinator, client.slot, &[old, new], &[new]);
    serve_it(&coordinator, &nodes).await;
    let moved = || nodes[0].counted(|counters| &counters.moved_blocks);
    eventually("eight are there", || moved() == 8).await;
    // Of two that hear of a map one is first.
    coordinator.keep_behind(Some(new.member));
    let another = || {
        coordinator.change(|_| {});
        coordinator.epoch()
    };
    let epoch = another();
    eventually("who gives has it", || coordinator.has_confirmed(old.member, epoch)).await;
    let asked = || nodes[1].counted(|counters| &counters.matches);
    let before = asked();
    let other = filler(&nodes[0], 1 << 40, 1 << 10);
    let pass = tokio::spawn(async move { other.pass().await });
    eventually("it has asked, and was told to come again", || asked() > before).await;
    coordinator.keep_behind(None);
    serve_it(&coordinator, &nodes).await;
    coordinator.keep_behind(Some(new.member));
    another();
    assert_eq!(pass.await.expect("it ends"), Some(Pass::Whole));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_to_who_goes_by_an_older_map() {
    let (coordinator, nodes, mut client, [old, new]) =
        one_of_two(Setup { memory: DeviceMemory::Host, ..Setup::default() }).await;
    let blocks: Vec<Block> = (0..3).map(|number| Block::new(number, 4 * KIB)).collect();
    assert_eq!(client.store(&blocks, Ack::Primary).await, Ok(vec![kept(1); 3]));
    place(&coordinator, client.slot, &[old, new], &[]);
    serve_it(&coordinator, &nodes).await;
    let keys = (0..3).map(key).collect();
    let read = |reply| DeviceMessage::Read { tenant: TENANT, keys, reply };
    let lent = nodes[0].devices[0].ask(Duration::from_secs(10), read).await.expect("the device answers");
    let item = |(at, lent): (usize, Option<Lent>)| {
        let Some(Lent::Guard(guard)) = lent else { panic!("it is in memory") };
        let block = StoreBlock { header: *guard.header(), parent: BlockKey::NONE };
        Item { at, block, slot: client.slot, content: Content::Here(Arc::new(guard)), targets: vec![new] }
    };
    let items: Vec<Item> = lent.into_iter().enumerate().map(item).collect();
    let hand = filler(&nodes[0], 1 << 40, 8);
    let serving = nodes[0].view.serving().expect("it serves");
    let mut newer = serving.map.as_ref().clone();
    newer.epoch = Epoch(newer.epoch.0 + 1);
    let newer = Serving { map: Arc::new(newer), ..serving.clone() };
    let before = nodes[1].counted(|counters| &counters.stores);
    for (serving, verdict, stores) in
        [(&newer, Verdict::Later, 0), (&serving, Verdict::Moved, 1), (&serving, Verdict::There, 1)]
    {
        let origin = Origin {
            serving: serving.clone(),
            source: old,
            tenant: TENANT,
            layout: None,
            about: About::default(),
            trace: None,
        };
        let verdicts = hand.replicator.give(&origin, new, &items, &hand.pacer).await;
        assert_eq!(verdicts.expect("it answers"), [verdict; 3]);
        assert_eq!(nodes[1].counted(|counters| &counters.stores) - before, stores, "{verdict:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_given_no_room_is_told_also_where_another_block_did_not_get_there() {
    let (coordinator, nodes, mut client, [old, new]) = one_of_two(Setup::default()).await;
    let slot = client.slot;
    let blocks: Vec<Block> = (0..39).map(|number| Block::new(number, 4 * KIB)).collect();
    assert_eq!(client.store(&blocks[..4], Ack::Primary).await, Ok(vec![kept(1); 4]));
    let mut other = nodes[1].ask().await;
    other.slot = Slot(slot.0 + 1);
    place(&coordinator, other.slot, &[new], &[]);
    serve_it(&coordinator, &nodes).await;
    assert_eq!(other.store(&blocks[8..39], Ack::Primary).await, Ok(vec![kept(1); 31]));
    // Held, none of them can leave.
    let numbers: Vec<u64> = (8..39).collect();
    assert_eq!(other.hold(&numbers, 30_000).await, Ok(31));
    let held = tokio::spawn(async move {
        // As long as this lasts: a hold ends by itself.
        while other.hold(&numbers, 30_000).await == Ok(31) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    // The last frame is one's that is written already, and is not to the end of this.
    let under_way = vec![(StoreBlock { header: blocks[0].header, parent: BlockKey::NONE }, slot)];
    let about = About::default();
    let reserve = |reply| DeviceMessage::Reserve {
        tenant: TENANT,
        blocks: under_way,
        about,
        pin: false,
        given_by: None,
        reply,
    };
    let reserved = nodes[1].devices[0].ask(Duration::from_secs(10), reserve).await;
    let reserved = reserved.expect("the device answers");
    assert!(matches!(&reserved[..], [Reserved::Write(_)]), "there is a frame");
    empty(&coordinator, old);
    place(&coordinator, slot, &[old, new], &[new]);
    let failed = || nodes[0].counted(|counters| &counters.move_failures);
    eventually("one pass has come to its end, and another", || failed() >= 2).await;
    // Whether anybody holds them is asked when nobody can give them any more.
    place(&coordinator, slot, &[new], &[]);
    let lost = Displaced { blocks: 0, lost_blocks: 3, lost_bytes: 12 * KIB as u64 };
    eventually("they are lost", || coordinator.emptying(old.member).1 == lost).await;
    assert!(!held.is_finished(), "all were held to the end");
    held.abort();
    drop(reserved);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_blocks_than_are_listed_at_a_time_are_given_all_the_same() {
    let (coordinator, nodes, mut client, [old, new]) =
        one_of_two(Setup { move_rate: 1, ..Setup::default() }).await;
    let blocks: Vec<Block> = (0..20).map(|number| Block::new(number, 4 * KIB)).collect();
    assert_eq!(client.store(&blocks, Ack::Primary).await, Ok(vec![kept(1); 20]));
    place(&coordinator, client.slot, &[old, new], &[new]);
    serve_it(&coordinator, &nodes).await;
    let other = filler(&nodes[0], 1 << 40, 3);
    // What the node's own hand is just giving comes in a pass after it, or by that hand, which leaves nothing to give.
    while other.pass().await.is_some_and(|pass| pass != Pass::Whole) {}
    nodes[1].settles("all came", |stats| stats.blocks() == 20).await;
}
