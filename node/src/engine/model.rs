//! What an engine asks of a model.

use kvhive_protocol::Layout;
use std::error::Error;
use std::ops::Range;

/// A decoder that can take keys and values in and give them out.
///
/// The same tokens after the same past must give the same numbers. It computes on a thread of the engine's, always the same one, as long as
/// it takes; text is turned into tokens on others, too.
pub trait Model: Send + Sync + 'static {
    /// Keys and values of one request's tokens, where the model computes.
    type Past: Send + 'static;
    /// What can go wrong.
    type Error: Error + Send + Sync + 'static;

    /// Names weights and tokenizer: models that compute different numbers have different ones. It is part of every key.
    fn name(&self) -> String;

    /// Returns the shape of a block of so many tokens: layers, heads and elements of keys and values, and their order.
    fn layout(&self, tokens: u32) -> Layout;

    /// Turns text into tokens, at least one.
    ///
    /// # Errors
    /// What the model says.
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, Self::Error>;

    /// Turns tokens into text.
    ///
    /// # Errors
    /// What the model says.
    fn detokenize(&self, tokens: &[u32]) -> Result<String, Self::Error>;

    /// Says whether an answer ends with this token.
    ///
    /// # Errors
    /// What the model says.
    fn is_end(&self, token: u32) -> Result<bool, Self::Error>;

    /// Begins a request: nothing is past. It will have so many tokens at most, prompt and answer.
    fn begin(&self, most_tokens: usize) -> Self::Past;

    /// Computes `tokens`, of which there is one at least, after `past`, and adds their keys and values to it. Returns the logits after the
    /// last, one for each token there is.
    ///
    /// # Errors
    /// What the model says.
    fn compute(&self, past: &mut Self::Past, tokens: &[u32]) -> Result<Vec<f32>, Self::Error>;

    /// Computes a token of the answer, as [`Model::compute`] of that token alone.
    ///
    /// # Errors
    /// What the model says.
    fn decode(&self, past: &mut Self::Past, token: u32) -> Result<Vec<f32>, Self::Error> {
        self.compute(past, &[token])
    }

    /// Writes keys and values of these tokens, which are a block, in the shape of [`Model::layout`].
    ///
    /// # Errors
    /// What the model says.
    fn save(&self, past: &Self::Past, tokens: Range<usize>, block: &mut [u8]) -> Result<(), Self::Error>;

    /// Adds the keys and values of a block, in the shape of [`Model::layout`], to the past.
    ///
    /// # Errors
    /// What the model says.
    fn load(&self, past: &mut Self::Past, block: &[u8]) -> Result<(), Self::Error>;

    /// Forgets all tokens but the first so many.
    ///
    /// # Errors
    /// What the model says.
    fn truncate(&self, past: &mut Self::Past, tokens: usize) -> Result<(), Self::Error>;
}
