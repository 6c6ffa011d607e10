//! Times as people type them.

use std::time::Duration;

/// Longest time that an option accepts. Longer times are typing errors and would overflow clocks.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Parses seconds, with or without a fraction, or units: `10`, `0.5`, `1m30s`.
pub(crate) fn parse(text: &str) -> Result<Duration, &'static str> {
    let duration = match text.parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    let within = duration.filter(|duration| *duration <= LONGEST);
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
    fn what_nobody_means_is_refused() {
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
        fn no_text_is_too_strange_to_be_parsed(text in "\\PC*", number in "[0-9.e+-]*", unit in "[a-z]*") {
            for text in [text, number + &unit] {
                if let Ok(duration) = parse(&text) {
                    prop_assert!(duration <= LONGEST);
                }
            }
        }
    }
}
