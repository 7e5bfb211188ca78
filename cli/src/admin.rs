//! The admin API as the command line uses it: which cluster is meant, the bearer token, HTTP or HTTPS with a timeout.

use anyhow::{Context, Result, bail};
use clap::Args;
use kvhive_tls::CertificateDer;
use kvhive_tls::TlsFault;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::cluster::local;
use crate::problem::Refused;
use crate::trust;
use nobody::Nobody;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use wait::Wait;

mod follow;
mod nobody;
mod wait;

pub(crate) use follow::Followed;
pub(crate) use wait::Unacknowledged;

/// How long a coordinator may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to answer a question.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to make a change: longer than it tries itself, which is 10 s and two leases of 60 s at most.
const CHANGE_LIMIT: Duration = Duration::from_secs(140);
/// How long a cluster is asked again that has no leader at the moment: longer than an election takes. Coordinators who know of none wait
/// as long themselves, and are not asked again then.
const ELECTION_LIMIT: Duration = Duration::from_secs(3);
/// Wait before all are asked again.
const ELECTION_PAUSE: Duration = Duration::from_millis(200);
/// Names a change: asked again under it, of any coordinator, it happens once.
const CHANGE_NAME: &str = "idempotency-key";

const HTTPS: &str = "https://";

/// An answer, whose body is to be read.
type Response = ureq::http::Response<ureq::Body>;

/// Which cluster a command talks to.
#[derive(Args, Clone, Debug)]
pub(crate) struct Target {
    /// Admin URL of any coordinator; several separated by commas are tried in order [default: the local cluster's]
    #[arg(long, global = true, env = "KVHIVE_ADMIN", value_name = "URL")]
    pub(crate) admin: Option<String>,
    /// File that holds the cluster's token; the variable KVHIVE_TOKEN comes before it [default: the local cluster's]
    #[arg(long, global = true, env = "KVHIVE_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// File with the cluster's authorities, in PEM form, where the cluster has TLS [default: the local cluster's]
    #[arg(long, global = true, env = "KVHIVE_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
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
        self.resolve_within(READ_LIMIT, CHANGE_LIMIT)
    }

    /// The same, for a caller who waits no longer than this for one coordinator's answer.
    ///
    /// # Errors
    /// As [`Target::resolve`].
    pub(crate) fn resolve_within(&self, read: Duration, change: Duration) -> Result<Admin> {
        let urls: Vec<String> = match &self.admin {
            Some(urls) => {
                let scheme = if self.ca.is_some() { "https" } else { "http" };
                urls.split(',').map(|url| with_scheme(url.trim().trim_end_matches('/'), scheme)).collect()
            }
            None => {
                let mut urls = local::Running::load(&self.dir)?.admin_urls;
                // Those that it was started with may all have been replaced.
                let later: Vec<String> =
                    local::joined(&self.dir).into_iter().filter(|url| !urls.contains(url)).collect();
                urls.extend(later);
                urls
            }
        };
        let token_file = self.token_file.clone().unwrap_or_else(|| self.dir.join(local::TOKEN_FILE));
        let token = read_token(&token_file)?;
        let token_from = match std::env::var_os("KVHIVE_TOKEN") {
            Some(_) => "the variable KVHIVE_TOKEN".to_owned(),
            None => token_file.display().to_string(),
        };
        let ca = self.ca.clone().or_else(|| trust::local_authority(&self.dir));
        let trusted = ca.map(|file| kvhive_tls::authorities(&file)).transpose()?.unwrap_or_default();
        if trusted.is_empty()
            && let Some(url) = urls.iter().find(|url| url.starts_with(HTTPS))
        {
            bail!(
                "{url} is known by a certificate: give the file of the cluster's authorities by --ca or KVHIVE_CA"
            );
        }
        let admin = Admin::new(urls, token, token_from, &trusted, read, change);
        Ok(Admin { local: self.admin.is_none().then(|| self.dir.clone()), ..admin })
    }
}

fn agent(limit: Duration, trusted: &[CertificateDer<'_>]) -> ureq::Agent {
    let trusted: Vec<_> = trusted.iter().map(|one| Certificate::from_der(one).to_owned()).collect();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&trusted))
        .unversioned_rustls_crypto_provider(kvhive_tls::provider());
    ureq::Agent::config_builder()
        .tls_config(tls.build())
        .timeout_connect(Some(CONNECT_LIMIT.min(limit)))
        .timeout_global(Some(limit))
        .http_status_as_error(false)
        .build()
        .new_agent()
}

fn with_scheme(url: &str, scheme: &str) -> String {
    if url.contains("://") { url.to_owned() } else { format!("{scheme}://{url}") }
}

/// Says why a call failed, where it is TLS that did in the words of both ends.
fn told(error: &ureq::Error) -> String {
    let fault = match error {
        ureq::Error::Io(error) => TlsFault::within(error),
        _ => None,
    };
    fault.map_or_else(|| error.to_string(), |fault| fault.to_string())
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
    /// Who is asked, for messages.
    who: &'static str,
    reads: ureq::Agent,
    changes: ureq::Agent,
    /// How long to wait for a change to be acknowledged that is made; as long as it takes without.
    patience: Option<Duration>,
    /// The local cluster's folder, if it is one.
    local: Option<PathBuf>,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Read,
    Change,
}

impl Admin {
    fn new(
        urls: Vec<String>,
        token: String,
        token_from: String,
        trusted: &[CertificateDer<'_>],
        read: Duration,
        change: Duration,
    ) -> Admin {
        let (reads, changes) = (agent(read, trusted), agent(change, trusted));
        Admin { urls, token, token_from, who: "coordinator", reads, changes, patience: None, local: None }
    }

    /// Waits no longer than this for a change to be acknowledged that is made.
    pub(crate) fn waiting(self, patience: Option<Duration>) -> Admin {
        Admin { patience, ..self }
    }

    /// Asks first whom it would ask after so many others.
    pub(crate) fn beginning_with(mut self, first: usize) -> Admin {
        let count = self.urls.len().max(1);
        self.urls.rotate_left(first % count);
        self
    }

    /// Returns the way to one node, which takes the same token.
    pub(crate) fn of_node(&self, address: &str) -> Admin {
        // A cluster has TLS everywhere or nowhere.
        let is_https = self.urls.iter().any(|url| url.starts_with(HTTPS));
        self.at(with_scheme(address, if is_https { "https" } else { "http" }), "node")
    }

    /// Returns the way to one coordinator.
    pub(crate) fn of_coordinator(&self, address: &str) -> Admin {
        Admin { who: self.who, ..self.of_node(address) }
    }

    /// Returns the way to each coordinator alone.
    pub(crate) fn each(&self) -> Vec<Admin> {
        self.urls.iter().map(|url| self.at(url.clone(), self.who)).collect()
    }

    fn at(&self, url: String, who: &'static str) -> Admin {
        Admin {
            urls: vec![url],
            token: self.token.clone(),
            token_from: self.token_from.clone(),
            who,
            reads: self.reads.clone(),
            changes: self.changes.clone(),
            patience: self.patience,
            local: None,
        }
    }

    /// Remembers where a local cluster's coordinators are by now, by the word of one: all that it was started with may be replaced.
    pub(crate) fn remember_coordinators(&self, group: &Value) {
        let Some(dir) = &self.local else { return };
        let scheme = if self.first_url().starts_with(HTTPS) { "https" } else { "http" };
        let seats = group["coordinators"].as_array().map_or(&[][..], Vec::as_slice);
        let addresses = seats.iter().filter_map(|seat| seat["admin_address"].as_str());
        let urls: Vec<String> = addresses.map(|address| with_scheme(address, scheme)).collect();
        if urls.is_empty() {
            return;
        }
        if let Err(error) = local::have_joined(dir, urls) {
            eprintln!("warning: where the coordinators are now could not be written down: {error:#}");
        }
    }

    /// Does so when one that is known did not answer, and another did.
    fn relearn(&self, url: &str) {
        if self.local.is_none() {
            return;
        }
        let asked =
            self.reads.get(format!("{url}/v1/raft?consistency=stale")).header("authorization", self.bearer());
        let answer = asked.call().ok().filter(|answer| answer.status().is_success());
        let text = answer.and_then(|mut answer| answer.body_mut().read_to_string().ok());
        if let Some(group) = text.and_then(|text| serde_json::from_str::<Value>(&text).ok()) {
            self.remember_coordinators(&group);
        }
    }

    /// Returns the URL that is tried first.
    pub(crate) fn first_url(&self) -> &str {
        self.urls.first().map_or("", String::as_str)
    }

    /// Asks whether the process at the first URL that answers is alive; returns what time it is there, if it says so.
    ///
    /// # Errors
    /// When none answers.
    pub(crate) fn date(&self) -> Result<Option<SystemTime>> {
        let (_, answer) = self.ask_for(Asked::Read, |url| self.reads.get(format!("{url}/healthz")).call())?;
        let date = answer.headers().get("date").and_then(|date| date.to_str().ok());
        Ok(date.and_then(|date| httpdate::parse_http_date(date).ok()))
    }

    /// Gets `path` from the first coordinator that answers.
    ///
    /// # Errors
    /// When none answers, or the answer is an error.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Asked::Read, |url| {
            self.reads.get(format!("{url}{path}")).header("authorization", self.bearer()).call()
        })
    }

    /// Gets the bytes at `path`, at most `limit` of them, from the first coordinator that answers.
    ///
    /// # Errors
    /// When none answers, the answer is an error, or it is larger.
    pub(crate) fn get_bytes(&self, path: &str, limit: usize) -> Result<Vec<u8>> {
        // Many bytes may take as long as a change.
        let (url, mut answer) = self.ask_for(Asked::Read, |url| {
            self.changes.get(format!("{url}{path}")).header("authorization", self.bearer()).call()
        })?;
        let body = answer.body_mut().with_config().limit(limit as u64);
        body.read_to_vec().with_context(|| format!("answer of {url}"))
    }

    /// Gets a list that comes in pages: all that is under `field` of every page, in the first page's answer.
    ///
    /// # Errors
    /// As [`Admin::get`], or when a page is no page.
    pub(crate) fn get_list(&self, path: &str, field: &str) -> Result<Value> {
        let mut whole: Value = self.get(path)?;
        loop {
            // Names in lists are of letters, digits and what a query may have as it is.
            let next = match &whole["next"] {
                Value::String(name) => name.clone(),
                Value::Number(number) => number.to_string(),
                _ => break,
            };
            let mut page: Value = self.get(&format!("{path}?after={next}"))?;
            whole["next"] = page["next"].take();
            let entries = page[field].as_array_mut().map(std::mem::take);
            let all = whole[field].as_array_mut().zip(entries);
            let (all, mut entries) = all.with_context(|| format!("the answer to {path} has no {field}"))?;
            all.append(&mut entries);
        }
        if let Some(fields) = whole.as_object_mut() {
            fields.remove("next");
        }
        Ok(whole)
    }

    /// Posts `body` to `path` of the first coordinator that answers. It happens once, also where one has not answered.
    ///
    /// # Errors
    /// When none answers, or the answer is an error.
    pub(crate) fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        let (text, name) = (body.to_string(), change_name()?);
        self.ask(Asked::Change, |url| {
            self.changes
                .post(format!("{url}{path}"))
                .header("authorization", self.bearer())
                .header(CHANGE_NAME, &name)
                .content_type("application/json")
                .send(&text)
        })
    }

    /// Patches what is at `path`, by the first coordinator that answers. It happens once, also where one has not answered.
    ///
    /// # Errors
    /// When none answers, or the answer is an error.
    pub(crate) fn patch<T: DeserializeOwned>(&self, path: &str, patch: &Value) -> Result<T> {
        let (text, name) = (patch.to_string(), change_name()?);
        self.ask(Asked::Change, |url| {
            self.changes
                .patch(format!("{url}{path}"))
                .header("authorization", self.bearer())
                .header(CHANGE_NAME, &name)
                .content_type("application/merge-patch+json")
                .send(&text)
        })
    }

    /// Deletes what is at `path`, by the first coordinator that answers. It happens once, also where one has not answered.
    ///
    /// # Errors
    /// When none answers, or the answer is an error.
    pub(crate) fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let name = change_name()?;
        self.ask(Asked::Change, |url| {
            self.changes
                .delete(format!("{url}{path}"))
                .header("authorization", self.bearer())
                .header(CHANGE_NAME, &name)
                .call()
        })
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    fn ask<T: DeserializeOwned>(
        &self,
        asked: Asked,
        call: impl Fn(&str) -> Result<Response, ureq::Error>,
    ) -> Result<T> {
        let (url, mut answer) = self.ask_for(asked, call)?;
        let text = answer.body_mut().read_to_string().with_context(|| format!("answer of {url}"))?;
        // Nothing is said where there is nothing to say (204).
        let text = if text.is_empty() { "null" } else { &text };
        serde_json::from_str(text).with_context(|| format!("answer of {url} is not what was asked"))
    }

    /// Returns the first answer that is none of trouble, and whose it is. Where some answer and none can do it now, all are asked again for as
    /// long as an election takes.
    fn ask_for(
        &self,
        asked: Asked,
        call: impl Fn(&str) -> Result<Response, ureq::Error>,
    ) -> Result<(&str, Response)> {
        let (begun, mut wait) = (Instant::now(), Wait::new(self.patience));
        loop {
            let nobody = match self.ask_each(asked, &call, &mut wait)? {
                Ok(answered) => return Ok(answered),
                Err(nobody) => nobody,
            };
            if nobody.refused.is_none() || begun.elapsed() + ELECTION_PAUSE > ELECTION_LIMIT {
                return Err(nobody.told(self.who));
            }
            std::thread::sleep(ELECTION_PAUSE);
        }
    }

    /// Asks one after the other until one answers.
    fn ask_each(
        &self,
        asked: Asked,
        call: impl Fn(&str) -> Result<Response, ureq::Error>,
        wait: &mut Wait,
    ) -> Result<Result<(&str, Response), Nobody>> {
        let mut nobody = Nobody::default();
        let mut urls = self.urls.iter();
        let mut next = urls.next();
        while let Some(url) = next {
            let mut answer = match call(url) {
                Ok(answer) => answer,
                Err(ureq::Error::Timeout(kind))
                    if asked == Asked::Change && kind != ureq::Timeout::Connect =>
                {
                    bail!(
                        "{url} took the change and did not answer in time ({kind}): whether it happened is unknown; look before \
                         you ask for it again"
                    );
                }
                Err(error) => {
                    nobody.failures.push(format!("{url}: {}", told(&error)));
                    next = urls.next();
                    continue;
                }
            };
            let status = answer.status();
            if status.is_success() {
                if !nobody.failures.is_empty() {
                    self.relearn(url);
                }
                return Ok(Ok((url, answer)));
            }
            let text = answer.body_mut().read_to_string().with_context(|| format!("answer of {url}"))?;
            if asked == Asked::Change && wait.goes_on(&text)? {
                // It may take long, and who did not answer meanwhile may answer again.
                (urls, nobody) = (self.urls.iter(), Nobody::default());
                next = urls.next();
                continue;
            }
            let message = serde_json::from_str::<Value>(&text)
                .ok()
                .and_then(|value| value["detail"].as_str().map(str::to_owned))
                .unwrap_or_else(|| format!("that is no answer of a {}'s admin API", self.who));
            if status.as_u16() == 401 {
                let said = format!(
                    "{url} does not accept the token from {}: give the cluster's by --token-file or KVHIVE_TOKEN",
                    self.token_from
                );
                return Err(Refused::new(said, &text).into());
            }
            if status.as_u16() == 403 {
                let said = format!("{url}, by the token from {}: {message}", self.token_from);
                return Err(Refused::new(said, &text).into());
            }
            if is_for_another(status) {
                nobody.failures.push(format!("{url}: {message}"));
                nobody.refused = Some(text);
                next = urls.next();
                continue;
            }
            return Err(Refused::new(format!("{url} answered {status}: {message}"), &text).into());
        }
        Ok(Err(nobody))
    }
}

/// Returns whether another coordinator may answer where one did so: it cannot now, or was removed.
fn is_for_another(status: ureq::http::StatusCode) -> bool {
    use ureq::http::StatusCode;
    [StatusCode::SERVICE_UNAVAILABLE, StatusCode::MISDIRECTED_REQUEST].contains(&status)
}

/// Draws the name of a change.
fn change_name() -> Result<String> {
    let mut name = [0u8; 16];
    getrandom::fill(&mut name).map_err(|error| anyhow::anyhow!("no random bytes: {error}"))?;
    Ok(name.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
#[path = "admin_test.rs"]
mod tests;
