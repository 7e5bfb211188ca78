//! The port that engines dial: whether each coordinator's control plane takes a client from here, with its token and certificate.

use super::cluster::{CLUSTER, LIMIT, millis, reach};
use super::finding::Finding;
use crate::admin::{Target, read_token};
use crate::cluster::local;
use crate::commands;
use crate::trust::Credentials;
use clap::Args;
use kvhive_client::{Client, ClientConfig, Coordinators, FrameRoom};
use kvhive_protocol::WireError;
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_wire::{Fault, Identity};
use std::path::PathBuf;
use std::time::Instant;
use tokio::runtime::Runtime;

/// What the engines of a host are told of the cluster, beside what commands are.
#[derive(Args, Debug)]
pub(super) struct Dialled {
    /// Control-plane addresses (HOST:PORT) that engines are given, separated by commas; those that the cluster says itself are tried too
    #[arg(long, env = "KVHIVE_COORDINATORS", value_name = "ADDRESSES")]
    coordinators: Option<String>,
    /// File with the certificate that engines show, where the cluster has TLS [default: the local cluster's]
    #[arg(long, env = "KVHIVE_CERT", value_name = "FILE", requires_all = ["ca", "key"])]
    cert: Option<PathBuf>,
    /// File with that certificate's private key [default: the local cluster's]
    #[arg(long, env = "KVHIVE_KEY", value_name = "FILE", requires_all = ["ca", "cert"])]
    key: Option<PathBuf>,
}

impl Dialled {
    /// Returns the addresses that were named.
    pub(super) fn named(&self) -> Vec<String> {
        let list = self.coordinators.as_deref().unwrap_or_default().split(',').map(str::trim);
        list.filter(|address| !address.is_empty()).map(str::to_owned).collect()
    }

    /// Dials each address as a client does.
    pub(super) fn look(&self, target: &Target, addresses: &[String]) -> Vec<Finding> {
        if addresses.is_empty() {
            let advice = "no coordinator says which ports engines dial: name those by --coordinators";
            return vec![Finding::warns(CLUSTER, "control ports", "not tried", advice)];
        }
        let is_local = target.admin.is_none() && self.coordinators.is_none();
        let credentials = Credentials::new(target.ca.clone(), self.cert.clone(), self.key.clone());
        let (tls, runtime) =
            match (credentials.load(is_local.then_some(target.dir.as_path())), commands::runtime()) {
                (Ok(tls), Ok(runtime)) => (tls, runtime),
                (Err(error), _) | (_, Err(error)) => {
                    let advice =
                        "engines show a certificate of the cluster's authorities: see --ca, --cert and --key";
                    return vec![Finding::fails(CLUSTER, "control ports", format!("{error:#}"), advice)];
                }
            };
        let file = target.token_file.clone().unwrap_or_else(|| target.dir.join(local::TOKEN_FILE));
        let Ok(token) = read_token(&file) else {
            return addresses.iter().map(|address| knock(address)).collect();
        };
        let identity = Identity {
            token: TokenKey::new(token.as_bytes()),
            role: Role::Client,
            sender: 0,
            cluster: None,
            tls,
            levels: Default::default(),
        };
        addresses.iter().map(|address| dial(&runtime, address, &identity)).collect()
    }

    /// Asks nodes, as a client, how large their frames are; none where no client gets there, which is said elsewhere.
    pub(super) fn frame_room(&self, target: &Target) -> Option<FrameRoom> {
        let mut coordinators = self.named();
        let is_local = target.admin.is_none() && coordinators.is_empty();
        if is_local {
            coordinators = local::Running::load(&target.dir).ok()?.coordinators;
        }
        if coordinators.is_empty() {
            return None;
        }
        let credentials = Credentials::new(target.ca.clone(), self.cert.clone(), self.key.clone());
        let tls = credentials.load(is_local.then_some(target.dir.as_path())).ok()?;
        let file = target.token_file.clone().unwrap_or_else(|| target.dir.join(local::TOKEN_FILE));
        let token = read_token(&file).ok()?.into_bytes();
        let config = ClientConfig { tls, request_timeout: LIMIT, ..ClientConfig::new(coordinators, token) };
        let asked = async { Client::connect(config).await.ok()?.frame_room().await.ok()? };
        commands::runtime().ok()?.block_on(asked)
    }
}

fn named(address: &str) -> String {
    format!("control port {address}")
}

/// Connects and says nothing, for want of a token.
fn knock(address: &str) -> Finding {
    match reach(address) {
        Ok(took) => Finding::warns(
            CLUSTER,
            named(address),
            format!("takes connections in {}", millis(took)),
            "whether engines are served there is not known: give their token by --token-file",
        ),
        Err(error) => Finding::fails(CLUSTER, named(address), error.to_string(), advice(None)),
    }
}

/// Shakes hands as a client, and asks what any client may ask.
fn dial(runtime: &Runtime, address: &str, identity: &Identity) -> Finding {
    let begun = Instant::now();
    let answer = match Coordinators::new(vec![address.to_owned()], identity.clone()) {
        Ok(coordinators) => runtime.block_on(coordinators.status(LIMIT)).pop().map(|(_, answer)| answer),
        Err(error) => return Finding::fails(CLUSTER, named(address), error.to_string(), advice(None)),
    };
    match answer.unwrap_or(Err(Fault::Closed)) {
        Ok(_) => {
            Finding::holds(CLUSTER, named(address), format!("serves clients in {}", millis(begun.elapsed())))
        }
        Err(fault) => judge(address, &fault, identity.tls.is_some()),
    }
}

fn judge(address: &str, fault: &Fault, has_certificate: bool) -> Finding {
    if matches!(fault, Fault::Refused(WireError::TlsRequired)) && !has_certificate {
        return Finding::warns(
            CLUSTER,
            named(address),
            "is reached; the cluster has TLS",
            "show a certificate as engines do, to see that it is taken: --ca, --cert and --key",
        );
    }
    Finding::fails(CLUSTER, named(address), fault.to_string(), advice(Some(fault)))
}

fn advice(fault: Option<&Fault>) -> &'static str {
    match fault {
        Some(Fault::Impostor | Fault::Refused(WireError::Unauthorized)) => {
            "give engines, and --token-file here, the token of the cluster's token file"
        }
        Some(Fault::Tls(_)) => {
            "engines show a certificate of the cluster's authorities and trust those: see --ca, --cert and --key"
        }
        Some(Fault::Refused(_)) => {
            "see that the address is of this cluster, and that both are of one version"
        }
        _ => {
            "engines dial it: see that it is the control port (7801 in the documented setup, and not the admin API's), \
             that it is reachable from here, and that no firewall is between"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[test]
    fn who_cannot_show_a_certificate_is_not_told_that_the_port_fails() {
        let tls = Fault::Refused(WireError::TlsRequired);
        assert_eq!(judge("it", &tls, false).state, State::Warns);
        let closed = judge("it", &Fault::Closed, false);
        assert!(closed.advice.is_some_and(|advice| advice.contains("7801")));
        let token = judge("it", &Fault::Refused(WireError::Unauthorized), true);
        assert!(
            token.state == State::Fails && token.advice.is_some_and(|advice| advice.contains("--token-file"))
        );
    }

    #[test]
    fn a_port_is_knocked_at_where_there_is_no_token() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it listens").to_string();
        assert_eq!(knock(&address).state, State::Warns);
        drop(listener);
        assert_eq!(knock(&address).state, State::Fails);
    }
}
