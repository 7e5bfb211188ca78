//! `kvhive tls`: an authority of one's own, for trials and small clusters.

use crate::report;
use crate::trust::{AUTHORITY_PERIOD, CLIENT, DAYS};
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use kvhive_tls::{Folder, Stage, TlsFiles};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// Make certificates for a cluster, where no other authority does
#[derive(Args, Debug)]
pub(crate) struct TlsCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Make an authority, a certificate for each host and one for clients
    ///
    /// DIR gets authority.pem and authority.key, a .pem and a .key named after each host, and client.pem and client.key for whoever only
    /// connects. Nothing is written over. Whoever has authority.key can be any member: keep it off the hosts; each needs authority.pem
    /// and its own pair, and the `[tls]` table of the cluster file names them.
    #[command(after_help = "Examples:
  kvhive tls init --dir tls                                              # all on this machine: localhost, 127.0.0.1
  kvhive tls init --dir tls --host 10.0.0.1 --host 10.0.0.2,node-2.example
  kvhive tls issue --dir tls --host 10.0.0.3                             # one more, later")]
    Init(Made),
    /// Make one more certificate by an authority that `kvhive tls init` made
    #[command(after_help = "Examples:
  kvhive tls issue --dir tls --host 10.0.0.3
  kvhive tls issue --dir tls --client trainer --days 30")]
    Issue(Issue),
    /// Put another authority in the place of the one in DIR, in three steps, without a moment at which processes refuse each other
    ///
    /// Each call goes one step, and says what to carry to the hosts before the next: `authority.pem` with both authorities; then each
    /// host's pair, made anew by the new one; then `authority.pem` with the new one alone. A process takes new files within five seconds.
    /// After the last step nothing that the old one signed is taken: what was stolen is of no use. A call that was interrupted is made again;
    /// with `--step` it is refused where that step was made already.
    #[command(after_help = "Examples:
  kvhive tls rotate --dir tls --step 1    # copy tls/authority.pem to every host and client
  kvhive tls rotate --dir tls --step 2    # copy each host its own pair, and authority.pem
  kvhive tls rotate --dir tls --step 3    # copy authority.pem again")]
    Rotate(Rotate),
}

#[derive(Args, Debug)]
struct Made {
    /// The authority's folder
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Host as the cluster file names it, with other names and addresses of the same one after commas; may be repeated
    #[arg(long = "host", value_name = "NAME|IP", default_value = "localhost,127.0.0.1")]
    hosts: Vec<String>,
    /// Days for which the certificates hold; the authority holds ten years
    #[arg(long, value_name = "N", default_value_t = DAYS, value_parser = clap::value_parser!(u64).range(1..=3650))]
    days: u64,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Rotate {
    /// The authority's folder
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Go this step and no other
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=3))]
    step: Option<u8>,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Issue {
    /// The authority's folder
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Host as the cluster file names it, with other names and addresses of the same one after commas; may be repeated
    #[arg(long = "host", value_name = "NAME|IP", required_unless_present = "client")]
    hosts: Vec<String>,
    /// Name of a certificate that is valid for no host: for one that only connects
    #[arg(long, value_name = "NAME", conflicts_with = "hosts", value_parser = name)]
    client: Option<String>,
    /// Days for which the certificates hold
    #[arg(long, value_name = "N", default_value_t = DAYS, value_parser = clap::value_parser!(u64).range(1..=3650))]
    days: u64,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
}

/// Becomes a file's name.
fn name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.chars().all(fits) {
        return Err("allowed are 1 to 64 letters, digits, '-', '_' and '.'".to_owned());
    }
    Ok(text.to_owned())
}

impl TlsCommand {
    /// Does what was asked.
    ///
    /// # Errors
    /// When a file is there already, a host is none, or the folder cannot be written.
    pub(crate) fn run(self) -> Result<()> {
        match self.verb {
            Verb::Init(verb) => verb.run(),
            Verb::Issue(verb) => verb.run(),
            Verb::Rotate(verb) => verb.run(),
        }
    }
}

impl Made {
    fn run(self) -> Result<()> {
        let all: Vec<Vec<String>> = self.hosts.iter().map(|host| names(host)).collect();
        let mut certificates: Vec<(&str, &[String])> =
            all.iter().map(|names| (names[0].as_str(), names.as_slice())).collect();
        certificates.push((CLIENT, &[]));
        // A mistake leaves nothing behind that the next try would find there.
        Folder::check(&self.dir, &certificates)?;
        let folder = Folder::create(&self.dir, "kvhive authority", AUTHORITY_PERIOD)?;
        let mut made = issue(&folder, &self.hosts, self.days)?;
        made.push(folder.issue(CLIENT, &[], period(self.days))?);
        tell(&folder, &made, self.json)
    }
}

impl Issue {
    fn run(self) -> Result<()> {
        let folder = Folder::open(&self.dir)?;
        let made = match &self.client {
            Some(client) => vec![folder.issue(client, &[], period(self.days))?],
            None => issue(&folder, &self.hosts, self.days)?,
        };
        tell(&folder, &made, self.json)
    }
}

impl Rotate {
    fn run(self) -> Result<()> {
        let next = number(Folder::next_stage(&self.dir)?);
        if let Some(step) = self.step.filter(|step| *step != next) {
            bail!("step {step} is not the next one in {}: that is step {next}", self.dir.display());
        }
        let rotation = Folder::rotate(&self.dir, "kvhive authority", AUTHORITY_PERIOD)?;
        let authorities = rotation.authorities.display().to_string();
        let step = number(rotation.stage);
        let word = match rotation.stage {
            Stage::Trusted => "trusted",
            Stage::Issued => "issued",
            Stage::Finished => "finished",
        };
        let others: Vec<_> = rotation.others.iter().map(|file| file.display().to_string()).collect();
        if self.json {
            let issued: Vec<_> = rotation.issued.iter().map(described).collect();
            return report::print_json(&json!({
                "step": step, "of": 3, "stage": word, "authorities": authorities, "certificates": issued, "of_others": others,
            }));
        }
        println!("step          {step} of 3\nauthorities   {authorities}");
        list(&rotation.issued);
        for file in others {
            println!("{:<13} {file}: signed by another authority, and left as it is", "");
        }
        println!(
            "\n{}",
            match rotation.stage {
                Stage::Trusted =>
                    "Both authorities are trusted by whoever has this file: copy it to every host, and to all who connect. Then go on with the same command.",
                Stage::Issued =>
                    "The new authority has signed these: copy each to its host, over the old pair, with the authorities. Then go on with the same command.",
                Stage::Finished =>
                    "The new authority alone is trusted by whoever has this file: copy it to every host, and to all who connect.",
            }
        );
        Ok(())
    }
}

/// Which of the three steps ends there.
fn number(stage: Stage) -> u8 {
    match stage {
        Stage::Trusted => 1,
        Stage::Issued => 2,
        Stage::Finished => 3,
    }
}

fn period(days: u64) -> Duration {
    Duration::from_secs(days * 86_400)
}

/// Returns a host's names: its file's is the first.
fn names(host: &str) -> Vec<String> {
    host.split(',').map(|name| name.trim().to_owned()).collect()
}

fn issue(folder: &Folder, hosts: &[String], days: u64) -> Result<Vec<TlsFiles>> {
    let mut made = Vec::with_capacity(hosts.len());
    for host in hosts {
        let names = names(host);
        made.push(folder.issue(&names[0], &names, period(days))?);
    }
    Ok(made)
}

fn described(files: &TlsFiles) -> serde_json::Value {
    json!({
        "host": files.host, "certificate": files.certificate.display().to_string(), "key": files.key.display().to_string(),
    })
}

fn list(made: &[TlsFiles]) {
    for files in made {
        println!("{:<13} {}", files.host.as_deref().unwrap_or("clients"), files.certificate.display());
        println!("{:<13} {}", "", files.key.display());
    }
}

fn tell(folder: &Folder, made: &[TlsFiles], json: bool) -> Result<()> {
    let authorities = folder.authorities().display().to_string();
    if json {
        let made: Vec<_> = made.iter().map(described).collect();
        return report::print_json(&json!({ "authorities": authorities, "certificates": made }));
    }
    println!("authorities   {authorities}");
    list(made);
    if let Some(member) = made.iter().find(|files| files.host.is_some()) {
        println!("\nin the cluster file, with the paths that they have on each host:\n");
        println!("[tls]\ncertificate = \"{}\"", member.certificate.display());
        println!("key = \"{}\"\nauthorities = \"{authorities}\"", member.key.display());
    }
    Ok(())
}
