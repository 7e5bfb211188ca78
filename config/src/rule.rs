//! What a key may be, and how that is said to who gave something else.

use crate::keys::{
    BLOCK_ALIGN, BLOCK_BYTES, MAX_CLASSES, MAX_LABEL_BYTES, MAX_LABELS, MAX_NAME_BYTES, MAX_PATH_BYTES,
    MAX_TOPIC_BYTES,
};
use crate::units::{Bytes, format_share, format_time};
use std::time::Duration;

/// What a key may be.
pub(crate) enum Rule {
    /// A name of a cluster or process.
    Name,
    /// An address or DNS name that others use.
    Host,
    /// The base URL of a service that is reached without encryption.
    Url,
    /// `ip:port` to listen on.
    Listen,
    /// What messages are published under.
    Topic,
    /// A path.
    Path,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A whole number.
    Whole { min: u64, max: u64 },
    /// A part of a whole, in thousandths.
    Share { min: u16, max: u16 },
    /// A size.
    Size { min: u64, max: u64, or_zero: bool },
    /// A time, in milliseconds.
    Time { min: u64, max: u64 },
    /// Size classes.
    Classes,
    /// Free labels.
    Labels,
    /// A program and its words.
    Words { most: usize },
    /// A StatefulSet of Kubernetes.
    StatefulSet,
    /// A table with keys of its own.
    Table,
    /// An array of tables.
    Tables { most: usize, header: &'static str },
}

impl Rule {
    /// Says what is allowed, to stand after "allowed is".
    pub(crate) fn allowed(&self) -> String {
        match self {
            Rule::Name => format!(
                "1 to {MAX_NAME_BYTES} of a-z, 0-9 and single hyphens, with a letter or digit at both ends"
            ),
            Rule::Host => "an IP address or a DNS name".to_owned(),
            Rule::Listen => "an IP address and a port from 1 to 65535, such as \"0.0.0.0:7810\"".to_owned(),
            Rule::Url => "http://host:port, without a path".to_owned(),
            Rule::Topic => format!("a text of 1 to {MAX_TOPIC_BYTES} bytes without control characters"),
            Rule::Path => format!("a path of 1 to {MAX_PATH_BYTES} bytes without control characters"),
            Rule::Choice(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                words.join(" or ")
            }
            Rule::Whole { min, max } => format!("a whole number from {min} to {max}"),
            Rule::Share { min, max } => {
                format!("a number from {} to {}", format_share(*min), format_share(*max))
            }
            Rule::Size { min, max, or_zero } => {
                let zero = if *or_zero { "\"0\" or " } else { "" };
                format!("{zero}a size from \"{}\" to \"{}\"", Bytes(*min), Bytes(*max))
            }
            Rule::Time { min, max } => {
                let text = |ms: &u64| format_time(Duration::from_millis(*ms));
                format!("a time from \"{}\" to \"{}\"", text(min), text(max))
            }
            Rule::Classes => format!(
                "an array of 1 to {MAX_CLASSES} different sizes from \"{}\" to \"{}\", multiples of {BLOCK_ALIGN} bytes, \
                 all or none as {{ size, share }}",
                Bytes(BLOCK_BYTES.0),
                Bytes(BLOCK_BYTES.1)
            ),
            Rule::Labels => format!(
                "a table of at most {MAX_LABELS} texts; keys of 1 to {MAX_LABEL_BYTES} letters, digits, '.', '_', '-' and '/', \
                 values of at most {MAX_LABEL_BYTES} bytes without control characters"
            ),
            Rule::Words { most } => format!(
                "an array of 1 to {most} texts of 1 to {MAX_PATH_BYTES} bytes without control characters"
            ),
            Rule::StatefulSet => {
                "\"NAME\" or \"NAMESPACE/NAME\", each 1 to 63 of a-z, 0-9 and '-', as in \"kvhive/kvhive-node\"".to_owned()
            }
            Rule::Table => "a table".to_owned(),
            Rule::Tables { most, header } => format!("1 to {most} tables, each begun by [[{header}]]"),
        }
    }
}
