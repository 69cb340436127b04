//! How long to wait before trying again: 100 ms, doubled with every failure in a row, 5 s at most.
//!
//! One rule for sources, sinks and single forwards, so that "how soon is it tried again" has one answer.

use std::time::Duration;

/// The wait after the first failure.
pub const FIRST: Duration = Duration::from_millis(100);

/// The longest wait.
pub const LONGEST: Duration = Duration::from_secs(5);

/// The wait after `failures` failures in a row (0 and 1 are the same).
pub fn wait_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    FIRST.saturating_mul(1 << doublings).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_longest() {
        let ms: Vec<u128> = [0, 1, 2, 3, 6, 7, u32::MAX].iter().map(|n| wait_after(*n).as_millis()).collect();
        assert_eq!(ms, [100, 100, 200, 400, 3200, 5000, 5000]);
    }
}
