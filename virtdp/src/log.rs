//! Log lines: readable ones by default, klog's under `--logtostderr`, JSON under `--log-format=json`.
//!
//! A JSON line is an object with `timestamp` (RFC 3339, UTC), `level`, `message`, and the fields of the event beside them.
//!
//! A klog line is `I1124 15:04:05.123456   PID file.rs:12] message key="value"`, in UTC: the standard library knows no time zones,
//! and a container rarely does.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{self as lines, FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What the log looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Logging {
    pub(crate) style: Style,
    /// Tell also what only somebody who looks for a fault wants to know.
    pub(crate) debug: bool,
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Style {
    /// For people.
    Readable,
    /// For those who have tools for klog.
    Klog,
    /// For programs.
    Json,
}

/// Starts logging to standard error.
pub(crate) fn start(logging: Logging) {
    let ours = if logging.debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let filter = Targets::new().with_target("virtdp", ours).with_default(LevelFilter::WARN);
    let registry = tracing_subscriber::registry().with(filter);
    // Somebody else may listen already; then their form is the form.
    let _ = match logging.style {
        Style::Klog => registry.with(lines::layer().event_format(Klog).with_writer(io::stderr)).try_init(),
        Style::Json => registry.with(json(io::stderr)).try_init(),
        Style::Readable => {
            let colour =
                io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            let layer = lines::layer().with_target(false).with_ansi(colour).with_writer(io::stderr);
            registry.with(layer).try_init()
        }
    };
}

/// One object for each event.
fn json<S, W>(writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    lines::layer().json().flatten_event(true).with_target(false).with_current_span(false).with_writer(writer)
}

struct Klog;

impl<S, N> FormatEvent<S, N> for Klog
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        out.write_str(&head(event.metadata(), now, std::process::id()))?;
        let mut fields = Fields::default();
        event.record(&mut fields);
        writeln!(out, "{}{}", fields.message, fields.others)
    }
}

fn head(metadata: &Metadata<'_>, since_epoch: Duration, process: u32) -> String {
    let severity = match *metadata.level() {
        Level::ERROR => 'E',
        Level::WARN => 'W',
        _ => 'I',
    };
    let seconds = since_epoch.as_secs();
    let (_, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let file = metadata.file().and_then(|path| path.rsplit('/').next()).unwrap_or("?");
    format!(
        "{severity}{month:02}{day:02} {hour:02}:{minute:02}:{second:02}.{:06} {process:7} {file}:{}] ",
        since_epoch.subsec_micros(),
        metadata.line().unwrap_or(0)
    )
}

/// A time as RFC 3339 writes it, in UTC and whole seconds.
pub(crate) fn rfc3339(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of the Gregorian calendar, `days` after 1 January 1970: Howard Hinnant's `civil_from_days`, for days
/// that are not negative.
fn civil(days: u64) -> (u64, u64, u64) {
    let (era, of_era) = ((days + 719_468) / 146_097, (days + 719_468) % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march_based = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_based + 2) / 5 + 1;
    let (month, next) = if march_based < 10 { (march_based + 3, 0) } else { (march_based - 9, 1) };
    (era * 400 + year + next, month, day)
}

#[derive(Default)]
struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format_args!("{value:?}"));
    }
}

impl Fields {
    /// A line stays one line, whatever it quotes.
    fn put(&mut self, field: &Field, value: &dyn fmt::Display) {
        if field.name() == "message" {
            self.message = value.to_string().replace('\n', "\\n");
        } else {
            // Writing to a String does not fail.
            let _ = write!(self.others, " {}={:?}", field.name(), value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_klog_line_has_severity_time_process_place_and_quoted_values() {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = lines::layer().event_format(Klog).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(device = %"0000:00:0a.0", count = 2, "no \"way\"\nout");
        });
        let line = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let (head, rest) = line.split_once("] ").unwrap();
        assert_eq!(rest, "no \"way\"\\nout device=\"0000:00:0a.0\" count=\"2\"\n");
        let words: Vec<&str> = head.split_whitespace().collect();
        assert!(words[0].starts_with('W') && words[0].len() == 5, "{head}");
        assert_eq!(words[1].len(), "15:04:05.123456".len());
        assert_eq!(words[2], std::process::id().to_string());
        assert!(words[3].starts_with("log.rs:"), "{head}");
    }

    #[test]
    fn a_json_line_is_one_object_with_time_level_message_and_fields() {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = json(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(device = %"0000:00:0a.0", count = 2, "no \"way\"\nout");
            tracing::info!("DeviceID in Allocate: {}", "0000:00:0a.0");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{text}");
        let keys: Vec<&str> = lines[0].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["count", "device", "level", "message", "timestamp"]);
        assert_eq!(lines[0]["level"], "WARN");
        assert_eq!(lines[0]["message"], "no \"way\"\nout");
        assert_eq!((&lines[0]["device"], &lines[0]["count"]), (&"0000:00:0a.0".into(), &2.into()));
        let time = lines[0]["timestamp"].as_str().unwrap();
        assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
        assert_eq!(lines[1]["message"], "DeviceID in Allocate: 0000:00:0a.0");
    }

    #[test]
    fn the_calendar_is_right_on_leap_days_and_at_the_turn_of_the_year() {
        // Days since the epoch as `date -u -d DATE +%s` gives them, by 86400.
        for (days, expected) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (19_782, (2024, 2, 29)),
            (20_453, (2025, 12, 31)),
            (20_781, (2026, 11, 24)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), expected, "{days}");
        }
        assert_eq!(rfc3339(Duration::from_millis(1_795_546_800_900)), "2026-11-24T19:00:00Z");
    }
}
