//! `kvhive backup` and `kvhive restore`: the coordinators' state as a file, and a cluster that begins again from one.

use super::config;
use crate::admin::Target;
use crate::cluster::place;
use crate::report;
use anyhow::{Context, Result, bail};
use clap::Args;
use kvhive_coordinator::{Backup as Taken, BackupHead, Cleared, MAX_BACKUP_BYTES};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// Write all that the coordinators remember into a file: tenants and their secrets, nodes, slots, events; no blocks
///
/// It is as new as any change that was acknowledged before. Needs the cluster's own token. The file is complete or not there, and
/// readable by its owner alone: whoever has it has the tenants' secrets.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kvhive backup /backups/kvhive-$(date +%F).backup
  kvhive --admin http://10.0.0.1:7800 --token-file token backup kvhive.backup --json")]
pub(crate) struct Backup {
    #[command(flatten)]
    target: Target,
    /// Where it goes; refused where there is a file already, unless --force is said
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace a file that is there already, when the new one is whole
    #[arg(long)]
    force: bool,
    /// Print what it holds as JSON
    #[arg(long)]
    json: bool,
}

/// Begin a cluster again from a backup, after every coordinator's log is lost; nothing may run meanwhile but nodes
///
/// Writes logs into empty data folders. Without --id all coordinators of the file must be on this machine, and each is given one.
/// With --id that one alone begins; the others start with empty folders, follow it, and get their votes by `kvhive raft promote`.
/// The cluster keeps its identity: nodes that kept running go on with what they hold, others register anew. Changes made after the
/// backup are forgotten: name with --cleared every tenant that was cleared since, or its ended blocks could be served again.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kvhive restore kvhive.backup --config cluster.toml --id coord-1
  kvhive restore kvhive.backup --config ~/.kvhive/cluster.toml     # all coordinators are on this machine")]
pub(crate) struct Restore {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Cluster file that says where the coordinators' folders are, and who they are from now on
    #[arg(long, value_name = "CLUSTER_FILE")]
    config: PathBuf,
    /// The one coordinator that begins; the others follow it [default: all begin, if all are on this machine]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Tenant that was cleared after the backup: its older blocks stay ended; may be repeated
    #[arg(long, value_name = "TENANT", conflicts_with = "all_cleared")]
    cleared: Vec<String>,
    /// Any tenant may have been cleared after the backup: all begin without blocks
    #[arg(long)]
    all_cleared: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

impl Backup {
    /// Takes a backup and writes it.
    ///
    /// # Errors
    /// When no coordinator gives one, it is not whole, or cannot be written.
    pub(crate) fn run(self) -> Result<()> {
        // Said at once, and looked at again as it is written.
        if !self.force && self.file.symlink_metadata().is_ok() {
            return Err(IsThere(self.file).into());
        }
        let bytes = self.target.resolve()?.get_bytes("/v1/backup", MAX_BACKUP_BYTES)?;
        // What could not be restored is not called a backup.
        let taken = Taken::decode(&bytes).context("what the coordinator sent")?;
        match write(&self.file, &bytes, self.force) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(IsThere(self.file).into()),
            written => written.with_context(|| format!("cannot write {}", self.file.display()))?,
        }
        let head = taken.head();
        if self.json {
            let mut said = told(head);
            said["file"] = json!(self.file);
            said["bytes"] = json!(bytes.len());
            return report::print_json(&said);
        }
        println!(
            "{}: {} of cluster {} at entry {}, epoch {}: {}, {}. It holds the tenants' secrets: keep it as you keep the \
             cluster's token",
            self.file.display(),
            report::bytes(bytes.len() as u64),
            head.name,
            head.index,
            head.epoch,
            report::counted(head.tenants as u64, "tenant"),
            report::counted(head.members as u64, "node")
        );
        Ok(())
    }
}

fn told(head: &BackupHead) -> Value {
    json!({
        "cluster": head.cluster, "name": head.name, "epoch": head.epoch, "term": head.term, "index": head.index,
        "at_ms": head.at_ms, "nodes": head.members, "tenants": head.tenants,
    })
}

/// A backup is not written over what is there.
#[derive(Debug, thiserror::Error)]
#[error("{} is there already: name another file, or say --force to replace it", .0.display())]
struct IsThere(PathBuf);

/// Writes a file that only its owner reads, whole or not at all; one that is there stays, unless it may be replaced.
fn write(file: &Path, bytes: &[u8], replaces: bool) -> io::Result<()> {
    let folder = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut next = tempfile::NamedTempFile::new_in(folder)?;
    next.write_all(bytes)?;
    next.as_file().sync_all()?;
    match replaces {
        true => next.persist(file)?,
        false => next.persist_noclobber(file)?,
    };
    File::open(folder)?.sync_all()?;
    Ok(())
}

impl Restore {
    /// Writes the logs.
    ///
    /// # Errors
    /// When the backup cannot be used, a folder holds a log, or a coordinator answers.
    pub(crate) fn run(self) -> Result<()> {
        let file = File::open(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        let mut bytes = Vec::new();
        file.take(MAX_BACKUP_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        let backup = Taken::decode(&bytes).with_context(|| self.file.display().to_string())?;
        let config = config::read(&self.config)?;
        let all = place::all(&config, &self.config);
        let (voters, others): (Vec<_>, Vec<_>) = match &self.id {
            Some(id) => {
                place::find(&all, id, &self.config)?;
                all.into_iter().partition(|place| place.own.name == *id)
            }
            None => (all, Vec::new()),
        };
        if self.id.is_none() {
            for place in &voters {
                if !place::is_here(&place.own) {
                    bail!(
                        "{} is not on this machine: name with --id the coordinator that begins; the others start with empty folders \
                         and follow it",
                        place.own.name
                    );
                }
            }
        }
        let learners: Vec<_> = others.iter().map(|place| place.own.clone()).collect();
        for own in voters.iter().map(|place| &place.own).chain(&learners) {
            if place::answers(own) {
                bail!(
                    "{} answers at {}: a backup is for a cluster that has lost every coordinator. If a majority lives, start the others \
                     with empty folders; if this cluster is to be given up, stop it first",
                    own.name,
                    own.raft_address
                );
            }
        }
        let cleared = if self.all_cleared { Cleared::All } else { Cleared::Tenants(self.cleared.as_slice()) };
        let begun = kvhive_coordinator::restore(&backup, &config.cluster.name, &voters, &learners, cleared)?;
        let names = |places: &mut dyn Iterator<Item = &kvhive_coordinator::PeerConfig>| {
            places.map(|own| own.name.clone()).collect::<Vec<_>>()
        };
        let voters = names(&mut voters.iter().map(|place| &place.own));
        let learners = names(&mut learners.iter());
        if self.json {
            return report::print_json(&json!({
                "backup": told(backup.head()), "epoch": begun.epoch, "term": begun.term, "index": begun.index,
                "begin": voters, "follow": learners,
            }));
        }
        println!(
            "{} begins again from the backup of {}, at epoch {}: {}, {}",
            backup.head().name,
            report::utc(backup.head().at_ms),
            begun.epoch,
            report::counted(backup.head().tenants as u64, "tenant"),
            report::counted(backup.head().members as u64, "node")
        );
        println!("start {}", voters.join(", "));
        for name in &learners {
            println!("start {name} with an empty data_dir, then `kvhive raft promote {name}`");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_replaced_only_where_that_is_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("kvhive.backup");
        write(&file, b"first", false).expect("nothing is there");
        let refused = write(&file, b"second", false).expect_err("it is there");
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&file).expect("it is there"), b"first");
        write(&file, b"third", true).expect("it may be replaced");
        assert_eq!(std::fs::read(&file).expect("it is there"), b"third");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing else is left");
    }
}
