//! Answers who should take a request: gathers what each candidate's own cache and kvhive have of it, and has them ranked.

use super::hive::Held;
use super::{Engines, One};
use kvhive_control::routing::{Asked, Judged, Own, choose, rank};
use kvhive_protocol::engines::{Engine, NamedBy};
use kvhive_protocol::routing::{Part, Prompt, RouteAnswer, RouteRequest};
use kvhive_protocol::{LayoutFingerprint, TenantId, TraceContext, WireError, counted};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Said where what ranks candidates is not their own caches.
const SILENT: &str =
    "no candidate's events arrive: what their own caches hold is not known, nor whether they run";

/// What an engine's blocks in kvhive are called by: engines alike in this have the same there.
pub(super) type Place = (TenantId, String, LayoutFingerprint, u32, bool);

pub(super) fn place(engine: &Engine) -> Option<Place> {
    let blocks = engine.blocks.as_ref()?;
    let by_tokens = blocks.named_by == NamedBy::Tokens;
    Some((engine.tenant, engine.model.clone(), blocks.layout.fingerprint(), blocks.rank, by_tokens))
}

/// Returns how long a prompt is. One of hashes that does not say is as long as its blocks are.
fn tokens_of(prompt: &Prompt, candidates: &[Arc<One>]) -> u64 {
    match prompt {
        Prompt::Tokens { tokens, .. } => tokens.len() as u64,
        Prompt::Hashes { hashes, tokens: 0 } => {
            let largest = candidates.iter().map(|one| one.engine.block_tokens).max().unwrap_or(0);
            hashes.len() as u64 * u64::from(largest)
        }
        Prompt::Hashes { tokens, .. } => (*tokens).into(),
    }
}

fn drawn() -> Result<u64, WireError> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed)
        .map_err(|error| WireError::internal(format_args!("no random bytes: {error}")))?;
    Ok(u64::from_le_bytes(seed))
}

impl Engines {
    /// Says which engine should take a request; what nodes are asked for it is a part of `trace`, if it is traced.
    ///
    /// # Errors
    /// When it is no sound question, or nobody could take it.
    pub(crate) async fn route(
        &self,
        request: &RouteRequest,
        trace: Option<TraceContext>,
    ) -> Result<RouteAnswer, WireError> {
        request.check()?;
        let mut notes = Vec::new();
        let candidates = self.candidates(request, &mut notes)?;
        let held = self.held(&candidates, (&request.prompt, trace), &mut notes).await;
        let mut asked: BTreeMap<u32, Asked> = BTreeMap::new();
        let tokens = tokens_of(&request.prompt, &candidates);
        let now = self.clock.now();
        let mut judged = Vec::with_capacity(candidates.len());
        for one in &candidates {
            let engine = &one.engine;
            let asked = asked
                .entry(engine.block_tokens)
                .or_insert_with(|| Asked::of(&request.prompt, engine.block_tokens));
            let said = request.candidates.iter().find(|candidate| candidate.engine == engine.name);
            let said = said.and_then(|candidate| candidate.load);
            let hive = place(engine).and_then(|place| held.get(&place));
            let state = one.state();
            let (load, load_age_ms) = match (said, state.busy.load(now)) {
                (Some(load), _) => (Some(load), Some(0)),
                (None, Some((load, age_ms))) => (Some(load), Some(age_ms)),
                (None, None) => (None, None),
            };
            let own: Own = state.feed.index().covers(asked);
            judged.push(Judged {
                engine: engine.name.clone(),
                own,
                block_tokens: engine.block_tokens,
                hive: hive.map(|held| held.seen_from(engine.node.as_deref())).unwrap_or_default(),
                token_bytes: engine.blocks.and_then(|blocks| {
                    Some(blocks.layout.block_bytes()? / u64::from(blocks.layout.tokens.max(1)))
                }),
                load,
                load_age_ms,
                taken_tokens: state.busy.taken(now),
                known: state.known(),
            });
        }
        let mut ranked = rank(tokens, judged, &request.weights);
        if request.temperature > 0 {
            let seed = match request.seed {
                Some(seed) => seed,
                None => drawn()?,
            };
            choose(&mut ranked, request.temperature, seed);
        }
        if let Some(first) = ranked.first().filter(|_| request.take)
            && let Some(one) = candidates.iter().find(|one| one.engine.name == first.engine)
        {
            let computed = first.terms.iter().find(|term| term.part == Part::Compute);
            one.state().busy.take(now, computed.map_or(0, |term| term.amount));
        }
        Ok(RouteAnswer { ranked, notes })
    }

    /// Returns those who may take it. Where nobody is named, those whose events arrive, if there are any.
    fn candidates(
        &self,
        request: &RouteRequest,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Arc<One>>, WireError> {
        let mut found = match &request.candidates[..] {
            [] => self.all(),
            named => named.iter().map(|one| self.one(&one.engine)).collect::<Result<_, _>>()?,
        };
        let all = found.len();
        if let Some(model) = &request.model {
            found.retain(|one| one.engine.model == *model);
        }
        if found.is_empty() {
            let which = match (&request.model, all) {
                (_, 0) => "no engine is followed: name one with POST /v1/engines".to_owned(),
                (model, _) => {
                    format!("no candidate serves {:?}", model.as_deref().unwrap_or_default())
                }
            };
            return Err(WireError::rejected(format_args!("{which}")));
        }
        let heard: Vec<Arc<One>> =
            found.iter().filter(|one| one.state().feed.is_connected()).cloned().collect();
        if heard.is_empty() {
            notes.push(SILENT.to_owned());
        } else if request.candidates.is_empty() && heard.len() < found.len() {
            let silent = found.len() - heard.len();
            notes
                .push(format!("left out, as its events do not arrive: {}", counted(silent as u64, "engine")));
            found = heard;
        }
        let mut models: Vec<&str> = found.iter().map(|one| &*one.engine.model).collect();
        models.sort_unstable();
        models.dedup();
        if models.len() > 1 {
            notes.push(format!("the candidates serve {} different models: say which is meant", models.len()));
        }
        Ok(found)
    }

    /// Asks kvhive once for all candidates whose blocks have the same names there.
    async fn held(
        &self,
        candidates: &[Arc<One>],
        (prompt, trace): (&Prompt, Option<TraceContext>),
        notes: &mut Vec<String>,
    ) -> BTreeMap<Place, Held> {
        let mut places: BTreeMap<Place, &One> = BTreeMap::new();
        for one in candidates {
            if let Some(place) = place(&one.engine) {
                places.entry(place).or_insert(one);
            }
        }
        let asks = places.into_iter().map(|(place, one)| async move {
            let blocks = one.engine.blocks.as_ref()?;
            Some((place, self.hive.held(&one.engine, blocks, (&*one.named(prompt), trace)).await))
        });
        let mut held = BTreeMap::new();
        for (place, answer) in futures_util::future::join_all(asks).await.into_iter().flatten() {
            match answer {
                Ok(found) => {
                    held.insert(place, found);
                }
                Err(note) if !notes.contains(&note) => notes.push(note),
                Err(_) => {}
            }
        }
        held
    }
}
