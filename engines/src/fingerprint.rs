//! What blocks of an engine are besides their tokens: every fact that changes their bytes, as one name.

/// Returns a name for these facts: two sets that differ in any have two names. The order in which they are given says nothing.
pub fn fingerprint(engine: &str, facts: &[(String, String)]) -> String {
    let mut sorted: Vec<&(String, String)> = facts.iter().collect();
    sorted.sort();
    let mut hasher = blake3::Hasher::new_derive_key("kvhive 2026-11 engine fingerprint v1");
    for text in sorted.iter().flat_map(|(name, value)| [name, value]) {
        // With its length before it, so that no two lists run into the same bytes.
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    format!("{engine}#{}", &hasher.finalize().to_hex()[..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(given: &[(&str, &str)]) -> Vec<(String, String)> {
        given.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn every_fact_changes_the_name_and_their_order_does_not() {
        let one = fingerprint("vllm", &facts(&[("dtype", "float16"), ("tp", "1")]));
        assert_eq!(one, fingerprint("vllm", &facts(&[("tp", "1"), ("dtype", "float16")])));
        assert!(one.starts_with("vllm#") && one.len() == 37, "{one}");
        let others = [
            fingerprint("vllm", &facts(&[("dtype", "float16"), ("tp", "2")])),
            fingerprint("vllm", &facts(&[("dtype", "float16")])),
            fingerprint("vllm", &facts(&[("dtype", "float16t"), ("p", "1")])),
            fingerprint("sglang", &facts(&[("dtype", "float16"), ("tp", "1")])),
        ];
        for (at, other) in others.iter().enumerate() {
            assert_ne!(*other, one, "{at}");
        }
    }
}
