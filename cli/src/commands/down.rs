//! `kvhive down`.

use crate::cluster::local;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// Stop the cluster that `kvhive up` started on this machine
#[derive(Args, Debug)]
pub(crate) struct Down {
    /// Folder of the local cluster
    #[arg(long, env = "KVHIVE_DIR", value_name = "DIR", default_value_os_t = local::default_dir())]
    dir: PathBuf,
}

impl Down {
    /// Stops it.
    ///
    /// # Errors
    /// When it does not end.
    pub(crate) fn run(self) -> Result<()> {
        if local::down(&self.dir)? {
            println!("stopped the cluster in {}", self.dir.display());
            let strays = local::strays(&self.dir);
            if !strays.is_empty() {
                eprintln!(
                    "warning: somebody still holds the ports of {}: processes that were started by hand end by Ctrl-C or SIGTERM",
                    strays.join(", ")
                );
            }
        } else {
            println!("no cluster runs in {}", self.dir.display());
        }
        Ok(())
    }
}
