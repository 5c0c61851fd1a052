//! A bar on standard error, where that is a terminal, and the lines that are printed beside it.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::print::bytes;

/// How often the bar moves while nothing is done.
const TICK: Duration = Duration::from_millis(200);

/// Shown to people; nothing of it where nobody looks.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    /// Whether lines are printed on standard output.
    prints: bool,
}

impl Progress {
    /// `prints`: findings go to standard output as they come.
    pub(super) fn new(prints: bool) -> Self {
        let bar = match std::io::stderr().is_terminal() {
            true => ProgressBar::no_length(),
            false => ProgressBar::hidden(),
        };
        if !bar.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Self { bar, prints }
    }

    /// The files of a tree are read; how many there are nobody knows.
    pub(super) fn start_tree(&self) {
        self.bar.set_style(style("{spinner} {elapsed} {pos} files read"));
    }

    /// So many chunks are verified.
    pub(super) fn start_chunks(&self, count: u64) {
        self.bar.reset();
        self.bar.set_length(count);
        self.bar.set_style(style("{elapsed} [{bar:40}] {pos}/{len} chunks, {msg} to go {eta}"));
    }

    pub(super) fn file(&self) {
        self.bar.inc(1);
    }

    /// A chunk of so many bytes is verified.
    pub(super) fn chunk(&self, length: u64) {
        self.bar.set_message(format!("the last of {},", bytes(length)));
        self.bar.inc(1);
    }

    /// Something that was found.
    pub(super) fn say(&self, line: &str) {
        if self.prints {
            self.bar.suspend(|| println!("{line}"));
        }
    }

    /// Something that people should know beside what was found.
    pub(super) fn warn(&self, line: &str) {
        self.bar.suspend(|| eprintln!("dfs-admin: {line}"));
    }

    /// Nothing of the bar stays.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a template of this file is right")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_can_be_drawn() {
        let progress = Progress { bar: ProgressBar::hidden(), prints: false };
        progress.start_tree();
        progress.file();
        progress.start_chunks(3);
        progress.chunk(1000);
        progress.say("nothing");
        progress.end();
    }
}
