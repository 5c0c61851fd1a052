//! Keeps work to a rate, so that who works beside it notices little.

use std::time::{Duration, Instant};

/// A rate of bytes, from its making on.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: Option<u64>,
    started: Instant,
    bytes: u64,
}

impl Pace {
    /// `None`: as fast as it goes.
    pub(super) fn new(mib_per_second: Option<u64>) -> Self {
        let bytes_per_second = mib_per_second.map(|rate| rate.saturating_mul(1024 * 1024));
        Self { bytes_per_second, started: Instant::now(), bytes: 0 }
    }

    /// Waits until as much may be begun as was before, and counts so much more.
    pub(super) async fn begin(&mut self, bytes: u64) {
        let due = self.due();
        tokio::time::sleep(due.saturating_sub(self.started.elapsed())).await;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// How long what was begun takes at this rate.
    fn due(&self) -> Duration {
        match self.bytes_per_second {
            Some(rate) => Duration::from_secs_f64(self.bytes as f64 / rate as f64),
            None => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_begun_keeps_to_the_rate() {
        let begun = Instant::now();
        let mut pace = Pace::new(Some(1));
        for _ in 0..5 {
            pace.begin(64 * 1024).await;
        }
        assert!(
            begun.elapsed() >= Duration::from_millis(250),
            "four pieces of 64 KiB at 1 MiB/s: {:?}",
            begun.elapsed()
        );
        assert_eq!(pace.due(), Duration::from_secs_f64(5.0 / 16.0));
        let mut free = Pace::new(None);
        free.begin(1 << 60).await;
        assert_eq!(free.due(), Duration::ZERO);
    }
}
