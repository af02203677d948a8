//! Waiting for a kubelet that is not there: how long, and how often to say so. Pure.

use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// Who looks at the log meanwhile should see what is waited for.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// Pauses that double.
#[derive(Debug, Default)]
pub(crate) struct Backoff(Option<Duration>);

impl Backoff {
    pub(crate) fn next(&mut self) -> Duration {
        let next = self.0.map_or(FIRST, |last| (last * 2).min(LONGEST));
        self.0 = Some(next);
        next
    }

    pub(crate) fn reset(&mut self) {
        self.0 = None;
    }
}

/// What was complained of last.
#[derive(Debug, Default)]
pub(crate) struct Complaint(Option<(String, Instant)>);

impl Complaint {
    /// Whether to say it: it is new, or was said a while ago.
    pub(crate) fn is_due(&mut self, text: &str, now: Instant) -> bool {
        if let Some((last, when)) = &self.0
            && last == text
            && now.saturating_duration_since(*when) < REPEAT_AFTER
        {
            return false;
        }
        self.0 = Some((text.to_owned(), now));
        true
    }

    pub(crate) fn forget(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_begin_anew_after_success() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..8).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000]);
        backoff.reset();
        assert_eq!(backoff.next(), FIRST);
    }

    #[test]
    fn a_complaint_is_repeated_when_it_changes_and_once_in_a_while() {
        let mut complaint = Complaint::default();
        let start = Instant::now();
        assert!(complaint.is_due("no socket", start));
        assert!(!complaint.is_due("no socket", start + Duration::from_secs(59)));
        assert!(complaint.is_due("no folder", start + Duration::from_secs(59)));
        assert!(complaint.is_due("no folder", start + Duration::from_secs(119)));
        complaint.forget();
        assert!(complaint.is_due("no folder", start + Duration::from_secs(120)));
    }
}
