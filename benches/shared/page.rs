//! What both benchmarks do: put their figures into a page, and read how long a process has been on a CPU.

use std::fs;
use std::path::Path;

/// The file's text with that between the markers of that name: `<!-- NAME:begin -->` and `<!-- NAME:end -->`.
pub fn updated(file: &Path, name: &str, table: &str) -> Result<String, String> {
    let (begin, end) = (format!("<!-- {name}:begin -->"), format!("<!-- {name}:end -->"));
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let missing = || format!("{}: has no {begin} followed by {end}", file.display());
    let (before, rest) = text.split_once(&begin).ok_or_else(missing)?;
    let (_, after) = rest.split_once(&end).ok_or_else(missing)?;
    Ok(format!("{before}{begin}\n{table}\n{end}{after}"))
}

/// User and system time of a process. A tick is 10 ms on every architecture that Linux runs containers on.
pub fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in parentheses, may hold anything. The state follows; utime and stime are 11 and 12 after it.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
