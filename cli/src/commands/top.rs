//! `kvhive top`: the cluster in a terminal, kept up to date.

mod figures;
mod look;
#[cfg(test)]
mod scene;
mod screen;
#[cfg(test)]
mod screen_test;

use crate::admin::Target;
use crate::report;
use anyhow::{Context, Result};
use clap::Args;
use figures::{Figures, Order};
use look::{Look, look};
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::Rect;
use screen::View;
use std::io::IsTerminal;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::Duration;

/// How long keys are waited for before what was looked at is shown.
const KEYS_LIMIT: Duration = Duration::from_millis(100);
/// Columns of what is printed, where there is no terminal to say.
const COLUMNS: u16 = 150;
/// The most lines that are printed.
const LINES: u16 = 2000;

/// Watch the cluster: nodes, tiers, hit rate, bandwidth, latencies, slots on their way, tenants, events
///
/// Keys: q quits, p pauses, s sorts devices by something else, arrows scroll. Where standard output is no terminal, it looks
/// twice and prints once.
#[derive(Args, Debug)]
pub(crate) struct Top {
    #[command(flatten)]
    target: Target,
    /// Time between two looks, such as 2s or 500ms
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval)]
    interval: Duration,
    /// What devices are sorted by
    #[arg(long, value_enum, default_value_t)]
    sort: Order,
    /// Look twice, print, and end
    #[arg(long)]
    once: bool,
    /// Look twice, print the figures as JSON, and end
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_millis(100)..=Duration::from_secs(3600);
    if allowed.contains(&time) { Ok(time) } else { Err("allowed is 100ms to 1h".to_owned()) }
}

impl Top {
    /// Shows the cluster until somebody quits, or once.
    ///
    /// # Errors
    /// When no coordinator answers the first look, or the terminal fails.
    pub(crate) fn run(self) -> Result<()> {
        let admin = self.target.resolve()?;
        let first = look(&admin)?;
        if self.json || self.once || !std::io::stdout().is_terminal() {
            std::thread::sleep(self.interval);
            let mut figures = Figures::between(Some(&first), &look(&admin)?);
            figures.sort(self.sort);
            if self.json {
                return report::print_json(&figures);
            }
            print(figures, self.sort);
            return Ok(());
        }
        // Whoever waits for a coordinator does not keep keys waiting.
        let (looks, seen) = sync_channel(1);
        let interval = self.interval;
        std::thread::Builder::new()
            .name("looks".to_owned())
            .spawn(move || {
                let mut now = Ok(first);
                while looks.send(now).is_ok() {
                    std::thread::sleep(interval);
                    now = look(&admin);
                }
            })
            .context("no thread to look at the cluster with")?;
        let mut terminal = ratatui::try_init().context("this terminal cannot be drawn on; try --once")?;
        let watched = watch(&mut terminal, &seen, self.sort);
        ratatui::try_restore().context("the terminal is not as it was; `reset` brings it back")?;
        watched
    }
}

/// Prints everything once, as wide as the terminal is.
fn print(figures: Figures, order: Order) {
    let view = View { figures: Some(figures), order, ..View::default() };
    let width = ratatui::crossterm::terminal::size().map_or(COLUMNS, |(columns, _)| columns.clamp(60, 300));
    let width = if std::io::stdout().is_terminal() { width } else { COLUMNS };
    for line in lines(&view, width) {
        println!("{line}");
    }
}

/// Returns what is shown as lines of text.
fn lines(view: &View, width: u16) -> Vec<String> {
    let area = Rect::new(0, 0, width, screen::height(view, width).min(LINES));
    let mut cells = Buffer::empty(area);
    screen::draw(view, area, &mut cells);
    let row = |y| (0..width).filter_map(|x| cells.cell((x, y))).map(ratatui::buffer::Cell::symbol).collect();
    let text = (0..area.height).map(|y| -> String { row(y) });
    text.map(|line| line.trim_end().to_owned()).collect()
}

fn watch(terminal: &mut ratatui::DefaultTerminal, seen: &Receiver<Result<Look>>, order: Order) -> Result<()> {
    let mut view = View { order, keys: true, ..View::default() };
    let mut last: Option<Look> = None;
    loop {
        match seen.try_recv() {
            Ok(Ok(now)) => {
                // While paused the last look stays the one that is shown; rates then span the pause.
                if !view.paused {
                    view.figures = Some(Figures::between(last.as_ref(), &now));
                    view.trouble = None;
                    last = Some(now);
                }
            }
            Ok(Err(error)) => {
                view.trouble = Some(format!("what follows is old: {error:#}").replace('\n', " "))
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                view.trouble = Some("nobody looks any more: q quits".to_owned())
            }
        }
        if let Some(figures) = &mut view.figures {
            figures.sort(view.order);
        }
        terminal.draw(|frame| screen::draw(&view, frame.area(), frame.buffer_mut()))?;
        if !event::poll(KEYS_LIMIT)? {
            continue;
        }
        if let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
        {
            let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
            if view.press(key.code, is_control) {
                return Ok(());
            }
        }
    }
}

impl View {
    /// Does what a key asks for; says whether that is the end.
    fn press(&mut self, key: KeyCode, is_control: bool) -> bool {
        let most = self.figures.as_ref().map_or(0, |figures| figures.devices.len().saturating_sub(1));
        match key {
            KeyCode::Char('c') if is_control => return true,
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('s') => self.order = self.order.next(),
            KeyCode::Up | KeyCode::Char('k') => self.passed = self.passed.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.passed = (self.passed + 1).min(most),
            KeyCode::PageUp => self.passed = self.passed.saturating_sub(10),
            KeyCode::PageDown => self.passed = (self.passed + 10).min(most),
            KeyCode::Home => self.passed = 0,
            KeyCode::End => self.passed = most,
            _ => {}
        }
        false
    }
}
