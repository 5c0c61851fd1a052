//! How numbers and tables look to people.

use std::time::{Duration, SystemTime};

use comfy_table::{CellAlignment, Table, presets};
use dfs_proto::Timestamp;

/// "1.5 GiB".
pub fn bytes(count: u64) -> String {
    humansize::format_size(count, humansize::BINARY)
}

/// "2m 5s"; below a second "0.3s".
pub fn age(milliseconds: u64) -> String {
    match milliseconds {
        0..1000 => format!("0.{}s", milliseconds / 100),
        _ => humantime::format_duration(Duration::from_secs(milliseconds / 1000)).to_string(),
    }
}

/// "2024-05-17T09:30:00.123456789Z".
pub fn time(time: Option<dfs_proto::Time>) -> String {
    let time = SystemTime::from(Timestamp::from(time.unwrap_or_default()));
    // Years that the format can't hold are shown as seconds.
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) if after.as_secs() < 253_402_300_800 => humantime::format_rfc3339_nanos(time).to_string(),
        _ => format!("{} s since 1970", Timestamp::from(time).seconds),
    }
}

/// Columns under their headings, indented; those of `right` (from 0) hold numbers.
pub fn table(headings: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(headings.iter().map(|heading| heading.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if index == 0 { 2 } else { 0 }, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_can_read_it() {
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!((age(340).as_str(), age(125_000).as_str()), ("0.3s", "2m 5s"));
        let instant = |seconds| Some(dfs_proto::Time { seconds, nanos: 5 });
        assert_eq!(time(instant(0)), "1970-01-01T00:00:00.000000005Z");
        assert_eq!(time(instant(-7)), "-7 s since 1970");
        let printed = table(&["a", "count"], &[1], vec![vec!["x".into(), "7".into()]]);
        assert_eq!(printed, "  A  COUNT\n  x      7\n");
    }
}
