//! A network namespace for each process, all on one bridge, and what goes wrong between them.

use super::words::{run, try_run};
use super::{STEM, is_left};
use crate::cluster::local::Begin;
use anyhow::{Context, Result};

/// The first address of processes; the first of all is the clients'.
const FIRST: usize = 11;

/// What goes wrong at one process' link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) enum Trouble {
    /// Nothing arrives and nothing leaves.
    Cut,
    /// What it sends is lost.
    Mute,
    /// What is sent to it is lost.
    Deaf,
    /// So many packets of a hundred are lost, both ways.
    Loses(u64),
    /// Connections are reset, both ways.
    Resets,
    /// It sends at so many Mbit/s.
    Slow(u64),
}

/// Networks of processes, on one bridge.
pub(in super::super) struct Network {
    /// What the names of all of it begin with: the run's process is in it.
    tag: String,
    subnet: String,
    ids: Vec<String>,
}

impl Network {
    /// Makes a namespace for each of these, with an address on a bridge of their own.
    ///
    /// # Errors
    /// When the system does not let it.
    pub(super) fn new(ids: &[String]) -> Result<Network> {
        let routes = run(&["ip", "-4", "route"])?;
        let own = std::process::id();
        let free = |part: &u32| !routes.contains(&format!("10.213.{part}."));
        let part = (0..250)
            .map(|at| (own + at) % 250)
            .find(free)
            .context("every network of 10.213.0.0/16 is taken")?;
        let network =
            Network { tag: format!("{STEM}{own}"), subnet: format!("10.213.{part}"), ids: ids.to_vec() };
        let bridge = network.tag.as_str();
        run(&["ip", "link", "add", bridge, "type", "bridge"])?;
        run(&["ip", "addr", "add", &format!("{}.1/24", network.subnet), "dev", bridge])?;
        run(&["ip", "link", "set", bridge, "up"])?;
        for (at, id) in ids.iter().enumerate() {
            let (space, outer, inner) = (network.space(at), format!("{}v{at}", network.tag), "eth0");
            run(&["ip", "netns", "add", &space])?;
            run(&["ip", "link", "add", &outer, "type", "veth", "peer", "name", inner, "netns", &space])?;
            run(&["ip", "link", "set", &outer, "master", bridge, "up"])?;
            let address = format!("{}/24", network.host(id).context("it is one of them")?);
            for words in [
                &["addr", "add", &address, "dev", inner][..],
                &["link", "set", inner, "up"][..],
                &["link", "set", "lo", "up"][..],
            ] {
                run(&[&["ip", "-n", &space][..], words].concat())?;
            }
        }
        Ok(network)
    }

    /// Removes what runs have left that are over.
    pub(super) fn sweep() {
        let spaces = run(&["ip", "netns", "list"]).unwrap_or_default();
        let links = run(&["ip", "-o", "link"]).unwrap_or_default();
        let spaces = spaces.split_whitespace().filter(|name| is_left(name, STEM)).map(|name| ("netns", name));
        let links = links.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next());
        let links = links.filter(|name| is_left(name, STEM)).map(|name| ("link", name));
        for (kind, name) in spaces.chain(links) {
            try_run(&["ip", kind, "del", name]);
        }
    }

    fn space(&self, at: usize) -> String {
        format!("{}n{at}", self.tag)
    }

    fn place(&self, id: &str) -> Option<usize> {
        self.ids.iter().position(|one| one == id)
    }

    /// Returns a process' address.
    pub(in super::super) fn host(&self, id: &str) -> Option<String> {
        Some(format!("{}.{}", self.subnet, FIRST + self.place(id)?))
    }

    /// Returns how a process is begun in its network.
    pub(in super::super) fn begin(&self, id: &str) -> Begin {
        let space = self.place(id).map(|at| self.space(at)).unwrap_or_default();
        // Not `ip netns exec`: that gives it mounts of its own too, which hold on to a disk that is unmounted here.
        let words = vec!["nsenter".to_owned(), format!("--net=/run/netns/{space}")];
        Begin { words }
    }

    /// Makes trouble at a process' link. It lasts until it is mended.
    ///
    /// # Errors
    /// When the system does not let it.
    pub(in super::super) fn trouble(&self, id: &str, trouble: Trouble) -> Result<()> {
        let space = self.space(self.place(id).context("it has a network")?);
        let inside = ["ip", "netns", "exec", &space];
        if let Trouble::Slow(mbit) = trouble {
            let rate = format!("{mbit}mbit");
            let words = [
                "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", &rate, "burst", "64kb",
                "latency", "300ms",
            ];
            run(&[&inside[..], &words].concat())?;
            return Ok(());
        }
        run(&[&inside[..], &["nft", &rules(trouble)]].concat())?;
        Ok(())
    }

    /// Ends all trouble at a process' link.
    pub(in super::super) fn mend(&self, id: &str) {
        let Some(at) = self.place(id) else { return };
        let space = self.space(at);
        try_run(&["ip", "netns", "exec", &space, "nft", "delete table inet kvt"]);
        try_run(&["ip", "netns", "exec", &space, "tc", "qdisc", "del", "dev", "eth0", "root"]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for at in 0..self.ids.len() {
            try_run(&["ip", "link", "del", &format!("{}v{at}", self.tag)]);
            try_run(&["ip", "netns", "del", &self.space(at)]);
        }
        try_run(&["ip", "link", "del", &self.tag]);
    }
}

/// Returns the packet filter of a trouble.
fn rules(trouble: Trouble) -> String {
    let (arriving, leaving) = match trouble {
        Trouble::Cut => ("drop".to_owned(), "drop".to_owned()),
        Trouble::Mute => ("accept".to_owned(), "drop".to_owned()),
        Trouble::Deaf => ("drop".to_owned(), "accept".to_owned()),
        Trouble::Loses(share) => {
            let verdict = format!("numgen random mod 100 < {share} drop");
            (verdict.clone(), verdict)
        }
        Trouble::Resets | Trouble::Slow(_) => {
            let verdict = "meta l4proto tcp reject with tcp reset".to_owned();
            (verdict.clone(), verdict)
        }
    };
    format!(
        "table inet kvt {{ chain arriving {{ type filter hook input priority 0; iifname != \"lo\" {arriving}; }}; \
         chain leaving {{ type filter hook output priority 0; oifname != \"lo\" {leaving}; }}; }}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_way_trouble_is_one_way() {
        let mute = rules(Trouble::Mute);
        assert!(
            mute.contains("iifname != \"lo\" accept") && mute.contains("oifname != \"lo\" drop"),
            "{mute}"
        );
        let deaf = rules(Trouble::Deaf);
        assert!(
            deaf.contains("iifname != \"lo\" drop") && deaf.contains("oifname != \"lo\" accept"),
            "{deaf}"
        );
    }
}
