//! `INFO`: the node's figures as Redis tells them.

use super::reply::Reply;
use super::serve::Door;
use super::session::REDIS_VERSION;
use std::sync::atomic::Ordering;

impl Door {
    /// Tells the node's figures as Redis does.
    pub(super) async fn tell(&self, tenant: &str, sections: &[String]) -> Reply {
        let is_asked = |name: &str| {
            let is_all = |section: &String| ["all", "default", "everything"].contains(&section.as_str());
            sections.is_empty() || sections.iter().any(|section| section == name || is_all(section))
        };
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let mut text = String::new();
        if is_asked("server") {
            let version = env!("CARGO_PKG_VERSION");
            text += &format!(
                "# Server\r\nredis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\nkvhive_version:{version}\r\n\r\n"
            );
        }
        if is_asked("clients") {
            let (open, most) = (self.open_connections(), self.config.max_connections);
            text += &format!("# Clients\r\nconnected_clients:{open}\r\nmaxclients:{most}\r\n\r\n");
        }
        if is_asked("stats") {
            let counters = &self.counters;
            text += &format!(
                "# Stats\r\ntotal_connections_received:{}\r\ntotal_commands_processed:{}\r\nkeyspace_hits:{}\r\nkeyspace_misses:{}\r\n\r\n",
                read(&counters.redis_connections),
                read(&counters.redis_commands),
                read(&counters.redis_hits),
                read(&counters.redis_misses),
            );
        }
        if is_asked("keyspace") {
            let counted = match self.values(tenant).await {
                Ok(values) => values.count().await.map_err(Reply::wrong),
                Err(refusal) => Err(refusal),
            };
            match counted {
                Ok(0) => text += "# Keyspace\r\n",
                Ok(names) => text += &format!("# Keyspace\r\ndb0:keys={names}\r\n"),
                Err(refusal) => return refusal,
            }
        }
        Reply::text(text)
    }
}
