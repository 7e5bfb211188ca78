//! Requests with a cache: the longest prefix that anyone has computed is found, a model computes the rest, and what is new is stored.

use super::behind::{Behind, Bytes};
use super::compute::{Computed, Failed, Task};
use super::figures::{EngineStats, Figures};
use super::model::Model;
use super::turns::Turns;
use super::{Answer, EngineConfig, EngineError, Request};
use kvhive_client::{Client, NamespaceClient, Prefix, StoreOptions, codec};
use kvhive_protocol::Layout;
use kvhive_protocol::data::{About, Hint};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

/// Serves requests with a model, and keeps what it computes for those that begin alike. Cheap to clone; one request is computed at a
/// time, on a thread where that blocks nobody.
pub struct Engine<M> {
    parts: Arc<Parts<M>>,
}

impl<M> Clone for Engine<M> {
    fn clone(&self) -> Self {
        Engine { parts: self.parts.clone() }
    }
}

struct Parts<M> {
    model: Arc<M>,
    layout: Layout,
    blocks: NamespaceClient,
    config: EngineConfig,
    turns: Turns,
    behind: Behind,
    figures: Arc<Figures>,
}

/// A request that was looked at.
struct Job {
    tokens: Vec<u32>,
    priority: i32,
    max_new_tokens: usize,
    asked: Instant,
}

impl<M: Model> Engine<M> {
    /// Makes an engine of a model whose blocks are a tenant's.
    ///
    /// # Errors
    /// [`EngineError::Config`] when model and configuration do not fit together, [`EngineError::Cache`] when there is no such tenant.
    pub fn new(
        client: &Client,
        tenant: &str,
        model: M,
        config: EngineConfig,
    ) -> Result<Engine<M>, EngineError<M::Error>> {
        if config.block_tokens == 0 || config.max_tokens < 2 {
            let EngineConfig { block_tokens, max_tokens, .. } = config;
            return Err(EngineError::Config(format!(
                "block_tokens is {block_tokens} and max_tokens {max_tokens}: at least 1 and at least 2 are allowed"
            )));
        }
        let layout = model.layout(config.block_tokens);
        let can_round = || codec::stored_bytes(config.codec, &layout).is_some();
        let is_usable = config.codec.is_exact() || can_round();
        if layout.tokens != config.block_tokens || !is_usable {
            return Err(EngineError::Config(format!(
                "the model's layout is {layout:?}: blocks are to have {} tokens, and a shape that {} can store",
                config.block_tokens,
                config.codec.name()
            )));
        }
        // Blocks that were rounded are never taken for others.
        let rounding =
            if config.codec.is_exact() { String::new() } else { format!("+{}", config.codec.name()) };
        let blocks = client.namespace(tenant, &(model.name() + &rounding), layout, 0)?;
        let (turns, behind) = (Turns::default(), Behind::new(config.pending_bytes));
        let (model, figures) = (Arc::new(model), Arc::default());
        Ok(Engine { parts: Arc::new(Parts { model, layout, blocks, config, turns, behind, figures }) })
    }

    /// Answers a request.
    ///
    /// # Errors
    /// When it cannot be served as it is, or the model fails. A cache that fails is gone on without.
    pub async fn serve(&self, request: Request) -> Result<Answer, EngineError<M::Error>> {
        let job = self.look_at(request).await?;
        self.answer(job).await
    }

    /// Answers requests in the order that computes each shared prefix once: those that begin alike one after the other. Answers are in the
    /// order of the requests.
    pub async fn serve_all(
        &self,
        requests: impl IntoIterator<Item = Request>,
    ) -> Vec<Result<Answer, EngineError<M::Error>>> {
        let mut jobs = Vec::new();
        for request in requests {
            jobs.push(self.look_at(request).await);
        }
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        // In the order of their tokens, prompts that begin alike are neighbours.
        order.sort_by(|one, other| {
            let tokens = |at: &usize| jobs[*at].as_ref().map(|job| &job.tokens[..]).unwrap_or_default();
            tokens(one).cmp(tokens(other))
        });
        let mut jobs: Vec<Option<_>> = jobs.into_iter().map(Some).collect();
        let mut answers: Vec<Option<_>> = jobs.iter().map(|_| None).collect();
        for at in order {
            if let Some(job) = jobs[at].take() {
                answers[at] = Some(match job {
                    Ok(job) => self.answer(job).await,
                    Err(error) => Err(error),
                });
            }
        }
        answers.into_iter().flatten().collect()
    }

    /// Answers a request as [`Engine::serve`] does, but neither finds nor stores anything, and counts nowhere: what the cache is worth is the
    /// difference.
    ///
    /// # Errors
    /// As [`Engine::serve`].
    pub async fn serve_uncached(&self, request: Request) -> Result<Answer, EngineError<M::Error>> {
        let Job { tokens, priority, max_new_tokens, asked } = self.look_at(request).await?;
        let _turn = self.parts.turns.take(priority).await.ok_or(EngineError::Ending)?;
        let begun = Instant::now();
        let prompt_tokens = tokens.len();
        let computed = self.compute(tokens, Vec::new(), max_new_tokens).await?;
        Ok(self.answer_of(computed.answer, (asked, begun, computed.first_token), prompt_tokens, 0))
    }

    /// Says what is expected of the session that a prompt is of: what it alone used goes first when that is over, for one.
    pub async fn expect(&self, prompt: &str, hint: Hint) {
        let prefix = self.parts.blocks.keys(self.whole(&self.parts.model.tokenize(prompt)));
        if self.within().release(&prefix, hint).await.is_err() {
            self.failed();
        }
    }

    /// Waits until all that was computed so far is stored, or could not be.
    pub async fn settled(&self) {
        self.parts.behind.settled().await;
    }

    /// Returns what it has done.
    pub fn stats(&self) -> EngineStats {
        self.parts.figures.read()
    }

    /// Returns the model.
    pub fn model(&self) -> &M {
        &self.parts.model
    }

    async fn look_at(&self, request: Request) -> Result<Job, EngineError<M::Error>> {
        let asked = Instant::now();
        let Request { prompt, priority, max_new_tokens } = request;
        let tokens = self.blocking(move |model| model.tokenize(&prompt)).await?;
        let max_tokens = self.parts.config.max_tokens;
        if tokens.is_empty() || tokens.len() >= max_tokens {
            let allowed = max_tokens - 1;
            return Err(EngineError::Prompt { tokens: tokens.len(), allowed, max_tokens });
        }
        let allowed = max_tokens - tokens.len();
        if max_new_tokens == 0 || max_new_tokens > allowed {
            let prompt = tokens.len();
            return Err(EngineError::NewTokens { asked: max_new_tokens, allowed, prompt });
        }
        Ok(Job { tokens, priority, max_new_tokens, asked })
    }

    async fn answer(&self, job: Job) -> Result<Answer, EngineError<M::Error>> {
        let Parts { layout, blocks, figures, .. } = &*self.parts;
        let turn = self.parts.turns.take(job.priority).await.ok_or(EngineError::Ending)?;
        let begun = Instant::now();
        let prompt_tokens = job.tokens.len();
        let prefix = blocks.keys(self.whole(&job.tokens));
        // The last token is computed in any case: the answer begins with what the model makes of it.
        let most = (prompt_tokens - 1) / layout.tokens as usize;
        let found = self.find(&prefix, most.min(prefix.len())).await;
        let start = found.len();
        let computed = self.compute(job.tokens, found, job.max_new_tokens).await?;
        let Computed { answer, new, first_token } = computed;
        let about = About {
            input_tokens: u32::try_from(prompt_tokens).unwrap_or(u32::MAX),
            output_tokens: u32::try_from(answer.len()).unwrap_or(u32::MAX),
            hint: Hint::None,
        };
        let new_keys = &prefix.keys()[start..start + new.len()];
        let waiting =
            new_keys.iter().copied().zip(new.iter().map(|block| block.comes_back.clone())).collect();
        let stored: Vec<Bytes> = new.into_iter().map(|block| block.computed).collect();
        if !stored.is_empty() {
            self.parts.behind.add(waiting, self.store(prefix, start, stored, about)).await;
        }
        drop(turn);
        let cached_tokens = start * layout.tokens as usize;
        let answer = self.answer_of(answer, (job.asked, begun, first_token), prompt_tokens, cached_tokens);
        figures.requests.fetch_add(1, Relaxed);
        figures.hits.fetch_add(u64::from(start > 0), Relaxed);
        figures.prompt_tokens.fetch_add(prompt_tokens as u64, Relaxed);
        figures.cached_tokens.fetch_add(cached_tokens as u64, Relaxed);
        figures.generated_tokens.fetch_add(answer.tokens.len() as u64, Relaxed);
        figures.took.record(answer.took);
        figures.first_token.record(answer.first_token);
        Ok(answer)
    }

    /// Has the model compute what was not found of a prompt, and the answer.
    async fn compute(
        &self,
        tokens: Vec<u32>,
        found: Vec<Bytes>,
        max_new_tokens: usize,
    ) -> Result<Computed, EngineError<M::Error>> {
        let (layout, codec) = (self.parts.layout, self.parts.config.codec);
        let task = Task { tokens, found, max_new_tokens, layout, codec };
        self.blocking(move |model| task.run(model)).await?.map_err(|failed| match failed {
            Failed::Model(error) => EngineError::Model(error),
            Failed::Codec(error) => {
                EngineError::Config(format!("{} cannot store a block: {error}", codec.name()))
            }
        })
    }

    fn answer_of(
        &self,
        tokens: Vec<u32>,
        (asked, begun, first_token): (Instant, Instant, Instant),
        prompt_tokens: usize,
        cached_tokens: usize,
    ) -> Answer {
        let text = self.parts.model.detokenize(&tokens);
        let (waited, first_token) = (begun - asked, first_token - begun);
        Answer { text, tokens, prompt_tokens, cached_tokens, waited, first_token, took: asked.elapsed() }
    }

    /// Returns the first blocks of a prompt, as far as they are there, but no more than so many.
    async fn find(&self, prefix: &Prefix, most: usize) -> Vec<Bytes> {
        let wanted = prefix.first(most);
        if wanted.is_empty() {
            return Vec::new();
        }
        // Looked at before the cache is asked: what leaves it meanwhile is there by then.
        let waiting = self.parts.behind.find(wanted.keys());
        let mut found = self.fetch(&wanted).await;
        while let Some(block) = wanted.keys().get(found.len()).and_then(|key| waiting.get(key)) {
            found.push(block.clone());
        }
        found
    }

    async fn fetch(&self, wanted: &Prefix) -> Vec<Bytes> {
        let blocks = self.within();
        let covered = match blocks.match_prefix(wanted).await {
            Ok(found) => {
                if found.unreachable > 0 {
                    self.failed();
                }
                found.covered
            }
            Err(_) => {
                self.failed();
                0
            }
        };
        if covered == 0 {
            return Vec::new();
        }
        let mut memory = vec![vec![0; blocks.block_bytes() as usize]; covered];
        let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(Vec::as_mut_slice).collect();
        let delivered = match blocks.fetch_into(wanted, 0..covered, &mut targets).await {
            Ok(report) => report.delivered(),
            Err(_) => 0,
        };
        if delivered < covered {
            self.failed();
        }
        memory.truncate(delivered);
        memory.into_iter().map(Bytes::from).collect()
    }

    /// Stores new blocks.
    fn store(
        &self,
        prefix: Prefix,
        start: usize,
        new: Vec<Bytes>,
        about: About,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (blocks, codec) = (self.parts.blocks.clone(), self.parts.config.codec);
        let figures = self.parts.figures.clone();
        async move {
            let new: Vec<&[u8]> = new.iter().map(|block| &block[..]).collect();
            let options = StoreOptions { codec: Some(codec), about, ..StoreOptions::default() };
            let stored = blocks.store(&prefix, start..start + new.len(), &new, options).await;
            if !stored.is_ok_and(|report| report.acknowledged() == new.len()) {
                figures.cache_failures.fetch_add(1, Relaxed);
            }
        }
    }

    /// Runs what may take its time. A panic of the model's is the caller's.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&M) -> T + Send + 'static,
    ) -> Result<T, EngineError<M::Error>> {
        let model = self.parts.model.clone();
        match tokio::task::spawn_blocking(move || work(&model)).await {
            Ok(done) => Ok(done),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(EngineError::Ending),
            },
        }
    }

    fn within(&self) -> NamespaceClient {
        self.parts.blocks.within(self.parts.config.cache_wait)
    }

    fn failed(&self) {
        self.parts.figures.cache_failures.fetch_add(1, Relaxed);
    }

    /// Returns the tokens that fill blocks.
    fn whole<'t>(&self, tokens: &'t [u32]) -> &'t [u32] {
        let block_tokens = self.parts.layout.tokens as usize;
        &tokens[..tokens.len() / block_tokens * block_tokens]
    }
}
