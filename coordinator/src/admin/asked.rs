//! The name that an asker gives a change, so that it can be asked again of any coordinator and happens once.

use super::answers::Trouble;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use kvhive_protocol::RequestId;

/// The header that names a change: 32 hexadecimal digits that the asker draws at random, once for each change.
const HEADER: &str = "idempotency-key";
/// How many digits it has.
const DIGITS: usize = 32;

/// The change's name; none when the asker gave none.
pub(super) struct AskedAs(pub(super) Option<RequestId>);

impl<S: Sync> FromRequestParts<S> for AskedAs {
    type Rejection = Trouble;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<AskedAs, Trouble> {
        let Some(value) = parts.headers.get(HEADER) else { return Ok(AskedAs(None)) };
        let digits = value
            .to_str()
            .ok()
            .filter(|text| text.len() == DIGITS && text.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let client = digits.and_then(|digits| u128::from_str_radix(digits, 16).ok());
        let client = client
            .ok_or_else(|| Trouble::bad_request(format!("{HEADER} is not {DIGITS} hexadecimal digits")))?;
        Ok(AskedAs(Some(RequestId { client, sequence: 1 })))
    }
}
