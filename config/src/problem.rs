//! What can be wrong with a cluster file, each in a sentence an operator can act on: where it stands, what was given, what
//! is allowed.

use std::fmt;

/// Why a text is no cluster file: everything found, in the order of reading.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    pub(crate) problems: Vec<Problem>,
    pub(crate) omitted: usize,
}

impl ConfigError {
    /// Returns the problems found; at least one, at most 100.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Returns how many more problems were found than are kept.
    pub fn omitted(&self) -> usize {
        self.omitted
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len() + self.omitted;
        write!(f, "the cluster file has {count} problem{}:", if count == 1 { "" } else { "s" })?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        if self.omitted > 0 {
            write!(f, "\n  and {} more", self.omitted)?;
        }
        Ok(())
    }
}

/// Where a value was given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// On this line of the file, from 1.
    Line(u32),
    /// By this variable of the environment.
    Environment(String),
    /// By this option of the command that starts a node which the file does not list.
    Flag(&'static str),
    /// Nowhere: it is the default, or follows from another key.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Line(line) => write!(f, "line {line}: "),
            Origin::Environment(name) => write!(f, "{name}: "),
            Origin::Flag(name) => write!(f, "{name}: "),
            Origin::Default => Ok(()),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// The text is not TOML.
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        /// From 1.
        line: u32,
        /// From 1, in characters.
        column: u32,
        /// What the parser expected.
        message: String,
    },
    /// The text is larger than any cluster file.
    #[error("the file has {bytes} bytes; allowed is at most {allowed}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        allowed: usize,
    },
    /// A key, or an override, that there is none of.
    #[error("{origin}{key}: unknown key, {hint}")]
    UnknownKey {
        /// Where.
        origin: Origin,
        /// Its path.
        key: String,
        /// The nearest known key, or all of them.
        hint: String,
    },
    /// An override of a process that the file does not have.
    #[error("{variable}: the file has no {kind} \"{given}\"; it has {known}")]
    UnknownProcess {
        /// The variable.
        variable: String,
        /// `coordinator` or `node`.
        kind: &'static str,
        /// The process's name as the variable has it.
        given: String,
        /// The names there are, as a variable would have them.
        known: String,
    },
    /// A node that is not in the file wants to join, and the file lists its nodes.
    #[error(
        "--host: the file lists its nodes, which have their hosts and labels there, and node \"{id}\" would be another; add it to the file, or take its [[node]] tables out so that any node may join"
    )]
    Closed {
        /// The node's name.
        id: String,
    },
    /// A key that must be given.
    #[error("{key}: missing; wanted is {allowed}")]
    MissingKey {
        /// Its path.
        key: String,
        /// What it may be.
        allowed: String,
    },
    /// A value that its key does not take.
    #[error("{origin}{key} = {given}: {allowed}")]
    Refused {
        /// Where.
        origin: Origin,
        /// Its path.
        key: String,
        /// The value, cut if long.
        given: String,
        /// What is wrong, if that is not plain, and what is allowed.
        allowed: String,
    },
    /// A value that does not go with others.
    #[error("{origin}{key} = {given}: {reason}")]
    Conflict {
        /// Where.
        origin: Origin,
        /// Its path.
        key: String,
        /// The value, cut if long.
        given: String,
        /// What it conflicts with, and what would do.
        reason: String,
    },
    /// `KVHIVE_TOKEN` is no token. Its value is not shown.
    #[error("{variable}: {error}")]
    Token {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it.
        error: crate::TokenError,
    },
}

impl Problem {
    /// Drops the line, for a problem of a text that nobody wrote.
    pub(crate) fn forget_line(&mut self) {
        if let Problem::UnknownKey { origin, .. }
        | Problem::Refused { origin, .. }
        | Problem::Conflict { origin, .. } = self
        {
            *origin = Origin::Default;
        }
    }
}
