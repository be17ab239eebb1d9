//! Output: JSON for programs, aligned tables for people.

use std::{
    io::{self, ErrorKind, Write as _},
    iter,
};

use anyhow::Context as _;
use serde::Serialize;

/// Prints JSON on stdout.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    print(&text)
}

/// Prints text on stdout. A reader that has seen enough, as `head`, is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(()),
    }
}

/// Between columns.
const GAP: &str = "  ";

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Column {
    /// Left-aligned.
    Text(&'static str),
    /// Right-aligned.
    Number(&'static str),
}

impl Column {
    const fn title(self) -> &'static str {
        match self {
            Self::Text(title) | Self::Number(title) => title,
        }
    }

    /// A cell of this column, padded to its width.
    fn pad(self, cell: &str, width: usize) -> String {
        match self {
            Self::Text(_) => format!("{cell:width$}"),
            Self::Number(_) => format!("{cell:>width$}"),
        }
    }
}

/// An aligned table without lines, in which every row is one line. Our own, for a list of a million connections has to
/// come in a second.
pub(crate) fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let titles = columns.iter().map(|column| column.title().to_owned()).collect();
    let lines: Vec<Vec<String>> = iter::once(titles).chain(rows).collect();
    let mut widths = vec![0; columns.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.len().max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        for ((column, width), cell) in columns.iter().zip(&widths).zip(line) {
            text += &column.pad(cell, *width);
            text += GAP;
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Every line moved to the right.
pub(crate) fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// `1.5 MB`: decimal units, as network people count.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut rest = number;
    let mut tenths = 0;
    let mut unit = 0;
    while rest >= 1_000 && unit + 1 < UNITS.len() {
        tenths = rest % 1_000 / 100;
        rest /= 1_000;
        unit += 1;
    }
    if unit == 0 { format!("{rest} B") } else { format!("{rest}.{tenths} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_text_left_and_numbers_right() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), "1000".to_owned()]];
        let text = table(&[Column::Text("NAME"), Column::Number("COUNT")], rows);
        assert_eq!(text, "NAME  COUNT\na         1\nlong   1000\n");
    }

    #[test]
    fn bytes_have_one_decimal() {
        for (number, text) in
            [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (1_234_567, "1.2 MB"), (u64::MAX, "18446.7 PB")]
        {
            assert_eq!(bytes(number), text);
        }
    }
}
