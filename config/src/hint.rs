//! The nearest of what is known to a word that is not.

/// Returns the nearest of `known` to `given`, or all of them, as a hint.
pub(crate) fn hint<'a>(given: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    // Typing mistakes change a letter or two; a word further away would only mislead.
    let distance = |word: &str| strsim::osa_distance(&given.chars().take(64).collect::<String>(), word);
    let nearest = known.clone().map(|word| (distance(word), word)).min();
    match nearest {
        Some((distance, word)) if distance <= 1 + word.len() / 4 => format!("did you mean \"{word}\"?"),
        _ => format!("known here are {}", known.collect::<Vec<_>>().join(", ")),
    }
}
