//! One table of the file being read: finds each key in the table, in the defaults under it or in `keys.rs`, and hands the
//! value to a parser. What is refused goes to the ledger, and a stand-in lets reading go on.

use crate::hint;
use crate::keys::{Absent, Key, Rule};
use crate::ledger::Ledger;
use crate::problem::{Origin, Problem};
use crate::tree::{Kind, Table, Value};
use std::borrow::Cow;

pub(crate) struct Section<'a> {
    /// Its place, such as `node[1]`.
    pub(crate) path: String,
    keys: &'static [Key],
    table: Cow<'a, Table>,
    /// A table that answers for keys that this one has not, and its path.
    under: Option<(&'static str, &'a Table)>,
}

impl<'a> Section<'a> {
    /// Opens `value` as the table at `path`, as [`Section::of`].
    pub(crate) fn open(
        path: String,
        keys: &'static [Key],
        value: Option<&'a Value>,
        ledger: &mut Ledger,
    ) -> Section<'a> {
        let table = match value {
            Some(Value { kind: Kind::Table(table), .. }) => Cow::Borrowed(table),
            Some(value) => {
                ledger.refuse(&path, &path, value, "allowed is a table".to_owned());
                Cow::Owned(Table::new())
            }
            None => Cow::Owned(Table::new()),
        };
        Section::of(path, keys, table, ledger)
    }

    /// Opens `table`, which stands at `path`, and refuses keys that are not of `keys`.
    pub(crate) fn of(
        path: String,
        keys: &'static [Key],
        table: Cow<'a, Table>,
        ledger: &mut Ledger,
    ) -> Section<'a> {
        let section = Section { path, keys, table, under: None };
        for (name, value) in section.table.iter() {
            if !keys.iter().any(|key| key.name == name) {
                let hint = hint::hint(name, keys.iter().map(|key| key.name));
                let key = section.key_path(&crate::parse::key_shown(name));
                ledger.add(Problem::UnknownKey { origin: value.origin.clone(), key, hint });
            }
        }
        section
    }

    /// Lets `table` at `path` answer for keys that this section has not.
    pub(crate) fn over(mut self, path: &'static str, table: &'a Table) -> Section<'a> {
        self.under = Some((path, table));
        self
    }

    pub(crate) fn key_path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Returns the value given for `name`, in this table or the one under it, and its path there.
    pub(crate) fn given(&self, name: &str) -> Option<(String, &Value)> {
        if let Some(value) = self.table.get(name) {
            return Some((self.key_path(name), value));
        }
        let (path, table) = self.under?;
        Some((format!("{path}.{name}"), table.get(name)?))
    }

    /// Reads `name`; `None` if it is not given and has no default of its own, or is refused.
    pub(crate) fn read<T>(
        &self,
        ledger: &mut Ledger,
        name: &str,
        parse: impl Fn(&Value, &Rule) -> Result<T, String>,
    ) -> Option<T> {
        let key = self.key(name);
        let path = self.key_path(name);
        let default;
        let (source, value) = match (self.given(name), &key.absent) {
            (Some(given), _) => given,
            (None, Absent::Value(text)) => {
                default = Value::text(text, Origin::Default);
                (path.clone(), &default)
            }
            (None, Absent::Required) => {
                ledger.missing(&path, key.rule.allowed());
                return None;
            }
            (None, Absent::Derived(_)) => return None,
        };
        ledger.saw(&path, &source, value.origin.clone(), value.shown());
        match parse(value, &key.rule) {
            Ok(value) => Some(value),
            Err(allowed) => {
                ledger.refuse(&path, &source, value, allowed);
                None
            }
        }
    }

    /// Returns the table that answers for keys that this one has not.
    pub(crate) fn under(&self) -> Option<&Table> {
        self.under.map(|(_, table)| table)
    }

    /// Reads the array of tables `name`; refuses a wrong count, and hands out what there is.
    pub(crate) fn tables(&self, ledger: &mut Ledger, name: &str) -> (String, Vec<&Value>) {
        let key = self.key(name);
        let path = self.key_path(name);
        let Rule::Tables { most, .. } = &key.rule else {
            unreachable!("keys.rs has {name} as an array of tables");
        };
        let Some((source, value)) = self.given(name) else {
            ledger.missing(&path, key.rule.allowed());
            return (path, Vec::new());
        };
        ledger.saw(&path, &source, value.origin.clone(), value.shown());
        let allowed = || format!("allowed is {}", key.rule.allowed());
        let Kind::List(items) = &value.kind else {
            ledger.refuse(&path, &source, value, allowed());
            return (source, Vec::new());
        };
        if !(1..=*most).contains(&items.len()) {
            ledger.refuse(&path, &source, value, allowed());
        }
        (source, items.iter().take(*most).collect())
    }

    fn key(&self, name: &str) -> &'static Key {
        self.keys.iter().find(|key| key.name == name).expect("keys.rs lists every key that is read")
    }
}
