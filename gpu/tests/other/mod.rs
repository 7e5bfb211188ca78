//! Another process of a test: the same program, told to do something else.
#![allow(dead_code, reason = "each test that takes it in uses a part")]

use kvhive_gpu::cuda::{Cuda, Gpu, Loan};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

/// What the other process is told: which driver to load, none where it is to look for it itself.
pub(crate) const DRIVER: &str = "KVHIVE_TEST_LENT_DRIVER";
/// And by which handle it finds memory.
pub(crate) const LOAN: &str = "KVHIVE_TEST_LENT_LOAN";
/// Another process of this test.
pub(crate) struct Other {
    process: Child,
    tell: Option<ChildStdin>,
    told: BufReader<ChildStdout>,
}

impl Other {
    /// Starts one that does `what` with the driver of this path.
    pub(crate) fn start(
        what: &str,
        driver: Option<&Path>,
        loan: Option<Loan>,
        file: Option<OwnedFd>,
    ) -> Other {
        let program = std::env::current_exe().expect("a test is a program");
        let mut command = Command::new(program);
        command.args(["--exact", what, "--ignored", "--nocapture"]);
        command.stdin(file.map_or_else(Stdio::piped, Stdio::from)).stdout(Stdio::piped());
        command.env(DRIVER, driver.unwrap_or(Path::new("")));
        if let Some(loan) = loan {
            command.env(LOAN, words(&loan));
        }
        let mut process = command.spawn().expect("it starts");
        let told = BufReader::new(process.stdout.take().expect("it was asked for"));
        Other { tell: process.stdin.take(), told, process }
    }

    /// Waits until it says something of this kind, and returns what.
    pub(crate) fn hear(&mut self, kind: &str) -> String {
        let start = format!("KVHIVE {kind} ");
        let mut lines = self.told.by_ref().lines().map_while(Result::ok);
        let said = lines.find_map(|line| line.find(&start).map(|at| line[at + start.len()..].to_owned()));
        said.unwrap_or_else(|| panic!("the other process ended without a word of {kind}"))
    }

    /// Lets it go on.
    pub(crate) fn go_on(&mut self) {
        self.tell("go on");
    }

    /// Tells it something, in one line.
    pub(crate) fn tell(&mut self, what: &str) {
        writeln!(self.tell.as_mut().expect("it was not lent a file"), "{what}").expect("it listens");
    }

    /// Ends it in the middle of whatever it does.
    pub(crate) fn kill(mut self) {
        self.process.kill().expect("it has not ended");
        self.process.wait().expect("it ends");
    }

    /// Lets it end.
    pub(crate) fn end(mut self) {
        drop(self.tell.take());
        std::io::copy(&mut self.told, &mut std::io::sink()).expect("it is read");
        assert!(self.process.wait().expect("it ends").success());
    }
}

pub(crate) fn words(loan: &Loan) -> String {
    let handle: String = loan.handle.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{handle} {} {}", loan.offset, loan.bytes)
}

pub(crate) fn loan(words: &str) -> Loan {
    let mut parts = words.split(' ');
    let mut next = || parts.next().expect("three words");
    let handle: Vec<u8> = next()
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("digits"))
        .collect();
    let mut number = || next().parse().expect("a number");
    Loan { handle: handle.try_into().expect("64 bytes"), offset: number(), bytes: number() }
}

/// Opens the GPU that the other process was told of.
pub(crate) fn told_gpu() -> Arc<Gpu> {
    let driver = std::env::var(DRIVER).expect("it is set");
    let cuda = if driver.is_empty() { Cuda::find() } else { Cuda::load(Path::new(&driver)) };
    cuda.and_then(|cuda| cuda.open(0)).expect("it works")
}
