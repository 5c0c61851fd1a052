//! How long reads of a node took lately.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What a node is taken to need before it was measured, or when that is long ago.
const UNKNOWN: Duration = Duration::from_micros(500);
/// For how long a measurement counts: who was slow once is asked again some time.
const VALID_FOR: Duration = Duration::from_secs(10);
/// The weight of what was measured before against the newest.
const WEIGHT_OF_OLDER: u32 = 7;

/// Smoothed over some reads.
#[derive(Default)]
pub(super) struct Latency {
    /// With the time of the newest measurement.
    measured: Mutex<Option<(Duration, Instant)>>,
}

impl Latency {
    /// A read took so long.
    pub(super) fn note(&self, elapsed: Duration, now: Instant) {
        let before = self.get(now);
        let smoothed = (before * WEIGHT_OF_OLDER + elapsed) / (WEIGHT_OF_OLDER + 1);
        *self.measured.lock().expect(POISONED) = Some((smoothed, now));
    }

    /// A read would have taken longer than this, and was given up: who hangs is told by the first one.
    pub(super) fn note_more_than(&self, elapsed: Duration, now: Instant) {
        if elapsed > self.get(now) {
            *self.measured.lock().expect(POISONED) = Some((elapsed, now));
        }
    }

    /// How long the next read may be expected to take.
    pub(super) fn get(&self, now: Instant) -> Duration {
        let measured = *self.measured.lock().expect(POISONED);
        let valid = measured.filter(|(_, at)| now.saturating_duration_since(*at) < VALID_FOR);
        valid.map_or(UNKNOWN, |(smoothed, _)| smoothed)
    }
}

const POISONED: &str = "nothing panics while it holds a measurement";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_what_is_measured_and_is_forgotten() {
        let latency = Latency::default();
        let mut now = Instant::now();
        assert_eq!(latency.get(now), UNKNOWN);
        latency.note(Duration::from_millis(100), now);
        let after_one = latency.get(now);
        assert!((Duration::from_millis(12)..Duration::from_millis(14)).contains(&after_one), "{after_one:?}");
        for _ in 0..40 {
            now += VALID_FOR / 2;
            latency.note(Duration::from_millis(100), now);
        }
        assert!(latency.get(now) > Duration::from_millis(95));
        assert_eq!(latency.get(now + VALID_FOR), UNKNOWN);
        latency.note(Duration::from_millis(1), now + VALID_FOR);
        assert!(latency.get(now + VALID_FOR) < Duration::from_millis(1), "the old one counts no more");
        now += VALID_FOR;
        latency.note_more_than(Duration::from_millis(30), now);
        assert_eq!(latency.get(now), Duration::from_millis(30));
        latency.note_more_than(Duration::from_millis(20), now);
        assert_eq!(latency.get(now), Duration::from_millis(30));
    }
}
