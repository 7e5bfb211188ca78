//! Patterns as Redis has them: `*`, `?`, `[a-z]`, `[^a]` and `\` before what is meant as it is.

/// Says whether `text` is of the pattern. Takes at most the product of both lengths.
pub(super) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut pattern_at) = (0, 0);
    // Where the last star is, and how far it has eaten: only the last one needs to be tried again.
    let mut star: Option<(usize, usize)> = None;
    while at < text.len() {
        match one(&pattern[pattern_at..], text[at]) {
            One::Star => {
                star = Some((pattern_at + 1, at));
                pattern_at += 1;
            }
            One::Fits(taken) => {
                pattern_at += taken;
                at += 1;
            }
            One::Not => match &mut star {
                Some((after, eaten)) => {
                    *eaten += 1;
                    (pattern_at, at) = (*after, *eaten);
                }
                None => return false,
            },
        }
    }
    pattern[pattern_at..].iter().all(|byte| *byte == b'*')
}

enum One {
    Star,
    /// It fits, by so many bytes of the pattern.
    Fits(usize),
    Not,
}

fn one(pattern: &[u8], byte: u8) -> One {
    let fits = |fits: bool, taken: usize| if fits { One::Fits(taken) } else { One::Not };
    match pattern {
        [] => One::Not,
        [b'*', ..] => One::Star,
        [b'?', ..] => One::Fits(1),
        [b'\\', meant, ..] => fits(*meant == byte, 2),
        [b'[', class @ ..] => {
            let (class, is_not) = match class {
                [b'^', class @ ..] => (class, true),
                class => (class, false),
            };
            let (mut at, mut found) = (0, false);
            while at < class.len() && class[at] != b']' {
                match &class[at..] {
                    [b'\\', meant, ..] => {
                        found |= *meant == byte;
                        at += 2;
                    }
                    [low, b'-', high, ..] if *high != b']' => {
                        found |= (*low.min(high)..=*low.max(high)).contains(&byte);
                        at += 3;
                    }
                    [meant, ..] => {
                        found |= *meant == byte;
                        at += 1;
                    }
                    [] => {}
                }
            }
            let taken = 1 + usize::from(is_not) + (at + 1).min(class.len());
            fits(found != is_not, taken)
        }
        [meant, ..] => fits(*meant == byte, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_mean_what_they_mean_to_redis() {
        for (pattern, text, fits) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*c", "abbc", true),
            ("a*c", "abb", false),
            ("a*b*c", "a-b-b-c", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[]llo", "hello", false),
            (r"\*", "*", true),
            (r"\*", "a", false),
            (r"[\]]", "]", true),
            ("[a", "a", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), fits, "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn no_pattern_is_too_much_for_it(
            pattern in prop::collection::vec(prop::sample::select(&b"*?[]^-\\ab"[..]), 0..24),
            text in prop::collection::vec(prop::sample::select(&b"ab]-"[..]), 0..24),
        ) {
            let fits = matches(&pattern, &text);
            let twice: Vec<u8> = [b"*", &pattern[..]].concat();
            prop_assert!(!fits || matches(&twice, &text), "a star before it takes nothing away");
        }

        #[test]
        fn what_is_escaped_means_itself(text in prop::collection::vec(any::<u8>(), 0..24)) {
            let pattern: Vec<u8> = text.iter().flat_map(|byte| [b'\\', *byte]).collect();
            prop_assert!(matches(&pattern, &text));
        }
    }
}
