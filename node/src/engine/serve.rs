//! Requests with a cache: the longest prefix that anyone has computed is found, a model computes the rest, and what is new is stored.

use super::behind::{Behind, Bytes};
use super::blocks::{Found, Named, lock};
use super::cache::Cache;
use super::compute::{Computed, Failed, Task};
use super::figures::{EngineStats, Figures};
use super::history::{History, Served};
use super::job::Job;
use super::model::Model;
use super::sessions::Sessions;
use super::turns::{Turn, Turns};
use super::worker::Worker;
use super::{Answer, EngineConfig, EngineError, Request, Stages};
use futures_util::future::join_all;
use kvhive_client::{Client, codec};
use kvhive_engines::rest::Rest;
use kvhive_protocol::Layout;
use kvhive_protocol::data::{About, Hint};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Calls beside requests that may use the cache at a time.
pub(super) const USERS: u32 = 1024;

/// Serves requests with a model, and keeps what it computes for those that begin alike. Cheap to clone; one request is computed at a
/// time, on a thread where that blocks nobody.
pub struct Engine<M> {
    pub(super) parts: Arc<Parts<M>>,
}

impl<M> Clone for Engine<M> {
    fn clone(&self) -> Self {
        Engine { parts: self.parts.clone() }
    }
}

pub(super) struct Parts<M> {
    model: Arc<M>,
    pub(super) layout: Layout,
    pub(super) config: EngineConfig,
    pub(super) cache: Cache,
    worker: Worker<M>,
    pub(super) turns: Turns,
    pub(super) behind: Behind,
    /// Whoever has all of them is alone with the cache, but for who has the turn.
    pub(super) users: Arc<Semaphore>,
    sessions: Mutex<Sessions<Named>>,
    pub(super) history: Mutex<History<Named>>,
    pub(super) figures: Arc<Figures>,
    /// Whether a cluster that does not answer is left alone.
    pub(super) rest: Mutex<Rest>,
    pub(super) begun: Instant,
}

/// A request of a batch that was looked at.
pub struct Prepared(Job);

/// An answer, or why there is none.
type ServedBy<M> = Result<Answer, EngineError<<M as Model>::Error>>;

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
        let cache = Cache::open(client, tenant, model.name(), layout, config.codec, config.new_tenants)?;
        let model = Arc::new(model);
        let parts = Parts {
            worker: Worker::start(model.clone()).map_err(EngineError::Thread)?,
            model,
            layout,
            config,
            cache,
            turns: Turns::default(),
            behind: Behind::new(config.pending_bytes),
            users: Arc::new(Semaphore::new(USERS as usize)),
            sessions: Mutex::default(),
            history: Mutex::default(),
            figures: Arc::default(),
            rest: Mutex::default(),
            begun: Instant::now(),
        };
        Ok(Engine { parts: Arc::new(parts) })
    }

    /// Answers a request. Its place among those that are as urgent is that of this call, and not of the first poll.
    ///
    /// # Errors
    /// When it cannot be served as it is, or the model fails. A cache that fails is gone on without.
    pub fn serve(&self, request: Request) -> impl Future<Output = ServedBy<M>> + Send + use<M> {
        self.in_turn(Job::of(request), true)
    }

    /// Answers a request as [`Engine::serve`] does, but neither finds nor stores anything, and counts nowhere: what the cache is worth is the
    /// difference.
    ///
    /// # Errors
    /// As [`Engine::serve`].
    pub fn serve_uncached(&self, request: Request) -> impl Future<Output = ServedBy<M>> + Send + use<M> {
        self.in_turn(Job::of(request), false)
    }

    /// Looks at the requests of a batch: those that cannot be served as they are say why.
    pub async fn prepare(
        &self,
        requests: impl IntoIterator<Item = Request>,
    ) -> Vec<Result<Prepared, EngineError<M::Error>>> {
        let jobs: Vec<Job> = requests.into_iter().map(Job::of).collect();
        let (count, max_tokens) = (jobs.len(), self.parts.config.max_tokens);
        let looked = move |model: &M| -> Vec<_> {
            jobs.into_iter().map(|job| job.look(model, max_tokens).map(Prepared)).collect()
        };
        match self.blocking(looked).await {
            Ok(prepared) => prepared,
            Err(_) => (0..count).map(|_| Err(EngineError::Ending)).collect(),
        }
    }

    /// Answers a batch in the order that computes each shared prefix once: requests that begin alike one after the other, so many of them
    /// in line at a time. Answers are in the order of the requests.
    pub async fn serve_all(
        &self,
        prepared: Vec<Result<Prepared, EngineError<M::Error>>>,
        in_line: usize,
    ) -> Vec<ServedBy<M>> {
        let mut answers: Vec<Option<ServedBy<M>>> = prepared.iter().map(|_| None).collect();
        let mut jobs = Vec::new();
        for (at, prepared) in prepared.into_iter().enumerate() {
            match prepared {
                Ok(Prepared(job)) => jobs.push((at, job)),
                Err(error) => answers[at] = Some(Err(error)),
            }
        }
        // In the order of their tokens, prompts that begin alike are neighbours.
        jobs.sort_by(|(_, one), (_, other)| (&one.tenant, &one.tokens).cmp(&(&other.tenant, &other.tokens)));
        let mut jobs = jobs.into_iter();
        loop {
            let (places, next): (Vec<usize>, Vec<_>) =
                jobs.by_ref().take(in_line.max(1)).map(|(at, job)| (at, self.in_turn(job, true))).unzip();
            if places.is_empty() {
                break;
            }
            for (at, answer) in places.into_iter().zip(join_all(next).await) {
                answers[at] = Some(answer);
            }
        }
        answers.into_iter().flatten().collect()
    }

    /// Returns how many blocks of a prompt are there, from its first token on. They are held for a while, and what lies in slower memory is
    /// brought up.
    ///
    /// # Errors
    /// When the model cannot read the prompt, or the cluster does not answer.
    pub async fn covered(&self, prompt: &str, tenant: Option<&str>) -> Result<usize, EngineError<M::Error>> {
        let _user = self.user().await;
        let tokens = self.tokens(prompt).await?;
        let named = self.named(tenant, &tokens).await?;
        if named.prefix.is_empty() {
            return Ok(0);
        }
        Ok(self.within(&named).match_prefix(&named.prefix).await?.covered)
    }

    /// Says what is expected of the session that a prompt is of: what it alone used goes first when that is over, for one.
    ///
    /// # Errors
    /// When the model cannot read the prompt.
    pub async fn expect(&self, prompt: &str, hint: Hint) -> Result<(), EngineError<M::Error>> {
        let _user = self.user().await;
        let tokens = self.tokens(prompt).await?;
        match self.named(None, &tokens).await {
            Ok(named) => self.release(&named, hint).await,
            Err(_) => self.failed(),
        }
        Ok(())
    }

    /// Says that a conversation is over: what it alone used goes first. Returns whether it was known.
    pub async fn end_session(&self, name: &str) -> bool {
        let _user = self.user().await;
        let ended = lock(&self.parts.sessions).end(name);
        if let Some(Some(named)) = &ended {
            self.release(named, Hint::Over).await;
        }
        ended.is_some()
    }

    /// Waits until all that was computed so far is stored, or could not be.
    pub async fn settled(&self) {
        self.parts.behind.settled().await;
    }

    /// Serves what waits, stores what was computed, and takes no request any more.
    pub async fn end(&self) {
        if let Some(place) = self.parts.turns.last() {
            drop(place.turn().await);
        }
        self.settled().await;
    }

    /// Returns what it has done.
    pub fn stats(&self) -> EngineStats {
        let is_resting = lock(&self.parts.rest).is_resting();
        EngineStats { is_resting, ..self.parts.figures.read() }
    }

    /// Returns the model.
    pub fn model(&self) -> &M {
        &self.parts.model
    }

    fn in_turn(&self, job: Job, is_cached: bool) -> impl Future<Output = ServedBy<M>> + Send + use<M> {
        let (engine, place) = (self.clone(), self.parts.turns.join(job.priority));
        async move {
            let turn = place?.turn().await.ok_or(EngineError::Ending)?;
            // Made when its turn has come: it is large, and many may wait.
            Box::pin(engine.answer(job, turn, is_cached)).await
        }
    }

    async fn answer(&self, job: Job, turn: Turn, is_cached: bool) -> ServedBy<M> {
        let begun = Instant::now();
        let (layout, codec) = (self.parts.layout, self.parts.cache.codec());
        let max_tokens = self.parts.config.max_tokens;
        let (turn, job) = self.work(turn, move |model| job.look(model, max_tokens)).await?;
        let Job { tokens, max_new_tokens, tenant, session, asked, .. } = job?;
        let prompt_tokens = tokens.len();
        let named = if is_cached { self.named_or_failed(tenant.as_deref(), &tokens).await } else { None };
        // The last token is computed in any case: the answer begins with what the model makes of it.
        let most = (prompt_tokens - 1) / layout.tokens as usize;
        let mut stages = Stages::default();
        let Found { blocks: found, fetched } = match &named {
            Some(named) => self.find(named, most, &mut stages).await,
            None => Found::default(),
        };
        let start = found.len();
        let task = Task { tokens, found, max_new_tokens, layout, codec };
        let run = move |model: &M| {
            let computed = task.run(model)?;
            let text = model.detokenize(&computed.answer).map_err(Failed::Model)?;
            Ok((computed, text))
        };
        let (turn, computed) = self.work(turn, run).await?;
        let (Computed { answer, new, first_token, took }, text) =
            computed.map_err(|failed| match failed {
                Failed::Model(error) => EngineError::Model(error),
                Failed::Codec(error) => {
                    EngineError::Config(format!("{} cannot store a block: {error}", codec.name()))
                }
            })?;
        stages.fetch += took.load;
        (stages.compute, stages.generate) = (took.prompt, took.answer);
        let blocks: Vec<Bytes> = new.iter().map(|block| block.computed.clone()).collect();
        let store_begun = Instant::now();
        if let Some(named) = named.as_ref().filter(|_| !new.is_empty()) {
            self.keep(named, start, new, about(prompt_tokens, answer.len())).await;
        }
        stages.store = store_begun.elapsed();
        let counted = session.filter(|_| is_cached);
        let session_turn = counted.map(|name| lock(&self.parts.sessions).turn(&name, named.clone()));
        if is_cached {
            let of_each =
                |took: Duration, blocks: usize| (blocks > 0).then(|| took.as_secs_f64() / blocks as f64);
            let known = took.blocks + stages.fetch + stages.store;
            let served = Served {
                keys: named.as_ref().map_or_else(Vec::new, |named| named.prefix.keys().to_vec()),
                most,
                compute_seconds: of_each(took.blocks, blocks.len()),
                fetch_seconds: of_each(stages.fetch, fetched),
                store_seconds: of_each(stages.store, blocks.len()),
                rest_seconds: begun.elapsed().saturating_sub(known).as_secs_f64(),
            };
            lock(&self.parts.history).add(served, blocks.iter(), named);
        }
        drop(turn);
        let answer = Answer {
            text,
            tokens: answer,
            prompt_tokens,
            cached_tokens: start * layout.tokens as usize,
            session_turn,
            waited: begun - asked,
            first_token: first_token - begun,
            took: asked.elapsed(),
            stages,
        };
        if is_cached {
            self.count(&answer);
        }
        Ok(answer)
    }

    fn count(&self, answer: &Answer) {
        let figures = &self.parts.figures;
        figures.requests.fetch_add(1, Relaxed);
        figures.hits.fetch_add(u64::from(answer.cached_tokens > 0), Relaxed);
        figures.prompt_tokens.fetch_add(answer.prompt_tokens as u64, Relaxed);
        figures.cached_tokens.fetch_add(answer.cached_tokens as u64, Relaxed);
        figures.generated_tokens.fetch_add(answer.tokens.len() as u64, Relaxed);
        figures.took.record(answer.took);
        figures.first_token.record(answer.first_token);
    }

    /// Returns what it served last, and some blocks of that.
    pub(super) fn remembered(&self) -> (Vec<Served>, Vec<Bytes>) {
        let history = lock(&self.parts.history);
        (history.served(), history.samples())
    }

    /// Has the model work. The turn goes with it: who stops waiting does not let another begin before it is done.
    async fn work<T: Send + 'static>(
        &self,
        turn: Turn,
        work: impl FnOnce(&M) -> T + Send + 'static,
    ) -> Result<(Turn, T), EngineError<M::Error>> {
        let done = self.parts.worker.run(move |model| {
            let done = work(model);
            (turn, done)
        });
        done.await.ok_or(EngineError::Ending)
    }

    /// Runs what may take its time, beside what has the turn. A panic of the model's is the caller's.
    pub(super) async fn blocking<T: Send + 'static>(
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

    async fn tokens(&self, prompt: &str) -> Result<Vec<u32>, EngineError<M::Error>> {
        let prompt = prompt.to_owned();
        self.blocking(move |model| model.tokenize(&prompt)).await?.map_err(EngineError::Model)
    }

    /// Keeps the cache from being replaced.
    async fn user(&self) -> OwnedSemaphorePermit {
        self.parts.users.clone().acquire_owned().await.expect("the semaphore is never closed")
    }
}

fn about(prompt_tokens: usize, answer_tokens: usize) -> About {
    let of = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
    About { input_tokens: of(prompt_tokens), output_tokens: of(answer_tokens), hint: Hint::None }
}
