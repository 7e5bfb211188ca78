//! Changes under a name that are no entry of the log themselves: whether one was asked before, of whichever coordinator, is looked up in what
//! the log remembers of names; what was begun and done is remembered there by an entry that changes nothing else.

use super::answers::Trouble;
use super::asked::{AskedAs, Name};
use super::raft::Group;
use super::routes::{Admin, READ_LIMIT};
use crate::actors::mailbox::RaftMessage;
use crate::control_plane::trouble;
use kvhive_protocol::control::{Command, CommandReply};
use kvhive_protocol::raft::RaftRequest;
use kvhive_protocol::{Generation, MemberId, WireError};
use std::time::Duration;
use tokio::time::Instant;

/// Wait before it is looked again how far this coordinator is.
const PAUSE: Duration = Duration::from_millis(20);
/// The longest that an answer is held back until it is remembered.
const REMEMBER_LIMIT: Duration = Duration::from_secs(2);

impl Admin {
    /// Returns how the group stands, and what was remembered of each name when it stood so.
    ///
    /// # Errors
    /// When one is of something that was asked otherwise, nobody leads, or this coordinator lacks what the leader has.
    pub(super) async fn asked_before(
        &self,
        names: &[Name],
    ) -> Result<(Group, Vec<Option<CommandReply>>), Trouble> {
        // The leader says how far the log is; names are known here once this coordinator has come as far.
        let group = self.ask_leader(RaftRequest::Status { stale: false }).await?;
        let wanted = group.applied();
        let level = self.level();
        let deadline = Instant::now() + READ_LIMIT;
        loop {
            let requests = names.iter().map(|name| name.at(level)).collect();
            let asked = self.sources.raft.ask(READ_LIMIT, |reply| RaftMessage::Asked { requests, reply });
            let (applied, before) = asked.await.map_err(|error| Trouble::from(trouble(error)))?;
            if applied >= wanted {
                let is_another = |one: &Option<CommandReply>| {
                    matches!(one, Some(CommandReply::Rejected(WireError::AskedOtherwise)))
                };
                let is_known = !before.iter().any(is_another);
                return if is_known { Ok((group, before)) } else { Err(WireError::AskedOtherwise.into()) };
            }
            if Instant::now() > deadline {
                return Err(Trouble::unavailable(format!(
                    "this coordinator has applied entry {applied} and the leader {wanted}: ask another"
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Has a name remembered.
    ///
    /// # Errors
    /// When it is of something that was asked otherwise, or it is not known whether it is remembered.
    pub(super) async fn remember(&self, name: Name) -> Result<(), Trouble> {
        // That a member is down of a number that nobody has: it changes nothing, and is no event.
        let nothing = Command::MarkDown { member: MemberId(0), generation: Generation(0) };
        self.submit(AskedAs(Some(name)), nothing).await.map(|_| ())
    }

    /// Has a name remembered that says what a change came to, if that takes no longer than an asker may be kept waiting for it.
    pub(super) async fn remember_in_time(&self, name: Name) {
        if !matches!(tokio::time::timeout(REMEMBER_LIMIT, self.remember(name)).await, Ok(Ok(()))) {
            tracing::warn!(
                "what a change came to is not remembered: asked again under its name, it may be made again"
            );
        }
    }
}
