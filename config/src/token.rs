//! The secret that all processes of a cluster share. Never printed: not in errors, not by `{:?}`.

use std::fmt;

/// The shared token: 16 to 1024 bytes, without the whitespace around it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// Why a text is no token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TokenError {
    /// Too short to resist guessing, or longer than a handshake reads.
    #[error("the token has {bytes} bytes after trimming; allowed is 16 to 1024")]
    Length {
        /// Its length.
        bytes: usize,
    },
}

impl Token {
    /// The shortest token, in bytes.
    pub const MIN_BYTES: usize = 16;
    /// The longest token, in bytes.
    pub const MAX_BYTES: usize = 1024;

    /// Takes a token file's content or `KVHIVE_TOKEN`.
    ///
    /// # Errors
    /// When it is too short or too long; the error does not hold the text.
    pub fn parse(text: &str) -> Result<Token, TokenError> {
        let token = text.trim();
        if !(Token::MIN_BYTES..=Token::MAX_BYTES).contains(&token.len()) {
            return Err(TokenError::Length { bytes: token.len() });
        }
        Ok(Token(token.to_owned()))
    }

    /// Returns the token itself.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Returns the token itself, as for an `Authorization: Bearer` header.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_trimmed_bounded_and_never_printed() {
        let token = Token::parse("  0123456789abcdef\n").unwrap();
        assert_eq!(token.as_bytes(), b"0123456789abcdef");
        assert_eq!(format!("{token:?}"), "Token(hidden)");
        assert_eq!(Token::parse("short\n"), Err(TokenError::Length { bytes: 5 }));
        assert_eq!(Token::parse(&"x".repeat(1025)), Err(TokenError::Length { bytes: 1025 }));
        assert!(Token::parse(&"x".repeat(1024)).is_ok());
    }
}
