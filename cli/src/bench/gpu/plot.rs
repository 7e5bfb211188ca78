//! A roofline as a picture: GB/s against bytes of a piece, both axes logarithmic, one line a kind of work, under ceilings of the same run,
//! which are dashed. What limits all of this work is moving bytes, so that the size of a piece is what is varied, and not operations a byte.

use crate::svg::{COLOURS, escape, put};

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 600.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 230.0;
const TOP: f64 = 52.0;
const BOTTOM: f64 = 60.0;

/// One speed.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Point {
    /// What was done: points of one line.
    pub(super) line: String,
    /// Bytes of a piece.
    pub(super) piece: usize,
    /// GB/s that pass what limits it.
    pub(super) gbps: f64,
    /// How much that is of what it was held against, in words.
    pub(super) share: String,
}

/// What one large copy reaches.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Ceiling {
    pub(super) name: String,
    pub(super) gbps: f64,
}

/// Where values lie on the picture, by their logarithms.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    fn of(ceilings: &[Ceiling], points: &[Point]) -> Frame {
        let pieces = points.iter().map(|point| (point.piece as f64).log2());
        let speeds = points.iter().map(|point| point.gbps).chain(ceilings.iter().map(|ceiling| ceiling.gbps));
        let speeds = speeds.filter(|speed| speed.is_finite() && *speed > 0.0).map(f64::log10);
        let within = |values: &mut dyn Iterator<Item = f64>| {
            let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
            if low < high {
                (low, high)
            } else if low.is_finite() {
                (low - 1.0, low + 1.0)
            } else {
                (0.0, 1.0)
            }
        };
        let (low, high) = within(&mut speeds.into_iter());
        Frame { x: within(&mut pieces.into_iter()), y: (low.floor(), high.ceil()) }
    }

    fn x(&self, piece: usize) -> f64 {
        let share = ((piece as f64).log2() - self.x.0) / (self.x.1 - self.x.0);
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, gbps: f64) -> f64 {
        let share = (gbps.log10() - self.y.0) / (self.y.1 - self.y.0);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }
}

/// Draws all of it as a whole SVG file.
pub(super) fn draw(name: &str, ceilings: &[Ceiling], points: &[Point]) -> String {
    let frame = Frame::of(ceilings, points);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <title>Roofline of {name}: GB/s against bytes of a piece, ceilings of the same run</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"28\" font-size=\"17\" font-weight=\"600\">Roofline of {name}, ceilings of the same run</text>\n",
        name = escape(name)
    );
    axes(&mut svg, &frame);
    let mut names: Vec<&str> = Vec::new();
    for point in points {
        if !names.contains(&point.line.as_str()) {
            names.push(&point.line);
        }
    }
    for (number, ceiling) in ceilings.iter().enumerate() {
        draw_ceiling(&mut svg, &frame, number, ceiling);
    }
    for (number, line) in names.iter().enumerate() {
        let of_line: Vec<&Point> = points.iter().filter(|point| point.line == *line).collect();
        draw_line(&mut svg, &frame, ceilings.len(), number, line, &of_line);
    }
    svg.push_str("</svg>\n");
    svg
}

fn axes(svg: &mut String, frame: &Frame) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for power in frame.y.0 as i32..=frame.y.1 as i32 {
        let y = frame.y(10f64.powi(power));
        put(svg, format_args!("<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#e3e3e3\"/>"));
        let (x, y) = (LEFT - 8.0, y + 4.5);
        put(
            svg,
            format_args!("<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{}</text>", 10f64.powi(power)),
        );
    }
    for power in frame.x.0.ceil() as u32..=frame.x.1.floor() as u32 {
        let (x, y) = (frame.x(1 << power), bottom + 18.0);
        put(svg, format_args!("<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#f0f0f0\"/>"));
        let size = kvhive_config::Bytes(1 << power);
        put(svg, format_args!("<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{size}</text>"));
    }
    put(svg, format_args!("<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"#888\"/>"));
    let (x, y) = ((LEFT + right) / 2.0, HEIGHT - 16.0);
    put(
        svg,
        format_args!(
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">bytes of a piece (logarithmic)</text>"
        ),
    );
    let y = TOP - 10.0;
    put(
        svg,
        format_args!(
            "<text x=\"{LEFT}\" y=\"{y}\" fill=\"#666\">GB/s over the link, or read and written in the GPU's memory \
             (logarithmic)</text>"
        ),
    );
}

fn draw_ceiling(svg: &mut String, frame: &Frame, number: usize, ceiling: &Ceiling) {
    let (right, y) = (WIDTH - RIGHT, frame.y(ceiling.gbps));
    put(
        svg,
        format_args!(
            "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#111\" stroke-width=\"1.5\" stroke-dasharray=\"7 4\"/>"
        ),
    );
    let (name, speed) = (escape(&ceiling.name), ceiling.gbps);
    legend(svg, number, "#111", "7 4", &format!("{name}: {speed:.0} GB/s"));
}

fn draw_line(svg: &mut String, frame: &Frame, before: usize, number: usize, name: &str, points: &[&Point]) {
    let colour = COLOURS[number % COLOURS.len()];
    let dash = ["none", "2 3", "9 3"][(number / COLOURS.len()).min(2)];
    let name = escape(name);
    let places: Vec<String> = points
        .iter()
        .map(|point| format!("{:.1},{:.1}", frame.x(point.piece), frame.y(point.gbps)))
        .collect();
    put(
        svg,
        format_args!(
            "<g class=\"{name}\"><polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" \
             stroke-dasharray=\"{dash}\"/>",
            places.join(" ")
        ),
    );
    for point in points {
        let (x, y) = (frame.x(point.piece), frame.y(point.gbps));
        let (size, speed) = (kvhive_config::Bytes(point.piece as u64), point.gbps);
        let share = escape(&point.share);
        put(
            svg,
            format_args!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\">\
                 <title>{name}, {size}: {speed:.1} GB/s, {share}</title></circle>"
            ),
        );
    }
    legend(svg, before + number, colour, dash, &name);
    svg.push_str("</g>\n");
}

fn legend(svg: &mut String, place: usize, colour: &str, dash: &str, text: &str) {
    let (x, y) = (WIDTH - RIGHT + 16.0, TOP + 8.0 + 20.0 * place as f64);
    let (end, at, baseline) = (x + 22.0, x + 28.0, y + 4.5);
    put(
        svg,
        format_args!(
            "<path d=\"M{x} {y}H{end}\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\"/>\
             <text x=\"{at}\" y=\"{baseline}\">{text}</text>"
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_factors_are_equal_distances_and_ceilings_are_named() {
        let share = || "0.92 of one copy".to_owned();
        let point = |piece, gbps| Point { line: "gather <raw>".to_owned(), piece, gbps, share: share() };
        let ceilings = [Ceiling { name: "one copy".to_owned(), gbps: 100.0 }];
        let svg = draw("a & b", &ceilings, &[point(1024, 1.0), point(4096, 10.0), point(16384, 100.0)]);
        assert!(
            svg.contains(">Roofline of a &amp; b, ceilings of the same run<") && svg.ends_with("</svg>\n")
        );
        assert!(svg.contains(", 1KiB: 1.0 GB/s, 0.92 of one copy</title>"), "{svg}");
        assert!(svg.contains("<polyline points=\"70.0,540.0 420.0,296.0 770.0,52.0\""), "{svg}");
        assert!(svg.contains("<path d=\"M70 52.0H770\"") && svg.contains("one copy: 100 GB/s"), "{svg}");
        assert_eq!((svg.matches("<circle").count(), svg.matches("gather &lt;raw&gt;").count()), (3, 5));
    }

    #[test]
    fn one_point_and_none_are_pictures_too() {
        let one = [Point { line: "x".to_owned(), piece: 4096, gbps: 5.0, share: String::new() }];
        assert!(draw("x", &[], &one).contains("<circle cx=\"420.0\""));
        assert!(draw("x", &[], &[]).ends_with("</svg>\n"));
    }
}
