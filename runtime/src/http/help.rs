//! What each exported figure says: the one table of all names in `/metrics`, of nodes and coordinators.

/// Every name and what it counts, ascending.
pub const HELP: &[(&str, &str)] = &[
    ("kvhive_build_info", "1, with the version of this process"),
    ("kvhive_coordinator_applied_index", "Index of the last log entry applied"),
    ("kvhive_coordinator_block_events_batches_total", "Batches of block events that were published"),
    ("kvhive_coordinator_block_events_blocks", "Blocks of the cluster that block events have told of"),
    (
        "kvhive_coordinator_clears_done_total",
        "Clears, rotations and deletions of tenants that every member has confirmed",
    ),
    ("kvhive_coordinator_committed_index", "Index of the last log entry that a majority has"),
    ("kvhive_coordinator_elections_won_total", "Times this coordinator became leader"),
    (
        "kvhive_coordinator_engine_hashes",
        "Hashes of followed engines' blocks that are remembered in full, for routes and check_blocks",
    ),
    (
        "kvhive_coordinator_engine_hashes_dropped_total",
        "Hashes of followed engines' blocks forgotten because no more may be remembered: the oldest go first",
    ),
    ("kvhive_coordinator_engine_hashes_room", "Hashes of followed engines' blocks that may be remembered"),
    ("kvhive_coordinator_epoch", "Epoch of the cluster map that this coordinator has"),
    (
        "kvhive_coordinator_heartbeats_fenced_total",
        "Heartbeats refused because their member is none any more in that generation",
    ),
    ("kvhive_coordinator_is_leader", "1 where this coordinator leads, else 0"),
    ("kvhive_coordinator_leases_expired_total", "Leases of members that ran out while this coordinator led"),
    (
        "kvhive_coordinator_leases_renewed_total",
        "Leases of members that heartbeats renewed while this coordinator led",
    ),
    ("kvhive_coordinator_log_microseconds_total", "Time that writes and syncs of the log took"),
    ("kvhive_coordinator_log_syncs_total", "Times the log was synced to its disk"),
    ("kvhive_coordinator_log_writes_total", "Writes to the log"),
    ("kvhive_coordinator_members", "Members of the cluster map by state"),
    ("kvhive_coordinator_pins", "Pins that the map has"),
    ("kvhive_coordinator_plans_total", "Plans of slots that were proposed"),
    ("kvhive_coordinator_proposals_total", "Changes that this coordinator has put to the others"),
    ("kvhive_coordinator_raft_messages_ignored_total", "Messages of peers that could not be used"),
    (
        "kvhive_coordinator_raft_sends_dropped_total",
        "Messages to peers that were dropped because their queue was full",
    ),
    ("kvhive_coordinator_reads_total", "Reads that went through the leader"),
    ("kvhive_coordinator_refused_total", "Changes and reads refused because this coordinator does not lead"),
    ("kvhive_coordinator_slots_lost_total", "Slots that lost their last replica: their blocks are misses"),
    ("kvhive_coordinator_slots_moving", "Slots that are being copied to where they belong"),
    ("kvhive_coordinator_slots_unavailable", "Slots without any replica"),
    ("kvhive_coordinator_term", "Raft's term"),
    ("kvhive_coordinator_waiting", "Requests that wait for an answer here"),
    ("kvhive_device_blocks", "Resident blocks of all tiers, as the device last reported"),
    (
        "kvhive_device_capacity_bytes",
        "Bytes of its memory frames, as the device last reported; the disk tier is not in it",
    ),
    ("kvhive_device_pinned_blocks", "Pinned blocks of a device, as last reported"),
    ("kvhive_device_pinned_bytes", "Bytes of the frames of a device's pinned blocks, as last reported"),
    (
        "kvhive_device_used_bytes",
        "Bytes of its memory frames that are taken, as the device last reported; the disk tier is not in it",
    ),
    ("kvhive_forecast", "What is foreseen of a figure, so far ahead"),
    ("kvhive_forecast_coverage", "Part of what came that lay within the interval foreseen for it"),
    (
        "kvhive_forecast_mase",
        "Error of what was foreseen over that of foreseeing no change: below 1 is better than that",
    ),
    (
        "kvhive_node_abandoned_writes_total",
        "Writes that ended without a block, or whose asker did not hear of it in time",
    ),
    ("kvhive_node_actor_restarts_total", "Devices made anew after a panic: each begins empty"),
    ("kvhive_node_already_stored_blocks_total", "Stores of blocks that were there"),
    ("kvhive_node_blocks", "Resident blocks by tier"),
    ("kvhive_node_capacity_bytes", "Bytes of all frames by tier"),
    (
        "kvhive_node_cleared_blocks_total",
        "Blocks dropped because their tenant was cleared, got another secret or was deleted",
    ),
    ("kvhive_node_codec_blocks", "Resident blocks by codec"),
    ("kvhive_node_codec_raw_bytes", "Bytes that resident blocks stand for once decoded, by codec"),
    ("kvhive_node_codec_stored_bytes", "Bytes of resident blocks as they are stored, by codec"),
    (
        "kvhive_node_collected_blocks_total",
        "Blocks whose place in memory collections (gc_threshold) have freed, by reason",
    ),
    (
        "kvhive_node_collected_bytes_total",
        "Bytes of memory that collections (gc_threshold) have freed, by reason",
    ),
    ("kvhive_node_collections_total", "Collections begun: memory was fuller than gc_threshold"),
    (
        "kvhive_node_connections_refused_total",
        "Connections refused because there were as many as there may be",
    ),
    ("kvhive_node_connections_total", "Connections taken"),
    (
        "kvhive_node_corrupt_blocks_total",
        "Stored blocks refused because their bytes did not match their header",
    ),
    (
        "kvhive_node_covered_keys_total",
        "Keys of matches that were found in an unbroken run from the first; over matched keys it is the hit rate",
    ),
    (
        "kvhive_node_declined_stores_total",
        "Stores declined because what would have had to leave is worth more",
    ),
    ("kvhive_node_decoded_blocks_total", "Blocks decoded for readers that asked for raw ones"),
    ("kvhive_node_demoted_blocks_total", "Blocks moved down a tier"),
    (
        "kvhive_node_disk_bad_records_total",
        "Records that were torn, damaged, another's or not readable: misses",
    ),
    ("kvhive_node_disk_blocks_total", "Blocks read from or written to the disk"),
    ("kvhive_node_disk_bytes_total", "Bytes read from or written to the disk"),
    (
        "kvhive_node_disk_closed_total",
        "Times the disk was closed because it failed: the node then does without",
    ),
    ("kvhive_node_disk_ended_records_total", "Records found at a start that belong to nobody any more"),
    ("kvhive_node_disk_info", "1, with how the disk is read and written"),
    (
        "kvhive_node_disk_keys",
        "Keys of the encrypted disk tiers: one for each tenant that has written there since its last clear",
    ),
    (
        "kvhive_node_disk_keys_destroyed_total",
        "Disk keys destroyed because their tenant was deleted, cleared or given another secret",
    ),
    ("kvhive_node_disk_late_reads_total", "Reads of the disk that did not come in time: misses"),
    (
        "kvhive_node_disk_open",
        "1 where the disk tier is used, 0 where it is closed after failures until it works again",
    ),
    ("kvhive_node_disk_probes_total", "Tries whether a closed disk works again"),
    ("kvhive_node_disk_restored_blocks_total", "Blocks found again on the disk at a start"),
    ("kvhive_node_disk_waiting_transfers", "Reads and writes that wait for the disk"),
    ("kvhive_node_disk_write_failures_total", "Writes to the disk that failed"),
    ("kvhive_node_epoch", "Epoch of the cluster map that this node serves by; 0 without one"),
    (
        "kvhive_node_evicted_blocks_total",
        "Blocks let go, by the reason that kvhive explain gives: evicted (for others), over (their session), not-admitted (to the disk)",
    ),
    ("kvhive_node_fetched_bytes_total", "Bytes given out by fetches"),
    (
        "kvhive_node_gathered_bytes_total",
        "Bytes that stores took from stages of clients, without passing a socket",
    ),
    (
        "kvhive_node_give_rate_bytes",
        "Bytes a second at which blocks of slots that move may go to other nodes now",
    ),
    ("kvhive_node_given_up_frames", "Frames of writes that were given up and that a GPU may still write"),
    (
        "kvhive_node_grants_expired_total",
        "Answers whose blocks were let go of because their asker had not read them where they are in time",
    ),
    (
        "kvhive_node_guest_blocks_total",
        "Blocks of slots that this node is no replica of that clients near it asked for: here already, joined to a fetch under way, fetched from a replica, or missed",
    ),
    (
        "kvhive_node_guest_bytes",
        "Bytes of blocks of other nodes' slots that are kept for clients near this one",
    ),
    ("kvhive_node_guest_came_total", "Blocks that were fetched from replicas for clients near this node"),
    (
        "kvhive_node_guest_failures_total",
        "Times that a replica did not send in time what it was asked for, for clients near this node",
    ),
    (
        "kvhive_node_guest_fetched_bytes_total",
        "Bytes of blocks that were fetched from replicas for clients near this node",
    ),
    (
        "kvhive_node_guest_memory_bytes",
        "Memory of guest_memory in use: by blocks that are kept, being fetched, or still being sent",
    ),
    ("kvhive_node_guests", "Blocks of other nodes' slots that are kept for clients near this node"),
    ("kvhive_node_handshakes_refused_total", "Connections whose handshake was refused"),
    (
        "kvhive_node_hits_total",
        "Blocks that fetches got. Fetches ask for what a match has found: the hit rate is covered over matched keys, not this over hits and misses",
    ),
    ("kvhive_node_inflight_bytes", "Bytes of blocks that are being received or sent"),
    (
        "kvhive_node_lease_seconds",
        "For how long the node's lease lasts without hearing from a leader; 0 where it has none: others may have taken its place",
    ),
    ("kvhive_node_leaving_blocks", "Blocks that have left and are still read or copied"),
    (
        "kvhive_node_link_batches_total",
        "Batches of blocks given to other devices, by the way they went, and whether that carried them",
    ),
    ("kvhive_node_link_bytes_total", "Bytes of blocks given to other devices, by the way they went"),
    (
        "kvhive_node_links",
        "Devices that a device gives blocks to, by the way that the last batch went, and why it did",
    ),
    ("kvhive_node_looked_bytes_total", "Bytes of copies that were read out of other nodes' memory"),
    ("kvhive_node_lost_blocks_total", "Blocks that could not be read any more where they were kept"),
    ("kvhive_node_mailbox_full_total", "Requests shed because a device's mailbox was full"),
    ("kvhive_node_malformed_total", "Requests that made no sense"),
    ("kvhive_node_matched_keys_total", "Keys that matches asked for"),
    ("kvhive_node_memory_configured_bytes", "Memory that the configuration has this node take at most"),
    ("kvhive_node_memory_readers", "Processes of this host that have mapped the node's memory"),
    (
        "kvhive_node_memory_readers_refused_total",
        "Processes that came to map the node's memory and were turned away, by what was wrong: their pass or their user",
    ),
    (
        "kvhive_node_misses_total",
        "Blocks that fetches did not get: gone since the match, or not read from the disk. What a match does not find is not in it",
    ),
    ("kvhive_node_move_failures_total", "Copies of slots to other nodes that failed and are tried again"),
    ("kvhive_node_moved_blocks_total", "Blocks given to other nodes because slots moved"),
    (
        "kvhive_node_name_lists_total",
        "Lists and counts of the names whose meaning this node keeps that were asked for",
    ),
    ("kvhive_node_name_requests_total", "Names that were asked about, set or dropped at this node"),
    ("kvhive_node_names", "Names whose meaning this node keeps"),
    ("kvhive_node_names_evicted_total", "Names that had to make room for others (names_memory)"),
    (
        "kvhive_node_nccl_groups",
        "Sets of GPUs that blocks were to go to at once from or through a GPU, by how far their communicator is",
    ),
    (
        "kvhive_node_nccl_groups_given_up_total",
        "Communicators of more than two GPUs that were given up, or what there was of them, by the reason",
    ),
    ("kvhive_node_nccl_groups_made_total", "Communicators of more than two GPUs that stood"),
    ("kvhive_node_nccl_pairs", "GPUs that a GPU has had a pair with or wanted one, by how far that is"),
    (
        "kvhive_node_nccl_pairs_given_up_total",
        "Pairs that were given up, or what there was of them, by the reason",
    ),
    ("kvhive_node_nccl_pairs_made_total", "Pairs whose communicator stood"),
    (
        "kvhive_node_nccl_transfers_total",
        "Batches that were to go by NCCL: done, or the reason why they went by TCP",
    ),
    ("kvhive_node_nccl_worker_deaths_total", "Processes that call NCCL and have ended, or were killed"),
    (
        "kvhive_node_nccl_worker_starts_total",
        "Processes that call NCCL and were started: one, and one after each death",
    ),
    (
        "kvhive_node_not_admitted_to_disk_total",
        "Blocks evicted because they were not worth a place on disk; among the evicted too",
    ),
    ("kvhive_node_open_connections", "Connections that are open"),
    (
        "kvhive_node_peer_bytes_total",
        "Bytes of copies between the node's own GPUs that did not pass the host's memory",
    ),
    ("kvhive_node_pinned_blocks", "Blocks that are pinned, and never leave for others"),
    ("kvhive_node_pinned_bytes", "Bytes of the frames of pinned blocks"),
    ("kvhive_node_pins_refused_total", "Blocks that stayed ordinary because as many are pinned as may be"),
    (
        "kvhive_node_prefetched_blocks_total",
        "Blocks asked to be moved up ahead of their use, by what came of it",
    ),
    ("kvhive_node_promoted_blocks_total", "Blocks moved up a tier"),
    ("kvhive_node_readers", "Readers of all blocks"),
    ("kvhive_node_redis_commands_total", "Commands answered at the port that speaks Redis"),
    ("kvhive_node_redis_connections", "Callers of the port that speaks Redis, those that have shown a token"),
    ("kvhive_node_redis_connections_total", "Connections taken at the port that speaks Redis"),
    ("kvhive_node_redis_errors_total", "Commands answered with an error at the port that speaks Redis"),
    ("kvhive_node_redis_hits_total", "Values that were asked for at the port that speaks Redis and found"),
    (
        "kvhive_node_redis_inflight_bytes",
        "Memory of requests and values under way at the port that speaks Redis: of those that are read, and of those that are sent",
    ),
    (
        "kvhive_node_redis_misses_total",
        "Values that were asked for at the port that speaks Redis and not found",
    ),
    (
        "kvhive_node_redis_refused_total",
        "Connections turned away at the port that speaks Redis: there were as many as may be",
    ),
    ("kvhive_node_refused_blocks_total", "Stores refused, by reason"),
    ("kvhive_node_released_blocks_total", "Blocks that an engine has said something of without using them"),
    ("kvhive_node_replicated_blocks_total", "Blocks given to replicas"),
    ("kvhive_node_replication_dropped_blocks_total", "Blocks not given to replicas because too many waited"),
    ("kvhive_node_replication_failures_total", "Batches for replicas that failed"),
    ("kvhive_node_replication_lag_seconds", "How long the oldest batch for a replica has waited"),
    ("kvhive_node_replication_waiting_batches", "Batches that wait to be given to replicas"),
    ("kvhive_node_request_seconds", "How long requests took, from the whole question to the whole answer"),
    ("kvhive_node_requests_refused_total", "Requests refused as a whole, by reason"),
    ("kvhive_node_requests_total", "Requests, by what they ask"),
    (
        "kvhive_node_scattered_bytes_total",
        "Bytes that fetches put on stages of clients, without passing a socket",
    ),
    (
        "kvhive_node_serving_lease_seconds",
        "For how long the node may still answer reads without hearing from a leader; 0 where it may not",
    ),
    (
        "kvhive_node_shown_bytes_total",
        "Bytes of these that were not sent: their askers read them where they are",
    ),
    ("kvhive_node_shrinking_blocks", "Blocks being re-encoded to be smaller"),
    ("kvhive_node_shrunk_blocks_total", "Blocks re-encoded to be smaller, by what came of it"),
    ("kvhive_node_slots_to_give", "Slots that are still to be copied to other nodes"),
    (
        "kvhive_node_snapshot_damaged_blocks_total",
        "Blocks of snapshots that were damaged or missing when they were taken in",
    ),
    (
        "kvhive_node_snapshot_failures_total",
        "Snapshots that were not written, or not taken in, though they should have been",
    ),
    ("kvhive_node_snapshot_loaded_blocks_total", "Blocks taken in from snapshots"),
    (
        "kvhive_node_snapshots_total",
        "Snapshots written: at an end, every so often, and by kvhive node persist",
    ),
    (
        "kvhive_node_stage_failures_total",
        "Requests over stages of a client's that a GPU did not do, or not in time: their askers went another way",
    ),
    ("kvhive_node_stages", "Stages that clients lend to the node's GPUs"),
    ("kvhive_node_stalled_transfers_total", "Transfers given up because the other end did not go on"),
    ("kvhive_node_stored_blocks_total", "Blocks stored"),
    ("kvhive_node_stored_bytes_total", "Bytes taken in by stores"),
    (
        "kvhive_node_strategy_estimated_hit_rate",
        "Hit rate that a strategy expects of each ranker it may put in charge",
    ),
    ("kvhive_node_strategy_evidence", "How many sampled uses the estimates rest on"),
    ("kvhive_node_strategy_in_charge", "1 for the ranker that decides, 0 for the others"),
    ("kvhive_node_strategy_switches_total", "Times another ranker was put in charge"),
    (
        "kvhive_node_take_rate_bytes",
        "Bytes a second at which blocks of slots that move may come from other nodes now",
    ),
    ("kvhive_node_tenant_blocks", "A tenant's resident blocks by tier"),
    (
        "kvhive_node_tenant_covered_keys_total",
        "Keys of a tenant's matches that were found in an unbroken run from the first",
    ),
    ("kvhive_node_tenant_evicted_blocks_total", "A tenant's blocks let go"),
    ("kvhive_node_tenant_hits_total", "Blocks that a tenant's fetches got"),
    (
        "kvhive_node_tenant_late_requests_total",
        "A tenant's requests for blocks that would not have been done in their time, or were not",
    ),
    ("kvhive_node_tenant_matched_keys_total", "Keys that a tenant's matches asked for"),
    (
        "kvhive_node_tenant_misses_total",
        "Blocks that a tenant's fetches did not get; what a match does not find is not in it",
    ),
    ("kvhive_node_tenant_policies_bytes", "Memory that the policies of tenants with rules of their own take"),
    ("kvhive_node_tenant_refused_blocks_total", "A tenant's stores refused"),
    ("kvhive_node_tenant_stored_blocks_total", "A tenant's blocks stored"),
    (
        "kvhive_node_tenant_transfer_bytes_total",
        "Bytes of a tenant's blocks that were sent and received in its turn",
    ),
    ("kvhive_node_tenant_used_bytes", "Bytes of the frames of a tenant's blocks by tier"),
    ("kvhive_node_tenant_waited_requests_total", "A tenant's requests for blocks that waited for its turn"),
    ("kvhive_node_tier_hits_total", "Blocks that fetches got, by the tier that had them"),
    (
        "kvhive_node_unawaited_sessions_total",
        "Sessions that were to come back and are not awaited any more, because too many are",
    ),
    ("kvhive_node_undecoded_blocks_total", "Blocks that could not be decoded for a reader"),
    ("kvhive_node_untold_uses", "Blocks whose uses the strategies have not been told of yet"),
    (
        "kvhive_node_unwiped_bytes",
        "Bytes that are still to be overwritten after a tenant's era has ended: of free frames, and until its blocks are found, of all others",
    ),
    ("kvhive_node_used_bytes", "Bytes of frames that are not free by tier"),
    ("kvhive_node_waiting_requests", "Requests for blocks that wait for their tenant's turn"),
    (
        "kvhive_node_window_fallbacks_total",
        "Times that another node's memory could not be looked at, by what failed: refused, closed (its door), unfit (what it handed over), torn",
    ),
    ("kvhive_node_windows", "Nodes of this host whose memory this one looks at"),
    ("kvhive_node_writes_under_way", "Writes of blocks that have begun and not ended"),
    ("kvhive_scaling_members", "Members that the size is reckoned by"),
    ("kvhive_scaling_queue_seconds", "How long requests wait for devices, as the autoscaler sees it"),
    ("kvhive_scaling_recommended_members", "Members that the autoscaler recommends"),
    (
        "kvhive_tls_certificate_expires_seconds",
        "When this process's certificate expires, in seconds since 1970",
    ),
    ("kvhive_tls_files_refused", "1 where the certificate files as they are now were not taken, else 0"),
    ("kvhive_tls_handshakes_refused_total", "TLS handshakes that failed, by reason"),
    ("kvhive_tls_reload_failures_total", "Times changed certificate files were not taken"),
    ("kvhive_tls_reloads_total", "Times changed certificate files were taken"),
    (
        "kvhive_trace_exports_failed_total",
        "Messages to the collector of traces that it did not take, repeats among them",
    ),
    ("kvhive_trace_spans_left_out_total", "Spans that were more than are kept in memory of one trace"),
    ("kvhive_trace_spans_total", "Spans of traced requests that were recorded"),
];

/// Tells the recorder of this scope what each name says; a page has it of those that are on it.
pub fn describe() {
    for (name, says) in HELP {
        if name.ends_with("_total") {
            metrics::describe_counter!(*name, *says);
        } else {
            metrics::describe_gauge!(*name, *says);
        }
    }
}

/// Returns the help line of a name, for what is not rendered by a recorder.
///
/// # Panics
/// When the name is not in [`HELP`].
pub fn help_line(name: &str) -> String {
    let known = HELP.iter().find(|(known, _)| *known == name);
    let (_, says) = known.expect("every exported name is in the table");
    format!("# HELP {name} {says}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_there_once_and_its_text_is_one_plain_line() {
        assert!(HELP.is_sorted_by(|(one, _), (next, _)| one < next));
        for (name, says) in HELP {
            assert!(name.starts_with("kvhive_") && !says.is_empty(), "{name}");
            assert!(!says.contains(['\n', '\\', '"']) && !says.ends_with('.'), "{name}: {says}");
        }
    }
}
