//! What may go wrong between the autoscaler and the Kubernetes API, and what to do about each.

use std::error::Error;
use std::time::Duration;

/// What the API is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asked {
    /// The set itself.
    Set,
    /// How many pods it is to have.
    Scale,
    /// Another number of them.
    Change,
}

impl Asked {
    /// Returns the verb and the resource as a Role names them.
    fn rule(self) -> (&'static str, &'static str) {
        match self {
            Asked::Set => ("get", "statefulsets"),
            Asked::Scale => ("get", "statefulsets/scale"),
            Asked::Change => ("patch", "statefulsets/scale"),
        }
    }
}

/// Why the API did not do what was asked.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Nothing says where the API is.
    #[error(
        "neither a kubeconfig nor a pod's service account says where Kubernetes is ({why}): set KUBECONFIG, or mount the service account's token"
    )]
    Nowhere { why: String },
    /// It cannot be reached, or talks another language.
    #[error("the Kubernetes API cannot be asked to {verb} {resource} of {set}: {why}")]
    Unreachable { verb: &'static str, resource: &'static str, set: String, why: String },
    /// It does not answer.
    #[error(
        "the Kubernetes API has not answered within {limit:?} when asked to {verb} {resource} of {set}: whether it did is not known; the same command goes on from there"
    )]
    Silent { verb: &'static str, resource: &'static str, set: String, limit: Duration },
    /// It does not know who asks (401).
    #[error(
        "the Kubernetes API does not know who asks ({said}): renew the kubeconfig's credentials, or the service account's token"
    )]
    Unknown { said: String },
    /// It knows, and forbids it (403).
    #[error(
        "the Kubernetes API forbids to {verb} {resource} of {set} ({said}): the Role needs the verb {verb} on {resource} of the group apps, as in cluster-configs/kubernetes/components/autoscaler"
    )]
    Forbidden { verb: &'static str, resource: &'static str, set: String, said: String },
    /// There is no such set (404).
    #[error(
        "there is no StatefulSet {set} on this Kubernetes: name it as NAMESPACE/STATEFULSET, as `kubectl get statefulsets -A` lists it"
    )]
    NoSet { set: String },
    /// Somebody wrote between reading and writing (409).
    #[error(
        "StatefulSet {set} was changed by others {tries} times while its replicas were to be: look for who does, and run it again"
    )]
    Contended { set: String, tries: u32 },
    /// Somebody gave it another size meanwhile.
    #[error(
        "replicas of StatefulSet {set} were {was} when it was decided who leaves, and are {is}: somebody else scales it too; nothing was changed, run it again"
    )]
    Rescaled { set: String, was: u32, is: u32 },
    /// It did something else.
    #[error("StatefulSet {set} was to have {wanted} replicas and got {got}: an admission webhook changes it")]
    Altered { set: String, wanted: u32, got: u32 },
    /// What it tells makes no sense.
    #[error("StatefulSet {set} has {what} of {value}, which is not from 0 to {most}")]
    OutOfRange { set: String, what: &'static str, value: i32, most: u32 },
    /// It refuses for another reason.
    #[error("the Kubernetes API refuses to {verb} {resource} of {set}: {said} ({code})")]
    Refused { verb: &'static str, resource: &'static str, set: String, code: u16, said: String },
}

impl Fault {
    /// Tells what an answer of the client to this request means.
    pub(super) fn of(error: kube::Error, asked: Asked, set: &str) -> Fault {
        let (verb, resource) = asked.rule();
        let set = set.to_owned();
        let status = match error {
            kube::Error::Api(status) => status,
            error => {
                let why = told(&error);
                return Fault::Unreachable { verb, resource, set, why };
            }
        };
        let said = bounded(&status.message);
        match status.code {
            401 => Fault::Unknown { said },
            403 => Fault::Forbidden { verb, resource, set, said },
            404 => Fault::NoSet { set },
            409 if asked == Asked::Change => Fault::Contended { set, tries: 1 },
            code => Fault::Refused { verb, resource, set, code, said },
        }
    }

    /// Tells that no answer came.
    pub(super) fn silent(asked: Asked, set: &str, limit: Duration) -> Fault {
        let (verb, resource) = asked.rule();
        Fault::Silent { verb, resource, set: set.to_owned(), limit }
    }
}

/// Returns an error and what caused it, each once.
pub(super) fn told(error: &dyn Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        cause = error.source();
    }
    bounded(&told)
}

/// What others say is shown, but not without end.
fn bounded(text: &str) -> String {
    const MOST: usize = 500;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    text.chars().take(MOST).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    const SET: &str = "kvhive/kvhive-node";

    fn fault(code: u16, asked: Asked) -> Fault {
        let status = Status::failure("so it is", "Reason").with_code(code);
        Fault::of(kube::Error::Api(status.boxed()), asked, SET)
    }

    #[test]
    fn each_answer_is_what_may_be_done_about_it() {
        let (set, said) = (|| SET.to_owned(), || "so it is".to_owned());
        let forbidden = |verb, resource| Fault::Forbidden { verb, resource, set: set(), said: said() };
        for (code, asked, wanted) in [
            (401, Asked::Set, Fault::Unknown { said: said() }),
            (403, Asked::Set, forbidden("get", "statefulsets")),
            (403, Asked::Scale, forbidden("get", "statefulsets/scale")),
            (403, Asked::Change, forbidden("patch", "statefulsets/scale")),
            (404, Asked::Scale, Fault::NoSet { set: set() }),
            (409, Asked::Change, Fault::Contended { set: set(), tries: 1 }),
            (
                422,
                Asked::Change,
                Fault::Refused {
                    verb: "patch",
                    resource: "statefulsets/scale",
                    set: set(),
                    code: 422,
                    said: said(),
                },
            ),
        ] {
            assert_eq!(fault(code, asked), wanted);
        }
    }

    #[test]
    fn what_is_forbidden_is_named_as_a_role_names_it() {
        let said = fault(403, Asked::Change).to_string();
        assert!(said.contains("the verb patch on statefulsets/scale of the group apps"), "{said}");
    }

    #[test]
    fn a_long_message_is_cut() {
        assert_eq!(bounded(&"é".repeat(2000)).chars().count(), 503);
    }
}
