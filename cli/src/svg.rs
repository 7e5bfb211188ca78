//! What pictures have in common: SVG, written by hand. What is drawn where is its caller's.

use std::fmt::{Arguments, Write};

/// Colours that differ for all eyes (Okabe and Ito), then darker ones; a second round is dashed.
pub(crate) const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a", "#8c510a"];

/// Writes a piece, and ends the line.
pub(crate) fn put(svg: &mut String, piece: Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(svg, "{piece}");
}

/// Returns text as it may stand between tags and in attributes.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
