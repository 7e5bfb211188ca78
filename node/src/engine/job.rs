//! A request that waits for its turn, and what of it is checked.

use super::model::Model;
use super::{EngineError, Request};
use std::time::Instant;

/// A request that waits, or is being served.
pub(super) struct Job {
    prompt: String,
    /// None before the prompt was looked at.
    pub(super) tokens: Vec<u32>,
    pub(super) priority: i64,
    wanted: Option<usize>,
    pub(super) max_new_tokens: usize,
    pub(super) tenant: Option<String>,
    pub(super) session: Option<String>,
    pub(super) asked: Instant,
}

impl Job {
    pub(super) fn of(request: Request) -> Job {
        let Request { prompt, priority, max_new_tokens: wanted, tenant, session } = request;
        let (tokens, asked) = (Vec::new(), Instant::now());
        Job { prompt, tokens, priority, wanted, max_new_tokens: 0, tenant, session, asked }
    }

    /// Looks at the prompt, once.
    pub(super) fn look<M: Model>(
        mut self,
        model: &M,
        max_tokens: usize,
    ) -> Result<Job, EngineError<M::Error>> {
        if !self.tokens.is_empty() {
            return Ok(self);
        }
        let tokens = model.tokenize(&self.prompt).map_err(EngineError::Model)?;
        if tokens.is_empty() || tokens.len() >= max_tokens {
            let allowed = max_tokens - 1;
            return Err(EngineError::Prompt { tokens: tokens.len(), allowed, max_tokens });
        }
        let allowed = max_tokens - tokens.len();
        let wanted = self.wanted.unwrap_or(Request::NEW_TOKENS.min(allowed));
        if wanted == 0 || wanted > allowed {
            return Err(EngineError::NewTokens { asked: wanted, allowed, prompt: tokens.len(), max_tokens });
        }
        (self.tokens, self.max_new_tokens) = (tokens, wanted);
        Ok(self)
    }
}
