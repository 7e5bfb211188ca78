//! `kvhive simulate`: the strategies of a node over a trace, without bytes or sockets.

mod autoscale;
mod days;
mod ideal;
mod plot;
pub(crate) mod sweep;

use super::generated::Generated;
use crate::{report, trace};
use anyhow::{Context, Result, bail};
use clap::Args;
use kvhive_cache::simulate::Rules;
use std::fmt;
use std::path::PathBuf;
use sweep::{Choice, Contender, Row, Size, Sweep};

/// Run a node's strategies over a trace, without bytes or sockets, and report the hit rates
#[derive(Args, Debug)]
pub(crate) struct Simulate {
    /// Trace of JSON lines (.gz and .zst are read as they are); without one the built-in workload is generated
    #[arg(value_name = "TRACE")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    generated: Generated,
    /// Stop after this many requests of the trace [default: all of a file, 2000 of the built-in workload]
    #[arg(long, value_name = "N")]
    requests: Option<usize>,
    /// What decides which blocks leave: names, `optimum` for the best that was possible, `all`
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "adaptive")]
    strategy: Vec<Choice>,
    /// Blocks that fit, all devices and tiers together
    #[arg(long, value_name = "N", group = "how_much", value_parser = clap::value_parser!(u32).range(1..))]
    capacity_blocks: Option<u32>,
    /// Several capacities: numbers of blocks, or percent of the different blocks of the trace (1%,2%,5000)
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', group = "how_much")]
    sizes: Vec<Size>,
    /// Let any block leave, not only the ends of prefixes: how the literature measures its policies
    #[arg(long)]
    flat: bool,
    /// Tell strategies that listen whether each session is over; this share of what they are told is true (0 to 1)
    #[arg(long, value_name = "P", value_parser = share)]
    hints: Option<f64>,
    /// What remains of a block's bytes when `compressed` or `quantized` shrinks it (0 to 1)
    #[arg(long, value_name = "R", default_value_t = 0.5, value_parser = share)]
    compression_ratio: f64,
    /// Draw hit rate against size, with the optimum as the ceiling
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    autoscale: autoscale::Autoscale,
    /// Print the report as JSON: an object, or a list of them where there are several strategies or sizes
    #[arg(long)]
    json: bool,
}

/// Reads a number from 0 to 1.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err(format!("{value} is not from 0 to 1")) }
}

impl Simulate {
    /// Runs the simulations and prints their report.
    ///
    /// # Errors
    /// When the trace cannot be read or has no requests, or the plot cannot be written.
    pub(crate) fn run(self) -> Result<()> {
        let block_tokens = self.generated.block_tokens;
        if self.autoscale.is_wanted() {
            return self.autoscaled();
        }
        let mut trace = match &self.trace {
            Some(path) => sweep::load(path, self.requests, block_tokens)?,
            None => sweep::collect(self.generated.generate(self.requests).into_iter().map(Ok), block_tokens)?,
        };
        if let Some(right) = self.hints {
            trace.give_hints(right, self.generated.seed);
        }
        let mut contenders = sweep::contenders(&self.strategy);
        if self.plot.is_some() && !contenders.contains(&Contender::Optimum) {
            contenders.push(Contender::Optimum);
        }
        let mut sizes = self.sizes.clone();
        sizes.extend(self.capacity_blocks.map(Size::Blocks));
        let sweep = Sweep {
            trace: &trace,
            contenders,
            capacities: sizes.iter().map(|size| size.blocks(trace.unique_blocks())).collect(),
            rules: if self.flat { Rules::Flat } else { Rules::Leaf },
            block_tokens,
            compression_ratio: self.compression_ratio,
        };
        let rows = sweep.run();
        if let Some(path) = &self.plot {
            let name = self.trace.as_ref().and_then(|path| path.file_name());
            let name = name.map_or("built-in workload".into(), |name| name.to_string_lossy());
            let svg = plot::draw(&name, &sizes, &rows);
            std::fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))?;
        }
        match rows.as_slice() {
            [row] if self.json => report::print_json(row)?,
            rows if self.json => report::print_json(&rows)?,
            [row] => print!("{row}"),
            rows => print_table(rows, &sizes, &sweep),
        }
        Ok(())
    }
}

impl Simulate {
    fn autoscaled(&self) -> Result<()> {
        let [Choice::One(Contender::Strategy(strategy))] = self.strategy.as_slice() else {
            bail!("--autoscale takes one --strategy, and one that runs in a node");
        };
        let Generated { seed, block_tokens } = self.generated;
        let requests = match &self.trace {
            Some(path) => {
                trace::open(path)?.take(self.requests.unwrap_or(usize::MAX)).collect::<Result<_, _>>()?
            }
            None => self.generated.generate(self.requests),
        };
        self.autoscale.run(requests, self.capacity_blocks, *strategy, seed, block_tokens, self.json)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "strategy        {}, {} blocks", self.strategy, self.capacity_blocks)?;
        writeln!(f, "requests        {}", self.requests)?;
        let rate = 100.0 * self.block_hit_rate;
        writeln!(f, "blocks          {} looked up, {} hit: {rate:.2} %", self.blocks, self.hits)?;
        writeln!(f, "prefill tokens  {:.2} % saved", 100.0 * self.tokens_saved_ratio)?;
        writeln!(f, "took            {:.2} s", self.seconds)
    }
}

/// Prints hit rates in percent, a strategy a line, a size a column.
fn print_table(rows: &[Row], sizes: &[Size], sweep: &Sweep<'_>) {
    let mut columns = vec!["STRATEGY".to_owned()];
    columns.extend(sizes.iter().map(Size::to_string));
    if sizes.len() > 1 {
        columns.push("MEAN".to_owned());
    }
    let mut table = report::table(&columns.iter().map(String::as_str).collect::<Vec<_>>());
    for rows in rows.chunks(sizes.len()) {
        let mut line = vec![rows[0].strategy.to_string()];
        line.extend(rows.iter().map(|row| format!("{:.2}", 100.0 * row.block_hit_rate)));
        if rows.len() > 1 {
            let sum: f64 = rows.iter().map(|row| row.block_hit_rate).sum();
            line.push(format!("{:.2}", 100.0 * sum / rows.len() as f64));
        }
        table.add_row(line);
    }
    report::print_table(&table);
    println!(
        "\nblock hit rate in %; {} requests, {} blocks looked up, {} of them different",
        rows[0].requests,
        rows[0].blocks,
        sweep.trace.unique_blocks()
    );
    if let Some(note) = sweep::beyond_the_optimum(rows) {
        println!("{note}");
    }
}
