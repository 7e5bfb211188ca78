//! A wall clock that is hours off, by libfaketime; the clock that only goes forward is left as it is.

use crate::cluster::local::Begin;
use std::path::PathBuf;

/// Where distributions put it.
const FOLDERS: [&str; 3] =
    ["/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime", "/usr/lib64/faketime"];

/// Returns the library, if it is here.
pub(super) fn library() -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| PathBuf::from(folder).join("libfaketime.so.1")).find(|file| file.exists())
}

/// Returns how a process is begun whose wall clock is off by so many hours.
pub(in super::super) fn wrong_clock(begin: &Begin, hours: i64) -> Begin {
    let library = library().map(|file| file.display().to_string()).unwrap_or_default();
    let words = begin.words.iter().cloned();
    // Given to the process alone and not to those that begin it: they would have it too, and end by running it.
    let set = ["env".to_owned(), format!("LD_PRELOAD={library}"), format!("FAKETIME={hours:+}h")];
    let rest = ["DONT_FAKE_MONOTONIC=1", "FAKETIME_DONT_RESET=1"].map(str::to_owned);
    Begin { words: words.chain(set).chain(rest).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_set_behind_the_words_that_begin_a_process() {
        let begin = Begin { words: vec!["ip".to_owned()] };
        let wrong = wrong_clock(&begin, -3);
        assert_eq!((wrong.words[0].as_str(), wrong.words[1].as_str()), ("ip", "env"));
        assert!(wrong.words.contains(&"FAKETIME=-3h".to_owned()));
        assert!(wrong_clock(&begin, 2).words.contains(&"FAKETIME=+2h".to_owned()));
    }
}
