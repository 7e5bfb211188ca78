//! Another authority in the place of an authority's folder, in three steps between which files are carried to the hosts: at each, whoever
//! has the files of the step before and whoever has those of this one trust each other.

use crate::files::{self, TlsError};
use crate::folder::{AUTHORITY, Folder, FolderError, replace, sync};
use crate::mint::{Authority, SLACK};
use crate::tls::TlsFiles;
use kvhive_steps::step;
use rustix::fs::{FlockOperation, flock};
use rustls::pki_types::CertificateDer;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// The authority that comes, while it signs for nobody, and the one that goes.
const NEXT: &str = "authority.next";
const LAST: &str = "authority.last";
const END: &str = "-----END CERTIFICATE-----";

/// How far a folder has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// `authority.pem` names both authorities; all certificates are of the old one.
    Trusted,
    /// All certificates are of the new one; both are trusted.
    Issued,
    /// The new one alone is trusted.
    Finished,
}

/// What one step has done.
#[derive(Debug)]
pub struct Rotation {
    /// How far the folder is now.
    pub stage: Stage,
    /// What is trusted now.
    pub authorities: PathBuf,
    /// The certificates that were made anew.
    pub issued: Vec<TlsFiles>,
    /// Certificates in the folder that another authority has signed: they are as they were.
    pub others: Vec<PathBuf>,
}

impl Folder {
    /// Goes the next step to another authority of this name, which holds for `period`. One that was interrupted is gone again.
    ///
    /// # Errors
    /// When there is no authority, or a file cannot be read, understood or written.
    pub fn rotate(path: &Path, name: &str, period: Duration) -> Result<Rotation, FolderError> {
        let steps = Steps { path, trusted: Folder::open(path)?.authorities() };
        let locked = File::open(path).and_then(|folder| {
            flock(&folder, FlockOperation::NonBlockingLockExclusive)?;
            Ok(folder)
        });
        let _locked = match locked {
            Ok(folder) => folder,
            Err(source) if source.kind() == io::ErrorKind::WouldBlock => {
                return Err(FolderError::Busy(path.to_owned()));
            }
            Err(source) => return Err(FolderError::Io { what: "lock", path: path.to_owned(), source }),
        };
        match steps.next()? {
            Next::Make => {
                let next = Authority::new(name, period)?;
                replace(&steps.file(&format!("{NEXT}.key")), &next.key(), 0o600)?;
                replace(&steps.file(&format!("{NEXT}.pem")), next.certificate(), 0o644)?;
                steps.trust()
            }
            Next::Trust => steps.trust(),
            Next::Issue => steps.issue(),
            Next::EndIssue => steps.end_issue(),
            Next::Finish => steps.finish(),
        }
    }

    /// Returns how far the folder will be after the next step.
    ///
    /// # Errors
    /// When there is no authority, or a file cannot be read or understood.
    pub fn next_stage(path: &Path) -> Result<Stage, FolderError> {
        let steps = Steps { path, trusted: Folder::open(path)?.authorities() };
        Ok(match steps.next()? {
            Next::Make | Next::Trust => Stage::Trusted,
            Next::Issue | Next::EndIssue => Stage::Issued,
            Next::Finish => Stage::Finished,
        })
    }
}

/// What is to be done next, by the files that are there.
enum Next {
    Make,
    /// The new one is made, and not yet trusted.
    Trust,
    Issue,
    /// The new one signs, and the step was not told of as done: what it is to say is said now.
    EndIssue,
    Finish,
}

struct Steps<'a> {
    path: &'a Path,
    trusted: PathBuf,
}

impl Steps<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn text(&self, name: &str) -> Result<String, FolderError> {
        let path = self.file(name);
        std::fs::read_to_string(&path).map_err(|source| FolderError::Io { what: "read", path, source })
    }

    fn next(&self) -> Result<Next, FolderError> {
        let there = |name: &str, ending: &str| self.file(&format!("{name}.{ending}")).exists();
        Ok(match (there(NEXT, "key"), there(NEXT, "pem"), there(LAST, "pem")) {
            (true, true, _) if !self.trusts_next()? => Next::Trust,
            (true, true, _) => Next::Issue,
            (false, true, true) => Next::EndIssue,
            (_, _, true) => Next::Finish,
            (..) => Next::Make,
        })
    }

    fn trusts_next(&self) -> Result<bool, FolderError> {
        let next = one(&self.file(&format!("{NEXT}.pem")))?;
        Ok(files::certificates(&self.trusted, "authorities")?.contains(&next))
    }

    /// Writes whom to trust: `first`, and whoever is trusted already but for `without`.
    fn write_trusted(
        &self,
        first: Option<&str>,
        without: Option<&CertificateDer<'_>>,
    ) -> Result<(), FolderError> {
        let trusted = self.text(&format!("{AUTHORITY}.pem"))?;
        let mut kept: Vec<(CertificateDer<'_>, &str)> = Vec::new();
        for text in first.into_iter().chain(trusted.split_inclusive(END)).filter(|text| text.contains(END)) {
            let certificate = files::parse_one(text.as_bytes(), &self.trusted)?;
            let is_there = kept.iter().any(|(other, _)| *other == certificate);
            if !is_there && without != Some(&certificate) {
                kept.push((certificate, text.trim()));
            }
        }
        let text: String = kept.iter().flat_map(|(_, text)| [text, "\n"]).collect();
        replace(&self.trusted, &text, 0o644)
    }

    fn done(&self, stage: Stage) -> Rotation {
        Rotation { stage, authorities: self.trusted.clone(), issued: Vec::new(), others: Vec::new() }
    }

    /// The first step: the new one is trusted beside the old one, which stands first as it signs.
    fn trust(&self) -> Result<Rotation, FolderError> {
        let trusted = self.text(&format!("{AUTHORITY}.pem"))?;
        let next = self.text(&format!("{NEXT}.pem"))?;
        replace(&self.trusted, &format!("{}\n{next}", trusted.trim_end()), 0o644)?;
        Ok(self.done(Stage::Trusted))
    }

    /// The second: all that the old one signed is made anew, and the new one signs from here on.
    fn issue(&self) -> Result<Rotation, FolderError> {
        let last = self.file(&format!("{LAST}.pem"));
        if !last.exists() {
            let trusted = self.text(&format!("{AUTHORITY}.pem"))?;
            let own = trusted.split_inclusive(END).next().unwrap_or_default();
            replace(&last, own, 0o644)?;
        }
        let (next_pem, next_key) = (self.text(&format!("{NEXT}.pem"))?, self.text(&format!("{NEXT}.key"))?);
        let authority = Authority::from_pem(&next_pem, &next_key)?;
        let folder = Folder::of(self.path, authority);
        let old = signer(&one(&last)?, &last)?;
        for file in self.certificates()? {
            let issued = Issued::read(&file)?;
            if issued.by == old {
                let name = file.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
                folder.issue_again(name, &issued.hosts, issued.period)?;
            }
        }
        self.write_trusted(Some(&next_pem), None)?;
        let (from, to) = (self.file(&format!("{NEXT}.key")), self.file(&format!("{AUTHORITY}.key")));
        let renamed = step("tls: move key").and_then(|()| std::fs::rename(from, to));
        renamed.map_err(|source| FolderError::Io {
            what: "rename",
            path: self.file(&format!("{NEXT}.key")),
            source,
        })?;
        sync(self.path)?;
        self.end_issue()
    }

    /// Says what is of the new one now, which signs by itself.
    fn end_issue(&self) -> Result<Rotation, FolderError> {
        let next = self.file(&format!("{NEXT}.pem"));
        let new = signer(&one(&next)?, &next)?;
        let mut rotation = self.done(Stage::Issued);
        for file in self.certificates()? {
            let issued = Issued::read(&file)?;
            if issued.by == new {
                let key = file.with_extension("key");
                let host = issued.hosts.into_iter().next();
                rotation.issued.push(TlsFiles {
                    certificate: file,
                    key,
                    authorities: self.trusted.clone(),
                    host,
                });
            } else {
                rotation.others.push(file);
            }
        }
        self.remove(&format!("{NEXT}.pem"))?;
        Ok(rotation)
    }

    /// The last: nobody trusts the old one any more.
    fn finish(&self) -> Result<Rotation, FolderError> {
        let last = format!("{LAST}.pem");
        self.write_trusted(None, Some(&one(&self.file(&last))?))?;
        self.remove(&format!("{NEXT}.pem"))?;
        self.remove(&last)?;
        Ok(self.done(Stage::Finished))
    }

    fn remove(&self, name: &str) -> Result<(), FolderError> {
        match step("tls: remove file").and_then(|()| std::fs::remove_file(self.file(name))) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(FolderError::Io { what: "remove", path: self.file(name), source })
            }
            _ => Ok(()),
        }
    }

    /// The certificates of the folder that have their keys beside them, in the order of their names.
    fn certificates(&self) -> Result<Vec<PathBuf>, FolderError> {
        let list = || -> io::Result<Vec<PathBuf>> {
            std::fs::read_dir(self.path)?.map(|entry| Ok(entry?.path())).collect()
        };
        let listed =
            list().map_err(|source| FolderError::Io { what: "list", path: self.path.to_owned(), source })?;
        let is_issued = |file: &PathBuf| {
            let stem = file.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            file.extension().is_some_and(|ending| ending == "pem")
                && ![AUTHORITY, NEXT, LAST].contains(&stem)
                && file.with_extension("key").is_file()
        };
        let mut files: Vec<PathBuf> = listed.into_iter().filter(is_issued).collect();
        files.sort();
        Ok(files)
    }
}

/// What stands in a certificate that is made anew.
struct Issued {
    /// Who has signed it: the identifier of that one's key.
    by: Vec<u8>,
    hosts: Vec<String>,
    period: Duration,
}

impl Issued {
    fn read(path: &Path) -> Result<Issued, FolderError> {
        let der = one(path)?;
        let parsed = parse(&der, path)?;
        let by = parsed.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(by) => by.key_identifier.as_ref().map(|by| by.0.to_vec()),
            _ => None,
        });
        let names = parsed.subject_alternative_name().ok().flatten();
        let hosts =
            names.map_or(&[][..], |names| &names.value.general_names).iter().filter_map(host).collect();
        let validity = parsed.validity();
        let seconds = validity.not_after.timestamp().saturating_sub(validity.not_before.timestamp());
        let period = Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).saturating_sub(SLACK);
        Ok(Issued { by: by.unwrap_or_default(), hosts, period })
    }
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(|bytes| IpAddr::from(Ipv4Addr::from(bytes)));
            let address =
                four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(|bytes| Ipv6Addr::from(bytes).into()));
            address.ok().map(|address: IpAddr| address.to_string())
        }
        _ => None,
    }
}

/// The first certificate of a file.
fn one(path: &Path) -> Result<CertificateDer<'static>, TlsError> {
    let found = files::certificates(path, "certificate")?;
    found.into_iter().next().ok_or_else(|| files::malformed(path, "certificate", "there is none in it"))
}

fn parse<'a>(der: &'a CertificateDer<'_>, path: &Path) -> Result<X509Certificate<'a>, TlsError> {
    let parsed = X509Certificate::from_der(der);
    parsed
        .map(|(_, parsed)| parsed)
        .map_err(|error| files::malformed(path, "certificate", &error.to_string()))
}

/// The identifier of an authority's key, as those that it signed give it.
fn signer(der: &CertificateDer<'_>, path: &Path) -> Result<Vec<u8>, TlsError> {
    let parsed = parse(der, path)?;
    let own = parsed.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(own) => Some(own.0.to_vec()),
        _ => None,
    });
    own.ok_or_else(|| files::malformed(path, "certificate", "it does not say which key it is of"))
}
