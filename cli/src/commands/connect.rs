//! How a command finds the data plane: the coordinators of a cluster and its token.

use crate::admin::read_token;
use crate::cluster::local;
use crate::trust::Credentials;
use anyhow::{Context, Result};
use clap::Args;
use kvhive_client::{Client, ClientConfig};
use std::path::PathBuf;

/// Which cluster's data plane a command uses.
#[derive(Args, Clone, Debug)]
pub(crate) struct Connect {
    /// Control-plane addresses (HOST:PORT) of the coordinators, separated by commas [default: the local cluster's]
    #[arg(long, env = "KVHIVE_COORDINATORS", value_name = "ADDRESSES")]
    pub(crate) coordinators: Option<String>,
    /// File that holds the cluster's token; the variable KVHIVE_TOKEN comes before it [default: the local cluster's]
    #[arg(long, env = "KVHIVE_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    #[command(flatten)]
    credentials: Credentials,
    /// Folder of the local cluster that `kvhive up` made
    #[arg(long, env = "KVHIVE_DIR", value_name = "DIR", default_value_os_t = local::default_dir())]
    pub(crate) dir: PathBuf,
}

impl Connect {
    /// Returns the coordinators' addresses and the token.
    ///
    /// # Errors
    /// When neither options nor a local cluster say which cluster is meant.
    pub(crate) fn config(&self) -> Result<ClientConfig> {
        let coordinators = match &self.coordinators {
            Some(list) => list.split(',').map(|address| address.trim().to_owned()).collect(),
            None => local::Running::load(&self.dir)?.coordinators,
        };
        let token_file = self.token_file.clone().unwrap_or_else(|| self.dir.join(local::TOKEN_FILE));
        let local = self.coordinators.is_none().then_some(self.dir.as_path());
        let tls = self.credentials.load(local)?;
        Ok(ClientConfig { tls, ..ClientConfig::new(coordinators, read_token(&token_file)?.into_bytes()) })
    }

    /// Connects to the cluster.
    ///
    /// # Errors
    /// When no coordinator answers or the token is wrong.
    pub(crate) async fn client(&self) -> Result<Client> {
        Client::connect(self.config()?).await.with_context(|| {
            "cannot connect to the cluster; --coordinators takes control addresses (port 7801 in the documented setup), not admin ones"
        })
    }
}
