//! Columns of text for people.

use core::fmt;

use mesh_core::printable;

/// Rows under a heading; columns are as wide as what is in them.
pub(super) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A heading.
    pub(super) fn new(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned)] }
    }

    /// More rows.
    pub(super) fn rows(mut self, rows: impl Iterator<Item = [String; N]>) -> Self {
        self.rows.extend(rows.map(|row| row.map(|text| printable::line(&text).into_owned())));
        self
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..N).map(width).collect();
        let line = |row: &[String; N]| {
            let cells = row.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        f.write_str(&self.rows.iter().map(line).collect::<Vec<_>>().join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [["long name".to_owned(), "1".to_owned()], ["x".to_owned(), String::new()]];
        let table = Table::new(["NAME", "ID"]).rows(rows.into_iter());
        assert_eq!(table.to_string(), "NAME       ID\nlong name  1\nx");
    }
}
