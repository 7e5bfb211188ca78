//! The admin API as the command line uses it: which cluster is meant, the bearer token, plain HTTP with a timeout.

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cluster::local;

/// How long an admin request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Which cluster a command talks to.
#[derive(Args, Clone, Debug)]
pub(crate) struct Target {
    /// Admin URL of any coordinator; several separated by commas are tried in order [default: the local cluster's]
    #[arg(long, global = true, env = "KVHIVE_ADMIN", value_name = "URL")]
    pub(crate) admin: Option<String>,
    /// File that holds the cluster's token; the variable KVHIVE_TOKEN comes before it [default: the local cluster's]
    #[arg(long, global = true, env = "KVHIVE_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Folder of the local cluster that `kvhive up` made
    #[arg(long, global = true, env = "KVHIVE_DIR", value_name = "DIR", default_value_os_t = local::default_dir())]
    pub(crate) dir: PathBuf,
}

impl Target {
    /// Returns the admin URLs to try and the token.
    ///
    /// # Errors
    /// When neither options nor a local cluster say which cluster is meant.
    pub(crate) fn resolve(&self) -> Result<Admin> {
        let urls: Vec<String> = match &self.admin {
            Some(urls) => urls.split(',').map(|url| with_scheme(url.trim().trim_end_matches('/'))).collect(),
            None => local::Running::load(&self.dir)?.admin_urls,
        };
        let token_file = self.token_file.clone().unwrap_or_else(|| self.dir.join(local::TOKEN_FILE));
        let token = read_token(&token_file)?;
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .build()
            .new_agent();
        let token_from = match std::env::var_os("KVHIVE_TOKEN") {
            Some(_) => "the variable KVHIVE_TOKEN".to_owned(),
            None => token_file.display().to_string(),
        };
        Ok(Admin { urls, token, token_from, agent })
    }
}

fn with_scheme(url: &str) -> String {
    if url.contains("://") { url.to_owned() } else { format!("http://{url}") }
}

/// Reads a token file; `KVHIVE_TOKEN` comes before it.
///
/// # Errors
/// When the file cannot be read or holds no usable token.
pub(crate) fn read_token(file: &Path) -> Result<String> {
    if let Ok(token) = std::env::var("KVHIVE_TOKEN") {
        return Ok(token.trim().to_owned());
    }
    let token = std::fs::read_to_string(file).with_context(|| {
        format!("cannot read the cluster's token from {}; give --token-file or KVHIVE_TOKEN", file.display())
    })?;
    Ok(token.trim().to_owned())
}

/// The admin API of one cluster.
pub(crate) struct Admin {
    urls: Vec<String>,
    token: String,
    token_from: String,
    agent: ureq::Agent,
}

impl Admin {
    /// Gets `path` from the first coordinator that answers.
    ///
    /// # Errors
    /// When none answers, or the answer is an error.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(|url| {
            self.agent
                .get(format!("{url}{path}"))
                .header("authorization", format!("Bearer {}", self.token))
                .call()
        })
    }

    /// Posts `body` to `path` of the first coordinator that answers.
    ///
    /// # Errors
    /// When none answers, or the answer is an error.
    pub(crate) fn post<T: DeserializeOwned>(&self, path: &str, body: &serde_json::Value) -> Result<T> {
        let text = body.to_string();
        self.ask(|url| {
            self.agent
                .post(format!("{url}{path}"))
                .header("authorization", format!("Bearer {}", self.token))
                .content_type("application/json")
                .send(&text)
        })
    }

    /// Patches what is at `path`, by the first coordinator that answers.
    ///
    /// # Errors
    /// When none answers, or the answer is an error.
    pub(crate) fn patch<T: DeserializeOwned>(&self, path: &str, patch: &serde_json::Value) -> Result<T> {
        let text = patch.to_string();
        self.ask(|url| {
            self.agent
                .patch(format!("{url}{path}"))
                .header("authorization", format!("Bearer {}", self.token))
                .content_type("application/merge-patch+json")
                .send(&text)
        })
    }

    fn ask<T: DeserializeOwned>(
        &self,
        call: impl Fn(&str) -> Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T> {
        let mut failures = Vec::new();
        for url in &self.urls {
            let mut answer = match call(url) {
                Ok(answer) => answer,
                Err(error) => {
                    failures.push(format!("{url}: {error}"));
                    continue;
                }
            };
            let status = answer.status();
            let text = answer.body_mut().read_to_string().with_context(|| format!("answer of {url}"))?;
            if status.is_success() {
                return serde_json::from_str(&text)
                    .with_context(|| format!("answer of {url} is not what was asked"));
            }
            let message = serde_json::from_str::<serde_json::Value>(&text)
                .ok()
                .and_then(|value| value["error"]["message"].as_str().map(str::to_owned))
                .unwrap_or_else(|| "that is no answer of a coordinator's admin API".to_owned());
            if status.as_u16() == 401 {
                bail!(
                    "{url} does not accept the token from {}: give the cluster's by --token-file or KVHIVE_TOKEN",
                    self.token_from
                );
            }
            if status.as_u16() == 503 {
                failures.push(format!("{url}: {message}"));
                continue;
            }
            bail!("{url} answered {status}: {message}");
        }
        bail!("no coordinator answered:\n  {}", failures.join("\n  "));
    }
}
