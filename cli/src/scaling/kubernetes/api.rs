//! The Kubernetes API: reads one StatefulSet and changes how many pods it has, by its `scale` subresource alone. Every request ends in
//! time, and no change is made to what has changed since it was decided on.

use super::decide;
use super::fault::{Asked, Fault, told};
use crate::scaling::Replicas;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::autoscaling::v1::Scale;
use kube::api::{Patch, PatchParams};
use kube::{Client, Config};
use serde_json::json;
use std::time::Duration;

/// How long the API may take to answer, tries of the client's own after a 429 or 503 included.
const LIMIT: Duration = Duration::from_secs(20);
/// How often a change is tried anew when somebody else wrote meanwhile. A set's status is written whenever a pod's changes.
const TRIES: u32 = 8;
/// How long to let the others write.
const PAUSE: Duration = Duration::from_millis(100);
/// The most pods that a set may have, as many as members of a cluster; ordinals begin below it.
const MAX_PODS: u32 = 1024;
/// Who changed it, as the API server writes it down.
const MANAGER: &str = "kvhive-scale";

/// One StatefulSet at the API.
pub(super) struct Api {
    sets: kube::Api<StatefulSet>,
    namespace: String,
    name: String,
}

impl Api {
    /// Makes a client of what the kubeconfig or the service account says.
    ///
    /// # Errors
    /// When neither says anything usable.
    pub(super) async fn connect(namespace: Option<&str>, name: &str) -> Result<Api, Fault> {
        let nowhere = |why| Fault::Nowhere { why };
        let mut config = Config::infer().await.map_err(|error| nowhere(told(&error)))?;
        config.connect_timeout = Some(LIMIT);
        let namespace = namespace.map_or_else(|| config.default_namespace.clone(), str::to_owned);
        let client = Client::try_from(config).map_err(|error| nowhere(told(&error)))?;
        let sets = kube::Api::namespaced(client, &namespace);
        Ok(Api { sets, namespace, name: name.to_owned() })
    }

    /// Returns the set's namespace and name.
    pub(super) fn set(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Says where to look when pods do not come or go.
    pub(super) fn hint(&self) -> String {
        format!(
            "`kubectl -n {namespace} get pods` and `kubectl -n {namespace} describe statefulset/{}` say why",
            self.name,
            namespace = self.namespace,
        )
    }

    /// Reads the set.
    ///
    /// # Errors
    /// When the API does not give it, or it makes no sense.
    pub(super) async fn read(&self) -> Result<decide::StatefulSet, Fault> {
        let set = self.ask(Asked::Set, self.sets.get(&self.name)).await?;
        let spec = set.spec.unwrap_or_default();
        Ok(decide::StatefulSet {
            name: self.name.clone(),
            // What is left out is 1, and 0.
            replicas: self.within("replicas", spec.replicas.unwrap_or(1))?,
            first: self
                .within("ordinals.start", spec.ordinals.and_then(|ordinals| ordinals.start).unwrap_or(0))?,
        })
    }

    /// Asks whether [`Api::scale`] would be allowed, and changes nothing.
    ///
    /// # Errors
    /// When it would not.
    pub(super) async fn try_scale(&self, replicas: Replicas) -> Result<(), Fault> {
        self.change(replicas, true).await
    }

    /// Gives the set another number of pods, if it still has the number that was decided on.
    ///
    /// # Errors
    /// When the API does not do so, or somebody else scaled the set meanwhile.
    pub(super) async fn scale(&self, replicas: Replicas) -> Result<(), Fault> {
        self.change(replicas, false).await
    }

    async fn change(&self, replicas: Replicas, dry_run: bool) -> Result<(), Fault> {
        let Replicas { from, to } = replicas;
        let params =
            PatchParams { dry_run, field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        for _ in 0..TRIES {
            let scale = self.ask(Asked::Scale, self.sets.get_scale(&self.name)).await?;
            let is = self.pods(&scale)?;
            if is == to {
                // An answer that was lost, or two that follow the same size.
                return Ok(());
            }
            if is != from {
                return Err(Fault::Rescaled { set: self.set(), was: from, is });
            }
            // With its version, so that it is not written over what was not seen.
            let version = scale.metadata.resource_version;
            let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"replicas": to}});
            let patch = Patch::Merge(&patch);
            match self.ask(Asked::Change, self.sets.patch_scale(&self.name, &params, &patch)).await {
                Ok(scale) => {
                    let got = self.pods(&scale)?;
                    return if got == to {
                        Ok(())
                    } else {
                        Err(Fault::Altered { set: self.set(), wanted: to, got })
                    };
                }
                Err(Fault::Contended { .. }) => tokio::time::sleep(PAUSE).await,
                Err(fault) => return Err(fault),
            }
        }
        Err(Fault::Contended { set: self.set(), tries: TRIES })
    }

    /// Returns how many pods a scale asks for; none are left out of the answer.
    fn pods(&self, scale: &Scale) -> Result<u32, Fault> {
        self.within("replicas", scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0))
    }

    fn within(&self, what: &'static str, value: i32) -> Result<u32, Fault> {
        let allowed = u32::try_from(value).ok().filter(|value| *value <= MAX_PODS);
        allowed.ok_or_else(|| Fault::OutOfRange { set: self.set(), what, value, most: MAX_PODS })
    }

    async fn ask<T>(&self, asked: Asked, answer: impl Future<Output = kube::Result<T>>) -> Result<T, Fault> {
        match tokio::time::timeout(LIMIT, answer).await {
            Ok(answer) => answer.map_err(|error| Fault::of(error, asked, &self.set())),
            Err(_) => Err(Fault::silent(asked, &self.set(), LIMIT)),
        }
    }
}
