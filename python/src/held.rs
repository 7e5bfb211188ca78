//! A client's sockets, held by everything that was made of it, and kept open in a process that has only inherited them.

use crate::threads::Crew;
use kvhive_client::Client;

/// A client and the threads that serve it.
pub(crate) struct Held {
    client: Client,
    crew: Crew,
}

impl Held {
    pub(crate) fn new(client: Client, crew: Crew) -> Held {
        Held { client, crew }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn crew(&self) -> &Crew {
        &self.crew
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.crew.is_here() {
            // After a fork both processes have one set of sockets and one registry of what is awaited on them: closing them here
            // would take them out of it, and the parent would wait for ever.
            std::mem::forget(self.client.clone());
        }
    }
}
