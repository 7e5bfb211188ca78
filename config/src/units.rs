//! Sizes and times as people write them: always with a unit, never rounded. A bare number is refused, since nobody can
//! tell whether "64" meant bytes, blocks or mebibytes. `bytesize` was not taken here: it reads bare numbers and goes
//! through floating point.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes, written with a unit: `64MiB`, `1.5GB`, or `0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Bytes(pub u64);

/// Why a text is no size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SizeError {
    /// A bare number other than 0.
    #[error("a size needs a unit, such as \"64MiB\"")]
    NoUnit,
    /// A unit that is not one.
    #[error("\"{0}\" is no unit; units are B, KB, MB, GB, TB, KiB, MiB, GiB, TiB")]
    UnknownUnit(String),
    /// It does not begin with a number.
    #[error("a size is a number and a unit, such as \"64MiB\"")]
    NotANumber,
    /// It names a fraction of a byte.
    #[error("a size must come out at whole bytes")]
    NotWhole,
    /// It does not fit 64 bits.
    #[error("the size is larger than any memory")]
    TooLarge,
}

const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// The most digits of a size's number, before and after the point: the largest size has as many when it is written in bytes.
const MAX_DIGITS: usize = 20;

impl FromStr for Bytes {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Bytes, SizeError> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..end], text[end..].trim_start());
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') || number.ends_with('.') {
            return Err(SizeError::NotANumber);
        }
        if whole.len() > MAX_DIGITS || fraction.len() > MAX_DIGITS {
            return Err(SizeError::TooLarge);
        }
        if unit.is_empty() {
            let zero = number.bytes().all(|digit| digit == b'0');
            return if zero { Ok(Bytes(0)) } else { Err(SizeError::NoUnit) };
        }
        let Some((_, scale)) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) else {
            return Err(SizeError::UnknownUnit(unit.chars().take(16).collect()));
        };
        let scale = u128::from(*scale);
        let whole: u128 = whole.parse().map_err(|_| SizeError::NotANumber)?;
        let parts: u128 =
            if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| SizeError::NotANumber)? };
        let of = 10u128.pow(u32::try_from(fraction.len()).expect("at most MAX_DIGITS"));
        if !(parts * scale).is_multiple_of(of) {
            return Err(SizeError::NotWhole);
        }
        u64::try_from(whole * scale + parts * scale / of).map(Bytes).map_err(|_| SizeError::TooLarge)
    }
}

impl fmt::Display for Bytes {
    /// Writes the size exactly, in the largest binary unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.pad("0");
        }
        for (name, scale) in &UNITS[..4] {
            if self.0.is_multiple_of(*scale) {
                return f.pad(&format!("{}{name}", self.0 / scale));
            }
        }
        f.pad(&format!("{}B", self.0))
    }
}

/// Writes a time of whole milliseconds as the cluster file has it: `2s`, `400ms`.
pub fn format_time(time: Duration) -> String {
    let ms = time.as_millis();
    if ms > 0 && ms.is_multiple_of(1000) { format!("{}s", ms / 1000) } else { format!("{ms}ms") }
}

/// Reads a time of whole milliseconds with its unit, or says what is wrong.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "a time needs a unit, such as \"{}ms\"",
            text.chars().take(20).collect::<String>()
        ));
    }
    let time = humantime::parse_duration(text)
        .map_err(|_| "a time is a number and a unit, such as \"400ms\" or \"2s\"".to_owned())?;
    if !time.subsec_nanos().is_multiple_of(1_000_000) {
        return Err("a time must come out at whole milliseconds".to_owned());
    }
    Ok(time)
}

/// Renders a part of a whole that is given in thousandths, as a cluster file has it.
pub fn format_share(per_mille: u16) -> String {
    (f64::from(per_mille) / 1000.0).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_exactly_in_every_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("0B", 0),
            ("1B", 1),
            ("64KiB", 64 << 10),
            ("64 kib", 64 << 10),
            ("1.5GiB", 3 << 29),
            ("0.5KB", 500),
            ("1GB", 1_000_000_000),
            (" 2TiB ", 2 << 40),
            ("16777215.999TB", 16_777_215_999_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn the_largest_size_is_read_as_it_is_written() {
        for bytes in [u64::MAX, 2_805_000_888_888_000_000] {
            assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
        }
        assert_eq!("18446744073709551616B".parse::<Bytes>(), Err(SizeError::TooLarge));
    }

    #[test]
    fn a_size_without_a_known_unit_is_refused_with_the_reason() {
        for (text, message) in [
            ("64", "a size needs a unit, such as \"64MiB\""),
            ("64M", "\"M\" is no unit; units are B, KB, MB, GB, TB, KiB, MiB, GiB, TiB"),
            ("", "a size is a number and a unit, such as \"64MiB\""),
            ("MiB", "a size is a number and a unit, such as \"64MiB\""),
            ("-1MiB", "a size is a number and a unit, such as \"64MiB\""),
            ("1.2.3MiB", "a size is a number and a unit, such as \"64MiB\""),
            ("0.3B", "a size must come out at whole bytes"),
            ("99999999TiB", "the size is larger than any memory"),
            ("99999999999999999999B", "the size is larger than any memory"),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn a_time_carries_a_unit_and_whole_milliseconds() {
        assert_eq!(parse_time("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_time("1s 500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_time("200"), Err("a time needs a unit, such as \"200ms\"".to_owned()));
        assert_eq!(parse_time("10us"), Err("a time must come out at whole milliseconds".to_owned()));
        assert_eq!(
            parse_time("soon"),
            Err("a time is a number and a unit, such as \"400ms\" or \"2s\"".to_owned())
        );
    }

    #[test]
    fn written_sizes_and_times_read_back() {
        for bytes in [0, 1, 1000, 1024, 1 << 20, 3 << 29, u64::MAX / 1000] {
            assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
        }
        for ms in [1, 60, 999, 1000, 60_000] {
            let time = Duration::from_millis(ms);
            assert_eq!(parse_time(&format_time(time)), Ok(time));
        }
    }
}
