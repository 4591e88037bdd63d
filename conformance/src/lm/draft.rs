//! Drafts by prompt lookup: what followed the last time the text ended like this.

/// Longest run of bytes that is looked up.
const LONGEST: usize = 12;
/// Shortest run that is trusted to predict anything.
const SHORTEST: usize = 3;

/// Up to `most` bytes that followed the most recent earlier occurrence of the text's longest
/// suffix; nothing where no suffix of at least three bytes occurs again.
pub fn prompt_lookup(text: &[u8], most: usize) -> &[u8] {
    for length in (SHORTEST..=LONGEST.min(text.len().saturating_sub(1))).rev() {
        let (earlier, suffix) = (&text[..text.len() - 1], &text[text.len() - length..]);
        if let Some(at) = earlier.windows(length).rposition(|window| window == suffix) {
            let following = &text[at + length..];
            return &following[..following.len().min(most)];
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_occurrence_of_the_longest_suffix_wins() {
        assert_eq!(prompt_lookup(b"abcX abcY abc", 2), b"Y ");
        assert_eq!(prompt_lookup(b"-abcX abcY -abc", 1), b"X");
    }

    #[test]
    fn drafts_end_where_the_text_ends() {
        assert_eq!(prompt_lookup(b"abcdabc", 9), b"dabc");
        assert_eq!(prompt_lookup(b"aaaa", 9), b"a");
    }

    #[test]
    fn nothing_is_made_up() {
        assert_eq!(prompt_lookup(b"abcdefgh", 4), b"");
        assert_eq!(prompt_lookup(b"ab", 4), b"");
        assert_eq!(prompt_lookup(b"", 4), b"");
        assert_eq!(prompt_lookup(b"abcabc", 0), b"");
    }
}
