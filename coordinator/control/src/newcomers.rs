//! Nodes that ask to be members, as the leader looks at them before anything is written down: one that would throw out another that
//! serves is not let in. What a registration changes is the registry's; it applies whatever was agreed on, whoever proposed it.

use crate::registry::Registry;
use kvhive_protocol::WireError;
use kvhive_protocol::control::{Command, Registration};
use kvhive_protocol::map::MemberState;

impl Registry {
    /// Checks that nobody else is up under the name by which a node registers. Where it is up itself it starts anew, and whatever ran
    /// there has ended; one that is silent is marked down when its lease is over, and its name is free from then on.
    ///
    /// # Errors
    /// [`WireError::NameTaken`] when one is, at another address.
    pub fn check_newcomer(&self, command: &Command) -> Result<(), WireError> {
        let Command::Register(Registration { name, data_address, .. }) = command else { return Ok(()) };
        let known = self.index.members.get(name).zip(self.map.as_ref());
        let Some(member) = known.and_then(|(id, map)| map.members.get(id)) else { return Ok(()) };
        if member.state == MemberState::Up && member.data_address != *data_address {
            return Err(WireError::NameTaken { name: name.clone(), address: member.data_address.clone() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::tests::Cluster;

    fn registering(name: &str, address: &str) -> Command {
        let mut elsewhere = Cluster::with_replicas(1);
        elsewhere.register_at(name, address);
        let map = elsewhere.map();
        let (_, member) = map.member(name).expect("it has registered");
        Command::Register(Registration {
            request: kvhive_protocol::RequestId { client: 1, sequence: 1 },
            name: member.name.clone(),
            data_address: member.data_address.clone(),
            metrics_address: member.metrics_address.clone(),
            labels: member.labels.clone(),
            devices: member.devices.clone(),
            codec: member.codec,
            speaks: member.speaks,
        })
    }

    #[test]
    fn who_is_up_elsewhere_keeps_its_name_until_it_is_down() {
        let mut cluster = Cluster::with_replicas(1);
        cluster.register_at("one", "10.0.0.1:7810");
        let (member, _) = cluster.map().member("one").expect("it has registered");
        let intruder = registering("one", "10.0.0.2:7810");
        let taken = WireError::NameTaken { name: "one".to_owned(), address: "10.0.0.1:7810".to_owned() };
        assert_eq!(cluster.registry.check_newcomer(&intruder), Err(taken));
        let others = [registering("two", "10.0.0.2:7810"), registering("one", "10.0.0.1:7810")];
        for other in &others {
            assert_eq!(cluster.registry.check_newcomer(other), Ok(()), "another name, or its next start");
        }
        cluster.mark_down(member);
        assert_eq!(cluster.registry.check_newcomer(&intruder), Ok(()));
        assert_eq!(Registry::new().check_newcomer(&intruder), Ok(()), "nobody is anywhere");
    }
}
