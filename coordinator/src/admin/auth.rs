//! Who may use the admin API: whoever shows the cluster's token. Health is open.

use super::answers::Trouble;
use super::routes::Admin;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Lets a request pass that carries `Authorization: Bearer TOKEN`.
pub(super) async fn check(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| value.split_once(' '));
    // A scheme is the same in any case (RFC 9110, 11.1).
    let shown =
        shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map_or("", |(_, token)| token);
    // Hashed first, so that the comparison takes the same time whatever is shown, its length included.
    let same = admin.token_digest(shown.as_bytes()).ct_eq(&admin.token);
    if bool::from(same) {
        return next.run(request).await;
    }
    Trouble::unauthorized().into_response()
}
