//! Who may do what: a token says which role it gives, each role may do what those below it may.

use super::problem::Problem;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::fmt;
use std::sync::Arc;
use thiserror::Error;

/// What the bearer of a token may do. Ordered: who may more may also less.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// Look at everything but secrets.
    Viewer,
    /// Move, balance and size what there is. Nothing is lost by it.
    Operator,
    /// Everything: tenants, the coordinators' own membership, backups with their secrets.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        })
    }
}

/// Why tokens cannot be told apart.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("the tokens of {one} and {other} are the same: give each role a token of its own")]
pub struct AccessError {
    one: Role,
    other: Role,
}

/// The tokens that a listener knows, as digests.
#[derive(Clone, Default)]
pub struct Access {
    tokens: Vec<(blake3::Hash, Role)>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.tokens.iter().map(|(_, role)| role)).finish()
    }
}

impl Access {
    /// Has `token` give `role`.
    ///
    /// # Errors
    /// When it gives another role already.
    pub fn with(mut self, role: Role, token: &[u8]) -> Result<Access, AccessError> {
        let digest = blake3::hash(token);
        if let Some((_, other)) = self.tokens.iter().find(|(known, _)| *known == digest) {
            return Err(AccessError { one: role, other: *other });
        }
        self.tokens.push((digest, role));
        Ok(self)
    }

    /// Returns the roles that some token gives, ascending.
    pub fn roles(&self) -> Vec<Role> {
        let mut roles: Vec<Role> = self.tokens.iter().map(|(_, role)| *role).collect();
        roles.sort_unstable();
        roles
    }

    /// Returns what the bearer of `shown` may do, if anything. Takes the same time whatever is shown.
    pub fn role_of(&self, shown: &[u8]) -> Option<Role> {
        let digest = blake3::hash(shown);
        // Every digest is looked at, and each comparison takes the same time.
        let mut role = None;
        for (known, gives) in &self.tokens {
            if *known == digest {
                role = Some(*gives);
            }
        }
        role
    }

    /// Returns what the bearer of this request's `Authorization` header may do.
    fn role_in(&self, request: &Request) -> Option<Role> {
        let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.split_once(' '));
        // A scheme is the same in any case (RFC 9110, 11.1).
        let shown = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        self.role_of(shown.map_or("", |(_, token)| token).as_bytes())
    }

    /// Middleware: lets a request pass whose token gives the role that it requires, which its handlers find among its
    /// extensions.
    pub async fn check(State(access): State<Arc<Access>>, mut request: Request, next: Next) -> Response {
        let needs = required(request.method(), request.uri().path());
        match access.role_in(&request) {
            Some(role) if role >= needs => {
                request.extensions_mut().insert(role);
                next.run(request).await
            }
            Some(role) => Problem::forbidden(role, needs).into_response(),
            None => Problem::unauthorized().into_response(),
        }
    }
}

/// Paths whose change is an operator's, as far as `*` stands for one name.
const OPERATORS: [&str; 12] = [
    "/v1/members/*",
    "/v1/balance",
    "/v1/scaling",
    "/v1/raft/transfer",
    "/v1/route",
    "/v1/pins",
    "/v1/pins/*",
    "/v1/engines",
    "/v1/engines/*",
    "/v1/engines/*/load",
    "/v1/snapshot/persist",
    "/v1/snapshot/load",
];
/// Paths that are asked by `POST` and only look.
const LOOKS: [&str; 1] = ["/check_blocks"];
/// Paths that show secrets.
const SECRETS: [&str; 1] = ["/v1/backup"];

/// Returns what a request requires: looking is a viewer's, what is named here an operator's, and all that is not an admin's, so
/// that a route that nobody has thought of is closed.
pub fn required(method: &Method, path: &str) -> Role {
    let is_one = |patterns: &[&str]| patterns.iter().any(|pattern| matches(pattern, path));
    if method.is_safe() {
        return if is_one(&SECRETS) { Role::Admin } else { Role::Viewer };
    }
    if *method == Method::POST && is_one(&LOOKS) {
        return Role::Viewer;
    }
    if is_one(&OPERATORS) { Role::Operator } else { Role::Admin }
}

fn matches(pattern: &str, path: &str) -> bool {
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some("*"), Some(name)) if !name.is_empty() => {}
            (Some(word), Some(name)) if word == name => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_gives_its_role_and_any_other_none() {
        let access = Access::default().with(Role::Admin, b"the cluster's").expect("it is new");
        let access = access.with(Role::Viewer, b"a viewer's").expect("it is new");
        let access = access.with(Role::Operator, b"an operator's").expect("it is new");
        assert_eq!(access.role_of(b"the cluster's"), Some(Role::Admin));
        assert_eq!(access.role_of(b"an operator's"), Some(Role::Operator));
        assert_eq!(access.role_of(b"a viewer's"), Some(Role::Viewer));
        for wrong in [&b""[..], b"a viewer", b"a viewer's "] {
            assert_eq!(access.role_of(wrong), None);
        }
        let error = access.with(Role::Operator, b"a viewer's").map(|_| ()).expect_err("it is known");
        assert_eq!(
            error.to_string(),
            "the tokens of operator and viewer are the same: give each role a token of its own"
        );
    }

    #[test]
    fn looking_is_a_viewers_and_what_nobody_named_is_an_admins() {
        for (method, path, role) in [
            (Method::GET, "/v1/cluster", Role::Viewer),
            (Method::GET, "/v1/backup", Role::Admin),
            (Method::PATCH, "/v1/members/node-1", Role::Operator),
            (Method::PATCH, "/v1/members/", Role::Admin),
            (Method::PATCH, "/v1/members/node-1/more", Role::Admin),
            (Method::POST, "/v1/raft/transfer", Role::Operator),
            (Method::POST, "/v1/raft/members", Role::Admin),
            (Method::POST, "/v1/route", Role::Operator),
            (Method::POST, "/v1/engines/vllm-0/load", Role::Operator),
            (Method::POST, "/check_blocks", Role::Viewer),
            (Method::DELETE, "/check_blocks", Role::Admin),
            (Method::POST, "/v1/tenants", Role::Admin),
            (Method::POST, "/v1/tenants/default/rotate", Role::Admin),
            (Method::DELETE, "/v1/tenants/acme", Role::Admin),
            (Method::DELETE, "/v1/anything", Role::Admin),
        ] {
            assert_eq!(required(&method, path), role, "{method} {path}");
        }
    }
}
