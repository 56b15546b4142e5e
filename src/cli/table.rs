//! Aligned text.

use std::fmt::Write as _;

/// Colours of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Needs attention.
    Alarm,
    /// As it should be.
    Good,
    /// A heading.
    Heading,
    /// Nothing special.
    Plain,
    /// Worth a look.
    Warning,
}

/// Whether and how text is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    color: bool,
}

impl Style {
    /// No colours.
    pub const PLAIN: Self = Self { color: false };
    /// Colours for a terminal.
    pub const COLOR: Self = Self { color: true };

    /// Colours when `terminal` is one and `NO_COLOR` is not set (no-color.org).
    #[must_use]
    pub fn for_output(terminal: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { color: terminal && !refused }
    }

    /// `text` in a tone.
    #[must_use]
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Alarm => "31",
            Tone::Good => "32",
            Tone::Heading => "1",
            Tone::Warning => "33",
            Tone::Plain => "",
        };
        if self.color && !code.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// A cell with its tone.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(super) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.to_string(), tone: Tone::Plain }
    }
}

/// Rows below a heading. A heading that begins with `>` aligns its column to the right.
#[derive(Debug)]
pub(super) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The table with every line indented by `indent` columns.
    pub(super) fn render(&self, style: Style, indent: usize) -> String {
        let right = |index: usize| self.headings.get(index).is_some_and(|h| h.starts_with('>'));
        let headings = self
            .headings
            .iter()
            .map(|text| Cell::toned(text.trim_start_matches('>'), Tone::Heading));
        let lines: Vec<Vec<Cell>> =
            std::iter::once(headings.collect()).chain(self.rows.iter().cloned()).collect();
        let mut widths = vec![0; self.headings.len()];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let mut text = String::new();
        for line in &lines {
            text.push_str(&" ".repeat(indent));
            let mut gap = 0;
            for (index, (cell, width)) in line.iter().zip(&widths).enumerate() {
                let rest = width - cell.text.chars().count();
                let before = if right(index) { rest } else { 0 };
                // Spaces go out only before something, so that no line ends in them.
                if !cell.text.is_empty() {
                    text.push_str(&" ".repeat(gap + before));
                    text.push_str(&style.paint(cell.tone, &cell.text));
                    gap = 0;
                } else {
                    gap += before;
                }
                gap += rest - before + 2;
            }
            text.push('\n');
        }
        text
    }
}

/// `name` and value, one per line, values in one column.
#[derive(Debug, Default)]
pub(super) struct Facts(Vec<(&'static str, String)>);

impl Facts {
    pub(super) fn add(&mut self, name: &'static str, value: impl ToString) {
        self.0.push((name, value.to_string()));
    }

    pub(super) fn render(&self, style: Style) -> String {
        let width = self.0.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, value) in &self.0 {
            let gap = " ".repeat(width - name.chars().count() + 2);
            let _ = writeln!(text, "{}{gap}{value}", style.paint(Tone::Heading, name));
        }
        text
    }
}

/// A span of time in two units at most: `850ms`, `12s`, `3m20s`, `5h3m`, `4d7h`.
#[must_use]
pub(super) fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes, seconds % 60) {
        (0, 0, 0, 0) => format!("{ms}ms"),
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, 0) => format!("{m}m"),
        (0, 0, m, s) => format!("{m}m{s}s"),
        (0, h, 0, _) => format!("{h}h"),
        (0, h, m, _) => format!("{h}h{m}m"),
        (d, 0, ..) => format!("{d}d"),
        (d, h, ..) => format!("{d}d{h}h"),
    }
}

/// [`age`], or `-`.
pub(super) fn age_or_dash(ms: Option<u64>) -> String {
    ms.map_or_else(|| "-".to_owned(), age)
}

/// Values with commas between, or `-`.
pub(super) fn joined<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units_at_most() {
        let cases = [
            (0, "0ms"),
            (999, "999ms"),
            (12_345, "12s"),
            (200_000, "3m20s"),
            (3_600_000, "1h"),
            (3_600_000 * 24 - 1, "23h59m"),
            (86_400_000 * 4 + 3_600_000 * 7, "4d7h"),
        ];
        for (ms, text) in cases {
            assert_eq!(age(ms), text);
        }
    }

    #[test]
    fn columns_align_and_no_line_ends_in_spaces() {
        let mut table = Table::new(&["NAME", ">COUNT", "TEXT"]);
        table.row(vec!["a".into(), 7.into(), "".into()]);
        table.row(vec!["long name".into(), 1234.into(), Cell::toned("x", Tone::Alarm)]);
        assert_eq!(
            table.render(Style::PLAIN, 1),
            " NAME       COUNT  TEXT\n a              7\n long name   1234  x\n"
        );
        assert!(table.render(Style::COLOR, 0).contains("\x1b[31mx\x1b[0m"));
    }
}
