//! Bounded senders. A full mailbox is an answer, never a wait; a question has a deadline.

use crate::actor::Deliver;
use actix::Recipient;
use std::fmt;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::oneshot;

/// A handle to an actor's mailbox. Cheap to clone, usable from any thread.
pub struct Sender<M: Send + 'static> {
    mailbox: Recipient<Deliver<M>>,
}

impl<M: Send + 'static> Sender<M> {
    pub(crate) fn new(mailbox: Recipient<Deliver<M>>) -> Self {
        Sender { mailbox }
    }

    /// Puts a message into the mailbox.
    ///
    /// # Errors
    /// [`SendError::Full`] when the mailbox is at its bound, [`SendError::Closed`] when the actor has ended.
    pub fn try_send(&self, message: M) -> Result<(), SendError> {
        self.mailbox.try_send(Deliver(message)).map_err(|error| match error {
            actix::dev::SendError::Full(_) => SendError::Full,
            actix::dev::SendError::Closed(_) => SendError::Closed,
        })
    }

    /// Asks the actor a question and waits for its reply, at most for `limit`.
    ///
    /// # Errors
    /// [`AskError::Full`] and [`AskError::Closed`] at once; [`AskError::Deadline`] when the reply did not come in time:
    /// the actor may still act on the message.
    pub async fn ask<T>(&self, limit: Duration, question: impl FnOnce(Reply<T>) -> M) -> Result<T, AskError> {
        let (reply, answer) = oneshot::channel();
        self.try_send(question(Reply(reply)))?;
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(AskError::Closed),
            Err(_) => Err(AskError::Deadline),
        }
    }
}

impl<M: Send + 'static> Clone for Sender<M> {
    fn clone(&self) -> Self {
        Sender { mailbox: self.mailbox.clone() }
    }
}

impl<M: Send + 'static> fmt::Debug for Sender<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender")
    }
}

/// Where the answer to a question goes. Dropped unused, it tells the asker that there is none.
#[derive(Debug)]
pub struct Reply<T>(oneshot::Sender<T>);

impl<T> Reply<T> {
    /// Makes a reply and the end where it arrives, for askers that wait otherwise than by [`Sender::ask`].
    pub fn channel() -> (Reply<T>, oneshot::Receiver<T>) {
        let (reply, answer) = oneshot::channel();
        (Reply(reply), answer)
    }

    /// Answers. An asker that went away is no concern of the actor's.
    pub fn send(self, answer: T) {
        let _ = self.try_send(answer);
    }

    /// Answers, and hands the answer back when the asker has gone away: for actors that then undo what they did.
    ///
    /// # Errors
    /// With the answer.
    pub fn try_send(self, answer: T) -> Result<(), T> {
        self.0.send(answer)
    }

    /// Says whether the asker has gone away.
    pub fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }
}

/// Why a message was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Error)]
pub enum SendError {
    /// The mailbox is at its bound.
    #[error("the actor's mailbox is full")]
    Full,
    /// The actor has ended.
    #[error("the actor has ended")]
    Closed,
}

/// Why a question got no answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Error)]
pub enum AskError {
    /// The mailbox is at its bound.
    #[error("the actor's mailbox is full")]
    Full,
    /// The actor has ended, or dropped the question (it panicked on it).
    #[error("the actor has ended or dropped the question")]
    Closed,
    /// The answer did not come in time.
    #[error("the actor did not answer in time")]
    Deadline,
}

impl From<SendError> for AskError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Full => AskError::Full,
            SendError::Closed => AskError::Closed,
        }
    }
}
