//! Warnings of this process that were logged lately, for the status of the mount.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::io::now;
use crate::status::Warning;

/// Most warnings that are remembered.
const MAX_WARNINGS: usize = 16;
/// Most characters of the text of one.
const MAX_TEXT: usize = 400;
/// Time for which a warning is shown. A cause that lasts is logged once a minute.
const SHOWN_FOR: Duration = Duration::from_secs(600);

static RECENT: Mutex<VecDeque<(Instant, String)>> = Mutex::new(VecDeque::new());

/// Returns the warnings of the last minutes, the newest first.
pub(crate) fn recent() -> Vec<Warning> {
    let recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    let age = |at: &Instant| now().saturating_duration_since(*at);
    let shown = recent.iter().filter(|(at, _)| age(at) < SHOWN_FOR);
    shown.map(|(at, text)| Warning { age_s: age(at).as_secs(), text: text.clone() }).collect()
}

fn record(text: String, now: Instant) {
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    recent.push_front((now, text));
    recent.truncate(MAX_WARNINGS);
}

/// Remembers the warnings and errors of this crate, whatever the log filter says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WarningRecorder;

impl<S: Subscriber> Layer<S> for WarningRecorder {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if *metadata.level() <= Level::WARN && metadata.target().starts_with("bootcast") {
            let mut text = Text::default();
            event.record(&mut text);
            record(text.finish(), now());
        }
    }
}

/// Text of an event: the message, and then the other fields as `name=value`.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(self) -> String {
        (self.message + &self.fields).chars().take(MAX_TEXT).collect()
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn warnings_are_remembered_with_their_fields_and_nothing_else_is() {
        let subscriber = tracing_subscriber::registry().with(WarningRecorder);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("news");
            tracing::warn!(path = "a", "no {}", "luck");
            tracing::warn!("{}", "\u{e4}".repeat(MAX_TEXT));
        });
        let texts: Vec<_> = recent().into_iter().map(|warning| warning.text).collect();
        assert!(texts.iter().any(|text| text == "no luck path=\"a\""), "{texts:?}");
        assert!(
            texts.iter().all(|text| text.chars().count() <= MAX_TEXT && text != "news"),
            "{texts:?}"
        );
    }
}
