//! What the screen shows, cell by cell, on a terminal of the test's own.

use super::figures::{Figures, Order};
use super::scene::busy;
use super::screen::{View, draw};
use super::{lines, screen};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::KeyCode;

fn view() -> View {
    let (before, now) = busy();
    View { figures: Some(Figures::between(Some(&before), &now)), ..View::default() }
}

#[test]
fn everything_is_printed_once() {
    let text = lines(&view(), 150).join("\n");
    assert_eq!(text, include_str!("screen.txt").trim_end_matches('\n'), "\n{text}\n");
}

#[test]
fn a_narrow_screen_loses_columns_and_no_facts_of_the_cluster() {
    let text = lines(&view(), 80);
    assert!(text.iter().all(|line| line.chars().count() <= 80), "{text:#?}");
    let all = text.join(" ");
    for wanted in [
        "local",
        "leader coord-1",
        "145 moving",
        "2/3 up",
        "hit rate 80.0 %",
        "p99 12.3 ms",
        "node-3",
        "down",
        "drains",
    ] {
        assert!(all.contains(wanted), "{wanted} is missing in\n{}", text.join("\n"));
    }
    assert!(!all.contains("WRITTEN"));
}

#[test]
fn a_terminal_shows_keys_and_trouble_at_its_edges_and_scrolls() {
    let mut view =
        View { keys: true, trouble: Some("what follows is old: nobody answers".to_owned()), ..view() };
    let mut terminal = Terminal::new(TestBackend::new(150, 30)).expect("a test's terminal always opens");
    let mut shown = |view: &View| {
        terminal.draw(|frame| draw(view, frame.area(), frame.buffer_mut())).expect("it takes everything");
        terminal.backend().to_string()
    };
    let text = shown(&view);
    assert!(text.contains("q quit   p pause   s sort: node"), "{text}");
    assert!(text.contains("what follows is old: nobody answers"), "{text}");
    assert!(text.contains("1/0"), "{text}");
    assert!(!view.press(KeyCode::Down, false) && !view.press(KeyCode::Char('s'), false));
    assert!(!view.press(KeyCode::Char('p'), false) && !view.press(KeyCode::Char('c'), false));
    assert_eq!((view.passed, view.order, view.paused), (1, Order::Used, true));
    let text = shown(&view);
    assert!(!text.contains("1/0") && text.contains("2/0"), "{text}");
    assert!(text.contains("p go on   s sort: used"), "{text}");
    view.press(KeyCode::PageDown, false);
    assert_eq!(view.passed, 2, "the last row stays");
    assert!(view.press(KeyCode::Char('q'), false) && view.press(KeyCode::Char('c'), true));
}

#[test]
fn an_event_says_whom_it_is_about() {
    let (before, mut now) = busy();
    now.events[0].subject = serde_json::from_str(r#"{"engine": "vllm-0"}"#).expect("a subject");
    let view = View { figures: Some(Figures::between(Some(&before), &now)), ..View::default() };
    let text = lines(&view, 150).join("\n");
    assert!(text.contains("vllm-0"), "{text}");
}

#[test]
fn no_screen_is_too_small() {
    for (width, height) in [(1, 1), (5, 3), (30, 4), (200, 2)] {
        let mut terminal =
            Terminal::new(TestBackend::new(width, height)).expect("a test's terminal always opens");
        terminal.draw(|frame| draw(&view(), frame.area(), frame.buffer_mut())).expect("it takes everything");
    }
    assert!(screen::height(&View::default(), 80) > 0);
}
