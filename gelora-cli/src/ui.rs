//! Output to the user: progress and notes on stderr, results on stdout.
//!
//! On a terminal, progress is a bar and a table has lines. Elsewhere, progress is a line every ten seconds and a table
//! is plain ASCII, which suits a log file. `NO_COLOR` also selects the plain form.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, ContentArrangement, ContentLineStyle, LineStyle, presets};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Interval between progress lines if there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Whether this process says nothing, because another one of the same run does.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Whether a launcher collects the output of several processes. It may hand them a terminal without a width.
static IS_LAUNCHED: AtomicBool = AtomicBool::new(false);

/// Makes this process one of several for the rest of the run. The first one speaks, in plain text; the others say
/// nothing but [`error`].
pub fn set_launched(rank: usize) {
    IS_LAUNCHED.store(true, Ordering::Relaxed);
    SILENT.store(rank > 0, Ordering::Relaxed);
}

/// Whether a stream is a terminal of this process.
fn is_terminal(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && !IS_LAUNCHED.load(Ordering::Relaxed)
}

/// Whether this process says nothing.
pub fn is_silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

/// Writes an error to stderr.
pub fn error(text: impl AsRef<str>) {
    // A closed stderr cannot be reported anywhere. One call writes the whole line, so that processes do not mix theirs.
    let _ = io::stderr().lock().write_all(format!("error: {}\n", text.as_ref()).as_bytes());
}

/// Writes a result to stdout, with a newline. A closed pipe (`gelora rank | head`) is not an error.
///
/// `println!` would panic on a closed pipe, so nothing in this crate uses it.
///
/// # Errors
/// Returns an error if stdout cannot be written for another reason, such as a full disk.
pub fn result(text: impl AsRef<str>) -> io::Result<()> {
    if is_silent() {
        return Ok(());
    }
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "{}", text.as_ref()).and_then(|()| stdout.flush());
    written.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
}

/// Writes a remark to stderr, unless `quiet`.
pub fn note(quiet: bool, text: impl AsRef<str>) {
    if !quiet && !is_silent() {
        // A closed stderr cannot be reported anywhere.
        let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
    }
}

/// Warnings of this run.
static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Whether warnings are hidden from stderr.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Hides warnings from stderr for the rest of the run if `quiet`.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Writes a warning to stderr, unless the run is quiet, and keeps it for the JSON of the run. Repeated warnings are
/// written once.
pub fn warn(text: impl Into<String>) {
    let (text, quiet) = (text.into(), QUIET.load(Ordering::Relaxed));
    let mut warnings = WARNINGS.lock().unwrap_or_else(|e| e.into_inner());
    if !warnings.contains(&text) {
        note(quiet, format!("warning: {text}"));
        warnings.push(text);
    }
}

/// Adds the warnings of this run to the JSON of its result.
pub fn with_warnings(mut result: serde_json::Value) -> serde_json::Value {
    let warnings = WARNINGS.lock().unwrap_or_else(|e| e.into_inner());
    if !warnings.is_empty() {
        result["warnings"] = serde_json::json!(*warnings);
    }
    result
}

/// Progress of a long step. Threads share it by reference.
pub struct Progress {
    display: Display,
}

/// Form in which progress is displayed.
enum Display {
    Nothing,
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
}

/// Progress as lines of text.
struct Lines {
    out: Box<dyn Write + Send>,
    label: Cow<'static, str>,
    bytes: bool,
    message: String,
    total: u64,
    done: u64,
    started: Instant,
    written: Instant,
    every: Duration,
}

impl Progress {
    /// Returns the progress of a step called `label` with `total` units of work.
    pub fn new(quiet: bool, label: impl Into<Cow<'static, str>>, total: u64) -> Self {
        Self::of(quiet, label.into(), total, false)
    }

    /// Same as [`Progress::new`], for units that are bytes.
    pub fn of_bytes(quiet: bool, label: impl Into<Cow<'static, str>>, total: u64) -> Self {
        Self::of(quiet, label.into(), total, true)
    }

    fn of(quiet: bool, label: Cow<'static, str>, total: u64, bytes: bool) -> Self {
        let display = if quiet || is_silent() {
            Display::Nothing
        } else if is_terminal(&io::stderr()) && std::env::var_os("TERM").is_none_or(|term| term != "dumb") {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template(match bytes {
                false => "{prefix} {wide_bar} {human_pos}/{human_len} {msg} {eta}",
                true => "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            });
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(label);
            Display::Bar(bar)
        } else {
            Display::Lines(Mutex::new(Lines { bytes, ..Lines::new(Box::new(io::stderr()), label, total, LINE_EVERY) }))
        };
        Self { display }
    }

    /// Adds `units` of finished work.
    pub fn inc(&self, units: u64) {
        match &self.display {
            Display::Nothing => {}
            Display::Bar(bar) => bar.inc(units),
            Display::Lines(lines) => lines.lock().unwrap_or_else(|e| e.into_inner()).inc(units),
        }
    }

    /// Sets a short text beside the bar, such as the loss.
    pub fn message(&self, text: impl Into<String>) {
        match &self.display {
            Display::Nothing => {}
            Display::Bar(bar) => bar.set_message(text.into()),
            Display::Lines(lines) => lines.lock().unwrap_or_else(|e| e.into_inner()).message = text.into(),
        }
    }

    /// Ends the step: removes the bar, or writes a last line with the duration.
    pub fn finish(self) {
        match self.display {
            Display::Nothing => {}
            Display::Bar(bar) => bar.finish_and_clear(),
            Display::Lines(lines) => lines.into_inner().unwrap_or_else(|e| e.into_inner()).finish(),
        }
    }
}

impl Lines {
    fn new(out: Box<dyn Write + Send>, label: Cow<'static, str>, total: u64, every: Duration) -> Self {
        let now = Instant::now();
        Self { out, label, bytes: false, message: String::new(), total, done: 0, started: now, written: now, every }
    }

    fn inc(&mut self, units: u64) {
        self.done += units;
        let now = Instant::now();
        if self.done >= self.total || now - self.written < self.every {
            return;
        }
        self.written = now;
        let elapsed = now - self.started;
        let remaining = elapsed.mul_f64((self.total - self.done) as f64 / self.done.max(1) as f64);
        self.line(&format!("{}/{}, {} left", self.amount(self.done), self.amount(self.total), duration(remaining)));
    }

    fn finish(mut self) {
        let took = duration(self.started.elapsed());
        self.line(&format!("{} in {took}", self.amount(self.done)));
    }

    fn amount(&self, units: u64) -> String {
        if self.bytes { HumanBytes(units).to_string() } else { count(units) }
    }

    fn line(&mut self, text: &str) {
        let space = if self.message.is_empty() { "" } else { " " };
        let _ = writeln!(self.out, "{}: {text}{space}{}", self.label, self.message);
    }
}

/// ASCII_NO_BORDERS of comfy-table without lines between rows, which would double the height of a log.
const PLAIN: comfy_table::TableStyle = comfy_table::TableStyle::new()
    .header_lines(ContentLineStyle::none().junction('|'))
    .header_separator(LineStyle::none().fill('-').junction('+'))
    .content_lines(ContentLineStyle::none().junction('|'));

/// Style of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableStyle {
    /// UTF-8 lines, no wider than the terminal.
    Terminal,
    /// ASCII, never wrapped.
    Plain,
}

impl TableStyle {
    /// Returns the style that suits stdout.
    pub fn of_stdout() -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if is_terminal(&io::stdout()) && !no_color { TableStyle::Terminal } else { TableStyle::Plain }
    }
}

/// Returns a table with a header. Columns that hold only numbers are aligned right.
pub fn table(header: &[&str], rows: &[Vec<String>], style: TableStyle) -> String {
    let mut table = comfy_table::Table::new();
    match style {
        TableStyle::Terminal => {
            table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        }
        TableStyle::Plain => {
            table.force_no_tty().load_style(PLAIN);
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
    }
    table.set_header(header).add_rows(rows);
    let numeric =
        |cell: &String| cell.is_empty() || cell.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    for (i, column) in table.column_iter_mut().enumerate() {
        if rows.iter().filter_map(|row| row.get(i)).all(numeric) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Returns a number with thousands separators: 12345 as `12,345`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Returns a duration in a suitable unit: `85 ms`, `4.2 s`, `3 min 05 s`, `2 h 03 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let whole = seconds.round() as u64;
    if seconds < 0.9995 {
        format!("{:.0} ms", seconds * 1000.0)
    } else if seconds < 59.95 {
        format!("{seconds:.1} s")
    } else if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        let minutes = (seconds / 60.0).round() as u64;
        format!("{} h {:02} min", minutes / 60, minutes % 60)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn numbers_and_durations_are_formatted() {
        let counts = [0, 7, 999, 1000, 12_345, 123_456, 1_234_567].map(count);
        assert_eq!(counts, ["0", "7", "999", "1,000", "12,345", "123,456", "1,234,567"]);
        let times = [0.0, 0.0854, 0.9996, 4.24, 59.94, 59.96, 185.0, 3599.4, 3599.6, 7390.0];
        let display = times.map(|s| duration(Duration::from_secs_f64(s)));
        let wanted = [
            "0 ms",
            "85 ms",
            "1.0 s",
            "4.2 s",
            "59.9 s",
            "1 min 00 s",
            "3 min 05 s",
            "59 min 59 s",
            "1 h 00 min",
            "2 h 03 min",
        ];
        assert_eq!(display, wanted);
    }

    #[test]
    fn tables_are_plain_without_a_terminal() {
        let rows = vec![vec!["query".into(), "3".into()], vec!["value".into(), "12".into()]];
        let plain = table(&["module", "rank"], &rows, TableStyle::Plain);
        assert_eq!(plain, " module | rank\n--------+------\n query  |    3\n value  |   12");
        let drawn = table(&["module", "rank"], &rows, TableStyle::Terminal);
        assert!(drawn.starts_with('┌') && drawn.contains("│ query  "), "{drawn}");
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn without_a_terminal_progress_is_lines() {
        let log = Log::default();
        let lines = |every| Lines::new(Box::new(log.clone()), "encoding".into(), 2000, every);
        let mut seldom = lines(Duration::from_secs(3600));
        seldom.inc(1000);
        assert!(log.0.lock().unwrap().is_empty());
        let mut often = lines(Duration::ZERO);
        often.message = "loss 0.5".into();
        often.inc(1000);
        often.inc(1000);
        often.finish();
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let (first, last) = text.split_once('\n').unwrap();
        assert!(first.starts_with("encoding: 1,000/2,000, ") && first.ends_with(" left loss 0.5"), "{text}");
        assert!(last.starts_with("encoding: 2,000 in ") && last.ends_with(" loss 0.5\n"), "{text}");
    }

    #[test]
    fn quiet_progress_is_silent() {
        let progress = Progress::new(true, "x", 3);
        progress.inc(5);
        progress.message("y");
        progress.finish();
    }
}
