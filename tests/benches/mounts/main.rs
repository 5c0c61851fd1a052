//! The same work on several mounted filesystems in turn, side by side: dfs, what one would use instead, and what one had.
//!
//! ```text
//! cargo bench -p dfs-tests --bench mounts -- NAME=DIR [NAME=DIR …] [--rounds 3] [--remount NAME=COMMAND …]
//! ```
//!
//! Each step runs on every mount before the next step begins, `--rounds` times over, and the median is kept: what else the
//! machine does meanwhile hits all of them. The table can be pasted into a document. Needs root, fio and git.

mod mount;
mod steps;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Parser;

use mount::Mount;
use steps::{STEPS, Step};

#[derive(Parser)]
#[command(about = "Measures mounted filesystems side by side")]
struct Options {
    /// A name for the table, and where that filesystem is mounted. The first one is what the others are compared with
    #[arg(required = true, value_name = "NAME=DIR", value_parser = pair)]
    mounts: Vec<(String, String)>,
    /// How often everything is done; medians are shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Small files
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(20..))]
    files: u32,
    /// The large file, in MiB
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    size: u32,
    /// Run before each cold step, for a mount that keeps a cache of its own
    #[arg(long, value_name = "NAME=COMMAND", value_parser = pair)]
    remount: Vec<(String, String)>,
    /// The medians for programs instead of a table
    #[arg(long)]
    json: bool,
    /// cargo gives it to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a step came to on one mount, round by round.
type Figures = Vec<f64>;

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    ensure!(nix::unistd::geteuid().is_root(), "dropping the kernel's caches takes root");
    for program in ["fio", "git", "tar", "find"] {
        dfs_tests::commands::require(program);
    }
    for (name, _) in &options.remount {
        let known = options.mounts.iter().any(|(mount, _)| mount == name);
        ensure!(known, "--remount names {name}, which is none of the mounts");
    }
    let work = mount::Work::prepare(options.files, options.size)?;
    let mounts = options
        .mounts
        .iter()
        .map(|(name, directory)| {
            let remount = options.remount.iter().find(|(of, _)| of == name).map(|(_, command)| command);
            Mount::new(name, &PathBuf::from(directory), remount.cloned(), &work)
        })
        .collect::<anyhow::Result<Vec<_>>>()?;

    let mut figures: Vec<Vec<Figures>> = vec![vec![Figures::new(); mounts.len()]; STEPS.len()];
    for round in 1..=options.rounds {
        for (step, figures) in STEPS.iter().zip(&mut figures) {
            for (mount, figures) in mounts.iter().zip(figures) {
                let figure = (step.run)(mount).with_context(|| format!("{} on {}", step.name, mount.name))?;
                eprintln!("round {round}: {}: {}: {figure:.0} {}", step.name, mount.name, step.unit);
                figures.push(figure);
            }
        }
    }
    for mount in &mounts {
        mount.clear()?;
    }
    let medians: Vec<(&Step, Vec<f64>)> = STEPS
        .iter()
        .zip(&figures)
        .map(|(step, figures)| (step, figures.iter().map(|figures| median(figures)).collect()))
        .collect();
    match options.json {
        true => print_json(&mounts, &medians),
        false => print_table(&mounts, &medians),
    }
    Ok(())
}

fn print_table(mounts: &[Mount<'_>], medians: &[(&Step, Vec<f64>)]) {
    let names: Vec<&str> = mounts.iter().map(|mount| mount.name.as_str()).collect();
    println!("| | unit | {} | what is done |", names.join(" | "));
    println!("|---|---|{}---|", "---:|".repeat(names.len()));
    for (step, figures) in medians {
        let first = figures[0];
        let columns: Vec<String> = figures
            .iter()
            .enumerate()
            .map(|(at, figure)| match at {
                0 => format!("{figure:.0}"),
                _ => format!("{figure:.0} ({:.2})", first / figure),
            })
            .collect();
        println!("| {} | {} | {} | {} |", step.name, step.unit, columns.join(" | "), step.what);
    }
}

fn print_json(mounts: &[Mount<'_>], medians: &[(&Step, Vec<f64>)]) {
    let of_step = |figures: &[f64]| -> serde_json::Map<_, _> {
        mounts.iter().zip(figures).map(|(mount, figure)| (mount.name.clone(), (*figure).into())).collect()
    };
    let all: serde_json::Map<String, serde_json::Value> =
        medians.iter().map(|(step, figures)| (step.name.to_owned(), of_step(figures).into())).collect();
    println!("{}", serde_json::Value::from(all));
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=…")?;
    Ok((name.to_owned(), value.to_owned()))
}
