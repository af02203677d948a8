//! Patterns for interface names: `eth*`, `ens?`.

use std::fmt;
use std::str::FromStr;

use crate::{IfName, NameError};

/// An interface name in which `*` stands for any characters and `?` for any one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Whether the whole name is as the pattern says.
    #[must_use]
    pub fn matches(&self, name: &IfName) -> bool {
        let pattern: Vec<char> = self.0.chars().collect();
        // Which parts of the pattern may stand for what was read so far: bit n is the first n characters of it. That is
        // linear in the name, whatever the pattern.
        let mut reached = vec![false; pattern.len() + 1];
        reach(&mut reached, 0, &pattern);
        for char in name.as_str().chars() {
            let mut next = vec![false; pattern.len() + 1];
            for (at, wanted) in pattern.iter().enumerate() {
                if !reached.get(at).copied().unwrap_or(false) {
                    continue;
                }
                match wanted {
                    '*' => reach(&mut next, at, &pattern),
                    '?' => reach(&mut next, at + 1, &pattern),
                    literal if *literal == char => reach(&mut next, at + 1, &pattern),
                    _ => {}
                }
            }
            reached = next;
        }
        reached.last().copied().unwrap_or(false)
    }
}

/// Marks that the pattern's first `at` characters are read; a `*` that follows may stand for nothing.
fn reach(reached: &mut [bool], at: usize, pattern: &[char]) {
    for at in at..=pattern.len() {
        if let Some(place) = reached.get_mut(at) {
            *place = true;
        }
        if pattern.get(at) != Some(&'*') {
            return;
        }
    }
}

impl FromStr for Pattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why| Err(NameError::new("an interface name or a pattern for some", text, why));
        if text.chars().any(|char| "[]{}()^$|\\+".contains(char)) {
            return refuse("only * and ? stand for other characters: it is no regular expression");
        }
        // With the shortest text that it stands for, it must be a name.
        let shortest: String = text.chars().filter(|char| *char != '*').collect();
        let named = if shortest.is_empty() && !text.is_empty() { "x" } else { &shortest };
        match named.parse::<IfName>() {
            Ok(_) => Ok(Pattern(text.to_owned())),
            Err(_) if shortest.len() > 15 => refuse("no interface has a name of more than 15 bytes"),
            // `.*` may stand for `.a`.
            Err(_) if text.contains('*') && ["..", "."].contains(&named) => Ok(Pattern(text.to_owned())),
            Err(error) => Err(error),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().matches(&name.parse().unwrap())
    }

    #[test]
    fn a_star_is_any_characters_and_a_question_mark_is_one() {
        for (pattern, name) in [
            ("eth0", "eth0"),
            ("eth*", "eth"),
            ("eth*", "eth12"),
            ("*", "a"),
            ("e*s?", "ens5"),
            ("*a*b*", "xaybz"),
            ("**", "q"),
            ("eth?.7", "eth1.7"),
            (".*", ".a"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("eth0", "eth01"),
            ("eth", "eth0"),
            ("eth?", "eth"),
            ("eth?", "eth12"),
            ("*a", "ab"),
            ("e.h0", "eth0"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_no_pattern_says_why() {
        for (text, words) in [
            ("", "it is empty"),
            ("eth[0-9]", "no regular expression"),
            ("^eth.+$", "no regular expression"),
            ("eth 0", "white space"),
            ("a/b", "'/'"),
            ("sixteen-bytes-xx", "15 bytes"),
            ("sixteen-bytes-xx*", "15 bytes"),
            ("..", "names a folder"),
        ] {
            let error = text.parse::<Pattern>().unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    /// What a pattern means, said as simply as it can be.
    fn means(pattern: &[char], name: &[char]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, rest) => rest.is_none(),
            (Some(('*', rest)), _) => (0..=name.len()).any(|skip| means(rest, &name[skip..])),
            (Some(_), None) => false,
            (Some((wanted, pattern)), Some((char, name))) => {
                (*wanted == '?' || wanted == char) && means(pattern, name)
            }
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_what_it_means(pattern in "[ab*?]{1,7}", name in "[ab]{1,8}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &name), means(&chars(&pattern), &chars(&name)));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            let _ = text.parse::<Pattern>();
        }
    }
}
