//! A table as text, aligned for the terminal or in Markdown.

use std::fmt::Write;

/// Rows of cells; the first row is the head.
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// A table with this head.
    pub fn new(head: Vec<String>) -> Self {
        Self(vec![head])
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }

    /// In Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for (i, row) in self.0.iter().enumerate() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
            if i == 0 {
                let _ = writeln!(text, "|{}", "---|".repeat(row.len()));
            }
        }
        text
    }

    /// For the terminal: names to the left, figures to the right.
    #[must_use]
    pub fn aligned(&self, indent: &str) -> String {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| self.0.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
        let mut text = String::new();
        for row in &self.0 {
            let mut line = indent.to_owned();
            for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let _ = if i == 0 { write!(line, "{cell:<width$}") } else { write!(line, "  {cell:>width$}") };
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn a_table_is_text() {
        let row = |cells: &[&str]| cells.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        let mut table = Table::new(row(&["path", "rr"]));
        table.row(row(&["a", "12"]));
        assert_eq!(table.markdown(), "| path | rr |\n|---|---|\n| a | 12 |\n");
        assert_eq!(table.aligned("  "), "  path  rr\n  a     12\n");
    }
}
