//! The suite of the clock.

use base::Millis;
use ports::Clock;

/// Checks one clock, within a second of its time.
///
/// # Panics
/// Where it is not what the port says.
pub async fn check(clock: &impl Clock) {
    let begin = clock.monotonic();
    for wait in [0, 1, 7, 50] {
        let at = Millis(clock.monotonic().0 + wait);
        clock.sleep_until(at).await;
        let now = clock.monotonic();
        assert!(now >= at, "woke at {now:?}, before {at:?}");
    }
    // What has passed is not waited for.
    clock.sleep_until(Millis::ZERO).await;
    let copy = clock.clone();
    assert!(copy.monotonic() >= begin, "copies tell one time");
    assert!(copy.monotonic() >= clock.monotonic() || clock.monotonic() > begin);
    assert!(clock.now().0 > 1_500_000_000_000, "wall time is in milliseconds since 1970");
}
