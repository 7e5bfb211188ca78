//! The name that an asker gives a change, so that it can be asked again of any coordinator and happens once.

use super::answers::Trouble;
use super::routes::most_bytes;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, Request};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use kvhive_protocol::{Level, RequestId};
use serde_json::Value;
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::{ObjectBuilder, Required, Type};

/// The header that names a change: 32 hexadecimal digits that the asker draws at random, once for each change.
pub(super) const HEADER: &str = "idempotency-key";
/// How many digits it has.
const DIGITS: usize = 32;

/// The change's name; none when the asker gave none.
pub(super) struct AskedAs(pub(super) Option<Name>);

impl AskedAs {
    /// Says whether the asker gave it a name.
    pub(super) fn is_named(&self) -> bool {
        self.0.is_some()
    }
}

/// What a change is known by: what its asker drew and what it is asked of, and a print of the rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Name {
    of_thing: u128,
    print: u64,
}

impl Name {
    /// Returns the name that a part of the change is remembered by; the first is the change's own.
    pub(super) fn part(self, at: u64) -> Name {
        if at == 0 {
            return self;
        }
        let mut of = blake3::Hasher::new_derive_key("kvhive 2026-11 admin part v1");
        of.update(&at.to_le_bytes());
        let mut of_part = [0; 16];
        of.finalize_xof().fill(&mut of_part);
        Name { of_thing: self.of_thing ^ u128::from_le_bytes(of_part), print: self.print }
    }

    /// Returns the name as coordinators remember it in a cluster of this level.
    pub(super) fn at(self, level: Level) -> RequestId {
        match level >= Level::CHECKED {
            true => RequestId::named(self.of_thing, self.print),
            false => RequestId { client: self.of_thing, sequence: 1 },
        }
    }
}

/// Takes no name: what is asked is no change that is remembered, and whoever gives it one is told that.
pub(super) struct Nameless;

/// A print of a request's query and body.
#[derive(Clone, Copy)]
struct Print(u64);

impl Print {
    /// Makes the print. JSON is taken for what it says: neither blanks nor the order of an object's fields make it another.
    fn of(query: &str, body: &[u8]) -> Print {
        let said = serde_json::from_slice::<Value>(body).ok().map(|value| value.to_string().into_bytes());
        let mut of = blake3::Hasher::new_derive_key("kvhive 2026-11 admin print v1");
        of.update(&(query.len() as u64).to_le_bytes()).update(query.as_bytes());
        of.update(said.as_deref().unwrap_or(body));
        let mut print = [0; 8];
        of.finalize_xof().fill(&mut print);
        Print(u64::from_le_bytes(print))
    }
}

/// Middleware: takes a print of a change that has a name, so that the name is of nothing else.
pub(super) async fn take_print(request: Request, next: Next) -> Response {
    if request.method().is_safe() || !request.headers().contains_key(HEADER) {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    let most = most_bytes(parts.uri.path());
    let Ok(body) = to_bytes(body, most).await else { return Trouble::too_large(most).into_response() };
    parts.extensions.insert(Print::of(parts.uri.query().unwrap_or_default(), &body));
    next.run(Request::from_parts(parts, Body::from(body))).await
}

impl IntoParams for AskedAs {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let described = "32 hexadecimal digits drawn for this change: asked again with them, of any coordinator, it happens once; \
                         another query or body is refused (422) and changes nothing";
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
        let drawn = digits.and_then(|digits| u128::from_str_radix(digits, 16).ok());
        let drawn = drawn
            .ok_or_else(|| Trouble::bad_request(format!("{HEADER} is not {DIGITS} hexadecimal digits")))?;
        let Print(print) = parts
            .extensions
            .get::<Print>()
            .copied()
            .ok_or_else(|| Trouble::unavailable("no print was taken of this change".to_owned()))?;
        Ok(AskedAs(Some(Name { of_thing: of_thing(drawn, parts.method.as_str(), parts.uri.path()), print })))
    }
}

impl<S: Sync> FromRequestParts<S> for Nameless {
    type Rejection = Trouble;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Nameless, Trouble> {
        match parts.headers.contains_key(HEADER) {
            true => Err(Trouble::bad_request(format!(
                "{HEADER} names a change that is to happen once; what is sent here is taken for what is the case now, each time: leave \
                 it out"
            ))),
            false => Ok(Nameless),
        }
    }
}

/// Names a change by what its asker drew and by what it is asked of: the same digits for another thing are another name, and never
/// answered by what became of the first.
fn of_thing(drawn: u128, method: &str, path: &str) -> u128 {
    let mut of = blake3::Hasher::new_derive_key("kvhive 2026-11 admin request v1");
    of.update(method.as_bytes()).update(b" ").update(path.as_bytes());
    let mut of_what = [0; 16];
    of.finalize_xof().fill(&mut of_what);
    drawn ^ u128::from_le_bytes(of_what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_digits_name_one_change_of_one_thing() {
        let name = of_thing(7, "POST", "/v1/tenants");
        assert_eq!(name, of_thing(7, "POST", "/v1/tenants"));
        for other in [
            of_thing(8, "POST", "/v1/tenants"),
            of_thing(7, "PATCH", "/v1/tenants"),
            of_thing(7, "POST", "/v1/pins"),
        ] {
            assert_ne!(name, other);
        }
    }

    #[test]
    fn each_part_of_a_change_has_a_name_of_its_own_and_the_first_is_the_changes() {
        let name = Name { of_thing: 7, print: 9 };
        assert_eq!(name.part(0), name);
        let parts: std::collections::BTreeSet<u128> = (0..9).map(|at| name.part(at).of_thing).collect();
        assert_eq!(parts.len(), 9);
        assert_eq!(name.part(1), name.part(1));
        assert_ne!(name.part(1), Name { of_thing: 8, print: 9 }.part(1));
    }

    #[test]
    fn a_print_is_of_what_is_said_and_not_of_how() {
        let print = |query: &str, body: &str| Print::of(query, body.as_bytes()).0;
        let one = print("", r#"{"name":"a","size":1}"#);
        assert_eq!(one, print("", "{ \"size\": 1,\n\"name\": \"a\" }"));
        for (query, body) in [
            ("", r#"{"name":"b","size":1}"#),
            ("", r#"{"name":"a","size":"1"}"#),
            ("", r#"{"name":"a"}"#),
            ("size=1", r#"{"name":"a","size":1}"#),
            ("", ""),
            ("", "{\"name\""),
        ] {
            assert_ne!(one, print(query, body), "{query} {body}");
        }
        assert_ne!(print("", "a"), print("a", ""));
    }

    #[test]
    fn a_name_has_its_print_where_every_coordinator_goes_by_it() {
        let name = Name { of_thing: 7, print: 9 };
        assert_eq!(name.at(Level::CHECKED), RequestId::named(7, 9));
        assert_eq!(name.at(Level::CORDONS), RequestId { client: 7, sequence: 1 });
    }
}
