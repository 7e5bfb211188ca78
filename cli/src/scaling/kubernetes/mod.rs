//! A StatefulSet of nodes, scaled through the Kubernetes API. What may be done is decided in `decide`, what the API is asked stands in
//! `api`, what may go wrong in `fault`; nothing here knows how a node is emptied.

mod api;
mod decide;
mod fault;

use super::{Executor, Member, Plan};
use anyhow::{Context, Result};
use api::Api;
use decide::StatefulSet;
pub(crate) use decide::Unfit;
use std::fmt;
use std::str::FromStr;

/// Which StatefulSet is meant: `NAMESPACE/NAME`, or `NAME` in the namespace of the service account or of the kubeconfig's context.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SetName {
    namespace: Option<String>,
    name: String,
}

impl FromStr for SetName {
    type Err = String;

    fn from_str(text: &str) -> Result<SetName, String> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        if let Some(wrong) = namespace.into_iter().chain([name]).find(|part| !is_label(part)) {
            return Err(format!(
                "'{wrong}' is no name in Kubernetes: at most 63 of a-z, 0-9 and '-', as in kvhive/kvhive-node"
            ));
        }
        Ok(SetName { namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }
}

/// Whether Kubernetes takes it for the name of a namespace, or of a set whose pods have host names (RFC 1123).
fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| plain(byte) || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// The nodes of one StatefulSet. Its runtime runs only while the API is asked.
pub(crate) struct Kubernetes {
    runtime: tokio::runtime::Runtime,
    api: Api,
}

impl Kubernetes {
    /// Finds the API by the kubeconfig (`KUBECONFIG`, `~/.kube/config`), or by the pod's service account. Asks it nothing yet.
    ///
    /// # Errors
    /// When neither says where it is.
    pub(crate) fn connect(set: &SetName) -> Result<Kubernetes> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("no runtime for the Kubernetes client")?;
        let api = runtime.block_on(Api::connect(set.namespace.as_deref(), &set.name))?;
        Ok(Kubernetes { runtime, api })
    }
}

impl fmt::Display for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StatefulSet {} on Kubernetes", self.api.set())
    }
}

impl Executor for Kubernetes {
    fn plan(&mut self, members: &[Member], size: usize, floor: usize) -> Result<Plan> {
        let set: StatefulSet = self.runtime.block_on(self.api.read())?;
        Ok(set.plan(members, size, floor)?)
    }

    fn check(&mut self, plan: &Plan) -> Result<()> {
        match plan.replicas {
            Some(replicas) => Ok(self.runtime.block_on(self.api.try_scale(replicas))?),
            None => Ok(()),
        }
    }

    fn scale(&mut self, plan: &Plan) -> Result<()> {
        match plan.replicas {
            Some(replicas) => Ok(self.runtime.block_on(self.api.scale(replicas))?),
            None => Ok(()),
        }
    }

    fn would(&self, plan: &Plan) -> Vec<String> {
        let told = |replicas: super::Replicas| {
            format!(
                "set replicas of StatefulSet {} from {} to {}",
                self.api.set(),
                replicas.from,
                replicas.to
            )
        };
        let ends = plan.leave.iter().chain(&plan.gone).map(|name| format!("Kubernetes ends {name}"));
        let starts = plan.start.iter().map(|name| format!("Kubernetes starts {name}"));
        let changes = plan.replicas.filter(|replicas| replicas.from != replicas.to).map(told);
        changes.into_iter().chain(ends).chain(starts).collect()
    }

    fn hint(&self) -> Option<String> {
        Some(self.api.hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_named_with_its_namespace_or_without() {
        let named = |namespace: Option<&str>| SetName {
            namespace: namespace.map(str::to_owned),
            name: "kvhive-node".to_owned(),
        };
        assert_eq!("kvhive/kvhive-node".parse(), Ok(named(Some("kvhive"))));
        assert_eq!("kvhive-node".parse(), Ok(named(None)));
        let long = "a".repeat(64);
        for wrong in ["", "/", "a/", "/a", "a/b/c", "A", "a_b", "-a", "a-", "a b", "../a", "a%2fb", &long] {
            let said = wrong.parse::<SetName>().expect_err(wrong);
            assert!(said.contains("is no name in Kubernetes"), "{said}");
        }
    }
}
