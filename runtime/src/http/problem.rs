//! A refusal as JSON: problem documents (RFC 9457).

use super::access::Role;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// The media type of problem documents.
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");
/// When it is worth asking again, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Why a request was not served: a problem document (RFC 9457), sent as `application/problem+json`.
#[derive(Serialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// `urn:kvhive:problem:` and the code.
    r#type: String,
    /// What the status means, in a word or two.
    title: &'static str,
    /// The HTTP status once more.
    status: u16,
    /// For people: what, where, what to do.
    detail: String,
    /// For programs.
    code: &'static str,
    /// Where a change is made and not acknowledged yet: who is waited for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waits_for: Vec<Awaited>,
}

/// Who keeps a change from being acknowledged.
#[derive(Serialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct Awaited {
    /// The member's name; null for those that registered after the state that the cluster was restored to.
    pub member: Option<String>,
    /// How long, in milliseconds, by what the leader knows: another one that comes to lead counts anew.
    pub for_ms: u64,
}

impl Problem {
    /// Names who is waited for.
    pub fn waiting_for(self, waits_for: Vec<Awaited>) -> Problem {
        Problem { waits_for, ..self }
    }

    /// Returns what it is for programs.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Returns what people are told.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Makes one; `code` has lower-case letters and underscores alone.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Problem {
        let title = status.canonical_reason().unwrap_or("Refused");
        let kind = format!("urn:kvhive:problem:{code}");
        Problem {
            r#type: kind,
            title,
            status: status.as_u16(),
            detail: detail.into(),
            code,
            waits_for: Vec::new(),
        }
    }

    /// No token that is known was shown.
    pub fn unauthorized() -> Problem {
        let detail = "send the cluster's token, or one of its roles', as `Authorization: Bearer TOKEN`";
        Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    /// The token that was shown gives `role`, and that is too little.
    pub fn forbidden(role: Role, needs: Role) -> Problem {
        let detail =
            format!("this token has the role `{role}`; asking for this needs a token of the role `{needs}`");
        Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// Returns the HTTP status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, MEDIA_TYPE);
        match status {
            // RFC 9110, 15.5.2: what would be accepted.
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER);
            }
            _ => {}
        }
        response
    }
}
