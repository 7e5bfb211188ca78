//! The file as a tree of values that remember their line. Knows TOML, and nothing about keys.

use crate::MAX_FILE_BYTES;
use crate::ledger::Ledger;
use crate::problem::{Origin, Problem};
use std::collections::BTreeMap;
use toml::de::{DeTable, DeValue};

pub(crate) type Table = BTreeMap<String, Value>;

#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) kind: Kind,
    pub(crate) origin: Origin,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Text(String),
    Whole(i128),
    Decimal(f64),
    List(Vec<Value>),
    Table(Table),
    /// A boolean or a date, which no key takes, or a number beyond all bounds; as written.
    Other(String),
}

/// The most characters of a value that a problem shows.
const SHOWN_CHARS: usize = 60;

impl Value {
    /// Makes the value that a default or a variable gives: text, in which numbers and lists are allowed too.
    pub(crate) fn text(text: &str, origin: Origin) -> Value {
        Value { kind: Kind::Text(text.to_owned()), origin }
    }

    /// Says whether numbers and lists come as text here.
    pub(crate) fn is_loose(&self) -> bool {
        !matches!(self.origin, Origin::Line(_))
    }

    /// Renders the value for a problem's message, bounded.
    pub(crate) fn shown(&self) -> String {
        match &self.kind {
            Kind::Text(text) => format!("{:?}", cut(text)),
            Kind::Whole(number) => number.to_string(),
            Kind::Decimal(number) => cut(&number.to_string()),
            Kind::List(items) => format!("(array of {})", items.len()),
            Kind::Table(_) => "(table)".to_owned(),
            Kind::Other(text) => cut(text),
        }
    }
}

fn cut(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN_CHARS).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Parses `text`; what is not TOML goes to the ledger.
pub(crate) fn parse(text: &str, ledger: &mut Ledger) -> Table {
    if text.len() > MAX_FILE_BYTES {
        ledger.add(Problem::TooLong { bytes: text.len(), allowed: MAX_FILE_BYTES });
        return Table::new();
    }
    let lines = Lines::of(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    let place = |error: &toml::de::Error| lines.position(error.span().map_or(0, |span| span.start));
    let mut errors: Vec<_> = errors.iter().map(|error| (place(error), error)).collect();
    errors.sort_by_key(|(place, _)| *place);
    for ((line, column), error) in errors {
        ledger.add(Problem::Syntax { line, column, message: error.message().to_owned() });
    }
    table(document.get_ref(), &lines)
}

fn table(from: &DeTable<'_>, lines: &Lines<'_>) -> Table {
    let mut table = Table::new();
    for (key, value) in from {
        let (line, _) = lines.position(key.span().start);
        table.insert(key.get_ref().to_string(), convert(value.get_ref(), line, lines));
    }
    table
}

fn convert(value: &DeValue<'_>, line: u32, lines: &Lines<'_>) -> Value {
    let kind = match value {
        DeValue::String(text) => Kind::Text(text.to_string()),
        DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Kind::Whole(number),
            Err(_) => Kind::Other(number.as_str().to_owned()),
        },
        DeValue::Float(number) => match number.as_str().parse::<f64>() {
            Ok(number) => Kind::Decimal(number),
            Err(_) => Kind::Other(number.as_str().to_owned()),
        },
        DeValue::Boolean(value) => Kind::Other(value.to_string()),
        DeValue::Datetime(value) => Kind::Other(value.to_string()),
        DeValue::Array(items) => {
            let item = |item: &toml::Spanned<DeValue<'_>>| {
                let (line, _) = lines.position(item.span().start);
                convert(item.get_ref(), line, lines)
            };
            Kind::List(items.iter().map(item).collect())
        }
        DeValue::Table(from) => Kind::Table(table(from, lines)),
    };
    Value { kind, origin: Origin::Line(line) }
}

/// Where each line begins, so that a position costs a binary search.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Lines<'a> {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Lines { text, starts }
    }

    /// Returns line and column of the byte at `offset`, both from 1.
    fn position(&self, offset: usize) -> (u32, u32) {
        let line = self.starts.partition_point(|start| *start <= offset).max(1);
        let before = self.text.get(self.starts[line - 1]..offset).unwrap_or("");
        let number = |count: usize| u32::try_from(count).expect("a file has at most MAX_FILE_BYTES lines");
        (number(line), number(before.chars().count() + 1))
    }
}
