//! The dashboard's files, as they lie in `coordinator/dashboard/`. Anybody may have them: they hold no secrets, and what they
//! show they ask of the admin API with the token that the reader gives them.

use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// What a page of ours may do: load what comes from here, and nothing else.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// One file.
struct File {
    path: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
}

macro_rules! file {
    ($content_type:expr, $name:literal) => {
        file!($content_type, $name, concat!("/dashboard/", $name))
    };
    ($content_type:expr, $name:literal, $path:expr) => {
        File {
            path: $path,
            content_type: $content_type,
            bytes: include_bytes!(concat!("../../dashboard/", $name)),
        }
    };
}

static FILES: &[File] = &[
    file!(HTML, "index.html", "/"),
    file!(CSS, "style.css"),
    file!(SVG, "icon.svg"),
    file!(SCRIPT, "main.js"),
    file!(SCRIPT, "api.js"),
    file!(SCRIPT, "dom.js"),
    file!(SCRIPT, "format.js"),
    file!(SCRIPT, "history.js"),
    file!(SCRIPT, "chart.js"),
    file!(SCRIPT, "map.js"),
    file!(SCRIPT, "slots.js"),
    file!(SCRIPT, "tables.js"),
    file!(SCRIPT, "events.js"),
    file!(SCRIPT, "scaling.js"),
    file!(SCRIPT, "theme.js"),
];

/// Makes the routes of all files.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let mut router = Router::new();
    for file in FILES {
        // A browser asks each time and is told that its copy is right still: the files belong to this very build.
        let tag = format!("\"{:08x}{:x}\"", crc32fast::hash(file.bytes), file.bytes.len());
        let answer = move |headers: HeaderMap| async move { file.answer(&headers, &tag) };
        router = router.route(file.path, get(answer));
    }
    router
}

impl File {
    fn answer(&self, asked: &HeaderMap, tag: &str) -> Response {
        let is_known = asked.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        let is_known = is_known.is_some_and(|tags| {
            tags.split(',').any(|one| matches!(one.trim(), "*") || one.trim().trim_start_matches("W/") == tag)
        });
        let mut response = match is_known {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => ([(header::CONTENT_TYPE, self.content_type)], self.bytes).into_response(),
        };
        let headers = response.headers_mut();
        if let Ok(tag) = HeaderValue::from_str(tag) {
            headers.insert(header::ETAG, tag);
        }
        for (name, value) in [
            (header::CACHE_CONTROL, "no-cache"),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn text(file: &File) -> &str {
        std::str::from_utf8(file.bytes).expect("they are texts")
    }

    #[test]
    fn every_file_of_the_folder_is_served_and_no_other() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/dashboard");
        let there: BTreeSet<String> = std::fs::read_dir(folder)
            .expect("it is there")
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .collect();
        let name = |file: &File| match file.path {
            "/" => "index.html".to_owned(),
            path => path.trim_start_matches("/dashboard/").to_owned(),
        };
        assert_eq!(there, FILES.iter().map(name).collect());
    }

    #[test]
    fn files_ask_nothing_of_anybody_else_and_put_in_no_markup() {
        for file in FILES {
            let text = text(file).replace("http://www.w3.org/2000/svg", "");
            for word in [
                "http://",
                "https://",
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
            ] {
                assert!(!text.contains(word), "{} has {word}", file.path);
            }
        }
    }

    #[test]
    fn what_modules_import_is_served() {
        for file in FILES.iter().filter(|file| file.content_type == SCRIPT) {
            for line in text(file).lines().filter(|line| line.contains(" from \"./")) {
                let name = line.split('"').nth(1).expect("a quoted name").replace("./", "/dashboard/");
                assert!(FILES.iter().any(|one| one.path == name), "{}: {line}", file.path);
            }
        }
    }

    #[test]
    fn a_browser_that_has_the_file_is_told_so() {
        let file = &FILES[0];
        let asked = |tags: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(tags) = tags {
                headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static(tags));
            }
            file.answer(&headers, "\"1a\"")
        };
        assert_eq!(asked(None).status(), StatusCode::OK);
        assert_eq!(asked(Some("\"2b\", W/\"1a\"")).status(), StatusCode::NOT_MODIFIED);
        let stale = asked(Some("\"2b\""));
        assert_eq!(stale.status(), StatusCode::OK);
        assert_eq!(stale.headers()[header::CONTENT_TYPE], HTML);
        assert!(
            stale.headers()[header::CONTENT_SECURITY_POLICY].to_str().is_ok_and(|policy| policy == POLICY)
        );
    }
}
