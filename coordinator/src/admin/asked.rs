//! The name that an asker gives a change, so that it can be asked again of any coordinator and happens once.

use super::answers::Trouble;
use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use kvhive_protocol::RequestId;
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::{ObjectBuilder, Required, Type};

/// The header that names a change: 32 hexadecimal digits that the asker draws at random, once for each change.
const HEADER: &str = "idempotency-key";
/// How many digits it has.
const DIGITS: usize = 32;

/// The change's name; none when the asker gave none.
pub(super) struct AskedAs(pub(super) Option<RequestId>);

impl IntoParams for AskedAs {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let described = "32 hexadecimal digits drawn for this change: asked again with them, of any coordinator, it happens once";
        let header = ParameterBuilder::new().name(HEADER).parameter_in(ParameterIn::Header);
        let pattern = Some(format!("^[0-9a-fA-F]{{{DIGITS}}}$"));
        let text = ObjectBuilder::new().schema_type(Type::String).pattern(pattern);
        vec![header.description(Some(described)).required(Required::False).schema(Some(text)).build()]
    }
}

/// Returns the name of a change as its asker gave it, at most as long as a right one.
pub(super) fn named(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(HEADER)?.to_str().ok()?;
    Some(value.chars().take(DIGITS).collect())
}

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
        Ok(AskedAs(Some(request(client, parts.method.as_str(), parts.uri.path()))))
    }
}

/// Names a change by what its asker drew and by what it is asked of: the same digits for another change are another name, and never
/// answered by what became of the first.
fn request(drawn: u128, method: &str, path: &str) -> RequestId {
    let mut of = blake3::Hasher::new_derive_key("kvhive 2026-11 admin request v1");
    of.update(method.as_bytes()).update(b" ").update(path.as_bytes());
    let mut of_what = [0; 16];
    of.finalize_xof().fill(&mut of_what);
    RequestId { client: drawn ^ u128::from_le_bytes(of_what), sequence: 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_digits_name_one_change_of_one_thing() {
        let name = request(7, "POST", "/v1/tenants");
        assert_eq!(name, request(7, "POST", "/v1/tenants"));
        for other in [
            request(8, "POST", "/v1/tenants"),
            request(7, "PATCH", "/v1/tenants"),
            request(7, "POST", "/v1/pins"),
        ] {
            assert_ne!(name, other);
        }
    }
}
