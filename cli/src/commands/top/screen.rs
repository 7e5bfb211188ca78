//! Figures on a screen, or on as much of one as there is. Draws into a buffer of cells: a terminal's, a test's, or one that is
//! printed once.

use super::figures::{DeviceRow, Figures, Order, Rates};
use super::look::{Event, Subject, Tier};
use crate::report;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table, Widget, Wrap};

/// Tenants and events that are shown, at most.
const TENANTS: usize = 6;
const EVENTS: usize = 6;
/// Cells of a bar: where there is room, and at least.
const BAR: u16 = 20;
const LEAST_BAR: u16 = 9;

/// What is on the screen beside the figures.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// None before the first look.
    pub(super) figures: Option<Figures>,
    pub(super) order: Order,
    pub(super) paused: bool,
    /// Devices that are scrolled past.
    pub(super) passed: usize,
    /// Why what is shown is old.
    pub(super) trouble: Option<String>,
    /// Somebody may press keys.
    pub(super) keys: bool,
}

const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);
const SOFT: Style = Style::new().add_modifier(Modifier::DIM);
const HEAD: Style = Style::new().add_modifier(Modifier::REVERSED);
const GOOD: Style = Style::new().fg(Color::Green);
const WARN: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red);

/// Returns the lines that showing everything takes.
pub(super) fn height(view: &View, width: u16) -> u16 {
    let Some(figures) = &view.figures else { return 2 };
    let tables =
        figures.devices.len() + figures.tenants.len().min(TENANTS) + figures.events.len().min(EVENTS);
    let rest = 6 + usize::from(view.keys) + usize::from(view.trouble.is_some());
    wrapped(&summary(figures), width).saturating_add(u16::try_from(tables + rest).unwrap_or(u16::MAX))
}

/// Draws.
pub(super) fn draw(view: &View, area: Rect, cells: &mut Buffer) {
    let Some(figures) = &view.figures else {
        let words = view.trouble.as_deref().unwrap_or("looking at the cluster …");
        return Paragraph::new(words.to_owned()).wrap(Wrap { trim: true }).render(area, cells);
    };
    let summary = summary(figures);
    let few = |count: usize, most: usize| u16::try_from(count.min(most)).unwrap_or(0);
    let (tenants, events) = (few(figures.tenants.len(), TENANTS), few(figures.events.len(), EVENTS));
    let [top, trouble, _, devices, _, of_tenants, _, of_events, keys] = Layout::vertical([
        Constraint::Length(wrapped(&summary, area.width)),
        Constraint::Length(u16::from(view.trouble.is_some())),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
        Constraint::Length(1 + tenants),
        Constraint::Length(1),
        Constraint::Length(1 + events),
        Constraint::Length(u16::from(view.keys)),
    ])
    .areas(area);
    Paragraph::new(summary).wrap(Wrap { trim: true }).render(top, cells);
    if let Some(words) = &view.trouble {
        Line::styled(words.clone(), BAD).render(trouble, cells);
    }
    draw_devices(view, figures, devices, cells);
    draw_tenants(figures, of_tenants, cells);
    draw_events(figures, of_events, cells);
    if view.keys {
        let paused = if view.paused { "go on" } else { "pause" };
        let words = format!(" q quit   p {paused}   s sort: {}   ↑ ↓ scroll", view.order.name());
        Line::styled(words, SOFT).render(keys, cells);
    }
}

fn wrapped(lines: &[Line<'_>], width: u16) -> u16 {
    let width = usize::from(width.max(1));
    // Words are not parted, so a line may take one more than its length says.
    let rows =
        |line: &Line<'_>| if line.width() <= width { 1 } else { line.width() / (width * 9 / 10).max(1) + 1 };
    u16::try_from(lines.iter().map(rows).sum::<usize>()).unwrap_or(u16::MAX)
}

fn summary(figures: &Figures) -> Vec<Line<'static>> {
    let slots = figures.slots;
    let mut first = vec![
        Span::styled(format!("kvhive {}", figures.name.as_deref().unwrap_or("(not started)")), STRONG),
        Span::raw("   leader "),
        match &figures.leader {
            Some(name) => Span::styled(name.clone(), STRONG),
            None => Span::styled("none", BAD),
        },
        Span::raw(format!("   term {}   epoch {}   nodes ", figures.term, figures.epoch)),
        Span::styled(
            format!("{}/{} up", figures.nodes_up, figures.nodes),
            if figures.nodes_up < figures.nodes { WARN } else { GOOD },
        ),
        Span::raw(format!("   slots {}: ", slots.total)),
        Span::styled(
            format!("{} unavailable", slots.unavailable),
            if slots.unavailable > 0 { BAD } else { Style::new() },
        ),
        Span::styled(
            format!(", {} moving", slots.moving),
            if slots.moving > 0 { WARN } else { Style::new() },
        ),
    ];
    first.push(Span::styled(format!("   {}", clock(figures.at_ms)), SOFT));
    let mut second = vec![Span::raw("coordinators")];
    for one in &figures.coordinators {
        second.push(Span::raw(format!("   {} ", one.name)));
        let style = if one.role == "unreachable" { BAD } else { Style::new() };
        second.push(Span::styled(one.role.clone(), style));
        if let Some(behind) = one.behind.filter(|behind| *behind > 0) {
            second.push(Span::raw(format!(" {behind} behind")));
        }
    }
    vec![Line::from(first), Line::from(second), Line::from(rates(&figures.total))]
}

fn rates(total: &Rates) -> Vec<Span<'static>> {
    let mut spans = Vec::new();
    for (name, value) in [
        ("hit rate", percent(total.hit_rate)),
        ("asked", rate(total.matched_keys_per_s)),
        ("fetched", rate(total.fetched_blocks_per_s)),
        ("stored", rate(total.stored_blocks_per_s)),
        ("evicted", rate(total.evicted_blocks_per_s)),
        ("read", bandwidth(total.read_bytes_per_s)),
        ("written", bandwidth(total.written_bytes_per_s)),
        ("fetch p50", latency(total.fetch_p50_us)),
        ("p99", latency(total.fetch_p99_us)),
    ] {
        spans.push(Span::raw(if spans.is_empty() { format!("{name} ") } else { format!("   {name} ") }));
        spans.push(Span::styled(value, STRONG));
    }
    spans
}

fn draw_devices(view: &View, figures: &Figures, area: Rect, cells: &mut Buffer) {
    let mut tiers = ["device", "host", "disk"].to_vec();
    tiers.retain(|name| figures.devices.iter().any(|row| row.tiers.iter().any(|tier| tier.tier == *name)));
    let columns = Columns::fit(tiers, area.width);
    let (names, widths) = columns.heads();
    let passed = view.passed.min(figures.devices.len().saturating_sub(1));
    let rows = figures.devices.iter().skip(passed).map(|row| device(row, &columns));
    Table::new(rows, widths).header(Row::new(names).style(HEAD)).render(area, cells);
}

/// Which columns devices have: all where there is room.
struct Columns {
    tiers: Vec<&'static str>,
    /// Cells of each tier's bar.
    bar: u16,
    is_wide: bool,
}

impl Columns {
    const FIRST: [(&'static str, u16); 3] = [("NODE", 8), ("STATE", 6), ("DEVICE", 6)];
    const THEN: [(&'static str, u16); 3] = [("HIT", 7), ("READ", 7), ("P99", 7)];
    const WIDE: [(&'static str, u16); 5] =
        [("WRITTEN", 7), ("P50", 7), ("PRIMARY", 7), ("REPLICA", 7), ("FILLING", 7)];

    fn fit(tiers: Vec<&'static str>, width: u16) -> Columns {
        let taken = |columns: &[(&str, u16)]| columns.iter().map(|(_, cells)| cells + 1).sum::<u16>();
        let room = width.saturating_sub(taken(&Columns::FIRST) + taken(&Columns::THEN));
        let bar_of = |room: u16| (room / (tiers.len() as u16).max(1)).saturating_sub(1).min(BAR);
        let (narrow, wide) = (bar_of(room), bar_of(room.saturating_sub(taken(&Columns::WIDE))));
        let is_wide = wide >= BAR * 3 / 4;
        Columns { tiers, bar: if is_wide { wide } else { narrow.max(LEAST_BAR) }, is_wide }
    }

    fn heads(&self) -> (Vec<&'static str>, Vec<Constraint>) {
        let tiers = self.tiers.iter().map(|tier| match *tier {
            "device" => ("DEVICE TIER", self.bar),
            "host" => ("HOST TIER", self.bar),
            _ => ("DISK TIER", self.bar),
        });
        let wide = Columns::WIDE.into_iter().filter(|_| self.is_wide);
        let all: Vec<(&str, u16)> =
            Columns::FIRST.into_iter().chain(tiers).chain(Columns::THEN).chain(wide).collect();
        let width = |(at, (_, cells)): (usize, &(&str, u16))| match at {
            0 => Constraint::Min(*cells),
            _ => Constraint::Length(*cells),
        };
        (all.iter().map(|(name, _)| *name).collect(), all.iter().enumerate().map(width).collect())
    }
}

fn device(row: &DeviceRow, shown: &Columns) -> Row<'static> {
    let style = match row.state {
        "up" => GOOD,
        "drains" | "cordoned" => WARN,
        _ => BAD,
    };
    let mut columns = vec![
        Line::from(row.node.clone()),
        Line::styled(row.state, style),
        Line::from(row.device.clone().unwrap_or_default()),
    ];
    for name in &shown.tiers {
        let tier = row.tiers.iter().find(|tier| tier.tier == *name);
        columns.push(tier.map_or_else(Line::default, |tier| bar(tier, usize::from(shown.bar))));
    }
    if row.device.is_some() {
        let rates = &row.rates;
        columns.extend(
            [percent(rates.hit_rate), brief(rates.read_bytes_per_s), latency(rates.fetch_p99_us)]
                .map(Line::from),
        );
        if shown.is_wide {
            columns.extend([brief(rates.written_bytes_per_s), latency(rates.fetch_p50_us)].map(Line::from));
            columns.extend(
                [row.primary_slots, row.replica_slots, row.filling_slots]
                    .map(|slots| Line::from(slots.to_string())),
            );
        }
    }
    Row::new(columns)
}

/// Draws how full a tier is: strokes, with the figures over their end.
fn bar(tier: &Tier, width: usize) -> Line<'static> {
    let share =
        if tier.capacity_bytes == 0 { 0.0 } else { tier.used_bytes as f64 / tier.capacity_bytes as f64 };
    let inner = width.saturating_sub(2);
    let full = ((share * inner as f64).round() as usize).min(inner);
    let words = match tier.closed {
        true => "failed".to_owned(),
        false => format!("{}/{}", short(tier.used_bytes as f64), short(tier.capacity_bytes as f64)),
    };
    let strokes = format!("{}{}", "|".repeat(full), " ".repeat(inner - full));
    let begins = inner.saturating_sub(words.len());
    let text: String = strokes.chars().take(begins).chain(words.chars()).take(inner).collect();
    let (filled, rest) = text.split_at(full);
    let style = match share {
        ..0.9 => GOOD,
        _ => WARN,
    };
    let (style, soft) = if tier.closed { (BAD, BAD) } else { (style, SOFT) };
    Line::from(vec![
        Span::styled("[", STRONG),
        Span::styled(filled.to_owned(), style),
        Span::styled(rest.to_owned(), soft),
        Span::styled("]", STRONG),
    ])
}

fn draw_tenants(figures: &Figures, area: Rect, cells: &mut Buffer) {
    let rows = figures.tenants.iter().take(TENANTS).map(|tenant| {
        Row::new([
            tenant.name.clone(),
            tenant.blocks.to_string(),
            report::bytes(tenant.used_bytes),
            percent(tenant.hit_rate),
            tenant.evicted_blocks.to_string(),
            percent(tenant.stored_ratio),
        ])
    });
    let more = figures.tenants.len().saturating_sub(TENANTS);
    let title = if more == 0 { "TENANT".to_owned() } else { format!("TENANT ({more} more)") };
    let names = [title.as_str(), "BLOCKS", "USED", "HIT RATE", "EVICTED", "OF RAW"].map(str::to_owned);
    let widths = [
        Constraint::Min(20),
        Constraint::Length(10),
        Constraint::Length(12),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(7),
    ];
    Table::new(rows, widths).header(Row::new(names).style(HEAD)).render(area, cells);
}

fn draw_events(figures: &Figures, area: Rect, cells: &mut Buffer) {
    let rows = figures.events.iter().rev().take(EVENTS).map(|event| {
        let style = if event.kind == "member-down" { BAD } else { Style::new() };
        Row::new([
            Line::styled(clock(event.at_ms), SOFT),
            Line::styled(event.kind.clone(), style),
            Line::from(format!("{}  {}", about(event), event.reason)),
        ])
    });
    let widths = [Constraint::Length(8), Constraint::Length(20), Constraint::Fill(1)];
    Table::new(rows, widths).header(Row::new(["TIME", "EVENT", "ABOUT"]).style(HEAD)).render(area, cells);
}

fn about(event: &Event) -> String {
    let subject = &event.subject;
    let slots = subject.slots.map(|slots| report::counted(slots, "slot"));
    let Subject { member, tenant, coordinator, engine, pin, .. } = subject.clone();
    [member, tenant, coordinator, engine, pin, slots].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn clock(at_ms: u64) -> String {
    report::utc(at_ms).chars().skip(11).take(8).collect()
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

fn latency(us: Option<u64>) -> String {
    us.map_or_else(|| "-".to_owned(), |us| report::duration(us.saturating_mul(1000)))
}

fn rate(per_s: Option<f64>) -> String {
    per_s.map_or_else(
        || "-".to_owned(),
        |per_s| if per_s < 10_000.0 { format!("{per_s:.0}/s") } else { format!("{:.1}k/s", per_s / 1000.0) },
    )
}

fn bandwidth(per_s: Option<f64>) -> String {
    per_s.map_or_else(|| "-".to_owned(), |per_s| format!("{}/s", report::bytes(per_s as u64)))
}

fn brief(per_s: Option<f64>) -> String {
    per_s.map_or_else(|| "-".to_owned(), |per_s| format!("{}/s", short(per_s)))
}

/// Writes bytes in three or four characters.
fn short(bytes: f64) -> String {
    let (mut value, mut unit) = (bytes, 0);
    while value >= 1000.0 && unit < 5 {
        value /= 1024.0;
        unit += 1;
    }
    let name = ["B", "K", "M", "G", "T", "P"][unit];
    if value < 10.0 && unit > 0 { format!("{value:.1}{name}") } else { format!("{value:.0}{name}") }
}
