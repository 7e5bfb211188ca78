//! Which authorities the command line trusts, and what it shows of itself: as options say, else as the local cluster has it.

use anyhow::Result;
use clap::Args;
use kvhive_tls::{Folder, Tls, TlsFiles};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A local cluster's certificates within its folder. Its cluster file names them so too.
pub(crate) const FOLDER: &str = "tls";
const AUTHORITY: &str = "authority.pem";
const MEMBER: &str = "member";
/// The name of the certificate that only connects.
pub(crate) const CLIENT: &str = "client";
/// How long an authority holds.
pub(crate) const AUTHORITY_PERIOD: Duration = Duration::from_secs(3650 * 86_400);
/// How long a certificate holds, if nothing is said, in days.
pub(crate) const DAYS: u64 = 365;

/// What a command shows that uses the data plane of a cluster with TLS.
#[derive(Args, Clone, Debug)]
pub(crate) struct Credentials {
    /// File with the cluster's authorities, in PEM form, where the cluster has TLS [default: the local cluster's]
    #[arg(long, env = "KVHIVE_CA", value_name = "FILE", requires_all = ["cert", "key"])]
    ca: Option<PathBuf>,
    /// File with a certificate that one of them signed [default: the local cluster's]
    #[arg(long, env = "KVHIVE_CERT", value_name = "FILE", requires_all = ["ca", "key"])]
    cert: Option<PathBuf>,
    /// File with the certificate's private key [default: the local cluster's]
    #[arg(long, env = "KVHIVE_KEY", value_name = "FILE", requires_all = ["ca", "cert"])]
    key: Option<PathBuf>,
}

impl Credentials {
    /// Takes three files; where one is lacking, none is used.
    pub(crate) fn new(ca: Option<PathBuf>, cert: Option<PathBuf>, key: Option<PathBuf>) -> Credentials {
        Credentials { ca, cert, key }
    }

    /// Reads what was given, or what the local cluster in `dir` has if that is the one that is meant.
    ///
    /// # Errors
    /// When the files cannot be used.
    pub(crate) fn load(&self, local: Option<&Path>) -> Result<Option<Tls>> {
        let files = match (&self.ca, &self.cert, &self.key) {
            (Some(authorities), Some(certificate), Some(key)) => TlsFiles {
                certificate: certificate.clone(),
                key: key.clone(),
                authorities: authorities.clone(),
                host: None,
            },
            _ => match local {
                Some(dir) => return of_local(dir),
                None => return Ok(None),
            },
        };
        Ok(Some(Tls::load(files)?))
    }
}

/// Returns the file of the authority of the local cluster in `dir`, if it has one.
pub(crate) fn local_authority(dir: &Path) -> Option<PathBuf> {
    Some(dir.join(FOLDER).join(AUTHORITY)).filter(|file| file.is_file())
}

/// Reads what a client of the local cluster in `dir` shows, if that one has TLS.
///
/// # Errors
/// When its files cannot be used.
pub(crate) fn of_local(dir: &Path) -> Result<Option<Tls>> {
    let Some(authorities) = local_authority(dir) else { return Ok(None) };
    let own = |ending| dir.join(FOLDER).join(CLIENT).with_extension(ending);
    Ok(Some(Tls::load(TlsFiles { certificate: own("pem"), key: own("key"), authorities, host: None })?))
}

/// Makes an authority of its own for the local cluster in `dir`, one certificate for all its processes, and one for clients.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn make_local(dir: &Path) -> Result<()> {
    let folder = Folder::create(&dir.join(FOLDER), "kvhive local authority", AUTHORITY_PERIOD)?;
    let hosts = ["127.0.0.1", "localhost"].map(str::to_owned);
    folder.issue(MEMBER, &hosts, AUTHORITY_PERIOD)?;
    folder.issue(CLIENT, &[], AUTHORITY_PERIOD)?;
    Ok(())
}
