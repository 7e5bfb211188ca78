//! An authority's folder: `authority.pem`, `authority.key`, and a `.pem` and a `.key` for each certificate. Nothing in it is written
//! over, but by [`Folder::rotate`].

use crate::files::TlsError;
use crate::mint::{Authority, MintError};
use crate::tls::TlsFiles;
use kvhive_steps::step;
use rustls::pki_types::DnsName;
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// The authority's own certificate, for everybody, within its folder.
pub(crate) const AUTHORITY: &str = "authority";

/// Why something could not be made in an authority's folder.
#[derive(Debug, Error)]
pub enum FolderError {
    /// There is one already.
    #[error("{} is there already and is not written over; take another folder or name, or remove it yourself", .0.display())]
    Exists(PathBuf),
    /// Two of those to be made would have the same file.
    #[error("two certificates would be {}; allowed is one for each name, with its other names and addresses after commas", .0.display())]
    Twice(PathBuf),
    /// Another process changes it.
    #[error("another process is changing {}; wait until it has ended", .0.display())]
    Busy(PathBuf),
    /// A file cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// No certificate can be valid for this.
    #[error("{0:?} is no host; allowed is a DNS name, also one that begins with `*.`, or an IP address")]
    Host(String),
    /// A certificate could not be made.
    #[error(transparent)]
    Mint(#[from] MintError),
    /// A certificate that is there cannot be understood.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// An authority's folder.
pub struct Folder {
    path: PathBuf,
    authority: Authority,
}

impl Folder {
    /// Looks whether certificates can be made in `path` under these names, each with its hosts, before any of them is. An authority that
    /// is there already is looked for too.
    ///
    /// # Errors
    /// When a host is none, one of the files is there, or two would have the same.
    pub fn check(path: &Path, certificates: &[(&str, &[String])]) -> Result<(), FolderError> {
        let mut taken = BTreeSet::new();
        let named = certificates.iter().map(|(name, _)| *name);
        for file in named.chain([AUTHORITY]).flat_map(|name| files(path, name)) {
            if file.symlink_metadata().is_ok() {
                return Err(FolderError::Exists(file));
            }
            if !taken.insert(file.clone()) {
                return Err(FolderError::Twice(file));
            }
        }
        let mut hosts = certificates.iter().flat_map(|(_, hosts)| hosts.iter());
        hosts.find(|host| !is_host(host)).map_or(Ok(()), |wrong| Err(FolderError::Host(wrong.clone())))
    }

    /// Makes the folder, readable by its owner alone if it is new, and an authority in it that holds for `period`.
    ///
    /// # Errors
    /// When there is an authority already, or the folder cannot be written.
    pub fn create(path: &Path, name: &str, period: Duration) -> Result<Folder, FolderError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| FolderError::Io { what: "make", path: path.to_owned(), source })?;
        let authority = Authority::new(name, period)?;
        let folder = Folder { path: path.to_owned(), authority };
        folder.write(AUTHORITY, folder.authority.certificate(), &folder.authority.key())?;
        Ok(folder)
    }

    /// Opens the folder of an authority that was made before.
    ///
    /// # Errors
    /// When there is none, or its files are not what they should be.
    pub fn open(path: &Path) -> Result<Folder, FolderError> {
        let read = |ending: &str| {
            let file = path.join(format!("{AUTHORITY}.{ending}"));
            std::fs::read_to_string(&file).map_err(|source| FolderError::Io {
                what: "read",
                path: file,
                source,
            })
        };
        let authority = Authority::from_pem(&read("pem")?, &read("key")?)?;
        Ok(Folder { path: path.to_owned(), authority })
    }

    /// Returns the file of the authority's certificate.
    pub fn authorities(&self) -> PathBuf {
        self.path.join(AUTHORITY).with_extension("pem")
    }

    /// Makes a certificate in `NAME.pem` and its key in `NAME.key`, valid for `hosts`; for who dials alone if there are none.
    ///
    /// # Errors
    /// When one of that name is there, a host is none, or the folder cannot be written.
    pub fn issue(&self, name: &str, hosts: &[String], period: Duration) -> Result<TlsFiles, FolderError> {
        if let Some(wrong) = hosts.iter().find(|host| !is_host(host)) {
            return Err(FolderError::Host(wrong.clone()));
        }
        let issued = self.authority.issue(name, hosts, period)?;
        let (certificate, key) = self.write(name, &issued.certificate, &issued.key)?;
        Ok(TlsFiles { certificate, key, authorities: self.authorities(), host: hosts.first().cloned() })
    }

    pub(crate) fn of(path: &Path, authority: Authority) -> Folder {
        Folder { path: path.to_owned(), authority }
    }

    /// Makes a certificate anew in the files that have this name, over what is there. Whoever reads between the two finds half a pair,
    /// and goes on with what it had.
    pub(crate) fn issue_again(
        &self,
        name: &str,
        hosts: &[String],
        period: Duration,
    ) -> Result<TlsFiles, FolderError> {
        let issued = self.authority.issue(hosts.first().map_or(name, String::as_str), hosts, period)?;
        let [certificate, key] = ["pem", "key"].map(|ending| self.path.join(format!("{name}.{ending}")));
        replace(&key, &issued.key, 0o600)?;
        replace(&certificate, &issued.certificate, 0o644)?;
        Ok(TlsFiles { certificate, key, authorities: self.authorities(), host: hosts.first().cloned() })
    }

    fn write(&self, name: &str, certificate: &str, key: &str) -> Result<(PathBuf, PathBuf), FolderError> {
        let files = files(&self.path, name);
        if let Some(there) = files.iter().find(|file| file.symlink_metadata().is_ok()) {
            return Err(FolderError::Exists(there.clone()));
        }
        let [certificate_file, key_file] = files;
        create(&key_file, key, 0o600)?;
        create(&certificate_file, certificate, 0o644)?;
        Ok((certificate_file, key_file))
    }
}

/// Returns where a certificate of this name and its key are.
fn files(path: &Path, name: &str) -> [PathBuf; 2] {
    // Of a host, which has no separators; an asterisk would only trouble a shell.
    let name = name.replace(['*', '/'], "_");
    ["pem", "key"].map(|ending| path.join(format!("{name}.{ending}")))
}

fn is_host(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    text.parse::<IpAddr>().is_ok() || DnsName::try_from(name).is_ok()
}

fn create(path: &Path, text: &str, mode: u32) -> Result<(), FolderError> {
    let written = step("tls: make file");
    let written =
        written.and_then(|()| OpenOptions::new().write(true).create_new(true).mode(mode).open(path));
    let written = written.and_then(|mut file| {
        step("tls: write file")?;
        file.write_all(text.as_bytes())?;
        step("tls: sync file")?;
        file.sync_all()
    });
    written.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => FolderError::Exists(path.to_owned()),
        _ => FolderError::Io { what: "write", path: path.to_owned(), source },
    })
}

/// Writes a file whole in the place of what is there, which keeps its owner, group and mode; a new one has this mode.
pub(crate) fn replace(path: &Path, text: &str, mode: u32) -> Result<(), FolderError> {
    let failed = |what| move |source| FolderError::Io { what, path: path.to_owned(), source };
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    match std::fs::remove_file(&fresh) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(FolderError::Io { what: "remove", path: fresh, source });
        }
        _ => create(&fresh, text, mode)?,
    }
    if let Ok(old) = path.metadata() {
        step("tls: keep owner").map_err(failed("keep the owner of"))?;
        std::os::unix::fs::chown(&fresh, Some(old.uid()), Some(old.gid()))
            .map_err(failed("keep the owner of"))?;
        step("tls: keep mode").map_err(failed("keep the mode of"))?;
        std::fs::set_permissions(&fresh, old.permissions()).map_err(failed("keep the mode of"))?;
    }
    step("tls: name file").map_err(failed("write"))?;
    std::fs::rename(&fresh, path).map_err(failed("write"))?;
    path.parent().map_or(Ok(()), sync)
}

/// Has what was renamed in a folder stay so.
pub(crate) fn sync(folder: &Path) -> Result<(), FolderError> {
    let synced = step("tls: sync name").and_then(|()| File::open(folder)?.sync_all());
    synced.map_err(|source| FolderError::Io { what: "sync", path: folder.to_owned(), source })
}
