//! The API's document: OpenAPI 3.1, made from the routes.

use super::answers::Freshness;
use super::asked;
use kvhive_runtime::http::{Problem, Role, required};
use utoipa::openapi::path::{Operation, Parameter};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, ResponseBuilder};

/// What the document begins with.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "kvhive admin API",
        description = "What an operator of a kvhive cluster sees and does. Everything but health needs `Authorization: Bearer TOKEN`; each \
                       operation says whose token. Refusals are problem documents (RFC 9457)."
    ),
    components(schemas(Problem, Freshness)),
    modifiers(&BearerToken)
)]
pub(super) struct Document;

/// Tells programs made from the document to send the token.
struct BearerToken;

impl utoipa::Modify for BearerToken {
    fn modify(&self, document: &mut OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
        document.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
    }
}

/// Adds to every guarded operation what holds for all of its like: the role that it needs, the refusals of the guard and of
/// what reads parameters and bodies, and that refusals are problem documents.
pub(super) fn finish(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        use axum::http::Method;
        for (method, operation) in [
            (Method::GET, &mut item.get),
            (Method::POST, &mut item.post),
            (Method::PUT, &mut item.put),
            (Method::PATCH, &mut item.patch),
            (Method::DELETE, &mut item.delete),
        ] {
            if let Some(operation) = operation {
                guard(operation, required(&method, &one_of(path)), path.starts_with("/v1/"));
            }
        }
    }
}

fn guard(operation: &mut Operation, role: Role, is_the_groups: bool) {
    let said = operation.description.take().unwrap_or_default();
    operation.description = Some(
        format!("{said}\n\nNeeds the token of the role `{role}`, or of one above it.").trim().to_owned(),
    );
    let (takes, has_body) = (operation.parameters.is_some(), operation.request_body.is_some());
    let is_name =
        |one: &RefOr<Parameter>| matches!(one, RefOr::T(parameter) if parameter.name == asked::HEADER);
    let is_named = operation.parameters.iter().flatten().any(is_name);
    for (status, meaning, may_come) in [
        ("400", "What was sent is not as described", takes || has_body),
        ("401", "No token that is known", true),
        ("403", "The token of a lesser role", true),
        ("413", "A body of more bytes than are read", has_body),
        ("421", "Asked of a coordinator that was removed from the cluster", is_the_groups),
        ("415", "A body that is not said to be JSON", has_body),
        ("422", "The name of a change that was asked otherwise before; this one is not made", is_named),
    ] {
        if may_come {
            let refusal = ResponseBuilder::new().description(meaning).content("application/json", problem());
            operation.responses.responses.entry(status.to_owned()).or_insert_with(|| refusal.build().into());
        }
    }
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        if status.starts_with(['4', '5'])
            && let Some(content) = response.content.shift_remove("application/json")
        {
            response.content.insert("application/problem+json".to_owned(), content);
        }
    }
}

fn problem() -> Content {
    Content::new(Some(Ref::from_schema_name("Problem")))
}

/// Makes a path of a pattern: names are any name.
fn one_of(pattern: &str) -> String {
    let words = pattern.split('/').map(|word| if word.starts_with('{') { "x" } else { word });
    words.collect::<Vec<_>>().join("/")
}
