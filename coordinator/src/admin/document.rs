//! The API's document: OpenAPI 3.1, made from the routes.

use kvhive_runtime::http::{Problem, Role, required};
use utoipa::openapi::path::Operation;
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
    components(schemas(Problem)),
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

/// Adds to every guarded operation what holds for all of them: the role that it needs, the two refusals of the guard, and that
/// refusals are problem documents.
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
                guard(operation, required(&method, &one_of(path)));
            }
        }
    }
}

fn guard(operation: &mut Operation, role: Role) {
    let said = operation.description.take().unwrap_or_default();
    operation.description = Some(
        format!("{said}\n\nNeeds the token of the role `{role}`, or of one above it.").trim().to_owned(),
    );
    for (status, meaning) in [("401", "No token that is known"), ("403", "The token of a lesser role")] {
        let problem = ResponseBuilder::new().description(meaning).content("application/json", problem());
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| problem.build().into());
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
