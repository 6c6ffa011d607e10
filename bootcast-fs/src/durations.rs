//! Durations in options.

use std::time::Duration;

/// Longest duration that an option accepts. Longer ones are typing errors, and adding them to a
/// clock could overflow.
const MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Parses a duration in seconds, such as `10` or `0.5`, or with units, such as `1m30s`. The error
/// describes a valid duration.
pub(crate) fn parse(text: &str) -> Result<Duration, &'static str> {
    let duration = match text.parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    let within = duration.filter(|duration| *duration <= MAX);
    within.ok_or("seconds, or units as in 1m30s, up to a year")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn seconds_need_no_unit() {
        assert_eq!(parse("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn negative_infinite_and_too_long_durations_are_refused() {
        for text in [
            "",
            "-1",
            "nan",
            "inf",
            "1e300",
            "18000000000000000000",
            "367days",
            "99999999999999999999s",
            "1 fortnight",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_or_gives_a_duration_above_the_limit(
            text in "\\PC*",
            number in "[0-9.e+-]*",
            unit in "[a-z]*",
        ) {
            for text in [text, number + &unit] {
                if let Ok(duration) = parse(&text) {
                    prop_assert!(duration <= MAX);
                }
            }
        }
    }
}
