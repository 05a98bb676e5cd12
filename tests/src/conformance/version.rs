//! Versions of the CNI specification: which exist, which verbs each has, which is newer.

/// The versions this kit speaks, oldest first. 0.1.0 and 0.2.0 have another result shape, and no
/// runtime in use sends them.
pub const SPOKEN: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The first version that has the verb.
pub fn since(verb: &str) -> &'static str {
    match verb {
        "CHECK" => "0.4.0",
        "GC" | "STATUS" => "1.1.0",
        _ => "0.3.0",
    }
}

/// Whether `version` is `oldest` or newer. What is no version is older than all.
pub fn at_least(version: &str, oldest: &str) -> bool {
    numbers(version) >= numbers(oldest)
}

fn numbers(version: &str) -> Option<Vec<u32>> {
    version.split('.').map(|part| part.parse().ok()).collect()
}

/// The newest version that both the kit and a plugin with this list speak.
pub fn newest_common(supported: &[String]) -> Option<&'static str> {
    SPOKEN.into_iter().rev().find(|version| supported.iter().any(|other| other == version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number_and_not_by_letter() {
        assert!(at_least("0.10.0", "0.4.0"));
        assert!(at_least("1.0.0", "1.0.0"));
        assert!(!at_least("0.3.1", "0.4.0"));
        assert!(!at_least("banana", "0.3.0"));
    }

    #[test]
    fn the_newest_common_version_ignores_those_of_the_future() {
        let supported = ["0.4.0", "1.0.0", "2.0.0"].map(str::to_owned);
        assert_eq!(newest_common(&supported), Some("1.0.0"));
        assert_eq!(newest_common(&["2.0.0".to_owned()]), None);
    }
}
