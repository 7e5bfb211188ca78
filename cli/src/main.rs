//! The kvhive command: starts clusters, drives them, asks them, measures them.

mod admin;
mod bench;
mod cluster;
mod commands;
mod drains;
mod problem;
mod report;
mod scaling;
mod svg;
mod torture;
mod trace;
mod trust;

use clap::{Parser, Subcommand};
use cluster::local::{self, PORT_IS_TAKEN};
use commands::{
    backup, balance, config, coordinator, cordon, devices, doctor, down, drain, engines, events, explain,
    gpu_worker, moves, node, pin, raft, replay, route, scale, simulate, status, tenants, tls, top,
    trace as trace_command, up,
};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// A cluster-wide KV cache for LLM serving.
///
/// `kvhive up` starts a whole cluster on this machine; `kvhive replay` drives it; `kvhive status` shows it.
#[derive(Parser, Debug)]
#[command(name = "kvhive", version, propagate_version = true)]
struct Kvhive {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Up(up::Up),
    Down(down::Down),
    Status(status::Status),
    Top(top::Top),
    Nodes(status::Nodes),
    Devices(devices::Devices),
    Slots(status::Slots),
    Moves(moves::Moves),
    Doctor(doctor::Doctor),
    Cordon(cordon::Cordon),
    Uncordon(cordon::Uncordon),
    Drain(drain::Drain),
    Scale(scale::Scale),
    Balance(balance::Balance),
    Events(events::Events),
    Explain(explain::Explain),
    Pin(pin::PinCommand),
    Engines(engines::Engines),
    Route(route::Route),
    Tenants(tenants::Tenants),
    Replay(replay::Replay),
    Simulate(simulate::Simulate),
    Bench(bench::Bench),
    Torture(torture::Torture),
    Trace(trace_command::TraceCommand),
    Config(config::ConfigCommand),
    Node(node::NodeCommand),
    Raft(raft::Raft),
    Coordinator(coordinator::Coordinator),
    #[command(visible_alias = "certs")]
    Tls(tls::TlsCommand),
    Backup(backup::Backup),
    Restore(backup::Restore),
    /// Serves the baselines of benchmarks
    #[command(hide = true)]
    BenchBaseline,
    /// Makes a GPU's calls of NCCL for the node that starts it
    #[command(hide = true)]
    GpuWorker,
}

/// What a command ends with that was done and lost blocks.
const BLOCKS_WERE_LOST: u8 = 3;
/// What it ends with that was asked what nobody can be.
const NO_SUCH_COMMAND: u8 = 2;

fn main() -> ExitCode {
    end_when_output_cannot_be_written();
    // Logs go to standard error: reports own standard output.
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("KVHIVE_LOG").unwrap_or_else(|_| EnvFilter::new("info,raft=warn")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    let is_json = problem::is_json(std::env::args_os());
    let command = match Kvhive::try_parse() {
        Ok(kvhive) => kvhive.command,
        // Help is no error.
        Err(error) if is_json && error.use_stderr() => {
            eprintln!("{}", problem::usage(&error));
            return ExitCode::from(NO_SUCH_COMMAND);
        }
        Err(error) => error.exit(),
    };
    let done = match command {
        Command::Up(command) => command.run(),
        Command::Down(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Top(command) => command.run(),
        Command::Nodes(command) => command.run(),
        Command::Devices(command) => command.run(),
        Command::Slots(command) => command.run(),
        Command::Moves(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Cordon(command) => command.run(),
        Command::Uncordon(command) => command.run(),
        Command::Drain(command) => command.run(),
        Command::Scale(command) => command.run(),
        Command::Balance(command) => command.run(),
        Command::Events(command) => command.run(),
        Command::Explain(command) => commands::runtime().and_then(|runtime| runtime.block_on(command.run())),
        Command::Pin(command) => command.run(),
        Command::Engines(command) => command.run(),
        Command::Route(command) => command.run(),
        Command::Tenants(command) => command.run(),
        Command::Replay(command) => commands::runtime().and_then(|runtime| runtime.block_on(command.run())),
        Command::Simulate(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Torture(command) => command.run(),
        Command::Trace(command) => command.run(),
        Command::Config(command) => command.run(),
        Command::Node(command) => command.run(),
        Command::Raft(command) => command.run(),
        Command::Coordinator(command) => command.run(),
        Command::Tls(command) => command.run(),
        Command::Backup(command) => command.run(),
        Command::Restore(command) => command.run(),
        Command::BenchBaseline => bench::serve_baseline(),
        Command::GpuWorker => gpu_worker::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error, is_json);
            // It was done, and cost blocks: whoever runs it can tell that from what was not done.
            if error.is::<drains::Lost>() {
                return ExitCode::from(BLOCKS_WERE_LOST);
            }
            // Whoever has picked its ports may pick others.
            if local::is_port_taken(&error) { ExitCode::from(PORT_IS_TAKEN) } else { ExitCode::FAILURE }
        }
    }
}

/// Tells why a command has not done what was asked.
fn tell(error: &anyhow::Error, is_json: bool) {
    match is_json {
        true => eprintln!("{}", problem::document(error)),
        false => eprintln!("error: {error:#}"),
    }
}

/// Ends the command where standard output cannot be written, where printing would panic: without a fuss when nobody reads any further
/// (`kvhive status | head`), as failed else.
fn end_when_output_cannot_be_written() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.to_string();
        let Some((_, why)) = said.split_once("failed printing to stdout: ") else { return usual(panic) };
        if why.contains(report::NOBODY_READS) {
            std::process::exit(0);
        }
        tell(
            &anyhow::anyhow!("standard output cannot be written: {why}"),
            problem::is_json(std::env::args_os()),
        );
        std::process::exit(1);
    }));
}
