//! `[tls]`: where certificates are. There is no half of it: a file that has the table gives all three.

use crate::keys::{Absent, Key, Rule};
use crate::ledger::Ledger;
use crate::parse;
use crate::section::Section;

/// Where a process's certificate, its key and the cluster's authorities are; relative paths start at the cluster file's folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsPaths {
    /// Its certificate, in PEM form.
    pub certificate: String,
    /// The certificate's key.
    pub key: String,
    /// The authorities that sign for the cluster.
    pub authorities: String,
}

/// `[tls]`.
pub(crate) const TLS: &[Key] = &[
    Key {
        name: "certificate",
        rule: Rule::Path,
        absent: Absent::Required,
        meaning: "File with the process's certificate, and what stands between it and the authority, in PEM form: valid for its `host`, for \
                  servers and clients alike. The same path may be another file on each host; for one process alone the variable says it. It and \
                  the next two are read again when they change. A relative path starts at this file's folder.",
    },
    Key {
        name: "key",
        rule: Rule::Path,
        absent: Absent::Required,
        meaning: "File with the certificate's private key, in PEM form.",
    },
    Key {
        name: "authorities",
        rule: Rule::Path,
        absent: Absent::Required,
        meaning: "File with the certificates of those who sign for the cluster, in PEM form. Whoever connects to a process must show a \
                  certificate of one of them; put the next one here before the last one goes.",
    },
];

impl TlsPaths {
    pub(crate) fn read(section: &Section<'_>, ledger: &mut Ledger) -> TlsPaths {
        let mut path = |name| section.read(ledger, name, parse::path).unwrap_or_default();
        TlsPaths { certificate: path("certificate"), key: path("key"), authorities: path("authorities") }
    }
}
