//! Rules that change while blocks are there.

use super::Shard;
use crate::block::{Life, Record, Tier};
use crate::party::{COMMONS, Party, Rules};
use crate::policy::{Removal, Request, shrinks};
use kvhive_protocol::TenantId;
use std::collections::BTreeMap;

impl Shard {
    /// Takes over how the blocks of everybody, and of the tenants that have rules of their own, are kept. No block is lost by
    /// it: those of a party whose strategy changes, or that others come to, are told to its policy anew, in the order of their
    /// last use. Every other policy goes on with what it has learnt.
    pub fn set_rules(&mut self, commons: Rules, own: &BTreeMap<TenantId, Rules>) {
        self.tell_all();
        let same_parties = own.keys().eq(self.party_of.keys());
        let begins_anew = if same_parties { vec![false; self.parties.len()] } else { self.split_anew(own) };
        let wanted = std::iter::once(commons).chain(own.values().copied());
        self.may_shrink = wanted.clone().any(|rules| shrinks(rules.strategy).is_some());
        for (at, rules) in wanted.enumerate() {
            let party = &mut self.parties[at];
            let is_new = party.rules.strategy != rules.strategy;
            party.rules = rules;
            if is_new || begins_anew[at] {
                party.forget();
                self.teach(at as u16);
            }
        }
    }

    /// Says which tenant has which rules of its own.
    pub fn rules(&self) -> (Rules, BTreeMap<TenantId, Rules>) {
        let of = |party: &u16| self.parties[usize::from(*party)].rules;
        (of(&COMMONS), self.party_of.iter().map(|(tenant, party)| (*tenant, of(party))).collect())
    }

    /// Makes parties of these tenants and gives every block to its own, each tier's in the order of use. Says whose policies must
    /// be told anew: of new parties, and the commons' if blocks come to them.
    fn split_anew(&mut self, own: &BTreeMap<TenantId, Rules>) -> Vec<bool> {
        let classes = self.config.classes.len() as u8;
        let mut order = Vec::with_capacity(self.recency.listed());
        for tier in Tier::ALL {
            for party in 0..self.parties.len() as u16 {
                for class in 0..classes {
                    order.extend(self.recency.of(&self.index.records, tier, party, class));
                }
            }
        }
        for at in &order {
            self.recency.remove(&mut self.index.records, *at);
        }
        self.leave_commons(&order, own);
        let mut before: Vec<Option<Party>> =
            std::mem::take(&mut self.parties).into_iter().map(Some).collect();
        let joined = self.party_of.keys().any(|tenant| !own.contains_key(tenant));
        let mut begins_anew = vec![joined];
        self.parties.extend(before[usize::from(COMMONS)].take());
        for (tenant, rules) in own {
            let known = self.party_of.get(tenant).and_then(|at| before[usize::from(*at)].take());
            begins_anew.push(known.is_none());
            let party = known.unwrap_or_else(|| self.party(self.parties.len(), *rules));
            self.parties.push(party);
        }
        self.parties.iter_mut().for_each(|party| party.used = [0; 3]);
        self.party_of = own.keys().zip(1u16..).map(|(tenant, at)| (*tenant, at)).collect();
        for record in &mut self.index.records {
            if record.life == Life::Free {
                continue;
            }
            let (tenant, _) = self.owners.of(record.owner);
            record.party = self.party_of.get(&tenant).copied().unwrap_or(COMMONS);
            let bytes = self.config.classes[usize::from(record.class)];
            let used = &mut self.parties[usize::from(record.party)].used;
            used[record.tier as usize] += bytes;
            if let Some(to) = record.copying {
                used[to as usize] += bytes;
            }
        }
        self.count_shrinks();
        for at in order {
            self.recency.insert(&mut self.index.records, at);
        }
        begins_anew
    }

    /// Has the commons' policies forget the blocks of tenants that get rules of their own.
    fn leave_commons(&mut self, blocks: &[u32], own: &BTreeMap<TenantId, Rules>) {
        for at in blocks {
            let Record { owner, ref key, party, class, .. } = self.index.records[*at as usize];
            if party == COMMONS && own.contains_key(&self.owners.of(owner).0) {
                let key = self.owners.salt_of(owner).key(key);
                self.parties[usize::from(COMMONS)].ranking(class).removed(*at, &key, Removal::Dropped);
            }
        }
    }

    /// Tells a party's fresh policies what is there: coldest tier first, in each the oldest first, parents before children
    /// where both are of one age.
    fn teach(&mut self, party: u16) {
        for class in 0..self.config.classes.len() as u8 {
            let mut order: Vec<u32> = Vec::new();
            for tier in Tier::ALL.into_iter().rev() {
                order.extend(self.recency.of(&self.index.records, tier, party, class));
            }
            let request = Request { covered: 0, blocks: order.len() as u32, ..self.request };
            for at in order {
                let visit = self.visit_of(at);
                let is_inner = !self.index.records[at as usize].is_bare();
                let ranking = self.parties[usize::from(party)].ranking(class);
                ranking.begin(&request);
                ranking.inserted(at, &visit, is_inner);
            }
        }
    }
}
