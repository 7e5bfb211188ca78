//! `kvhive down`.

use crate::cluster::local;
use crate::report;
use anyhow::Result;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Stop the cluster that `kvhive up` started on this machine
#[derive(Args, Debug)]
pub(crate) struct Down {
    /// Folder of the local cluster
    #[arg(long, env = "KVHIVE_DIR", value_name = "DIR", default_value_os_t = local::default_dir())]
    dir: PathBuf,
    /// Print what was stopped as JSON
    #[arg(long)]
    json: bool,
}

impl Down {
    /// Stops it.
    ///
    /// # Errors
    /// When it does not end.
    pub(crate) fn run(self) -> Result<()> {
        let is_stopped = local::down(&self.dir)?;
        if self.json {
            let strays = local::strays(&self.dir);
            return report::print_json(&json!({ "dir": self.dir, "stopped": is_stopped, "strays": strays }));
        }
        match is_stopped {
            true => println!("stopped the cluster in {}", self.dir.display()),
            false => println!("no cluster runs in {}", self.dir.display()),
        }
        let strays = local::strays(&self.dir);
        if !strays.is_empty() {
            eprintln!(
                "warning: somebody still holds the ports of {}: processes that were started by hand end by Ctrl-C or SIGTERM",
                strays.join(", ")
            );
        }
        Ok(())
    }
}
