//! What of a request is computed: the rest of its prompt, block by block, and its answer.

use super::behind::Bytes;
use super::model::Model;
use kvhive_client::codec;
use kvhive_gpu::codec::CodecError;
use kvhive_protocol::Layout;
use kvhive_protocol::block::Codec;
use std::time::{Duration, Instant};

/// What is to be done.
pub(super) struct Task {
    pub(super) tokens: Vec<u32>,
    /// Its first blocks.
    pub(super) found: Vec<Bytes>,
    pub(super) max_new_tokens: usize,
    pub(super) layout: Layout,
    pub(super) codec: Codec,
}

/// What came of it.
pub(super) struct Computed {
    pub(super) answer: Vec<u32>,
    /// The blocks after those that were found.
    pub(super) new: Vec<NewBlock>,
    pub(super) first_token: Instant,
    pub(super) took: Took,
}

/// How long parts of it took.
#[derive(Clone, Copy, Default)]
pub(super) struct Took {
    /// Blocks that were found to be the model's past.
    pub(super) load: Duration,
    /// The rest of the prompt.
    pub(super) prompt: Duration,
    /// Of that, whole blocks.
    pub(super) blocks: Duration,
    /// The answer but for its first token.
    pub(super) answer: Duration,
}

/// A block as it was computed, which is what is stored, and as it comes back from the cache.
pub(super) struct NewBlock {
    pub(super) computed: Bytes,
    pub(super) comes_back: Bytes,
}

/// Why nothing came of it.
pub(super) enum Failed<E> {
    Model(E),
    Codec(CodecError),
}

impl<E> From<CodecError> for Failed<E> {
    fn from(error: CodecError) -> Self {
        Failed::Codec(error)
    }
}

impl Task {
    /// Computes; the prompt has a token more than what was found at least.
    pub(super) fn run<M: Model>(self, model: &M) -> Result<Computed, Failed<M::Error>> {
        let Task { tokens, found, max_new_tokens, layout, codec } = self;
        let (block_tokens, begun) = (layout.tokens as usize, Instant::now());
        let mut past = model.begin(tokens.len() + max_new_tokens);
        for block in &found {
            model.load(&mut past, block).map_err(Failed::Model)?;
        }
        let mut took = Took { load: begun.elapsed(), ..Took::default() };
        let (mut new, mut logits) = (Vec::new(), Vec::new());
        let (mut end, prompt_begun) = (found.len() * block_tokens, Instant::now());
        for piece in tokens[end..].chunks(block_tokens) {
            let (begin, piece_begun) = (end, Instant::now());
            end += piece.len();
            logits = model.compute(&mut past, piece).map_err(Failed::Model)?;
            if piece.len() < block_tokens {
                continue;
            }
            let mut computed = vec![0; layout.block_bytes().unwrap_or(0) as usize];
            model.save(&past, begin..end, &mut computed).map_err(Failed::Model)?;
            let block = NewBlock::of(computed, codec, &layout)?;
            if !codec.is_exact() {
                // An answer does not depend on who computed its prompt.
                model.truncate(&mut past, begin).map_err(Failed::Model)?;
                model.load(&mut past, &block.comes_back).map_err(Failed::Model)?;
            }
            new.push(block);
            took.blocks += piece_begun.elapsed();
        }
        took.prompt = prompt_begun.elapsed();
        let first_token = Instant::now();
        let mut answer = Vec::new();
        while let Some(token) = likeliest(&logits) {
            if model.is_end(token).map_err(Failed::Model)? {
                break;
            }
            answer.push(token);
            if answer.len() >= max_new_tokens {
                break;
            }
            logits = model.decode(&mut past, token).map_err(Failed::Model)?;
        }
        took.answer = first_token.elapsed();
        Ok(Computed { answer, new, first_token, took })
    }
}

impl NewBlock {
    fn of(computed: Vec<u8>, codec: Codec, layout: &Layout) -> Result<NewBlock, CodecError> {
        let computed: Bytes = computed.into();
        if codec.is_exact() {
            return Ok(NewBlock { comes_back: computed.clone(), computed });
        }
        let (mut stored, mut back) = (Vec::new(), vec![0; computed.len()]);
        codec::encode(codec, layout, &computed, &mut stored)?;
        codec::decode(codec, layout, &stored, &mut back)?;
        Ok(NewBlock { computed, comes_back: back.into() })
    }
}

/// Returns the token with the greatest logit, the first of several; none where there is no number at all.
fn likeliest(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(usize, f32)> = None;
    for (at, logit) in logits.iter().enumerate().filter(|(_, logit)| !logit.is_nan()) {
        if best.is_none_or(|(_, most)| *logit > most) {
            best = Some((at, *logit));
        }
    }
    best.and_then(|(at, _)| u32::try_from(at).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_is_the_first_of_several_and_no_nan() {
        assert_eq!(likeliest(&[f32::NAN, 1.0, 3.0, 3.0]), Some(2));
        assert_eq!(likeliest(&[f32::NEG_INFINITY]), Some(0));
        assert_eq!(likeliest(&[f32::NAN]), None);
        assert_eq!(likeliest(&[]), None);
    }
}
