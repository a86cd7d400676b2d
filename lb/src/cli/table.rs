//! Plain tables with aligned columns.

/// Columns as wide as they must be; those that hold only numbers are aligned to the right.
pub(super) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut text = String::new();
    let columns: [(usize, bool); N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].as_str());
        let width = cells
            .clone()
            .chain([header[column]])
            .map(|cell| cell.chars().count())
            .max();
        let numeric = !rows.is_empty()
            && cells
                .into_iter()
                .all(|cell| cell.bytes().all(|byte| byte.is_ascii_digit()));
        (width.unwrap_or_default(), numeric)
    });
    let header = header.map(str::to_owned);
    for row in std::iter::once(&header).chain(rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(columns)
            .map(|(cell, (width, numeric))| {
                if numeric {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// What is shown where there is nothing.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_to_the_right() {
        let rows = [
            ["web".into(), "7".into(), "a".into()],
            ["dns-long".into(), "1234".into(), "b".into()],
        ];
        let expected = "NAME         N  X\nweb          7  a\ndns-long  1234  b\n";
        assert_eq!(table(["NAME", "N", "X"], &rows), expected);
        assert_eq!(table(["NAME", "N"], &[]), "NAME  N\n");
    }
}
